//! Steps of a decoder, with all the memory that they take.

use std::borrow::Cow;

use qqq_backend::{Backend, BatchPlan, KvDType, KvLayout, Pick, Picked, pages_for};

use crate::{
    Decoder, Result,
    block::{Flow, Scratch, Watch},
    rope::{self, RopeChoice},
};

/// Rotary embeddings beside the original ones that are kept for sequences to come.
const KEPT_ROPES: usize = 16;

/// Runs a decoder step by step. It owns the activations and the pool of KV pages; the decoder owns weights, and who has
/// which page is for the caller to say, in each step's [`BatchPlan`].
pub struct Runner<'d, B: Backend> {
    decoder: &'d Decoder<B>,
    kv: B::KvPool,
    flow: Flow<B>,
    scratch: Scratch<B>,
    /// The step at hand, in memory that the next one takes over.
    batch: Option<B::Batch>,
    /// The rotary embedding of the sequences of the next step.
    rope: RopeChoice,
    /// Those beside the decoder's that steps have had, the newest one last.
    ropes: Vec<(RopeChoice, Vec<B::Rope>)>,
    /// Sequences of the last step, if each of them had one token.
    decoding: Option<usize>,
    /// That step, recorded.
    graph: Option<B::Graph>,
    /// Rows whose logits are asked for.
    gathered: B::Tensor,
    head_input: B::Input,
    logits: B::Tensor,
    picks: B::Picks,
    /// What was last picked of which rows.
    picked: Option<(Vec<usize>, Pick)>,
    /// That, recorded, with what comes before it.
    pick_graph: Option<B::Graph>,
}

impl<'d, B: Backend> Runner<'d, B> {
    /// With a pool of `pages` pages and room for steps of `rows` tokens; larger steps take more memory when they come.
    ///
    /// # Errors
    /// The backend has not the memory.
    pub fn new(decoder: &'d Decoder<B>, dtype: KvDType, pages: usize, rows: usize) -> Result<Self> {
        let (b, config) = (&decoder.backend, &*decoder.config);
        let layout = KvLayout {
            num_layers: decoder.blocks.len(),
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            dtype,
        };
        let width = config.hidden_size.max(config.num_heads * config.head_dim);
        Ok(Self {
            decoder,
            kv: b.kv_pool(layout, pages)?,
            flow: Flow::new(
                b.tensor(rows, config.hidden_size)?,
                b.input(rows, width)?,
                b.input(rows, config.intermediate_size)?,
            ),
            scratch: Scratch::new(b, config, rows)?,
            batch: None,
            rope: RopeChoice::Original,
            ropes: Vec::new(),
            decoding: None,
            graph: None,
            gathered: b.tensor(rows, config.hidden_size)?,
            head_input: b.input(rows, config.hidden_size)?,
            logits: b.tensor(1, config.vocab_size)?,
            picks: b.picks()?,
            picked: None,
            pick_graph: None,
        })
    }

    /// For a sequence that can reach `positions` tokens, with its rotary embedding; or for several, one after the other or at
    /// once, that take as many positions together.
    ///
    /// # Errors
    /// As [`Runner::new`].
    pub fn for_positions(decoder: &'d Decoder<B>, dtype: KvDType, positions: usize) -> Result<Self> {
        let mut runner = Self::new(decoder, dtype, pages_for(positions), positions)?;
        runner.choose_rope(RopeChoice::new(&decoder.config, positions))?;
        Ok(runner)
    }

    /// From now on steps are of sequences with this rotary embedding; at first it is the original one. All steps of a sequence
    /// must have the same, because keys in the cache stay as they were turned.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn choose_rope(&mut self, choice: RopeChoice) -> Result<()> {
        if choice == self.rope {
            return Ok(());
        }
        // A recorded step has the tables of the embedding that it was recorded with.
        (self.graph, self.decoding) = (None, None);
        if choice != RopeChoice::Original && !self.ropes.iter().any(|(known, _)| *known == choice) {
            let (b, config) = (&self.decoder.backend, &*self.decoder.config);
            let ropes = rope::embeddings(b, config, choice, choice.longest(config))?;
            if self.ropes.len() == KEPT_ROPES {
                self.ropes.remove(0);
            }
            self.ropes.push((choice, ropes));
        }
        self.rope = choice;
        Ok(())
    }

    /// Room for `pages` pages in the pool, if it has less; those that it has keep what they hold. This takes the more time the
    /// more they hold, so that a pool should not grow by a page at a time.
    ///
    /// # Errors
    /// The backend has not the memory; the pool can be used as it was.
    pub fn grow(&mut self, pages: usize) -> Result<()> {
        Ok(self.decoder.backend.grow_kv(&mut self.kv, pages)?)
    }

    /// The decoder that is run, with its configuration.
    pub fn decoder(&self) -> &'d Decoder<B> {
        self.decoder
    }

    /// Runs new tokens.
    ///
    /// # Errors
    /// A plan that [`Decoder::check`] refuses, before anything is written; those of the backend.
    pub fn step(&mut self, plan: &BatchPlan) -> Result<()> {
        let batch = self.prepare(plan)?;
        let outcome = self.run(plan, &batch);
        self.batch = Some(batch);
        outcome
    }

    /// As [`step`](Self::step); `watch` sees the rows at each site of each layer.
    pub(crate) fn watched_step(&mut self, plan: &BatchPlan, watch: &mut Watch<'_, B>) -> Result<()> {
        let batch = self.prepare(plan)?;
        self.decoding = None;
        let outcome = self.forward(plan, &batch, watch);
        self.batch = Some(batch);
        outcome
    }

    /// The batch of a step, in the memory of the last one's.
    fn prepare(&mut self, plan: &BatchPlan) -> Result<B::Batch> {
        self.decoder.check(plan, self.rope)?;
        let b = &self.decoder.backend;
        match self.batch.take() {
            Some(mut batch) => {
                b.refill(&mut batch, plan)?;
                Ok(batch)
            }
            None => Ok(b.batch(plan)?),
        }
    }

    /// Replays the step, if it is like the last one, or has the backend do it operation by operation.
    fn run(&mut self, plan: &BatchPlan, batch: &B::Batch) -> Result<()> {
        let decoding = plan.spans.iter().all(|span| span.len == 1).then_some(plan.spans.len());
        // Memory has its place after the first step of a kind; from the second on it is recorded.
        let again = decoding.is_some() && decoding == self.decoding;
        self.decoding = decoding;
        let graph = self.graph.take();
        let b = &self.decoder.backend;
        let mut job = || self.forward(plan, batch, &mut |_, _, _| Ok(()));
        if again {
            self.graph = replayed(b, graph, batch, &mut job)?;
            return Ok(());
        }
        job()
    }

    fn forward(&mut self, plan: &BatchPlan, batch: &B::Batch, watch: &mut Watch<'_, B>) -> Result<()> {
        let Self { decoder, flow, scratch, kv, rope, ropes, .. } = self;
        let own = ropes.iter().find(|(choice, _)| choice == rope);
        let ropes = own.map_or(&decoder.ropes, |(_, ropes)| ropes);
        decoder.forward(ropes, batch, plan.rows(), flow, scratch, kv, watch)
    }

    /// States of the last step's tokens before the last norm, one row a token.
    pub fn hidden(&self) -> &B::Tensor {
        &self.flow.residual
    }

    /// Logits of some rows of the last step, shape `rows.len() x vocab`.
    ///
    /// # Errors
    /// A row that is not there; those of the backend.
    pub fn logits(&mut self, rows: &[usize]) -> Result<Cow<'_, [f32]>> {
        let decoder = self.decoder;
        Ok(decoder.backend.read(self.make_logits(rows)?)?)
    }

    /// As [`logits`](Self::logits), where the backend has them.
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn make_logits(&mut self, rows: &[usize]) -> Result<&B::Tensor> {
        self.run_last_norm(rows)?;
        let Decoder { backend, head, .. } = self.decoder;
        backend.linear(&self.head_input, head, &mut self.logits)?;
        Ok(&self.logits)
    }

    /// The `count` largest logits of some rows with their tokens, largest first, lower ids first among equals. They are
    /// those of [`logits`](Self::logits) but for the order of sums, as [`Backend::pick`] says, and may take far less time. Of a
    /// row with logits that are not finite, the first of these alone.
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn top_logits(&mut self, rows: &[usize], count: usize) -> Result<Vec<Vec<(f32, u32)>>> {
        let picked = self.pick(rows, Pick::largest(count), &[])?;
        Ok(picked.into_iter().map(|picked| picked.largest).collect())
    }

    /// What is asked of the logits of some rows. `chances` are a number in [0, 1) for each of them where a token is drawn, which
    /// a backend must be [able to](Backend::DRAWS).
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn pick(&mut self, rows: &[usize], pick: Pick, chances: &[f64]) -> Result<Vec<Picked>> {
        let b = &self.decoder.backend;
        if pick.temperature.is_some() {
            b.set_chances(&mut self.picks, chances)?;
        }
        let again = self.picked.as_ref().is_some_and(|(known, before)| known == rows && *before == pick);
        if !again {
            (self.picked, self.pick_graph) = (Some((rows.to_vec(), pick)), None);
        }
        // The step's batch tells whether steps are alike.
        let batch = self.batch.take();
        let outcome = match &batch {
            Some(batch) if again && self.decoding.is_some() => {
                let graph = self.pick_graph.take();
                let made = replayed(b, graph, batch, &mut || self.find_picks(rows, pick));
                made.map(|graph| self.pick_graph = graph)
            }
            _ => self.find_picks(rows, pick),
        };
        self.batch = batch;
        outcome?;
        Ok(self.decoder.backend.read_picks(&self.picks)?)
    }

    fn find_picks(&mut self, rows: &[usize], pick: Pick) -> Result<()> {
        self.run_last_norm(rows)?;
        let Decoder { backend, head, .. } = self.decoder;
        Ok(backend.pick(&self.head_input, head, pick, &mut self.logits, &mut self.picks)?)
    }

    /// What some rows lose that are to predict these tokens: `-log p`, not finite where logits are not. `None` where a device
    /// has nothing faster than to read [`logits`](Self::logits).
    ///
    /// # Errors
    /// As [`logits`](Self::logits), and as many tokens as rows.
    pub fn losses(&mut self, rows: &[usize], tokens: &[u32]) -> Result<Option<Vec<f64>>> {
        if !B::SUMS_LOSSES {
            return Ok(None);
        }
        self.run_last_norm(rows)?;
        let Decoder { backend, head, .. } = self.decoder;
        Ok(backend.losses(&self.head_input, head, tokens, &mut self.logits)?)
    }

    fn run_last_norm(&mut self, rows: &[usize]) -> Result<()> {
        self.decoder.backend.gather(&self.flow.residual, rows, &mut self.gathered)?;
        self.decoder.head_input(&mut self.gathered, &mut self.head_input)
    }
}

/// Does a job that works on `batch`: by what was recorded of it, if that serves, else by a recording that is made now, else
/// operation by operation. Gives what serves the next time.
fn replayed<B: Backend>(
    b: &B,
    graph: Option<B::Graph>,
    batch: &B::Batch,
    job: &mut dyn FnMut() -> Result<()>,
) -> Result<Option<B::Graph>> {
    let serves = |graph: &Option<B::Graph>| match graph {
        Some(graph) => b.replay(graph, batch),
        None => Ok(false),
    };
    if serves(&graph)? {
        return Ok(graph);
    }
    let graph = b.record(batch, job)?;
    if serves(&graph)? {
        return Ok(graph);
    }
    job()?;
    Ok(None)
}
