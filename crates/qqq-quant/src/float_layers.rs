//! The float layers of a block, given out one after the other as they are solved: of a large model all together take more
//! memory than what calibration needs for one of them.

use std::sync::Arc;

use qqq_formats::Checkpoint;
use qqq_model::{BlockNorms, Site, Sites, block::head_layout};

use crate::{
    QuantError, Result,
    float_linear::{FloatBlock, FloatLinear},
    half_type::HalfType,
    rotations::Rotations,
    transform,
};

/// A transformed block.
pub(crate) struct FloatLayers<'a> {
    /// Norms as they are written.
    pub norms: BlockNorms,
    layers: Layers<'a>,
}

enum Layers<'a> {
    /// Transformed together, because what is done to one layer depends on another.
    Held(Box<Sites<Option<FloatLinear>>>),
    /// Each is read and transformed when it is asked for.
    Stored(Stored<'a>),
}

struct Stored<'a> {
    checkpoint: &'a Checkpoint,
    index: usize,
    half: HalfType,
    /// With the norm weights that are folded into the layers behind them.
    rotation: Option<(Arc<Rotations>, BlockNorms)>,
}

impl<'a> FloatLayers<'a> {
    /// Block `index`, rotated if there are rotations.
    pub fn stored(
        checkpoint: &'a Checkpoint,
        index: usize,
        half: HalfType,
        rotations: Option<Arc<Rotations>>,
    ) -> Result<Self> {
        let mut norms = BlockNorms::read(checkpoint, index)?;
        let rotation = rotations.map(|rotations| {
            let folded = norms.clone();
            norms.input.fill(1.0);
            norms.post.fill(1.0);
            (rotations, folded)
        });
        transform::round_norms(&mut norms, half);
        Ok(Self { norms, layers: Layers::Stored(Stored { checkpoint, index, half, rotation }) })
    }

    /// A block that was transformed as a whole.
    pub fn held(block: FloatBlock, half: HalfType) -> Self {
        let FloatBlock { mut norms, layers } = block;
        transform::round_norms(&mut norms, half);
        let layers = layers.map(|mut layer| {
            transform::round_bias(&mut layer, half);
            Some(layer)
        });
        Self { norms, layers: Layers::Held(Box::new(layers)) }
    }

    /// A copy of a layer, transformed, before it is [taken](Self::take).
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn copy(&self, site: Site) -> Result<FloatLinear> {
        match &self.layers {
            Layers::Held(layers) => layers[site].clone().ok_or_else(|| taken(site)),
            Layers::Stored(stored) => stored.read(site),
        }
    }

    /// A layer, transformed; once.
    ///
    /// # Errors
    /// Those of reading it, and a layer that was taken before.
    pub fn take(&mut self, site: Site) -> Result<FloatLinear> {
        match &mut self.layers {
            Layers::Held(layers) => layers[site].take().ok_or_else(|| taken(site)),
            Layers::Stored(stored) => stored.read(site),
        }
    }
}

fn taken(site: Site) -> QuantError {
    QuantError::Recipe(format!("{site:?} of a block was taken twice"))
}

impl Stored<'_> {
    fn read(&self, site: Site) -> Result<FloatLinear> {
        let mut layer = FloatLinear::read(self.checkpoint, self.index, site)?;
        if let Some((rotations, norms)) = &self.rotation {
            match site {
                Site::Qkv => layer.scale_inputs(&norms.input),
                Site::GateUp => layer.scale_inputs(&norms.post),
                Site::O | Site::Down => {}
            }
            let heads = head_layout(&self.checkpoint.config);
            transform::rotate_linear(site, &mut layer, &rotations.stream, &rotations.head, heads);
        }
        transform::round_bias(&mut layer, self.half);
        Ok(layer)
    }
}
