//! A real GGUF file: its configuration, and weights as transformers reads them.

use std::path::PathBuf;
use std::process::ExitCode;

use qqq_formats::Checkpoint;
use qqq_formats::config::RopeScaling;
use qqq_formats::gguf::GgmlType;
use qqq_testing::{Suite, tests};

fn main() -> ExitCode {
    Suite::new().with(qqq_testing::smollm2, tests![smollm2_opens]).run()
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

fn smollm2_opens(path: PathBuf) {
    let checkpoint = Checkpoint::open(&path).unwrap();
    let c = &checkpoint.config;
    assert_eq!(c.architecture.model_type(), "llama");
    assert_eq!((c.hidden_size, c.intermediate_size, c.num_layers), (576, 1536, 30));
    assert_eq!((c.num_heads, c.num_kv_heads, c.head_dim, c.vocab_size), (9, 3, 64, 49152));
    assert_eq!((c.rope_theta, c.rms_norm_eps, c.max_position_embeddings), (100_000.0, 1e-5, 8192));
    assert_eq!(c.rope_scaling, RopeScaling::None);
    assert!(c.tie_word_embeddings && !c.graph.qkv_bias && !c.graph.o_bias && !c.graph.mlp_bias);
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
