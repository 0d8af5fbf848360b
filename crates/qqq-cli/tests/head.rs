//! `quantize --head int8`: from the command line to tokens.

mod common;

use std::fs;

use common::{Place, TinyModel};
use serde_json::{Value, json};

const LINE: &str = "quantize model --calibration text.txt --windows 4 --window 128";

/// With the embedding as output head.
fn tied() -> Place {
    let place = Place::new();
    fs::remove_dir_all(place.path("model")).unwrap();
    let mut model = TinyModel::new();
    model.config["tie_word_embeddings"] = json!(true);
    model.tensors.retain(|(name, ..)| name != "lm_head.weight");
    model.write(&place.path("model"));
    place
}

fn config(place: &Place, model: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(place.path(model).join("config.json")).unwrap()).unwrap()
}

#[test]
fn it_is_written_looked_at_and_run() {
    for (place, transform) in [(Place::new(), "auto"), (tied(), "none"), (tied(), "auto")] {
        let line = format!("{LINE} --transform {transform}");
        place.run(&format!("{line} -o float")).success();
        let run = place.run(&format!("{line} --head int8 -o out")).success();
        assert!(run.stdout.lines().any(|line| line.starts_with("output head")), "{}", run.stdout);
        assert!(run.stdout.contains("the head is int8"), "{}", run.stdout);

        let written = config(&place, "out");
        assert_eq!(written["tie_word_embeddings"], false);
        let quantization = &written["quantization_config"];
        assert_eq!(quantization["quant_method"], "compressed-tensors");
        let groups = quantization["config_groups"].as_object().unwrap();
        let of_head = groups.values().find(|group| group["targets"] == json!(["lm_head"])).unwrap();
        assert_eq!(
            (&of_head["weights"]["num_bits"], &of_head["format"]),
            (&json!(8), &json!("int-quantized"))
        );
        assert_eq!(quantization["ignore"], json!([]));

        let seen = place.run("inspect out --json").success().json();
        let before = place.run("inspect float --json").success().json();
        assert_eq!(seen["output_head"], "W8A8");
        assert!(before["output_head"].is_null());
        // Bits per weight are those of the blocks' layers.
        for of in ["block_linear_bits_per_weight", "block_linear_bytes"] {
            if before["quantization"]["format"] == "compressed-tensors" {
                assert_eq!(seen["totals"][of], before["totals"][of]);
            }
        }
        assert_eq!(seen["quantization"]["schemes"], json!(["W4A8 g64"]));
        assert_eq!(seen["quantization"]["group_size"], 64);
        let head = seen["modules"].as_array().unwrap().iter().find(|m| m["name"] == "lm_head").unwrap();
        assert_eq!((&head["scheme"], &head["bytes"]), (&json!("W8A8"), &json!(272 * 64 + 2 * 272)));
        let text = place.run("inspect out").success().stdout;
        assert!(text.contains("its own, W8A8"), "{text}");

        // What differs is the head: by little, but it does.
        let kld = place.run("eval kld out --baseline float --text text.txt --window 128 --limit 4 --json");
        let kld = kld.success().json()["kl_divergence"]["mean"].as_f64().unwrap();
        assert!(kld > 1e-9 && kld < 1e-3, "{kld}");
        for options in ["--temperature 0", "--temperature 1 --seed 3", "--temperature 1 --top-k 5 --seed 3"] {
            let line = format!("generate out --prompt abc --raw -n 16 --json {options}");
            let [a, b] = [0, 1].map(|_| place.run(&line).success().json());
            assert_eq!(a["text"], b["text"], "{options}");
        }
    }
}

#[test]
fn a_budget_of_bytes_counts_it_and_one_of_bits_does_not() {
    let place = tied();
    let line = format!("{LINE} --transform none --group-size 32");
    let total = |run: common::Run| run.success().json()["report"]["tensor_bytes"][1].as_u64().unwrap();
    let float = total(place.run(&format!("{line} --format compressed-tensors -o float --json")));
    let low = total(place.run(&format!("{line} --head int8 -o low --json")));
    // A byte a weight and a scale a token, beside the embedding.
    assert_eq!(low - float, 272 * 64 + 2 * 272);
    let run = place.run(&format!("{line} --head int8 --budget {}B -o no", low - 1));
    let run = run.failure(2, "cannot be kept");
    assert!(run.stderr.contains(&format!("from {low} bytes")), "{low}: {}", run.stderr);
    let json = place.run(&format!("{line} --head int8 --budget 6 -o bits --json")).success().json();
    let seen = place.run("inspect bits --json").success().json();
    let said = json["report"]["budget"]["bits_per_weight"].as_f64().unwrap();
    let found = seen["totals"]["block_linear_bits_per_weight"].as_f64().unwrap();
    assert!(said <= 6.0 && (said - found).abs() < 1e-9, "{said} {found}");
    assert_eq!(seen["output_head"], "W8A8");
}

#[test]
fn what_cannot_be_is_refused_with_the_way_out() {
    let place = Place::new();
    for (options, says) in [
        ("--head int8 --format qqq", "no int8 output head"),
        ("--head int4", "int4"),
        ("--rule lm_head=int8", "--head int8"),
        ("--recipe gptq --head int8", "--head: recipe gptq"),
        ("--recipe llm-int8 --head int8", "--head: recipe llm-int8"),
    ] {
        let run = place.run(&format!("{LINE} {options} -o out"));
        assert!(run.code == Some(2) && run.stderr.contains(says), "{options}: {}", run.stderr);
    }
    assert_eq!(place.names(), ["model", "text.txt"]);
    place.quantize("out", "--head int8");
    place.run("convert out -o again").failure(2, "the output head is quantized");
    place.run("quantize out -o again --method rtn").failure(2, "is quantized already");
    // A configuration that takes the embedding instead of it.
    let mut tied = config(&place, "out");
    tied["tie_word_embeddings"] = json!(true);
    fs::write(place.path("out/config.json"), tied.to_string()).unwrap();
    place.run("generate out --prompt abc --raw -n 2").failure(2, "lm_head.weight_scale is there");
}
