//! A block's weights in f32, as the transformations and the solver work on them.

use qqq_backend::HeadLayout;
use qqq_formats::{Checkpoint, LinearWeight, ModelConfig, WeightData};
use qqq_model::BlockWeights;

use crate::{QuantError, Result};

/// A linear layer: weight of shape `n x k`, row-major, and bias of length `n`.
#[derive(Clone, Debug)]
pub struct FloatLinear {
    /// Output channels.
    pub n: usize,
    /// Input channels.
    pub k: usize,
    /// Weight.
    pub weight: Vec<f32>,
    /// Bias.
    pub bias: Option<Vec<f32>>,
}

impl FloatLinear {
    fn take(name: &str, (weight, bias): (LinearWeight, Option<Vec<f32>>)) -> Result<Self> {
        match weight {
            LinearWeight::Float { out_features, in_features, data } => {
                Ok(Self { n: out_features, k: in_features, weight: data.into_f32(), bias })
            }
            LinearWeight::Quantized(_) => Err(QuantError::Recipe(format!(
                "{name} is quantized already; quantize the float model that this checkpoint was made from"
            ))),
        }
    }

    /// In the form that a backend prepacks.
    pub fn to_weight(&self) -> LinearWeight {
        LinearWeight::Float {
            out_features: self.n,
            in_features: self.k,
            data: WeightData::F32(self.weight.clone()),
        }
    }

    /// Some of the output channels.
    pub fn outputs(&self, range: std::ops::Range<usize>) -> Self {
        Self {
            n: range.len(),
            k: self.k,
            weight: self.weight[range.start * self.k..range.end * self.k].to_vec(),
            bias: self.bias.as_ref().map(|b| b[range].to_vec()),
        }
    }

    /// Multiplies input channel `j` by `s[j]`.
    pub fn scale_inputs(&mut self, s: &[f32]) {
        for row in self.weight.chunks_exact_mut(self.k) {
            for (w, s) in row.iter_mut().zip(s) {
                *w *= s;
            }
        }
    }

    /// Divides output channel `first + j` (weight and bias) by `s[j]`.
    pub fn divide_outputs(&mut self, first: usize, s: &[f32]) {
        let rows = self.weight.chunks_exact_mut(self.k).skip(first);
        for (row, s) in rows.zip(s) {
            row.iter_mut().for_each(|w| *w /= s);
        }
        if let Some(bias) = &mut self.bias {
            for (b, s) in bias[first..].iter_mut().zip(s) {
                *b /= s;
            }
        }
    }
}

/// All weights of a block; q, k, v are stacked, and so are gate and up.
#[derive(Clone, Debug)]
pub struct FloatBlock {
    /// Weight of the norm before attention.
    pub input_norm: Vec<f32>,
    /// Weight of the norm before the MLP.
    pub post_norm: Vec<f32>,
    /// Head norms of q and k.
    pub qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    /// q, k, v.
    pub qkv: FloatLinear,
    /// Output projection of attention.
    pub o: FloatLinear,
    /// gate, up.
    pub gate_up: FloatLinear,
    /// Down projection.
    pub down: FloatLinear,
}

impl FloatBlock {
    /// Reads block `index`.
    ///
    /// # Errors
    /// Whatever is wrong with the checkpoint, and layers that are quantized already.
    pub fn read(checkpoint: &Checkpoint, index: usize) -> Result<Self> {
        let w = BlockWeights::read(checkpoint, index)?;
        let name = |part: &str| format!("model.layers.{index}.{part}");
        Ok(Self {
            input_norm: w.input_norm,
            post_norm: w.post_norm,
            qk_norm: w.qk_norm,
            qkv: FloatLinear::take(&name("self_attn.qkv_proj"), w.qkv)?,
            o: FloatLinear::take(&name("self_attn.o_proj"), w.o)?,
            gate_up: FloatLinear::take(&name("mlp.gate_up_proj"), w.gate_up)?,
            down: FloatLinear::take(&name("mlp.down_proj"), w.down)?,
        })
    }

    /// A copy in the form that [`qqq_model::Block::new`] takes.
    pub fn to_weights(&self) -> BlockWeights {
        let linear = |l: &FloatLinear| (l.to_weight(), l.bias.clone());
        BlockWeights {
            input_norm: self.input_norm.clone(),
            post_norm: self.post_norm.clone(),
            qk_norm: self.qk_norm.clone(),
            qkv: linear(&self.qkv),
            o: linear(&self.o),
            gate_up: linear(&self.gate_up),
            down: linear(&self.down),
        }
    }
}

/// Heads of a model's attention layers.
pub(crate) fn head_layout(config: &ModelConfig) -> HeadLayout {
    HeadLayout { num_heads: config.num_heads, num_kv_heads: config.num_kv_heads, head_dim: config.head_dim }
}
