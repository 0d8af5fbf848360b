//! The tokens of a run's windows: those that it calibrates on, and those that it holds out.

use qqq_backend::Calibrate;
use qqq_formats::{Checkpoint, ModelConfig};
use qqq_model::{Decoder, ModelError, Tokenizer};

use crate::{
    Calibration, QuantError, Recipe, Result,
    calibration::{self, CalibrationText, Read, Source, TokenWindows},
    held_out::HeldText,
    self_samples,
    work::Work,
};

/// Windows of tokens that follow no text.
pub(crate) fn any_windows(config: &ModelConfig, calibration: &Calibration, held: HeldText) -> TokenWindows {
    // A prime number apart.
    let token = |i: usize| (i * 7919 % config.vocab_size) as u32;
    let window = |w: usize| (0..calibration.window).map(|i| token(w * calibration.window + i)).collect();
    let mut windows = (0..calibration.windows + held.windows).map(window);
    TokenWindows {
        calibration: windows.by_ref().take(calibration.windows).collect(),
        held_out: windows.collect(),
    }
}

/// Where nothing is calibrated: windows of the built-in text to be held out. That it has none for a model stops no run.
pub(crate) fn uncalibrated_windows(
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    recipe: &Recipe,
    held: HeldText,
    work: &mut Work<'_>,
) -> TokenWindows {
    if held.windows == 0 {
        return TokenWindows::default();
    }
    let none = Calibration { windows: 0, window: held.window, ..recipe.calibration };
    let windows = calibration::windows_of_built_in(tokenizer, &none, held.windows, recipe.seed);
    let known = windows.and_then(|windows| {
        windows.all().try_for_each(|ids| check_tokens(ids, config.vocab_size))?;
        Ok(windows)
    });
    known.unwrap_or_else(|e| {
        work.note(&format!("the built-in text cannot be held out: {e}"));
        TokenWindows::default()
    })
}

/// What is said where less was held out than was asked for.
pub(crate) fn held_out_note(windows: &[Vec<u32>], held: HeldText) -> String {
    let tokens: usize = windows.iter().map(Vec::len).sum();
    match tokens {
        0 => "the calibration text has nothing left to hold out: how far the result is from the float model is not measured \
              (qqq eval kld does that, on another text)"
            .into(),
        _ => format!(
            "beside the calibration windows the text has {tokens} tokens to hold out, not {} windows of {}: how far the result \
             is from the float model is measured on these",
            held.windows, held.window
        ),
    }
}

/// Of so many windows one begins amid a text, the others with BOS.
const AMID_TEXT: usize = 4;

/// Puts BOS at the beginning of windows, in the place of their last token, where the tokenizer puts it before texts: what a model
/// is asked begins with it, and all tokens look at it. Some calibration windows stay as they are, since tokens far behind BOS
/// see little of it, as do texts that are cut without it.
fn begin_with_bos(windows: &mut TokenWindows, bos: u32) {
    let begin = |window: &mut Vec<u32>| {
        if window.pop().is_some() {
            window.insert(0, bos);
        }
    };
    let calibration = windows.calibration.iter_mut().enumerate();
    calibration.filter(|(i, _)| i % AMID_TEXT != 0).for_each(|(_, window)| begin(window));
    windows.held_out.iter_mut().for_each(begin);
}

/// The windows of a recipe that calibrates. Those of the tool's own recipe begin with BOS where the tokenizer adds it, but for every
/// fourth; those of published recipes are cut from the text, as their authors do.
///
/// # Errors
/// Text that cannot be read or is too short; those of sampling.
pub(crate) fn token_windows<B: Calibrate>(
    backend: &B,
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    recipe: &Recipe,
    held: HeldText,
    text: CalibrationText<'_>,
    work: &mut Work<'_>,
) -> Result<TokenWindows> {
    let (calibration, seed) = (&recipe.calibration, recipe.seed);
    let mut windows = match text.source {
        Source::Files(files) | Source::Dataset { files, .. } => {
            let options = text.options.cloned().unwrap_or_default();
            let read =
                Read { checkpoint, tokenizer, options: &options, note: &mut |message| work.note(message) };
            calibration::windows_of_files(files, read, calibration, held.windows, seed)?
        }
        Source::BuiltIn => calibration::windows_of_built_in(tokenizer, calibration, held.windows, seed)?,
        Source::SelfSamples => {
            // The time that it takes is not among the units; Ctrl-C works all the same.
            let decoder = Decoder::load_with(backend.clone(), checkpoint, &mut |_, _| work.at(0.0).is_ok());
            let decoder = decoder.map_err(|e| match e {
                ModelError::Interrupted => QuantError::Interrupted,
                e => e.into(),
            })?;
            let total = ((calibration.windows + held.windows) * calibration.window) as f64;
            let mut done = 0.0;
            let mut sample = |windows: usize, seed: u64| {
                let amount = Calibration { windows, ..*calibration };
                self_samples::sample_windows(&decoder, tokenizer, &amount, seed, &mut || {
                    done += 1.0;
                    work.at(done / total)
                })
            };
            // Batches of their own: what is held out changes nothing for the others.
            return Ok(TokenWindows {
                calibration: sample(calibration.windows, seed)?,
                held_out: sample(held.windows, seed.wrapping_add(1 << 32))?,
            });
        }
    };
    if recipe.name.is_own()
        && let Some(bos) = tokenizer.added_bos()?
    {
        begin_with_bos(&mut windows, bos);
    }
    Ok(windows)
}

/// That the model knows all tokens.
pub(crate) fn check_tokens(ids: &[u32], vocab: usize) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocab) {
        None => Ok(()),
        Some(id) => Err(ModelError::Tokenizer(format!(
            "token {id} of the calibration text is outside the model's vocabulary of {vocab}"
        ))
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bos_takes_the_place_of_the_last_token() {
        let window = |first: u32| vec![first, first + 1, first + 2];
        let mut windows = TokenWindows {
            calibration: (0..6).map(|w| window(10 * w + 10)).collect(),
            held_out: vec![window(70), Vec::new()],
        };
        begin_with_bos(&mut windows, 1);
        let begun = |first: u32| vec![1, first, first + 1];
        assert_eq!(windows.calibration, [window(10), begun(20), begun(30), begun(40), window(50), begun(60)]);
        assert_eq!(windows.held_out, [begun(70), Vec::new()]);
    }
}
