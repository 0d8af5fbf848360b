//! The text to be scored, and how it is cut.

use std::path::PathBuf;

use clap::ValueEnum;
use qqq_eval::{Scoring, WindowOptions, first_tokens};
use qqq_model::{ChatTemplate, TextReader, Tokenizer};
use serde::Serialize;

use crate::{files, model::LoadedModel, texts::ReadArgs};

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
    /// Text file: plain text, JSON lines or arrays, parquet. Held-out text: not what the model was calibrated on
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    #[command(flatten)]
    read: ReadArgs,
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

/// Which text was scored: figures of different texts cannot be compared.
#[derive(Debug, Serialize)]
pub struct TextName {
    path: PathBuf,
    /// SHA-256 of the file; none of what can be read once only (a pipe).
    sha256: Option<String>,
}

impl TextName {
    /// For a table.
    pub fn row(&self) -> (&'static str, String) {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str()).display();
        let hash = self.sha256.as_ref().map(|h| format!(", SHA-256 {}...", &h[..16])).unwrap_or_default();
        ("text", format!("{name}{hash}"))
    }
}

impl TextArgs {
    /// Names the text.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn name(&self) -> anyhow::Result<TextName> {
        let sha256 = self.text.is_file().then(|| files::sha256(&self.text)).transpose()?;
        Ok(TextName { path: self.text.clone(), sha256 })
    }

    /// The text's tokens, as many as the windows take, and how to cut them. `note` is told what was read of a file of
    /// records.
    pub fn load(
        &self,
        model: &LoadedModel,
        note: &dyn Fn(&str),
    ) -> anyhow::Result<(Vec<u32>, WindowOptions)> {
        let options = self.options(&model.tokenizer)?;
        options.check(&model.checkpoint.config)?;
        let template = Box::new(|| ChatTemplate::load(&model.checkpoint, &model.tokenizer));
        let mut reader = TextReader::open(&self.text, &self.read.options(), template)?;
        let tokens = first_tokens(&mut reader, &model.tokenizer, options.tokens_needed())?;
        if let Some(read) = reader.describe() {
            note(&read);
        }
        Ok((tokens, options))
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
