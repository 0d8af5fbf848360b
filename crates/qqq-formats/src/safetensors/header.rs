//! The header of a safetensors file: eight bytes of length, then JSON, then the tensors' bytes, which
//! must cover the rest of the file without overlap or hole
//! (<https://github.com/huggingface/safetensors#format>).

use std::{ops::Range, path::Path};

use safetensors::tensor::TensorInfo as HeaderEntry;
use serde::Deserialize;

use crate::{DType, FormatError, Result, TensorInfo, input::Content, json::UniqueEntries};

/// Bytes of the length field.
const LENGTH: usize = 8;
/// The format's own limit on the header, in bytes.
const MAX_HEADER: u64 = 100_000_000;
/// First bytes of what Git leaves in place of a large file that was not fetched.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// A tensor of a file.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    pub info: TensorInfo,
    /// Where its bytes lie in the file; in range.
    pub range: Range<usize>,
}

/// A header's value: a tensor, or the free-form `__metadata__`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Tensor(HeaderEntry),
    Other(serde_json::Value),
}

/// Reads and checks the header of a file. The cost does not depend on the size of the tensors.
pub(super) fn parse(path: &Path, file: &Content) -> Result<Vec<Entry>> {
    let malformed = |reason: String| FormatError::Malformed { path: path.into(), reason };

    let size = file.len();
    if file.read(0..size.min(LFS_POINTER.len()))?.starts_with(LFS_POINTER) {
        return Err(malformed(
            "this is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`".into(),
        ));
    }
    if size < LENGTH {
        return Err(malformed(format!(
            "truncated: {size} bytes, but a safetensors file begins with {LENGTH} bytes of header length"
        )));
    }
    let length = file.read(0..LENGTH)?.iter().rev().fold(0, |length: u64, b| length << 8 | u64::from(*b));
    if length > MAX_HEADER {
        return Err(malformed(format!(
            "not a safetensors file: it announces a header of {length} bytes, and the format allows {MAX_HEADER}"
        )));
    }
    let start = LENGTH + length as usize; // at most MAX_HEADER
    if start > size {
        return Err(malformed(format!(
            "truncated: it announces a header of {length} bytes, but has {size} bytes in all; fetch it again"
        )));
    }
    let header = &file.read(LENGTH..start)?;

    let entries: UniqueEntries<Value> =
        serde_json::from_slice(header).map_err(|e| malformed(format!("the header is not valid: {e}")))?;
    let mut tensors = Vec::with_capacity(entries.0.len());
    for (name, value) in entries.0 {
        match value {
            Value::Tensor(entry) => tensors.push((name, entry)),
            Value::Other(_) if name == "__metadata__" => {}
            Value::Other(value) => {
                // Parsed again for a message that says what is wrong.
                let reason = serde_json::from_value::<HeaderEntry>(value)
                    .err()
                    .map_or_else(|| "not understood".into(), |e| e.to_string());
                return Err(malformed(format!("header entry of tensor {name:?}: {reason}")));
            }
        }
    }
    check_cover(&mut tensors, size - start).map_err(malformed)?;
    Ok(tensors
        .into_iter()
        .map(|(name, entry)| {
            let (begin, end) = entry.data_offsets;
            Entry {
                name,
                info: TensorInfo {
                    dtype: DType::from_safetensors(entry.dtype),
                    shape: entry.shape,
                    bytes: (end - begin) as u64,
                },
                range: start + begin..start + end,
            }
        })
        .collect())
}

/// Checks shapes against sizes, and that the tensors cover `data_len` bytes exactly once.
fn check_cover(tensors: &mut [(String, HeaderEntry)], data_len: usize) -> Result<(), String> {
    for (name, entry) in tensors.iter() {
        let (begin, end) = entry.data_offsets;
        if begin > end {
            return Err(format!("tensor {name:?} ends at offset {end}, before its start {begin}"));
        }
        if end > data_len {
            return Err(format!(
                "tensor {name:?} lies at offsets {begin}..{end}, but only {data_len} bytes of tensors follow the \
                 header; the file is truncated, fetch it again"
            ));
        }
        let wanted = entry
            .shape
            .iter()
            .try_fold(entry.dtype.bitsize(), |bits, &n| bits.checked_mul(n))
            .filter(|bits| bits % 8 == 0)
            .map(|bits| bits / 8);
        if wanted != Some(end - begin) {
            return Err(format!(
                "tensor {name:?} of type {} and shape {:?} {}, but its offsets {begin}..{end} hold {} bytes",
                entry.dtype,
                entry.shape,
                match wanted {
                    Some(bytes) => format!("takes {bytes} bytes"),
                    None => "has an impossible size".into(),
                },
                end - begin
            ));
        }
    }
    tensors.sort_by(|(a, x), (b, y)| (x.data_offsets, a).cmp(&(y.data_offsets, b)));
    let mut covered = 0;
    let mut last: Option<&str> = None;
    for (name, entry) in tensors.iter() {
        let (begin, end) = entry.data_offsets;
        if begin < covered {
            return Err(format!(
                "tensors {:?} and {name:?} overlap at offset {begin}",
                last.unwrap_or_default()
            ));
        }
        if begin > covered {
            return Err(format!(
                "the bytes at offsets {covered}..{begin}, before tensor {name:?}, belong to no tensor"
            ));
        }
        covered = end;
        last = Some(name);
    }
    if covered != data_len {
        return Err(format!("{} bytes after the last tensor belong to no tensor", data_len - covered));
    }
    Ok(())
}
