//! The text to be scored, and how it is cut.

use std::path::{Path, PathBuf};

use anyhow::Context;
use qqq_backend::Backend;
use qqq_eval::{DATA_SETS, DataSet, Scoring, Text, WindowOptions};
use qqq_formats::Checkpoint;
use qqq_model::{
    ChatTemplate, TextOptions, TextReader, Tokenizer,
    hub::{HubOptions, dataset_files},
};
use serde::Serialize;

use crate::{
    console::Console,
    errors::{bad_input, bad_input_hint},
    model::{HubArgs, LoadedModel},
    numbers,
    texts::ReadArgs,
};

/// Text and windows.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Text")]
pub struct TextArgs {
    /// Text file: plain text, JSON lines or arrays, parquet, Arrow. Held-out text: not what the model was calibrated on
    #[arg(long, value_name = "FILE", required_unless_present = "dataset")]
    text: Option<PathBuf>,
    /// Instead of a text: a data set as papers since GPTQ score it, wikitext2, c4 or ptb, from the hub; NAME=FILE: from its file
    /// (parquet, JSON lines). Test split of WikiText-2, the first 1,100 texts of C4's validation split (256 windows), test split
    /// of the Penn Treebank
    #[arg(long, value_name = "NAME[=FILE]", value_parser = named, conflicts_with_all = ["text", "text_field", "text_format"])]
    dataset: Option<Named>,
    #[command(flatten)]
    cut: CutArgs,
}

/// A data set that was named, with the file to take it from, if not from the hub.
#[derive(Clone, Debug)]
struct Named {
    set: &'static DataSet,
    file: Option<PathBuf>,
}

fn named(text: &str) -> Result<Named, String> {
    let (name, file) = match text.split_once('=') {
        Some((name, file)) => (name, Some(PathBuf::from(file))),
        None => (text, None),
    };
    match DATA_SETS.iter().find(|set| set.name == name) {
        Some(set) => Ok(Named { set, file }),
        None => {
            let known: Vec<&str> = DATA_SETS.iter().map(|set| set.name).collect();
            Err(format!("no data set is called {name:?}; known are {}", known.join(", ")))
        }
    }
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
    /// The data set, where it was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    dataset: Option<&'static str>,
    path: PathBuf,
    /// SHA-256 of the file; none of what can be read once only (a pipe).
    sha256: Option<String>,
}

impl TextName {
    /// The file's, without its folder.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or(self.path.as_os_str()).display().to_string()
    }

    /// SHA-256 of the file; none of what can be read once only.
    pub fn sha256(&self) -> Option<&str> {
        self.sha256.as_deref()
    }

    /// For a table.
    pub fn row(&self) -> (&'static str, String) {
        let of_set = self.dataset.map(|name| format!("{name}, ")).unwrap_or_default();
        let name = of_set + &self.name();
        let hash = self.sha256.as_ref().map(|h| format!(", SHA-256 {}...", &h[..16])).unwrap_or_default();
        ("text", format!("{name}{hash}"))
    }
}

/// A text to be scored, which is read once.
pub struct OpenText<'a> {
    text: Text<'a>,
    dataset: Option<&'static str>,
    is_fetched: bool,
    path: PathBuf,
    options: WindowOptions,
}

impl TextArgs {
    /// Opens the text for a model, whose chat template renders what the text has of messages.
    ///
    /// # Errors
    /// The file cannot be read or fetched, or the windows do not fit the model.
    pub fn open<'a, B: Backend>(
        &self,
        model: &'a LoadedModel<B>,
        hub: &HubArgs,
    ) -> anyhow::Result<OpenText<'a>> {
        match (&self.text, &self.dataset) {
            (_, Some(named)) => self.cut.open_set(named, model, hub),
            (Some(path), None) => self.cut.open(path, model),
            (None, None) => Err(bad_input("there is no text: --text or --dataset")),
        }
    }
}

impl CutArgs {
    /// Opens a text for a model, whose chat template renders what the text has of messages.
    ///
    /// # Errors
    /// The file cannot be read, or the windows do not fit the model.
    pub fn open<'a, B: Backend>(
        &self,
        path: &Path,
        model: &'a LoadedModel<B>,
    ) -> anyhow::Result<OpenText<'a>> {
        let options = self.options(&model.tokenizer)?;
        options.check(&model.checkpoint.config)?;
        let template = Box::new(|| ChatTemplate::load(&model.checkpoint, &model.tokenizer));
        let reader = TextReader::open(path, &self.read.options()?, template)?;
        self.read.check_fields(reader.has_records())?;
        Ok(OpenText {
            text: Text::new(reader),
            dataset: None,
            is_fetched: false,
            path: path.to_owned(),
            options,
        })
    }

    fn open_set<'a, B: Backend>(
        &self,
        Named { set, file }: &Named,
        model: &'a LoadedModel<B>,
        hub: &HubArgs,
    ) -> anyhow::Result<OpenText<'a>> {
        let mut options = self.options(&model.tokenizer)?;
        options.check(&model.checkpoint.config)?;
        if let Some(windows) = set.windows {
            options.limit = Some(options.limit.unwrap_or(windows).min(windows));
        }
        let path = match file {
            Some(file) => file.clone(),
            None => {
                let hub = HubOptions { revision: Some(set.revision.into()), ..hub.data_set_options() };
                let files = dataset_files(set.hub, &hub)?;
                files.into_iter().next().with_context(|| format!("{} has no file", set.hub))?
            }
        };
        let read = TextOptions { field: Some(set.field.into()), ..TextOptions::default() };
        let reader = TextReader::open(&path, &read, Box::new(|| Ok(None)))?;
        if !reader.has_records() {
            return Err(bad_input_hint(
                format!("--dataset {}={}: it is plain text", set.name, path.display()),
                format!(
                    "records with a field {:?} are needed, as the hub has them (parquet, JSON lines)",
                    set.field
                ),
            ));
        }
        let reader = reader.joined(set.separator, set.records);
        let (dataset, is_fetched) = (Some(set.name), file.is_none());
        Ok(OpenText { text: Text::new(reader), dataset, is_fetched, path, options })
    }

    /// That a model can take its windows.
    ///
    /// # Errors
    /// They are longer than its context, or make no sense.
    pub fn check(&self, checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> anyhow::Result<()> {
        Ok(self.options(tokenizer)?.check(&checkpoint.config)?)
    }

    /// All that decides on what is scored of a text, but for its tokenizer.
    pub fn key(&self) -> serde_json::Value {
        let Self { read, window, stride, scoring, limit } = self;
        serde_json::json!({
            "read": read.key(), "window": window, "stride": stride.unwrap_or(*window), "scoring": scoring,
            "limit": limit.filter(|n| *n != usize::MAX),
        })
    }

    fn options(&self, tokenizer: &Tokenizer) -> anyhow::Result<WindowOptions> {
        let first_token = match self.scoring {
            Scoring::All => None,
            // llama.cpp begins every window with BOS where the tokenizer adds one.
            Scoring::SecondHalf => tokenizer.added_bos()?,
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
        // What comes from the hub has no path of its own.
        if let (Some(sha256), false) = (&sha256, self.is_fetched) {
            console.read_input(&self.path, sha256);
        }
        Ok((TextName { dataset: self.dataset, path: self.path, sha256 }, self.options))
    }
}
