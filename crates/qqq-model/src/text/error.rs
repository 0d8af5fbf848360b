//! Errors of reading texts.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::record::Problem;

/// Where in a file something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole.
    File,
    /// A line, from 1.
    Line(usize),
    /// A row of a parquet or Arrow file, from 1.
    Row(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File => Ok(()),
            Place::Line(n) => write!(f, ", line {n}"),
            Place::Row(n) => write!(f, ", row {n}"),
        }
    }
}

/// What kind of thing is wrong: what could be done about it differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TextProblem {
    /// The content is damaged, or of a kind that is not understood.
    Content,
    /// It is no JSON, though its beginning or its name says so.
    NotJson,
    /// There is nothing in it, or white space alone.
    Blank,
    /// No field of a known name, or the field is not what it should be.
    Field,
}

/// A file that cannot be read as text.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}{place}: {reason}", path.display())]
pub struct TextError {
    /// The file that was read.
    pub path: PathBuf,
    /// Where in it.
    pub place: Place,
    /// What kind of thing is wrong.
    pub problem: TextProblem,
    /// What is wrong.
    pub reason: String,
}

impl TextError {
    pub(super) fn at(path: &Path, place: Place, (problem, reason): Problem) -> Self {
        Self { path: path.to_owned(), place, problem, reason }
    }

    pub(super) fn file(path: &Path, reason: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            place: Place::File,
            problem: TextProblem::Content,
            reason: reason.into(),
        }
    }

    pub(super) fn blank(path: &Path) -> Self {
        Self { problem: TextProblem::Blank, ..Self::file(path, "it holds no text") }
    }

    pub(super) fn line(path: &Path, line: usize, problem: TextProblem, reason: impl Into<String>) -> Self {
        Self { path: path.to_owned(), place: Place::Line(line), problem, reason: reason.into() }
    }
}
