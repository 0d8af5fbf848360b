//! Blocks that learn how they are quantized.

use qqq_backend::Calibrate;
use qqq_model::Site;

use super::Run;
use crate::{
    Result, float_layers::FloatLayers, float_linear::read_block, recipes::omniquant::BlockLearning,
    windows::Windows,
};

impl<'a, B: Calibrate> Run<'a, B> {
    /// What learns a block.
    pub(super) fn learner(&self, index: usize) -> BlockLearning<'a, B> {
        let (around, schemes) = (self.around, self.schemes.block(index));
        BlockLearning {
            around,
            recipe: self.recipe,
            schemes,
            half: self.half,
            dtype: self.scale_dtype,
            index,
            is_trial: self.is_trial,
        }
    }

    /// A block that has learned. The windows of the float model leave it.
    pub(super) fn learned_block(
        &mut self,
        index: usize,
        windows: &Windows<'_, B>,
    ) -> Result<FloatLayers<'a, B>> {
        let mut block = read_block(self.around.backend, self.checkpoint, index)?;
        let learner = self.learner(index);
        // Sites are not learned one by one.
        let whole = self.estimate.smooth_site.part(Site::ALL.len() as f64);
        let share = learner.share(self.float_windows.len());
        self.left_out = whole.part(1.0 - share);
        self.begin(index, whole.part(share), "learning")?;
        let work = &mut self.work;
        let report =
            learner.learn(&mut block, windows, &mut self.float_windows, &mut |share| work.at(share))?;
        if report.epoch == 0 && self.recipe.epochs.is_some_and(|epochs| epochs > 0) && !self.is_trial {
            self.work.warn(format!(
                "{}: no epoch of learning has made the error of what leaves the block less, it is rounded as it began; more or \
                 longer windows make steps less noisy",
                report.block
            ));
        }
        self.learning.push(report);
        Ok(FloatLayers::held(block, self.half))
    }
}
