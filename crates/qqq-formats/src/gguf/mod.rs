//! GGUF files, llama.cpp's container: metadata (configuration, tokenizer, chat template) and
//! tensors, plain or block-quantized.
//!
//! Tensors are offered under their Hugging Face names and in Hugging Face's order of rows:
//! llama.cpp's converter interleaves the rows of q and k of some families so that its rotary
//! embedding can turn neighbouring elements, and adds what a family's norms add to the weights of Gemma's; that is
//! undone here.
//!
//! A model that is split over several files is opened by the name of any of them.

mod architectures;
mod config;
mod dequant;
mod family;
mod metadata;
mod names;
mod part;
mod permutation;
mod reader;
mod split;
mod types;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::input::Content;
use crate::source::{beyond, row_range};
use crate::{FormatError, Inputs, Result, TensorInfo, TensorSource, WeightData};
use part::Part;
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
    bytes: Content,
}

struct Tensor {
    /// Index of the file that holds it.
    part: usize,
    entry: reader::Entry,
    /// How rows are to be put back into Hugging Face's order.
    permuted: Option<Permuted>,
    /// What the converter has added to its values.
    shift: f32,
}

impl GgufFile {
    /// Opens a file and reads its header; with it all other files of a split model, whichever of them `path` names.
    ///
    /// # Errors
    /// A file cannot be read, breaks the format, or has tensors of unknown types; a part of a split model is missing,
    /// has another name than `NAME-00001-of-00003.gguf`, or belongs to another model.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, &Inputs::default())
    }

    /// As [`GgufFile::open`], by way of `inputs`, which watches the files.
    ///
    /// # Errors
    /// As [`GgufFile::open`].
    pub fn open_with(path: &Path, inputs: &Inputs) -> Result<Self> {
        let part = Part::open(path, inputs)?;
        match split::paths(&part.metadata)? {
            None => Self::join(vec![part]),
            Some(paths) => {
                let parts = paths.iter().map(|p| Part::open(p, inputs)).collect::<Result<Vec<_>>>()?;
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
        Self::join(vec![Part::new(path.into(), Content::Memory(bytes))?])
    }

    /// One model of its parts.
    fn join(parts: Vec<Part>) -> Result<Self> {
        let none = || FormatError::Layout("a GGUF model has at least one file".into());
        let metadata = &parts.first().ok_or_else(none)?.metadata;
        let arch = architectures::find(metadata)?;
        let heads = match arch {
            Some(arch) if arch.interleaved => Some(config::heads(metadata, arch.name)?),
            _ => None,
        };
        let own_names = arch.map_or(&[][..], |arch| arch.own_names);
        let mut sources = Vec::new();
        let mut tensors = BTreeMap::new();
        let mut first = None;
        for (index, part) in parts.into_iter().enumerate() {
            for (gguf_name, entry) in part.tensors {
                let permuted = permutation::of_tensor(&gguf_name, &entry, heads, &part.metadata)?;
                let shift = match arch {
                    Some(arch) if gguf_name.ends_with("norm.weight") => arch.norm_shift,
                    _ => 0.0,
                };
                let name = names::hugging_face(&gguf_name, own_names).unwrap_or(gguf_name);
                if tensors.insert(name.clone(), Tensor { part: index, entry, permuted, shift }).is_some() {
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

    /// Keys and values of the header.
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

    /// The stored bytes, block-quantized rows included; rows of q and k in Hugging Face's order. What was added to values
    /// is in them.
    fn bytes_at(&self, name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>> {
        let tensor = self.tensor(name)?;
        let (start, len) = (tensor.entry.range.start, tensor.entry.range.len());
        if range.start > range.end || range.end > len {
            return Err(beyond(&self.file_of(tensor), name, &range));
        }
        let read =
            |range: Range<usize>| self.parts[tensor.part].bytes.read(start + range.start..start + range.end);
        let Some(permuted) = tensor.permuted else { return read(range) };
        // Rows move within their head.
        let head = permuted.head_bytes();
        let first = range.start / head * head;
        let restored = permuted.restore(&read(first..range.end.next_multiple_of(head).min(len))?);
        Ok(Cow::Owned(restored[range.start - first..range.end - first].to_vec()))
    }

    fn float_rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<WeightData> {
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
        let range =
            row_range(shape, entry.range.len(), &rows).ok_or_else(|| beyond(&location, name, &rows))?;
        let bytes = self.bytes_at(name, range)?;
        if let "F32" | "F16" | "BF16" = entry.ty.name() {
            let values = crate::float::decode(&location, name, entry.ty.dtype(), &bytes)?;
            return Ok(match tensor.shift {
                0.0 => values,
                shift => WeightData::F32(values.into_f32().into_iter().map(|x| x - shift).collect()),
            });
        }
        let Some(mut values) = entry.ty.dequantize(&bytes) else {
            return Err(FormatError::Unsupported(format!(
                "{}: tensor {name:?} has type {}, which cannot be read as float ({} can); \
                 convert the model to one of these types",
                location,
                entry.ty.name(),
                types::READABLE
            )));
        };
        values.iter_mut().for_each(|x| *x -= tensor.shift);
        crate::float::check(&location, name, WeightData::F32(values))
    }

    fn location(&self) -> String {
        let first = self.metadata.path().display();
        match self.parts.len() {
            1 => first.to_string(),
            n => format!("{first} and {} more parts", n - 1),
        }
    }
}
