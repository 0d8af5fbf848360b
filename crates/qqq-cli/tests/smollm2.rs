//! From a real model to a W4A8 checkpoint and back.

mod common;

use std::{fs, path::PathBuf, process::ExitCode};

use common::{Place, Run, TEXT};
use qqq_testing::{Suite, tests};

fn main() -> ExitCode {
    let model = || qqq_testing::smollm2();
    Suite::new().with(model, tests![smollm2_from_end_to_end, the_model_is_where_the_variables_say]).run()
}

fn smollm2_from_end_to_end(model: PathBuf) {
    let place = Place::new();
    let model = model.display();
    let json = |line: String| place.run(&line).success().json();

    let inspected = json(format!("inspect {model} --json"));
    assert_eq!(inspected["container"], "GGUF");
    assert_eq!(inspected["layers"], 30);
    assert_eq!(inspected["totals"]["block_linear_parameters"], 106_168_320u64);

    let quantized =
        json(format!("quantize {model} -o out --calibration self --windows 4 --window 256 --json"));
    assert_eq!(quantized["report"]["layers"].as_array().unwrap().len() % 30, 0);
    let warnings = quantized["report"]["warnings"].to_string();
    assert!(warnings.contains("is quantized already") && warnings.contains("Q4_1 "), "{warnings}");
    let card = fs::read_to_string(place.path("out/README.md")).unwrap();
    assert!(card.contains("is quantized already") && card.contains("Q4_1 "), "{card}");
    let inspected = json("inspect out --json".into());
    let bits = inspected["totals"]["block_linear_bits_per_weight"].as_f64().unwrap();
    assert!((4.0..4.7).contains(&bits), "{bits}");

    std::fs::write(place.path("text.txt"), TEXT).unwrap();
    let kld = json(format!("eval kld out --baseline {model} --text text.txt --window 256 --limit 4 --json"));
    let mean = kld["kl_divergence"]["mean"].as_f64().unwrap();
    assert!(mean > 0.001 && mean < 0.5, "{kld}");
    assert!(kld["top1_agreement"]["mean"].as_f64().unwrap() > 0.6, "{kld}");

    let perplexity = |m: &str| {
        let report = json(format!("eval perplexity {m} --text text.txt --window 512 --limit 2 --json"));
        report["perplexity"].as_f64().unwrap()
    };
    let (float, w4a8) = (perplexity(&model.to_string()), perplexity("out"));
    assert!((5.0..40.0).contains(&float) && w4a8 < 1.5 * float, "{float} {w4a8}");

    for m in [model.to_string(), "out".into()] {
        let mut command = place.command();
        command.args(["generate", &m, "-n", "24", "--json", "--prompt", "What is the capital of France?"]);
        let answer = Run::of(command.output().unwrap()).success().json();
        assert!(answer["text"].as_str().unwrap().contains("Paris"), "{m}: {answer}");
    }
}

/// What is there is not fetched again: each rule finds the model in a folder of its own.
fn the_model_is_where_the_variables_say(model: PathBuf) {
    let place = Place::new();
    for (folder, variables) in [
        ("asked", [("QQQ_CACHE", "asked"), ("XDG_CACHE_HOME", "xdg"), ("HOME", "home")]),
        ("xdg/qqq", [("QQQ_CACHE", ""), ("XDG_CACHE_HOME", "xdg"), ("HOME", "home")]),
        ("home/.cache/qqq", [("QQQ_CACHE", ""), ("XDG_CACHE_HOME", ""), ("HOME", "home")]),
    ] {
        let models = place.path(folder).join("models");
        fs::create_dir_all(&models).unwrap();
        let expected = models.join("SmolLM2-135M-Instruct.Q4_1.gguf");
        fs::hard_link(&model, &expected).or_else(|_| fs::copy(&model, &expected).map(drop)).unwrap();
        let mut command = place.command();
        for (name, value) in variables {
            command.env(name, if value.is_empty() { value.into() } else { place.path(value) });
        }
        // No pip: it would be found by this.
        command.env("PATH", "").args(["demo", "--fetch-only", "--json"]);
        let found = Run::of(command.output().unwrap()).success().json();
        assert_eq!(found["path"], expected.to_str().unwrap(), "{variables:?}");
        fs::remove_file(expected).unwrap();
    }
}
