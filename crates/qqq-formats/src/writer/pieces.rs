//! A tensor that is written in pieces, in any order, by several threads at a time.

use std::{
    fs::File,
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// The place of a tensor in a shard.
#[derive(Debug)]
pub struct TensorPieces<'a> {
    file: &'a File,
    /// In the file.
    start: u64,
    bytes: u64,
    written: AtomicU64,
}

impl<'a> TensorPieces<'a> {
    pub(super) fn new(file: &'a File, start: u64, bytes: u64) -> Self {
        Self { file, start, bytes, written: AtomicU64::new(0) }
    }

    /// Bytes of the tensor.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes a piece at byte `offset` of the tensor, which no other piece covers.
    ///
    /// # Errors
    /// The system's; a piece that is not within the tensor.
    pub fn write_at(&self, offset: u64, piece: &[u8]) -> io::Result<()> {
        let length = piece.len() as u64;
        if offset.checked_add(length).is_none_or(|end| end > self.bytes) {
            let what = format!("a piece of {length} bytes at {offset} of a tensor of {}", self.bytes);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        write_all_at(self.file, piece, self.start + offset)?;
        self.written.fetch_add(length, Relaxed);
        Ok(())
    }

    /// Refuses a tensor of which something is missing.
    pub(super) fn check(&self) -> io::Result<()> {
        match self.written.load(Relaxed) {
            written if written == self.bytes => Ok(()),
            written => {
                let what = format!("{written} bytes were written of a tensor of {}", self.bytes);
                Err(io::Error::new(io::ErrorKind::InvalidInput, what))
            }
        }
    }
}

/// Writes bytes at a place in a file.
#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

/// Writes bytes at a place in a file, whose cursor moves.
#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, offset)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => (bytes, offset) = (&bytes[n..], offset + n as u64),
        }
    }
    Ok(())
}
