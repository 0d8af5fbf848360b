//! The end of a decoder alone: the last norm and the output head.

use std::borrow::Cow;

use qqq_backend::{Backend, Norm};
use qqq_formats::{Checkpoint, LinearWeight, ModelConfig};

use crate::{Result, block::at, names, reading};

/// Last norm and output head of a checkpoint, without the blocks before them.
pub struct OutputHead<B: Backend> {
    norm: Norm<B>,
    head: B::Linear,
    gathered: B::Tensor,
    input: B::Input,
    logits: B::Tensor,
}

impl<B: Backend> OutputHead<B> {
    /// Reads them. Nothing of the checkpoint but these is looked at.
    ///
    /// # Errors
    /// Tensors that are missing or damaged; those of the backend.
    pub fn load(b: &B, checkpoint: &Checkpoint) -> Result<Self> {
        let config = &checkpoint.config;
        let (vocab, width) = (config.vocab_size, config.hidden_size);
        let weight = match config.tie_word_embeddings {
            true => {
                let data = reading::matrix(checkpoint.tensors.as_ref(), names::EMBEDDING, [vocab, width])?;
                LinearWeight::Float { out_features: vocab, in_features: width, data }
            }
            false => reading::whole(checkpoint.layer(names::LM_HEAD_MODULE, vocab, width)?)?,
        };
        Self::new(b, config, checkpoint.tensors.f32(names::FINAL_NORM, &[width])?, weight)
    }

    /// Of the last norm's weight (`hidden`), as it is stored, and the head's (`vocab x hidden`).
    ///
    /// # Errors
    /// Those of the backend.
    pub fn new(b: &B, config: &ModelConfig, norm: Vec<f32>, weight: LinearWeight) -> Result<Self> {
        let (vocab, width) = (config.vocab_size, config.hidden_size);
        let name = if config.tie_word_embeddings { names::EMBEDDING } else { names::LM_HEAD };
        Ok(Self {
            norm: final_norm_of(b, config, norm)?,
            head: b.head_weight(weight).map_err(|e| at(name, e))?,
            gathered: b.tensor(1, width)?,
            input: b.input(1, width)?,
            logits: b.tensor(1, vocab)?,
        })
    }

    /// Logits of some rows of `states`, which are hidden states behind the last block: shape `rows.len() x vocab`.
    ///
    /// # Errors
    /// A row that is not there; those of the backend.
    pub fn logits(&mut self, b: &B, states: &B::Tensor, rows: &[usize]) -> Result<Cow<'_, [f32]>> {
        Ok(b.read(self.make_logits(b, states, rows)?)?)
    }

    /// The logits that were made last, to be kept while others are made.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn take_logits(&mut self, b: &B) -> Result<B::Tensor> {
        Ok(std::mem::replace(&mut self.logits, b.tensor(0, 0)?))
    }

    /// As [`logits`](Self::logits), where the backend has them.
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn make_logits(&mut self, b: &B, states: &B::Tensor, rows: &[usize]) -> Result<&B::Tensor> {
        b.gather(states, rows, &mut self.gathered)?;
        let kind = b.input_kind(&self.head);
        b.add_norm(&mut self.gathered, None, &self.norm, kind, &mut self.input)?;
        b.linear(&self.input, &self.head, &mut self.logits)?;
        Ok(&self.logits)
    }
}

/// The norm before the output head.
pub(crate) fn final_norm<B: Backend>(b: &B, checkpoint: &Checkpoint) -> Result<Norm<B>> {
    let config = &checkpoint.config;
    final_norm_of(b, config, checkpoint.tensors.f32(names::FINAL_NORM, &[config.hidden_size])?)
}

/// The norm before the output head, of a stored weight of length `hidden`.
///
/// # Errors
/// Those of the backend.
pub fn final_norm_of<B: Backend>(b: &B, config: &ModelConfig, mut weight: Vec<f32>) -> Result<Norm<B>> {
    // The output head is linear: what divides its outputs may as well divide its inputs.
    let (offset, divisor) = (config.graph.norm_offset, config.graph.logit_divisor as f32);
    weight.iter_mut().for_each(|w| *w = (*w + offset) / divisor);
    Ok(Norm { weight: b.vector(weight)?, eps: config.rms_norm_eps })
}
