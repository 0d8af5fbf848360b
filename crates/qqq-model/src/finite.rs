//! Where a model's numbers stop being finite.

use qqq_backend::{Backend, BatchPlan, first_not_finite, pages_for};

use crate::{Decoder, ModelError, Result, RopeChoice, Runner, Site, names};

/// Tokens that run through the blocks at a time.
const PIECE: usize = 512;

/// The first part of a model whose output is NaN or infinite, and the token at which it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the numbers of {module} become NaN or infinite at token {position} of the sequence (the first is 0): the model's \
     weights are damaged, or too large for 32-bit floats"
)]
pub struct NotFinite {
    /// Module, as the checkpoint names it.
    pub module: String,
    /// Index of the token in its sequence.
    pub position: usize,
}

impl<B: Backend> Decoder<B> {
    /// Runs a sequence from its start and looks at the states behind the embedding and behind both halves of every block, and
    /// at the logits of the last token: to be asked when logits are not finite. `rope` is the sequence's rotary embedding.
    /// `None` if all are finite.
    ///
    /// # Errors
    /// As [`Runner::step`].
    pub fn first_not_finite(&self, tokens: &[u32], rope: RopeChoice) -> Result<Option<NotFinite>> {
        let backend = &self.backend;
        let (rows, hidden) = (tokens.len().min(PIECE), self.config.hidden_size);
        let mut runner = Runner::new(self, self.backend.finest_kv(), pages_for(tokens.len()), rows)?;
        runner.choose_rope(rope)?;
        let pages: Vec<u32> = (0..pages_for(tokens.len()) as u32).collect();
        let mut start = 0;
        for piece in tokens.chunks(PIECE) {
            let mut plan = BatchPlan::default();
            plan.push(piece, start, &pages);
            let last = self.blocks.len() - 1;
            let look = |rows: &B::Tensor, module: &dyn Fn() -> String| {
                let place = |(first, _)| NotFinite { module: module(), position: start + first / hidden };
                Ok::<_, ModelError>(backend.first_not_finite(rows)?.map(place))
            };
            let mut found = None;
            runner.watched_step(&plan, &mut |layer, site, flow| {
                if found.is_some() {
                    return Ok(());
                }
                found = match (layer, site) {
                    (0, Site::Qkv) => look(&flow.residual, &|| names::EMBEDDING.into())?,
                    (_, Site::Qkv) => look(&flow.residual, &|| names::linear(layer - 1, "mlp"))?,
                    (_, Site::GateUp) => look(&flow.residual, &|| names::linear(layer, "self_attn"))?,
                    (_, Site::O | Site::Down) => None,
                };
                Ok(())
            })?;
            if found.is_none() {
                found = look(runner.hidden(), &|| names::linear(last, "mlp"))?;
            }
            if found.is_some() {
                return Ok(found);
            }
            start += piece.len();
            if start == tokens.len() && first_not_finite(&runner.logits(&[piece.len() - 1])?).is_some() {
                let module = names::LM_HEAD_MODULE.into();
                return Ok(Some(NotFinite { module, position: start - 1 }));
            }
        }
        Ok(None)
    }
}
