//! Writing a checkpoint directory: staged beside its final name and renamed when complete.

mod pieces;
mod reservation;
mod resume;
mod shard;

use std::{
    borrow::Cow,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use crate::{
    Activations, CodeBits, CodeLayout, DType, FormatError, LayerScheme, QuantizedWeight, Result, WeightData,
    compressed_tensors, int4,
    lock::FileLock,
    qqq,
    safetensors::{INDEX_FILE, SINGLE_FILE},
    size::bytes,
};

pub use pieces::TensorPieces;
pub use reservation::Reservation;
use reservation::refuse_existing;
use resume::shard_path;
pub use resume::{WriterState, new_state_file, remove_states, state_file, states_file};
use shard::Shard;

/// Largest shard, in bytes, unless a single tensor is larger: as Hugging Face cuts them.
const SHARD_BYTES: u64 = 5_000_000_000;

/// Why a tensor was not filled: its bytes could not be written, or something else of the caller's.
#[derive(Debug)]
pub enum PieceError<E> {
    /// The system's error.
    Write(io::Error),
    /// The caller's error.
    Other(E),
}

impl<E> From<io::Error> for PieceError<E> {
    fn from(e: io::Error) -> Self {
        Self::Write(e)
    }
}

/// Writes a Hugging Face directory. Nothing appears under the final name before
/// [`CheckpointWriter::finish`]; dropping the writer removes what was staged.
pub struct CheckpointWriter {
    /// `None`: nothing is written, only counted.
    reservation: Option<Reservation>,
    /// Empty where nothing is written.
    staging: PathBuf,
    /// In the staging directory.
    owner: Option<FileLock>,
    shard_bytes: u64,
    /// Complete shards, then the current one.
    shards: Vec<Shard>,
    written: u64,
    finished: bool,
    /// Whether the staging directory outlives a writer that did not finish.
    is_kept: bool,
}

impl CheckpointWriter {
    /// Starts a directory that will be called `out`.
    ///
    /// # Errors
    /// As [`Reservation::take`].
    pub fn create(out: &Path) -> Result<Self> {
        Self::with_shard_size(out, SHARD_BYTES)
    }

    /// Like [`CheckpointWriter::create`], with shards of at most `shard_bytes`.
    ///
    /// # Errors
    /// As [`CheckpointWriter::create`].
    pub fn with_shard_size(out: &Path, shard_bytes: u64) -> Result<Self> {
        Self::start(&Reservation::take(out)?, shard_bytes)
    }

    /// Starts the directory that was reserved.
    ///
    /// # Errors
    /// Its parent has gone or is not writable any more.
    pub fn reserved(reservation: &Reservation) -> Result<Self> {
        Self::start(reservation, SHARD_BYTES)
    }

    fn start(reservation: &Reservation, shard_bytes: u64) -> Result<Self> {
        let (staging, owner) = reservation.stage()?;
        let mut writer = Self::counting();
        writer.reservation = Some(reservation.clone());
        (writer.staging, writer.owner, writer.shard_bytes) = (staging, owner, shard_bytes);
        Ok(writer)
    }

    /// One that writes nothing and counts what it would write. It has no [`staging`](Self::staging) directory, and
    /// cannot be finished.
    pub fn counting() -> Self {
        Self {
            reservation: None,
            staging: PathBuf::new(),
            owner: None,
            shard_bytes: SHARD_BYTES,
            shards: Vec::new(),
            written: 0,
            finished: false,
            is_kept: false,
        }
    }

    /// Names and bytes of the tensors so far.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, u64)> {
        self.shards.iter().flat_map(Shard::tensors)
    }

    /// Bytes of all shards when they are complete.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(Shard::file_bytes).sum()
    }

    /// Where other files (config.json, tokenizer.json, ...) are to be put.
    pub fn staging(&self) -> &Path {
        &self.staging
    }

    /// Adds a tensor; the bytes go to disk at once.
    ///
    /// # Errors
    /// A name that was added before, bytes that do not fit type and shape, a type that safetensors does not
    /// have, a full disk.
    pub fn add(&mut self, name: &str, dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<()> {
        let wanted = dtype.size().and_then(|size| shape.iter().try_fold(size, |a, &b| a.checked_mul(b)));
        if wanted != Some(bytes.len()) {
            return Err(FormatError::Layout(format!(
                "tensor {name:?}: {} bytes are not {dtype} of shape {shape:?}",
                bytes.len()
            )));
        }
        self.make_room(name, shape, bytes.len() as u64)?;
        if let Some(shard) = self.shards.last_mut() {
            shard
                .add(name, dtype, shape, bytes)
                .map_err(|e| write_error(&self.staging, e, self.written, bytes.len() as u64))?;
        }
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Adds a tensor whose bytes `fill` writes, for tensors that are made piece by piece.
    ///
    /// # Errors
    /// As [`CheckpointWriter::add`]; those of `fill`, after which nothing more can be added.
    pub fn add_pieces<E: From<FormatError>>(
        &mut self,
        name: &str,
        dtype: DType,
        shape: &[usize],
        fill: impl FnOnce(&TensorPieces<'_>) -> Result<(), PieceError<E>>,
    ) -> Result<(), E> {
        let size = dtype.size().and_then(|size| shape.iter().try_fold(size, |a, &b| a.checked_mul(b)));
        let Some(bytes) = size.map(|bytes| bytes as u64) else {
            return Err(FormatError::Layout(format!("tensor {name:?}: no {dtype} of shape {shape:?}")).into());
        };
        self.make_room(name, shape, bytes)?;
        if let Some(shard) = self.shards.last_mut() {
            shard.add_pieces(name, dtype, shape, bytes, fill).map_err(|e| match e {
                PieceError::Write(e) => write_error(&self.staging, e, self.written, bytes).into(),
                PieceError::Other(e) => e,
            })?;
        }
        self.written += bytes;
        Ok(())
    }

    /// Has the last shard take a tensor.
    fn make_room(&mut self, name: &str, shape: &[usize], bytes: u64) -> Result<()> {
        if name == "__metadata__" || self.shards.iter().any(|s| s.contains(name)) {
            return Err(FormatError::Layout(format!("tensor {name:?} was added twice")));
        }
        let roll = match self.shards.last() {
            None => true,
            Some(shard) => !shard.takes(name, shape, bytes, self.shard_bytes),
        };
        if roll {
            if let Some(full) = self.shards.last_mut() {
                full.complete().map_err(|e| write_error(&self.staging, e, self.written, 0))?;
            }
            self.shards.push(match &self.reservation {
                None => Shard::counting(),
                Some(_) => {
                    let path = shard_path(&self.staging, self.shards.len());
                    Shard::create(path).map_err(|e| write_error(&self.staging, e, self.written, 0))?
                }
            });
        }
        Ok(())
    }

    /// Adds float values in their own precision.
    ///
    /// # Errors
    /// As [`CheckpointWriter::add`].
    pub fn add_float(&mut self, name: &str, shape: &[usize], data: &WeightData) -> Result<()> {
        match data {
            WeightData::F32(v) => self.add(name, DType::F32, shape, &le_bytes(v, |x| x.to_le_bytes())),
            WeightData::F16(v) => self.add(name, DType::F16, shape, &le_bytes(v, |x| x.to_le_bytes())),
            WeightData::BF16(v) => self.add(name, DType::BF16, shape, &le_bytes(v, |x| x.to_le_bytes())),
        }
    }

    /// Adds the tensors of the quantized linear layer `prefix`, stored as its scheme says.
    ///
    /// # Errors
    /// The weight is not one of this scheme; its shape does not fit the layout, or its scales are none that it stores.
    pub fn add_linear(&mut self, prefix: &str, weight: &QuantizedWeight, scheme: LayerScheme) -> Result<()> {
        weight.check(prefix)?;
        let (n, k) = (weight.out_features, weight.in_features);
        let at = |reason: String| FormatError::Layout(format!("{prefix}: {reason}"));
        if (weight.bits, weight.scales.group_size()) != (scheme.bits, scheme.group_size) {
            let weight = LayerScheme { bits: weight.bits, group_size: weight.scales.group_size(), ..scheme };
            return Err(at(format!("its weight is {weight}, but it is to be written as {scheme}")));
        }
        match scheme.layout {
            CodeLayout::Tiles => {
                if (scheme.bits, scheme.activations) != (CodeBits::Four, Activations::Int8) {
                    return Err(at(format!("the qqq format holds no {scheme}; write compressed-tensors")));
                }
                qqq::fits(n, k, scheme.group_size).map_err(at)?;
                let packed = qqq::pack_checked(weight).map_err(|e| at(e.to_string()))?;
                let words = word_bytes(&packed.b);
                self.add(&format!("{prefix}.B"), DType::I32, &[k / 16, 2 * n], &words)?;
                let channel = le_bytes(&packed.s_channel, |s| s.to_le_bytes());
                self.add(&format!("{prefix}.s_channel"), DType::F32, &[1, n], &channel)?;
                if let Some(g) = scheme.group_size {
                    let group = le_bytes(&packed.s_group, |s| s.to_le_bytes());
                    self.add(&format!("{prefix}.s_group"), DType::F16, &[k / g, n], &group)?;
                }
            }
            CodeLayout::Packed => {
                let scales = compressed_tensors::effective_scales(weight, scheme.activations, prefix)?;
                let codes = (weight.bits, weight.codes.as_slice());
                self.add_packed(prefix, codes, (n, k), scheme.group_size, &scales)?;
            }
            CodeLayout::Bytes => {
                let scales = compressed_tensors::effective_scales(weight, scheme.activations, prefix)?;
                let codes = bytemuck::cast_slice(&weight.codes);
                self.add(&format!("{prefix}.weight"), DType::I8, &[n, k], codes)?;
                let shape = [n, int4::groups(k, scheme.group_size)];
                self.add_float(&format!("{prefix}.weight_scale"), &shape, &scales)?;
            }
        }
        Ok(())
    }

    /// Adds the tensors of the linear layer `prefix` in compressed-tensors' `pack-quantized` form: bits and codes `N x K`, and scales as
    /// they are stored.
    pub(crate) fn add_packed(
        &mut self,
        prefix: &str,
        (bits, codes): (CodeBits, &[i8]),
        (n, k): (usize, usize),
        group_size: Option<usize>,
        scales: &WeightData,
    ) -> Result<()> {
        let words = compressed_tensors::pack_codes(bits, codes, k);
        let row = compressed_tensors::row_words(bits, k);
        self.add(&format!("{prefix}.weight_packed"), DType::I32, &[n, row], &word_bytes(&words))?;
        self.add_float(&format!("{prefix}.weight_scale"), &[n, int4::groups(k, group_size)], scales)?;
        let shape = le_bytes(&[n as i64, k as i64], |d| d.to_le_bytes());
        self.add(&format!("{prefix}.weight_shape"), DType::I64, &[2], &shape)
    }

    /// Writes headers and index, syncs, and gives the directory its final name.
    ///
    /// # Errors
    /// A full disk; `out` has come into being meanwhile (the checkpoint then lies beside it, under the name that the message
    /// gives); a writer that only counts.
    pub fn finish(mut self) -> Result<()> {
        let reservation = self.complete()?;
        let out = reservation.path();
        if refuse_existing(out).is_err() {
            // The work is done: it is not thrown away for its name.
            let other = self.rename_beside(out, "finished")?;
            let source = io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!(
                    "it exists already (it came into being meanwhile), and is not overwritten; the finished checkpoint is {}",
                    other.display()
                ),
            );
            return Err(FormatError::Io { path: out.into(), source });
        }
        self.rename(out)
    }

    /// As [`finish`](Self::finish), under the name `out.SUFFIX`, with a number behind it where that exists. Returns the name.
    ///
    /// # Errors
    /// As [`finish`](Self::finish), but for an `out` that exists.
    pub fn finish_beside(mut self, suffix: &str) -> Result<PathBuf> {
        let reservation = self.complete()?;
        self.rename_beside(reservation.path(), suffix)
    }

    /// Writes headers and index, and syncs all that is in the directory.
    fn complete(&mut self) -> Result<Reservation> {
        let Some(reservation) = self.reservation.take() else {
            return Err(FormatError::Layout("a checkpoint that was only counted has no files".into()));
        };
        let written = self.written;
        let staging = self.staging.clone();
        let fail = |e: io::Error| write_error(&staging, e, written, 0);
        if let Some(last) = self.shards.last_mut() {
            last.complete().map_err(fail)?;
        }
        let count = self.shards.len();
        let mut weight_map = Map::new();
        for (i, shard) in self.shards.iter().enumerate() {
            let name = match count {
                1 => SINGLE_FILE.to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
            };
            fs::rename(shard.path(), staging.join(&name)).map_err(fail)?;
            weight_map
                .extend(shard.tensors().map(|(tensor, _)| (tensor.to_owned(), Value::from(name.as_str()))));
        }
        if count > 1 {
            weight_map.sort_keys();
            let index = json!({ "metadata": { "total_size": written }, "weight_map": weight_map });
            let text = serde_json::to_vec_pretty(&index).map_err(|e| fail(e.into()))?;
            fs::write(staging.join(INDEX_FILE), text).map_err(fail)?;
        }
        sync_tree(&staging).map_err(fail)?;
        // None of these is part of the checkpoint; until the end the reservation keeps others away.
        remove_states(&staging, None).map_err(fail)?;
        match fs::remove_file(state_file(&staging)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail(e)),
            _ => self.is_kept = false,
        }
        self.owner = None;
        sync_directory(&staging).map_err(fail)?;
        Ok(reservation)
    }

    /// Gives the complete directory a name beside `out`.
    fn rename_beside(&mut self, out: &Path, suffix: &str) -> Result<PathBuf> {
        let name = other_name(out, suffix);
        self.rename(&name)?;
        Ok(name)
    }

    /// Gives the complete directory its name.
    fn rename(&mut self, name: &Path) -> Result<()> {
        fs::rename(&self.staging, name).map_err(|source| FormatError::Io { path: name.into(), source })?;
        self.finished = true;
        if let Some(parent) = name.parent() {
            // The checkpoint is complete and in place; that its name outlives a power failure is a bonus that
            // not every file system offers.
            let _ = sync_directory(if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
        }
        Ok(())
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        if self.finished || self.staging.as_os_str().is_empty() {
            return;
        }
        if self.is_kept {
            // It looks as if it had been killed.
            if let Some(owner) = self.owner.take() {
                owner.leave();
            }
        } else {
            // There is nobody to tell if it fails; the name says that it is partial.
            let _ = fs::remove_dir_all(&self.staging);
        }
    }
}

/// A name beside `out` that nothing has: `out.SUFFIX`, or with a number behind that.
fn other_name(out: &Path, suffix: &str) -> PathBuf {
    let name = |number: usize| {
        let mut name = out.as_os_str().to_owned();
        name.push(format!(".{suffix}"));
        if number > 1 {
            name.push(format!("-{number}"));
        }
        PathBuf::from(name)
    };
    (1..).map(name).find(|path| fs::symlink_metadata(path).is_err()).unwrap_or_else(|| name(1))
}

/// Syncs the files of a directory, also those that others have put there, then the directory.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_directory(dir)
}

/// Makes the names in a directory durable, where directories can be opened for that (not on Windows).
fn sync_directory(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

/// A failed write; a full disk is explained with what was written and what was next.
fn write_error(staging: &Path, e: io::Error, written: u64, next: u64) -> FormatError {
    let source = match e.kind() {
        kind @ (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge) => {
            let mut text = format!("the disk is full ({e}): {} of tensors were written", bytes(written));
            if next > 0 {
                text += &format!(", and the next tensor takes {}", bytes(next));
            }
            io::Error::new(kind, text + "; free some space or write to another disk")
        }
        _ => e,
    };
    FormatError::Io { path: staging.into(), source }
}

/// Words in little-endian order, without a copy where that is the machine's.
fn word_bytes(words: &[i32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(words))
    } else {
        Cow::Owned(le_bytes(words, |w| w.to_le_bytes()))
    }
}

fn le_bytes<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|v| bytes(*v)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_explained() {
        let e = io::Error::from(io::ErrorKind::StorageFull);
        let text = write_error(Path::new("out"), e, 3_000_000, 2_500_000).to_string();
        assert!(
            text.contains("3.0 MB") && text.contains("2.5 MB") && text.contains("disk is full"),
            "{text}"
        );
    }
}
