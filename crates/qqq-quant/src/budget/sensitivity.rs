//! How far the model gets from the float one when a single site is quantized.
//!
//! One pass through the blocks measures many sites. Held-out text walks through the transformed float model; at every site of
//! interest a copy of it goes through that site's layer in 4 bits, and another in 8, and both walk on through the float blocks
//! behind. At the end the logits of all copies are compared with the float ones. A block is in memory at a time, so the model
//! need not fit; where the copies do not, sites are measured in several passes, which changes no number.
//!
//! Layers are rounded to nearest, with the scales of the least weight error, and take such inputs as at run time. Compensation
//! makes errors of all layers smaller; that it changes their order little is assumed, and saves all statistics.

use std::{ops::Range, time::Instant};

use qqq_backend::{Calibrate, InputKind, solve::Scheme};
use qqq_formats::{CodeBits, LinearWeight, size};
use qqq_model::{
    Block, OutputHead, Site,
    block::Layer,
    memory,
    scores::{compare_rows, rows_at_a_time},
};

use super::{
    SiteChoice,
    progress::{Measuring, State},
    site_name,
    sizes::Sizes,
};
use crate::{
    Clip, OutputFormat, Progress, QuantError, Recipe, Result,
    calibration::CalibrationText,
    float_linear::FloatLinear,
    pipeline::{Begun, Job, Target, begin},
    run::Run,
    solve::{SolveOptions, solve_corrected_on},
    windows::{Surroundings, Window, Windows},
};

/// Tokens that walk through the model, at most: as many of each held-out window.
const TOKENS: usize = 512;
/// Candidates of a site.
const PRECISIONS: [CodeBits; 2] = [CodeBits::Four, CodeBits::Eight];

/// What was measured.
pub(super) struct Found {
    pub sites: Vec<SiteChoice>,
    pub windows: usize,
    /// Predictions of each candidate.
    pub tokens: usize,
    pub seconds: f64,
}

/// The recipe by which layers are quantized for measuring. What decides on windows and on the transformation stays.
pub(super) fn recipe(recipe: &Recipe) -> Recipe {
    let clip = if recipe.clip == Clip::Output { Clip::Weight } else { recipe.clip };
    Recipe { compensate: false, clip, error_correction: 0.0, ..recipe.clone() }
}

/// Measures all free sites.
///
/// # Errors
/// Nothing to measure on, a float model without numbers; those of reading, of the backend, and being interrupted.
pub(super) fn measure<B: Calibrate>(
    job: &Job<'_, B>,
    format: OutputFormat,
    sizes: &Sizes,
    progress: &mut dyn Progress,
) -> Result<Found> {
    let clock = Instant::now();
    let state = State::default();
    let mut sites = sizes.sites();
    let mut measured = (0, 0);
    let mut next = 0;
    let mut spent = 0.0;
    while next < sites.len() {
        let mut measuring = Measuring::new(progress, &state);
        begin(job, Target::Nowhere(format), &mut measuring, |begun| {
            let mut pass = Pass::new(begun, sizes, &state)?;
            let range = pass.group(next, memory::available())?;
            if next == 0 {
                pass.tell(job.calibration, range.len())?;
                state.expected.set(pass.expected(0..sites.len()));
            }
            let all = pass.work(0..sites.len()).max(1.0);
            pass.shares = (spent / all, 1.0 / all);
            spent += pass.work(range.clone());
            measured = pass.run(range.clone(), &mut sites[range.clone()])?;
            next = range.end;
            Ok(())
        })?;
    }
    let (windows, tokens) = measured;
    Ok(Found { sites, windows, tokens, seconds: clock.elapsed().as_secs_f64() })
}

/// Seconds that measuring would take.
///
/// # Errors
/// As [`measure`], but for those of the pass.
pub(super) fn expected<B: Calibrate>(
    job: &Job<'_, B>,
    format: OutputFormat,
    sizes: &Sizes,
    progress: &mut dyn Progress,
) -> Result<f64> {
    let state = State::default();
    let mut measuring = Measuring::new(progress, &state);
    begin(job, Target::Nowhere(format), &mut measuring, |begun| {
        let pass = Pass::new(begun, sizes, &state)?;
        Ok(pass.expected(0..sizes.free.len()))
    })
}

/// A pass through the blocks.
struct Pass<'p, 'a, B: Calibrate> {
    run: Run<'a, B>,
    head: OutputHead<B>,
    sizes: &'p Sizes,
    state: &'p State,
    /// The held-out tokens, and their states in the float model.
    tokens: Vec<Vec<u32>>,
    float: Windows<'a, B>,
    /// Tokens of a held-out window of the run, of which those are the first: what is estimated is estimated for them.
    held: usize,
    /// Share of all work that is done, and share of a unit of it.
    shares: (f64, f64),
}

impl<'p, 'a, B: Calibrate> Pass<'p, 'a, B> {
    fn new(begun: Begun<'a, B>, sizes: &'p Sizes, state: &'p State) -> Result<Self> {
        let Begun { mut run, writer, rotations: _, .. } = begun;
        let b = run.around.backend;
        let Some(held) = run.held_out.take() else {
            return Err(QuantError::Calibration(
                "a budget is spent by what is measured on held-out text, and the text has nothing left to hold out beside the \
                 calibration windows; give more text, or ask for fewer or shorter windows"
                    .into(),
            ));
        };
        let stream = run.rotations.as_ref().map(|rotations| &rotations.stream);
        let head = writer.head(b, stream)?;
        let (mut tokens, windows) = held.into_transformed();
        let all: usize = tokens.iter().map(Vec::len).sum();
        let each = (TOKENS / tokens.len().max(1)).max(2);
        let hidden = run.around.config.hidden_size;
        let mut cut = Vec::with_capacity(windows.len());
        for (tokens, window) in tokens.iter_mut().zip(windows) {
            tokens.truncate(each);
            let values = b.read(&window.flow.residual)?[..tokens.len() * hidden].to_vec();
            cut.push(Window::new(b, b.upload(tokens.len(), hidden, values)?, tokens.len())?);
        }
        let most = tokens.iter().map(Vec::len).max().unwrap_or(0);
        let float = Windows::new(run.around, cut, most);
        Ok(Self { run, head, sizes, state, tokens, float, held: all, shares: (0.0, 0.0) })
    }

    /// Tokens of a candidate.
    fn count(&self) -> usize {
        self.tokens.iter().map(Vec::len).sum()
    }

    /// Free sites from `first` on whose copies fit the memory that is free: all of some blocks.
    fn group(&self, first: usize, available: Option<u64>) -> Result<Range<usize>> {
        let Surroundings { backend, config, .. } = self.run.around;
        let free = match (backend.free_memory()?, available) {
            (Some(free), _) | (None, Some(free)) => free,
            (None, None) => u64::MAX,
        };
        let copies = PRECISIONS.len() as u64 * self.bytes(config.hidden_size);
        // Half: a block and the logits need some.
        let fit = ((free / 2 / copies.max(1)) as usize).max(Site::ALL.len());
        let sites = &self.sizes.free;
        let mut end = sites.len().min(first + fit);
        // A block's sites stay together.
        while end < sites.len() && end > first + 1 && sites[end].0 == sites[end - 1].0 {
            end -= 1;
        }
        Ok(first..end)
    }

    /// Bytes of a copy.
    fn bytes(&self, hidden: usize) -> u64 {
        4 * (self.count() * hidden) as u64
    }

    /// Says what will be done.
    fn tell(&mut self, text: CalibrationText<'_>, at_a_time: usize) -> Result<()> {
        let sites = self.sizes.free.len();
        let copies = (PRECISIONS.len() * at_a_time) as u64 * self.bytes(self.run.around.config.hidden_size);
        self.state.tells.set(true);
        self.run.work.note(&format!(
            "budget: measuring what 4 and 8 bits cost in each of {sites} layers, on {} held-out tokens of {}, beside {} of hidden \
             states{}",
            self.count(),
            text.source.describe(),
            size::bytes(copies),
            if at_a_time < sites { ", in several passes" } else { "" }
        ));
        self.state.tells.set(false);
        Ok(())
    }

    /// Passes of a block by one copy of the text that measuring these sites takes, and a head's rows as parts of one.
    fn work(&self, sites: Range<usize>) -> f64 {
        let blocks = self.run.around.config.num_layers;
        let of_site = |(block, _): &(usize, Site)| (blocks - block) as f64 + self.head_passes();
        let copies: f64 = self.sizes.free[sites].iter().map(of_site).sum();
        PRECISIONS.len() as f64 * copies + blocks as f64
    }

    /// What the head and a comparison take, in passes of a block.
    fn head_passes(&self) -> f64 {
        let estimate = &self.run.estimate;
        // Of both models.
        estimate.compare.amount / 2.0 / estimate.held_float.amount.max(f64::MIN_POSITIVE)
    }

    /// Seconds that measuring these sites is expected to take.
    fn expected(&self, sites: Range<usize>) -> f64 {
        let estimate = &self.run.estimate;
        let config = self.run.around.config;
        let share = self.count() as f64 / self.held.max(1) as f64;
        let of_site = |(_, site): &(usize, Site)| {
            2.0 * estimate.solve(site.out_features(config), site.in_features(config)).amount
        };
        let rounding: f64 = self.sizes.free[sites.clone()].iter().map(of_site).sum();
        estimate.held_float.amount * share * self.work(sites) + rounding
    }

    /// `passes` more are done.
    fn done(&mut self, passes: f64) -> Result<()> {
        let (done, unit) = self.shares;
        self.shares.0 = done + passes * unit;
        self.state.done.set(self.shares.0);
        self.run.work.at(0.0)
    }

    /// Measures sites; gives windows and predictions.
    fn run(mut self, range: Range<usize>, sites: &mut [SiteChoice]) -> Result<(usize, usize)> {
        let Surroundings { config, .. } = self.run.around;
        let most = self.tokens.iter().map(Vec::len).max().unwrap_or(0);
        let mut copies = Windows::new(self.run.around, Vec::new(), most);
        for index in 0..config.num_layers {
            self.run.work.begin(
                self.run.estimate.read.part(0.0),
                format!("block {}/{}: measuring what 4 and 8 bits cost", index + 1, config.num_layers),
            )?;
            let wanted: Vec<Site> = self.sizes.free[range.clone()]
                .iter()
                .filter_map(|&(block, site)| (block == index).then_some(site))
                .collect();
            let new = self.block(index, &wanted, &mut copies)?;
            copies.windows.extend(new);
        }
        self.compare(&copies, sites)
    }

    /// Takes the text and the copies through a block; gives the copies of its own sites.
    fn block(
        &mut self,
        index: usize,
        wanted: &[Site],
        copies: &mut Windows<'a, B>,
    ) -> Result<Vec<Window<B>>> {
        let Surroundings { backend: b, config, .. } = self.run.around;
        let mut layers = self.run.transformed_block(index)?;
        let mut block = Block::without_layers(b, config, index, layers.norms.clone(), InputKind::Float)?;
        let mut candidates = Vec::new();
        for site in Site::ALL {
            let layer = layers.take(b, site, None)?;
            if wanted.contains(&site) {
                for scheme in self.sizes.schemes {
                    candidates.push((site, self.rounded(index, site, scheme, &layer)?));
                    self.run.work.at(0.0)?;
                }
            }
            *block.layer_mut(site) = layer.layer(b, index, site)?;
        }
        drop(layers);
        let mut made = Vec::new();
        for (site, linear) in candidates {
            let mut own = Vec::with_capacity(self.float.windows.len());
            for window in &self.float.windows {
                let states = b.read(&window.flow.residual)?.into_owned();
                let rows = states.len() / config.hidden_size;
                own.push(Window::new(b, b.upload(rows, config.hidden_size, states)?, rows)?);
            }
            let mut own = Windows::new(self.run.around, own, copies.tokens());
            let float = std::mem::replace(block.layer_mut(site), Layer::Ready(linear));
            own.pass(&block, &mut |_| Ok(()))?;
            *block.layer_mut(site) = float;
            made.append(&mut own.windows);
            self.done(1.0)?;
        }
        let windows = self.float.windows.len().max(1);
        let passes = (copies.windows.len() / windows) as f64;
        let before = self.shares.0;
        let work = &mut self.run.work;
        let (unit, state) = (self.shares.1, self.state);
        copies.pass(&block, &mut |share| {
            state.done.set(before + share * passes * unit);
            work.at(0.0)
        })?;
        self.done(passes)?;
        self.float.pass(&block, &mut |_| Ok(()))?;
        self.done(1.0)?;
        Ok(made)
    }

    /// A layer rounded to nearest.
    fn rounded(&self, index: usize, site: Site, scheme: Scheme, layer: &FloatLinear<B>) -> Result<B::Linear> {
        let (b, recipe) = (self.run.around.backend, self.run.recipe);
        let options = SolveOptions {
            bits: scheme.bits,
            activations: scheme.activations,
            group_size: scheme.group_size,
            group_scales: recipe.group_scales,
            compensate: false,
            clip: recipe.clip,
            act_order: false,
            damping: recipe.damping,
            scale_dtype: self.run.scale_dtype,
        };
        let name = site_name(index, site);
        let solved = solve_corrected_on(b, &name, &layer.weights, 0..layer.n, layer.k, None, None, &options)?;
        let weight: LinearWeight = scheme.layer(solved.weight, self.run.half.dtype());
        Ok(b.linear_weight(weight, layer.bias.clone())?)
    }

    /// Compares the copies behind the last block with the float model.
    fn compare(&mut self, copies: &Windows<'a, B>, sites: &mut [SiteChoice]) -> Result<(usize, usize)> {
        let Surroundings { backend: b, config, .. } = self.run.around;
        let windows = self.tokens.len();
        let candidates = copies.windows.len() / windows.max(1);
        let mut sums = vec![0.0; candidates];
        let mut predictions = 0;
        let per_row = self.head_passes() / self.count().max(1) as f64;
        self.run.work.begin(self.run.estimate.read.part(0.0), "comparing what 4 and 8 bits cost")?;
        for window in 0..windows {
            let rows: Vec<usize> = (0..self.tokens[window].len() - 1).collect();
            for rows in rows.chunks(rows_at_a_time(config.vocab_size)) {
                let states = &self.float.windows[window].flow.residual;
                let float = self.head.logits(b, states, rows)?.into_owned();
                let targets: Vec<u32> = rows.iter().map(|row| self.tokens[window][row + 1]).collect();
                if let Some(at) = float.iter().position(|x| !x.is_finite()) {
                    return Err(QuantError::NotFinite {
                        layer: "the float model".into(),
                        reason: format!(
                            "a logit for token {} of held-out window {window} is {}: nothing can be compared with it, so no budget \
                             can be spent by what is lost; give rules (--rule) instead",
                            rows[at / config.vocab_size] + 1,
                            float[at]
                        ),
                    });
                }
                for (candidate, sum) in sums.iter_mut().enumerate() {
                    let states = &copies.windows[candidate * windows + window].flow.residual;
                    let logits = self.head.logits(b, states, rows)?;
                    // What is no number stays none.
                    *sum += compare_rows(&float, &logits, &targets).iter().map(|pair| pair.kl).sum::<f64>();
                    let (done, unit) = self.shares;
                    self.shares.0 = done + rows.len() as f64 * per_row * unit;
                    self.state.done.set(self.shares.0);
                    self.run.work.at(0.0)?;
                }
                predictions += rows.len();
            }
        }
        let means: Vec<Option<f64>> = sums
            .iter()
            .map(|sum| Some(sum / predictions.max(1) as f64).filter(|mean| mean.is_finite()))
            .collect();
        for (site, pair) in sites.iter_mut().zip(means.chunks(PRECISIONS.len())) {
            (site.kl_divergence_4, site.kl_divergence_8) = (pair[0], pair[1]);
        }
        Ok((windows, predictions))
    }
}
