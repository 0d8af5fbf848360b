//! Small random models on disk.

use std::path::{Path, PathBuf};

use qqq_backend::{BatchPlan, CpuBackend, KvDType};
use qqq_formats::{
    Checkpoint, DType,
    writer::{CheckpointWriter, Reservation},
};
use qqq_model::{Decoder, Runner, Tokenizer};
use qqq_quant::{
    Calibration, Clip, GroupScales, Output, OutputFormat, Progress, Propagation, Recipe, Report,
    RotationKind, Transform, ValueHessian, calibration::Source, quantize,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// What varies between the small models. MLP 256 wide; [`HIDDEN`] and [`HEAD_DIM`] unless said otherwise.
#[derive(Clone)]
pub struct Tiny {
    pub architecture: &'static str,
    pub layers: usize,
    pub hidden: usize,
    pub head_dim: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub tied: bool,
    pub attention_bias: bool,
    pub mlp_bias: bool,
    pub dtype: DType,
    /// Whether the layers that read the residual stream have weights 1 / [`OUTLIER`] times as large for a few of its
    /// channels, which are as much smaller.
    pub outliers: bool,
}

pub const HIDDEN: usize = 128;
pub const INNER: usize = 256;
pub const HEAD_DIM: usize = 32;
pub const VOCAB: usize = 96;
pub const OUTLIER: f32 = 0.125;

impl Default for Tiny {
    fn default() -> Self {
        Self {
            architecture: "LlamaForCausalLM",
            layers: 2,
            hidden: HIDDEN,
            head_dim: HEAD_DIM,
            heads: 4,
            kv_heads: 2,
            tied: true,
            attention_bias: false,
            mlp_bias: false,
            dtype: DType::F32,
            outliers: false,
        }
    }
}

impl Tiny {
    pub fn families() -> Vec<Tiny> {
        let base = Tiny::default();
        vec![
            base.clone(),
            Tiny { tied: false, kv_heads: 4, attention_bias: true, mlp_bias: true, ..base.clone() },
            Tiny { architecture: "MistralForCausalLM", tied: false, ..base.clone() },
            Tiny { architecture: "Qwen2ForCausalLM", ..base.clone() },
            Tiny { architecture: "Qwen3ForCausalLM", heads: 6, tied: false, ..base.clone() },
            Tiny { architecture: "SmolLM3ForCausalLM", ..base.clone() },
            Tiny { architecture: "GraniteForCausalLM", tied: false, attention_bias: true, ..base.clone() },
            Tiny { architecture: "Phi3ForCausalLM", tied: false, ..base },
        ]
    }

    fn config(&self) -> Value {
        let mut config = json!({
            "architectures": [self.architecture],
            "model_type": match self.architecture {
                "MistralForCausalLM" => "mistral",
                "Qwen2ForCausalLM" => "qwen2",
                "Qwen3ForCausalLM" => "qwen3",
                "SmolLM3ForCausalLM" => "smollm3",
                "GraniteForCausalLM" => "granite",
                "Phi3ForCausalLM" => "phi3",
                "Gemma3ForCausalLM" => "gemma3_text",
                _ => "llama",
            },
            "hidden_act": if self.architecture == "Gemma3ForCausalLM" { "gelu_pytorch_tanh" } else { "silu" },
            "hidden_size": self.hidden,
            "intermediate_size": INNER,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": VOCAB,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": self.tied,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "torch_dtype": if self.dtype == DType::BF16 { "bfloat16" } else { "float32" },
        });
        let own = match self.architecture {
            "SmolLM3ForCausalLM" => json!({
                "no_rope_layer_interval": 2, "use_sliding_window": true, "sliding_window": 20,
            }),
            "GraniteForCausalLM" => json!({
                "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.4,
            }),
            "Phi3ForCausalLM" => json!({ "partial_rotary_factor": 0.5, "sliding_window": 30 }),
            "Gemma3ForCausalLM" => json!({
                "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 32, "sliding_window": 20,
                "sliding_window_pattern": 2,
            }),
            _ => json!({}),
        };
        let own = own.as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(own);
        config
    }

    /// Writes the model to `parent/name`.
    pub fn write(&self, parent: &Path, name: &str) -> PathBuf {
        let dir = parent.join(name);
        let mut writer = CheckpointWriter::create(&dir).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for (name, shape) in self.tensors() {
            let count = shape.iter().product();
            let width = *shape.last().unwrap();
            let values: Vec<f32> = (0..count)
                .map(|i| {
                    let x = rng.random::<f32>() + rng.random::<f32>() - 1.0;
                    if name.ends_with("norm.weight") {
                        // A few channels of the stream stand out, as in real models.
                        let weight = if i % 41 == 5 && width == self.hidden { 6.0 } else { 1.0 + 0.3 * x };
                        // Gemma's norms add 1 to what is stored.
                        let offset = f32::from(u8::from(self.architecture == "Gemma3ForCausalLM"));
                        weight * self.outlier_factor(&name, i) - offset
                    } else if name.ends_with("bias") {
                        0.3 * x
                    } else {
                        x * 2.0 / (width as f32).sqrt() * self.outlier_factor(&name, i % width)
                    }
                })
                .collect();
            let bytes: Vec<u8> = match self.dtype {
                DType::BF16 => values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
                _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            };
            writer.add(&name, self.dtype, &shape, &bytes).unwrap();
        }
        let put = |file: &str, value: Value| {
            std::fs::write(writer.staging().join(file), value.to_string()).unwrap()
        };
        put("config.json", self.config());
        put("tokenizer.json", qqq_testing::word_tokenizer(VOCAB));
        writer.finish().unwrap();
        dir
    }

    /// What the weight of a channel of the stream is multiplied by to make outliers.
    fn outlier_factor(&self, name: &str, channel: usize) -> f32 {
        let is_outlier = |channel: usize| channel % 41 == 17;
        let factor = if is_outlier(channel) { OUTLIER } else { 1.0 };
        if !self.outliers || ["o_proj", "down_proj", "q_norm", "k_norm"].iter().any(|n| name.contains(n)) {
            1.0
        } else if name.contains("embed_tokens") {
            // Large beside what the blocks add.
            factor * 14.0
        } else if name.ends_with("norm.weight") {
            let count = (0..self.hidden).filter(|c| is_outlier(*c)).count() as f32;
            (1.0 + count / self.hidden as f32 * (OUTLIER * OUTLIER - 1.0)).sqrt()
        } else {
            factor.recip()
        }
    }

    /// Names and shapes of all tensors.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut out = vec![
            ("model.embed_tokens.weight".to_owned(), vec![VOCAB, self.hidden]),
            ("model.norm.weight".to_owned(), vec![self.hidden]),
        ];
        if !self.tied {
            out.push(("lm_head.weight".to_owned(), vec![VOCAB, self.hidden]));
        }
        for i in 0..self.layers {
            let mut add =
                |name: &str, shape: Vec<usize>| out.push((format!("model.layers.{i}.{name}"), shape));
            add("input_layernorm.weight", vec![self.hidden]);
            add("post_attention_layernorm.weight", vec![self.hidden]);
            if self.architecture == "Gemma3ForCausalLM" {
                add("pre_feedforward_layernorm.weight", vec![self.hidden]);
                add("post_feedforward_layernorm.weight", vec![self.hidden]);
            }
            if ["Qwen3ForCausalLM", "Gemma3ForCausalLM"].contains(&self.architecture) {
                add("self_attn.q_norm.weight", vec![self.head_dim]);
                add("self_attn.k_norm.weight", vec![self.head_dim]);
            }
            let qkv_bias = self.attention_bias || self.architecture == "Qwen2ForCausalLM";
            let (qkv, gate_up) = if self.architecture == "Phi3ForCausalLM" {
                (vec![("self_attn.qkv_proj", q + 2 * kv)], vec![("mlp.gate_up_proj", 2 * INNER)])
            } else {
                (
                    vec![("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)],
                    vec![("mlp.gate_proj", INNER), ("mlp.up_proj", INNER)],
                )
            };
            let of = |parts: Vec<(&'static str, usize)>, bias| {
                parts.into_iter().map(move |(name, n)| (name, n, self.hidden, bias))
            };
            for (name, n, k, bias) in of(qkv, qkv_bias)
                .chain([("self_attn.o_proj", self.hidden, q, self.attention_bias)])
                .chain(of(gate_up, self.mlp_bias))
                .chain([("mlp.down_proj", self.hidden, INNER, self.mlp_bias)])
            {
                add(&format!("{name}.weight"), vec![n, k]);
                if bias {
                    add(&format!("{name}.bias"), vec![n]);
                }
            }
        }
        out
    }
}

/// A text of `words` random words.
pub fn text(dir: &Path, words: usize) -> PathBuf {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut text = String::new();
    // Words follow a chain, so that there is something to calibrate on.
    let mut word = 0usize;
    for i in 0..words {
        word = (word * 5 + rng.random_range(0..7)) % VOCAB;
        text.push_str(&format!("w{word}{}", if i % 20 == 19 { "\n" } else { " " }));
    }
    let path = dir.join(format!("text{words}.txt"));
    std::fs::write(&path, text).unwrap();
    path
}

pub fn recipe() -> Recipe {
    Recipe {
        transform: Transform::None,
        rotation: RotationKind::Hadamard,
        group_size: None,
        group_scales: GroupScales::Half,
        compensate: true,
        clip: Clip::None,
        act_order: true,
        damping: 0.01,
        value_hessian: ValueHessian::Attention,
        propagation: Propagation::Quantized,
        error_correction: 0.0,
        calibration: Calibration { windows: 10, window: 64, smooth_tokens: 48 },
        seed: 0,
        ..Recipe::DEFAULT
    }
}

/// Counts steps; stops at one of them.
#[derive(Default)]
pub struct Steps {
    pub count: usize,
    pub stop_at: Option<usize>,
    pub last: (f64, f64),
    pub planned: f64,
    pub warnings: Vec<String>,
    pub notes: Vec<String>,
}

impl Progress for Steps {
    fn planned(&mut self, seconds: f64) {
        assert_eq!(self.count, 0, "told before any work");
        self.planned = seconds;
    }

    fn step(&mut self, done: f64, total: f64, _next: &str) -> bool {
        assert!(self.planned > 0.0, "the time was told before");
        assert!(done >= self.last.0 && done <= total, "{done} of {total} after {:?}", self.last);
        self.last = (done, total);
        self.count += 1;
        self.stop_at != Some(self.count)
    }

    fn warn(&mut self, message: &str) {
        self.warnings.push(message.to_owned());
    }

    fn note(&mut self, message: &str) {
        self.notes.push(message.to_owned());
    }
}

/// Quantizes the model in `dir`.
pub fn run(
    dir: &Path,
    source: &Source,
    out: &Path,
    recipe: &Recipe,
    format: OutputFormat,
    steps: &mut dyn Progress,
) -> qqq_quant::Result<Report> {
    let checkpoint = Checkpoint::open(dir)?;
    let tokenizer = Tokenizer::load(&checkpoint)?;
    let reservation = Reservation::take(out)?;
    let output = Output { format, ..Output::new(&reservation, "tiny") };
    quantize(&CpuBackend::default(), &checkpoint, &tokenizer, recipe, source, &output, steps)
}

/// Logits of a fixed sequence.
pub fn logits(dir: &Path) -> Vec<f32> {
    logits_of(&Decoder::load(CpuBackend::default(), &Checkpoint::open(dir).unwrap()).unwrap())
}

/// Logits of a fixed sequence.
pub fn logits_of(decoder: &Decoder<CpuBackend>) -> Vec<f32> {
    logits_on(decoder, &(0..40).map(|i| (i * i * 7 + 3 * i) % VOCAB as u32).collect::<Vec<_>>())
}

/// Logits of a sequence.
pub fn logits_on(decoder: &Decoder<CpuBackend>, tokens: &[u32]) -> Vec<f32> {
    let mut runner = Runner::for_positions(decoder, KvDType::F32, tokens.len()).unwrap();
    runner.step(&BatchPlan::sequences([tokens])).unwrap();
    let rows: Vec<usize> = (0..tokens.len()).collect();
    runner.logits(&rows).unwrap().into_owned()
}

/// `|a - b|^2 / |b|^2`.
pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    let sum = |f: &dyn Fn(usize) -> f64| (0..b.len()).map(f).sum::<f64>();
    sum(&|i| f64::from(a[i] - b[i]).powi(2)) / sum(&|i| f64::from(b[i]).powi(2))
}

/// Largest difference relative to the largest value.
pub fn largest_error(a: &[f32], b: &[f32]) -> f32 {
    let most = b.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / most
}
