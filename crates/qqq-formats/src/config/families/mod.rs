//! Model families as data: what sets a family apart from a plain decoder of attention and gated MLP, and how its
//! `config.json` says so. Each has a file of its own, with its source named on top.

mod gemma3;
mod granite;
mod llama;
mod ministral3;
mod mistral;
mod phi3;
mod qwen;
mod seed_oss;
mod smollm3;

use super::{fields::Fields, limit};
use crate::{FormatError, Result};

/// Every family that can be read; `architectures` picks one.
pub(super) const ALL: [&Family; 10] = [
    &llama::LLAMA,
    &mistral::MISTRAL,
    &ministral3::MINISTRAL3,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &smollm3::SMOLLM3,
    &granite::GRANITE,
    &phi3::PHI3,
    &gemma3::GEMMA3,
    &seed_oss::SEED_OSS,
];

/// A family: its class in transformers, what a missing field means to it, and its flags.
#[derive(Debug)]
pub(super) struct Family {
    /// Name in `architectures`.
    pub class: &'static str,
    pub model_type: &'static str,
    /// Keys that this family reads, beside those of all.
    pub own_keys: &'static [&'static str],
    /// Keys that it reads among those of the rotary embedding.
    pub own_rope_keys: &'static [&'static str],
    /// The function that its MLP's gate has.
    pub gate: GateFunction,
    /// `partial_rotary_factor` counts: only the first components of a head are turned.
    pub partial_rotary: bool,
    /// Base of the rotary embedding of layers with a window by default, if it is another one there.
    pub local_rope_theta: Option<f64>,
    pub defaults: Defaults,
    /// The graph of a model of so many layers.
    pub graph: fn(&Fields<'_>, usize) -> Result<Graph>,
}

impl Family {
    /// What most have: nothing of their own.
    const PLAIN: Self = Self {
        class: "",
        model_type: "",
        own_keys: &[],
        own_rope_keys: &[],
        gate: GateFunction::Silu,
        partial_rotary: false,
        local_rope_theta: None,
        defaults: Defaults::PLAIN,
        graph: |_, layers| Ok(Graph::plain(layers)),
    };
}

/// What a missing field means.
#[derive(Debug)]
pub(super) struct Defaults {
    /// `None`: as many as query heads.
    pub num_kv_heads: Option<usize>,
    /// `None`: `hidden_size / num_heads`.
    pub head_dim: Option<usize>,
    /// Whether `head_dim` may be null, which means `hidden_size / num_heads`.
    pub null_head_dim: bool,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub tie_word_embeddings: bool,
    /// `hidden_size`, `intermediate_size`, `num_hidden_layers`, `num_attention_heads` and `vocab_size` of the class: what
    /// the text part of a model that also sees may leave out.
    pub sizes: [usize; 5],
}

impl Defaults {
    /// Those of Llama.
    const PLAIN: Self = Self {
        num_kv_heads: None,
        head_dim: None,
        null_head_dim: true,
        max_position_embeddings: 2048,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        tie_word_embeddings: false,
        sizes: [4096, 11_008, 32, 32, 32_000],
    };
}

/// Function of the gate in a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateFunction {
    /// `silu`, also called `swish`.
    Silu,
    /// GELU by the hyperbolic tangent: `gelu_pytorch_tanh`.
    GeluTanh,
}

impl GateFunction {
    /// Its names in configurations.
    pub(super) fn names(self) -> &'static [&'static str] {
        match self {
            Self::Silu => &["silu", "swish"],
            Self::GeluTanh => &["gelu_pytorch_tanh"],
        }
    }
}

/// Factor of a query at position `p`: `1 + beta ln(1 + floor(p / period))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryScale {
    /// Growth with the logarithm of the position: `llama_4_scaling_beta`.
    pub beta: f64,
    /// Positions of the context that the model was first trained with.
    pub period: usize,
}

/// How a decoder's graph differs from the plain one.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// Bias on q, k and v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub o_bias: bool,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// RMS norms on the heads of q and k, before the rotary embedding.
    pub qk_norm: bool,
    /// Added to the stored weights of all RMS norms.
    pub norm_offset: f32,
    /// RMS norms behind attention and MLP as well, before their outputs are added to the residual stream.
    pub norms_after: bool,
    /// Function of the MLP's gate.
    pub gate: GateFunction,
    /// q, k and v are one tensor on disk, and so are gate and up.
    pub fused: bool,
    /// Attention window of each layer, if it slides.
    pub windows: Vec<Option<usize>>,
    /// Whether each layer has the rotary embedding.
    pub rotary: Vec<bool>,
    /// Queries grow with their position.
    pub query_scale: Option<QueryScale>,
    /// Factor of the scores of attention; `None`: `head_dim^-1/2`.
    pub attention_scale: Option<f64>,
    /// Factor of the embeddings.
    pub embedding_scale: f64,
    /// Factor of what attention and MLP add to the residual stream.
    pub residual_scale: f64,
    /// Divisor of the logits.
    pub logit_divisor: f64,
}

impl Graph {
    fn plain(num_layers: usize) -> Self {
        Self {
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            norm_offset: 0.0,
            norms_after: false,
            gate: GateFunction::Silu,
            fused: false,
            windows: vec![None; num_layers],
            rotary: vec![true; num_layers],
            query_scale: None,
            attention_scale: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_divisor: 1.0,
        }
    }

    /// The window that all layers share, if they share one.
    pub fn window_of_all(&self) -> Option<usize> {
        let first = *self.windows.first()?;
        first.filter(|_| self.windows.iter().all(|w| *w == first))
    }
}

/// `sliding_window`, by default `default`; null is none.
fn window(f: &Fields<'_>, default: Option<usize>) -> Result<Option<usize>> {
    match (f.is_there("sliding_window"), default) {
        (false, None) => Ok(None),
        (false, _) if f.is_null("sliding_window") => Ok(None),
        _ => f.size("sliding_window", default, limit::POSITIONS).map(Some),
    }
}

/// `layer_types`: none, or one for each layer.
fn layer_types<'a>(f: &Fields<'a>, num_layers: usize) -> Result<Vec<&'a str>> {
    let types = f.strings("layer_types")?;
    let refuse =
        |what: String| Err(FormatError::Unsupported(format!("{}: layer_types {what}", f.path().display())));
    if !types.is_empty() && types.len() != num_layers {
        return refuse(format!("has {} entries for {num_layers} layers", types.len()));
    }
    match types.iter().find(|t| !["full_attention", SLIDING].contains(*t)) {
        Some(other) => {
            refuse(format!("holds {other:?}; supported are \"full_attention\" and \"sliding_attention\""))
        }
        None => Ok(types),
    }
}

const SLIDING: &str = "sliding_attention";

/// `window` in all layers, for a class that does not look at `layer_types`: these may not say otherwise.
fn same_layers(f: &Fields<'_>, num_layers: usize, window: Option<usize>) -> Result<Vec<Option<usize>>> {
    let kind = if window.is_some() { SLIDING } else { "full_attention" };
    match f.strings("layer_types")?.iter().find(|found| **found != kind) {
        None => Ok(vec![window; num_layers]),
        Some(found) => Err(FormatError::Unsupported(format!(
            "{}: layer_types holds {found:?}, but all layers of this class have {kind:?} (sliding_window)",
            f.path().display()
        ))),
    }
}

/// A factor that must be a number other than zero; 1 where it is missing.
fn factor(f: &Fields<'_>, key: &str) -> Result<f64> {
    match f.number(key)? {
        None => Ok(1.0),
        Some(x) if x != 0.0 => Ok(x),
        Some(x) => Err(f.malformed(&format!("{key} is {x}"))),
    }
}
