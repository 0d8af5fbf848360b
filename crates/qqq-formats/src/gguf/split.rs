//! Models that are split over several files, as `llama-gguf-split` and llama.cpp's converter name them:
//! `NAME-00001-of-00003.gguf`.
//!
//! The first part has the model's metadata; the others have the keys `split.*` and their tensors.

use std::path::PathBuf;

use super::{Metadata, part::Part};
use crate::Result;

/// The part's index, from 0.
const NUMBER: &str = "split.no";
/// Number of parts.
const COUNT: &str = "split.count";
/// Number of tensors in all parts.
const TENSORS: &str = "split.tensors.count";

/// A matter of each file.
const ALIGNMENT: &str = "general.alignment";
/// Digits of a part's number and of the number of parts.
const DIGITS: usize = 5;

/// The names of all parts of a split model, in order, from the name (or path) of any one of them; `None` if the
/// name does not follow the pattern `NAME-00001-of-00003.gguf`, that is, for a model in one file. A folder before
/// the name is kept.
pub fn split_parts(name: &str) -> Option<Vec<String>> {
    let (stem, number, count) = pattern(name)?;
    (1..=count).contains(&number).then(|| (1..=count).map(|i| part_name(stem, i, count)).collect())
}

/// How many files the model lies in, as one of them says.
pub(super) fn count(metadata: &Metadata) -> Result<usize> {
    Ok(metadata.size(COUNT)?.unwrap_or(1).max(1))
}

/// The files of the split model that a file belongs to, in order; `None` if the file is a model by itself.
///
/// # Errors
/// The file's name does not follow the pattern, or not all files are there.
pub(super) fn paths(metadata: &Metadata) -> Result<Option<Vec<PathBuf>>> {
    let count = count(metadata)?;
    if count == 1 {
        return Ok(None);
    }
    let path = metadata.path();
    let number = metadata.required(NUMBER, metadata.size(NUMBER)?)?.saturating_add(1);
    let which = format!("is part {number} of {count} of a split model");
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let names = split_parts(name).filter(|names| {
        names.len() == count && names.iter().position(|n| n == name).is_some_and(|at| at + 1 == number)
    });
    let Some(names) = names else {
        let expected = part_name("NAME", number, count);
        return Err(metadata.malformed(format!(
            "{which}, but not called {expected}, so its other parts cannot be found; give all parts the names that \
             they had, or join them (llama-gguf-split --merge FIRST_PART OUT)"
        )));
    };
    let paths: Vec<PathBuf> = names.iter().map(|n| path.with_file_name(n)).collect();
    let missing: Vec<&str> =
        names.iter().zip(&paths).filter(|(_, p)| !p.exists()).map(|(n, _)| n.as_str()).collect();
    if !missing.is_empty() {
        return Err(metadata.malformed(format!(
            "{which}, but {} of its files {} not beside it: {}",
            missing.len(),
            if missing.len() == 1 { "is" } else { "are" },
            abbreviated(&missing)
        )));
    }
    Ok(Some(paths))
}

/// The first few of a list.
fn abbreviated(names: &[&str]) -> String {
    match names {
        [a, b, c, d, _, ..] => format!("{a}, {b}, {c}, {d} and {} more", names.len() - 4),
        _ => names.join(", "),
    }
}

/// Checks that files are the parts of one model, in order.
///
/// # Errors
/// One says that it is another part, or part of a model in more or fewer files; a key that two parts have holds
/// different values; a tensor lies in two parts; parts lack tensors.
pub(super) fn check(parts: &[Part]) -> Result<()> {
    let Some(first) = parts.first() else { return Ok(()) };
    let expected = first.metadata.size(TENSORS)?;
    for (index, part) in parts.iter().enumerate() {
        let m = &part.metadata;
        let (number, count) = (m.size(NUMBER)?, count(m)?);
        if number != Some(index) || count != parts.len() {
            let number = number.map_or("none".to_owned(), |n| (n + 1).to_string());
            return Err(m.malformed(format!(
                "says that it is part {number} of {count}, but its name says {} of {}: it belongs to another model",
                index + 1,
                parts.len()
            )));
        }
        // Integers of one value may be stored as different types.
        let other = m.iter().find(|(key, value)| {
            !key.starts_with("split.")
                && *key != ALIGNMENT
                && first.metadata.get(key).is_some_and(|v| v != *value)
        });
        let other = other.map(|(key, _)| key).or((m.size(TENSORS)? != expected).then_some(TENSORS));
        if let Some(key) = other {
            return Err(m.malformed(format!(
                "its {key} differs from that of {}: it belongs to another model",
                first.path.display()
            )));
        }
        for (before, name) in parts[..index].iter().flat_map(|p| p.tensors.keys().map(move |n| (p, n))) {
            if part.tensors.contains_key(name) {
                return Err(m.malformed(format!("tensor {name:?} lies in {} as well", before.path.display())));
            }
        }
    }
    let found: usize = parts.iter().map(|p| p.tensors.len()).sum();
    match expected.filter(|&n| n != found) {
        Some(n) => Err(first.metadata.malformed(format!(
            "its {} parts have {found} tensors together, but {TENSORS} says {n}: a part is not the model's",
            parts.len()
        ))),
        None => Ok(()),
    }
}

/// Name of part `number` (from 1) of `count`.
fn part_name(stem: &str, number: usize, count: usize) -> String {
    format!("{stem}-{number:0DIGITS$}-of-{count:0DIGITS$}.gguf")
}

/// What comes before the numbers, and the numbers.
fn pattern(name: &str) -> Option<(&str, usize, usize)> {
    let rest = name.strip_suffix(".gguf")?;
    let (rest, count) = rest.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |s: &str| {
        (s.len() == DIGITS && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse().ok()).flatten()
    };
    Some((stem, digits(number)?, digits(count)?))
}

#[cfg(test)]
mod tests {
    use super::split_parts;

    #[test]
    fn parts_belong_together_by_name() {
        let all = ["q8/big-00001-of-00003.gguf", "q8/big-00002-of-00003.gguf", "q8/big-00003-of-00003.gguf"];
        for name in all {
            assert_eq!(split_parts(name).unwrap(), all);
        }
        assert_eq!(split_parts("a-of-b-00001-of-00001.gguf").unwrap(), ["a-of-b-00001-of-00001.gguf"]);
        for name in [
            "model.gguf",
            "model-00000-of-00003.gguf",
            "model-00004-of-00003.gguf",
            "model-1-of-3.gguf",
            "model-00001-of-0003.gguf",
            "model-0000+1-of-00003.gguf",
            "model-00001-of-00003.safetensors",
            "model-00001-of-00003",
            "00001-of-00003.gguf",
            "",
        ] {
            assert_eq!(split_parts(name), None, "{name}");
        }
    }
}
