//! Blocks that learn how they are quantized.

use qqq_backend::Calibrate;
use qqq_model::Site;

use super::Run;
use crate::{
    Result, float_layers::FloatLayers, float_linear::read_block, recipes::omniquant::BlockLearning,
    report::LearnReport, windows::Windows,
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
        }
    }

    /// A block that has learned. The windows of the float model leave it.
    pub(super) fn learned_block(
        &mut self,
        index: usize,
        windows: &Windows<'_, B>,
    ) -> Result<FloatLayers<'a, B>> {
        let mut block = read_block(self.around.backend, self.checkpoint, index)?;
        // Sites are not learned one by one.
        self.begin(index, self.estimate.smooth_site.part(Site::ALL.len() as f64), "learning")?;
        let (learner, work) = (self.learner(index), &mut self.work);
        let report =
            learner.learn(&mut block, windows, &mut self.float_windows, &mut |share| work.at(share))?;
        let LearnReport { block: name, loss_before, loss_after } = &report;
        if loss_after > loss_before {
            self.work.warn(format!(
                "{name}: learning has raised the error of what leaves the block, from {loss_before:.4} to {loss_after:.4}; more or \
                 longer windows make its steps less noisy"
            ));
        }
        self.learning.push(report);
        Ok(FloatLayers::held(block, self.half))
    }
}
