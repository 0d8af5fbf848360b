//! One GGUF file: its bytes and what its header says.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::{Metadata, reader};
use crate::{FormatError, Result};

/// The bytes of a file.
pub(super) enum Bytes {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(vec) => vec,
        }
    }
}

/// A file by itself: a whole model, or a part of a split one.
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) bytes: Bytes,
    pub(super) version: u32,
    pub(super) metadata: Metadata,
    /// Under the names that the file gives them.
    pub(super) tensors: BTreeMap<String, reader::Entry>,
}

impl Part {
    /// Maps a file and reads its header; as [`super::GgufFile::open`].
    pub(super) fn open(path: &Path) -> Result<Self> {
        let io = |source| FormatError::Io { path: path.into(), source };
        let file = File::open(path).map_err(io)?;
        if !file.metadata().map_err(io)?.is_file() {
            return Err(FormatError::Malformed {
                path: path.into(),
                reason: "is not a file; a GGUF model is one file, or several that are named by one of them"
                    .into(),
            });
        }
        // SAFETY: the map is only read. Should another process truncate the file meanwhile, reading
        // faults; that is the usual contract of memory-mapped models, stated in the docs of `GgufFile::open`.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        Self::new(path.into(), Bytes::Mapped(map))
    }

    /// Reads the header of a file's bytes.
    pub(super) fn new(path: PathBuf, bytes: Bytes) -> Result<Self> {
        let header = reader::parse(&path, &bytes)?;
        let metadata = Metadata::new(path.clone(), header.values);
        Ok(Part { path, bytes, version: header.version, metadata, tensors: header.tensors })
    }
}
