//! How far the model gets from the float one when a single site is quantized.
//!
//! One pass through the blocks measures many sites. Held-out text walks through the transformed float model; at every site of
//! interest a copy of it goes through that site's layer as each of its candidates, and walks on through the float blocks behind.
//! At the end the logits of all copies are compared with the float ones. A block is in memory at a time, so the model need not
//! fit; where the copies do not, sites are measured in several passes, which changes no number.
//!
//! Candidates are rounded as the recipe rounds, for the inputs that calibration text has in the float model, which walks beside;
//! only errors of layers before, which there are none of, are not corrected. They take such inputs as at run time.

use std::ops::Range;

use qqq_backend::{Calibrate, solve::Scheme};
use qqq_formats::size;
use qqq_model::{
    Site,
    block::Layer,
    memory,
    scores::{compare_logits, rows_at_a_time},
};

use super::{
    Measuring as Takes, Sensitivities, SiteChoice,
    progress::{Measuring, State},
    sizes::Sizes,
};
use crate::{
    Clip, OutputFormat, Progress, Propagation, QuantError, Recipe, Result,
    calibration::Source,
    device_need,
    float_linear::{FloatLinear, module},
    held_out::HeldText,
    moments::{Moments, Sums},
    output::OutputCheckpoint,
    pipeline::{Begun, Job, Target, begin},
    report::modules,
    run::{Run, join},
    value_hessian::value_moments,
    windows::{BlockSums, Surroundings, Window, Windows},
};

/// Tokens that walk through the model on a CPU, at most: as many of each window. On two cores they take most of an hour for a
/// model of 135M weights.
const TOKENS: usize = 512;
/// The same on a device with memory of its own, where they take seconds.
const DEVICE_TOKENS: usize = 8192;
/// What an allocator has not given back of what copies take.
const RETAINED: f64 = 1.1;

/// What was found.
pub(super) struct Found {
    pub sites: Vec<SiteChoice>,
    pub windows: usize,
    /// Predictions of each candidate.
    pub tokens: usize,
    /// Whether there was no text beyond what the result is compared on.
    pub on_compared_text: bool,
    pub measuring: Takes,
}

/// The recipe by which candidates are rounded: calibrated in the float model, where there is nothing to correct.
pub(super) fn recipe(recipe: &Recipe) -> Recipe {
    Recipe { propagation: Propagation::Float, error_correction: 0.0, ..recipe.clone() }
}

/// Measures all free sites on what is held out behind `compared` windows; or finds out what that would take.
///
/// # Errors
/// Nothing to measure on, no memory for it, a float model without numbers; those of reading, of the backend, and being
/// interrupted.
pub(super) fn measure<B: Calibrate>(
    job: &Job<'_, B>,
    compared: usize,
    sizes: &Sizes,
    sensitivities: Sensitivities,
    progress: &mut dyn Progress,
) -> Result<Found> {
    let room = || {
        let free = job.backend.free_memory()?;
        Ok(Room { on_device: free.is_some(), free: free.or_else(memory::available) })
    };
    measure_in(&room, job, compared, sizes, sensitivities, progress)
}

/// As [`measure`], in the memory that there is before each pass.
pub(super) fn measure_in<B: Calibrate>(
    room: &dyn Fn() -> Result<Room>,
    job: &Job<'_, B>,
    compared: usize,
    sizes: &Sizes,
    sensitivities: Sensitivities,
    progress: &mut dyn Progress,
) -> Result<Found> {
    let state = State::new();
    let mut found = Found {
        sites: sizes.sites(),
        windows: 0,
        tokens: 0,
        on_compared_text: false,
        measuring: Takes::default(),
    };
    let mut next = 0;
    while next < found.sites.len() {
        let mut measuring = Measuring::new(progress, &state);
        let room = room()?;
        begin(job, Target::Nowhere(OutputFormat::CompressedTensors), &mut measuring, |begun| {
            let need = match room.on_device {
                true => {
                    let held = HeldText::new(&job.checkpoint.config, begun.recipe, job.calibration.held_out);
                    device_need::bytes(&job.checkpoint.config, begun.recipe, &begun.plan.schemes, held)
                }
                false => begun.plan.memory.bytes,
            };
            let host = begun.plan.memory.bytes;
            let mut pass = Pass::new(begun, compared, sizes, &state, room)?;
            let range = pass.group(next, need, room)?;
            if next == 0 {
                let need = need + pass.bytes(range.clone());
                found.measuring.memory = if room.on_device { host } else { need };
                found.on_compared_text = pass.on_compared_text;
                state.expected.set(pass.expected(0..found.sites.len()));
                pass.tell(job.calibration.source, need, room, range.len());
            }
            if sensitivities == Sensitivities::Alike {
                found.measuring.seconds = pass.expected(0..found.sites.len());
                found.sites.iter_mut().for_each(suppose);
                next = found.sites.len();
                return Ok(());
            }
            next = range.end;
            (found.windows, found.tokens) = pass.run(range.clone(), &mut found.sites[range])?;
            Ok(())
        })?;
    }
    if sensitivities == Sensitivities::Measured {
        found.measuring.seconds = state.seconds();
    }
    Ok(found)
}

/// Where nothing is measured: as if every bit halved what a site loses, all of them alike.
fn suppose(site: &mut SiteChoice) {
    for candidate in &mut site.candidates {
        let bits = candidate.bytes as f64 * 8.0 / site.weights as f64;
        candidate.kl_divergence = Some((-bits).exp2());
    }
}

/// Memory before anything was begun.
#[derive(Clone, Copy)]
pub(super) struct Room {
    /// Whether it is a device's own.
    pub on_device: bool,
    /// Bytes that are free, where that is known.
    pub free: Option<u64>,
}

impl Room {
    /// Tokens that walk through the model, at most: of the copies of a block no more than an eighth of a device's memory.
    fn tokens(self, sizes: &Sizes, hidden: usize) -> usize {
        let Some(free) = self.free.filter(|_| self.on_device) else { return TOKENS };
        let candidates: usize = Site::ALL.iter().map(|site| sizes.schemes(*site).len()).sum();
        let fit = free / 8 / (4 * hidden * candidates).max(1) as u64;
        (fit as usize).clamp(TOKENS, DEVICE_TOKENS)
    }
}

/// A pass through the blocks.
struct Pass<'p, 'a, B: Calibrate> {
    run: Run<'a, B>,
    writer: OutputCheckpoint<'a>,
    sizes: &'p Sizes,
    state: &'p State,
    /// Calibration windows, for the statistics by which candidates are rounded.
    live: Windows<'a, B>,
    /// The held-out tokens, and their states in the float model.
    tokens: Vec<Vec<u32>>,
    float: Windows<'a, B>,
    /// Tokens of all held-out windows, of which those are a part: what is estimated is estimated for them.
    held: usize,
    on_compared_text: bool,
}

impl<'p, 'a, B: Calibrate> Pass<'p, 'a, B> {
    fn new(
        begun: Begun<'a, B>,
        compared: usize,
        sizes: &'p Sizes,
        state: &'p State,
        room: Room,
    ) -> Result<Self> {
        let Begun { mut run, writer, mut live, .. } = begun;
        let Surroundings { backend: b, config, .. } = run.around;
        let Some(held) = run.held_out.take() else {
            return Err(QuantError::Calibration(
                "a budget is spent by what is measured on held-out text, and the text has nothing left to hold out beside the \
                 calibration windows; give more text, or ask for fewer or shorter windows"
                    .into(),
            ));
        };
        let (tokens, windows) = held.into_transformed();
        let all: usize = tokens.iter().map(Vec::len).sum();
        let on_compared_text = tokens.len() <= compared;
        let skipped = if on_compared_text { 0 } else { compared };
        let each = (room.tokens(sizes, config.hidden_size) / (tokens.len() - skipped)).max(2);
        let mut cut = (Vec::new(), Vec::new());
        for (mut tokens, window) in tokens.into_iter().zip(windows).skip(skipped) {
            tokens.truncate(each);
            let mut values = b.read(&window.flow.residual)?.into_owned();
            values.truncate(tokens.len() * config.hidden_size);
            cut.1.push(Window::new(b, b.upload(tokens.len(), config.hidden_size, values)?, tokens.len())?);
            cut.0.push(tokens);
        }
        let (tokens, windows) = cut;
        let most = tokens.iter().map(Vec::len).max().unwrap_or(0);
        let float = Windows::new(run.around, windows, most);
        // Rounding to nearest by the weights alone needs no statistics.
        if !run.recipe.compensate && run.recipe.clip != Clip::Output {
            live.clear();
        }
        Ok(Self { run, writer, sizes, state, live, tokens, float, held: all, on_compared_text })
    }

    /// Tokens of a candidate.
    fn count(&self) -> usize {
        self.tokens.iter().map(Vec::len).sum()
    }

    /// Candidates of some free sites.
    fn candidates(&self, sites: Range<usize>) -> usize {
        self.sizes.free[sites].iter().map(|(_, site)| self.sizes.schemes(*site).len()).sum()
    }

    /// Bytes beside what calibrating in the float model takes: the copies for some sites, and a float block that stays while its
    /// layers are solved, with a candidate.
    fn bytes(&self, sites: Range<usize>) -> u64 {
        let config = self.run.around.config;
        let weights = Site::ALL.map(|site| (site.out_features(config) * site.in_features(config)) as u64);
        let copies = self.candidates(sites) * self.count() * config.hidden_size * 4;
        ((copies as u64 + 4 * weights.iter().sum::<u64>()) as f64 * RETAINED) as u64
    }

    /// Free sites from `first` on whose copies fit the memory that is free beside `need`: all of some blocks.
    ///
    /// # Errors
    /// Those of one block do not.
    fn group(&self, first: usize, need: u64, room: Room) -> Result<Range<usize>> {
        let fits =
            |end: usize| room.free.is_none_or(|free| need.saturating_add(self.bytes(first..end)) <= free);
        // Behind each block.
        let sites = &self.sizes.free;
        let mut ends =
            (first + 1..=sites.len()).filter(|&end| end == sites.len() || sites[end].0 != sites[end - 1].0);
        let least = ends.next().unwrap_or(sites.len());
        if !fits(least) && room.on_device {
            return Err(QuantError::Recipe(format!(
                "measuring for a budget takes about {} of the GPU's memory, of which {} are free; ask for fewer or shorter \
                 calibration windows, give rules (--rule) instead, or quantize on the CPU (--device cpu)",
                size::bytes(need + self.bytes(first..least)),
                size::bytes(room.free.unwrap_or(0))
            )));
        }
        // On the host the least is taken in any case, as elsewhere: what is free is not all that can be had.
        Ok(first..ends.take_while(|&end| fits(end)).last().unwrap_or(least))
    }

    /// Says what will be done.
    fn tell(&mut self, text: &Source, need: u64, room: Room, at_a_time: usize) {
        let sites = self.sizes.free.len();
        self.state.tells.set(true);
        self.run.work.note(&format!(
            "budget: measuring what {} candidates for {sites} layers cost, each on {} held-out tokens of {}{}; about {} of {}memory \
             at most",
            self.candidates(0..sites),
            self.count(),
            text.describe(),
            if at_a_time < sites { ", in several passes" } else { "" },
            size::bytes(need),
            if room.on_device { "GPU " } else { "" },
        ));
        if self.on_compared_text {
            self.run.work.note(
                "budget: the text has nothing to hold out beyond what the result is compared on, so it is measured on this, and the \
                 result will look a little better than it is (qqq eval kld compares on another text)",
            );
        }
        self.state.tells.set(false);
    }

    /// Seconds of a copy's way through a block.
    fn pass_seconds(&self) -> f64 {
        self.run.estimate.held_float.amount * self.count() as f64 / self.held.max(1) as f64
    }

    /// Seconds that a copy's logits and their comparison take; the estimate is for those of two models.
    fn head_seconds(&self) -> f64 {
        self.run.estimate.compare.amount / 2.0 * self.count() as f64 / self.held.max(1) as f64
    }

    /// Seconds that rounding a candidate takes.
    fn solve_seconds(&self, site: Site) -> f64 {
        let config = self.run.around.config;
        self.run.estimate.solve(site.out_features(config), site.in_features(config)).amount
    }

    /// Seconds that measuring these sites is expected to take.
    fn expected(&self, sites: Range<usize>) -> f64 {
        let blocks = self.run.around.config.num_layers as f64;
        let of_site = |(block, site): &(usize, Site)| {
            let copy = (blocks - *block as f64) * self.pass_seconds() + self.head_seconds();
            self.sizes.schemes(*site).len() as f64 * (copy + self.solve_seconds(*site))
        };
        let calibrating = if self.live.is_empty() { 0.0 } else { self.run.estimate.float_pass.amount };
        let sites = self.sizes.free[sites].iter();
        sites.map(of_site).sum::<f64>() + blocks * (calibrating + self.pass_seconds())
    }

    /// The work of so many seconds more is done.
    fn done(&mut self, seconds: f64) -> Result<()> {
        self.state.done.set(self.state.done.get() + seconds);
        self.run.work.at(0.0)
    }

    /// Measures sites; gives windows and predictions.
    fn run(mut self, range: Range<usize>, sites: &mut [SiteChoice]) -> Result<(usize, usize)> {
        let Surroundings { config, .. } = self.run.around;
        let mut copies = Windows::new(self.run.around, Vec::new(), self.float.tokens());
        for index in 0..config.num_layers {
            self.run.work.begin(
                self.run.estimate.read.part(0.0),
                format!("block {}/{}: measuring what bits cost", index + 1, config.num_layers),
            )?;
            let mine = self.sizes.free[range.clone()].iter();
            let wanted: Vec<Site> =
                mine.clone().filter_map(|&(block, site)| (block == index).then_some(site)).collect();
            let new = self.block(index, &wanted, &mut copies)?;
            copies.windows.extend(new);
            if mine.last().is_none_or(|(block, _)| *block <= index) {
                self.live.clear();
            }
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
        let Surroundings { backend: b, .. } = self.run.around;
        let mut layers = self.run.transformed_block(index, &self.live)?;
        let norms = layers.norms.clone();
        let mut block = self.run.block_of(index, norms, |site| layers.layer(b, index, site))?;
        let mut sums = None;
        if !self.live.is_empty() {
            let attends = self.run.attends() && wanted.contains(&Site::Qkv);
            let (work, state) = (&mut self.run.work, self.state);
            let (before, seconds) = (state.done.get(), self.run.estimate.float_pass.amount);
            let on_wave = &mut |share: f64| {
                state.done.set(before + share * seconds);
                work.at(0.0)
            };
            match wanted {
                [] => self.live.pass(&block, on_wave)?,
                _ => {
                    let name = format!("model.layers.{index}");
                    sums = Some(self.live.float_pass(&name, &block, attends, on_wave)?);
                }
            }
        }
        let (mut of_sites, mut attended) = match sums {
            Some(BlockSums { sites, attended }) => (Some(sites.map(Some)), attended),
            None => (None, None),
        };
        let mut made = Vec::new();
        for &site in wanted {
            let layer = layers.take(b, site, None)?;
            let gram = of_sites.as_mut().and_then(|sums| sums[site].take());
            let inputs = gram.map(|gram| Sums::plain(gram).moments(b)).transpose()?;
            let values = match (&inputs, attended.take_if(|_| site == Site::Qkv)) {
                (Some(inputs), Some(averages)) => Some(value_moments(b, Sums::plain(averages), inputs)?),
                _ => None,
            };
            for scheme in self.sizes.schemes(site) {
                let rounded =
                    self.rounded(index, site, scheme, &layer, (inputs.as_ref(), values.as_ref()))?;
                let mut own = Windows::new(self.run.around, self.float.copies()?, copies.tokens());
                let float = std::mem::replace(block.layer_mut(site), rounded);
                own.pass(&block, &mut |_| Ok(()))?;
                *block.layer_mut(site) = float;
                made.append(&mut own.windows);
                self.done(self.solve_seconds(site) + self.pass_seconds())?;
            }
        }
        drop(layers);
        self.run.layers.clear();
        let candidates = copies.windows.len() as f64 / self.float.windows.len().max(1) as f64;
        let (before, seconds) = (self.state.done.get(), candidates * self.pass_seconds());
        let (work, state) = (&mut self.run.work, self.state);
        copies.pass(&block, &mut |share| {
            state.done.set(before + share * seconds);
            work.at(0.0)
        })?;
        self.float.pass(&block, &mut |_| Ok(()))?;
        self.done(self.pass_seconds())?;
        Ok(made)
    }

    /// A layer as the recipe rounds it for the moments of its inputs, and v for those of its own.
    fn rounded(
        &mut self,
        index: usize,
        site: Site,
        scheme: Scheme,
        layer: &FloatLinear<B>,
        (inputs, values): (Option<&Moments<B>>, Option<&Moments<B>>),
    ) -> Result<Layer<B>> {
        let run = &mut self.run;
        let weight = match values {
            Some(_) => {
                let v = run.queries_and_keys();
                let qk = run.solve(index, modules::QK, scheme, layer, 0..v, inputs)?;
                join(&qk, &run.solve(index, modules::V, scheme, layer, v..layer.n, values)?)?
            }
            None => run.solve(index, module(site), scheme, layer, 0..layer.n, inputs)?,
        };
        let weight = scheme.layer(weight, run.half.dtype());
        run.pack(index, weight, layer.bias.clone())
    }

    /// Compares the copies behind the last block with the float model.
    fn compare(&mut self, copies: &Windows<'a, B>, sites: &mut [SiteChoice]) -> Result<(usize, usize)> {
        let Surroundings { backend: b, config, .. } = self.run.around;
        self.run.work.begin(self.run.estimate.read.part(0.0), "comparing what bits cost")?;
        let rotations = self.run.rotations.clone();
        let mut head = self.writer.head(b, rotations.as_ref().map(|rotations| &rotations.stream))?;
        let windows = self.tokens.len();
        let mut sums = vec![0.0; copies.windows.len() / windows.max(1)];
        let mut predictions = 0;
        let row_seconds = self.head_seconds() / self.count().max(1) as f64;
        for window in 0..windows {
            let rows: Vec<usize> = (0..self.tokens[window].len() - 1).collect();
            for rows in rows.chunks(rows_at_a_time(config.vocab_size)) {
                head.make_logits(b, &self.float.windows[window].flow.residual, rows)?;
                let float = head.take_logits(b)?;
                let targets: Vec<u32> = rows.iter().map(|row| self.tokens[window][row + 1]).collect();
                if let Some((at, value)) = b.first_not_finite(&float)? {
                    return Err(QuantError::NotFinite {
                        layer: "the float model".into(),
                        reason: format!(
                            "a logit for token {} of held-out window {window} is {value}: nothing can be compared with it, so no budget \
                             can be spent by what is lost; give rules (--rule) instead",
                            rows[at / config.vocab_size] + 1
                        ),
                    });
                }
                for (candidate, sum) in sums.iter_mut().enumerate() {
                    let states = &copies.windows[candidate * windows + window].flow.residual;
                    let pairs = compare_logits(b, &float, head.make_logits(b, states, rows)?, &targets)?;
                    // What is no number stays none.
                    *sum += pairs.iter().map(|pair| pair.kl).sum::<f64>();
                    self.done(rows.len() as f64 * row_seconds)?;
                }
                predictions += rows.len();
            }
        }
        let mean = |sum: f64| Some(sum / predictions.max(1) as f64).filter(|mean| mean.is_finite());
        let candidates = sites.iter_mut().flat_map(|site| &mut site.candidates);
        candidates.zip(sums).for_each(|(candidate, sum)| candidate.kl_divergence = mean(sum));
        Ok((windows, predictions))
    }
}

#[cfg(test)]
#[path = "sensitivity_tests.rs"]
mod tests;
