//! Linear layers in f32, as the transformations and the solver work on them.

use qqq_backend::Calibrate;
use qqq_formats::{Checkpoint, LinearWeight, WeightData};
use qqq_model::{BlockNorms, BlockWeights, LinearLayer, ModelError, Site, Sites, block::Layer, names};

use crate::{QuantError, Result, report::modules};

/// A linear layer whose weights are on a device.
pub struct FloatLinear<B: Calibrate> {
    /// Output channels: rows of the weight.
    pub n: usize,
    /// Input channels: columns of the weight.
    pub k: usize,
    /// `n x k`.
    pub weights: B::Weights,
    /// Of length `n`, where the layer has one.
    pub bias: Option<Vec<f32>>,
    /// Scales with which it is rounded, of each group of each output channel, where they were learned.
    pub scales: Option<Vec<f32>>,
}

impl<B: Calibrate> FloatLinear<B> {
    /// A layer as it is stored, on a device.
    ///
    /// # Errors
    /// Those of the backend.
    pub(crate) fn new(b: &B, stored: StoredLayer) -> Result<Self> {
        let StoredLayer { n, k, data, bias } = stored;
        Ok(Self { n, k, weights: b.weights(n, k, data)?, bias, scales: None })
    }

    /// In the form that multiplies float inputs.
    ///
    /// # Errors
    /// Those of the backend; `index` and `site` are for their message.
    pub(crate) fn layer(&self, b: &B, index: usize, site: Site) -> Result<Layer<B>> {
        let linear = b.float_linear(&self.weights, self.bias.clone());
        let name = || names::linear(index, module(site));
        Ok(Layer::Ready(linear.map_err(|source| ModelError::Backend { name: name(), source })?))
    }

    /// Multiplies input channel `j` by `s[j]`.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn scale_inputs(&mut self, b: &B, s: &[f32]) -> Result<()> {
        Ok(b.scale_inputs(&mut self.weights, s)?)
    }

    /// Divides output channel `first + j` (weight and bias) by `s[j]`.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn divide_outputs(&mut self, b: &B, first: usize, s: &[f32]) -> Result<()> {
        b.divide_outputs(&mut self.weights, first, s)?;
        if let Some(bias) = &mut self.bias {
            for (b, s) in bias[first..].iter_mut().zip(s) {
                *b /= s;
            }
        }
        Ok(())
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
/// Whatever is wrong with the checkpoint, and a layer that is quantized already.
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

/// A block whose layers are float, on a device.
pub type FloatBlock<B> = BlockWeights<FloatLinear<B>>;

/// Layers of a block as they are stored.
pub(crate) type StoredLayers = Sites<StoredLayer>;

/// Reads the layers of block `index`.
///
/// # Errors
/// As [`read_layer`].
pub(crate) fn read_layers(checkpoint: &Checkpoint, index: usize) -> Result<StoredLayers> {
    Sites::try_new(|site| read_layer(checkpoint, index, site))
}

/// Block `index` with its layers, which have been read, on a device.
///
/// # Errors
/// Whatever is wrong with its norms; those of the backend.
pub(crate) fn on_device<B: Calibrate>(
    b: &B,
    checkpoint: &Checkpoint,
    index: usize,
    layers: StoredLayers,
) -> Result<FloatBlock<B>> {
    Ok(BlockWeights {
        norms: BlockNorms::read(checkpoint, index)?,
        layers: layers.try_map(|stored| FloatLinear::new(b, stored))?,
    })
}

/// Reads block `index`, and brings its layers to a device.
///
/// # Errors
/// Whatever is wrong with the checkpoint, layers that are quantized already, and those of the backend.
pub fn read_block<B: Calibrate>(b: &B, checkpoint: &Checkpoint, index: usize) -> Result<FloatBlock<B>> {
    Ok(BlockWeights {
        norms: BlockNorms::read(checkpoint, index)?,
        layers: Sites::try_new(|site| FloatLinear::new(b, read_layer(checkpoint, index, site)?))?,
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
