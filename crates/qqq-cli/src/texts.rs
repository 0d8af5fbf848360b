//! How text files are read: options of every command that reads some.

use clap::ValueEnum as _;
use qqq_model::{TextOptions, text::TextFormat};

use crate::errors::bad_input;

/// How text files are read.
#[derive(Clone, Debug, clap::Args)]
pub struct ReadArgs {
    /// What the text files are
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = TextFormat::Auto)]
    text_format: TextFormat,
    /// Field of a JSON record, or column of a parquet or Arrow file, that holds its text or its list of messages [default: the
    /// first that is there of text, messages, conversations, instruction with output, prompt with completion, content]
    #[arg(long, value_name = "NAME")]
    text_field: Option<String>,
}

impl ReadArgs {
    /// All that decides on how a file is read.
    pub fn key(&self) -> serde_json::Value {
        let format = self.text_format.to_possible_value().map(|value| value.get_name().to_owned());
        serde_json::json!({ "text_format": format, "text_field": self.text_field })
    }

    /// For the model library.
    ///
    /// # Errors
    /// A field of what has none.
    pub fn options(&self) -> anyhow::Result<TextOptions> {
        if let (TextFormat::Plain, Some(field)) = (self.text_format, &self.text_field) {
            return Err(bad_input(format!(
                "--text-field {field} does nothing with --text-format plain: plain text has no fields"
            )));
        }
        Ok(TextOptions { format: self.text_format, field: self.text_field.clone() })
    }

    /// Refuses a field where no file has records to look for it in.
    ///
    /// # Errors
    /// A field of what has none.
    pub fn check_fields(&self, has_records: bool) -> anyhow::Result<()> {
        match &self.text_field {
            Some(field) if !has_records => Err(bad_input(format!(
                "--text-field {field} does nothing here: the text is plain text, which has no fields"
            ))),
            _ => Ok(()),
        }
    }
}
