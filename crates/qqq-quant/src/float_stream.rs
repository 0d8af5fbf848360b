//! The calibration windows in the float model, which go beside those in the quantized one from block to block: what a layer
//! should give is what it gives there, and weights can be corrected for what their inputs deviate
//! ([`solve::Correction`](crate::solve::Correction)).
//!
//! Between two sites these windows hold the input of the one at which they stand, in float32 (on a GPU 16 bits). That of the
//! last site would be the largest: a wave of windows makes it, adds to the sums, and leaves the block at once.

use qqq_backend::Calibrate;
use qqq_model::{Block, Site, block::Mixer};

use crate::{
    Result,
    moments::Sums,
    windows::{OnWave, Surroundings, Window, Windows, check, lanes},
};

/// All calibration windows in the float model.
pub(crate) struct FloatStream<'a, B: Calibrate> {
    windows: Windows<'a, B>,
}

/// A window in both models, and the inputs of its values as attention averages them.
struct Pair<'w, B: Calibrate> {
    quantized: &'w mut Window<B>,
    float: &'w mut Window<B>,
    gram: B::Gram,
    averages: Result<Option<(B::Input, B::Input)>>,
}

impl<'a, B: Calibrate> FloatStream<'a, B> {
    /// Of `tokens` tokens each.
    pub fn new(around: Surroundings<'a, B>, windows: Vec<Window<B>>, tokens: usize) -> Self {
        Self { windows: Windows::new(around, windows, tokens) }
    }

    /// The hidden states.
    pub fn states(&self) -> impl Iterator<Item = &B::Tensor> {
        self.windows.states()
    }

    /// Forgets them: nothing comes after.
    pub fn clear(&mut self) {
        self.windows.clear();
    }

    /// Goes through a float block.
    ///
    /// # Errors
    /// Those of the backend and of `on_wave`.
    pub fn pass(&mut self, block: &Block<B>, on_wave: &mut OnWave<'_>) -> Result<()> {
        self.windows.pass(block, on_wave)
    }

    /// Goes on to the input of a site of the float block `block`, and from the last site on to leave the block if `leaves`.
    ///
    /// # Errors
    /// As [`sum_deviations`](Self::sum_deviations).
    pub fn go_on(
        &mut self,
        name: &str,
        block: &Block<B>,
        site: Site,
        leaves: bool,
        on_wave: &mut OnWave<'_>,
    ) -> Result<()> {
        self.waves(name, block, site, leaves, on_wave, |_, _, _| Ok(()))
    }

    /// Goes on to the input of a site of the float block `block`, and sums what it deviates from that of the `quantized`
    /// windows, which stand there. From the last site it goes on to leave the block if `leaves`.
    ///
    /// # Errors
    /// States that are not finite; those of the backend and of `on_wave`.
    pub fn sum_deviations(
        &mut self,
        name: &str,
        block: &Block<B>,
        site: Site,
        quantized: &Windows<'_, B>,
        leaves: bool,
        on_wave: &mut OnWave<'_>,
    ) -> Result<B::Deviations> {
        let Surroundings { backend: b, config, .. } = self.windows.around;
        let inputs = quantized.inputs();
        let mut sums = b.deviations(site.in_features(config), &inputs)?;
        self.waves(name, block, site, leaves, on_wave, |b, first, windows| {
            let pairs = inputs[first..].iter().zip(windows);
            let pairs: Vec<_> = pairs.filter_map(|(x, window)| Some((*x, window.flow.input()?))).collect();
            Ok(b.deviations_add(&mut sums, first, &pairs)?)
        })?;
        Ok(sums)
    }

    /// Goes on wave by wave; `at_site` sees those that have come to the site, with the number of the first.
    fn waves(
        &mut self,
        name: &str,
        block: &Block<B>,
        site: Site,
        leaves: bool,
        on_wave: &mut OnWave<'_>,
        mut at_site: impl FnMut(&B, usize, &[Window<B>]) -> Result<()>,
    ) -> Result<()> {
        let Surroundings { backend: b, config, .. } = self.windows.around;
        let workshops = self.windows.workshops();
        let most = lanes(&[], B::PIECES.lanes);
        let total = self.windows.windows.len();
        for (wave, windows) in self.windows.windows.chunks_mut(most).enumerate() {
            workshops.each(windows, |step, flow| {
                block.advance(step, flow, site)?;
                flow.shed(b)?;
                if site == Site::GateUp { check(b, name, config, flow) } else { Ok(()) }
            })?;
            let first = wave * most;
            at_site(b, first, windows)?;
            if leaves && site == Site::Down {
                workshops.each(windows, |step, flow| {
                    block.finish(step, flow)?;
                    flow.shed(b)?;
                    check(b, name, config, flow)
                })?;
            }
            on_wave((first + windows.len()) as f64 / total as f64)?;
        }
        Ok(())
    }

    /// As [`Windows::sum_attended`] of the `quantized` windows, and what these averages deviate. Both blocks have q and k.
    ///
    /// # Errors
    /// Those of the backend and of `on_wave`.
    pub fn sum_attended(
        &mut self,
        block: &Block<B>,
        quantized: &mut Windows<'_, B>,
        quantized_block: &Block<B>,
        on_wave: &mut OnWave<'_>,
    ) -> Result<Sums<B>> {
        let Surroundings { backend: b, config, .. } = self.windows.around;
        let width = Site::Qkv.in_features(config);
        let workshops = self.windows.workshops();
        let attended = |window: &mut Window<B>, block: &Block<B>| -> Result<Option<B::Input>> {
            let Mixer::Attention(attention) = &block.mixer;
            let mut averages = None;
            workshops.work(window, |step, flow| {
                block.project(step, flow)?;
                if let Some(x) = flow.input() {
                    averages = Some(b.attended(x, &step.scratch.qkv, &attention.kind)?);
                }
                Ok(())
            })?;
            Ok(averages)
        };
        let of_pair = |quantized: &mut Window<B>, float: &mut Window<B>, gram: &mut B::Gram| {
            let (Some(x), Some(y)) = (attended(quantized, quantized_block)?, attended(float, block)?) else {
                return Ok(None);
            };
            b.gram_add(gram, &x)?;
            Ok(Some((x, y)))
        };
        let total = self.windows.windows.len();
        let most = lanes(&[width], B::PIECES.lanes);
        let mut deviations = b.deviations(width, &[])?;
        let mut grams: Vec<B::Gram> = Vec::new();
        let mut done = 0;
        let waves = quantized.windows.chunks_mut(most).zip(self.windows.windows.chunks_mut(most));
        for (quantized, float) in waves {
            let mut of_lanes = grams.into_iter();
            let mut pairs = Vec::with_capacity(float.len());
            for (quantized, float) in quantized.iter_mut().zip(float) {
                let gram = of_lanes.next().map_or_else(|| b.gram(width), Ok)?;
                pairs.push(Pair { quantized, float, gram, averages: Ok(None) });
            }
            let unused: Vec<_> = of_lanes.collect();
            b.each(&mut pairs, |Pair { quantized, float, gram, averages }| {
                *averages = of_pair(quantized, float, gram);
            });
            done += pairs.len();
            grams = Vec::with_capacity(pairs.len() + unused.len());
            for Pair { gram, averages, .. } in pairs {
                if let Some((x, y)) = averages? {
                    b.deviations_add(&mut deviations, 0, &[(&x, &y)])?;
                }
                grams.push(gram);
            }
            grams.extend(unused);
            on_wave(done as f64 / total as f64)?;
        }
        let mut lanes = grams.into_iter();
        let mut gram = lanes.next().map_or_else(|| b.gram(width), Ok)?;
        lanes.try_for_each(|lane| b.gram_merge(&mut gram, &lane))?;
        Ok(Sums { gram, deviations: Some(deviations) })
    }
}

#[cfg(test)]
#[path = "float_stream_tests.rs"]
mod tests;
