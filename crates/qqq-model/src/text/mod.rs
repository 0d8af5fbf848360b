//! Texts: everything that is read to calibrate or to score comes through [`TextReader`].
//!
//! What a file holds is told by its content, not by its name: plain text, JSON lines, JSON arrays, parquet or Arrow; UTF-8 or
//! UTF-16 with a byte order mark; compressed by gzip or Zstandard or not. The records of the structured forms are
//! brought to text by what their fields are called (see `record`), chat messages through the model's template.
//! Files are read as they are asked for, so whoever needs little of a large file reads little of it.

mod arrow;
mod conversation;
mod decode;
mod detect;
mod error;
mod json;
mod parquet;
mod plain;
mod record;
mod rows;
mod table;

use std::{
    io::Read,
    path::{Path, PathBuf},
};

pub use conversation::{messages, render};
pub use error::{Place, TextError, TextProblem};
pub use rows::RowReader;

use self::{
    decode::{Content, Original},
    json::JsonValues,
    plain::Plain,
    record::Records,
    table::Rows,
};
use crate::{ChatTemplate, Result};

/// What stands between two records of a file.
pub const SEPARATOR: &str = "\n\n";

/// What a file is taken for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum TextFormat {
    /// What their content says: plain text, JSON lines or arrays, parquet, Arrow; UTF-8 or UTF-16, packed by gzip, zstd or not
    #[default]
    Auto,
    /// Plain text, whatever it looks like
    Plain,
    /// JSON: an array, or values one after the other
    Json,
}

/// How files are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextOptions {
    /// What they are taken for.
    pub format: TextFormat,
    /// Field of a record (column of a parquet or Arrow file) that holds a text, or a list of messages; `None`: as its name says.
    pub field: Option<String>,
}

/// Loads the model's chat template; called when a file has messages.
pub type LoadTemplate<'a> = Box<dyn Fn() -> Result<Option<ChatTemplate>> + 'a>;

enum Pieces {
    Plain(Plain),
    Json(JsonValues),
    Table(Rows),
}

/// Reads the text of a file or a stream, piece by piece.
pub struct TextReader<'a> {
    path: PathBuf,
    original: Original,
    pieces: Pieces,
    records: Records<'a>,
    /// What stands between two records.
    separator: &'static str,
    /// Records that are still to be read, at most.
    left: usize,
    /// Whether a record was given already.
    begun: bool,
    /// Whether all text until now was white space.
    blank: bool,
    ended: bool,
}

impl<'a> TextReader<'a> {
    /// Opens a file and finds out what it holds.
    ///
    /// # Errors
    /// It cannot be opened, holds nothing that this reader understands, or its content leaves open what it is.
    pub fn open(path: &Path, options: &TextOptions, template: LoadTemplate<'a>) -> Result<Self> {
        Self::new(path, Original::file(path)?, options, template)
    }

    /// The same of what comes from elsewhere, standard input say; errors call it `name`.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); a parquet or Arrow file, which is read from a disk.
    pub fn stream(
        name: &str,
        stream: impl Read + 'static,
        options: &TextOptions,
        template: LoadTemplate<'a>,
    ) -> Result<Self> {
        Self::new(Path::new(name), Original::stream(Box::new(stream)), options, template)
    }

    fn new(
        path: &Path,
        original: Original,
        options: &TextOptions,
        template: LoadTemplate<'a>,
    ) -> Result<Self> {
        let mut records = Records::new(options.field.clone(), template);
        let pieces = match decode::content(path, original.clone())? {
            Content::Table(kind) => {
                let it_is = |more: &str| TextError::file(path, format!("it is {}{more}", kind.a_file()));
                if options.format != TextFormat::Auto {
                    return Err(it_is("").into());
                }
                if original.is_stream() {
                    return Err(it_is(", which is read from a disk").into());
                }
                Pieces::Table(Rows::open(path, kind, Some(&mut records))?)
            }
            Content::Text { head, reader } => match options.format {
                TextFormat::Plain => Pieces::Plain(Plain::new(reader)),
                TextFormat::Json => Pieces::Json(JsonValues::new(reader)),
                TextFormat::Auto if detect::is_json(path, &head)? => Pieces::Json(JsonValues::new(reader)),
                TextFormat::Auto => Pieces::Plain(Plain::new(reader)),
            },
        };
        let (path, separator) = (path.to_owned(), SEPARATOR);
        let (left, begun, blank, ended) = (usize::MAX, false, true, false);
        Ok(Self { path, original, pieces, records, separator, left, begun, blank, ended })
    }

    /// Records with another separator between them, and only the first so many.
    #[must_use]
    pub fn joined(self, separator: &'static str, records: usize) -> Self {
        Self { separator, left: records, ..self }
    }

    /// The next piece, `None` at the end. All pieces, one after the other, are the file's text: plain text as it is,
    /// records with [`SEPARATOR`] between them.
    ///
    /// # Errors
    /// What cannot be read, with its line or row; a file without any text (at its end).
    pub fn next_piece(&mut self) -> Result<Option<String>> {
        while !self.ended && self.left > 0 {
            let (place, value) = match &mut self.pieces {
                Pieces::Plain(plain) => match plain.next_piece(&self.path)? {
                    Some(piece) => {
                        self.blank &= piece.trim().is_empty();
                        return Ok(Some(piece));
                    }
                    None => break,
                },
                Pieces::Json(values) => match values.next_value(&self.path)? {
                    Some((line, value)) => (Place::Line(line), value),
                    None => break,
                },
                Pieces::Table(rows) => match rows.next_row(&self.path)? {
                    Some((row, value)) => (Place::Row(row), value),
                    None => break,
                },
            };
            let text =
                self.records.text(value).map_err(|problem| TextError::at(&self.path, place, problem))?;
            let Some(mut text) = text else { continue };
            self.blank &= text.trim().is_empty();
            self.left -= 1;
            if std::mem::replace(&mut self.begun, true) {
                text.insert_str(0, self.separator);
            }
            return Ok(Some(text));
        }
        if !std::mem::replace(&mut self.ended, true) && self.blank {
            return Err(TextError::blank(&self.path).into());
        }
        Ok(None)
    }

    /// SHA-256 of the file as it lies on the disk, in hexadecimal. What was not read yet is read for it, and is no part of
    /// the text any more; `None` of what is no regular file.
    ///
    /// # Errors
    /// The rest of the file cannot be read.
    pub fn sha256(&mut self) -> Result<Option<String>> {
        self.ended = true;
        self.original.sha256().map_err(|e| decode::read_error(&self.path, e))
    }

    /// Whether the text was made by a chat template until now, which spells out the special tokens that belong to it.
    pub fn is_templated(&self) -> bool {
        self.records.is_templated()
    }

    /// Whether the file consists of records; plain text is one piece after the other.
    pub fn has_records(&self) -> bool {
        !matches!(self.pieces, Pieces::Plain(_))
    }

    /// What was read as what until now, in one line; `None` for plain text, where there is nothing to tell.
    pub fn describe(&self) -> Option<String> {
        let (kind, field) = match &self.pieces {
            Pieces::Plain(_) => return None,
            Pieces::Json(_) => ("JSON", "field"),
            Pieces::Table(rows) => (rows.kind().name(), "column"),
        };
        let name = self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy();
        Some(format!("{name}: {kind}, {}", self.records.describe(field)?))
    }
}
