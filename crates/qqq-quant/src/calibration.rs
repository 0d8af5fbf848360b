//! Calibration text to windows of tokens.
//!
//! Windows are cut from the concatenated text, without special tokens, as the reference does; BOS comes later, where a run wants
//! it (`token_windows`). They are spread evenly:
//! the text is divided into as many strata as there are windows, and each window starts at a random place of its
//! stratum, so windows never overlap and only the text that is used gets tokenized.

mod held_out;

use std::path::{Path, PathBuf};

use qqq_formats::Checkpoint;
use qqq_model::{ChatTemplate, TextOptions, TextReader, Tokenizer, hub, text::SEPARATOR};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Calibration, QuantError, Result};

/// Text beyond this is not read: it holds some 15 million tokens, a hundred times what calibration needs.
const MAX_TEXT_BYTES: usize = 64 << 20;
/// No tokenizer makes more tokens of a byte: normalization turns a character of three bytes into at most 18, of 33 bytes.
const MAX_TOKENS_PER_BYTE: usize = 16;
/// A text that is certainly too short is tokenized up to this size, only to say how many tokens it has.
const COUNTED_BYTES: usize = 4 << 20;
/// More bytes than a token of any text has on average.
const TOKEN_BYTES: usize = 8;
/// Text is tokenized in pieces of about this many bytes, which bounds the tokenizer's memory.
const PIECE_BYTES: usize = 16 << 10;

/// The text that is part of this crate: English of several kinds, some of 16 other languages, some code; public domain, or
/// under this project's own licence. `calibration/SOURCES.md` says where each part is from.
pub const BUILT_IN: &str = include_str!("calibration/text.txt");

/// Where the text comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// The text that is part of this crate.
    BuiltIn,
    /// Files: plain text, JSON, parquet or Arrow.
    Files(Vec<PathBuf>),
    /// A data set of the hub whose files are here already.
    Dataset {
        /// The data set on the hub, `owner/name`.
        name: String,
        /// Its files in the cache, in the order in which they are read.
        files: Vec<PathBuf>,
    },
    /// The model's own samples.
    SelfSamples,
}

impl Source {
    /// `built-in`, `self`, the path of a file, or a data set of the hub (`owner/name`, which is downloaded).
    ///
    /// # Errors
    /// Neither a file nor a data set of that name.
    pub fn parse(spec: &str, options: &hub::HubOptions) -> Result<Self> {
        let path = Path::new(spec);
        if let Some(source) = Self::named(spec) {
            Ok(source)
        } else if path.is_file() {
            Ok(Source::Files(vec![path.to_owned()]))
        } else if path.exists() || !hub::is_id(spec) {
            Err(QuantError::Calibration(format!(
                "{spec} is not a file; give a text, .jsonl, .parquet or .arrow file, a data set of the hub (owner/name, \
                 owner/name:config/split), \"built-in\" or \"self\""
            )))
        } else {
            Ok(Source::Dataset { name: spec.to_owned(), files: hub::dataset_files(spec, options)? })
        }
    }

    /// `built-in` and `self`, which take no files.
    pub fn named(spec: &str) -> Option<Self> {
        match spec {
            "built-in" => Some(Source::BuiltIn),
            "self" => Some(Source::SelfSamples),
            _ => None,
        }
    }

    /// For reports: names, without directories.
    pub fn describe(&self) -> String {
        match self {
            Source::Files(files) => files
                .iter()
                .map(|f| f.file_name().unwrap_or(f.as_os_str()).to_string_lossy())
                .collect::<Vec<_>>()
                .join(", "),
            Source::Dataset { name, .. } => format!("{name} (hub data set)"),
            Source::BuiltIn => "the built-in text".into(),
            Source::SelfSamples => "the model's own samples".into(),
        }
    }
}

/// Windows of text that are held out unless told otherwise.
pub const HELD_OUT: usize = 2;

/// A source, and how its files are read.
#[derive(Clone, Copy, Debug)]
pub struct CalibrationText<'a> {
    /// Where the text comes from.
    pub source: &'a Source,
    /// How files are read; `None`: as their content says.
    pub options: Option<&'a TextOptions>,
    /// Windows that calibration does not see, on which the result is compared with the float model; 0: none.
    pub held_out: usize,
}

impl CalibrationText<'_> {
    /// With so many more windows held out, for what is decided before a run by other text than it is judged by.
    pub(crate) fn with_more_held_out(self, windows: usize) -> Self {
        let source = match self.source {
            // Not to have the model write twice.
            Source::SelfSamples => &Source::BuiltIn,
            source => source,
        };
        Self { source, held_out: self.held_out + windows, ..self }
    }
}

impl<'a> From<&'a Source> for CalibrationText<'a> {
    fn from(source: &'a Source) -> Self {
        Self { source, options: None, held_out: HELD_OUT }
    }
}

/// Windows of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenWindows {
    /// Those that calibration sees.
    pub calibration: Vec<Vec<u32>>,
    /// Others, as many and as long as the text has room for beside them.
    pub held_out: Vec<Vec<u32>>,
}

impl TokenWindows {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Vec<u32>> {
        self.calibration.iter().chain(&self.held_out)
    }
}

/// What reading files takes.
pub struct Read<'a> {
    /// The model, for its chat template.
    pub checkpoint: &'a Checkpoint,
    /// The model's tokenizer, which cuts the texts.
    pub tokenizer: &'a Tokenizer,
    /// How files are read.
    pub options: &'a TextOptions,
    /// Told in a line what was taken from a file of records.
    pub note: &'a mut dyn FnMut(&str),
}

/// Windows of text files, and up to `held_out` others.
///
/// # Errors
/// Unreadable files, files without text, and text that is too short: the message says how many tokens there are.
pub fn windows_of_files(
    files: &[PathBuf],
    mut read: Read<'_>,
    calibration: &Calibration,
    held_out: usize,
    seed: u64,
) -> Result<TokenWindows> {
    let mut text = String::new();
    let mut have_records = false;
    for file in files {
        have_records |= read_text(file, &mut read, &mut text)?;
    }
    if let (Some(field), false) = (&read.options.field, have_records) {
        return Err(QuantError::Calibration(format!(
            "the field {field:?} is asked for, but the calibration text is plain text, which has no fields; ask for none"
        )));
    }
    let tokenizer = read.tokenizer;
    windows_of_text("the text", &text, &|t| Ok(tokenizer.encode(t, false)?), calibration, held_out, seed)
}

/// Windows of the [built-in text](BUILT_IN), and up to `held_out` others.
///
/// # Errors
/// More tokens are asked for than it has: the message says how many there are.
pub fn windows_of_built_in(
    tokenizer: &Tokenizer,
    calibration: &Calibration,
    held_out: usize,
    seed: u64,
) -> Result<TokenWindows> {
    let encode = |text: &str| Ok(tokenizer.encode(text, false)?);
    windows_of_text("the built-in text", BUILT_IN, &encode, calibration, held_out, seed)
}

/// Windows of a text; `encode` makes tokens of it, `name` is for messages. Those of calibration do not depend on what is held
/// out.
fn windows_of_text(
    name: &str,
    text: &str,
    encode: &dyn Fn(&str) -> Result<Vec<u32>>,
    calibration: &Calibration,
    held_out: usize,
    seed: u64,
) -> Result<TokenWindows> {
    let (count, len) = (calibration.windows, calibration.window);
    let few = |found: String| {
        Err(QuantError::Calibration(format!(
            "{name} has {found}, but {count} windows of {len} need {}; \
             give more text, or ask for fewer or shorter windows",
            count as u128 * len as u128
        )))
    };
    let most = text.len().saturating_mul(MAX_TOKENS_PER_BYTE);
    let Some(needed) = count.checked_mul(len).filter(|needed| *needed <= most) else {
        if text.len() > COUNTED_BYTES {
            return few(format!("{} bytes", text.len()));
        }
        let tokens = pieces(text).map(|piece| Ok(encode(piece)?.len())).sum::<Result<usize>>()?;
        return few(format!("{tokens} tokens"));
    };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Where in its stratum a window starts, as a share of the room there is.
    let shares: Vec<f64> = (0..count).map(|_| rng.random::<f64>()).collect();

    // The usual case: text is plenty, and each window is tokenized alone.
    let mut starts = Vec::with_capacity(count);
    let quick: Option<Vec<Vec<u32>>> = shares
        .iter()
        .enumerate()
        .map(|(i, share)| {
            let first = boundary(text, text.len() * i / count);
            let stratum = &text[first..boundary(text, text.len() * (i + 1) / count)];
            // Eight bytes a token is more than any text needs on average; less room means the exact way below.
            let room = stratum.len().checked_sub(len * TOKEN_BYTES)?;
            let start = line_start(stratum, boundary(stratum, (room as f64 * share) as usize));
            starts.push(first + start);
            encode_up_to(&stratum[start..], len, encode).transpose()
        })
        .collect::<Option<Result<Vec<_>>>>()
        .transpose()?;
    if let Some(calibration) = quick {
        let held_out = held_out::of_text(text, &starts, len, held_out, encode)?;
        return Ok(TokenWindows { calibration, held_out });
    }

    let tokens = pieces(text).map(encode).collect::<Result<Vec<_>>>()?.concat();
    if tokens.len() < needed {
        return few(format!("{} tokens", tokens.len()));
    }
    let stratum = tokens.len() / count;
    let start = |(i, share): (usize, &f64)| i * stratum + ((stratum - len) as f64 * share) as usize;
    let starts: Vec<usize> = shares.iter().enumerate().map(start).collect();
    Ok(TokenWindows {
        calibration: starts.iter().map(|&start| tokens[start..start + len].to_vec()).collect(),
        held_out: held_out::of_tokens(&tokens, &starts, len, held_out),
    })
}

/// The first `len` tokens of a text, `None` if it has fewer.
fn encode_up_to(
    text: &str,
    len: usize,
    encode: &dyn Fn(&str) -> Result<Vec<u32>>,
) -> Result<Option<Vec<u32>>> {
    let mut tokens = Vec::with_capacity(len + PIECE_BYTES / 2);
    for piece in pieces(text) {
        tokens.extend(encode(piece)?);
        if tokens.len() >= len {
            tokens.truncate(len);
            return Ok(Some(tokens));
        }
    }
    Ok(None)
}

/// Splits a text into pieces of about [`PIECE_BYTES`], after line breaks where there are any.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = if rest.len() <= PIECE_BYTES {
            rest.len()
        } else {
            let limit = boundary(rest, PIECE_BYTES);
            rest[..limit].rfind('\n').map_or(limit, |i| i + 1)
        };
        let (piece, left) = rest.split_at(end);
        rest = left;
        Some(piece)
    })
}

/// The next position from `at` on where a character starts.
fn boundary(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at += 1;
    }
    at
}

/// The start of the next line after `at`, if it comes soon; else `at`.
fn line_start(text: &str, at: usize) -> usize {
    let near = boundary(text, (at + 1024).min(text.len()));
    if at == 0 { 0 } else { text[at..near].find('\n').map_or(at, |i| at + i + 1) }
}

/// Appends a file's text, documents separated by blank lines; gives whether it has records.
fn read_text(path: &Path, read: &mut Read<'_>, text: &mut String) -> Result<bool> {
    let before = text.len();
    let (checkpoint, tokenizer) = (read.checkpoint, read.tokenizer);
    let template = Box::new(move || ChatTemplate::load(checkpoint, tokenizer));
    let mut reader = TextReader::open(path, read.options, template)?;
    let mut cut = false;
    while let Some(piece) = reader.next_piece()? {
        if reader.has_records() {
            text.push_str(&piece);
            cut = text.len() + SEPARATOR.len() >= MAX_TEXT_BYTES;
        } else {
            let room = piece.floor_char_boundary(MAX_TEXT_BYTES.saturating_sub(text.len()));
            text.push_str(&piece[..room]);
            cut = room < piece.len();
        }
        if cut {
            break;
        }
    }
    text.push_str(SEPARATOR);
    if text[before..].trim().is_empty() && before < MAX_TEXT_BYTES {
        return Err(QuantError::Calibration(format!("{} holds no text", path.display())));
    }
    if let Some(note) = reader.describe() {
        (read.note)(&note);
    }
    if cut {
        (read.note)(&format!(
            "{}: what follows the first {} MB of calibration text is not read",
            path.display(),
            MAX_TEXT_BYTES >> 20
        ));
    }
    Ok(reader.has_records())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token for every word.
    fn words(text: &str) -> Result<Vec<u32>> {
        Ok(text.split_whitespace().map(|w| w.parse().unwrap_or(0)).collect())
    }

    fn numbers(n: usize) -> String {
        (0..n).map(|i| format!("{i:07}{}", if i % 50 == 49 { "\n\n" } else { " " })).collect()
    }

    fn calibration(windows: usize, window: usize) -> Calibration {
        Calibration { windows, window, smooth_tokens: 1 }
    }

    #[test]
    fn windows_are_disjoint_and_consecutive() {
        for n in [700, 90_000] {
            let text = numbers(n);
            let windows =
                windows_of_text("the text", &text, &words, &calibration(7, 100), 0, 3).unwrap().calibration;
            assert_eq!(windows.len(), 7);
            let all = windows.concat();
            assert!(all.windows(2).all(|p| p[0] < p[1]), "{n}: in order, never twice");
            assert!(windows.iter().all(|w| w.len() == 100 && w[99] == w[0] + 99), "{n}: no gaps");
            assert_eq!(
                windows,
                windows_of_text("the text", &text, &words, &calibration(7, 100), 0, 3).unwrap().calibration
            );
        }
        let text = numbers(90_000);
        let other =
            windows_of_text("the text", &text, &words, &calibration(7, 100), 0, 4).unwrap().calibration;
        assert_ne!(
            other,
            windows_of_text("the text", &text, &words, &calibration(7, 100), 0, 3).unwrap().calibration
        );
    }

    #[test]
    fn short_text_is_an_error_with_both_numbers() {
        let error = windows_of_text("the text", &numbers(650), &words, &calibration(7, 100), 2, 0)
            .unwrap_err()
            .to_string();
        assert!(error.contains("650") && error.contains("700"), "{error}");
    }

    #[test]
    fn pieces_cover_text_without_line_breaks_and_wide_characters() {
        for text in ["é".repeat(50_000), "ab\n".repeat(40_000), String::new(), "x".into()] {
            assert_eq!(pieces(&text).collect::<String>(), text);
            assert!(pieces(&text).all(|p| p.len() <= PIECE_BYTES + 4));
        }
        let wide = "日本語テキスト ".repeat(20_000);
        let encode = |t: &str| Ok(t.chars().map(|c| c as u32).collect::<Vec<_>>());
        let windows = windows_of_text("the text", &wide, &encode, &calibration(3, 50), 2, 1).unwrap();
        assert_eq!((windows.calibration.len(), windows.held_out.len()), (3, 2));
    }
}
