//! What is done to a block before it is calibrated.

use std::time::Instant;

use qqq_backend::Calibrate;

use super::{Run, log_memory};
use crate::{
    Result,
    float_layers::FloatLayers,
    float_linear::{on_device, read_block},
    recipes::BlockChange,
    smooth::SearchOptions,
    smooth_sites::SmoothContext,
    windows::Windows,
};

impl<'a, B: Calibrate> Run<'a, B> {
    /// A block with the recipe's transformation.
    ///
    /// # Errors
    /// Those of reading it and of the search for scales of channels.
    pub fn transformed_block(
        &mut self,
        index: usize,
        windows: &Windows<'_, B>,
    ) -> Result<FloatLayers<'a, B>> {
        let clock = Instant::now();
        if self.recipe.transform.reads_windows() {
            let layers = self.changed_block(index, windows)?;
            self.timings.transform += clock.elapsed().as_secs_f64();
            return Ok(layers);
        }
        if self.recipe.learns() {
            let layers = self.learned_block(index, windows)?;
            self.timings.transform += clock.elapsed().as_secs_f64();
            return Ok(layers);
        }
        let label = self.label(index, "smoothing");
        let layers = match &mut self.smoothing_window {
            None => FloatLayers::stored(self.checkpoint, index, self.half, self.rotations.clone())?,
            Some(window) => {
                let b = self.around.backend;
                let mut block = match self.block_ahead.take() {
                    Some((read, layers)) if read == index => on_device(b, self.checkpoint, index, layers?)?,
                    _ => read_block(b, self.checkpoint, index)?,
                };
                let context = SmoothContext {
                    around: self.around,
                    schemes: self.schemes.block(index),
                    half: self.half,
                    options: SearchOptions::default(),
                };
                let (work, units) = (&mut self.work, self.estimate.smooth_site);
                let mut on_site = || {
                    log_memory(&label);
                    work.begin(units, label.as_str())
                };
                let mut workshop = self.around.workshop(self.recipe.calibration.smooth_tokens)?;
                let reports = context.smooth_block(index, &mut block, window, &mut workshop, &mut on_site)?;
                window.flow.shed(b)?;
                self.smoothing.extend(reports);
                FloatLayers::held(block, self.half)
            }
        };
        self.timings.transform += clock.elapsed().as_secs_f64();
        Ok(layers)
    }

    /// A block changed by what all calibration windows, which are those of the float model, have at its sites.
    fn changed_block(&mut self, index: usize, windows: &Windows<'_, B>) -> Result<FloatLayers<'a, B>> {
        let label = self.label(index, "searching scales");
        let (around, half) = (self.around, self.half);
        let mut block = read_block(around.backend, self.checkpoint, index)?;
        let change = BlockChange { around, recipe: self.recipe, schemes: self.schemes.block(index), half };
        let (work, units) = (&mut self.work, self.estimate.smooth_site);
        let mut on_site = || {
            log_memory(&label);
            work.begin(units, label.as_str())
        };
        let mut workshop = around.workshop(self.recipe.calibration.window)?;
        let mut copies = windows.copies()?;
        let reports = change.apply(index, &mut block, &mut copies, &mut workshop, &mut on_site)?;
        self.smoothing.extend(reports);
        Ok(FloatLayers::held(block, half))
    }
}
