//! Every command on a tiny model.

mod common;

use std::{
    io::{Read, Write},
    process::Stdio,
};

use common::{Place, Run, TinyModel};
use serde_json::{Value, json};

#[test]
fn quantize_writes_a_checkpoint_that_runs() {
    let place = Place::new();
    let run = place
        .run("quantize model -o out --calibration text.txt --windows 4 --window 128 --report report.json --json")
        .success();
    let outcome = run.json();
    assert_eq!(outcome["output"], "out");
    assert_eq!(outcome["report"]["recipe"]["transform"], "rotate");
    assert_eq!(outcome["report"]["recipe"]["group_size"], 64);
    assert_eq!(outcome["report"]["calibration_tokens"], 512);
    let report: Value = serde_json::from_slice(&std::fs::read(place.path("report.json")).unwrap()).unwrap();
    assert_eq!(report["layers"], outcome["report"]["layers"]);
    for file in ["config.json", "tokenizer.json", "model.safetensors", "README.md"] {
        assert!(place.path("out").join(file).is_file(), "{file}");
    }
    assert_eq!(place.names(), ["model", "out", "report.json", "text.txt"]);

    let inspected = place.run("inspect out --json").success().json();
    assert_eq!(inspected["quantization"]["group_size"], 64);
    let text = place.run("generate out --raw --prompt once -n 5").success();
    assert!(text.stderr.contains("new: 5 tokens") || text.stderr.contains("end of text"), "{}", text.stderr);
}

#[test]
fn every_recipe_gives_a_checkpoint_close_to_the_float_model() {
    let place = Place::new();
    let mut losses = Vec::new();
    for (i, options) in [
        "",
        "--transform smooth --smooth-tokens 64 --clip none",
        "--transform none --group-size channel --clip weight --propagation float",
        "--transform rotate --rotation orthogonal --group-size 32 --no-act-order",
        "--method rtn --group-size 32 --format compressed-tensors",
        "--method rtn --transform none --clip none --group-size channel",
    ]
    .iter()
    .enumerate()
    {
        let out = format!("out{i}");
        place.quantize(&out, options);
        let kld = place
            .run(&format!("eval kld {out} --baseline model --text text.txt --window 256 --limit 4 --json"))
            .success()
            .json();
        losses.push(kld["kl_divergence"]["mean"].as_f64().unwrap());
        // The logits of a random model are nearly level: rounding alone moves their maximum easily.
        if !options.contains("rtn") {
            assert!(kld["top1_agreement"]["mean"].as_f64().unwrap() > 0.5, "{options}: {kld}");
        }
    }
    assert!(losses.iter().all(|l| *l > 0.0 && *l < 0.1), "{losses:?}");
    // Groups and compensation against neither.
    assert!(losses[0] < losses[5], "{losses:?}");
}

#[test]
fn a_curve_of_several_checkpoints() {
    let place = Place::new();
    let line = "--calibration text.txt --windows 4 --window 128";
    for (out, options) in [("g32", "--group-size 32"), ("w8", "--bits 8"), ("mixed", "--rule down_proj=int8")]
    {
        place.run(&format!("quantize model -o {out} {line} {options}")).success();
    }
    std::fs::copy(place.path("text.txt"), place.path("other.txt")).unwrap();
    let line =
        "eval curve w8 mixed g32 --baseline model --text text.txt --text other.txt --window 128 --limit 4";
    let json = place.run(&format!("{line} --plot curve.svg --json")).success().json();
    let models = json["models"].as_array().unwrap();
    let names: Vec<&str> = models.iter().map(|m| m["model"].as_str().unwrap()).collect();
    assert_eq!(names, ["g32", "mixed", "w8"], "from the smallest on");
    assert_eq!(models[0]["schemes"], serde_json::json!(["W4A8 g32"]));
    assert_eq!(models[1]["schemes"].as_array().unwrap().len(), 2, "{}", models[1]);
    for model in models {
        let name = model["model"].as_str().unwrap();
        let alone = place
            .run(&format!("eval kld {name} --baseline model --text text.txt --window 128 --limit 4 --json"))
            .success()
            .json();
        for result in model["results"].as_array().unwrap() {
            assert_eq!(result["kl_divergence"], alone["kl_divergence"]);
        }
        let seen = place.run(&format!("inspect {name} --json")).success().json();
        assert_eq!(model["bits_per_weight"], seen["totals"]["block_linear_bits_per_weight"]);
        assert_eq!(model["bytes"], seen["totals"]["bytes"]);
    }
    let svg = std::fs::read_to_string(place.path("curve.svg")).unwrap();
    assert!(svg.matches("<circle").count() == 6 && svg.contains("W4A8 g32"), "{svg}");
    let table = place.run(line).success().stdout;
    assert_eq!(table.trim_end(), json["table"].as_str().unwrap().trim_end());
    assert!(table.lines().count() == 5 && table.lines().all(|row| row.matches('|').count() == 9), "{table}");
    place.run(&format!("{line} --plot curve.png")).failure(2, "does not end in .svg");
    place.run("eval curve w8 --baseline model").failure(2, "required arguments");
}

#[test]
fn self_calibration_needs_no_data_and_repeats() {
    let place = Place::new();
    for out in ["a", "b"] {
        let line = format!("quantize model -o {out} --calibration self --windows 2 --window 64 --seed 3");
        place.run(&line).success();
    }
    let weights = |out: &str| std::fs::read(place.path(out).join("model.safetensors")).unwrap();
    assert_eq!(weights("a"), weights("b"));
    place.run("quantize model -o c --calibration self --windows 2 --window 64 --seed 4").success();
    assert_ne!(weights("a"), weights("c"));
}

#[test]
fn the_built_in_text_is_the_default_and_the_first_line_says_so() {
    let place = Place::new();
    let run = place.run("quantize model -o default --windows 2 --window 64").success();
    let first = run.stderr.lines().next().unwrap();
    let says = "correcting errors at strength 0.5, calibrating on the built-in text, 2 windows of 64 tokens: under a minute on";
    assert!(first.starts_with(says) && first.contains("--calibration FILE"), "{first}");
    place.run("quantize model -o named --calibration built-in --windows 2 --window 64").success();
    let weights = |out: &str| std::fs::read(place.path(out).join("model.safetensors")).unwrap();
    assert_eq!(weights("default"), weights("named"));
    // More than it has.
    place.run("quantize model -o out --windows 1000 --window 2048").failure(2, "the built-in text has");
}

/// Text that changes nothing is not called calibration, and without text there is no error of outputs.
#[test]
fn what_rounding_to_nearest_says_of_its_text() {
    let place = Place::new();
    let rtn = |out: &str, options: &str| {
        let run = place.run(&format!("quantize model -o {out} --method rtn {options}")).success();
        let first = run.stderr.lines().next().unwrap().to_owned();
        let row = run.stdout.lines().find(|line| line.contains("mean over layers")).unwrap().to_owned();
        (first, row, std::fs::read_to_string(place.path(out).join("README.md")).unwrap())
    };
    let gptq = "; --method gptq keeps more of the quality";
    for text in ["text.txt", "built-in"] {
        let (first, row, card) =
            rtn(&format!("of-{text}"), &format!("--calibration {text} --windows 2 --window 64"));
        let how = "rounding to nearest with scales of the least weight error, the loss measured on ";
        assert!(first.starts_with(how), "{first}");
        assert!(first.contains("2 windows of 64 tokens") && first.ends_with(gptq), "{first}");
        assert!(row.starts_with("output error") && row.contains("of the output's square"), "{row}");
        assert!(card.contains("| Calibration data | none; loss measured on "), "{card}");
        assert!(
            card.contains("a layer's output on the text above") && !card.contains("calibration data,"),
            "{card}"
        );
    }
    let (first, row, card) = rtn("none", "");
    let how = "rounding to nearest with scales of the least weight error, without calibration";
    assert!(first.starts_with(how) && first.ends_with(gptq), "{first}");
    assert!(
        row.starts_with("weight error") && row.contains("of the weights' square (no calibration)"),
        "{row}"
    );
    assert!(card.contains("| Calibration data | none |"), "{card}");
    assert!(
        card.contains("a layer's weights (no calibration), relative to the weights themselves"),
        "{card}"
    );
    place
        .run("quantize model -o no --method rtn --clip output --windows 0")
        .failure(2, "--windows 0 leaves no calibration text, which --clip output cannot do without");
    // What needs text says so, and takes no more than it needs.
    let smooth = "--transform smooth --window 64 --smooth-tokens 32";
    let (first, _, card) = rtn("smooth", &format!("{smooth} --windows 1"));
    assert!(
        first.contains("smoothed for the first 32 tokens of the built-in text, 1 window of 64"),
        "{first}"
    );
    assert!(first.ends_with(gptq) && card.contains("the built-in text: 1 window"), "{first} {card}");
    let (first, _, _) = rtn("clipped", "--clip output --windows 2 --window 64");
    let how = "rounding to nearest with scales of the least output error, calibrating on the built-in text";
    assert!(first.starts_with(how), "{first}");
}

#[test]
fn perplexity() {
    let place = Place::new();
    let json = |line: &str| place.run(line).success().json();
    let report = json("eval perplexity model --text text.txt --window 256 --json");
    // 6968 tokens: 27 full windows, 255 scored tokens each. A random model is near the size of its vocabulary.
    assert_eq!(report["windows"], 27);
    let text = &report["text"];
    assert_eq!((&text["path"], text["sha256"].as_str().unwrap().len()), (&json!("text.txt"), 64));
    assert_eq!(report["tokens"], 27 * 255);
    let value = report["perplexity"].as_f64().unwrap();
    assert!((150.0..600.0).contains(&value), "{value}");
    let half =
        json("eval perplexity model --text text.txt --window 256 --scoring second-half --limit 3 --json");
    assert_eq!(half["tokens"], 3 * 127);
    let sliding = json("eval perplexity model --text text.txt --window 256 --stride 64 --limit 3 --json");
    assert_eq!(sliding["tokens"], 255 + 2 * 64);
    let human = place.run("eval perplexity model --text text.txt --window 256").success();
    assert!(
        human.stdout.starts_with("perplexity")
            && human.stdout.contains("27 windows of 256")
            && human
                .stdout
                .contains(&format!("text.txt, SHA-256 {}", &text["sha256"].as_str().unwrap()[..16])),
        "{}",
        human.stdout
    );
}

#[test]
fn a_model_does_not_differ_from_itself() {
    let place = Place::new();
    let report =
        place.run("eval kld model --baseline model --text text.txt --window 256 --json").success().json();
    assert_eq!(report["kl_divergence"]["mean"], 0.0);
    assert_eq!(report["top1_agreement"]["mean"], 1.0);
}

#[test]
fn inspect_tells_layer_by_layer() {
    let place = Place::new();
    place.quantize("grouped", "--group-size 32");
    place.quantize("channels", "--group-size channel --format compressed-tensors");
    let float = place.run("inspect model --json").success().json();
    assert_eq!(float["architecture"], "LlamaForCausalLM");
    assert_eq!(float["quantization"], Value::Null);
    // Per block 64*64*2 + 2*32*64 + 3*64*128 weights.
    let linear = 2 * (64 * 64 * 2 + 2 * 32 * 64 + 3 * 64 * 128);
    assert_eq!(float["totals"]["block_linear_parameters"], linear);
    assert_eq!(float["totals"]["block_linear_bits_per_weight"], 32.0);
    // Besides its codes a layer has 16-bit scales (a row's in every block: 64+32+32+64+128+128+64) and its shape.
    for (out, scales) in [("grouped", linear / 32), ("channels", 2 * 512)] {
        let json = place.run(&format!("inspect {out} --json")).success().json();
        assert_eq!(json["totals"]["block_linear_parameters"], linear, "{out}");
        let found = json["totals"]["block_linear_bits_per_weight"].as_f64().unwrap();
        let expected = 4.0 + (scales * 16 + 14 * 128) as f64 / linear as f64;
        assert!((found - expected).abs() < 1e-9, "{out}: {found}, not {expected}");
        let down = json["modules"]
            .as_array()
            .unwrap()
            .iter()
            .find(|m| m["name"] == "model.layers.1.mlp.down_proj")
            .unwrap();
        assert_eq!(down["shape"], serde_json::json!([64, 128]));
        let range = down["scale_range"].as_array().unwrap();
        // Weights are below 0.2 (rotated: somewhat more), codes up to 7.
        assert!((0.005..0.2).contains(&range[0].as_f64().unwrap()), "{range:?}");
        assert!(range[1].as_f64() >= range[0].as_f64());
    }
    let text = place.run("inspect grouped").success().stdout;
    assert!(text.contains("groups of 32") && text.contains("model.layers.0.self_attn.q_proj"), "{text}");
    assert!(!text.contains("\u{1b}") && text.is_ascii(), "no terminal, no colours or boxes");
    let summary = place.run("inspect grouped --summary").success().stdout;
    assert!(!summary.contains("q_proj"));
}

#[test]
fn generate_streams_and_reports() {
    let place = Place::new();
    let greedy = place.run("generate model --prompt Hello -n 12 --json").success().json();
    // "user: Hello\nassistant: "
    assert_eq!(greedy["prompt_tokens"], 23);
    assert_eq!(greedy["new_tokens"], 12);
    assert_eq!(greedy["finish"], "length");
    let text = place.run("generate model --prompt Hello -n 12 --quiet").success();
    assert_eq!(text.stdout.trim_end_matches('\n'), greedy["text"].as_str().unwrap().trim_end_matches('\n'));
    assert_eq!(text.stderr, "");
    let sampled = |seed: u32| {
        let line = format!("generate model --raw --prompt Hello -n 24 --temperature 1 --seed {seed} --json");
        place.run(&line).success().json()["text"].clone()
    };
    assert_eq!(sampled(1), sampled(1));
    assert_ne!(sampled(1), sampled(2));
    let raw = place.run("generate model --raw --prompt Hello -n 1 --json").success().json();
    assert_eq!(raw["prompt_tokens"], 5);
}

#[test]
fn generate_reads_standard_input() {
    let place = Place::new();
    let piped = |arguments: &[&str]| {
        let mut child = place
            .command()
            .args(["generate", "model", "--raw", "-n", "3", "--json"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"Hello\n").unwrap();
        Run::of(child.wait_with_output().unwrap()).success().json()
    };
    assert_eq!(piped(&["--prompt", "-"])["prompt_tokens"], 5);
    assert_eq!(piped(&[])["prompt_tokens"], 5);
}

#[test]
fn chat_keeps_the_conversation() {
    let place = Place::new();
    let mut child = place
        .command()
        .args(["chat", "model", "-n", "4", "--temperature", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"Hello\n\nAgain\n/unknown\n/reset\nHello\n/system Be brief.\nHello\n/exit\nnever\n")
        .unwrap();
    let run = Run::of(child.wait_with_output().unwrap()).success();
    let prompts: Vec<&str> =
        run.stderr.lines().filter_map(|l| l.strip_prefix("[prompt: ")?.split(' ').next()).collect();
    assert_eq!(prompts.len(), 4, "{}", run.stderr);
    assert_eq!(prompts[0], "23");
    assert_eq!(prompts[2], "23", "forgotten");
    assert!(prompts[1].parse::<u32>().unwrap() > 23 + 20, "the second turn holds the first one");
    assert_eq!(prompts[3].parse::<usize>().unwrap(), 23 + "system: Be brief.\n".len());
    assert!(run.stderr.contains("/unknown is unknown"));
}

#[test]
fn bench_gives_rates() {
    let place = Place::new();
    let json = place
        .run("bench model model --prompt-tokens 20 --new-tokens 8 --repeat 3 --batch 1,3 --threads 1 --plot a.svg --json")
        .success()
        .json();
    let results = json["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    for (result, batch) in results.iter().zip([1, 3]) {
        assert_eq!(
            (&result["threads"], &result["batch"], &result["repeat"]),
            (&1.into(), &batch.into(), &3.into())
        );
        assert_eq!(result["arithmetic"], "float");
        for rate in ["prefill_tokens_per_second", "decode_tokens_per_second", "output_tokens_per_second"] {
            let value = |key: &str| result[rate][key].as_f64().unwrap();
            assert!(value("min") > 0.0 && value("min") <= value("median") && value("median") <= value("max"));
        }
    }
    assert!(std::fs::read_to_string(place.path("a.svg")).unwrap().contains("Output tokens a second"));
    let text = place.run("bench model model --prompt-tokens 20 --new-tokens 8 --repeat 1").success().stdout;
    assert!(text.contains("output tokens/s") && text.contains("20 tokens in, 8 out"), "{text}");
}

#[test]
fn bench_compares_quantized_models_on_gpus() {
    let place = Place::new();
    place.run("bench model model --compare fp16 --device cpu").failure(2, "fp16 is not computed on the CPU");
    place.run("bench model model --compare w4a8").failure(2, "invalid value 'w4a8'");
    place.run("bench model model --batch 0").failure(2, "--batch");
    place.run("bench model model --plot model/config.json").failure(2, "does not end in .svg");
    place
        .run("bench model model --batch 65536 --prompt-tokens 2000 --new-tokens 40 --device cpu")
        .failure(2, "keys and values of 2000 + 40 tokens each take");
    place.run("bench model model --batch 65537").failure(2, "at most 65536");
    place.run("quantize model -o w4a8 --method rtn --group-size channel").success();
    place.run("bench model w4a8 --compare fp16 --device cpu").failure(2, "fp16 is not computed on the CPU");
}

#[test]
fn sharded_models_are_read() {
    let place = Place::new();
    TinyModel::new().write_sharded(&place.path("sharded"));
    let whole =
        place.run("eval perplexity model --text text.txt --window 128 --limit 2 --json").success().json();
    let sharded =
        place.run("eval perplexity sharded --text text.txt --window 128 --limit 2 --json").success().json();
    assert_eq!(whole["perplexity"], sharded["perplexity"]);
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let place = Place::new();
    let mut child = place
        .command()
        .args(["inspect", "model"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(child.wait().unwrap().success(), "{stderr}");
    assert_eq!(stderr, "");
}
