//! A block's weights in f32, as the transformations and the solver work on them.

use qqq_backend::HeadLayout;
use qqq_formats::{Checkpoint, LinearWeight, ModelConfig, WeightData};
use qqq_model::{BlockNorms, BlockWeights, JoinedLinear, names};

use crate::{QuantError, Result, report::modules};

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
    /// Reads a layer of block `index`.
    ///
    /// # Errors
    /// Whatever is wrong with the checkpoint, and a layer that is quantized already.
    pub fn read(checkpoint: &Checkpoint, index: usize, linear: JoinedLinear) -> Result<Self> {
        let (weight, bias) = linear.read(checkpoint, index)?;
        let LinearWeight::Float { out_features, in_features, data } = weight else {
            let name = names::linear(index, module(linear));
            return Err(QuantError::Recipe(format!(
                "{name} is quantized already; quantize the float model that this checkpoint was made from"
            )));
        };
        Ok(Self { n: out_features, k: in_features, weight: data.into_f32(), bias })
    }

    /// In the form that a backend prepacks.
    pub fn to_weight(&self) -> LinearWeight {
        LinearWeight::Float {
            out_features: self.n,
            in_features: self.k,
            data: WeightData::F32(self.weight.clone()),
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
        let BlockNorms { input, post, qk } = BlockNorms::read(checkpoint, index)?;
        let linear = |linear: JoinedLinear| FloatLinear::read(checkpoint, index, linear);
        Ok(Self {
            input_norm: input,
            post_norm: post,
            qk_norm: qk,
            qkv: linear(JoinedLinear::Qkv)?,
            o: linear(JoinedLinear::O)?,
            gate_up: linear(JoinedLinear::GateUp)?,
            down: linear(JoinedLinear::Down)?,
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

/// The name under which a joined layer is reported.
pub(crate) fn module(linear: JoinedLinear) -> &'static str {
    match linear {
        JoinedLinear::Qkv => modules::QKV,
        JoinedLinear::O => modules::O,
        JoinedLinear::GateUp => modules::GATE_UP,
        JoinedLinear::Down => modules::DOWN,
    }
}

/// Heads of a model's attention layers.
pub(crate) fn head_layout(config: &ModelConfig) -> HeadLayout {
    HeadLayout { num_heads: config.num_heads, num_kv_heads: config.num_kv_heads, head_dim: config.head_dim }
}
