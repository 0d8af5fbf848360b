//! Rows of a file with columns (parquet, Arrow), as records.

use std::{fs::File, path::Path};

use qqq_formats::InputFile;
use serde_json::Value;

use super::{
    Place, TextError,
    arrow::Arrow,
    parquet::Parquet,
    record::{Problem, Records},
};
use crate::Result;

/// What kind of file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TableKind {
    Parquet,
    /// With an index at its end.
    ArrowFile,
    /// From its beginning on.
    ArrowStream,
}

impl TableKind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::ArrowFile | Self::ArrowStream => "Arrow",
        }
    }

    /// With its article.
    pub const fn a_file(self) -> &'static str {
        match self {
            Self::Parquet => "a parquet file",
            Self::ArrowFile => "an Arrow file",
            Self::ArrowStream => "an Arrow stream",
        }
    }

    fn open(self, file: File) -> Result<Box<dyn Table>, String> {
        Ok(match self {
            Self::Parquet => Box::new(Parquet::open(file)?),
            Self::ArrowFile => Box::new(Arrow::open(file, false)?),
            Self::ArrowStream => Box::new(Arrow::open(file, true)?),
        })
    }
}

/// A column of a table.
pub(super) struct Column {
    pub name: String,
    /// Whether it has lists or records.
    pub is_nested: bool,
}

/// The values of rows, each an object.
pub(super) type Values = Box<dyn Iterator<Item = Result<Value, Problem>>>;

/// A file whose columns are known.
pub(super) trait Table {
    fn columns(&self) -> Vec<Column>;

    /// Its rows, with these columns; `None`: with all of them.
    fn rows(self: Box<Self>, wanted: Option<&[String]>) -> Result<Values, Problem>;
}

pub(super) struct Rows {
    values: Values,
    file: InputFile,
    kind: TableKind,
    /// Rows until now.
    count: usize,
}

impl Rows {
    /// Opens a file for the columns that the records need; without records for all of them.
    pub fn open(path: &Path, kind: TableKind, records: Option<&mut Records<'_>>) -> Result<Self> {
        let file = InputFile::open(path)?;
        let table = kind.open(file.handle()?).map_err(|reason| {
            TextError::file(path, format!("it cannot be read as {}: {reason}", kind.name()))
        })?;
        let refuse = |problem| TextError::at(path, Place::File, problem);
        let wanted = records.map(|records| {
            let columns = table.columns();
            let names: Vec<&str> = columns.iter().map(|column| &*column.name).collect();
            let holds = |name: &str, list: bool| {
                columns.iter().any(|column| column.name == name && column.is_nested == list)
            };
            records.columns(&names, &holds)
        });
        let wanted = wanted.transpose().map_err(refuse)?;
        let values = table.rows(wanted.as_deref()).map_err(refuse)?;
        Ok(Self { values, file, kind, count: 0 })
    }

    pub fn kind(&self) -> TableKind {
        self.kind
    }

    /// The next row, with its number from 1.
    pub fn next_row(&mut self, path: &Path) -> Result<Option<(usize, Value)>> {
        let row = self.values.next();
        // Before what was read is used, or blamed.
        self.file.check()?;
        let Some(row) = row else { return Ok(None) };
        self.count += 1;
        let row = row.map_err(|problem| TextError::at(path, Place::Row(self.count), problem))?;
        Ok(Some((self.count, row)))
    }
}
