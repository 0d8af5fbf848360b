//! Records of a file as they are, for who knows their fields.

use std::{
    io::{Cursor, Read},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    TextError, TextProblem,
    decode::{self, Content, Original},
    detect,
    json::JsonValues,
    table::Rows,
};
use crate::{ModelError, Result};

enum Values {
    Json(JsonValues),
    Table(Box<Rows>),
    /// A file of no bytes.
    None,
}

/// Reads records of a file one after the other: JSON lines, JSON arrays, parquet or Arrow, which its content tells;
/// JSON compressed by gzip or Zstandard or not.
pub struct RowReader {
    path: PathBuf,
    values: Values,
}

impl RowReader {
    /// Opens a file.
    ///
    /// # Errors
    /// It cannot be opened, or holds no records.
    pub fn open(path: &Path) -> Result<Self> {
        match decode::content(path, Original::file(path)?)? {
            Content::Table(kind) => {
                let rows = Rows::open(path, kind, None)?;
                Ok(Self { path: path.to_owned(), values: Values::Table(Box::new(rows)) })
            }
            content => Self::text(path, content),
        }
    }

    /// Of a text in memory; errors call it `path`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn of_text(path: &Path, text: &str) -> Result<Self> {
        let stream: Box<dyn Read> = Box::new(Cursor::new(text.to_owned()));
        Self::text(path, decode::content(path, Original::stream(stream))?)
    }

    fn text(path: &Path, content: Content) -> Result<Self> {
        let refused =
            || TextError::file(path, "it is no file of records: JSON lines, a JSON array, parquet or Arrow");
        let Content::Text { head, reader } = content else { return Err(refused().into()) };
        let values = match detect::is_json(path, &head).map_err(no_records)? {
            true => Values::Json(JsonValues::new(reader)),
            false if head.trim_ascii().is_empty() => Values::None,
            false => return Err(refused().into()),
        };
        Ok(Self { path: path.to_owned(), values })
    }

    /// The next record, with its line, or its row in a file with columns, from 1; `None` at the end.
    ///
    /// # Errors
    /// What cannot be read, with its line or row.
    pub fn next_row(&mut self) -> Result<Option<(usize, Value)>> {
        match &mut self.values {
            Values::Json(values) => values.next_value(&self.path).map_err(no_records),
            Values::Table(rows) => rows.next_row(&self.path),
            Values::None => Ok(None),
        }
    }
}

/// Whatever else it may be as a text, records are asked for.
fn no_records(e: ModelError) -> ModelError {
    match e {
        ModelError::Text(e) => TextError { problem: TextProblem::Content, ..e }.into(),
        other => other,
    }
}
