//! The float layers of a block, given out one after the other as they are solved: of a large model all together take more
//! memory than what calibration needs for one of them.

use std::sync::Arc;

use qqq_backend::Calibrate;
use qqq_formats::Checkpoint;
use qqq_model::{
    BlockNorms, Site, Sites,
    block::{Layer, head_layout},
};

use crate::{
    QuantError, Result,
    float_linear::{FloatBlock, FloatLinear, StoredLayer, read_layer},
    half_type::HalfType,
    rotations::DeviceRotations,
    transform,
};

/// A transformed block.
pub(crate) struct FloatLayers<'a, B: Calibrate> {
    /// Norms as they are written.
    pub norms: BlockNorms,
    layers: Layers<'a, B>,
}

enum Layers<'a, B: Calibrate> {
    /// Transformed together, because what is done to one layer depends on another.
    Held(Box<Sites<Option<FloatLinear<B>>>>),
    /// Each is read and transformed when it is asked for.
    Stored(Stored<'a, B>),
}

struct Stored<'a, B: Calibrate> {
    checkpoint: &'a Checkpoint,
    index: usize,
    half: HalfType,
    /// With the norm weights that are folded into the layers behind them.
    rotation: Option<(Arc<DeviceRotations<B>>, BlockNorms)>,
}

impl<'a, B: Calibrate> FloatLayers<'a, B> {
    /// Block `index`, rotated if there are rotations.
    pub fn stored(
        checkpoint: &'a Checkpoint,
        index: usize,
        half: HalfType,
        rotations: Option<Arc<DeviceRotations<B>>>,
    ) -> Result<Self> {
        let mut norms = BlockNorms::read(checkpoint, index)?;
        let rotation = rotations.map(|rotations| {
            let mut folded = norms.clone();
            for norm in [&mut folded.input, &mut folded.post] {
                norm.iter_mut().for_each(|w| *w += norms.offset);
            }
            norms.input.fill(1.0 - norms.offset);
            norms.post.fill(1.0 - norms.offset);
            (rotations, folded)
        });
        transform::round_norms(&mut norms, half);
        Ok(Self { norms, layers: Layers::Stored(Stored { checkpoint, index, half, rotation }) })
    }

    /// A block that was transformed as a whole.
    pub fn held(block: FloatBlock<B>, half: HalfType) -> Self {
        let FloatBlock { mut norms, layers } = block;
        transform::round_norms(&mut norms, half);
        let layers = layers.map(|mut layer| {
            transform::round_bias(layer.bias.as_deref_mut(), half);
            Some(layer)
        });
        Self { norms, layers: Layers::Held(Box::new(layers)) }
    }

    /// A layer, transformed, in the form that multiplies float inputs, before it is [taken](Self::take). `index` is its
    /// block's, for messages.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn layer(&self, b: &B, index: usize, site: Site) -> Result<Layer<B>> {
        match &self.layers {
            Layers::Held(layers) => layers[site].as_ref().ok_or_else(|| taken(site))?.layer(b, index, site),
            Layers::Stored(stored) => stored.read(b, site, None)?.layer(b, index, site),
        }
    }

    /// Whether layers are read when they are taken.
    pub fn reads(&self) -> bool {
        matches!(self.layers, Layers::Stored(_))
    }

    /// A layer, transformed; once. `read` is the layer as stored, where it has been read already.
    ///
    /// # Errors
    /// Those of reading it and of the backend, and a layer that was taken before.
    pub fn take(&mut self, b: &B, site: Site, read: Option<StoredLayer>) -> Result<FloatLinear<B>> {
        match &mut self.layers {
            Layers::Held(layers) => layers[site].take().ok_or_else(|| taken(site)),
            Layers::Stored(stored) => stored.read(b, site, read),
        }
    }
}

fn taken(site: Site) -> QuantError {
    QuantError::Recipe(format!("{site:?} of a block was taken twice"))
}

impl<B: Calibrate> Stored<'_, B> {
    fn read(&self, b: &B, site: Site, read: Option<StoredLayer>) -> Result<FloatLinear<B>> {
        let read = read.map_or_else(|| read_layer(self.checkpoint, self.index, site), Ok)?;
        let FloatLinear { n, k, mut weights, mut bias, scales } = FloatLinear::new(b, read)?;
        if let Some((rotations, norms)) = &self.rotation {
            match site {
                Site::Qkv => b.scale_inputs(&mut weights, &norms.input)?,
                Site::GateUp => b.scale_inputs(&mut weights, &norms.post)?,
                Site::O | Site::Down => {}
            }
            let heads = head_layout(&self.checkpoint.config);
            rotations.turn(b, site, &mut weights, bias.as_deref_mut(), heads)?;
        }
        transform::round_bias(bias.as_deref_mut(), self.half);
        Ok(FloatLinear { n, k, weights, bias, scales })
    }
}
