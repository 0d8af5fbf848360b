//! The decoder: embedding, blocks of attention and gated MLP, norm, output head (Touvron et al., arXiv 2302.13971;
//! grouped-query attention of Llama 2, arXiv 2307.09288; sliding window of Mistral, arXiv 2310.06825; head norms
//! of Qwen3, arXiv 2505.09388).

use std::sync::Arc;

use qqq_backend::{Backend, BatchPlan, Norm};
use qqq_formats::{Checkpoint, ModelConfig};

use crate::{
    Block, BlockWeights, ModelError, Result,
    block::{Flow, Scratch, Step, Watch, at, settle},
    names,
    output_head::final_norm,
    prefill::Prefill,
    reading,
    rope::{self, RopeChoice},
    weights,
};

/// A whole decoder.
pub struct Decoder<B: Backend> {
    /// Backend it runs on.
    pub backend: B,
    /// Shapes and graph of the model.
    pub config: Arc<ModelConfig>,
    /// Embedding table, `vocab x hidden`.
    pub embedding: B::Embedding,
    /// Blocks in order.
    pub blocks: Vec<Block<B>>,
    /// Norm before the head.
    pub final_norm: Norm<B>,
    /// Output head, `vocab x hidden`; the embedding's values where they are tied.
    pub head: B::Linear,
    /// Rotary embeddings of [`RopeChoice::Original`].
    pub ropes: Vec<B::Rope>,
    /// The prompt in hand.
    pub prefill: Prefill,
}

impl<B: Backend> Decoder<B> {
    /// Reads all weights of a checkpoint, block by block, on all threads: besides the prepared model, one block is in memory.
    /// The files are not needed afterwards, whatever becomes of them.
    ///
    /// # Errors
    /// Whatever [`BlockWeights::read`] refuses; tensors that the architecture does not know; an output head that is
    /// missing though `tie_word_embeddings` is false, or that is there and differs from the embedding though
    /// it is true; weights that the backend refuses; files that were changed since the checkpoint was opened.
    pub fn load(backend: B, checkpoint: &Checkpoint) -> Result<Self> {
        Self::load_with(backend, checkpoint, &mut |_, _| true)
    }

    /// As [`Decoder::load`]. `progress` is told after each part how many bytes of the checkpoint's tensors are loaded, and how
    /// many there are; it returns whether to go on.
    ///
    /// # Errors
    /// As [`Decoder::load`]; [`ModelError::Interrupted`] if `progress` returned `false`.
    pub fn load_with(
        backend: B,
        checkpoint: &Checkpoint,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Self> {
        let config = Arc::new(checkpoint.config.clone());
        weights::check_tensors(checkpoint)?;
        let mut parts = Parts::new(checkpoint, progress);
        parts.report()?;
        let (vocab, width) = (config.vocab_size, config.hidden_size);
        let embedding = reading::matrix(checkpoint.tensors.as_ref(), names::EMBEDDING, [vocab, width])?;
        let embedding = backend.embedding(vocab, width, embedding).map_err(|e| at(names::EMBEDDING, e))?;
        let head = if config.tie_word_embeddings {
            backend.tied_head(&embedding)
        } else {
            let layer = checkpoint.layer(names::LM_HEAD_MODULE, vocab, width)?;
            backend.head_weight(reading::whole(layer)?)
        }
        .map_err(|e| at(names::LM_HEAD, e))?;
        let final_norm = final_norm(&backend, checkpoint)?;
        parts.loaded(parts.ends)?;
        let mut blocks = Vec::with_capacity(config.num_layers);
        for i in 0..config.num_layers {
            blocks.push(Block::new(&backend, &config, i, BlockWeights::read(checkpoint, i)?)?);
            parts.loaded(parts.blocks[i])?;
        }
        let original = RopeChoice::Original;
        let ropes = rope::embeddings(&backend, &config, original, original.longest(&config))?;
        checkpoint.inputs.check()?;
        Ok(Self { backend, config, embedding, blocks, final_norm, head, ropes, prefill: Prefill::default() })
    }

    /// Runs a batch's tokens, whose plan must have been [checked](Self::check), through all blocks: `flow` then holds their
    /// states before the last norm, one row a token. `ropes` are the rotary embeddings of their sequences. `watch` sees them
    /// on the way.
    ///
    /// # Errors
    /// Those of the backend and of `watch`.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn forward(
        &self,
        ropes: &[B::Rope],
        batch: &B::Batch,
        rows: usize,
        flow: &mut Flow<B>,
        scratch: &mut Scratch<B>,
        kv: &mut B::KvPool,
        watch: &mut Watch<'_, B>,
    ) -> Result<()> {
        let backend = &self.backend;
        flow.restart();
        let scale = self.config.graph.embedding_scale as f32;
        backend.embed(&self.embedding, batch, scale, &mut flow.residual)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let mut step = Step { backend, ropes, kv, layer, batch, scratch };
            block.forward(&mut step, flow, watch)?;
            self.prefill.pass(rows, layer + 1, self.blocks.len());
        }
        settle(backend, flow, scratch)
    }

    /// Checks a step's tokens and positions against the model and the rotary embedding of its sequences. Whether they fit its
    /// pages is for the backend to say, which makes a batch of them.
    ///
    /// # Errors
    /// A token id outside the vocabulary, a sequence beyond `max_position_embeddings` or the [`RopeChoice::longest`] one, a
    /// plan without tokens.
    pub fn check(&self, plan: &BatchPlan, choice: RopeChoice) -> Result<()> {
        let vocab = self.config.vocab_size;
        if let Some((i, id)) = plan.tokens.iter().enumerate().find(|(_, id)| **id as usize >= vocab) {
            return Err(ModelError::Request(format!(
                "token {id} (number {i} of the batch) is outside the model's vocabulary of {vocab}"
            )));
        }
        let (context, longest) = (self.config.max_position_embeddings, choice.longest(&self.config));
        for span in &plan.spans {
            if span.start.checked_add(span.len).is_some_and(|end| end <= longest) {
                continue;
            }
            let end = if longest < context {
                format!(
                    "the {longest} tokens for which its rotary embedding was chosen; choose that of longer sequences \
                     before its first token"
                )
            } else {
                format!("the model's context of {context}")
            };
            return Err(ModelError::Request(format!(
                "a sequence of {} and {} more tokens is longer than {end}",
                span.start, span.len
            )));
        }
        if plan.tokens.is_empty() {
            return Err(ModelError::Request("a batch without tokens".into()));
        }
        Ok(())
    }

    /// The last norm of rows of hidden states, as the input of the output head.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn head_input(&self, hidden: &mut B::Tensor, out: &mut B::Input) -> Result<()> {
        let kind = self.backend.input_kind(&self.head);
        Ok(self.backend.add_norm(hidden, None, &self.final_norm, kind, out)?)
    }
}

/// Bytes of a checkpoint's parts as they are loaded.
struct Parts<'a> {
    progress: &'a mut dyn FnMut(u64, u64) -> bool,
    /// Of each block.
    blocks: Vec<u64>,
    /// Of embedding, head and last norm.
    ends: u64,
    done: u64,
}

impl<'a> Parts<'a> {
    fn new(checkpoint: &Checkpoint, progress: &'a mut dyn FnMut(u64, u64) -> bool) -> Self {
        let mut parts = Parts { progress, blocks: vec![0; checkpoint.config.num_layers], ends: 0, done: 0 };
        for name in checkpoint.tensors.names() {
            let bytes = checkpoint.tensors.info(&name).map_or(0, |info| info.bytes);
            let block = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
            match block.and_then(|(n, _)| parts.blocks.get_mut(n.parse::<usize>().ok()?)) {
                Some(block) => *block += bytes,
                None => parts.ends += bytes,
            }
        }
        parts
    }

    /// More bytes are loaded.
    fn loaded(&mut self, bytes: u64) -> Result<()> {
        self.done += bytes;
        self.report()
    }

    fn report(&mut self) -> Result<()> {
        let total = self.ends + self.blocks.iter().sum::<u64>();
        if (self.progress)(self.done, total) { Ok(()) } else { Err(ModelError::Interrupted) }
    }
}
