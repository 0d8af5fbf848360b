//! `config.json` of the supported model families.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{FormatError, QuantizationConfig, Result};

mod fields;
mod model_keys;
mod rope;

use fields::Fields;
pub use rope::RopeScaling;

/// Model family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 1, 2, 3, 3.1 (and models of the same graph: SmolLM2, TinyLlama, ...).
    Llama,
    /// Mistral (dense), with optional sliding-window attention.
    Mistral,
    /// Qwen2 and Qwen2.5 (dense): biases on q, k and v.
    Qwen2,
    /// Qwen3 (dense): RMS norms on the heads of q and k.
    Qwen3,
}

/// What a decoder needs to know, read from `config.json` or from GGUF metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest context.
    pub max_position_embeddings: usize,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f32,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// Scaling of the rotary embedding.
    pub rope_scaling: RopeScaling,
    /// Factor of the rotary embedding's cosines and sines: 1, but for the scalings that sharpen attention in long contexts.
    pub rope_attention_factor: f64,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Bias on q, k and v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub o_bias: bool,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// Attention window of every layer, if it slides.
    pub sliding_window: Option<usize>,
    /// `bos_token_id`.
    pub bos_token_id: Option<u32>,
    /// `eos_token_id` (one or several).
    pub eos_token_ids: Vec<u32>,
    /// How the weights are quantized, if they are.
    pub quantization: Option<QuantizationConfig>,
    /// The whole `config.json` (made up in Hugging Face's form for a GGUF file), to be written
    /// again with a quantized checkpoint.
    pub raw: Map<String, Value>,
}

/// Largest sizes accepted, far above any model's, so that products of a lying configuration stay within
/// 64 bits.
mod limit {
    pub const WIDTH: usize = 1 << 22;
    pub const LAYERS: usize = 1 << 12;
    pub const HEADS: usize = 1 << 14;
    pub const HEAD_DIM: usize = 1 << 12;
    pub const VOCAB: usize = 1 << 26;
    pub const POSITIONS: usize = 1 << 31;
}

impl Architecture {
    /// Every family, with its class and `model_type` in transformers.
    const ALL: [(Architecture, &'static str, &'static str); 4] = [
        (Architecture::Llama, "LlamaForCausalLM", "llama"),
        (Architecture::Mistral, "MistralForCausalLM", "mistral"),
        (Architecture::Qwen2, "Qwen2ForCausalLM", "qwen2"),
        (Architecture::Qwen3, "Qwen3ForCausalLM", "qwen3"),
    ];

    /// Name of its class in transformers, as in `architectures` of `config.json`.
    pub fn class_name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        Self::ALL[self as usize].2
    }

    /// The family that `architectures` names, or `model_type` where that is missing.
    fn detect(fields: &Fields<'_>) -> Result<Self> {
        let classes = fields.strings("architectures")?;
        let model_type = fields.string("model_type")?;
        let hit = |(_, class, kind): &&(Architecture, &str, &str)| match &classes[..] {
            [] => model_type == Some(kind),
            classes => classes.contains(class),
        };
        if let Some((architecture, ..)) = Self::ALL.iter().find(hit) {
            return Ok(*architecture);
        }
        let found = match (&classes[..], model_type) {
            ([], None) => {
                return Err(fields.malformed("neither architectures nor model_type says what model it is"));
            }
            ([], Some(kind)) => format!("model_type {kind:?}"),
            (classes, _) => format!("architecture {:?}", classes.join(", ")),
        };
        let supported: Vec<&str> = Self::ALL.iter().map(|(_, class, _)| *class).collect();
        Err(FormatError::Unsupported(format!(
            "{}: {found} is not supported; supported are {}",
            fields.path().display(),
            supported.join(", ")
        )))
    }
}

impl ModelConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// See [`ModelConfig::from_value`]; and a file that cannot be read or is not JSON.
    pub fn from_json(path: &Path) -> Result<Self> {
        Self::from_bytes(path, &crate::InputFile::open(path)?.read()?)
    }

    /// Reads the bytes of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`ModelConfig::from_json`].
    pub fn from_bytes(path: &Path, text: &[u8]) -> Result<Self> {
        let value = serde_json::from_slice(text).map_err(|e| FormatError::Malformed {
            path: path.into(),
            reason: format!("not valid JSON: {e}"),
        })?;
        Self::from_value(path, value)
    }

    /// Reads the content of a `config.json`; `path` is for messages. Missing fields get the defaults that
    /// transformers gives them; sizes without which there is no model must be there.
    ///
    /// # Errors
    /// Unknown architectures, fields that are missing or out of range, and what this crate would compute
    /// wrongly if it went on: other activations, rope types or attention windows than those it knows,
    /// quantization that is not W4A8, and keys that are not known.
    pub fn from_value(path: &Path, value: Value) -> Result<Self> {
        let Value::Object(raw) = value else {
            return Err(FormatError::Malformed { path: path.into(), reason: "not a JSON object".into() });
        };
        let f = Fields::new(path, "", &raw);
        let architecture = Architecture::detect(&f)?;
        f.check_known(
            &model_keys::KEYS,
            "a key that is not known here and may change what the model computes; if it does not, remove it from the \
             file",
        )?;
        use Architecture::{Llama, Mistral, Qwen2, Qwen3};

        let num_heads = f.size("num_attention_heads", None, limit::HEADS)?;
        let default_kv_heads = match architecture {
            Llama => num_heads,
            Mistral => 8,
            Qwen2 | Qwen3 => 32,
        };
        // null means one per query head, a missing field the class's own default.
        let num_kv_heads = if raw.get("num_key_value_heads").is_some_and(Value::is_null) {
            num_heads
        } else {
            f.size("num_key_value_heads", Some(default_kv_heads), limit::HEADS)?
        };
        if num_heads % num_kv_heads != 0 {
            return Err(f.malformed(&format!(
                "num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}"
            )));
        }
        let hidden_size = f.size("hidden_size", None, limit::WIDTH)?;
        let default_head_dim = if architecture == Qwen3 { 128 } else { hidden_size / num_heads };
        let head_dim = match raw.get("head_dim") {
            None | Some(Value::Null) => default_head_dim,
            Some(_) => f.size("head_dim", None, limit::HEAD_DIM)?,
        };
        if head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim > limit::HEAD_DIM {
            return Err(f.malformed(&format!(
                "head_dim is {head_dim} (hidden_size {hidden_size}, num_attention_heads {num_heads}), but must be \
                 even, and at least 2 and at most {}",
                limit::HEAD_DIM
            )));
        }
        if num_heads * head_dim > limit::WIDTH {
            return Err(f.malformed(&format!("{num_heads} heads of width {head_dim} are too many")));
        }
        let num_layers = f.size("num_hidden_layers", None, limit::LAYERS)?;

        match f.string("hidden_act")? {
            None | Some("silu" | "swish") => {}
            Some(other) => {
                return Err(FormatError::Unsupported(format!(
                    "{}: hidden_act {other:?} is not supported; supported is \"silu\"",
                    path.display()
                )));
            }
        }
        let rms_norm_eps = f.number("rms_norm_eps")?.unwrap_or(1e-6) as f32;
        if !rms_norm_eps.is_finite() || rms_norm_eps < 0.0 {
            return Err(f.malformed(&format!("rms_norm_eps is {rms_norm_eps}")));
        }
        let default_positions = match architecture {
            Llama => 2048,
            Mistral => 131_072,
            Qwen2 | Qwen3 => 32_768,
        };
        let max_position_embeddings =
            f.size("max_position_embeddings", Some(default_positions), limit::POSITIONS)?;
        let rope = rope::read(&f, head_dim, max_position_embeddings)?;
        let attention_bias = matches!(architecture, Llama | Qwen3) && f.flag("attention_bias", false)?;
        // The second is an older name of the first.
        let [current, older] =
            ["quantization_config", "compression_config"].map(|key| raw.get(key).filter(|v| !v.is_null()));
        if let (Some(a), Some(b)) = (current, older)
            && a != b
        {
            return Err(FormatError::Unsupported(format!(
                "{}: quantization_config and compression_config disagree; remove the one that is not meant",
                path.display()
            )));
        }
        let quantization =
            current.or(older).map(QuantizationConfig::from_value).transpose().map_err(|e| match e {
                FormatError::Unsupported(text) => {
                    FormatError::Unsupported(format!("{}: {text}", path.display()))
                }
                other => other,
            })?;

        Ok(Self {
            architecture,
            hidden_size,
            intermediate_size: f.size("intermediate_size", None, limit::WIDTH)?,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            vocab_size: f.size("vocab_size", None, limit::VOCAB)?,
            max_position_embeddings,
            rms_norm_eps,
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            rope_attention_factor: rope.attention_factor,
            tie_word_embeddings: f.flag("tie_word_embeddings", false)?,
            qkv_bias: architecture == Qwen2 || attention_bias,
            o_bias: attention_bias,
            mlp_bias: architecture == Llama && f.flag("mlp_bias", false)?,
            sliding_window: sliding_window(&f, architecture, num_layers)?,
            bos_token_id: f.token_ids("bos_token_id")?.first().copied(),
            eos_token_ids: f.token_ids("eos_token_id")?,
            quantization,
            raw,
        })
    }
}

/// The window that all layers share. Llama has none; Mistral always slides unless the field is null; Qwen
/// slides where `layer_types` says so, or, without that list, from layer `max_window_layers` on.
fn sliding_window(
    fields: &Fields<'_>,
    architecture: Architecture,
    num_layers: usize,
) -> Result<Option<usize>> {
    let window = || -> Result<Option<usize>> {
        if fields.is_null("sliding_window") {
            return Ok(None);
        }
        fields.size("sliding_window", Some(4096), limit::POSITIONS).map(Some)
    };
    match architecture {
        // These classes do not look at layer_types, so they must say what the class does.
        Architecture::Llama => same_layers(fields, None),
        Architecture::Mistral => same_layers(fields, window()?),
        Architecture::Qwen2 | Architecture::Qwen3 => {
            let window = if fields.flag("use_sliding_window", false)? { window()? } else { None };
            let types = layer_types(fields, num_layers)?;
            let Some(window) = window else {
                return same_layers(fields, None);
            };
            let sliding = if types.is_empty() {
                let first = fields.count("max_window_layers")?.unwrap_or(28);
                num_layers.saturating_sub(first)
            } else {
                types.iter().filter(|t| **t == "sliding_attention").count()
            };
            match sliding {
                0 => Ok(None),
                n if n >= num_layers => Ok(Some(window)),
                n => Err(FormatError::Unsupported(format!(
                    "{}: {n} of {num_layers} layers have a sliding window, the others none; supported is a window in \
                     all layers or in none (use_sliding_window, max_window_layers, layer_types)",
                    fields.path().display()
                ))),
            }
        }
    }
}

/// `layer_types`: none, or one for each layer.
fn layer_types<'a>(fields: &Fields<'a>, num_layers: usize) -> Result<Vec<&'a str>> {
    let types = fields.strings("layer_types")?;
    let refuse = |what: String| {
        Err(FormatError::Unsupported(format!("{}: layer_types {what}", fields.path().display())))
    };
    if !types.is_empty() && types.len() != num_layers {
        return refuse(format!("has {} entries for {num_layers} layers", types.len()));
    }
    match types.iter().find(|t| !["full_attention", "sliding_attention"].contains(*t)) {
        Some(other) => {
            refuse(format!("holds {other:?}; supported are \"full_attention\" and \"sliding_attention\""))
        }
        None => Ok(types),
    }
}

/// `window`, if `layer_types` does not say otherwise.
fn same_layers(fields: &Fields<'_>, window: Option<usize>) -> Result<Option<usize>> {
    let kind = if window.is_some() { "sliding_attention" } else { "full_attention" };
    match fields.strings("layer_types")?.iter().find(|found| **found != kind) {
        None => Ok(window),
        Some(found) => Err(FormatError::Unsupported(format!(
            "{}: layer_types holds {found:?}, but all layers of this class have {kind:?} (sliding_window)",
            fields.path().display()
        ))),
    }
}
