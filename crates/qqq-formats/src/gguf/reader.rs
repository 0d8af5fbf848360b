//! Parsing of GGUF's header: metadata and tensor directory.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Every count is checked
//! against what is left of the file before anything is allocated for it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{GgmlType, Value};
use crate::{FormatError, Result};

/// Alignment of tensor data where `general.alignment` is absent.
const DEFAULT_ALIGNMENT: usize = 32;
/// ggml's limit.
const MAX_DIMENSIONS: u32 = 4;

/// A tensor's entry in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) ty: GgmlType,
    /// Row-major shape (the file's order reversed).
    pub(super) shape: Vec<usize>,
    /// Where its bytes lie in the file.
    pub(super) range: Range<usize>,
}

/// What a header says.
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) values: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, Entry>,
}

/// Parses the header of a file of `size` bytes that begins with `head`; `None` if the header is longer than that.
pub(super) fn parse(path: &Path, head: &[u8], size: usize) -> Result<Option<Header>> {
    let mut r = Reader { path, head, size, at: 0, is_short: false };
    match header(&mut r) {
        Err(_) if r.is_short => Ok(None),
        header => header.map(Some),
    }
}

fn header(r: &mut Reader<'_>) -> Result<Header> {
    let path = r.path;
    if r.take(4, "the magic number")? != b"GGUF" {
        return Err(r.malformed("does not begin with \"GGUF\": not a GGUF file".into()));
    }
    let version = r.u32("the version")?;
    match version {
        2 | 3 => {}
        _ if version.swap_bytes() <= 3 => {
            return Err(FormatError::Unsupported(format!(
                "{}: big-endian GGUF files are not supported; convert the model on a little-endian machine",
                path.display()
            )));
        }
        _ => {
            return Err(FormatError::Unsupported(format!(
                "{}: GGUF version {version} is not supported (2 and 3 are); convert the model with a current llama.cpp",
                path.display()
            )));
        }
    }
    let tensor_count = r.u64("the tensor count")?;
    let kv_count = r.u64("the metadata count")?;

    let mut values = BTreeMap::new();
    for i in 0..kv_count {
        let key = r.string(|| format!("metadata key {i} of {kv_count}"))?;
        let kind = r.u32(&key)?;
        let value = r.value(&key, kind)?;
        if values.insert(key.clone(), value).is_some() {
            return Err(r.malformed(format!("metadata key {key} occurs twice")));
        }
    }

    let alignment = match values.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 30 => *n as usize,
        Some(other) => {
            let found = match other {
                Value::Unsigned(n) => n.to_string(),
                other => other.kind().to_owned(),
            };
            return Err(
                r.malformed(format!("general.alignment is {found}, expected a power of two up to 2^30"))
            );
        }
    };

    let mut directory = Vec::new();
    for i in 0..tensor_count {
        directory.push(r.tensor(i, tensor_count)?);
    }
    let data = r.at.next_multiple_of(alignment);

    let mut tensors = BTreeMap::new();
    for (name, ty, shape, bytes, offset) in directory {
        let range = usize::try_from(offset)
            .ok()
            .and_then(|o| o.checked_add(data))
            .and_then(|start| Some(start..start.checked_add(bytes)?))
            .filter(|range| range.end <= r.size);
        let Some(range) = range else {
            return Err(r.malformed(format!(
                "tensor {name:?} ({bytes} bytes at offset {offset} of the data that begin at byte {data}) \
                 reaches beyond the end of the file ({} bytes): the file is truncated",
                r.size
            )));
        };
        if !offset.is_multiple_of(alignment as u64) {
            return Err(r.malformed(format!(
                "tensor {name:?} lies at offset {offset}, which is no multiple of the alignment {alignment}"
            )));
        }
        if tensors.insert(name.clone(), Entry { ty, shape, range }).is_some() {
            return Err(r.malformed(format!("tensor {name:?} occurs twice")));
        }
    }
    check_overlap(r, &tensors)?;
    Ok(Header { version, values, tensors })
}

/// No two tensors share bytes.
fn check_overlap(r: &Reader<'_>, tensors: &BTreeMap<String, Entry>) -> Result<()> {
    let mut by_start: Vec<_> = tensors.iter().filter(|(_, e)| !e.range.is_empty()).collect();
    by_start.sort_by_key(|(_, e)| e.range.start);
    for pair in by_start.windows(2) {
        let [(a, ea), (b, eb)] = pair else { continue };
        if eb.range.start < ea.range.end {
            return Err(r.malformed(format!(
                "tensors {a:?} (bytes {:?}) and {b:?} (bytes {:?}) overlap",
                ea.range, eb.range
            )));
        }
    }
    Ok(())
}

/// A cursor over the beginning of a file.
struct Reader<'a> {
    path: &'a Path,
    head: &'a [u8],
    /// Of the whole file.
    size: usize,
    at: usize,
    /// Whether something lies within the file but beyond `head`; its error says nothing then.
    is_short: bool,
}

/// Name, type, row-major shape, bytes and offset of a tensor.
type RawEntry = (String, GgmlType, Vec<usize>, usize, u64);

impl<'a> Reader<'a> {
    fn malformed(&self, reason: String) -> FormatError {
        FormatError::Malformed { path: PathBuf::from(self.path), reason }
    }

    fn left(&self) -> usize {
        self.size - self.at
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        if n > self.left() {
            return Err(self.malformed(format!(
                "{what} needs {n} bytes at byte {}, but the file ends after {}: it is truncated or damaged",
                self.at, self.size
            )));
        }
        let Some(out) = self.head.get(self.at..self.at + n) else {
            self.is_short = true;
            return Err(self.malformed(format!("{what} was not read yet")));
        };
        self.at += n;
        Ok(out)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn string(&mut self, what: impl Fn() -> String) -> Result<String> {
        let length = self.u64("the length of a string")?;
        let Some(n) = usize::try_from(length).ok().filter(|&n| n <= self.left()) else {
            return Err(self.malformed(format!(
                "{} claims {length} bytes at byte {}, but only {} are left",
                what(),
                self.at,
                self.left()
            )));
        };
        let bytes = self.take(n, "a string")?;
        match std::str::from_utf8(bytes) {
            Ok(s) => Ok(s.to_owned()),
            Err(e) => Err(self.malformed(format!("{} is not UTF-8: {e}", what()))),
        }
    }

    fn boolean(&self, key: &str, byte: u8) -> Result<bool> {
        match byte {
            0 | 1 => Ok(byte == 1),
            _ => Err(self.malformed(format!("metadata key {key} is a boolean with value {byte}"))),
        }
    }

    /// A value of type number `kind`.
    fn value(&mut self, key: &str, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array(key)?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(key)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(key)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(key)?).into()),
            4 => Value::Unsigned(self.u32(key)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(key)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(key)?).into()),
            7 => {
                let [byte] = self.array(key)?;
                Value::Bool(self.boolean(key, byte)?)
            }
            8 => Value::String(self.string(|| format!("metadata key {key}"))?),
            9 => self.list(key)?,
            10 => Value::Unsigned(self.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            _ => {
                return Err(self.malformed(format!("metadata key {key} has the unknown type {kind}")));
            }
        })
    }

    fn list(&mut self, key: &str) -> Result<Value> {
        let kind = self.u32(key)?;
        let count = self.u64(key)?;
        // The least an element can take.
        let (width, is_array) = match kind {
            0 | 1 | 7 => (1, false),
            2 | 3 => (2, false),
            4..=6 => (4, false),
            8 | 10..=12 => (8, false),
            _ => (1, true),
        };
        if is_array {
            return Err(self.malformed(format!(
                "metadata key {key} is an array of type {kind}; only arrays of numbers, booleans and strings are supported"
            )));
        }
        let n = usize::try_from(count).ok().filter(|&n| n <= self.left() / width);
        let Some(n) = n else {
            return Err(self.malformed(format!(
                "metadata key {key} claims {count} elements of at least {width} bytes, but only {} bytes are left",
                self.left()
            )));
        };
        if kind == 8 {
            let mut strings = Vec::with_capacity(n);
            for i in 0..n {
                strings.push(self.string(|| format!("element {i} of metadata key {key}"))?);
            }
            return Ok(Value::Strings(strings));
        }
        let bytes = self.take(n * width, key)?;
        Ok(match kind {
            0 => Value::Integers(bytes.iter().map(|&b| b.into()).collect()),
            1 => Value::Integers(bytes.iter().map(|&b| (b as i8).into()).collect()),
            2 => Value::Integers(each(bytes, |b| u16::from_le_bytes(b).into())),
            3 => Value::Integers(each(bytes, |b| i16::from_le_bytes(b).into())),
            4 => Value::Integers(each(bytes, |b| u32::from_le_bytes(b).into())),
            5 => Value::Integers(each(bytes, |b| i32::from_le_bytes(b).into())),
            6 => Value::Floats(each(bytes, |b| f32::from_le_bytes(b).into())),
            7 => Value::Bools(bytes.iter().map(|&b| self.boolean(key, b)).collect::<Result<_>>()?),
            10 => {
                let values = each(bytes, u64::from_le_bytes);
                if let Some(big) = values.iter().find(|&&v| v > i64::MAX as u64) {
                    return Err(self.malformed(format!("metadata key {key} holds {big}, which is too large")));
                }
                Value::Integers(values.into_iter().map(|v| v as i64).collect())
            }
            11 => Value::Integers(each(bytes, i64::from_le_bytes)),
            _ => Value::Floats(each(bytes, f64::from_le_bytes)),
        })
    }

    fn tensor(&mut self, index: u64, count: u64) -> Result<RawEntry> {
        let name = self.string(|| format!("the name of tensor {index} of {count}"))?;
        let n_dims = self.u32(&name)?;
        if !(1..=MAX_DIMENSIONS).contains(&n_dims) {
            return Err(self.malformed(format!(
                "tensor {name:?} has {n_dims} dimensions, expected 1 to {MAX_DIMENSIONS}"
            )));
        }
        let mut shape = Vec::with_capacity(n_dims as usize);
        for _ in 0..n_dims {
            let dim = self.u64(&name)?;
            shape.push(usize::try_from(dim).map_err(|_| {
                self.malformed(format!("tensor {name:?} has a dimension of {dim}, which is too large"))
            })?);
        }
        let id = self.u32(&name)?;
        let offset = self.u64(&name)?;
        let Some(ty) = GgmlType::from_id(id) else {
            return Err(FormatError::Unsupported(format!(
                "{}: tensor {name:?} has type number {id}, which this version does not know; \
                 convert the model to F16, Q8_0 or a K-quant",
                self.path.display()
            )));
        };
        let Some(row) = ty.row_bytes(shape[0]) else {
            return Err(self.malformed(format!(
                "tensor {name:?} of type {} has rows of {} elements, no multiple of the block of {}",
                ty.name(),
                shape[0],
                ty.block()
            )));
        };
        let Some(bytes) = shape[1..].iter().try_fold(row, |n, &d| n.checked_mul(d)) else {
            return Err(
                self.malformed(format!("tensor {name:?} has dimensions {shape:?}, whose size overflows"))
            );
        };
        shape.reverse();
        Ok((name, ty, shape, bytes, offset))
    }
}

/// One value from every `N` bytes.
fn each<const N: usize, T>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|b| value(*b)).collect()
}
