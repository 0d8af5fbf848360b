//! What held-out text takes on its way through the float model, and when predictions are compared.

use qqq_model::scores::rows_at_a_time;

use super::{CONVERTING, Model, Phase};
use crate::held_out::lanes;

impl Model<'_> {
    /// A layer of the float model as it is stored and as it multiplies, some held-out windows' way through it, and the inputs
    /// of all.
    pub(super) fn held_out(&self) -> Phase {
        let wide = self.inner.max(self.q);
        let window = self.held.window as f64;
        let pass = window * 4.0 * (2.0 * self.inner + self.hidden)
            + self.attention() / self.window.max(1.0) * window;
        let pass = lanes(self.held.windows, self.threads as usize) as f64 * pass;
        let inputs = 4.0 * self.held.tokens() * wide;
        let arrays = match self.pieces.on_host {
            true => self.always + inputs + 2.0 * self.stored.linear * self.largest_weights(),
            false => self.always + self.stored.linear * self.largest_weights(),
        };
        Phase {
            name: "running held-out text in float",
            arrays,
            besides: if self.pieces.on_host { pass } else { 0.0 },
        }
    }

    /// The output heads of both models, beside the hidden states of what is held out, and the logits of some rows.
    pub(super) fn comparing(&self) -> Phase {
        let logits = 2.0 * 4.0 * self.vocab * rows_at_a_time(self.config.vocab_size) as f64;
        let arrays = match self.pieces.on_host {
            true => self.always - self.states + 8.0 * self.held.tokens() * self.hidden + self.reading_table(),
            false => self.always + self.vocab * self.hidden * self.stored.ends.max(2.0),
        };
        Phase { name: "comparing predictions on held-out text", arrays, besides: logits + CONVERTING }
    }
}
