//! Where a model's numbers stop being finite.

use qqq_backend::{Backend, BatchPlan, first_not_finite, pages_for};

use crate::{
    Decoder, Result, Runner, Site,
    block::{Flow, Step},
    names,
};

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
    /// at the logits of the last token: to be asked when logits are not finite. `None` if all are.
    ///
    /// # Errors
    /// As [`Runner::step`].
    pub fn first_not_finite(&self, tokens: &[u32]) -> Result<Option<NotFinite>> {
        let backend = &self.backend;
        let (rows, hidden) = (tokens.len().min(PIECE), self.config.hidden_size);
        let mut runner = Runner::new(self, self.backend.finest_kv(), pages_for(tokens.len()), rows)?;
        let pages: Vec<u32> = (0..pages_for(tokens.len()) as u32).collect();
        let mut start = 0;
        for piece in tokens.chunks(PIECE) {
            let mut plan = BatchPlan::default();
            plan.push(piece, start, &pages);
            let found = runner.watched_step(&plan, &mut |flow, module| {
                let first = first_not_finite(&backend.read(&flow.residual)?);
                let place = |first| NotFinite { module: module(), position: start + first / hidden };
                Ok(first.map(place))
            })?;
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

/// Looks at the residual stream behind a module, whose name is asked for where it matters.
type Look<'a, B> = dyn FnMut(&Flow<B>, &dyn Fn() -> String) -> Result<Option<NotFinite>> + 'a;

impl<B: Backend> Runner<'_, B> {
    /// A [`step`](Self::step) that stops at the first module behind which `look` finds something.
    fn watched_step(&mut self, plan: &BatchPlan, look: &mut Look<'_, B>) -> Result<Option<NotFinite>> {
        let decoder = self.decoder();
        let Decoder { backend, embedding, blocks, ropes, .. } = decoder;
        decoder.check(plan)?;
        let batch = &backend.batch(plan)?;
        let (flow, scratch, kv) = self.parts();
        flow.restart();
        backend.embed(embedding, batch, decoder.embedding_scale(), &mut flow.residual)?;
        if let found @ Some(_) = look(flow, &|| names::EMBEDDING.into())? {
            return Ok(found);
        }
        for (layer, block) in blocks.iter().enumerate() {
            let mut step = Step { backend, ropes, kv, layer, batch, scratch };
            for site in [Site::Qkv, Site::O, Site::GateUp] {
                block.advance(&mut step, flow, site)?;
            }
            if let found @ Some(_) = look(flow, &|| names::linear(layer, "self_attn"))? {
                return Ok(found);
            }
            block.advance(&mut step, flow, Site::Down)?;
            block.finish(&mut step, flow)?;
            if let found @ Some(_) = look(flow, &|| names::linear(layer, "mlp"))? {
                return Ok(found);
            }
        }
        Ok(None)
    }
}
