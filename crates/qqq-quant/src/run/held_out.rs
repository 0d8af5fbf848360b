//! Held-out windows beside a run over the blocks.

use std::time::Instant;

use qqq_backend::Calibrate;
use qqq_formats::LinearWeight;
use qqq_model::{Block, BlockNorms, OutputHead, Site, block::Layer, names};

use super::Run;
use crate::{ActivationReport, Result, float_linear::module, held_out::Measured};

impl<B: Calibrate> Run<'_, B> {
    /// Takes held-out windows through block `index` of the float model.
    pub(super) fn held_out_float(&mut self, index: usize) -> Result<()> {
        let Some(mut held_out) = self.held_out.take() else { return Ok(()) };
        let clock = Instant::now();
        self.begin(index, self.estimate.held_float, "held-out text in float")?;
        held_out.float_block(self.checkpoint, index, &mut |share| self.work.at(share))?;
        self.timings.compare += clock.elapsed().as_secs_f64();
        self.held_out = Some(held_out);
        Ok(())
    }

    /// To the input of a site of the quantized block `live`.
    pub(super) fn held_out_advance(&mut self, index: usize, live: &Block<B>, site: Site) -> Result<()> {
        let Some(mut held_out) = self.held_out.take() else { return Ok(()) };
        let clock = Instant::now();
        self.begin(index, self.estimate.held_quantized.part(0.25), "held-out text")?;
        held_out.advance(live, site)?;
        self.timings.compare += clock.elapsed().as_secs_f64();
        self.held_out = Some(held_out);
        Ok(())
    }

    /// Out of the quantized block `live`.
    pub(super) fn held_out_leave(&mut self, live: &Block<B>) -> Result<()> {
        let clock = Instant::now();
        self.held_out.as_mut().map_or(Ok(()), |held_out| held_out.leave(live))?;
        self.timings.compare += clock.elapsed().as_secs_f64();
        Ok(())
    }

    /// Block `index` for held-out windows alone, whose layers come one after the other; none where nothing is held out.
    pub(super) fn held_out_block(&mut self, index: usize, norms: &BlockNorms) -> Result<Option<Block<B>>> {
        let Some(mut held_out) = self.held_out.take() else { return Ok(None) };
        let awaited = |site| Ok(Layer::Awaited(self.schemes.input_kind(index, site)));
        let block = self.block_of(index, norms.clone(), awaited)?;
        held_out.advance(&block, Site::Qkv)?;
        self.held_out = Some(held_out);
        Ok(Some(block))
    }

    /// Through the layer of that block that has just been solved.
    pub(super) fn held_out_layer(
        &mut self,
        index: usize,
        block: &mut Option<Block<B>>,
        site: Site,
        (weight, bias): (LinearWeight, Option<Vec<f32>>),
    ) -> Result<()> {
        let (Some(block), Some(mut held_out)) = (block, self.held_out.take()) else { return Ok(()) };
        self.begin(index, self.estimate.held_quantized.part(0.25), "held-out text")?;
        *block.layer_mut(site) = self.pack(index, weight, bias)?;
        let clock = Instant::now();
        held_out.go_on(block, site)?;
        *block.layer_mut(site) = Layer::Awaited(self.schemes.input_kind(index, site));
        self.timings.compare += clock.elapsed().as_secs_f64();
        self.held_out = Some(held_out);
        Ok(())
    }

    /// How far inputs of the block reach, for the report.
    pub(super) fn keep_reach(&mut self, index: usize) {
        let Some(held_out) = &mut self.held_out else { return };
        let config = self.around.config;
        let of_site = |site| {
            let (float, quantized) = held_out.reach(site)?;
            let name = names::linear(index, module(site));
            Some(ActivationReport { name, channels: site.in_features(config), float, quantized })
        };
        self.activations.extend(Site::ALL.into_iter().filter_map(of_site));
    }

    /// Takes held-out windows through block `index` again: of the float model, and the one that was written.
    pub(super) fn held_out_again(&mut self, index: usize, written: &Block<B>) -> Result<()> {
        self.held_out_float(index)?;
        let clock = Instant::now();
        self.held_out.as_mut().map_or(Ok(()), |held_out| held_out.pass(written))?;
        self.timings.compare += clock.elapsed().as_secs_f64();
        Ok(())
    }

    /// Behind the last block: compares both models' logits, of which `quantized` makes the one's. Gives windows and
    /// predictions beside what these say; nothing where nothing was held out.
    ///
    /// # Errors
    /// Those of reading output heads and of the backend; being interrupted.
    pub fn measure(
        &mut self,
        quantized: impl FnOnce(&B) -> Result<OutputHead<B>>,
    ) -> Result<Option<((usize, usize), Measured)>> {
        let Some(held_out) = self.held_out.take() else { return Ok(None) };
        let clock = Instant::now();
        self.work.begin(self.estimate.compare, "comparing with the float model on held-out text")?;
        let b = self.around.backend;
        let mut float = OutputHead::load(b, self.checkpoint)?;
        let mut quantized = quantized(b)?;
        let measured = held_out.measure(&mut float, &mut quantized, &mut |share| self.work.at(share))?;
        self.timings.compare += clock.elapsed().as_secs_f64();
        Ok(Some((held_out.size(), measured)))
    }
}
