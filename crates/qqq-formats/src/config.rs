//! `config.json` of the supported model families.

use std::{fmt, path::Path};

use serde_json::{Map, Value};

use crate::{FormatError, QuantizationConfig, Result};

mod families;
mod fields;
mod model_keys;
mod rope;
pub(crate) mod wrapped;

use families::Family;
pub use families::{GateFunction, Graph, QueryScale};
use fields::Fields;
pub use rope::RopeScaling;

/// A family of models that is supported, by the name of its class in transformers.
#[derive(Clone, Copy)]
pub struct Architecture(&'static Family);

impl PartialEq for Architecture {
    fn eq(&self, other: &Self) -> bool {
        self.0.class == other.0.class
    }
}

impl Eq for Architecture {}

impl fmt::Debug for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.class)
    }
}

/// What a decoder needs to know, read from `config.json` or from GGUF metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family, which decides the graph and the names of tensors.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Query heads; a multiple of the key-value heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest context in tokens: that of `config.json`, times the factor of a dynamic rotary embedding.
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
    /// Base of the rotary embedding of layers with a window, which is not scaled, if it is another one there.
    pub local_rope_theta: Option<f64>,
    /// Components of a head that the rotary embedding turns: the first ones, an even number.
    pub rotary_dim: usize,
    /// What the family's graph has beyond the plain one.
    pub graph: Graph,
    /// Token that begins a text, where the configuration names one.
    pub bos_token_id: Option<u32>,
    /// `eos_token_id` (one or several).
    pub eos_token_ids: Vec<u32>,
    /// How the weights are quantized, if they are.
    pub quantization: Option<QuantizationConfig>,
    /// Class of the model whose text part this is, if it is one of a model that also sees or hears.
    pub text_part_of: Option<&'static str>,
    /// The whole `config.json` (made up in Hugging Face's form for a GGUF file and for the text part of a model), to be
    /// written again with a quantized checkpoint.
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
    /// The family with this `model_type`.
    pub(crate) fn of_model_type(model_type: &str) -> Option<Self> {
        families::ALL.iter().find(|family| family.model_type == model_type).map(|family| Self(family))
    }

    /// Name of its class in transformers, as in `architectures` of `config.json`.
    pub fn class_name(self) -> &'static str {
        self.0.class
    }

    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        self.0.model_type
    }

    /// The family that `architectures` names, or `model_type` where that is missing.
    fn detect(fields: &Fields<'_>) -> Result<Self> {
        let classes = fields.strings("architectures")?;
        let model_type = fields.string("model_type")?;
        let hit = |family: &&&Family| match &classes[..] {
            [] => model_type == Some(family.model_type),
            classes => classes.contains(&family.class),
        };
        if let Some(family) = families::ALL.iter().find(hit) {
            return Ok(Self(family));
        }
        let found = match (&classes[..], model_type) {
            ([], None) => {
                return Err(fields.malformed("neither architectures nor model_type says what model it is"));
            }
            ([], Some(kind)) => format!("model_type {kind:?}"),
            (classes, _) => format!("architecture {:?}", classes.join(", ")),
        };
        let supported: Vec<&str> = families::ALL.iter().map(|family| family.class).collect();
        let wrapped: Vec<&str> = wrapped::classes().collect();
        Err(FormatError::Unsupported(format!(
            "{}: {found} is not supported; supported are {}, and the text part of {}",
            fields.path().display(),
            supported.join(", "),
            wrapped.join(", ")
        )))
    }
}

/// The value of a JSON file.
///
/// # Errors
/// It is none.
pub(crate) fn parse_json(path: &Path, text: &[u8]) -> Result<Value> {
    serde_json::from_slice(text)
        .map_err(|e| FormatError::Malformed { path: path.into(), reason: format!("not valid JSON: {e}") })
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
        Self::from_value(path, parse_json(path, text)?)
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
        let (text_part_of, raw) = match wrapped::text_part(path, &raw)? {
            Some((class, text)) => (Some(class), text),
            None => (None, raw),
        };
        let f = Fields::new(path, "", &raw);
        let architecture = Architecture::detect(&f)?;
        let family = architecture.0;
        f.check_known_but(
            family.own_keys,
            &model_keys::KEYS,
            "a key that is not known here and may change what the model computes; if it does not, remove it from the \
             file",
        )?;

        let num_heads = f.size("num_attention_heads", None, limit::HEADS)?;
        let defaults = &family.defaults;
        // null means one per query head, a missing field the class's own default.
        let num_kv_heads = if raw.get("num_key_value_heads").is_some_and(Value::is_null) {
            num_heads
        } else {
            f.size("num_key_value_heads", Some(defaults.num_kv_heads.unwrap_or(num_heads)), limit::HEADS)?
        };
        if num_heads % num_kv_heads != 0 {
            return Err(f.malformed(&format!(
                "num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}"
            )));
        }
        let hidden_size = f.size("hidden_size", None, limit::WIDTH)?;
        let share = hidden_size / num_heads;
        let head_dim = match (raw.get("head_dim"), defaults.head_dim) {
            (None, default) => default.unwrap_or(share),
            (Some(Value::Null), Some(default)) if !defaults.null_head_dim => {
                return Err(f.malformed(&format!(
                    "head_dim is null, which is no width in {}; write the model's, or remove the key if it is {default}",
                    family.class
                )));
            }
            (Some(Value::Null), _) => share,
            (Some(_), _) => f.size("head_dim", None, limit::HEAD_DIM)?,
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

        // The second is Gemma's name of it.
        for key in ["hidden_act", "hidden_activation"] {
            let known = family.gate.names();
            match f.string(key)? {
                Some(other) if !known.contains(&other) => {
                    return Err(FormatError::Unsupported(format!(
                        "{}: {key} {other:?} is not supported; supported is {:?}",
                        path.display(),
                        known[0]
                    )));
                }
                _ => {}
            }
        }
        let rms_norm_eps = f.number("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps) as f32;
        if !rms_norm_eps.is_finite() || rms_norm_eps < 0.0 {
            return Err(f.malformed(&format!("rms_norm_eps is {rms_norm_eps}")));
        }
        let max_position_embeddings =
            f.size("max_position_embeddings", Some(defaults.max_position_embeddings), limit::POSITIONS)?;
        let rope = rope::read(&f, family, head_dim, max_position_embeddings)?;
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
            max_position_embeddings: rope.positions,
            rms_norm_eps,
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            rope_attention_factor: rope.attention_factor,
            tie_word_embeddings: f.flag("tie_word_embeddings", defaults.tie_word_embeddings)?,
            local_rope_theta: rope.local_theta,
            rotary_dim: rope.width,
            graph: (family.graph)(&f, num_layers)?,
            bos_token_id: f.token_ids("bos_token_id")?.first().copied(),
            eos_token_ids: f.token_ids("eos_token_id")?,
            quantization,
            text_part_of,
            raw,
        })
    }
}
