//! Sampling options of `generate` and `chat`.

use qqq_engine::SamplingOptions;

use crate::{
    console::Console,
    errors::bad_input,
    given::Given,
    numbers::{self, Seed},
};

/// How the next token is chosen.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    // First: it sees what comes after it.
    #[command(flatten)]
    given: Given,
    /// 0 takes the likeliest token each time; 1 samples from the model's own distribution; higher is wilder
    /// [default: 0 for generate, 0.7 for chat]
    #[arg(long, allow_negative_numbers = true, value_name = "T")]
    pub temperature: Option<f32>,
    /// Sample among the K likeliest tokens only; 0 or -1: all
    #[arg(long, value_name = "K", default_value = "0", allow_negative_numbers = true, value_parser = numbers::top_k)]
    pub top_k: usize,
    /// Sample among the likeliest tokens that together have probability P; 1: all
    #[arg(long, allow_negative_numbers = true, value_name = "P", default_value_t = 1.0)]
    pub top_p: f32,
    /// Drop tokens less likely than P times the likeliest; 0: none
    #[arg(long, allow_negative_numbers = true, value_name = "P", default_value_t = 0.0)]
    pub min_p: f32,
    /// Divide positive (multiply negative) logits of tokens that have occurred by this; 1: none
    #[arg(long, allow_negative_numbers = true, value_name = "R", default_value_t = 1.0)]
    pub repetition_penalty: f32,
    /// Seed of the sampling: the same seed gives the same text; -1: a random one, which is told
    #[arg(long, value_name = "N", default_value = "0", allow_negative_numbers = true, value_parser = Seed::parse)]
    pub seed: Seed,
}

impl SamplingArgs {
    /// Checks the ranges; `temperature` is what holds if none was given. A seed that is drawn is told.
    pub fn options(&self, temperature: f32, console: &Console) -> anyhow::Result<SamplingOptions> {
        let (seed, is_drawn) = self.seed.value()?;
        let options = SamplingOptions {
            temperature: self.temperature.unwrap_or(temperature),
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed,
        };
        if let Some(problem) = options.problem() {
            return Err(bad_input(problem));
        }
        if options.temperature == 0.0 && self.temperature.is_none() {
            for option in ["top-k", "top-p", "min-p", "seed"].into_iter().filter(|o| self.given.has(o)) {
                console.warn(&format!(
                    "--{option} does nothing at temperature 0, the default here: the likeliest token is taken each time; give a \
                     --temperature to sample"
                ));
            }
        }
        if is_drawn {
            console.drawn_seed(seed);
        }
        Ok(options)
    }
}
