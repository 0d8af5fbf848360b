//! Whether a checkpoint's tensors are those of its configuration, before anything is computed from them.

use qqq_formats::{Checkpoint, DType, TensorSource, writer::CheckpointWriter};
use qqq_model::check_tensors;
use serde_json::json;

/// A Llama without blocks of these tensors (a byte string each, of shape 2 x 1).
fn checkpoint(tied: bool, tensors: &[(&str, [u16; 2])]) -> Checkpoint {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("m");
    let mut writer = CheckpointWriter::create(&out).unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": 1,
        "num_attention_heads": 1, "vocab_size": 2, "tie_word_embeddings": tied
    });
    std::fs::write(writer.staging().join("config.json"), config.to_string()).unwrap();
    for (name, values) in tensors {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        writer.add(name, DType::BF16, &[2, 1], &bytes).unwrap();
    }
    writer.finish().unwrap();
    // The file stays open.
    Checkpoint::open(&out).unwrap()
}

fn error(tied: bool, tensors: &[(&str, [u16; 2])]) -> String {
    check_tensors(&checkpoint(tied, tensors)).unwrap_err().to_string()
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

#[test]
fn heads_of_tied_models() {
    let (a, b) = ([0x3f80, 0x4000], [0x3f80, 0x4040]);
    check_tensors(&checkpoint(true, &[(EMBEDDING, a), (HEAD, a)])).unwrap();
    check_tensors(&checkpoint(true, &[(HEAD, a)])).unwrap();
    check_tensors(&checkpoint(false, &[(EMBEDDING, a), (HEAD, b)])).unwrap();
    // transformers runs such a model with both, and asks to say so in config.json.
    let error = error(true, &[(EMBEDDING, a), (HEAD, b)]);
    assert!(error.contains("tie_word_embeddings to false") && error.contains(HEAD), "{error}");
}

#[test]
fn tensors_that_the_family_does_not_know() {
    let a = [0x3f80, 0x4000];
    for name in
        ["model.layers.0.self_attn.q_norm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.bias"]
    {
        let error = error(false, &[(EMBEDDING, a), (HEAD, a), (name, a)]);
        assert!(error.contains(name), "{error}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_is_released_takes_no_memory_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("m");
    let size = 64 << 20;
    let mut writer = CheckpointWriter::create(&out).unwrap();
    for (name, value) in [("a", 1), ("b", 2)] {
        writer.add(name, DType::U8, &[size], &vec![value; size]).unwrap();
    }
    std::fs::write(writer.staging().join("config.json"), "{}").unwrap();
    writer.finish().unwrap();

    let tensors = qqq_formats::safetensors::Safetensors::open(&out).unwrap();
    let sum = |name: &str| tensors.bytes(name).unwrap().iter().map(|b| u64::from(*b)).sum::<u64>();
    let resident = || qqq_model::memory::used().unwrap().resident;
    assert_eq!(sum("a") + sum("b"), 3 * size as u64);
    let read = resident();
    tensors.release("a");
    tensors.release("not there");
    let released = read.saturating_sub(resident());
    assert!((48 << 20..80 << 20).contains(&released), "{released}");
    assert_eq!(sum("a") + sum("b"), 3 * size as u64);
}
