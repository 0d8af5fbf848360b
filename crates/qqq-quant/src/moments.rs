//! What a layer is solved for: second moments of its inputs.

use qqq_backend::Calibrate;

use crate::Result;

/// Sums over tokens of a layer's inputs.
pub(crate) struct Sums<B: Calibrate> {
    /// Of the inputs in the quantized model.
    pub gram: B::Gram,
    /// Of what those in the float model deviate from them, where weights are corrected for that.
    pub deviations: Option<B::Deviations>,
}

impl<B: Calibrate> Sums<B> {
    /// Nothing is corrected.
    pub fn plain(gram: B::Gram) -> Self {
        Self { gram, deviations: None }
    }

    /// The means.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn moments(self, b: &B) -> Result<Moments<B>> {
        let deviation = self.deviations.map(|sums| b.deviation(sums)).transpose()?;
        Ok(Moments { hessian: b.hessian(self.gram)?, deviation })
    }
}

/// Second moments of a layer's inputs.
pub(crate) struct Moments<B: Calibrate> {
    /// Of those in the quantized model.
    pub hessian: B::Hessian,
    /// How those in the float model deviate, where weights are corrected for that.
    pub deviation: Option<B::Deviation>,
}
