//! Windows of text that calibration does not see, on their way through the float model and through the quantized one: at the
//! end their logits say how far the one is from the other.
//!
//! The float model is the checkpoint as it is stored, layer by layer, not what the recipe's transformation has made of it:
//! what that does wrong counts as well. The quantized one is what is being written, with the inputs that it has at run time.

use qqq_backend::{Calibrate, InputKind, pool::num_threads};
use qqq_formats::{Checkpoint, ModelConfig};
use qqq_model::{
    Block, BlockNorms, LinearLayer, ModelError, OutputHead, Site, Sites,
    block::{Flow, Layer, Step},
    names,
    scores::{Divergence, DivergenceSums, compare_logits, rows_at_a_time},
};

use crate::{
    Magnitudes, Recipe, Result, activations,
    float_linear::module,
    windows::{Surroundings, Window, Windows},
};

/// Tokens of a window where nothing is calibrated: enough to see what is broken, in little time.
const UNCALIBRATED_WINDOW: usize = 256;

/// Held-out windows, beyond those on which the result is compared with the float model, by which something is decided.
pub(crate) const DECIDING_WINDOWS: usize = 4;

/// How much text is held out, at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeldText {
    /// Windows.
    pub windows: usize,
    /// Tokens of each.
    pub window: usize,
}

impl HeldText {
    /// What a recipe holds out where `windows` windows are asked for: windows as long as those of calibration, short ones where
    /// there is none.
    pub fn new(config: &ModelConfig, recipe: &Recipe, windows: usize) -> Self {
        let window = match recipe.calibrates() {
            true => recipe.calibration.window,
            false => UNCALIBRATED_WINDOW.min(config.max_position_embeddings),
        };
        Self { windows, window }
    }

    /// Tokens of all windows.
    pub fn tokens(&self) -> f64 {
        self.windows as f64 * self.window as f64
    }
}

/// Windows in both models, which stand before the same block or at the same site of it.
pub(crate) struct HeldOut<'a, B: Calibrate> {
    tokens: Vec<Vec<u32>>,
    float: Windows<'a, B>,
    quantized: Windows<'a, B>,
    /// Whether it is looked at how far inputs reach.
    watched: bool,
    /// How far they do in the first window, at the sites of the block in which it was last.
    reach: [Sites<Option<Magnitudes>>; 2],
}

/// Whose inputs.
#[derive(Clone, Copy)]
enum Model {
    Float,
    Quantized,
}

/// What the logits of both models say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Measured {
    /// All of them are numbers.
    Numbers(Divergence),
    /// Some of the float model's are not, so there is nothing to compare with; this says what.
    FloatNotFinite(String),
    /// Some of the quantized model's are not.
    NotFinite(String),
}

impl<'a, B: Calibrate> HeldOut<'a, B> {
    /// Of these tokens, whose states enter the first block, or stand before another one.
    pub fn new(
        around: Surroundings<'a, B>,
        tokens: Vec<Vec<u32>>,
        float: Vec<Window<B>>,
        quantized: Vec<Window<B>>,
    ) -> Self {
        let most = tokens.iter().map(Vec::len).max().unwrap_or(0);
        let windows = |windows| Windows::new(around, windows, most);
        let reach = [(); 2].map(|()| Sites::new([None, None, None, None]));
        Self { float: windows(float), quantized: windows(quantized), tokens, watched: false, reach }
    }

    /// From here on it is looked at [how far inputs reach](Self::reach).
    pub fn watch(&mut self) {
        self.watched = true;
    }

    /// The tokens, and the windows that enter the model that is transformed and quantized.
    pub fn into_transformed(self) -> (Vec<Vec<u32>>, Vec<Window<B>>) {
        (self.tokens, self.quantized.windows)
    }

    /// Leaves the first `compared` windows out, where there are others; else all stay, and it says `false`.
    pub fn skip(&mut self, compared: usize) -> bool {
        let others = self.tokens.len() > compared;
        if others {
            self.tokens.drain(..compared);
            self.float.windows.drain(..compared);
            self.quantized.windows.drain(..compared);
        }
        others
    }

    /// Tokens of each window.
    pub fn lengths(&self) -> Vec<usize> {
        self.tokens.iter().map(Vec::len).collect()
    }

    /// Hidden states in the float model, then those in the quantized one.
    pub fn states(&self) -> impl Iterator<Item = &B::Tensor> {
        self.float.states().chain(self.quantized.states())
    }

    /// Takes the windows through block `index` of the float model, of which one layer is in memory at a time.
    ///
    /// # Errors
    /// Those of reading it, of the backend, and of `on_site`, which is told which share is done.
    pub fn float_block(
        &mut self,
        checkpoint: &Checkpoint,
        index: usize,
        on_site: &mut dyn FnMut(f64) -> Result<()>,
    ) -> Result<()> {
        let Surroundings { backend: b, config, .. } = self.float.around;
        let norms = BlockNorms::read(checkpoint, index)?;
        let mut block = Block::without_layers(b, config, index, norms, InputKind::Float)?;
        advance(&mut self.float, &block, Site::Qkv)?;
        for (done, site) in Site::ALL.into_iter().enumerate() {
            self.reached(Model::Float, site)?;
            let LinearLayer { weight, bias } = site.read(checkpoint, index)?;
            let linear = b.linear_weight(weight, bias).map_err(|source| {
                let name = names::linear(index, module(site));
                ModelError::Backend { name, source }
            })?;
            *block.layer_mut(site) = Layer::Ready(linear);
            go_on(&mut self.float, &block, site)?;
            *block.layer_mut(site) = Layer::Awaited(InputKind::Float);
            on_site((done + 1) as f64 / Site::ALL.len() as f64)?;
        }
        Ok(())
    }

    /// Takes the windows to the input of a site of a quantized block; the layer before has its weight.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn advance(&mut self, block: &Block<B>, site: Site) -> Result<()> {
        advance(&mut self.quantized, block, site)?;
        self.reached(Model::Quantized, site)
    }

    /// How far inputs reach at a site of the block that the windows were last in, in the float model and in the quantized one;
    /// none where nobody [watches](Self::watch).
    pub fn reach(&mut self, site: Site) -> Option<(Magnitudes, Magnitudes)> {
        let [float, quantized] = &mut self.reach;
        float[site].take().zip(quantized[site].take())
    }

    /// Windows of a model have come to a site.
    fn reached(&mut self, model: Model, site: Site) -> Result<()> {
        if !self.watched {
            return Ok(());
        }
        let windows = match model {
            Model::Float => &self.float,
            Model::Quantized => &self.quantized,
        };
        let Surroundings { backend, config, .. } = windows.around;
        let largest = match windows.windows.first() {
            Some(window) => activations::largest(backend, window, site.in_features(config))?,
            None => None,
        };
        self.reach[model as usize][site] = largest.map(|channels| Magnitudes::of(&channels));
        Ok(())
    }

    /// Leaves a quantized block, whose last layer has its weight.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn leave(&mut self, block: &Block<B>) -> Result<()> {
        walk(&mut self.quantized, |step, flow| Ok(block.finish(step, flow)?))
    }

    /// From a site of a quantized block, whose layer has its weight, to the next one, or out of the block.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn go_on(&mut self, block: &Block<B>, site: Site) -> Result<()> {
        go_on(&mut self.quantized, block, site)?;
        site.next().map_or(Ok(()), |next| self.reached(Model::Quantized, next))
    }

    /// Takes the windows through a quantized block whose layers are all there.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn pass(&mut self, block: &Block<B>) -> Result<()> {
        Site::ALL.into_iter().try_for_each(|site| self.advance(block, site))?;
        self.leave(block)
    }

    /// Compares what the models make of the states behind the last block; nothing predicts the first token of a window.
    ///
    /// # Errors
    /// Those of the backend and of `on_rows`, which is told which share is done.
    pub fn measure(
        &self,
        float_head: &mut OutputHead<B>,
        quantized_head: &mut OutputHead<B>,
        on_rows: &mut dyn FnMut(f64) -> Result<()>,
    ) -> Result<Measured> {
        let Surroundings { backend: b, config, .. } = self.float.around;
        let all: usize = self.predictions();
        let mut sums = DivergenceSums::default();
        let pairs = self.float.states().zip(self.quantized.states()).zip(&self.tokens);
        for (window, ((float, quantized), tokens)) in pairs.enumerate() {
            let place = |(at, value): (usize, f32), what: &str| {
                format!("{what} of token {} of window {window} become {value}", at / config.hidden_size)
            };
            if let Some(found) = b.first_not_finite(float)? {
                return Ok(Measured::FloatNotFinite(place(found, "the hidden states")));
            }
            if let Some(found) = b.first_not_finite(quantized)? {
                return Ok(Measured::NotFinite(place(found, "the hidden states")));
            }
            let rows: Vec<usize> = (0..tokens.len() - 1).collect();
            for rows in rows.chunks(rows_at_a_time(config.vocab_size)) {
                let p = float_head.make_logits(b, float, rows)?;
                let q = quantized_head.make_logits(b, quantized, rows)?;
                let targets: Vec<u32> = rows.iter().map(|row| tokens[row + 1]).collect();
                for (row, pair) in rows.iter().zip(compare_logits(b, p, q, &targets)?) {
                    let what = format!("the logits for token {} of window {window} are not finite", row + 1);
                    if !pair.baseline_nll.is_finite() {
                        return Ok(Measured::FloatNotFinite(what));
                    }
                    if !pair.is_finite() {
                        return Ok(Measured::NotFinite(what));
                    }
                    sums.add(window, &pair);
                }
                on_rows(sums.tokens() as f64 / all as f64)?;
            }
        }
        let divergence = sums.divergence();
        let (float, quantized) = sums.losses();
        let unlikely = |nll: f64| {
            format!("the text is so unlikely ({nll:.0} nats a token) that perplexity is beyond any number")
        };
        Ok(match divergence {
            Divergence { baseline_perplexity, .. } if !baseline_perplexity.is_finite() => {
                Measured::FloatNotFinite(unlikely(float))
            }
            Divergence { perplexity, .. } if !perplexity.is_finite() => {
                Measured::NotFinite(unlikely(quantized))
            }
            divergence => Measured::Numbers(divergence),
        })
    }

    /// Windows, and predictions that are compared.
    pub fn size(&self) -> (usize, usize) {
        (self.tokens.len(), self.predictions())
    }

    fn predictions(&self) -> usize {
        self.tokens.iter().map(|tokens| tokens.len() - 1).sum()
    }
}

/// The states of tokens that enter the float model.
///
/// # Errors
/// A token outside the vocabulary, an embedding that cannot be read; those of the backend.
pub(crate) fn float_window<B: Calibrate>(b: &B, checkpoint: &Checkpoint, ids: &[u32]) -> Result<Window<B>> {
    let config = &checkpoint.config;
    let shape = [config.vocab_size, config.hidden_size];
    let scale = config.graph.embedding_scale as f32;
    let mut states = Vec::with_capacity(ids.len() * config.hidden_size);
    for &id in ids {
        let id = id as usize;
        // Of a large table a few rows are needed.
        let row = checkpoint.tensors.float_rows(names::EMBEDDING, &shape, id..id + 1)?.into_f32();
        states.extend(row.into_iter().map(|x| x * scale));
    }
    Window::new(b, b.upload(ids.len(), config.hidden_size, states)?, ids.len())
}

/// Windows that run at the same time on a host of so many threads: where there are fewer windows than threads, each takes all.
pub(crate) fn lanes(windows: usize, threads: usize) -> usize {
    if windows >= threads { threads } else { 1 }
}

/// Does a job for all windows.
fn walk<B: Calibrate>(
    windows: &mut Windows<'_, B>,
    job: impl Fn(&mut Step<'_, B>, &mut Flow<B>) -> Result<()> + Sync,
) -> Result<()> {
    let b = windows.around.backend;
    let workshops = windows.workshops();
    let most = lanes(windows.windows.len(), num_threads());
    windows.windows.chunks_mut(most).try_for_each(|wave| {
        let job = |step: &mut Step<'_, B>, flow: &mut Flow<B>| -> Result<()> {
            job(step, flow)?;
            Ok(flow.shed(b)?)
        };
        match wave {
            [window] => workshops.work(window, job),
            wave => workshops.each(wave, job),
        }
    })
}

fn advance<B: Calibrate>(windows: &mut Windows<'_, B>, block: &Block<B>, site: Site) -> Result<()> {
    walk(windows, |step, flow| Ok(block.advance(step, flow, site)?))
}

fn go_on<B: Calibrate>(windows: &mut Windows<'_, B>, block: &Block<B>, site: Site) -> Result<()> {
    match site.next() {
        Some(next) => advance(windows, block, next),
        None => walk(windows, |step, flow| Ok(block.finish(step, flow)?)),
    }
}
