//! What a quantized output head takes, behind the last block.

use super::{CONVERTING, Model, Phase, SOLVER_BYTES};
use crate::{run::head_rows, solve::ROWS_PER_TASK};

impl Model<'_> {
    /// Rows of a quantized output head as read, as float and as they are solved, beside the Hessian with its factor, and the codes
    /// of all, which are copied once when they are written.
    pub(super) fn head(&self) -> Phase {
        let rows = head_rows(self.config) as f64;
        let codes = 2.0 * self.vocab * self.hidden;
        let held = if self.pieces.on_host { 8.0 * self.held.tokens() * self.hidden } else { 0.0 };
        // On a device the factor is there.
        let (factor, each) = match self.pieces.on_host {
            true => (16.0 * self.hidden * self.hidden, 4.0 + 4.0),
            false => (0.0, 2.0),
        };
        let solver = self.threads * ROWS_PER_TASK as f64 * self.hidden * SOLVER_BYTES;
        Phase {
            name: "quantizing the output head",
            arrays: self.always - self.states
                + held
                + codes
                + factor
                + rows * self.hidden * (self.stored.ends + each),
            besides: if self.pieces.on_host { solver + CONVERTING } else { CONVERTING },
        }
    }
}
