//! Logits against transformers (float32) for small random models of every family.
//!
//! `scripts/make_transformers_vectors.py` makes the data. A model's weights follow a formula of tensor name
//! and index that is repeated here, so that files hold configurations and logits only.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use qqq_backend::{BatchPlan, CpuBackend, KvDType, pages_for};
use qqq_formats::Checkpoint;
use qqq_model::{Decoder, ModelError, RopeChoice, Runner};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;

/// Largest error allowed, relative to the largest logit.
const TOLERANCE: f32 = 1e-4;

fn data(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(file)
}

fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |state, b| (state ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3))
}

/// Multiples of 2^-23 in [-1, 1): splitmix64 of the name's hash and the index.
fn uniform(name: &str, count: usize) -> impl Iterator<Item = f32> {
    let start = fnv1a(name);
    (1..=count as u64).map(move |i| {
        let mut z = start.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        ((z >> 40) as f32 - 8_388_608.0) / 8_388_608.0
    })
}

fn weight(name: &str, shape: &[usize]) -> Vec<f32> {
    let u = uniform(name, shape.iter().product());
    if name.contains("norm") {
        u.map(|u| 1.0 + u * 0.5).collect()
    } else if name.ends_with("bias") {
        u.map(|u| u * 0.5).collect()
    } else if name.contains("embed") {
        u.collect()
    } else {
        let scale = (6.75 / shape[shape.len() - 1] as f32).sqrt();
        u.map(|u| u * scale).collect()
    }
}

/// A random model as described in parity.json.
struct Model {
    config: Value,
    storage: String,
    files: usize,
    tensors: BTreeMap<String, Vec<usize>>,
}

impl Model {
    fn all() -> Vec<(String, Model)> {
        let text = std::fs::read_to_string(data("parity.json")).unwrap();
        let Value::Object(models) = serde_json::from_str(&text).unwrap() else { panic!("not an object") };
        models
            .into_iter()
            .map(|(name, m)| {
                let model = Model {
                    config: m["config"].clone(),
                    storage: m["storage"].as_str().unwrap().into(),
                    files: m["files"].as_u64().unwrap() as usize,
                    tensors: serde_json::from_value(m["tensors"].clone()).unwrap(),
                };
                (name, model)
            })
            .collect()
    }

    fn named(name: &str) -> Model {
        Model::all().into_iter().find(|(n, _)| n == name).expect("a model of that name").1
    }

    fn stored(&self, name: &str) -> (Dtype, Vec<u8>) {
        let storage = match self.storage.as_str() {
            "mixed" => ["f32", "f16", "bf16"][(fnv1a(name) % 3) as usize],
            one => one,
        };
        let values = weight(name, &self.tensors[name]).into_iter();
        match storage {
            "f32" => (Dtype::F32, values.flat_map(f32::to_le_bytes).collect()),
            "f16" => (Dtype::F16, values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect()),
            "bf16" => (Dtype::BF16, values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect()),
            other => panic!("storage {other}"),
        }
    }

    /// Writes config.json and the weights, in as many files as the model is to have; tensors go round the files, so
    /// that q, k and v of a block lie in different ones.
    fn write(&self, dir: &Path) {
        std::fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
        let stored: Vec<(&String, Dtype, Vec<u8>)> = self
            .tensors
            .keys()
            .map(|name| {
                let (dtype, bytes) = self.stored(name);
                (name, dtype, bytes)
            })
            .collect();
        let mut map = serde_json::Map::new();
        for file in 0..self.files {
            let name = match self.files {
                1 => "model.safetensors".to_owned(),
                n => format!("model-{:05}-of-{n:05}.safetensors", file + 1),
            };
            let part = stored.iter().skip(file).step_by(self.files);
            let views: Vec<(String, TensorView<'_>)> = part
                .map(|(tensor, dtype, bytes)| {
                    map.insert((*tensor).clone(), name.clone().into());
                    (
                        (*tensor).clone(),
                        TensorView::new(*dtype, self.tensors[*tensor].clone(), bytes).unwrap(),
                    )
                })
                .collect();
            std::fs::write(dir.join(&name), safetensors::serialize(views, None).unwrap()).unwrap();
        }
        if self.files > 1 {
            let index = serde_json::json!({ "metadata": {}, "weight_map": map });
            std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
        }
    }

    fn load(&self) -> Result<Decoder<CpuBackend>, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        self.write(dir.path());
        Decoder::load(CpuBackend::default(), &Checkpoint::open(dir.path())?)
    }
}

fn floats(view: &TensorView<'_>) -> Vec<f32> {
    assert_eq!(view.dtype(), Dtype::F32);
    view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn ints(view: &TensorView<'_>) -> Vec<u32> {
    assert_eq!(view.dtype(), Dtype::I32);
    view.data().chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// Largest difference; none of the values may be NaN or infinite.
fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).fold(0.0, |m, (f, e)| {
        assert!(f.is_finite(), "a logit is {f}");
        m.max((f - e).abs())
    })
}

/// Runs parts of sequences: tokens, their first position, and the pages of their sequence. All logits.
fn run(runner: &mut Runner<'_, CpuBackend>, parts: &[(&[u32], usize, &[u32])]) -> Vec<f32> {
    let mut plan = BatchPlan::default();
    parts.iter().for_each(|(tokens, start, pages)| plan.push(tokens, *start, pages));
    runner.step(&plan).unwrap();
    let rows: Vec<usize> = (0..plan.rows()).collect();
    runner.logits(&rows).unwrap().into_owned()
}

/// One prefill; token by token; and a ragged batch in two passes, among other sequences.
fn check(name: &str, decoder: &Decoder<CpuBackend>, tokens: &[u32], expected: &[f32]) {
    let vocab = decoder.config.vocab_size;
    let n = tokens.len();

    let own = |sequence: usize| -> Vec<u32> {
        let pages = pages_for(n);
        (0..pages).map(|page| (sequence * pages + page) as u32).collect()
    };
    let mut runner = Runner::new(decoder, KvDType::F32, 3 * pages_for(n), n).unwrap();
    runner.choose_rope(RopeChoice::new(&decoder.config, n)).unwrap();
    let logits = run(&mut runner, &[(tokens, 0, &own(0))]);
    let prefill = worst(&logits, expected);

    let mut steps = Vec::new();
    for (start, token) in tokens.iter().enumerate() {
        steps.extend(run(&mut runner, &[(&[*token], start, &own(1))]));
    }
    let decode = worst(&steps, expected);

    // Three prefixes of the same text, of which the passes take different parts.
    let parts = [[n / 2, n - n / 2], [3, 1], [1, n - 4]];
    let tables = [0, 1, 2].map(own);
    let mut ragged: f32 = 0.0;
    for pass in 0..2 {
        let range = |i: usize| {
            let start = if pass == 0 { 0 } else { parts[i][0] };
            start..start + parts[i][pass]
        };
        let batch: Vec<(&[u32], usize, &[u32])> =
            (0..parts.len()).map(|i| (&tokens[range(i)], range(i).start, tables[i].as_slice())).collect();
        let logits = run(&mut runner, &batch);
        let mut rows = logits.chunks_exact(vocab);
        for i in 0..parts.len() {
            let found: Vec<f32> = rows.by_ref().take(range(i).len()).flatten().copied().collect();
            let want = &expected[range(i).start * vocab..range(i).end * vocab];
            ragged = ragged.max(worst(&found, want));
        }
    }
    let scale = largest(expected);
    let (prefill, decode, ragged) = (prefill / scale, decode / scale, ragged / scale);
    println!("{name:20} prefill {prefill:.1e}, token by token {decode:.1e}, ragged {ragged:.1e}");
    for (way, e) in [("prefill", prefill), ("token by token", decode), ("ragged batch", ragged)] {
        assert!(e < TOLERANCE, "{name}, {way}: error {e:e} of the largest logit");
    }
}

#[test]
fn logits_agree_with_transformers_for_every_family() {
    let file = std::fs::read(data("parity.safetensors")).unwrap();
    let vectors = SafeTensors::deserialize(&file).unwrap();
    let models = Model::all();
    assert!(models.len() >= 35, "{} models", models.len());
    for (name, model) in models {
        let decoder = model.load().unwrap_or_else(|e| panic!("{name}: {e}"));
        let tokens = ints(&vectors.tensor(&format!("{name}.tokens")).unwrap());
        let logits = floats(&vectors.tensor(&format!("{name}.logits")).unwrap());
        check(&name, &decoder, &tokens, &logits);
    }
}

/// Files as llama.cpp's converter makes them (`scripts/make_gguf_model_vectors.py`): its names of tensors and keys, q and k
/// interleaved, Gemma's norms with one added, two lists of rope factors.
#[test]
fn logits_of_gguf_files_are_those_of_transformers() {
    let file = std::fs::read(data("gguf/logits.safetensors")).unwrap();
    let vectors = SafeTensors::deserialize(&file).unwrap();
    for (name, class) in [
        ("smollm3", "SmolLM3ForCausalLM"),
        ("granite", "GraniteForCausalLM"),
        ("phi3", "Phi3ForCausalLM"),
        ("gemma3", "Gemma3ForCausalLM"),
        ("ministral3", "Ministral3ForCausalLM"),
    ] {
        let checkpoint = Checkpoint::open(&data(&format!("gguf/{name}.gguf"))).unwrap();
        assert_eq!(checkpoint.config.architecture.class_name(), class);
        let decoder = Decoder::load(CpuBackend::default(), &checkpoint).unwrap();
        // Of the model with two lists of rope factors, also of a text that leaves the original context.
        let beyond = (name == "phi3").then(|| format!("{name}_beyond"));
        for text in std::iter::once(name.to_owned()).chain(beyond) {
            let tokens = ints(&vectors.tensor(&format!("{text}.tokens")).unwrap());
            let logits = floats(&vectors.tensor(&format!("{text}.logits")).unwrap());
            check(&text, &decoder, &tokens, &logits);
        }
        // The configuration that a checkpoint made of it gets says the same.
        let raw = Value::Object(checkpoint.config.raw.clone());
        let again = qqq_formats::ModelConfig::from_value(Path::new("config.json"), raw).unwrap();
        assert_eq!(again, checkpoint.config);
    }
}

/// Each setting changes the logits by far more than the tolerance, so that agreement says something about it.
#[test]
fn the_vectors_depend_on_every_setting() {
    let file = std::fs::read(data("parity.safetensors")).unwrap();
    let vectors = SafeTensors::deserialize(&file).unwrap();
    let null = Value::Null;
    let settings = [
        ("llama31_rope", "rope_parameters", null.clone()),
        ("llama_linear_rope", "rope_scaling", null.clone()),
        ("llama_gqa", "rope_theta", 10_000.0.into()),
        ("mistral_window", "sliding_window", 8.into()),
        ("qwen2_window", "use_sliding_window", false.into()),
        ("llama_mha", "rms_norm_eps", 0.1.into()),
        ("ministral3", "rope_parameters", {
            let mut other = Model::named("ministral3").config["rope_parameters"].clone();
            other["llama_4_scaling_beta"] = 0.0.into();
            other
        }),
        ("phi3_two_lists", "original_max_position_embeddings", 200.into()),
        ("phi4_beyond_original", "rope_scaling", {
            let mut other = Model::named("phi4_beyond_original").config["rope_scaling"].clone();
            other["long_factor"] = other["short_factor"].clone();
            other
        }),
        ("llama_dynamic_beyond", "max_position_embeddings", 128.into()),
    ];
    for (name, key, value) in settings {
        let mut model = Model::named(name);
        assert_ne!(model.config[key], value, "{name}: {key}");
        model.config[key] = value;
        let decoder = model.load().unwrap();
        let tokens = ints(&vectors.tensor(&format!("{name}.tokens")).unwrap());
        let expected = floats(&vectors.tensor(&format!("{name}.logits")).unwrap());
        let mut runner = Runner::for_positions(&decoder, KvDType::F32, tokens.len()).unwrap();
        let pages: Vec<u32> = (0..pages_for(tokens.len()) as u32).collect();
        let logits = run(&mut runner, &[(&tokens, 0, &pages)]);
        let error = worst(&logits, &expected) / largest(&expected);
        println!("{name} with another {key}: {error:.1e}");
        assert!(error > 100.0 * TOLERANCE, "{name}: {key} changes the logits by {error:e} only");
    }
}

/// The message of the error that a change to a model's files leads to.
fn refusal(name: &str, change: impl FnOnce(&mut Model)) -> String {
    let mut model = Model::named(name);
    change(&mut model);
    model.load().err().map(|e| e.to_string()).unwrap_or_else(|| panic!("{name} loads all the same"))
}

#[test]
fn a_checkpoint_that_does_not_fit_its_configuration_is_refused() {
    let set = |key: &'static str, value: Value| {
        move |m: &mut Model| {
            m.config[key] = value;
        }
    };
    // Another family, or fewer blocks than there are.
    let e = refusal("qwen3", set("architectures", serde_json::json!(["LlamaForCausalLM"])));
    assert!(e.contains("model.layers.0.self_attn.k_norm.weight") && e.contains("LlamaForCausalLM"), "{e}");
    let e = refusal("llama_mha", set("num_hidden_layers", 1.into()));
    assert!(e.contains("with 1 blocks has no tensors model.layers.1.input_layernorm.weight"), "{e}");
    assert!(e.contains("and 4 more"), "nine tensors, five are named: {e}");
    let e = refusal("llama_mha", set("num_hidden_layers", 3.into()));
    assert!(e.contains("model.layers.2.input_layernorm.weight"), "{e}");
    // Biases that the configuration does not promise, and promised ones that are missing.
    let e = refusal("llama_biases", set("attention_bias", false.into()));
    assert!(e.contains("model.layers.0.self_attn.q_proj.bias") && e.contains("attention_bias"), "{e}");
    let e = refusal("llama_biases", |m| {
        m.tensors.remove("model.layers.1.mlp.up_proj.bias");
    });
    assert!(e.contains("model.layers.1.mlp.up_proj.bias"), "{e}");
    // Heads.
    let e = refusal("llama_mha", |m| {
        m.tensors.remove("lm_head.weight");
    });
    assert!(e.contains("lm_head.weight"), "{e}");
    let e = refusal("llama_mha", set("tie_word_embeddings", true.into()));
    assert!(e.contains("tie_word_embeddings") && e.contains("differs"), "{e}");
    // Shapes.
    let e = refusal("llama_gqa", set("num_key_value_heads", 4.into()));
    assert!(e.contains("k_proj") && e.contains("[32, 64]"), "{e}");
    let e = refusal("llama_mha", |m| {
        m.tensors.insert("model.layers.0.self_attn.sinks".into(), vec![4]);
    });
    assert!(e.contains("self_attn.sinks"), "{e}");
}

/// Of a model that also sees, tensors of other parts than text are left alone; those of the text part must all be known.
#[test]
fn text_parts_are_checked_as_text_models_are() {
    let e = refusal("seeing_gemma3", |m| {
        m.tensors.insert("model.language_model.layers.0.self_attn.sinks".into(), vec![4]);
    });
    assert!(e.contains("model.layers.0.self_attn.sinks"), "{e}");
    let e = refusal("seeing_mistral_older_names", |m| {
        m.tensors.insert("language_model.score.weight".into(), vec![4]);
    });
    assert!(e.contains("\"language_model.score.weight\" lies outside"), "{e}");
    let e = refusal("seeing_gemma3", |m| m.tensors.retain(|name, _| !name.contains("language_model")));
    assert!(e.contains("no tensors") && e.contains("model.language_model."), "{e}");
    let e = refusal("seeing_gemma3", |m| m.config["text_config"]["model_type"] = "gemma3n_text".into());
    assert!(e.contains("gemma3n_text") && e.contains("gemma3_text"), "{e}");
    let e = refusal("seeing_gemma3", |m| m.config["text_config"]["attn_logit_softcapping"] = 30.into());
    assert!(e.contains("attn_logit_softcapping"), "{e}");
    let e = refusal("seeing_gemma3", |m| m.config["experts_of_vision"] = 30.into());
    assert!(e.contains("experts_of_vision"), "{e}");
    // Said by one part alone or by none, the tensors decide whether there is a head.
    let mut model = Model::named("seeing_mistral_older_names");
    model.config["tie_word_embeddings"] = true.into();
    model.config["text_config"]["tie_word_embeddings"] = false.into();
    assert!(!model.load().unwrap().config.tie_word_embeddings);
    model.tensors.insert("vision_tower.more.weight".into(), vec![4]);
    assert_eq!(model.load().unwrap().config.text_part_of, Some("Mistral3ForConditionalGeneration"));
}

#[test]
fn tensors_that_change_nothing_are_let_pass() {
    let mut model = Model::named("llama_mha");
    model.tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), vec![8]);
    model.tensors.insert("score.weight".into(), vec![2, 64]);
    model.load().unwrap();
}

#[test]
fn requests_that_a_model_cannot_serve_are_errors() {
    let decoder = Model::named("mistral").load().unwrap();
    let mut runner = Runner::for_positions(&decoder, KvDType::F16, 300).unwrap();
    let mut message = |tokens: &[u32], start: usize| {
        let mut plan = BatchPlan::default();
        plan.push(tokens, start, &[0, 1, 2]);
        match runner.step(&plan) {
            Err(ModelError::Request(text)) => text,
            Err(e) => panic!("another error: {e}"),
            Ok(()) => panic!("served"),
        }
    };
    assert!(message(&[0, 61], 0).contains("token 61"));
    assert!(message(&[0; 257], 0).contains("context of 256"));
    assert!(message(&[0], usize::MAX).contains("context of 256"));
    assert!(message(&[], 0).contains("without tokens"));

    // Behind the original context other factors count, for the keys in the cache too.
    let decoder = Model::named("phi3_two_lists").load().unwrap();
    let mut runner = Runner::for_positions(&decoder, KvDType::F16, 48).unwrap();
    let mut plan = BatchPlan::default();
    plan.push(&[0], 48, &[0]);
    let e = runner.step(&plan).unwrap_err().to_string();
    assert!(e.contains("the 48 tokens for which its rotary embedding was chosen"), "{e}");
    runner.choose_rope(RopeChoice::new(&decoder.config, 49)).unwrap();
    runner.step(&plan).unwrap();
}
