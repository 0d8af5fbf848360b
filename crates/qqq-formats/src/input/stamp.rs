//! What shows that a file was changed, and hashes of what is in it.

use std::{
    fs::{File, Metadata},
    hash::Hasher as _,
    io,
    ops::Range,
    time::SystemTime,
};

use twox_hash::XxHash3_64;

use super::read_exact_at;

/// Of a file whose size and time of modification are what they were.
pub(super) const OTHER_CONTENT: &str =
    "it still has its size and time of modification, but what was read of it is not in it any more";

/// Bytes that are read at a time where only their hash is wanted.
const CHUNK: usize = 1 << 20;

/// Size and times of a file at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    bytes: u64,
    /// To the nanosecond where the file system has it; `None` where it does not say.
    modified: Option<SystemTime>,
    /// Seconds and nanoseconds of the last change of status, which every write is, and which no program can set; `None`
    /// where the system has no such time.
    status: Option<(i64, i64)>,
}

/// What became of a file between two moments.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Difference {
    /// Nothing that shows.
    None,
    /// Its status was changed: at least its mode, its owner, its names, or a time that was set.
    Status,
    /// It was written to; this says why one knows.
    Content(String),
}

impl Stamp {
    /// Of an open file.
    pub fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        let status = {
            use std::os::unix::fs::MetadataExt;
            Some((metadata.ctime(), metadata.ctime_nsec()))
        };
        #[cfg(not(unix))]
        let status = None;
        Self { bytes: metadata.len(), modified: metadata.modified().ok(), status }
    }

    /// What became of it until `now`.
    pub fn difference(&self, now: &Self) -> Difference {
        let bytes = self.bytes;
        match now.bytes {
            n if n < bytes => Difference::Content(format!("it was truncated from {bytes} to {n} bytes")),
            n if n > bytes => Difference::Content(format!("it grew from {bytes} to {n} bytes")),
            n if now.modified != self.modified => Difference::Content(format!(
                "it still has {n} bytes, but its time of modification is another"
            )),
            _ if now.status != self.status => Difference::Status,
            _ => Difference::None,
        }
    }
}

/// The hash by which two readings are compared. It need not withstand anybody: it is faster than memory.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// A hash of bytes that come one after the other.
#[derive(Clone)]
pub(super) struct Running(XxHash3_64);

impl Running {
    /// Of nothing yet.
    pub fn new() -> Self {
        Self(XxHash3_64::new())
    }

    /// Adds what comes next.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// As [`hash()`] of all until now.
    pub fn hash(&self) -> u64 {
        self.0.finish()
    }
}

/// [`hash()`] of a part of a file.
pub(super) fn hash_of(file: &File, part: Range<u64>) -> io::Result<u64> {
    let mut running = Running::new();
    let mut buffer = vec![0; CHUNK.min(usize::try_from(part.end - part.start).unwrap_or(CHUNK))];
    let mut at = part.start;
    while at < part.end {
        let length = usize::try_from(part.end - at).unwrap_or(CHUNK).min(CHUNK);
        read_exact_at(file, &mut buffer[..length], at)?;
        running.add(&buffer[..length]);
        at += length as u64;
    }
    Ok(running.hash())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_hash_as_when_they_were_read() {
        let bytes: Vec<u8> = (0..2 * CHUNK + 77).map(|i| ((i * i) >> 3) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &bytes).unwrap();
        for part in [0..0, 3..4, 5..CHUNK + 5, 1..bytes.len()] {
            let found = hash_of(&file, part.start as u64..part.end as u64).unwrap();
            assert_eq!(found, hash(&bytes[part.clone()]), "{part:?}");
        }
        assert!(hash_of(&file, 0..bytes.len() as u64 + 1).is_err());
    }
}
