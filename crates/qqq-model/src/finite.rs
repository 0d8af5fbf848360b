//! Where a model's numbers stop being finite.

use qqq_backend::{Backend, KvDType, Span, first_not_finite};

use crate::{Decoder, Result, names};

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
    /// As [`Decoder::hidden`].
    pub fn first_not_finite(&self, tokens: &[u32]) -> Result<Option<NotFinite>> {
        let b = &self.backend;
        let mut kv = self.kv_cache(KvDType::F32);
        let slot = b.kv_add_slot(&mut kv);
        let mut start = 0;
        for piece in tokens.chunks(PIECE) {
            let spans = [Span { slot, start, len: piece.len() }];
            self.check(piece, &spans)?;
            let mut hidden = b.embed(&self.embedding, piece);
            let find = |hidden: &B::Tensor, module: &dyn Fn() -> String| {
                let first = first_not_finite(&b.to_host(hidden))?;
                Some(NotFinite { module: module(), position: start + first / self.config.hidden_size })
            };
            if let found @ Some(_) = find(&hidden, &|| names::EMBEDDING.into()) {
                return Ok(found);
            }
            for (layer, block) in self.blocks.iter().enumerate() {
                let x = block.attention_input(b, &hidden);
                let attention = block.attention(b, &x, &self.rope, &mut kv, layer, &spans);
                let attention = b.activation(attention, b.input_kind(&block.o));
                b.linear_add(&mut hidden, &attention, &block.o);
                if let found @ Some(_) = find(&hidden, &|| names::linear(layer, "self_attn")) {
                    return Ok(found);
                }
                let x = block.mlp_input(b, &hidden);
                let inner = block.mlp_hidden(b, &x);
                b.linear_add(&mut hidden, &inner, &block.down);
                if let found @ Some(_) = find(&hidden, &|| names::linear(layer, "mlp")) {
                    return Ok(found);
                }
            }
            start += piece.len();
            if start == tokens.len() {
                let last = b.select_rows(&hidden, &[piece.len() - 1]);
                if first_not_finite(&b.to_host(&self.logits(&last))).is_some() {
                    let module = names::LM_HEAD_MODULE.into();
                    return Ok(Some(NotFinite { module, position: start - 1 }));
                }
            }
        }
        Ok(None)
    }
}
