//! The text to be scored, and how it is cut.

use std::path::{Path, PathBuf};

use qqq_backend::Backend;
use qqq_eval::{Scoring, Text, WindowOptions};
use qqq_model::{ChatTemplate, TextReader, Tokenizer};
use serde::Serialize;

use crate::{console::Console, model::LoadedModel, numbers, texts::ReadArgs};

/// Text and windows.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Text")]
pub struct TextArgs {
    /// Text file: plain text, JSON lines or arrays, parquet. Held-out text: not what the model was calibrated on
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    #[command(flatten)]
    cut: CutArgs,
}

/// How texts are read and cut.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Text")]
pub struct CutArgs {
    #[command(flatten)]
    read: ReadArgs,
    /// Tokens of a window: what the model sees at once
    #[arg(long, value_name = "TOKENS", default_value_t = 2048, allow_negative_numbers = true,
        value_parser = numbers::count)]
    window: usize,
    /// Tokens between the starts of windows; below --window each token gets a longer context, and takes longer
    /// [default: --window]
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true, value_parser = numbers::count)]
    stride: Option<usize>,
    /// Which tokens of a window count
    #[arg(long, value_enum, default_value_t = Scoring::All)]
    scoring: Scoring,
    /// Score the first N windows only; -1: all
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = numbers::limit)]
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
    /// The file's, without its folder.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or(self.path.as_os_str()).display().to_string()
    }

    /// For a table.
    pub fn row(&self) -> (&'static str, String) {
        let name = self.name();
        let hash = self.sha256.as_ref().map(|h| format!(", SHA-256 {}...", &h[..16])).unwrap_or_default();
        ("text", format!("{name}{hash}"))
    }
}

/// A text to be scored, which is read once.
pub struct OpenText<'a> {
    text: Text<'a>,
    path: &'a Path,
    options: WindowOptions,
}

impl TextArgs {
    /// Opens the text for a model, whose chat template renders what the text has of messages.
    ///
    /// # Errors
    /// The file cannot be read, or the windows do not fit the model.
    pub fn open<'a, B: Backend>(&'a self, model: &'a LoadedModel<B>) -> anyhow::Result<OpenText<'a>> {
        self.cut.open(&self.text, model)
    }
}

impl CutArgs {
    /// Opens a text for a model, whose chat template renders what the text has of messages.
    ///
    /// # Errors
    /// The file cannot be read, or the windows do not fit the model.
    pub fn open<'a, B: Backend>(
        &self,
        path: &'a Path,
        model: &'a LoadedModel<B>,
    ) -> anyhow::Result<OpenText<'a>> {
        let options = self.options(&model.tokenizer)?;
        options.check(&model.checkpoint.config)?;
        let template = Box::new(|| ChatTemplate::load(&model.checkpoint, &model.tokenizer));
        let reader = TextReader::open(path, &self.read.options()?, template)?;
        self.read.check_fields(reader.has_records())?;
        Ok(OpenText { text: Text::new(reader), path, options })
    }

    /// All that decides on what is scored of a text, but for its tokenizer.
    pub fn key(&self) -> serde_json::Value {
        let Self { read, window, stride, scoring, limit } = self;
        serde_json::json!({
            "read": format!("{read:?}"), "window": window, "stride": stride.unwrap_or(*window), "scoring": scoring,
            "limit": limit.filter(|n| *n != usize::MAX),
        })
    }

    fn options(&self, tokenizer: &Tokenizer) -> anyhow::Result<WindowOptions> {
        let first_token = match self.scoring {
            Scoring::All => None,
            // llama.cpp begins every window with BOS where the tokenizer adds one.
            Scoring::SecondHalf => {
                let begins_with = tokenizer.encode("", true)?.first().copied();
                begins_with.filter(|id| tokenizer.bos() == Some(*id))
            }
        };
        Ok(WindowOptions {
            window: self.window,
            stride: self.stride.unwrap_or(self.window),
            scoring: self.scoring,
            limit: self.limit.filter(|n| *n != usize::MAX),
            first_token,
        })
    }
}

impl OpenText<'_> {
    /// How it is cut.
    pub fn options(&self) -> &WindowOptions {
        &self.options
    }

    /// Its tokens, as many as the windows take.
    pub fn tokens(&mut self, tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
        Ok(self.text.first_tokens(tokenizer, self.options.tokens_needed())?)
    }

    /// What it is called, when its tokens were taken; notes what was read of a file of records.
    ///
    /// # Errors
    /// The rest of the file cannot be read.
    pub fn finish(mut self, console: &Console) -> anyhow::Result<(TextName, WindowOptions)> {
        if let Some(read) = self.text.reader().describe() {
            console.note(&read);
        }
        let sha256 = self.text.reader().sha256()?;
        Ok((TextName { path: self.path.to_owned(), sha256 }, self.options))
    }
}
