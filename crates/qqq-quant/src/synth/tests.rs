//! Checkpoints of random weights are read by what reads others.

use std::path::PathBuf;

use qqq_backend::{BatchPlan, CpuBackend, KvDType};
use qqq_formats::{Checkpoint, LinearWeight, WeightData};
use qqq_model::{Decoder, Runner, Tokenizer, check_tensors};
use serde_json::json;

use super::*;

struct Silent;

impl Progress for Silent {
    fn step(&mut self, done: f64, total: f64, _next: &str) -> bool {
        assert!(done <= total);
        true
    }
    fn warn(&mut self, message: &str) {
        panic!("{message}");
    }
}

/// A small model of a family.
fn config(class: &str, model_type: &str) -> ModelConfig {
    let value = json!({
        "architectures": [class], "model_type": model_type, "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "vocab_size": 300, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": [2, 7],
        "tie_word_embeddings": model_type == "gemma3_text",
    });
    ModelConfig::from_value(Path::new("config.json"), value).unwrap()
}

fn make(dir: &Path, name: &str, config: &ModelConfig, synth: Synth) -> (PathBuf, Synthesized) {
    let out = dir.join(name);
    let made = synthesize(config, &synth, &Reservation::take(&out).unwrap(), &mut Silent).unwrap();
    (out, made)
}

const FLOAT: Synth = Synth { seed: 0, quantized: None };

/// Logits of a short text, after the checks that every model goes through.
fn logits(path: &Path) -> Vec<f32> {
    let checkpoint = Checkpoint::open(path).unwrap();
    check_tensors(&checkpoint).unwrap();
    let tokenizer = Tokenizer::load(&checkpoint).unwrap();
    let text = "Zwölf Boxkämpfer <eos> 1\n";
    let tokens = tokenizer.encode(text, false).unwrap();
    // A special token is one; every other byte is one.
    assert_eq!(tokens.len(), text.len() - "<eos>".len() + 1);
    assert_eq!(tokenizer.decode(&tokens, false).unwrap(), text);
    let decoder = Decoder::load(CpuBackend::default(), &checkpoint).unwrap();
    let mut runner = Runner::for_positions(&decoder, KvDType::F32, tokens.len()).unwrap();
    runner.step(&BatchPlan::sequences([tokens.as_slice()])).unwrap();
    runner.logits(&[tokens.len() - 1]).unwrap().into_owned()
}

#[test]
fn families_run_and_their_logits_are_near_one() {
    let dir = tempfile::tempdir().unwrap();
    for (class, model_type) in [
        ("LlamaForCausalLM", "llama"),
        ("Qwen2ForCausalLM", "qwen2"),
        ("Qwen3ForCausalLM", "qwen3"),
        ("Phi3ForCausalLM", "phi3"),
        ("Gemma3ForCausalLM", "gemma3_text"),
    ] {
        let (path, made) = make(dir.path(), class, &config(class, model_type), FLOAT);
        let logits = logits(&path);
        assert_eq!(logits.len(), 300);
        let size = (logits.iter().map(|x| x * x).sum::<f32>() / 300.0).sqrt();
        assert!((0.3..3.0).contains(&size), "{class}: {size}");
        assert_eq!(made.tensor_bytes, 2 * made.parameters, "{class}");
    }
}

#[test]
fn quantized_layers_have_the_deviation_of_float_ones() {
    let dir = tempfile::tempdir().unwrap();
    let config = config("LlamaForCausalLM", "llama");
    for (format, group_size, name) in [
        (OutputFormat::Auto, None, "qqq"),
        (OutputFormat::Qqq, Some(128), "qqq"),
        (OutputFormat::CompressedTensors, None, "compressed-tensors"),
        (OutputFormat::Auto, Some(64), "compressed-tensors"),
    ] {
        let quantized = Some(Quantized { format, group_size });
        let (path, made) =
            make(dir.path(), &format!("{name}-{group_size:?}"), &config, Synth { seed: 0, quantized });
        assert_eq!(made.format, name);
        let checkpoint = Checkpoint::open(&path).unwrap();
        for (module, n, k) in [(names::Q, 256, 256), (names::DOWN, 256, 512)] {
            let layer = checkpoint.linear(&names::linear(2, module), n, k).unwrap();
            let LinearWeight::Quantized(weight) = layer else { panic!("{module} is float") };
            weight.check(module).unwrap();
            let scales = weight.channel_scales();
            let weights = weight.int8_weights();
            let square = weights.iter().enumerate().map(|(i, w)| (f32::from(*w) * scales[i / k]).powi(2));
            let deviation = (square.sum::<f32>() / weights.len() as f32).sqrt() * (k as f32).sqrt();
            assert!((deviation - 1.0).abs() < 0.05, "{name} {group_size:?} {module}: {deviation}");
        }
        let size = (logits(&path).iter().map(|x| x * x).sum::<f32>() / 300.0).sqrt();
        assert!((0.3..3.0).contains(&size), "{name}: {size}");
    }
}

#[test]
fn a_seed_gives_the_same_bytes_and_no_tensor_is_like_another() {
    let dir = tempfile::tempdir().unwrap();
    let config = config("LlamaForCausalLM", "llama");
    let read = |path: &Path| std::fs::read(path.join("model.safetensors")).unwrap();
    let (first, _) = make(dir.path(), "a", &config, FLOAT);
    let (same, _) = make(dir.path(), "b", &config, FLOAT);
    let (other, _) = make(dir.path(), "c", &config, Synth { seed: 1, ..FLOAT });
    assert_eq!(read(&first), read(&same));
    assert_ne!(read(&first), read(&other));
    // A block is the same however many there are.
    let short = ModelConfig::from_value(Path::new("c"), shortened(config.raw.clone(), 1)).unwrap();
    let (short, _) = make(dir.path(), "d", &short, FLOAT);
    let gate = |path: &Path, block: usize| {
        let checkpoint = Checkpoint::open(path).unwrap();
        let layer = checkpoint.linear(&names::linear(block, names::GATE), 512, 256).unwrap();
        let LinearWeight::Float { data: WeightData::BF16(data), .. } = layer else { panic!("not bfloat16") };
        data
    };
    assert_eq!(gate(&short, 0), gate(&first, 0));
    assert_ne!(gate(&first, 1), gate(&first, 0));
}

#[test]
fn what_cannot_be_made_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |config: &ModelConfig, synth: Synth| {
        let reservation = Reservation::take(&dir.path().join("out")).unwrap();
        let error = synthesize(config, &synth, &reservation, &mut Silent).unwrap_err().to_string();
        drop(reservation);
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
        error
    };
    let good = config("LlamaForCausalLM", "llama");
    let groups = |format, g| Synth { seed: 0, quantized: Some(Quantized { format, group_size: Some(g) }) };
    assert!(refused(&good, groups(OutputFormat::Qqq, 64)).contains("groups of 64"));
    assert!(refused(&good, groups(OutputFormat::Auto, 48)).contains("group size 48"));
    let few = ModelConfig { vocab_size: 258, ..good.clone() };
    assert!(refused(&few, FLOAT).contains("no room for a tokenizer"));
    let wide = ModelConfig { num_layers: 4000, intermediate_size: 1 << 22, hidden_size: 1 << 20, ..good };
    assert!(refused(&wide, FLOAT).contains("free on this disk"));
}

#[test]
fn known_shapes_are_models_of_their_size() {
    for (name, billions) in [
        ("llama-2-7b", 6.74),
        ("llama-2-13b", 13.02),
        ("llama-3-8b", 8.03),
        ("llama-3-70b", 70.55),
        ("qwen3-8b", 8.19),
    ] {
        let shape = Shape::named(name).unwrap();
        let config = ModelConfig::from_value(Path::new(name), shape.config()).unwrap();
        let parameters = parameters(&config) as f64 / 1e9;
        assert!((parameters - billions).abs() < 0.006, "{name}: {parameters}");
    }
    assert_eq!(Shape::named("llama-2"), None);
}

#[test]
fn an_interrupted_one_leaves_nothing() {
    struct Stop;
    impl Progress for Stop {
        fn step(&mut self, _done: f64, _total: f64, next: &str) -> bool {
            !next.contains("layers.1.")
        }
        fn warn(&mut self, _message: &str) {}
    }
    let dir = tempfile::tempdir().unwrap();
    let reservation = Reservation::take(&dir.path().join("out")).unwrap();
    let stopped = synthesize(&config("LlamaForCausalLM", "llama"), &FLOAT, &reservation, &mut Stop);
    assert!(matches!(stopped, Err(QuantError::Interrupted)));
    drop(reservation);
    assert_eq!(dir.path().read_dir().unwrap().count(), 0);
}
