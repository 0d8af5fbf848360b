//! The output head, where it is quantized: behind the last block, for what the quantized model has there.

use std::time::Instant;

use qqq_backend::{Calibrate, InputKind};
use qqq_formats::{ModelConfig, QuantizedWeight};
use qqq_model::{Site, final_norm_of, names};

use super::{Run, log_memory, solving::scale_range};
use crate::{
    Precision, QuantError, Result, Schemes,
    output::OutputCheckpoint,
    report::LayerReport,
    solve::{ROWS_PER_TASK, solve_on},
    windows::Windows,
};

/// Checks that there can be a quantized output head, before any work.
///
/// # Errors
/// Layers that all stay float; shapes that the kernels do not take.
pub(crate) fn check(config: &ModelConfig, schemes: &Schemes) -> Result<()> {
    if schemes.head().is_some() && schemes.most().is_none() {
        return Err(QuantError::Recipe(
            "an int8 output head goes with quantized layers, and this recipe leaves all of them in 16 bits; leave the head in 16 bits \
             too (head: float)"
                .into(),
        ));
    }
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    if schemes.head().is_none() || vocab.is_multiple_of(16) && hidden.is_multiple_of(16) {
        return Ok(());
    }
    Err(QuantError::Recipe(format!(
        "the output head has {hidden} inputs and a vocabulary of {vocab} tokens; the int8 kernels take multiples of 16: leave the \
         head in 16 bits (--head float)"
    )))
}

/// Rows of the head that are solved together: as many as take no more memory than the largest layer of a block.
pub(crate) fn rows_at_a_time(config: &ModelConfig) -> usize {
    let weights = |site: Site| site.out_features(config) * site.in_features(config);
    let largest = Site::ALL.map(weights).into_iter().max().unwrap_or(0);
    let rows = largest / config.hidden_size.max(1) / ROWS_PER_TASK * ROWS_PER_TASK;
    rows.clamp(ROWS_PER_TASK, config.vocab_size.max(ROWS_PER_TASK))
}

impl<B: Calibrate> Run<'_, B> {
    /// Solves the output head for the states that have left the last block, which are forgotten, and writes it. Errors of the
    /// layers before are in these; the head is not moved to make up for them.
    ///
    /// # Errors
    /// As [`solve`](Run::solve); a head that cannot be read or written.
    pub(super) fn quantize_head(
        &mut self,
        windows: &mut Windows<'_, B>,
        writer: &mut OutputCheckpoint<'_>,
    ) -> Result<()> {
        let Some(scheme) = self.schemes.head() else { return Ok(()) };
        let (b, config) = (self.around.backend, self.around.config);
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let name = names::LM_HEAD_MODULE;
        let hessian = match windows.is_empty() {
            true => None,
            false => Some(self.head_hessian(scheme.input_kind(), windows, writer)?),
        };
        let options = self.solve_options(scheme);
        let rotations = self.rotations.clone();
        let rotation = rotations.as_ref().map(|rotations| &rotations.stream);
        let (mut codes, mut scales) = (Vec::with_capacity(vocab * hidden), Vec::with_capacity(vocab));
        let (mut energy, mut nearest, mut error, mut damping, mut dead_channels) = (0.0, 0.0, 0.0, 0.0f64, 0);
        let (mut weight_energy, mut weight_error) = (0.0, 0.0);
        let rows = rows_at_a_time(config);
        for first in (0..vocab).step_by(rows) {
            let part = first..vocab.min(first + rows);
            let clock = Instant::now();
            let units = self.estimate.head_rows(part.len(), hidden);
            log_memory("output head");
            self.work
                .begin(units, format!("output head: solving rows {first} to {} of {vocab}", part.end - 1))?;
            let weights = writer.head_rows(b, rotation, part.clone())?;
            let solved = solve_on(b, name, &weights, 0..part.len(), hidden, hessian.as_ref(), &options)?;
            codes.extend_from_slice(&solved.weight.codes);
            scales.extend_from_slice(solved.weight.channel_scales());
            energy += solved.energy;
            nearest += solved.loss_nearest * solved.energy;
            error += solved.loss * solved.energy;
            weight_energy += solved.weight_energy;
            weight_error += solved.weight_loss * solved.weight_energy;
            (damping, dead_channels) = (damping.max(solved.damping), solved.dead_channels);
            self.timings.solve += clock.elapsed().as_secs_f64();
        }
        self.warn_of_damping(name, damping);
        let share = |error: f64, energy: f64| if energy > 0.0 { error / energy } else { 0.0 };
        self.layers.push(LayerReport {
            name: name.into(),
            precision: Some(Precision::of(Some(scheme))),
            out_features: vocab,
            in_features: hidden,
            loss_nearest: share(nearest, energy),
            loss: share(error, energy),
            weight_error: Some(share(weight_error, weight_energy).sqrt()),
            damping,
            dead_channels,
            stored_bits: None,
            scale_range: scale_range(&scales),
        });
        let clock = Instant::now();
        let weight: QuantizedWeight = scheme.weight((vocab, hidden), codes, scales);
        writer.add_quantized_head(&weight, scheme)?;
        self.timings.write += clock.elapsed().as_secs_f64();
        Ok(())
    }

    /// Second moments of the head's inputs, of a kind: the last norm of the windows' states, as it runs.
    fn head_hessian(
        &mut self,
        kind: InputKind,
        windows: &mut Windows<'_, B>,
        writer: &OutputCheckpoint<'_>,
    ) -> Result<B::Hessian> {
        let clock = Instant::now();
        self.work.begin(self.estimate.head_inputs, "output head: calibrating")?;
        let (b, config) = (self.around.backend, self.around.config);
        let hidden = config.hidden_size;
        let norm = final_norm_of(b, config, writer.stored_head_norm(self.rotations.is_some())?)?;
        let mut inputs = Vec::with_capacity(windows.windows.len());
        // Leaving the block has made sure that the states are finite.
        for mut window in std::mem::take(&mut windows.windows) {
            let mut input = b.input(0, 0)?;
            b.add_norm(&mut window.flow.residual, None, &norm, kind, &mut input)?;
            inputs.push(input);
        }
        let sum = b.gram_of(hidden, &inputs.iter().collect::<Vec<_>>())?;
        drop(inputs);
        let hessian = b.hessian(sum)?;
        self.timings.calibrate += clock.elapsed().as_secs_f64();
        Ok(hessian)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Head, Recipe, shapes};

    #[test]
    fn pieces_are_whole_tasks_no_larger_than_a_layer() {
        for config in [shapes::smollm2(), shapes::llama_7b(32), shapes::wide()] {
            let rows = rows_at_a_time(&config);
            assert!(rows.is_multiple_of(ROWS_PER_TASK) || rows == config.vocab_size, "{rows}");
            assert!(rows <= 2 * config.intermediate_size && rows > config.intermediate_size, "{rows}");
        }
    }

    #[test]
    fn a_head_of_no_multiple_of_16_tokens_stays_float() {
        let recipe = Recipe { head: Head::Int8, ..Recipe::DEFAULT };
        let mut config = shapes::wide();
        let check = |config: &ModelConfig| super::check(config, &Schemes::of(config, &recipe).unwrap());
        config.vocab_size = 50_256;
        check(&config).unwrap();
        config.vocab_size = 50_257;
        let error = check(&config).unwrap_err().to_string();
        assert!(error.contains("50257 tokens") && error.contains("--head float"), "{error}");
    }
}
