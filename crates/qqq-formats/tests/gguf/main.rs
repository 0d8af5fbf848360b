//! GGUF files: values against llama.cpp's Python package, a real model, and files that lie.

mod builder;
mod config;
mod damaged;
mod split;

use std::path::{Path, PathBuf};

use qqq_formats::config::{Architecture, RopeScaling};
use qqq_formats::gguf::{GgmlType, GgufFile};
use qqq_formats::{Checkpoint, DType, TensorSource, WeightData};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// Every type's values are those of `gguf.quants.dequantize` bit for bit
/// (scripts/make_gguf_vectors.py).
#[test]
fn every_type_dequantizes_as_llama_cpp_does() {
    let file = GgufFile::open(&data("dequant.gguf")).unwrap();
    let types = [
        "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
        "Q8_K",
    ];
    for name in types {
        let info = file.info(name).unwrap();
        assert_eq!(file.tensor_type(name).unwrap().name(), name);
        let expected_name = format!("{name}.expected");
        let expected_info = file.info(&expected_name).unwrap();
        assert_eq!(info.shape, expected_info.shape, "{name}");
        let got = file.f32(name, &info.shape).unwrap();
        let expected = file.f32(&expected_name, &info.shape).unwrap();
        assert!(got.len() > 40 && got.iter().any(|x| *x != 0.0));
        for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
            assert_eq!(g.to_bits(), e.to_bits(), "{name}[{i}]: {g} {e}");
        }
    }
    assert_eq!(file.names().len(), 2 * types.len());
    assert!(matches!(file.float("F16", &[2, 24]).unwrap(), WeightData::F16(_)));
    assert!(matches!(file.float("BF16", &[2, 24]).unwrap(), WeightData::BF16(_)));
    assert_eq!(file.info("Q6_K").unwrap().dtype, DType::Gguf("Q6_K"));
}

#[test]
fn metadata_has_its_types() {
    let file = GgufFile::open(&data("dequant.gguf")).unwrap();
    let m = file.metadata();
    assert_eq!(file.version(), 3);
    assert_eq!(m.string("test.text").unwrap(), Some("Grüße, 世界"));
    assert_eq!(m.integers("test.numbers").unwrap(), Some(&[1, -2, 3][..]));
    assert_eq!(m.float("test.float").unwrap(), Some(f64::from(0.1f32)));
    assert_eq!(m.bool("test.bool").unwrap(), Some(true));
    assert_eq!(m.bool("test.absent").unwrap(), None);
    let e = m.bool("test.text").unwrap_err().to_string();
    assert!(e.contains("test.text") && e.contains("a string") && e.contains("a boolean"), "{e}");
}

/// Row, column and value of a few weights, from transformers 5.23: its GGUF loader undoes the
/// permutation of q and k by its own code.
const SMOLLM2_Q: [(usize, usize, f64); 6] = [
    (137, 64, 0.1383056640625),
    (261, 120, 0.32421875),
    (507, 460, -0.177734375),
    (483, 388, 0.11846923828125),
    (214, 96, -0.167236328125),
    (499, 29, -0.035400390625),
];
/// See [`SMOLLM2_Q`].
const SMOLLM2_K: [(usize, usize, f64); 6] = [
    (99, 443, -0.00384521484375),
    (155, 2, -0.1759033203125),
    (178, 456, 0.1517333984375),
    (68, 234, 0.0052490234375),
    (151, 104, 0.1068115234375),
    (81, 31, -0.0777587890625),
];

/// Path of SmolLM2-135M-Instruct.Q4_1.gguf, `None` (with a line printed) where it may be missing.
fn smollm2() -> Option<PathBuf> {
    let path = match std::env::var_os("QQQ_TEST_SMOLLM2") {
        Some(path) => PathBuf::from(path),
        None => {
            Path::new(&std::env::var_os("HOME")?).join(".cache/qqq/models/SmolLM2-135M-Instruct.Q4_1.gguf")
        }
    };
    if path.is_file() {
        return Some(path);
    }
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{} is missing", path.display());
    println!("skipped: {} is missing (QQQ_TEST_SMOLLM2 names another place)", path.display());
    None
}

#[test]
fn smollm2_opens() {
    let Some(path) = smollm2() else { return };
    let checkpoint = Checkpoint::open(&path).unwrap();
    let c = &checkpoint.config;
    assert_eq!(c.architecture, Architecture::Llama);
    assert_eq!((c.hidden_size, c.intermediate_size, c.num_layers), (576, 1536, 30));
    assert_eq!((c.num_heads, c.num_kv_heads, c.head_dim, c.vocab_size), (9, 3, 64, 49152));
    assert_eq!((c.rope_theta, c.rms_norm_eps, c.max_position_embeddings), (100_000.0, 1e-5, 8192));
    assert_eq!(c.rope_scaling, RopeScaling::None);
    assert!(c.tie_word_embeddings && !c.qkv_bias && !c.o_bias && !c.mlp_bias);
    assert_eq!((c.bos_token_id, &c.eos_token_ids[..]), (Some(1), &[2][..]));
    assert_eq!(c.raw["rms_norm_eps"], 1e-5);
    assert_eq!(c.raw["architectures"][0], "LlamaForCausalLM");

    let q = checkpoint.tensors.f32("model.layers.3.self_attn.q_proj.weight", &[576, 576]).unwrap();
    let k = checkpoint.tensors.f32("model.layers.29.self_attn.k_proj.weight", &[192, 576]).unwrap();
    let at = |v: &[f32], row: usize, col: usize| f64::from(v[row * 576 + col]);
    SMOLLM2_Q.iter().for_each(|&(r, c, x)| assert_eq!(at(&q, r, c), x, "q[{r}, {c}]"));
    SMOLLM2_K.iter().for_each(|&(r, c, x)| assert_eq!(at(&k, r, c), x, "k[{r}, {c}]"));
    // The permutation of bytes and of values agree.
    let name = "model.layers.3.self_attn.q_proj.weight";
    let bytes = checkpoint.tensors.bytes(name).unwrap();
    assert_eq!(GgmlType::from_name("Q4_1").unwrap().dequantize(&bytes).unwrap(), q);
}
