//! How text files are read: options of every command that reads some.

use clap::ValueEnum;
use qqq_model::{TextOptions, text::TextFormat};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatArg {
    /// What their content says: plain text, JSON lines or arrays, parquet; UTF-8 or UTF-16, packed by gzip, zstd or not
    Auto,
    /// Plain text, whatever it looks like
    Plain,
    /// JSON: an array, or values one after the other
    Json,
}

/// How text files are read.
#[derive(Clone, Debug, clap::Args)]
pub struct ReadArgs {
    /// What the text files are
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = FormatArg::Auto)]
    text_format: FormatArg,
    /// Field of a JSON record, or column of a parquet file, that holds its text or its list of messages [default: the
    /// first that is there of text, messages, conversations, instruction with output, prompt with completion, content]
    #[arg(long, value_name = "NAME")]
    text_field: Option<String>,
}

impl ReadArgs {
    /// For the model library.
    pub fn options(&self) -> TextOptions {
        TextOptions {
            format: match self.text_format {
                FormatArg::Auto => TextFormat::Auto,
                FormatArg::Plain => TextFormat::Plain,
                FormatArg::Json => TextFormat::Json,
            },
            field: self.text_field.clone(),
        }
    }
}
