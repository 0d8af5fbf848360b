//! Files that are read once, from start to end.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::stamp::{Difference, OTHER_CONTENT, Running, Stamp, hash_of};
use crate::FormatError;

/// A stream over a file that is read once, from start to end: an error where the file was changed before its end was
/// reached. What is no regular file (a pipe) is passed through.
pub struct Watched {
    file: File,
    path: PathBuf,
    watch: Option<Watch>,
}

/// What is known of a regular file.
struct Watch {
    stamp: Stamp,
    /// Bytes until now.
    read: u64,
    hash: Running,
}

impl Watched {
    /// Opens a file.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let watch =
            metadata.is_file().then(|| Watch { stamp: Stamp::of(&metadata), read: 0, hash: Running::new() });
        Ok(Self { file, path: path.into(), watch })
    }

    /// Whether it has an end to count on: no pipe, say.
    pub fn is_regular(&self) -> bool {
        self.watch.is_some()
    }
}

impl Read for Watched {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(out)?;
        let Some(watch) = &mut self.watch else { return Ok(n) };
        watch.read += n as u64;
        watch.hash.add(&out[..n]);
        let now = Stamp::of(&self.file.metadata()?);
        let what = match watch.stamp.difference(&now) {
            Difference::None => return Ok(n),
            Difference::Content(what) => what,
            Difference::Status if hash_of(&self.file, 0..watch.read)? == watch.hash.hash() => {
                watch.stamp = now;
                return Ok(n);
            }
            Difference::Status => OTHER_CONTENT.into(),
        };
        Err(io::Error::other(FormatError::Changed { path: self.path.clone(), what }))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{overwrite, written},
        *,
    };

    #[test]
    fn streams_end_with_an_error_when_the_file_changes() {
        let (_dir, path) = written("0123456789");
        let mut stream = Watched::open(&path).unwrap();
        let mut out = [0; 4];
        stream.read_exact(&mut out).unwrap();
        overwrite(&path, "x");
        let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("input"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn streams_look_at_the_content_where_only_the_status_changes() {
        use super::super::tests::{overwrite_unnoticed, touch_status};

        for (change, ends) in [(touch_status as fn(&Path), true), (overwrite_unnoticed, false)] {
            let (_dir, path) = written("0123456789");
            let mut stream = Watched::open(&path).unwrap();
            stream.read_exact(&mut [0; 4]).unwrap();
            change(&path);
            let mut rest = String::new();
            match stream.read_to_string(&mut rest) {
                Ok(_) => assert!(ends && rest == "456789", "{rest:?}"),
                Err(e) => assert!(!ends && e.to_string().contains("not in it any more"), "{e}"),
            }
        }
    }
}
