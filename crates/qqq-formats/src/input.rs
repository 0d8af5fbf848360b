//! Files that are read while a run goes on, and the certainty that they stay what they were.
//!
//! Nothing is mapped into memory. A mapping of a file that somebody truncates ends the process by a signal, and one that is
//! overwritten changes the weights without a word. Here bytes are read at their place in the file, into memory of our own;
//! a file that ends too early and a disk that fails are errors of that read, in whichever thread it happens.
//!
//! What an input was when it was opened is kept: its size and the time of its last change. Both are looked at again after
//! every read, so that no byte is ever used that came from a file that was being overwritten. A file that is *replaced*, by
//! renaming another one over it or by removing it, is still open here and still the same: the run goes on with it.
//!
//! That a file was written to shows in its size and its time of modification. A program can set that time back, but not
//! the time of the last change of status, which Unix keeps beside it. That one moves for what leaves the content alone as
//! well: a change of mode or owner, another name (`ln`), another file under the name. So where nothing else has moved, what
//! was read until then is read again and compared by its hash. If it is the same the run goes on; what comes out of it fits
//! the file as it is now.

mod print;
mod stamp;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    fs::{File, Metadata},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use self::stamp::{Difference, Stamp, hash, hash_of};
pub use self::{print::FilePrint, stream::Watched};
use crate::{FormatError, Result};

/// A regular file that is open for reading, and must stay as it is.
#[derive(Debug)]
pub struct InputFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    watch: Mutex<Watch>,
}

/// What is known of an [`InputFile`].
#[derive(Debug)]
struct Watch {
    /// As it was when all that was read until then was known to be in the file.
    stamp: Stamp,
    /// Hashes of what was read, by place and length.
    parts: BTreeMap<(u64, usize), u64>,
    /// Whether others have read from the file as well.
    is_shared: bool,
}

impl InputFile {
    /// Opens a file.
    ///
    /// # Errors
    /// [`FormatError::Io`]; [`FormatError::Malformed`] for what is no regular file (a folder, a pipe): its parts cannot be
    /// read by their place.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| FormatError::Io { path: path.into(), source };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(FormatError::Malformed { path: path.into(), reason: "is not a file".into() });
        }
        let watch = Watch { stamp: Stamp::of(&metadata), parts: BTreeMap::new(), is_shared: false };
        Ok(Self { path: path.into(), file, bytes: metadata.len(), watch: Mutex::new(watch) })
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes, when it was opened.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Fills `out` with the bytes from `offset` on. May be called by several threads at a time.
    ///
    /// # Errors
    /// [`FormatError::Io`] if they cannot be read, [`FormatError::Changed`] if the file is no longer what it was when it was
    /// opened; what is in `out` is nothing to be used then.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let before = self.watch().stamp;
        let read = read_exact_at(&self.file, out, offset);
        let part = read.is_ok().then(|| ((offset, out.len()), hash(out)));
        // First: a file that was truncated ends too early, and that is the better explanation.
        self.check_since(before, part)?;
        read.map_err(|source| self.io(source))
    }

    /// All of its bytes.
    ///
    /// # Errors
    /// As [`InputFile::read_at`].
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut all = vec![0; usize::try_from(self.bytes()).unwrap_or(usize::MAX)];
        self.read_at(0, &mut all)?;
        Ok(all)
    }

    /// Another handle of the open file, for libraries that read one themselves; [`InputFile::check`] is left to the caller.
    /// What they read is not known here, so that a change of status alone counts as a change from now on.
    ///
    /// # Errors
    /// The operating system's.
    pub fn handle(&self) -> Result<File> {
        self.watch().is_shared = true;
        self.file.try_clone().map_err(|source| self.io(source))
    }

    /// Whether the file is still what it was when it was opened, whatever has its name by now.
    ///
    /// # Errors
    /// [`FormatError::Changed`], with what has changed.
    pub fn check(&self) -> Result<()> {
        let before = self.watch().stamp;
        self.check_since(before, None)
    }

    /// Checks the file after a part of it was read, with its hash; `before` is the stamp before that.
    fn check_since(&self, before: Stamp, part: Option<((u64, usize), u64)>) -> Result<()> {
        let mut watch = self.watch();
        // Under the lock: what others compare from now on has this part in it.
        let now = Stamp::of(&self.file.metadata().map_err(|source| self.io(source))?);
        let difference = before.difference(&now);
        if let Difference::Content(what) = difference {
            return Err(self.changed(what));
        }
        if let Some((place, hash)) = part
            && watch.parts.insert(place, hash).is_some_and(|earlier| earlier != hash)
        {
            return Err(self.changed(stamp::OTHER_CONTENT.into()));
        }
        if difference == Difference::None {
            return Ok(());
        }
        if watch.is_shared {
            return Err(self.changed(
                "its status is another (mode, names, or content with the time set back), and what was read of it cannot be \
                 compared"
                    .into(),
            ));
        }
        // Where another thread was here first, the parts of the others are compared already.
        let is_new = watch.stamp != now;
        let own = part.map(|(place, _)| place);
        for (&(offset, length), &hash) in
            watch.parts.iter().filter(|(place, _)| is_new || Some(**place) == own)
        {
            let found = hash_of(&self.file, offset..offset + length as u64);
            if found.map_err(|source| self.io(source))? != hash {
                return Err(self.changed(stamp::OTHER_CONTENT.into()));
            }
        }
        watch.stamp = now;
        Ok(())
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        // Nothing is left half done in it by a panic.
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn io(&self, source: io::Error) -> FormatError {
        FormatError::Io { path: self.path.clone(), source }
    }

    fn changed(&self, what: String) -> FormatError {
        FormatError::Changed { path: self.path.clone(), what }
    }

    /// Whether the name that it was opened by is another file's by now, or nobody's. Where the system does not tell files
    /// apart: no.
    #[cfg(unix)]
    pub fn is_replaced(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let identity = |m: Metadata| (m.dev(), m.ino());
        match (self.file.metadata(), std::fs::metadata(&self.path)) {
            (Ok(opened), Ok(named)) => identity(opened) != identity(named),
            (Ok(_), Err(e)) => e.kind() == io::ErrorKind::NotFound,
            (Err(_), _) => false,
        }
    }

    /// Whether the name that it was opened by is another file's by now, or nobody's. Where the system does not tell files
    /// apart: no.
    #[cfg(not(unix))]
    pub fn is_replaced(&self) -> bool {
        false
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                out = &mut out[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// All files that a model was read from so far. A file is opened once and stays open: whoever asks for it again gets what
/// was there the first time, even if another file has its name by now.
#[derive(Default)]
pub struct Inputs {
    files: Mutex<BTreeMap<PathBuf, Arc<InputFile>>>,
}

impl Inputs {
    /// The file of a path, which is watched from now on.
    ///
    /// # Errors
    /// As [`InputFile::open`].
    pub fn open(&self, path: &Path) -> Result<Arc<InputFile>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(path) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(InputFile::open(path)?);
        files.insert(path.into(), Arc::clone(&file));
        Ok(file)
    }

    /// All bytes of a file, which is watched from now on.
    ///
    /// # Errors
    /// As [`InputFile::open`] and [`InputFile::read_at`].
    pub fn read(&self, path: &Path) -> Result<Vec<u8>> {
        self.open(path)?.read()
    }

    /// As [`Inputs::read`]; `None` where there is no such file.
    ///
    /// # Errors
    /// As [`Inputs::read`], but for a file that does not exist.
    pub fn read_if_there(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        match self.read(path) {
            Err(FormatError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    /// Whether all files are still what they were when they were opened.
    ///
    /// # Errors
    /// As [`InputFile::check`], of the first file that is not.
    pub fn check(&self) -> Result<()> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.values().try_for_each(|file| file.check())
    }

    /// The files whose names are others' by now, or nobody's. What was read is what they were.
    pub fn replaced(&self) -> Vec<PathBuf> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.values().filter(|file| file.is_replaced()).map(|file| file.path().to_owned()).collect()
    }
}

impl fmt::Debug for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_set().entries(files.keys()).finish()
    }
}

/// The bytes of a container, in a file or in memory.
pub(crate) enum Content {
    File(Arc<InputFile>),
    Memory(Vec<u8>),
}

impl Content {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        match self {
            // Nothing of a file that is larger than the address space can be named by a range, and none of its bytes is.
            Content::File(file) => usize::try_from(file.bytes()).unwrap_or(usize::MAX),
            Content::Memory(bytes) => bytes.len(),
        }
    }

    /// Fills `out` with those from `offset` on, which must lie within.
    pub(crate) fn read_into(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        match self {
            Content::File(file) => file.read_at(offset as u64, out)?,
            Content::Memory(bytes) => out.copy_from_slice(&bytes[offset..offset + out.len()]),
        }
        Ok(())
    }

    /// Those of a range that lies within.
    pub(crate) fn read(&self, range: Range<usize>) -> Result<Cow<'_, [u8]>> {
        Ok(match self {
            Content::File(file) => {
                let mut out = vec![0; range.len()];
                file.read_at(range.start as u64, &mut out)?;
                Cow::Owned(out)
            }
            Content::Memory(bytes) => Cow::Borrowed(&bytes[range]),
        })
    }
}
