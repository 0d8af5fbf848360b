//! Every family as a user has it: quantized, looked at, measured and run.

mod common;

use std::{fs, path::Path};

use common::Place;
use qqq_formats::{DType, writer::CheckpointWriter};
use serde_json::Value;

/// Of the models that are compared with transformers (`crates/qqq-model/tests/data/parity.json`), one or more of each family.
const MODELS: [(&str, &str); 13] = [
    ("llama_gqa", "LlamaForCausalLM"),
    ("mistral_window", "MistralForCausalLM"),
    ("ministral3", "Ministral3ForCausalLM"),
    ("qwen2", "Qwen2ForCausalLM"),
    ("qwen3", "Qwen3ForCausalLM"),
    ("smollm3", "SmolLM3ForCausalLM"),
    ("granite", "GraniteForCausalLM"),
    ("phi3_two_lists", "Phi3ForCausalLM"),
    ("phi4_partial_rope", "Phi3ForCausalLM"),
    ("gemma3", "Gemma3ForCausalLM"),
    ("seed_oss", "SeedOssForCausalLM"),
    ("seeing_gemma3", "Gemma3ForCausalLM"),
    ("seeing_mistral_older_names", "MistralForCausalLM"),
];
const VOCABULARY: usize = 61;

/// Writes a random model of a configuration and shapes.
fn write(model: &Value, dir: &Path) {
    let mut writer = CheckpointWriter::create(dir).unwrap();
    for (seed, (name, shape)) in model["tensors"].as_object().unwrap().iter().enumerate() {
        let shape: Vec<usize> = serde_json::from_value(shape.clone()).unwrap();
        let scale = 1.5 / (*shape.last().unwrap() as f32).sqrt();
        let values = qqq_testing::values(shape.iter().product(), seed as u64 + 1);
        let is_norm = name.contains("norm");
        let bytes: Vec<u8> = values
            .iter()
            .map(|x| if is_norm { 1.0 + 0.2 * x } else { scale * x })
            .flat_map(f32::to_le_bytes)
            .collect();
        writer.add(name, DType::F32, &shape, &bytes).unwrap();
    }
    let put = |file: &str, value: &Value| fs::write(writer.staging().join(file), value.to_string()).unwrap();
    put("config.json", &model["config"]);
    put("tokenizer.json", &qqq_testing::word_tokenizer(VOCABULARY));
    writer.finish().unwrap();
}

#[test]
fn every_family_from_end_to_end() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../qqq-model/tests/data/parity.json");
    let models: Value = serde_json::from_str(&fs::read_to_string(data).unwrap()).unwrap();
    let place = Place::new();
    let mut word = 0;
    let text = qqq_testing::values(600, 3).into_iter().map(|random| {
        word = (word * 5 + (random.abs() * 7.0) as usize) % VOCABULARY;
        format!("w{word} ")
    });
    fs::write(place.path("words.txt"), text.collect::<String>()).unwrap();
    let json = |line: String| place.run(&line).success().json();
    // All of it beyond the original context of the one that has two lists of rope factors.
    for (name, class) in MODELS {
        write(&models[name], &place.path(name));
        let out = format!("{name}-w4a8");
        // Norms behind attention and MLP allow no rotation.
        let transform = if name.contains("gemma") { "smooth" } else { "rotate" };
        let quantized = json(format!(
            "quantize {name} -o {out} --calibration words.txt --windows 2 --window 96 --group-size 32 --transform {transform} --json"
        ));
        let seen = json(format!("inspect {out} --json"));
        assert_eq!(
            (&seen["architecture"], &seen["container"]),
            (&class.into(), &"safetensors".into()),
            "{name}"
        );
        assert!(seen["quantization"].is_object(), "{name}: {seen}");
        let config: Value =
            serde_json::from_str(&fs::read_to_string(place.path(&out).join("config.json")).unwrap()).unwrap();
        assert_eq!(config["architectures"], serde_json::json!([class]), "{name}");

        let perplexity = |m: &str| {
            let report = json(format!("eval perplexity {m} --text words.txt --window 96 --limit 4 --json"));
            (report["perplexity"].as_f64().unwrap(), report["notes"].to_string())
        };
        let ((float, notes), (w4a8, plain)) = (perplexity(name), perplexity(&out));
        assert!((w4a8 / float).ln().abs() < 1.0, "{name}: {float} {w4a8}");

        let answer = json(format!("generate {out} --prompt w1 --raw -n 60 --temperature 0 --json"));
        let words = answer["text"].as_str().unwrap().split_whitespace().count();
        assert!(words == 60 || answer["finish"] == "stop", "{name}: {answer}");

        // What is made of a model that also sees is a text model, and says so.
        let whole = models[name]["config"]["architectures"][0].as_str().unwrap();
        let is_part = whole != class;
        let card = fs::read_to_string(place.path(&out).join("README.md")).unwrap();
        for told in [&notes, &quantized["notes"].to_string(), &card] {
            assert_eq!(told.contains(&format!("the text part of a {whole}")), is_part, "{name}: {told}");
        }
        assert!(!plain.contains("the text part"), "{name}: {plain}");
        assert!(
            config.get("text_config").is_none() && config.get("vision_config").is_none(),
            "{name}: {config}"
        );
    }
}
