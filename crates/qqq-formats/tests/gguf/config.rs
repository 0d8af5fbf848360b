//! Configurations made of metadata, and the order of q and k rows.

use std::path::Path;

use qqq_formats::config::RopeScaling;
use qqq_formats::gguf::GgufFile;
use qqq_formats::{ModelConfig, TensorSource};
use serde_json::Value;

use crate::builder::{Builder, Kv, tiny};

fn open(b: &Builder) -> GgufFile {
    GgufFile::from_bytes("test.gguf", b.build()).unwrap()
}

fn config(b: &Builder) -> ModelConfig {
    open(b).config().unwrap()
}

fn refusal(b: &Builder) -> String {
    open(b).config().unwrap_err().to_string()
}

#[test]
fn llama() {
    let c = config(&tiny("llama"));
    assert_eq!(c.architecture.model_type(), "llama");
    assert_eq!((c.num_heads, c.num_kv_heads, c.head_dim, c.vocab_size), (2, 1, 4, 10));
    assert_eq!((c.num_layers, c.hidden_size, c.intermediate_size), (1, 8, 16));
    assert_eq!((c.rope_theta, c.rms_norm_eps), (500_000.0, 1e-5));
    assert!(c.tie_word_embeddings && !c.graph.qkv_bias);
    let untied = config(&tiny("llama").counting("output.weight", &[8, 10]));
    assert!(!untied.tie_word_embeddings);
    assert_eq!(untied.raw["model_type"], "llama");
}

#[test]
fn qwen() {
    let mut b = tiny("qwen2");
    for (name, n) in [("attn_q", 8), ("attn_k", 4), ("attn_v", 4)] {
        b = b.counting(&format!("blk.0.{name}.bias"), &[n]);
    }
    let c = config(&b);
    assert_eq!(c.architecture.model_type(), "qwen2");
    assert!(c.graph.qkv_bias && !c.graph.o_bias);

    let b = tiny("qwen3")
        .kv("qwen3.attention.key_length", Kv::U32(4))
        .kv("qwen3.attention.value_length", Kv::U32(4))
        .counting("blk.0.attn_q_norm.weight", &[4])
        .counting("blk.0.attn_k_norm.weight", &[4]);
    let c = config(&b);
    assert_eq!((c.architecture.model_type(), c.graph.qkv_bias), ("qwen3", false));
    assert_eq!(open(&b).f32("model.layers.0.self_attn.k_norm.weight", &[4]).unwrap(), [0., 1., 2., 3.]);
}

/// Llama's graph with biases on q, k and v only is called Qwen2 at Hugging Face, with a window Mistral.
#[test]
fn llama_files_of_other_families() {
    let mut b = tiny("llama");
    for (name, n) in [("attn_q", 8), ("attn_k", 4), ("attn_v", 4)] {
        b = b.counting(&format!("blk.0.{name}.bias"), &[n]);
    }
    assert_eq!(config(&b).architecture.model_type(), "qwen2");
    let all = b.counting("blk.0.attn_output.bias", &[8]);
    let c = config(&all);
    assert_eq!((c.architecture.model_type(), c.graph.qkv_bias, c.graph.o_bias), ("llama", true, true));
    let c = config(&tiny("llama").kv("llama.attention.sliding_window", Kv::U32(32)));
    assert_eq!((c.architecture.model_type(), c.graph.window_of_all()), ("mistral", Some(32)));
}

/// Rows of q and k, weights and biases, as `LlamaModel.permute` of llama.cpp's converter stores them:
/// head row `2 i + half` is Hugging Face's `half * head_dim / 2 + i`. Qwen is stored as it is.
#[test]
fn q_and_k_rows_return_to_their_order() {
    let firsts = |arch: &str, module: &str, rows: usize| {
        let b = tiny(arch).counting("blk.0.attn_q.bias", &[8]).counting("blk.0.attn_k.bias", &[4]);
        let file = open(&b);
        let name = format!("model.layers.0.self_attn.{module}");
        let weight = file.f32(&format!("{name}.weight"), &[rows, 8]).unwrap();
        let order: Vec<f32> = weight.iter().step_by(8).map(|x| x / 8.0).collect();
        if module != "v_proj" {
            assert_eq!(file.f32(&format!("{name}.bias"), &[rows]).unwrap(), order);
        }
        // Some rows, from within a head, are those of the whole.
        let name = format!("{name}.weight");
        assert_eq!(file.float_rows(&name, &[rows, 8], 1..3).unwrap().into_f32(), weight[8..24]);
        let bytes = file.bytes(&name).unwrap();
        assert_eq!(&*file.bytes_at(&name, 5..70).unwrap(), &bytes[5..70]);
        assert!(file.bytes_at(&name, 5..bytes.len() + 1).is_err());
        assert!(file.float_rows(&name, &[rows, 8], 1..rows + 1).is_err());
        order
    };
    assert_eq!(firsts("llama", "q_proj", 8), [0., 2., 1., 3., 4., 6., 5., 7.]);
    assert_eq!(firsts("llama", "k_proj", 4), [0., 2., 1., 3.]);
    assert_eq!(firsts("llama", "v_proj", 4), [0., 1., 2., 3.]);
    assert_eq!(firsts("qwen2", "q_proj", 8), [0., 1., 2., 3., 4., 5., 6., 7.]);
}

/// The divisors that llama.cpp's converter writes for Llama 3.1 and 3.2 (head width 64, factor 32)
/// are recognised; others are kept as they are.
#[test]
fn rope_factors() {
    let tensor = |factors: &[f32]| {
        let bytes = factors.iter().flat_map(|f| f.to_le_bytes()).collect();
        let head = Kv::U32(2 * factors.len() as u32);
        tiny("qwen2") // no permutation: the tiny weights do not fit these heads
            .kv("qwen2.attention.key_length", head.clone())
            .kv("qwen2.attention.value_length", head)
            .tensor("rope_freqs.weight", &[factors.len() as u64], 0, bytes)
    };
    let mut factors = [1.0f32; 32];
    factors[18..].fill(32.0);
    // Between the wavelengths 2048 and 8192, from transformers' llama3 formula.
    factors[14..18].copy_from_slice(&LLAMA32_MIDDLE);
    let expected = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192.0,
    };
    assert_eq!(config(&tensor(&factors)).rope_scaling, expected);
    factors[16] *= 1.01;
    assert_eq!(config(&tensor(&factors)).rope_scaling, RopeScaling::Factors(factors.to_vec()));
    let c = config(&tensor(&[1.0, 1.5]));
    assert_eq!(c.rope_scaling, RopeScaling::Factors(vec![1.0, 1.5]));
    assert_eq!(c.raw["rope_scaling"]["rope_type"], "longrope");
    assert!(refusal(&tensor(&[1.0, 0.0])).contains("short_factor holds 0"));

    let linear = tiny("llama")
        .kv("llama.rope.scaling.type", Kv::Str("linear".into()))
        .kv("llama.rope.scaling.factor", Kv::F32(4.0));
    assert_eq!(config(&linear).rope_scaling, RopeScaling::Linear { factor: 4.0 });
}

/// A model of 32 positions, scaled by YaRN from 8, with more keys of the scaling.
fn yarn(more: &[(&str, Kv)]) -> Builder {
    let scaling = |b: Builder, (key, value): (&str, Kv)| b.kv(&format!("llama.rope.scaling.{key}"), value);
    let keys = [("type", Kv::Str("yarn".into())), ("factor", Kv::F32(4.0))];
    keys.into_iter().chain(more.iter().cloned()).fold(tiny("llama"), scaling)
}

/// YaRN as llama.cpp's converter writes it is what the same `config.json` says.
#[test]
fn yarn_is_that_of_config_json() {
    let own = 0.1 * 4f64.ln() + 1.0;
    for (more, original, betas, attention_factor) in [
        (vec![], None, (32.0, 1.0), own),
        (
            vec![("original_context_length", Kv::U32(8)), ("finetuned", Kv::Bool(true))],
            Some(8.0),
            (32.0, 1.0),
            own,
        ),
        (
            vec![
                ("original_context_length", Kv::U32(8)),
                ("yarn_ext_factor", Kv::F32(1.0)),
                ("yarn_attn_factor", Kv::F32(0.75)),
                ("yarn_beta_fast", Kv::F32(16.0)),
                ("yarn_beta_slow", Kv::F32(2.0)),
            ],
            Some(8.0),
            (16.0, 2.0),
            0.75,
        ),
        // What no configuration of transformers says: llama.cpp's own number.
        (
            vec![("yarn_ext_factor", Kv::F32(-1.0)), ("yarn_attn_factor", Kv::F32(1.0))],
            None,
            (32.0, 1.0),
            own,
        ),
        (vec![("attn_factor", Kv::F32(0.5))], None, (32.0, 1.0), 0.5 * own),
    ] {
        let c = config(&yarn(&more));
        let expected = RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: betas.0,
            beta_slow: betas.1,
            original_max_position_embeddings: original.unwrap_or(c.max_position_embeddings as f64),
            truncate: true,
        };
        assert_eq!(c.rope_scaling, expected, "{more:?}");
        assert_eq!(c.rope_attention_factor, attention_factor, "{more:?}");
        // And so again of the configuration that is written beside what is made of the model.
        let again = ModelConfig::from_value(Path::new("config.json"), Value::Object(c.raw.clone())).unwrap();
        assert_eq!(
            (again.rope_scaling, again.rope_attention_factor),
            (c.rope_scaling, c.rope_attention_factor)
        );
    }
}

#[test]
fn what_is_not_supported_is_refused() {
    let llama = || tiny("llama");
    for (b, words) in [
        (tiny("mamba"), &["architecture \"mamba\"", "llama"][..]),
        (llama().kv("split.count", Kv::U32(3)), &["one of 3 parts", "opened together"]),
        (llama().kv("llama.expert_count", Kv::U32(8)), &["mixtures of experts"]),
        (llama().kv("llama.rope.dimension_count", Kv::U32(2)), &["rope.dimension_count is 2", "4 wide"]),
        (llama().kv("llama.rope.scaling.type", Kv::Str("yarn".into())), &["yarn without a factor"]),
        (
            llama()
                .kv("llama.rope.scaling.type", Kv::Str("longrope".into()))
                .kv("llama.rope.scaling.factor", Kv::F32(4.5)),
            &["longrope with factor 4.5 "],
        ),
        (yarn(&[("yarn_ext_factor", Kv::F32(0.5))]), &["yarn with yarn_ext_factor 0.5 "]),
        (yarn(&[("yarn_log_multiplier", Kv::F32(0.1))]), &["yarn with yarn_log_multiplier 0.1 "]),
        (yarn(&[("yarn_beta_slow", Kv::F32(64.0))]), &["beta_slow 64"]),
        (llama().set("llama.block_count", Kv::U32(4_000_000)), &["block_count is 4000000"]),
        (llama().set("llama.block_count", Kv::Str("1".into())), &["llama.block_count", "a string"]),
        (llama().set("llama.context_length", Kv::U32(0)), &["max_position_embeddings is 0"]),
        (llama().set("llama.feed_forward_length", Kv::Ints(vec![16, 32])), &["differs from layer to layer"]),
        (llama().set("llama.attention.layer_norm_rms_epsilon", Kv::F32(f32::NAN)), &["NaN"]),
        (llama().counting("blk.0.attn_output.bias", &[8]), &["biases"]),
    ] {
        let message = refusal(&b);
        assert!(message.starts_with("test.gguf: "), "{message}");
        for word in words {
            assert!(message.contains(word), "{message:?} does not say {word:?}");
        }
    }
    let mut b = llama();
    b.kvs.retain(|(k, _)| k != "llama.embedding_length");
    assert!(refusal(&b).contains("llama.embedding_length is missing"));
}

/// transformers' llama3 divisors of the frequencies 14 to 17, for width 64, base 500000 and factor 32.
const LLAMA32_MIDDLE: [f32; 4] = [1.0, 1.651_329_2, 3.292_262, 9.666_729];
