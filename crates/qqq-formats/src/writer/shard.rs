//! A safetensors file written front to back while its header is not known yet.

use std::{
    collections::BTreeMap,
    fs::File,
    hash::Hasher as _,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use twox_hash::XxHash3_64;

use super::TensorPieces;
use crate::DType;

/// Bytes kept free for length and header in front of the tensors. The format allows a header to end in
/// spaces, so what is left over costs nothing but its place; when a header has grown to this size (some
/// thousand tensors), the next shard begins. A multiple of 8, so that the tensors are as aligned as
/// their sizes allow.
const RESERVED: usize = 128 << 10;

/// What a shard held at some time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShardState {
    header: String,
    tensors: BTreeMap<String, u64>,
    data_bytes: u64,
    /// Of the tensors' bytes.
    hash: u64,
}

/// Bytes that are read at a time.
const READ: usize = 1 << 20;

/// A shard being written.
pub(super) struct Shard {
    path: PathBuf,
    /// `None`: nothing is written, only counted.
    file: Option<File>,
    /// Bytes of the tensors.
    tensors: BTreeMap<String, u64>,
    header: String,
    data_bytes: u64,
    /// Of the tensors' bytes; pieces of tensors are not in it, and no shard with such can be gone on with.
    hash: XxHash3_64,
}

impl Shard {
    pub fn create(path: PathBuf) -> io::Result<Self> {
        let mut file = File::create_new(&path)?;
        file.seek(SeekFrom::Start(RESERVED as u64))?;
        Ok(Self { path, file: Some(file), ..Self::counting() })
    }

    /// One that only counts what it would hold.
    pub fn counting() -> Self {
        let header = json!({ "__metadata__": { "format": "pt" } }).to_string();
        Self {
            path: PathBuf::new(),
            file: None,
            tensors: BTreeMap::new(),
            header,
            data_bytes: 0,
            hash: XxHash3_64::new(),
        }
    }

    /// What it holds now.
    pub fn state(&self) -> ShardState {
        ShardState {
            header: self.header.clone(),
            tensors: self.tensors.clone(),
            data_bytes: self.data_bytes,
            hash: self.hash.finish(),
        }
    }

    /// A shard of which a state was kept. What was written to the file since is forgotten.
    ///
    /// # Errors
    /// The system's; a file that has less than the state says, or something else (`InvalidData`).
    pub fn reopen(path: PathBuf, state: &ShardState) -> io::Result<Self> {
        let mut file = File::options().read(true).write(true).open(&path)?;
        let end = RESERVED as u64 + state.data_bytes;
        let length = file.metadata()?.len();
        if length < end {
            let what = format!("{} has {length} bytes, not the {end} that were kept", path.display());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        file.set_len(end)?;
        file.seek(SeekFrom::Start(RESERVED as u64))?;
        let (mut hash, mut buffer) = (XxHash3_64::new(), vec![0; READ]);
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                read => hash.write(&buffer[..read]),
            }
        }
        if hash.finish() != state.hash {
            let what = format!("the tensors in {} are not those that were kept", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let ShardState { header, tensors, data_bytes, .. } = state.clone();
        Ok(Self { path, file: Some(file), tensors, header, data_bytes, hash })
    }

    /// A handle for who syncs it.
    pub fn handle(&self) -> io::Result<Option<File>> {
        self.file.as_ref().map(File::try_clone).transpose()
    }

    /// Bytes of the file when it is complete.
    pub fn file_bytes(&self) -> u64 {
        RESERVED as u64 + self.data_bytes
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn tensors(&self) -> impl Iterator<Item = (&str, u64)> {
        self.tensors.iter().map(|(name, bytes)| (name.as_str(), *bytes))
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Whether a tensor still has its place here. An empty shard takes one of any size.
    pub fn takes(&self, name: &str, shape: &[usize], bytes: u64, shard_bytes: u64) -> bool {
        let entry = self.entry(name, DType::BF16, shape, bytes).len();
        let room = 8 + self.header.len() + entry < RESERVED;
        self.tensors.is_empty() || (room && self.data_bytes.saturating_add(bytes) <= shard_bytes)
    }

    /// The header's entry for a tensor that comes next, with the comma before it.
    fn entry(&self, name: &str, dtype: DType, shape: &[usize], bytes: u64) -> String {
        let offsets = [self.data_bytes, self.data_bytes + bytes];
        let entry = json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": offsets });
        format!(",{}:{entry}", Value::from(name))
    }

    /// As [`entry`](Self::entry), where the header has room for it.
    fn new_entry(&self, name: &str, dtype: DType, shape: &[usize], bytes: u64) -> io::Result<String> {
        let entry = self.entry(name, dtype, shape, bytes);
        if 8 + self.header.len() + entry.len() > RESERVED {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a tensor's name and shape are too long",
            ));
        }
        Ok(entry)
    }

    pub fn add(&mut self, name: &str, dtype: DType, shape: &[usize], bytes: &[u8]) -> io::Result<()> {
        let entry = self.new_entry(name, dtype, shape, bytes.len() as u64)?;
        if let Some(file) = &mut self.file {
            file.write_all(bytes)?;
            self.hash.write(bytes);
        }
        self.enter(name, &entry, bytes.len() as u64);
        Ok(())
    }

    /// Adds a tensor of `bytes` bytes, all of which `fill` writes.
    pub fn add_pieces<E: From<io::Error>>(
        &mut self,
        name: &str,
        dtype: DType,
        shape: &[usize],
        bytes: u64,
        fill: impl FnOnce(&TensorPieces<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let entry = self.new_entry(name, dtype, shape, bytes)?;
        let start = RESERVED as u64 + self.data_bytes;
        if let Some(file) = &mut self.file {
            let pieces = TensorPieces::new(file, start, bytes);
            fill(&pieces)?;
            pieces.check()?;
            file.seek(SeekFrom::Start(start + bytes))?;
        }
        self.enter(name, &entry, bytes);
        Ok(())
    }

    /// Notes in the header what was written.
    fn enter(&mut self, name: &str, entry: &str, bytes: u64) {
        self.header.truncate(self.header.len() - 1); // the closing brace
        self.header.push_str(entry);
        self.header.push('}');
        self.tensors.insert(name.to_owned(), bytes);
        self.data_bytes += bytes;
    }

    /// Writes the header of the tensors so far in front of them.
    pub fn write_header(&mut self) -> io::Result<()> {
        let mut front = ((RESERVED - 8) as u64).to_le_bytes().to_vec();
        front.extend_from_slice(self.header.as_bytes());
        front.resize(RESERVED, b' ');
        let Some(file) = &mut self.file else { return Ok(()) };
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&front)?;
        file.seek(SeekFrom::Start(RESERVED as u64 + self.data_bytes)).map(drop)
    }

    /// Writes the header and syncs.
    pub fn complete(&mut self) -> io::Result<()> {
        self.write_header()?;
        self.file.as_ref().map_or(Ok(()), File::sync_all)
    }
}
