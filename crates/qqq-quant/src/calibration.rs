//! Calibration text to windows of tokens.
//!
//! Windows are cut from the concatenated text, without special tokens, as the reference does. They are spread evenly:
//! the text is divided into as many strata as there are windows, and each window starts at a random place of its
//! stratum, so windows never overlap and only the text that is used gets tokenized.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::Field,
    schema::types::Type,
};
use qqq_formats::{Checkpoint, FormatError};
use qqq_model::{ChatTemplate, Message, Tokenizer, hub};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Calibration, QuantError, Result};

/// Text beyond this is not read: it holds some 15 million tokens, a hundred times what calibration needs.
const MAX_TEXT_BYTES: usize = 64 << 20;
/// Text is tokenized in pieces of about this many bytes, which bounds the tokenizer's memory.
const PIECE_BYTES: usize = 16 << 10;

/// Where the text comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// Text or jsonl or parquet files (`text` field).
    Files(Vec<PathBuf>),
    /// A data set of the hub whose files are here already.
    Dataset {
        /// `owner/name`.
        name: String,
        /// Its files.
        files: Vec<PathBuf>,
    },
    /// The model's own samples.
    SelfSamples,
}

impl Source {
    /// `self`, the path of a file, or a data set of the hub (`owner/name`, which is downloaded).
    ///
    /// # Errors
    /// Neither a file nor a data set of that name.
    pub fn parse(spec: &str, options: &hub::HubOptions) -> Result<Self> {
        let path = Path::new(spec);
        if spec == "self" {
            Ok(Source::SelfSamples)
        } else if path.is_file() {
            Ok(Source::Files(vec![path.to_owned()]))
        } else if path.exists() || !hub::is_id(spec) {
            Err(QuantError::Calibration(format!(
                "{spec} is not a file; give a text, .jsonl or .parquet file, a data set of the hub (owner/name, \
                 owner/name:config/split), or \"self\""
            )))
        } else {
            Ok(Source::Dataset { name: spec.to_owned(), files: hub::dataset_files(spec, options)? })
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
            Source::SelfSamples => "the model's own samples".into(),
        }
    }
}

/// Windows of text files.
///
/// # Errors
/// Unreadable files, files without text, and text that is too short: the message says how many tokens there are.
pub fn windows_of_files(
    files: &[PathBuf],
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    calibration: &Calibration,
    seed: u64,
) -> Result<Vec<Vec<u32>>> {
    let mut text = String::new();
    for file in files {
        read_text(file, checkpoint, tokenizer, &mut text)?;
    }
    windows_of_text(&text, &|t| Ok(tokenizer.encode(t, false)?), calibration, seed)
}

/// Windows of a text; `encode` makes tokens of it.
fn windows_of_text(
    text: &str,
    encode: &dyn Fn(&str) -> Result<Vec<u32>>,
    calibration: &Calibration,
    seed: u64,
) -> Result<Vec<Vec<u32>>> {
    let (count, len) = (calibration.windows, calibration.window);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Where in its stratum a window starts, as a share of the room there is.
    let shares: Vec<f64> = (0..count).map(|_| rng.random::<f64>()).collect();

    // The usual case: text is plenty, and each window is tokenized alone.
    let quick: Option<Vec<Vec<u32>>> = shares
        .iter()
        .enumerate()
        .map(|(i, share)| {
            let stratum =
                &text[boundary(text, text.len() * i / count)..boundary(text, text.len() * (i + 1) / count)];
            // Eight bytes a token is more than any text needs on average; less room means the exact way below.
            let room = stratum.len().checked_sub(len * 8)?;
            let start = line_start(stratum, boundary(stratum, (room as f64 * share) as usize));
            encode_up_to(&stratum[start..], len, encode).transpose()
        })
        .collect::<Option<Result<Vec<_>>>>()
        .transpose()?;
    if let Some(windows) = quick {
        return Ok(windows);
    }

    let tokens = pieces(text).map(encode).collect::<Result<Vec<_>>>()?.concat();
    let needed = count * len;
    if tokens.len() < needed {
        return Err(QuantError::Calibration(format!(
            "the text has {} tokens, but {count} windows of {len} need {needed}; \
             give more text, or ask for fewer or shorter windows",
            tokens.len()
        )));
    }
    let stratum = tokens.len() / count;
    let window = |(i, share): (usize, &f64)| {
        let start = i * stratum + ((stratum - len) as f64 * share) as usize;
        tokens[start..start + len].to_vec()
    };
    Ok(shares.iter().enumerate().map(window).collect())
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

/// Appends a file's text, documents separated by blank lines.
fn read_text(path: &Path, checkpoint: &Checkpoint, tokenizer: &Tokenizer, text: &mut String) -> Result<()> {
    let before = text.len();
    match path.extension().and_then(|e| e.to_str()) {
        Some("jsonl" | "ndjson") => read_jsonl(path, checkpoint, tokenizer, text)?,
        Some("parquet") => read_parquet(path, text)?,
        _ => {
            let mut bytes = Vec::new();
            let room = MAX_TEXT_BYTES.saturating_sub(text.len()) as u64;
            open(path)?.take(room).read_to_end(&mut bytes).map_err(|e| io(path, e))?;
            let valid = match std::str::from_utf8(&bytes) {
                Ok(all) => all,
                // A character cut by the limit is not the file's fault.
                Err(e) if e.error_len().is_none() && bytes.len() as u64 == room => {
                    std::str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or_default()
                }
                Err(e) => {
                    return Err(QuantError::Calibration(format!(
                        "{} is not UTF-8 text (byte {} is invalid); \
                         text, .jsonl and .parquet files are understood",
                        path.display(),
                        e.valid_up_to()
                    )));
                }
            };
            text.push_str(valid);
            text.push_str("\n\n");
        }
    }
    if text[before..].trim().is_empty() && before < MAX_TEXT_BYTES {
        return Err(QuantError::Calibration(format!("{} holds no text", path.display())));
    }
    Ok(())
}

fn read_jsonl(path: &Path, checkpoint: &Checkpoint, tokenizer: &Tokenizer, text: &mut String) -> Result<()> {
    let mut template: Option<ChatTemplate> = None;
    for (number, line) in BufReader::new(open(path)?).lines().enumerate() {
        let line = line.map_err(|e| io(path, e))?;
        if line.trim().is_empty() {
            continue;
        }
        let bad = |what: String| {
            QuantError::Calibration(format!("{}, line {}: {what}", path.display(), number + 1))
        };
        let value: serde_json::Value = serde_json::from_str(&line).map_err(|e| bad(e.to_string()))?;
        if let Some(document) = value.get("text").and_then(|t| t.as_str()) {
            text.push_str(document);
        } else if let Some(messages) = value.get("messages") {
            let messages: Vec<Message> =
                serde_json::from_value(messages.clone()).map_err(|e| bad(format!("messages: {e}")))?;
            if template.is_none() {
                template = ChatTemplate::load(checkpoint, tokenizer)?;
            }
            let template = template.as_ref().ok_or_else(|| {
                bad("the model has no chat template for \"messages\"; give lines with a \"text\" field"
                    .into())
            })?;
            text.push_str(&template.render(&messages, false)?);
        } else {
            return Err(bad("neither a \"text\" string nor \"messages\"".into()));
        }
        text.push_str("\n\n");
        if text.len() >= MAX_TEXT_BYTES {
            break;
        }
    }
    Ok(())
}

fn read_parquet(path: &Path, text: &mut String) -> Result<()> {
    let bad = |what: String| QuantError::Calibration(format!("{}: {what}", path.display()));
    let reader = SerializedFileReader::new(open(path)?).map_err(|e| bad(e.to_string()))?;
    let schema = reader.metadata().file_metadata().schema();
    let column = schema.get_fields().iter().find(|f| f.name() == "text").cloned().ok_or_else(|| {
        let names: Vec<_> = schema.get_fields().iter().map(|f| f.name().to_owned()).collect();
        bad(format!("there is no column \"text\" (columns: {})", names.join(", ")))
    })?;
    let projection = Type::group_type_builder(schema.name())
        .with_fields(vec![column])
        .build()
        .map_err(|e| bad(e.to_string()))?;
    for row in reader.get_row_iter(Some(projection)).map_err(|e| bad(e.to_string()))? {
        let row = row.map_err(|e| bad(e.to_string()))?;
        for (_, field) in row.get_column_iter() {
            match field {
                Field::Str(document) => {
                    text.push_str(document);
                    text.push_str("\n\n");
                }
                Field::Null => {}
                _ => return Err(bad("the column \"text\" does not hold strings".into())),
            }
        }
        if text.len() >= MAX_TEXT_BYTES {
            break;
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| io(path, e))
}

fn io(path: &Path, source: std::io::Error) -> QuantError {
    QuantError::Format(FormatError::Io { path: path.to_owned(), source })
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
            let windows = windows_of_text(&text, &words, &calibration(7, 100), 3).unwrap();
            assert_eq!(windows.len(), 7);
            let all = windows.concat();
            assert!(all.windows(2).all(|p| p[0] < p[1]), "{n}: in order, never twice");
            assert!(windows.iter().all(|w| w.len() == 100 && w[99] == w[0] + 99), "{n}: no gaps");
            assert_eq!(windows, windows_of_text(&text, &words, &calibration(7, 100), 3).unwrap());
        }
        let text = numbers(90_000);
        let other = windows_of_text(&text, &words, &calibration(7, 100), 4).unwrap();
        assert_ne!(other, windows_of_text(&text, &words, &calibration(7, 100), 3).unwrap());
    }

    #[test]
    fn short_text_is_an_error_with_both_numbers() {
        let error = windows_of_text(&numbers(650), &words, &calibration(7, 100), 0).unwrap_err().to_string();
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
        assert_eq!(windows_of_text(&wide, &encode, &calibration(3, 50), 1).unwrap().len(), 3);
    }
}
