//! GGUF files, llama.cpp's container: metadata (configuration, tokenizer, chat template) and
//! tensors, plain or block-quantized.
//!
//! Tensors are offered under their Hugging Face names and in Hugging Face's order of rows:
//! llama.cpp's converter interleaves the rows of q and k of Llama models so that its rotary
//! embedding can turn neighbouring elements; that is undone here.

mod config;
mod dequant;
mod metadata;
mod names;
mod permutation;
mod reader;
mod split;
mod types;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::{FormatError, Result, TensorInfo, TensorSource, WeightData};
use permutation::Permuted;

pub use metadata::{Metadata, Value};
pub use split::split_parts;
pub use types::GgmlType;

/// The bytes of a file.
enum Bytes {
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

/// An open GGUF file, version 2 or 3, little-endian.
pub struct GgufFile {
    path: PathBuf,
    bytes: Bytes,
    version: u32,
    metadata: Metadata,
    /// Under their Hugging Face names.
    tensors: BTreeMap<String, Tensor>,
}

struct Tensor {
    entry: reader::Entry,
    /// How rows are to be put back into Hugging Face's order.
    permuted: Option<Permuted>,
}

impl GgufFile {
    /// Maps a file into memory and reads its header. The file must not be changed while it is open.
    ///
    /// # Errors
    /// The file cannot be read, breaks the format, or has tensors of unknown types.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| FormatError::Io { path: path.into(), source };
        let file = File::open(path).map_err(io)?;
        if !file.metadata().map_err(io)?.is_file() {
            return Err(FormatError::Malformed {
                path: path.into(),
                reason: "is not a file; a GGUF model is one file".into(),
            });
        }
        // SAFETY: the map is only read. Should another process truncate the file meanwhile, reading
        // faults; that is the usual contract of memory-mapped models, stated in this method's docs.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        Self::parse(path.into(), Bytes::Mapped(map))
    }

    /// Reads a file that lies in memory; `path` is for messages.
    ///
    /// # Errors
    /// Those of [`GgufFile::open`].
    pub fn from_bytes(path: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<Self> {
        Self::parse(path.into(), Bytes::Owned(bytes))
    }

    fn parse(path: PathBuf, bytes: Bytes) -> Result<Self> {
        let header = reader::parse(&path, &bytes)?;
        let metadata = Metadata::new(path.clone(), header.values);
        let heads = permutation::heads(&metadata)?;
        let mut tensors = BTreeMap::new();
        for (gguf_name, entry) in header.tensors {
            let permuted = permutation::of_tensor(&gguf_name, &entry, heads, &metadata)?;
            let name = names::hugging_face(&gguf_name).unwrap_or(gguf_name);
            if tensors.insert(name.clone(), Tensor { entry, permuted }).is_some() {
                return Err(metadata.malformed(format!("two tensors stand for {name:?}")));
            }
        }
        Ok(GgufFile { path, bytes, version: header.version, metadata, tensors })
    }

    /// Version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Stored type of a tensor.
    pub fn tensor_type(&self, name: &str) -> Option<GgmlType> {
        self.tensors.get(name).map(|t| t.entry.ty)
    }

    fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors
            .get(name)
            .ok_or_else(|| FormatError::MissingTensor { location: self.location(), name: name.into() })
    }
}

impl TensorSource for GgufFile {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let entry = &self.tensors.get(name)?.entry;
        Some(TensorInfo {
            dtype: entry.ty.dtype(),
            shape: entry.shape.clone(),
            bytes: entry.range.len() as u64,
        })
    }

    /// The stored bytes, block-quantized rows included; rows of q and k in Hugging Face's order.
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        let tensor = self.tensor(name)?;
        let bytes = &self.bytes[tensor.entry.range.clone()];
        Ok(match tensor.permuted {
            None => Cow::Borrowed(bytes),
            Some(permuted) => Cow::Owned(permuted.restore(bytes)),
        })
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<WeightData> {
        let entry = &self.tensor(name)?.entry;
        if entry.shape != shape {
            return Err(FormatError::Shape {
                location: self.location(),
                name: name.into(),
                found: entry.shape.clone(),
                expected: shape.into(),
            });
        }
        let bytes = self.bytes(name)?;
        if let "F32" | "F16" | "BF16" = entry.ty.name() {
            return crate::float::decode(&self.location(), name, entry.ty.dtype(), &bytes);
        }
        let Some(values) = entry.ty.dequantize(&bytes) else {
            return Err(FormatError::Unsupported(format!(
                "{}: tensor {name:?} has type {}, which cannot be read as float ({} can); \
                 convert the model to one of these types",
                self.location(),
                entry.ty.name(),
                types::READABLE
            )));
        };
        crate::float::check(&self.location(), name, WeightData::F32(values))
    }

    fn location(&self) -> String {
        self.path.display().to_string()
    }
}
