//! `quantize --budget`: bits where they save most.

mod common;

use std::fs;

use common::{Place, TinyModel};
use serde_json::Value;

const LINE: &str = "quantize model --calibration text.txt --windows 4 --window 128 --group-size 32";

/// A model of which 4 bits destroy one layer: the input channels of its first `down_proj` that matter have small weights, in
/// rows whose largest weight is many times as large and has an input of nearly nothing.
fn place() -> Place {
    let place = Place::new();
    fs::remove_dir_all(place.path("model")).unwrap();
    let mut model = TinyModel::new();
    for (name, shape, values) in &mut model.tensors {
        match name.as_str() {
            // Of gate and up: one channel in each group of 32 is nearly off.
            "model.layers.0.mlp.up_proj.weight" => {
                let k = shape[1];
                values
                    .chunks_exact_mut(k)
                    .step_by(32)
                    .for_each(|row| row.iter_mut().for_each(|w| *w *= 1e-3));
            }
            "model.layers.0.mlp.down_proj.weight" => {
                values.iter_mut().for_each(|w| *w *= 4.0);
                values.iter_mut().step_by(32).for_each(|w| *w = 8.0);
            }
            _ => {}
        }
    }
    model.write(&place.path("model"));
    place
}

fn budget(report: &Value) -> &Value {
    &report["report"]["budget"]
}

/// Names of the layers that got 8 bits.
fn eight(report: &Value) -> Vec<&str> {
    let sites = budget(report)["sites"].as_array().unwrap().iter();
    sites.filter(|site| site["chosen"] == "int8").map(|site| site["name"].as_str().unwrap()).collect()
}

/// What was measured of a site's candidates.
fn losses(site: &Value) -> Vec<f64> {
    let candidates = site["candidates"].as_array().unwrap().iter();
    candidates.map(|candidate| candidate["kl_divergence"].as_f64().unwrap()).collect()
}

fn bits(report: &Value) -> f64 {
    budget(report)["bits_per_weight"].as_f64().unwrap()
}

#[test]
fn a_layer_that_4_bits_destroy_comes_first_and_more_budget_is_more_bits() {
    let place = place();
    let mut last = 0.0;
    for (i, asked) in [5.5, 6.5, 7.5].into_iter().enumerate() {
        let json = place.run(&format!("{LINE} --budget {asked} -o out{i} --json")).success().json();
        assert!(eight(&json).contains(&"model.layers.0.mlp.down_proj"), "{:#}", budget(&json));
        assert!(bits(&json) <= asked && bits(&json) > last, "{} of {asked}", bits(&json));
        last = bits(&json);
        for site in budget(&json)["sites"].as_array().unwrap() {
            let losses = losses(site);
            assert!(losses.len() == 2 && losses[0] > losses[1] && losses[1] > 0.0, "{site}");
        }
        // What is said is what is written.
        let seen = place.run(&format!("inspect out{i} --json")).success().json();
        let found = seen["totals"]["block_linear_bits_per_weight"].as_f64().unwrap();
        assert!((found - bits(&json)).abs() < 1e-9, "{found} {}", bits(&json));
    }
    let run = place.run(&format!("{LINE} --budget 6.5 -o again")).success();
    assert!(run.stdout.lines().any(|line| line.starts_with("budget")), "{}", run.stdout);
    let bytes = |out: &str| fs::read(place.path(out).join("model.safetensors")).unwrap();
    assert!(bytes("again") == bytes("out1"), "two runs give the same bytes");
    assert!(fs::read_to_string(place.path("again/README.md")).unwrap().contains("| Budget |"));
}

#[test]
fn a_size_is_that_of_all_tensors_and_rules_are_kept() {
    let place = place();
    let total = |json: &Value| json["report"]["tensor_bytes"][1].as_u64().unwrap();
    let low = total(&place.run(&format!("{LINE} -o low --json")).success().json());
    let asked = low + 6000;
    let json = place.run(&format!("{LINE} --budget {asked}B -o out --json")).success().json();
    assert!(total(&json) <= asked && total(&json) > low, "{low} {} {asked}", total(&json));
    // The least that the error names is what 4 bits take.
    let run = place.run(&format!("{LINE} --budget {}B -o no", low - 1)).failure(2, "cannot be kept");
    assert!(run.stderr.contains(&format!("from {low} bytes")), "{low}: {}", run.stderr);

    let rule = "--rule layers.0.mlp.down_proj=int4 --rule o_proj=float";
    let json = place.run(&format!("{LINE} {rule} --budget 7 -o ruled --json")).success().json();
    let names: Vec<&str> = budget(&json)["sites"]
        .as_array()
        .unwrap()
        .iter()
        .map(|site| site["name"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 5, "{names:?}");
    assert!(!names.contains(&"model.layers.0.mlp.down_proj") && bits(&json) <= 7.0);
    // What stays in 16 bits counts.
    let seen = place.run("inspect ruled --json").success().json();
    let found = seen["totals"]["block_linear_bits_per_weight"].as_f64().unwrap();
    assert!((found - bits(&json)).abs() < 1e-9, "{found} {}", bits(&json));
}

#[test]
fn what_cannot_be_is_refused_with_the_way_out() {
    let place = place();
    for (options, says) in [
        ("--budget 3", "ask for one between"),
        ("--budget 9", "bits per weight"),
        ("--budget 0", "such as 4.8"),
        ("--budget much", "900MB"),
        ("--budget 5 --format qqq", "--format compressed-tensors"),
        ("--budget 5 --rule layers=int8", "the rules decide on every layer"),
    ] {
        place.run(&format!("{LINE} {options} -o out")).failure(2, says);
    }
    place
        .run("quantize model --bits 8 --group-size channel --budget 5 -o out")
        .failure(2, "gives 8 bits to some layers of 4");
    place.run("quantize model --recipe gptq --budget 5 -o out").failure(2, "--budget");
    assert_eq!(place.names(), ["model", "text.txt"]);
}

#[test]
fn smaller_groups_are_chosen_too_and_the_rules_alone_give_the_same() {
    let place = place();
    let line = "quantize model --calibration text.txt --windows 4 --window 128 --group-size channel";
    let json = place.run(&format!("{line} --budget 5.2 -o out --json")).success().json();
    let found = budget(&json);
    let sites = found["sites"].as_array().unwrap();
    let precisions = |site: &Value| -> Vec<String> {
        let candidates = site["candidates"].as_array().unwrap().iter();
        candidates.map(|candidate| candidate["precision"].as_str().unwrap().to_owned()).collect()
    };
    for site in sites {
        let all = precisions(site);
        assert!(all.len() > 2 && all[0] == "int4:channel" && all.last().unwrap() == "int8", "{all:?}");
        assert!(all.iter().any(|one| one == site["chosen"].as_str().unwrap()), "{site}");
    }
    let in_groups = sites.iter().filter(|site| site["chosen"].as_str().unwrap().starts_with("int4:g"));
    assert!(in_groups.count() > 0, "{found:#}");
    assert_eq!(found["chosen_on_compared_text"], false);
    let rules: Vec<String> = found["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| {
            format!("--rule {}={}", rule["pattern"].as_str().unwrap(), rule["precision"].as_str().unwrap())
        })
        .collect();
    place.run(&format!("{line} {} -o ruled", rules.join(" "))).success();
    let bytes = |out: &str| fs::read(place.path(out).join("model.safetensors")).unwrap();
    assert!(bytes("out") == bytes("ruled"), "the rules of a budget are all that it changes");
}

/// What is measured of a candidate is what a run finds of the model that has only this layer quantized, where both look at the
/// same text: there is no other.
#[test]
fn a_candidate_loses_what_its_rule_alone_loses() {
    let place = place();
    let text = fs::read_to_string(place.path("text.txt")).unwrap();
    let words: Vec<&str> = text.split_inclusive(' ').take(60).collect();
    fs::write(place.path("short.txt"), words.concat()).unwrap();
    let line = "quantize model --calibration short.txt --windows 2 --window 32 --held-out 16 --transform none \
                --propagation float --group-size 32 --json";
    let run = place.run(&format!("{line} --budget 6 -o out")).success();
    assert!(run.stderr.contains("nothing to hold out beyond"), "{}", run.stderr);
    let json = run.json();
    assert_eq!(budget(&json)["chosen_on_compared_text"], true);
    for (name, precisions) in [
        ("model.layers.0.mlp.down_proj", ["int4", "int8"]),
        ("model.layers.1.self_attn.o_proj", ["int4", "int8"]),
    ] {
        let site =
            budget(&json)["sites"].as_array().unwrap().iter().find(|site| site["name"] == name).unwrap();
        for (precision, expected) in precisions.iter().zip(losses(site)) {
            let rules = format!("--rule layers=float --rule {name}={precision}");
            let out = format!("{name}-{precision}");
            let alone = place.run(&format!("{line} {rules} -o {out}")).success().json();
            let quality = &alone["report"]["quality"];
            let found = quality["kl_divergence"]["mean"].as_f64().unwrap();
            assert_eq!(quality["tokens"], budget(&json)["tokens"], "{quality}");
            // The float model of that is as it is stored, not in 16 bits, which takes it some millionths of a nat away.
            let close = 0.01 * expected + 2e-6;
            assert!((found - expected).abs() < close, "{name} {precision}: {found} {expected}");
        }
    }
}

#[test]
fn without_a_comparison_there_is_still_text_to_choose_on() {
    let place = place();
    let json = place.run(&format!("{LINE} --budget 6 --held-out 0 -o out --json")).success().json();
    assert!(json["report"]["quality"].is_null() && budget(&json)["tokens"].as_u64().unwrap() > 15);
    // Rounding to nearest takes no calibration text, and is measured on the built-in one.
    let json =
        place.run("quantize model --method rtn --group-size 32 --budget 6 -o rtn --json").success().json();
    assert!(budget(&json)["tokens"].as_u64().unwrap() > 100 && bits(&json) <= 6.0);
}

#[test]
fn a_dry_run_says_what_measuring_takes() {
    let place = place();
    let needs = place.run(&format!("{LINE} --budget 6 --dry-run --json")).success().json();
    let [all, measuring] = ["seconds", "sensitivity_seconds"].map(|name| needs[name].as_f64().unwrap());
    assert!(0.0 < measuring && measuring < all, "{needs:#}");
    assert_eq!(place.names(), ["model", "text.txt"]);
}
