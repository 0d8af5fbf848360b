//! The text to be scored, and how it is cut.

use std::path::PathBuf;

use clap::ValueEnum;
use qqq_eval::{Scoring, WindowOptions};
use qqq_model::Tokenizer;

use crate::model;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ScoringArg {
    /// Every token of a window but the first, as the QQQ and GPTQ authors count
    All,
    /// Second halves of windows, as llama.cpp's perplexity tool counts
    SecondHalf,
}

/// Text and windows.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Text")]
pub struct TextArgs {
    /// Text file (UTF-8). Held-out text: not what the model was calibrated on
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens of a window: what the model sees at once
    #[arg(long, value_name = "TOKENS", default_value_t = 2048)]
    window: usize,
    /// Tokens between the starts of windows; below --window each token gets a longer context, and takes longer
    /// [default: --window]
    #[arg(long, value_name = "TOKENS")]
    stride: Option<usize>,
    /// Which tokens of a window count
    #[arg(long, value_enum, default_value_t = ScoringArg::All)]
    scoring: ScoringArg,
    /// Score the first N windows only
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

impl TextArgs {
    /// The text's tokens and how to cut them.
    pub fn load(&self, tokenizer: &Tokenizer) -> anyhow::Result<(Vec<u32>, WindowOptions)> {
        let tokens = tokenizer.encode(&model::read_text(&self.text)?, true)?;
        Ok((tokens, self.options(tokenizer)?))
    }

    fn options(&self, tokenizer: &Tokenizer) -> anyhow::Result<WindowOptions> {
        let (scoring, first_token) = match self.scoring {
            ScoringArg::All => (Scoring::All, None),
            // llama.cpp begins every window with BOS where the tokenizer adds one.
            ScoringArg::SecondHalf => {
                let begins_with = tokenizer.encode("", true)?.first().copied();
                (Scoring::SecondHalf, begins_with.filter(|id| tokenizer.bos() == Some(*id)))
            }
        };
        Ok(WindowOptions {
            window: self.window,
            stride: self.stride.unwrap_or(self.window),
            scoring,
            limit: self.limit,
            first_token,
        })
    }
}
