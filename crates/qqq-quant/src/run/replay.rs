//! Blocks that an earlier run has finished, run again.

use std::time::Instant;

use qqq_backend::Calibrate;
use qqq_formats::Checkpoint;
use qqq_model::{Block, BlockWeights};

use super::Run;
use crate::{
    Propagation, Result,
    float_linear::{FloatBlock, read_block},
    windows::{Surroundings, Window, Windows, pass},
};

impl<B: Calibrate> Run<'_, B> {
    /// Takes the states through block `index`, which an earlier run has finished: `written` is what that has written.
    ///
    /// # Errors
    /// Those of [`quantize`](crate::quantize).
    pub fn replay(&mut self, index: usize, windows: &mut Windows<'_, B>, written: &Checkpoint) -> Result<()> {
        let Surroundings { backend, config, .. } = self.around;
        let read = |run: &mut Self| -> Result<Block<B>> {
            let clock = Instant::now();
            let block = Block::new(backend, config, index, BlockWeights::read(written, index)?)?;
            run.timings.transform += clock.elapsed().as_secs_f64();
            Ok(block)
        };
        if windows.is_empty() || self.recipe.propagation == Propagation::Float {
            let block = read(self)?;
            self.held_out_again(index, &block)?;
        }
        // Nothing was calibrated, or that is done.
        if windows.is_empty() {
            return Ok(());
        }
        if self.recipe.propagation == Propagation::Float {
            let block = self.float_block_again(index, windows)?;
            let units = self.estimate.replay();
            return self.stage(index, units, "running it again", |wave| windows.pass(&block, wave));
        }
        let mut float_stream = self.float_stream.take();
        if let Some(stream) = &mut float_stream {
            let block = self.float_block_again(index, windows)?;
            let units = self.estimate.replay_float();
            self.stage(index, units, "running it again in float", |wave| stream.pass(&block, wave))?;
        } else if !self.float_windows.is_empty() {
            let block = read_block(backend, self.checkpoint, index)?;
            self.learner(index).follow(&block, &mut self.float_windows)?;
        } else if self.smoothing_window.is_some() {
            let clock = Instant::now();
            let FloatBlock { norms, layers } = read_block(backend, self.checkpoint, index)?;
            let block = self.block_of(index, norms, |site| layers[site].layer(backend, index, site))?;
            let mut workshop = self.around.workshop(self.recipe.calibration.smooth_tokens)?;
            if let Some(Window { flow, batch }) = &mut self.smoothing_window {
                pass(backend, &block, &mut self.around.step(&mut workshop, batch), flow)?;
            }
            self.timings.transform += clock.elapsed().as_secs_f64();
        }
        self.float_stream = float_stream;
        let block = read(self)?;
        self.held_out_again(index, &block)?;
        let units = self.estimate.replay();
        self.stage(index, units, "running it again", |wave| windows.pass(&block, wave))
    }

    /// The transformed block in float. The search for smoothing scales is made again: these are in no file.
    fn float_block_again(&mut self, index: usize, windows: &Windows<'_, B>) -> Result<Block<B>> {
        let reports = self.smoothing.len();
        let float = self.transformed_block(index, windows)?;
        self.smoothing.truncate(reports);
        let backend = self.around.backend;
        self.block_of(index, float.norms.clone(), |site| float.layer(backend, index, site))
    }
}
