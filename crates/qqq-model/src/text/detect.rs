//! JSON or plain text.
//!
//! Plain text may begin with a bracket (`[Music]`, `{{Infobox`, `[1] A. Author`), so it has to be certain: a text that
//! opens as a JSON object or an array of them is taken for JSON, and is an error where it turns out not to be.
//! The name only decides what content leaves open: a name that promises something else than the content is an error.

use std::path::Path;

use super::{TextError, TextProblem};
use crate::Result;

/// Endings of compressed files, which say nothing about the content.
const PACKED: [&str; 3] = ["gz", "zst", "zstd"];

/// Whether a text that begins with `head` is JSON.
pub(super) fn is_json(path: &Path, head: &[u8]) -> Result<bool> {
    let head = String::from_utf8_lossy(head);
    let text = head.trim_start();
    let name = kind(path);
    let refuse = |problem, reason: &str| Err(TextError::line(path, 1, problem, reason).into());
    match name.as_str() {
        _ if opens(text) => Ok(true),
        "json" | "jsonl" | "ndjson" => match text.chars().next() {
            // An empty file has no text, whatever it was to be.
            None => Ok(false),
            // Strings, one a line.
            Some('"') => Ok(true),
            Some(_) => refuse(TextProblem::NotJson, "its name says JSON, but it does not begin so"),
        },
        "parquet" if !text.is_empty() => {
            Err(TextError::file(path, "its name says parquet, but it is no parquet file").into())
        }
        "arrow" | "feather" if !text.is_empty() => {
            Err(TextError::file(path, "its name says Arrow, but it is no Arrow file").into())
        }
        "csv" | "tsv" if !text.is_empty() => refuse(
            TextProblem::NotJson,
            "its name says that it is a table of comma- or tab-separated values, which are not taken apart: \
             write it as JSON lines or parquet",
        ),
        _ => Ok(false),
    }
}

/// The last ending of a name, apart from those of compressed files; in lower case.
fn kind(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let mut ends = name.rsplit('.').skip_while(|end| PACKED.contains(end));
    match (ends.next(), ends.next()) {
        (Some(end), Some(_)) => end.to_owned(),
        _ => String::new(),
    }
}

/// Whether a text opens as a JSON object or array does; `true` where it ends before that shows.
fn opens(text: &str) -> bool {
    opens_value(text, false)
}

/// The same of a text that may stand within an array, where more follows on the line.
fn opens_value(text: &str, in_array: bool) -> bool {
    let Some(inner) = text.strip_prefix(['{', '[']) else { return false };
    let ends = |rest: &str| ends_line(rest) || (in_array && rest.trim_start().starts_with([',', ']']));
    let inner = inner.trim_start();
    let object = text.starts_with('{');
    match inner.chars().next() {
        None => true,
        Some('"') => after_string(inner).is_none_or(|rest| match rest.chars().next() {
            None => true,
            Some(c) => {
                if object {
                    c == ':'
                } else {
                    c == ',' || c == ']'
                }
            }
        }),
        Some('}') if object => ends(&inner[1..]),
        Some(_) if object => false,
        Some(']') => ends_line(&inner[1..]),
        Some('{') => opens_value(inner, true),
        // Numbers and lists hold no text, but `[1, 2]` is no plain text either.
        Some(_) => {
            let line = text.lines().next().unwrap_or_default();
            let mut values = serde_json::Deserializer::from_str(line).into_iter::<serde_json::Value>();
            match values.next() {
                Some(Ok(_)) => ends_line(&line[values.byte_offset()..]),
                Some(Err(e)) => e.is_eof(),
                None => false,
            }
        }
    }
}

fn ends_line(rest: &str) -> bool {
    rest.lines().next().is_none_or(|l| l.trim().is_empty())
}

/// What follows a string and white space; `None` if the string does not end.
fn after_string(text: &str) -> Option<&str> {
    let mut escaped = false;
    let end = text[1..].find(|c| {
        let quote = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        quote
    })?;
    Some(text[end + 2..].trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_of_plain_text() {
        for plain in [
            "",
            "Once upon",
            "[Music] Hello",
            "[1] A. Author, 1999.",
            "[1, 2] is an interval",
            "[[1], [2]] are references",
            "[] is the empty list",
            "{} is the empty set",
            "{{Infobox person\n|name=X}}",
            "[[Category:Towns]]",
            "[link](https://example.org)",
            "{\\bf bold}",
            "{ return 1; }",
            "{\"Hello,\" he said}",
            "[\"Hello,\" she said, \"there\"]",
            "\"Quoted.\" she said",
        ] {
            assert!(!opens(plain), "{plain}");
        }
    }

    #[test]
    fn beginnings_of_json() {
        for json in [
            "{\"text\": \"a\"}",
            "{\n  \"text\" :1",
            "{}\n{}",
            "[\n{\"a\":",
            "[{\"a\"",
            "[{}, {\"text\": \"a\"}]",
            "[\"one\", \"two\"]",
            "[\"a \\\" quote\" , 1]",
            "[\"a long document without an end",
            "[[1, 2], [3]]",
            "[1,\n 2]",
            "[]",
            "{",
        ] {
            assert!(opens(json), "{json}");
        }
    }

    #[test]
    fn names_that_promise_something_else() {
        let is_json = |name: &str, head: &str| is_json(Path::new(name), head.as_bytes());
        assert!(is_json("a.txt", "  {\"text\": 1}").unwrap());
        assert!(!is_json("a.txt", "\"One line.\"\n\"Another.\"").unwrap());
        assert!(is_json("a.jsonl", "\"One line.\"\n\"Another.\"").unwrap());
        assert!(!is_json("json", "Once upon").unwrap());
        assert!(!is_json(".json", "").unwrap());
        for name in ["a.json", "a.JSONL", "b.c.ndjson.gz", "a.parquet", "a.csv", "a.tsv.zst"] {
            assert!(is_json(name, "Once upon").is_err(), "{name}");
            assert!(!is_json(name, "").unwrap(), "{name}");
        }
    }
}
