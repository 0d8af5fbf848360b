//! One GGUF file: its bytes and what its header says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Metadata, reader};
use crate::{FormatError, Inputs, Result, input::Content};

/// Bytes of a file's beginning that are read at first; most headers are shorter.
const HEAD: usize = 4 << 20;

/// A file by itself: a whole model, or a part of a split one.
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) bytes: Content,
    pub(super) version: u32,
    pub(super) metadata: Metadata,
    /// Under the names that the file gives them.
    pub(super) tensors: BTreeMap<String, reader::Entry>,
}

impl Part {
    /// Opens a file and reads its header; as [`super::GgufFile::open`].
    pub(super) fn open(path: &Path, inputs: &Inputs) -> Result<Self> {
        if path.is_dir() {
            return Err(FormatError::Malformed {
                path: path.into(),
                reason: "is not a file; a GGUF model is one file, or several that are named by one of them"
                    .into(),
            });
        }
        Self::new(path.into(), Content::File(inputs.open(path)?))
    }

    /// Reads the header of a file. How long it is shows only at its end, so more is read until it is there.
    pub(super) fn new(path: PathBuf, bytes: Content) -> Result<Self> {
        let mut head = HEAD.min(bytes.len());
        let header = loop {
            if let Some(header) = reader::parse(&path, &bytes.read(0..head)?, bytes.len())? {
                break header;
            }
            head = head.saturating_mul(4).min(bytes.len());
        };
        let metadata = Metadata::new(path.clone(), header.values);
        Ok(Part { path, bytes, version: header.version, metadata, tensors: header.tensors })
    }
}
