//! From a real model to a W4A8 checkpoint and back.

mod common;

use common::{Place, TEXT};

#[test]
fn smollm2_from_end_to_end() {
    let Some(model) = common::smollm2() else { return };
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
        let answer = common::Run::of(command.output().unwrap()).success().json();
        assert!(answer["text"].as_str().unwrap().contains("Paris"), "{m}: {answer}");
    }
}
