//! Calibration windows on their way through the model, block by block.
//!
//! Every window walks through the same doors as a forward pass ([`Block::advance`]); calibration looks at the input of each
//! layer. Windows go in waves: the device runs those of a wave as it likes, and sums of a wave's lanes are merged in their
//! order, so that results do not depend on how many run at the same time. In a float pass a window adds to the sum of its
//! lane; in a pass of quantized layers the int8 inputs of a layer are kept, and their sum is made of all of them at once.

use std::sync::{Mutex, PoisonError};

use qqq_backend::{BatchPlan, Calibrate, KvLayout, pages_for};
use qqq_formats::ModelConfig;
use qqq_model::{
    Block, Site, Sites,
    block::{Flow, Mixer, Scratch, Step, head_layout},
};

use crate::{QuantError, Result};

/// Memory that the sums of all lanes may take, unless even [`MIN_LANES`] need more.
const SUM_BYTES: usize = 256 << 20;
const MIN_LANES: usize = 4;

/// Share of a stage's progress that its forward pass makes; the sum is the rest.
const FORWARD_SHARE: f64 = 0.7;

/// Told after every wave which share of the stage is done; an error stops the stage.
pub type OnWave<'a> = dyn FnMut(f64) -> Result<()> + 'a;

/// One calibration window.
pub struct Window<B: Calibrate> {
    /// The window's hidden states, and where in a block they stand.
    pub flow: Flow<B>,
    /// Its rows: one sequence from its start.
    pub batch: B::Batch,
}

impl<B: Calibrate> Window<B> {
    /// Of `tokens` states that enter the first block.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn new(b: &B, states: B::Tensor, tokens: usize) -> Result<Self> {
        Self::in_batch(b, states, b.batch(&BatchPlan::whole(tokens))?)
    }

    fn in_batch(b: &B, states: B::Tensor, batch: B::Batch) -> Result<Self> {
        Ok(Self { flow: Flow::new(states, b.input(0, 0)?, b.input(0, 0)?), batch })
    }

    /// Of tokens, whose states are rows of an embedding of width `hidden`, times `scale`.
    ///
    /// # Errors
    /// A token that the embedding does not have; those of the backend.
    pub fn embedded(b: &B, table: &B::Embedding, ids: &[u32], hidden: usize, scale: f32) -> Result<Self> {
        let batch = b.batch(&BatchPlan::sequences([ids]))?;
        let mut states = b.tensor(ids.len(), hidden)?;
        b.embed(table, &batch, scale, &mut states)?;
        Self::in_batch(b, states, batch)
    }
}

/// What a window works in while it runs.
pub struct Workshop<B: Calibrate> {
    /// What lies between the sites of a block.
    pub scratch: Scratch<B>,
    /// Keys and values of one layer and window.
    pub kv: B::KvPool,
}

/// The model around the blocks.
pub struct Surroundings<'a, B: Calibrate> {
    /// The device that calibrates.
    pub backend: &'a B,
    /// Shapes and graph of the model.
    pub config: &'a ModelConfig,
    /// Rotary embeddings of sequences of a window's length.
    pub ropes: &'a [B::Rope],
}

impl<B: Calibrate> Clone for Surroundings<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Calibrate> Copy for Surroundings<'_, B> {}

impl<'a, B: Calibrate> Surroundings<'a, B> {
    /// Memory for windows of `tokens` tokens.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn workshop(&self, tokens: usize) -> Result<Workshop<B>> {
        let heads = head_layout(self.config);
        let layout = KvLayout {
            num_layers: 1,
            num_kv_heads: heads.num_kv_heads,
            head_dim: heads.head_dim,
            dtype: self.backend.finest_kv(),
        };
        Ok(Workshop {
            scratch: Scratch::new(self.backend, self.config, tokens)?,
            kv: self.backend.kv_pool(layout, pages_for(tokens))?,
        })
    }

    /// What a block runs with.
    pub fn step<'s>(&self, workshop: &'s mut Workshop<B>, window: &'s B::Batch) -> Step<'s, B>
    where
        'a: 's,
    {
        let Workshop { scratch, kv } = workshop;
        Step { backend: self.backend, ropes: self.ropes, kv, layer: 0, batch: window, scratch }
    }
}

/// All calibration windows.
pub struct Windows<'a, B: Calibrate> {
    pub(crate) around: Surroundings<'a, B>,
    pub(crate) windows: Vec<Window<B>>,
    /// Tokens of each.
    tokens: usize,
}

/// The sums of a float block.
pub struct BlockSums<B: Calibrate> {
    /// Of the inputs of each site.
    pub sites: Sites<B::Gram>,
    /// Of the inputs of q, k and v as attention averages them, if that was asked for.
    pub attended: Option<B::Gram>,
}

/// Memory for windows that are worked on side by side: for as many as run at the same time, and no longer than a stage.
pub(crate) struct Workshops<'a, B: Calibrate> {
    around: Surroundings<'a, B>,
    /// Tokens of a window.
    tokens: usize,
    idle: Mutex<Vec<Workshop<B>>>,
}

impl<'a, B: Calibrate> Workshops<'a, B> {
    fn new(around: Surroundings<'a, B>, tokens: usize) -> Self {
        Self { around, tokens, idle: Mutex::default() }
    }

    /// Does a job for a window.
    ///
    /// # Errors
    /// Those of the job and of the backend.
    pub fn work(
        &self,
        Window { flow, batch }: &mut Window<B>,
        job: impl FnOnce(&mut Step<'_, B>, &mut Flow<B>) -> Result<()>,
    ) -> Result<()> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let found = idle().pop();
        let mut workshop = found.map_or_else(|| self.around.workshop(self.tokens), Ok)?;
        let result = job(&mut self.around.step(&mut workshop, batch), flow);
        idle().push(workshop);
        result
    }

    /// Does a job for all windows of a wave.
    ///
    /// # Errors
    /// As [`work`](Self::work): that of the first window with one.
    pub fn each(
        &self,
        wave: &mut [Window<B>],
        job: impl Fn(&mut Step<'_, B>, &mut Flow<B>) -> Result<()> + Sync,
    ) -> Result<()> {
        let mut lanes: Vec<_> = wave.iter_mut().map(|window| (window, Ok(()))).collect();
        self.around.backend.each(&mut lanes, |(window, result)| *result = self.work(window, &job));
        lanes.into_iter().try_for_each(|(_, result)| result)
    }
}

/// A lane of a wave.
struct Lane<'w, B: Calibrate> {
    window: &'w mut Window<B>,
    sums: Vec<B::Gram>,
    result: Result<()>,
}

impl<'a, B: Calibrate> Windows<'a, B> {
    /// Of `tokens` tokens each.
    pub fn new(around: Surroundings<'a, B>, windows: Vec<Window<B>>, tokens: usize) -> Self {
        Self { around, windows, tokens }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// Tokens of each.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Their hidden states. Between blocks these are all that there is of them.
    pub fn states(&self) -> impl Iterator<Item = &B::Tensor> {
        self.windows.iter().map(|window| &window.flow.residual)
    }

    /// Copies of them, which stand between the same blocks.
    ///
    /// # Errors
    /// Those of the backend.
    pub(crate) fn copies(&self) -> Result<Vec<Window<B>>> {
        let Surroundings { backend: b, config, .. } = self.around;
        let copy = |states: &B::Tensor| {
            let values = b.read(states)?.into_owned();
            let tokens = values.len() / config.hidden_size;
            Window::new(b, b.upload(tokens, config.hidden_size, values)?, tokens)
        };
        self.states().map(copy).collect()
    }

    /// Memory to work on them in.
    pub(crate) fn workshops(&self) -> Workshops<'a, B> {
        Workshops::new(self.around, self.tokens)
    }

    /// The inputs of the site at which they stand.
    pub fn inputs(&self) -> Vec<&B::Input> {
        self.windows.iter().filter_map(|w| w.flow.input()).collect()
    }

    /// Forgets them: nothing comes after.
    pub fn clear(&mut self) {
        self.windows.clear();
    }

    /// One pass of a float block: all sums, and the states after the block.
    ///
    /// # Errors
    /// States that are not finite; those of the backend and of `on_wave`.
    pub fn float_pass(
        &mut self,
        name: &str,
        block: &Block<B>,
        attended: bool,
        on_wave: &mut OnWave<'_>,
    ) -> Result<BlockSums<B>> {
        let Surroundings { backend: b, config, .. } = self.around;
        let mut widths = Site::ALL.map(|site| site.in_features(config)).to_vec();
        if attended {
            widths.push(widths[Site::Qkv as usize]);
        }
        let Mixer::Attention(attention) = &block.mixer;
        let mut sums = self.run(&widths, on_wave, |step, flow, sums| {
            for site in Site::ALL {
                let (of_sites, of_averages) = sums.split_at_mut(Site::ALL.len());
                block.advance_tapped(step, flow, site, &mut |x, qkv| match of_averages.first_mut() {
                    Some(sum) => b.gram_add(sum, &b.attended(x, qkv, &attention.kind)?),
                    None => Ok(()),
                })?;
                if let Some(x) = flow.input() {
                    b.gram_add(&mut of_sites[site as usize], x)?;
                }
            }
            block.finish(step, flow)?;
            check(b, name, config, flow)
        })?;
        let attended = if attended { sums.pop() } else { None };
        let mut sums = sums.into_iter();
        let missing = || QuantError::Recipe("a float pass has left no sum".into());
        Ok(BlockSums { sites: Sites::try_new(|_| sums.next().ok_or_else(missing))?, attended })
    }

    /// Goes on to the input of a site, which is kept.
    ///
    /// # Errors
    /// States that are not finite; those of the backend and of `on_wave`.
    pub fn go_on(
        &mut self,
        name: &str,
        block: &Block<B>,
        site: Site,
        on_wave: &mut OnWave<'_>,
    ) -> Result<()> {
        let Surroundings { backend: b, config, .. } = self.around;
        self.run(&[], on_wave, |step, flow, _| {
            block.advance(step, flow, site)?;
            flow.shed(b)?;
            // A norm has just added what attention gives.
            if site == Site::GateUp { check(b, name, config, flow) } else { Ok(()) }
        })?;
        Ok(())
    }

    /// Goes on to the input of a site, which is kept, and sums it.
    ///
    /// # Errors
    /// As [`go_on`](Self::go_on).
    pub fn sum_input(
        &mut self,
        name: &str,
        block: &Block<B>,
        site: Site,
        on_wave: &mut OnWave<'_>,
    ) -> Result<B::Gram> {
        let Surroundings { backend: b, config, .. } = self.around;
        self.go_on(name, block, site, &mut |share| on_wave(share * FORWARD_SHARE))?;
        let sum = b.gram_of(site.in_features(config), &self.inputs())?;
        on_wave(1.0)?;
        Ok(sum)
    }

    /// At the input of q, k and v, with q and k there: sums it as attention averages it. The windows stay where they are.
    ///
    /// # Errors
    /// Those of the backend and of `on_wave`.
    pub fn sum_attended(&mut self, block: &Block<B>, on_wave: &mut OnWave<'_>) -> Result<B::Gram> {
        let Surroundings { backend: b, config, .. } = self.around;
        let Mixer::Attention(attention) = &block.mixer;
        let width = Site::Qkv.in_features(config);
        let mut sums = self.run(&[width], on_wave, |step, flow, sums| {
            block.project(step, flow)?;
            if let Some(x) = flow.input() {
                b.gram_add(&mut sums[0], &b.attended(x, &step.scratch.qkv, &attention.kind)?)?;
            }
            Ok(())
        })?;
        sums.pop().map_or_else(|| Ok(b.gram(width)?), Ok)
    }

    /// Leaves the block.
    ///
    /// # Errors
    /// States that are not finite; those of the backend and of `on_wave`.
    pub fn finish_block(&mut self, name: &str, block: &Block<B>, on_wave: &mut OnWave<'_>) -> Result<()> {
        let Surroundings { backend: b, config, .. } = self.around;
        self.run(&[], on_wave, |step, flow, _| {
            block.finish(step, flow)?;
            flow.shed(b)?;
            check(b, name, config, flow)
        })?;
        Ok(())
    }

    /// Goes through a block whose layers are all there.
    ///
    /// # Errors
    /// Those of the backend and of `on_wave`.
    pub fn pass(&mut self, block: &Block<B>, on_wave: &mut OnWave<'_>) -> Result<()> {
        let b = self.around.backend;
        self.run(&[], on_wave, |step, flow, _| pass(b, block, step, flow))?;
        Ok(())
    }

    /// Runs `job(step, flow, sums)` for every window; returns one sum for every width.
    fn run(
        &mut self,
        widths: &[usize],
        on_wave: &mut OnWave<'_>,
        job: impl Fn(&mut Step<'_, B>, &mut Flow<B>, &mut [B::Gram]) -> Result<()> + Sync,
    ) -> Result<Vec<B::Gram>> {
        let b = self.around.backend;
        let workshops = self.workshops();
        let new_sums = || widths.iter().map(|&k| Ok(b.gram(k)?)).collect::<Result<Vec<_>>>();
        let total = self.windows.len();
        let mut sums: Vec<Vec<B::Gram>> = Vec::new();
        let mut done = 0;
        for wave in self.windows.chunks_mut(lanes(widths, B::PIECES.lanes)) {
            let mut of_lanes = sums.into_iter();
            let mut lanes = Vec::with_capacity(wave.len());
            for window in wave {
                let sums = of_lanes.next().map_or_else(new_sums, Ok)?;
                lanes.push(Lane { window, sums, result: Ok(()) });
            }
            // Lanes without a window (in the last wave) come after those with one.
            let unused: Vec<_> = of_lanes.collect();
            b.each(&mut lanes, |Lane { window, sums, result }| {
                *result = workshops.work(window, |step, flow| job(step, flow, sums));
            });
            done += lanes.len();
            sums = Vec::with_capacity(lanes.len() + unused.len());
            for lane in lanes {
                lane.result?;
                sums.push(lane.sums);
            }
            sums.extend(unused);
            on_wave(done as f64 / total as f64)?;
        }
        let mut lanes = sums.into_iter();
        let mut merged = lanes.next().unwrap_or_default();
        for lane in lanes {
            for (sum, part) in merged.iter_mut().zip(&lane) {
                b.gram_merge(sum, part)?;
            }
        }
        Ok(merged)
    }
}

/// Takes a window through a block whose layers are all there.
///
/// # Errors
/// Those of the backend.
pub(crate) fn pass<B: Calibrate>(
    b: &B,
    block: &Block<B>,
    step: &mut Step<'_, B>,
    flow: &mut Flow<B>,
) -> Result<()> {
    for site in Site::ALL {
        block.advance(step, flow, site)?;
    }
    block.finish(step, flow)?;
    Ok(flow.shed(b)?)
}

/// Lanes for sums of these widths on a device that takes `most` at once; must not depend on the machine.
pub(crate) fn lanes(widths: &[usize], most: usize) -> usize {
    let bytes: usize = widths.iter().map(|k| 4 * k * k).sum();
    (SUM_BYTES / bytes.max(1)).clamp(MIN_LANES.min(most), most)
}

pub(crate) fn check<B: Calibrate>(b: &B, name: &str, config: &ModelConfig, flow: &Flow<B>) -> Result<()> {
    let Some((first, value)) = b.first_not_finite(&flow.residual)? else { return Ok(()) };
    Err(QuantError::NotFinite {
        layer: name.to_owned(),
        reason: format!(
            "the hidden states of the calibration tokens become {value} here (token {} of a window); the model's weights are \
             damaged or overflow on this text",
            first / config.hidden_size
        ),
    })
}
