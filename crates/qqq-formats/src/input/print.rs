//! What a file is known again by.

use std::time::UNIX_EPOCH;

use super::{InputFile, Inputs, stamp};
use crate::{FormatError, Result};

/// Bytes at each end of a file that are hashed: headers, and where writers add something.
const END: u64 = 64 << 10;

/// What a file is known again by, wherever it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePrint {
    /// Its name, without folders.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Nanoseconds from 1970 to the last time that it was written; `None` where the system does not say.
    pub modified: Option<u64>,
    /// Hash of its first and last bytes.
    pub ends: u64,
}

impl InputFile {
    /// What it is known again by.
    ///
    /// # Errors
    /// As [`InputFile::read_at`].
    pub fn print(&self) -> Result<FilePrint> {
        let metadata =
            self.file.metadata().map_err(|source| FormatError::Io { path: self.path.clone(), source })?;
        let since = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let mut running = stamp::Running::new();
        let length = END.min(self.bytes);
        for offset in [0, self.bytes - length] {
            let mut end = vec![0; length as usize];
            self.read_at(offset, &mut end)?;
            running.add(&end);
        }
        Ok(FilePrint {
            name: self.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            bytes: self.bytes,
            modified: since.and_then(|time| u64::try_from(time.as_nanos()).ok()),
            ends: running.hash(),
        })
    }
}

impl Inputs {
    /// Those of all files that were opened until now, by their paths.
    ///
    /// # Errors
    /// As [`InputFile::print`].
    pub fn prints(&self) -> Result<Vec<FilePrint>> {
        let files = self.files.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        files.values().map(|file| file.print()).collect()
    }
}
