//! Files of data in several parts, as the hub's tools name them: `NAME-00000-of-00002.parquet`.

/// Parts of one whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set<'a> {
    /// What their names have in common: without number and ending.
    pub stem: &'a str,
    /// Number, from 0, of how many; nothing of a file that is the whole.
    parts: Vec<(Option<(usize, usize)>, &'a str)>,
}

/// Sorts files by what they are parts of; sets and parts in the order of their names.
pub fn sets<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<Set<'a>> {
    let mut sets: Vec<Set<'a>> = Vec::new();
    for name in names {
        let (stem, part) = parsed(name);
        match sets.iter_mut().find(|set| set.stem == stem) {
            Some(set) => set.parts.push((part, name)),
            None => sets.push(Set { stem, parts: vec![(part, name)] }),
        }
    }
    sets.sort_by_key(|set| set.stem);
    for set in &mut sets {
        set.parts.sort_unstable();
    }
    sets
}

impl<'a> Set<'a> {
    /// Names of its files, in order.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.parts.iter().map(|(_, name)| *name)
    }

    /// Its files in order, if they are all there; else what is wrong.
    ///
    /// # Errors
    /// Parts that are missing, or files that are not parts of the same whole, in words.
    pub fn whole(&self) -> Result<Vec<&'a str>, String> {
        let names: Vec<&str> = self.names().collect();
        let count = match self.parts[..] {
            [(None, _)] => return Ok(names),
            [(Some((_, count)), _), ..] => count,
            _ => 0,
        };
        let is_whole = self.parts.len() == count
            && self.parts.iter().enumerate().all(|(i, (part, _))| *part == Some((i, count)));
        match is_whole {
            true => Ok(names),
            false => Err(format!("not exactly {count} parts are there, but {}", names.join(", "))),
        }
    }
}

/// What a name says without its ending, and which part of how many it is.
fn parsed(name: &str) -> (&str, Option<(usize, usize)>) {
    let unpacked = [".gz", ".zst"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    let file = unpacked.rfind('/').map_or(0, |slash| slash + 1);
    let end = unpacked[file..].rfind('.').map_or(unpacked.len(), |dot| file + dot);
    let plain = &unpacked[..end];
    let part = plain.rsplit_once("-of-").and_then(|(rest, count)| {
        let (stem, number) = rest.rsplit_once('-')?;
        let digits =
            |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        Some((stem, (digits(number)?, digits(count)?)))
    });
    part.map_or((plain, None), |(stem, part)| (stem, Some(part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_together() {
        let names = [
            "a/test-00001-of-00002.parquet",
            "a/test.jsonl.gz",
            "a/train-00000-of-00003.parquet",
            "a/test-00000-of-00002.parquet",
        ];
        let sets = sets(names);
        assert_eq!(sets.iter().map(|set| set.stem).collect::<Vec<_>>(), ["a/test", "a/train"]);
        // A file beside its parts.
        assert!(sets[0].whole().unwrap_err().contains("not exactly"));
        assert!(sets[1].whole().unwrap_err().contains("not exactly 3 parts"));
        let two = super::sets([names[0], names[3]]);
        assert_eq!(two[0].whole().unwrap(), [names[3], names[0]]);
        assert_eq!(super::sets(["a.test.jsonl", "a.train.jsonl", "test-x-of-2.jsonl"]).len(), 3);
    }
}
