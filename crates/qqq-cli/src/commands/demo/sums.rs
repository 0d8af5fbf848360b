//! SHA-256 of the files of a folder, kept beside it in the form of `sha256sum`.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::Context;

use crate::files;

/// By the files' paths within the folder.
#[derive(Debug, PartialEq, Eq)]
pub struct Sums(BTreeMap<String, String>);

impl Sums {
    /// Of a folder and what is below it.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn of(folder: &Path) -> anyhow::Result<Self> {
        let mut sums = BTreeMap::new();
        collect(folder, "", &mut sums)?;
        Ok(Self(sums))
    }

    /// Of the files of these names alone.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn of_files<'a>(folder: &Path, names: impl Iterator<Item = &'a str>) -> anyhow::Result<Self> {
        names
            .map(|name| Ok((name.to_owned(), files::sha256(&folder.join(name))?)))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Reads what [`Sums::text`] has written, `None` if it is anything else.
    pub fn parse(text: &str, folder: &str) -> Option<Self> {
        let line = |line: &str| {
            let (sum, path) = line.split_once("  ")?;
            let name = path.strip_prefix(folder)?.strip_prefix('/')?;
            let is_sum = sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit());
            is_sum.then(|| (name.to_owned(), sum.to_owned()))
        };
        let sums: BTreeMap<_, _> = text.lines().map(line).collect::<Option<_>>()?;
        (!sums.is_empty()).then_some(Self(sums))
    }

    /// For `sha256sum --check` in the place where the folder is.
    pub fn text(&self, folder: &str) -> String {
        self.0.iter().fold(String::new(), |mut text, (name, sum)| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{sum}  {folder}/{name}");
            text
        })
    }

    /// The first difference of what is in the folder now.
    pub fn difference(&self, now: &Self) -> Option<String> {
        let missing = self.0.iter().find_map(|(name, sum)| match now.0.get(name) {
            None => Some(format!("{name} is missing")),
            Some(found) if found != sum => Some(format!("{name} is not what was written")),
            Some(_) => None,
        });
        let foreign = || now.0.keys().find(|name| !self.0.contains_key(*name));
        missing.or_else(|| foreign().map(|name| format!("{name} is no part of it")))
    }

    /// The files' paths within the folder.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

fn collect(folder: &Path, prefix: &str, sums: &mut BTreeMap<String, String>) -> anyhow::Result<()> {
    let context = || format!("cannot read {}", folder.display());
    for entry in fs::read_dir(folder).with_context(context)? {
        let entry = entry.with_context(context)?;
        let (path, name) = (entry.path(), format!("{prefix}{}", entry.file_name().to_string_lossy()));
        if entry.file_type().with_context(context)?.is_dir() {
            collect(&path, &format!("{name}/"), sums)?;
        } else {
            sums.insert(name, files::sha256(&path)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        fs::create_dir(dir.path().join("below")).unwrap();
        write("a", "1");
        write("below/b", "2");
        let sums = Sums::of(dir.path()).unwrap();
        let text = sums.text("k");
        // What sha256sum gives for the digit 1.
        let one = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b";
        assert!(text.starts_with(&format!("{one}  k/a\n")) && text.lines().count() == 2, "{text}");
        assert_eq!(Sums::parse(&text, "k").as_ref(), Some(&sums));
        for broken in ["", &text[1..], &text[..text.len() - 80], &text.replace("  k/", "  l/"), "notes\n"] {
            assert_ne!(Sums::parse(broken, "k").as_ref(), Some(&sums), "{broken:?}");
        }
        let difference = || sums.difference(&Sums::of(dir.path()).unwrap());
        assert_eq!(difference(), None);
        write("below/b", "3");
        assert_eq!(difference().as_deref(), Some("below/b is not what was written"));
        write("below/b", "2");
        write("c", "");
        assert_eq!(difference().as_deref(), Some("c is no part of it"));
        fs::remove_file(dir.path().join("a")).unwrap();
        assert_eq!(difference().as_deref(), Some("a is missing"));
    }
}
