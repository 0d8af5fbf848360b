//! Linear layers in f32, as the transformations and the solver work on them.

use qqq_formats::{Checkpoint, LinearWeight, WeightData};
use qqq_model::{BlockNorms, BlockWeights, LinearLayer, Site, Sites, names};

use crate::{QuantError, Result, report::modules};

/// A linear layer: weight of shape `n x k`, row-major, and bias of length `n`.
#[derive(Clone, Debug)]
pub struct FloatLinear {
    /// Output channels: rows of the weight.
    pub n: usize,
    /// Input channels: columns of the weight.
    pub k: usize,
    /// Weight, `n x k`, row-major.
    pub weight: Vec<f32>,
    /// Bias, of length `n`, where the layer has one.
    pub bias: Option<Vec<f32>>,
}

impl FloatLinear {
    /// Reads a layer of block `index`.
    ///
    /// # Errors
    /// Whatever is wrong with the checkpoint, and a layer that is quantized already.
    pub fn read(checkpoint: &Checkpoint, index: usize, site: Site) -> Result<Self> {
        let StoredLayer { n, k, data, bias } = read_layer(checkpoint, index, site)?;
        Ok(Self { n, k, weight: data.into_f32(), bias })
    }

    /// In the form that a backend prepacks.
    pub fn into_layer(self) -> LinearLayer {
        let Self { n, k, weight, bias } = self;
        let data = WeightData::F32(weight);
        LinearLayer { weight: LinearWeight::Float { out_features: n, in_features: k, data }, bias }
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

/// A layer as it is stored.
pub(crate) struct StoredLayer {
    /// Output channels.
    pub n: usize,
    /// Input channels.
    pub k: usize,
    /// `n x k`, row-major.
    pub data: WeightData,
    /// Of length `n`, where the layer has one.
    pub bias: Option<Vec<f32>>,
}

/// Reads a layer of block `index`.
///
/// # Errors
/// As [`FloatLinear::read`].
pub(crate) fn read_layer(checkpoint: &Checkpoint, index: usize, site: Site) -> Result<StoredLayer> {
    let LinearLayer { weight, bias } = site.read(checkpoint, index)?;
    let LinearWeight::Float { out_features, in_features, data } = weight else {
        let name = names::linear(index, module(site));
        return Err(QuantError::Recipe(format!(
            "{name} is quantized already; quantize the float model that this checkpoint was made from"
        )));
    };
    Ok(StoredLayer { n: out_features, k: in_features, data, bias })
}

/// A block whose layers are float.
pub type FloatBlock = BlockWeights<FloatLinear>;

/// Reads block `index`.
///
/// # Errors
/// Whatever is wrong with the checkpoint, and layers that are quantized already.
pub fn read_block(checkpoint: &Checkpoint, index: usize) -> Result<FloatBlock> {
    Ok(BlockWeights {
        norms: BlockNorms::read(checkpoint, index)?,
        layers: Sites::try_new(|site| FloatLinear::read(checkpoint, index, site))?,
    })
}

/// The name under which a site's layer is reported.
pub(crate) fn module(site: Site) -> &'static str {
    match site {
        Site::Qkv => modules::QKV,
        Site::O => modules::O,
        Site::GateUp => modules::GATE_UP,
        Site::Down => modules::DOWN,
    }
}
