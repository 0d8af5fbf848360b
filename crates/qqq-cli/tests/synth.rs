//! Checkpoints of random weights, by the binary.

mod common;

use std::fs;

use common::{Place, TinyModel};
use serde_json::json;

/// A place with a configuration that every form of checkpoint holds.
fn place() -> Place {
    let place = Place::new();
    let mut config = TinyModel::new().config;
    config["hidden_size"] = json!(256);
    config["intermediate_size"] = json!(512);
    config["num_hidden_layers"] = json!(3);
    config["vocab_size"] = json!(320);
    fs::write(place.path("config.json"), config.to_string()).unwrap();
    place
}

#[test]
fn float_ones_are_quantized_evaluated_and_run() {
    let place = place();
    let made = place.run("synth --like config.json -o random --layers 2 --json").success().json();
    assert_eq!((&made["layers"], &made["format"], &made["seed"]), (&json!(2), &json!("bfloat16"), &json!(0)));
    // A seed that is drawn stands there once, where every command has it.
    let drawn = place.run("synth --like config.json -o drawn --layers 1 --seed -1 --json").success();
    assert_eq!(drawn.stdout.matches("\"seed\"").count(), 1, "{}", drawn.stdout);
    // Rounding without data looks at no windows: the usual ones are longer than this model's context.
    place.run("quantize drawn -o nearest --method rtn --transform none").success();
    fs::remove_dir_all(place.path("nearest")).unwrap();
    fs::remove_dir_all(place.path("drawn")).unwrap();
    place.run("quantize random -o w4a8 --calibration text.txt --windows 2 --window 64").success();
    for model in ["random", "w4a8"] {
        place.run(&format!("inspect {model}")).success();
        place.run(&format!("eval perplexity {model} --text text.txt --window 64 --limit 2")).success();
        place.run(&format!("generate {model} --prompt Hello -n 4 --temperature 0")).success();
    }
}

#[test]
fn quantized_ones_run() {
    let place = place();
    for (options, format) in [
        ("--group-size channel", "qqq"),
        ("--group-size 128 --format qqq", "qqq"),
        ("--group-size 32", "compressed-tensors"),
    ] {
        let line = format!("synth --like config.json -o out --quantized {options} --json");
        assert_eq!(place.run(&line).success().json()["format"], format, "{options}");
        let kinds = place.run("inspect out").success().stdout;
        assert!(kinds.contains(format), "{kinds}");
        place.run("generate out --prompt Hello -n 4").success();
        fs::remove_dir_all(place.path("out")).unwrap();
    }
}

#[test]
fn wrong_ones_are_refused() {
    let place = place();
    for (options, says) in [
        ("--like llama-2", "neither shapes that are known nor a file"),
        ("--like config.json --layers 4", "has 3"),
        ("--like text.txt", "not valid JSON"),
        ("--like config.json --quantized --group-size 64 --format qqq", "groups of 64"),
    ] {
        place.run(&format!("synth {options} -o out")).failure(2, says);
    }
    place.run("synth --like config.json --quantized --layers 1 -o out").success();
    place.run("synth --like out -o again").failure(2, "quantized");
    place.run("synth --like config.json -o out").failure(2, "exists already");
    let run = place.run("synth --like config.json -o new --group-size 64");
    assert!(run.code == Some(2) && run.stderr.contains("--quantized"), "{}", run.stderr);
    assert_eq!(place.names(), ["config.json", "model", "out", "text.txt"]);
}
