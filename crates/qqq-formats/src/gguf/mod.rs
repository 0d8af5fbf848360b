//! GGUF files, llama.cpp's container: metadata (configuration, tokenizer, chat template) and
//! tensors, plain or block-quantized.
//!
//! Tensors are offered under their Hugging Face names and in Hugging Face's order of rows:
//! llama.cpp's converter interleaves the rows of q and k of Llama models so that its rotary
//! embedding can turn neighbouring elements; that is undone here.
//!
//! A model that is split over several files is opened by the name of any of them.

mod config;
mod dequant;
mod metadata;
mod names;
mod part;
mod permutation;
mod reader;
mod split;
mod types;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{FormatError, Result, TensorInfo, TensorSource, WeightData};
use part::{Bytes, Part};
use permutation::Permuted;

pub use metadata::{Metadata, Value};
pub use split::split_parts;
pub use types::GgmlType;

/// An open GGUF file, version 2 or 3, little-endian; or all files of a split model, as if they were one.
pub struct GgufFile {
    /// Of a split model in order, else one.
    parts: Vec<Source>,
    version: u32,
    /// The first part's: that one has the model's.
    metadata: Metadata,
    /// Under their Hugging Face names.
    tensors: BTreeMap<String, Tensor>,
}

/// A file, and where it lies.
struct Source {
    path: PathBuf,
    bytes: Bytes,
}

struct Tensor {
    /// Index of the file that holds it.
    part: usize,
    entry: reader::Entry,
    /// How rows are to be put back into Hugging Face's order.
    permuted: Option<Permuted>,
}

impl GgufFile {
    /// Maps a file into memory and reads its header; with it all other files of a split model, whichever of them
    /// `path` names. The files must not be changed while they are open.
    ///
    /// # Errors
    /// A file cannot be read, breaks the format, or has tensors of unknown types; a part of a split model is missing,
    /// has another name than `NAME-00001-of-00003.gguf`, or belongs to another model.
    pub fn open(path: &Path) -> Result<Self> {
        let part = Part::open(path)?;
        match split::paths(&part.metadata)? {
            None => Self::join(vec![part]),
            Some(paths) => {
                let parts = paths.iter().map(|p| Part::open(p)).collect::<Result<Vec<_>>>()?;
                split::check(&parts)?;
                Self::join(parts)
            }
        }
    }

    /// Reads a file that lies in memory; `path` is for messages. Of a split model this gives the one part's metadata
    /// and tensors, and no [configuration](GgufFile::config).
    ///
    /// # Errors
    /// Those of [`GgufFile::open`].
    pub fn from_bytes(path: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<Self> {
        Self::join(vec![Part::new(path.into(), Bytes::Owned(bytes))?])
    }

    /// One model of its parts.
    fn join(parts: Vec<Part>) -> Result<Self> {
        let none = || FormatError::Layout("a GGUF model has at least one file".into());
        let heads = permutation::heads(&parts.first().ok_or_else(none)?.metadata)?;
        let mut sources = Vec::new();
        let mut tensors = BTreeMap::new();
        let mut first = None;
        for (index, part) in parts.into_iter().enumerate() {
            for (gguf_name, entry) in part.tensors {
                let permuted = permutation::of_tensor(&gguf_name, &entry, heads, &part.metadata)?;
                let name = names::hugging_face(&gguf_name).unwrap_or(gguf_name);
                if tensors.insert(name.clone(), Tensor { part: index, entry, permuted }).is_some() {
                    return Err(part.metadata.malformed(format!("two tensors stand for {name:?}")));
                }
            }
            sources.push(Source { path: part.path, bytes: part.bytes });
            first.get_or_insert((part.version, part.metadata));
        }
        let (version, metadata) = first.ok_or_else(none)?;
        Ok(GgufFile { parts: sources, version, metadata, tensors })
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

    /// How many files the model lies in.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// The file of a tensor, for messages.
    fn file_of(&self, tensor: &Tensor) -> String {
        self.parts[tensor.part].path.display().to_string()
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
        let bytes = &self.parts[tensor.part].bytes[tensor.entry.range.clone()];
        Ok(match tensor.permuted {
            None => Cow::Borrowed(bytes),
            Some(permuted) => Cow::Owned(permuted.restore(bytes)),
        })
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<WeightData> {
        let tensor = self.tensor(name)?;
        let (entry, location) = (&tensor.entry, self.file_of(tensor));
        if entry.shape != shape {
            return Err(FormatError::Shape {
                location,
                name: name.into(),
                found: entry.shape.clone(),
                expected: shape.into(),
            });
        }
        let bytes = self.bytes(name)?;
        if let "F32" | "F16" | "BF16" = entry.ty.name() {
            return crate::float::decode(&location, name, entry.ty.dtype(), &bytes);
        }
        let Some(values) = entry.ty.dequantize(&bytes) else {
            return Err(FormatError::Unsupported(format!(
                "{}: tensor {name:?} has type {}, which cannot be read as float ({} can); \
                 convert the model to one of these types",
                location,
                entry.ty.name(),
                types::READABLE
            )));
        };
        crate::float::check(&location, name, WeightData::F32(values))
    }

    fn location(&self) -> String {
        let first = self.metadata.path().display();
        match self.parts.len() {
            1 => first.to_string(),
            n => format!("{first} and {} more parts", n - 1),
        }
    }

    fn release(&self, name: &str) {
        if let Some(tensor) = self.tensors.get(name)
            && let Bytes::Mapped(map) = &self.parts[tensor.part].bytes
        {
            crate::mapped::release(map, tensor.entry.range.clone());
        }
    }
}
