//! Greedy tokens of transformers: keys and values that float16 cannot hold, rotary embeddings that depend on the length; and
//! numbers that nothing can hold.

use std::{path::Path, sync::Arc};

use qqq_backend::{Backend, CpuBackend, KvDType, Norm};
use qqq_engine::{GenerateOptions, SamplingOptions, Session, generate};
use qqq_formats::{LinearWeight, ModelConfig, WeightData};
use qqq_model::{
    Block, BlockNorms, BlockWeights, Decoder, LinearLayer, ModelError, RopeChoice, Sites, names, rope,
};
use serde_json::{Value, json};

const HIDDEN: usize = 64;
const INNER: usize = 96;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = HIDDEN / HEADS;
const VOCAB: usize = 96;

/// A model whose weights follow from the names of its tensors, as `scripts/make_greedy_vectors.py` makes it.
struct Model<'a> {
    architecture: &'a str,
    /// Ends of tensor names, and factors.
    factors: Vec<(&'a str, f32)>,
    /// Channels of the bias of every k, and values.
    key_bias: Vec<(usize, f32)>,
    /// Keys of the configuration that are not as in the other models.
    config: Value,
}

/// Uniform in [-1, 1), from splitmix64 seeded by FNV-1a of the name.
fn numbers(name: &str, count: usize) -> Vec<f32> {
    let seed = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    (1..=count as u64)
        .map(|i| {
            let z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

impl Model<'_> {
    fn tensor(&self, name: &str, count: usize) -> Vec<f32> {
        let mut values = numbers(name, count);
        for x in &mut values {
            if name.contains("norm") {
                *x = 1.0 + *x / 4.0;
            } else if !name.contains("embed") {
                *x /= 4.0;
            }
            self.factors.iter().filter(|(end, _)| name.ends_with(end)).for_each(|(_, factor)| *x *= factor);
        }
        if name.ends_with("k_proj.bias") {
            self.key_bias.iter().for_each(|&(channel, value)| values[channel] = value);
        }
        values
    }

    fn build(&self) -> Decoder<CpuBackend> {
        let mut value = json!({
            "architectures": [match self.architecture {
                "llama" => "LlamaForCausalLM",
                "qwen2" => "Qwen2ForCausalLM",
                "qwen3" => "Qwen3ForCausalLM",
                other => panic!("{other}"),
            }],
            "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": VOCAB,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": false,
        });
        for (key, own) in self.config.as_object().into_iter().flatten() {
            value[key] = own.clone();
        }
        let config = ModelConfig::from_value(Path::new("config.json"), value).unwrap();
        let b = CpuBackend::default();
        let biased = self.architecture == "qwen2";
        let block = |layer: usize| {
            let tensor = |module: &str, end: &str, count: usize| {
                self.tensor(&format!("{}.{end}", names::linear(layer, module)), count)
            };
            let linear = |modules: &[(&str, usize)], k: usize, biased: bool| {
                let parts = |end: &str, k: usize| -> Vec<f32> {
                    modules.iter().flat_map(|(module, n)| tensor(module, end, n * k)).collect()
                };
                let out_features = modules.iter().map(|(_, n)| n).sum();
                let data = WeightData::F32(parts("weight", k));
                let bias = biased.then(|| parts("bias", 1));
                LinearLayer { weight: LinearWeight::Float { out_features, in_features: k, data }, bias }
            };
            let kv = KV_HEADS * HEAD_DIM;
            let norm = |module: &str, len: usize| tensor(module, "weight", len);
            let weights = BlockWeights {
                norms: BlockNorms {
                    input: norm(names::INPUT_NORM, HIDDEN),
                    post: norm(names::POST_NORM, HIDDEN),
                    qk: (self.architecture == "qwen3")
                        .then(|| (norm(names::Q_NORM, HEAD_DIM), norm(names::K_NORM, HEAD_DIM))),
                    ..BlockNorms::default()
                },
                layers: Sites::new([
                    linear(&[(names::Q, HIDDEN), (names::K, kv), (names::V, kv)], HIDDEN, biased),
                    linear(&[(names::O, HIDDEN)], HIDDEN, false),
                    linear(&[(names::GATE, INNER), (names::UP, INNER)], HIDDEN, false),
                    linear(&[(names::DOWN, HIDDEN)], INNER, false),
                ]),
            };
            Block::new(&b, &config, layer, weights).unwrap()
        };
        let float = |name: &str| WeightData::F32(self.tensor(name, VOCAB * HIDDEN));
        let head =
            LinearWeight::Float { out_features: VOCAB, in_features: HIDDEN, data: float(names::LM_HEAD) };
        Decoder {
            embedding: b.embedding(VOCAB, HIDDEN, float(names::EMBEDDING)).unwrap(),
            blocks: (0..LAYERS).map(block).collect(),
            final_norm: Norm {
                weight: b.vector(self.tensor(names::FINAL_NORM, HIDDEN)).unwrap(),
                eps: config.rms_norm_eps,
            },
            head: b.linear_weight(head, None).unwrap(),
            ropes: rope::embeddings(&b, &config, RopeChoice::Original, config.max_position_embeddings)
                .unwrap(),
            config: Arc::new(config),
            backend: b,
            prefill: Default::default(),
        }
    }
}

fn options(sampling: SamplingOptions, max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { sampling, max_new_tokens, eos: vec![], kv_dtype: KvDType::F16 }
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    let vectors: Value = serde_json::from_str(include_str!("greedy_vectors.json")).unwrap();
    let prompts: Vec<Vec<u32>> = serde_json::from_value(vectors["prompts"].clone()).unwrap();
    let mut differ = Vec::new();
    for case in vectors["cases"].as_array().unwrap() {
        let pairs = |key: &str| -> Vec<(&str, f32)> {
            let pairs = case[key].as_object().unwrap();
            pairs.iter().map(|(name, value)| (name.as_str(), value.as_f64().unwrap() as f32)).collect()
        };
        let decoder = Model {
            architecture: case["architecture"].as_str().unwrap(),
            factors: pairs("factors"),
            key_bias: pairs("key_bias").into_iter().map(|(c, value)| (c.parse().unwrap(), value)).collect(),
            config: case["config"].clone(),
        }
        .build();
        let expected: Vec<Vec<u32>> = serde_json::from_value(case["tokens"].clone()).unwrap();
        let options = options(SamplingOptions::default(), expected[0].len());
        // All together, and each alone: prompts are then appended in other pieces.
        let together = generate(&decoder, &prompts, &options, &mut |_, _| true).unwrap();
        for (i, (prompt, expected)) in prompts.iter().zip(&expected).enumerate() {
            let mut session = Session::new(&decoder, options.clone()).unwrap();
            session.generate(&prompt[..prompt.len().div_ceil(2)], &mut |_| false).unwrap();
            let alone = session.generate(prompt, &mut |_| true).unwrap();
            // Where the answer leaves the original context, the first half was turned otherwise.
            let anew = case["config"].is_object() && i == 2 || prompt.len() == 1;
            assert_eq!(alone.prefill_tokens == prompt.len(), anew, "{}, prompt {i}", case["name"]);
            for (how, found) in [("together", &together[i].tokens), ("alone", &alone.tokens)] {
                if found != expected {
                    differ.push(format!("{}, prompt {i} {how}: {found:?}, not {expected:?}", case["name"]));
                }
            }
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

#[test]
fn logits_that_are_not_finite_are_an_error_that_says_where() {
    let ways = [
        SamplingOptions::default(),
        SamplingOptions { temperature: 1.0, ..SamplingOptions::default() },
        SamplingOptions { temperature: 1.0, top_k: 4, top_p: 0.9, ..SamplingOptions::default() },
        SamplingOptions { repetition_penalty: 1.3, ..SamplingOptions::default() },
    ];
    for (before, end, module) in [
        ("layers.1.self_attn.v_proj.weight", "layers.1.self_attn.o_proj.weight", "model.layers.1.self_attn"),
        ("layers.0.mlp.up_proj.weight", "layers.0.mlp.down_proj.weight", "model.layers.0.mlp"),
        ("model.norm.weight", "lm_head.weight", "lm_head"),
    ] {
        let factors = vec![(before, 1024.0), (end, 2f32.powi(127))];
        let model = Model { architecture: "llama", factors, key_bias: vec![], config: Value::Null };
        let decoder = model.build();
        for sampling in &ways {
            let options = options(sampling.clone(), 8);
            let mut seen = 0;
            let error = generate(&decoder, &[vec![1, 2, 3]], &options, &mut |_, _| {
                seen += 1;
                true
            })
            .unwrap_err();
            let ModelError::NotFinite(place) = &error else { panic!("{error}") };
            assert_eq!((place.module.as_str(), seen), (module, 0), "{sampling:?}");
            assert!(error.to_string().contains(module), "{error}");
        }
    }
}

#[test]
fn a_session_forgets_a_run_that_was_not_finite() {
    let model = Model { architecture: "llama", factors: vec![], key_bias: vec![], config: Value::Null };
    let mut decoder = model.build();
    let mut embedding = numbers("embedding", VOCAB * HIDDEN);
    embedding[7 * HIDDEN] = f32::NAN;
    decoder.embedding = decoder.backend.embedding(VOCAB, HIDDEN, WeightData::F32(embedding)).unwrap();
    let mut session = Session::new(&decoder, options(SamplingOptions::default(), 4)).unwrap();
    let place = match session.generate(&[1, 2, 7, 3], &mut |_| true) {
        Err(ModelError::NotFinite(place)) => place,
        other => panic!("{other:?}"),
    };
    assert_eq!((place.module.as_str(), place.position), ("model.embed_tokens.weight", 2));
    assert!(session.cached().is_empty());
    session.generate(&[1, 2, 3], &mut |_| false).unwrap();
}
