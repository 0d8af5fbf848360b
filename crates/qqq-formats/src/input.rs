//! Files that are read while a run goes on, and the certainty that they stay what they were.
//!
//! Nothing is mapped into memory. A mapping of a file that somebody truncates ends the process by a signal, and one that is
//! overwritten changes the weights without a word. Here bytes are read at their place in the file, into memory of our own;
//! a file that ends too early and a disk that fails are errors of that read, in whichever thread it happens.
//!
//! What an input was when it was opened is kept: its size and the time of its last change. Both are looked at again after
//! every read, so that no byte is ever used that came from a file that was being overwritten. A file that is *replaced*, by
//! renaming another one over it or by removing it, is still open here and still the same: the run goes on with it.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    fs::{File, Metadata},
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use crate::{FormatError, Result};

/// What shows that a file's content has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    /// To the nanosecond where the file system has it; `None` where it does not say.
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self { bytes: metadata.len(), modified: metadata.modified().ok() }
    }
}

/// A regular file that is open for reading, and must stay as it is.
#[derive(Debug)]
pub struct InputFile {
    path: PathBuf,
    file: File,
    stamp: Stamp,
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
        Ok(Self { path: path.into(), file, stamp: Stamp::of(&metadata) })
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes, when it was opened.
    pub fn bytes(&self) -> u64 {
        self.stamp.bytes
    }

    /// Fills `out` with the bytes from `offset` on. May be called by several threads at a time.
    ///
    /// # Errors
    /// [`FormatError::Io`] if they cannot be read, [`FormatError::Changed`] if the file is no longer what it was when it was
    /// opened; what is in `out` is nothing to be used then.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let read = read_exact_at(&self.file, out, offset);
        // First: a file that was truncated ends too early, and that is the better explanation.
        self.check()?;
        read.map_err(|source| FormatError::Io { path: self.path.clone(), source })
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
    ///
    /// # Errors
    /// The operating system's.
    pub fn handle(&self) -> Result<File> {
        self.file.try_clone().map_err(|source| FormatError::Io { path: self.path.clone(), source })
    }

    /// Whether the file is still what it was when it was opened, whatever has its name by now.
    ///
    /// # Errors
    /// [`FormatError::Changed`], with what has changed.
    pub fn check(&self) -> Result<()> {
        let metadata =
            self.file.metadata().map_err(|source| FormatError::Io { path: self.path.clone(), source })?;
        let now = Stamp::of(&metadata);
        if now == self.stamp {
            return Ok(());
        }
        let what = match now.bytes {
            n if n < self.stamp.bytes => {
                format!("it was truncated from {} to {n} bytes", self.stamp.bytes)
            }
            n if n > self.stamp.bytes => format!("it grew from {} to {n} bytes", self.stamp.bytes),
            n => format!("it still has {n} bytes, but its time of modification is another"),
        };
        Err(FormatError::Changed { path: self.path.clone(), what })
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

/// A stream over a file that is read once, from start to end: an error where the file was changed before its end was
/// reached. What is no regular file (a pipe) is passed through.
pub struct Watched {
    file: File,
    path: PathBuf,
    stamp: Option<Stamp>,
}

impl Watched {
    /// Opens a file.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let stamp = metadata.is_file().then(|| Stamp::of(&metadata));
        Ok(Self { file, path: path.into(), stamp })
    }
}

impl Read for Watched {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(out)?;
        if let Some(stamp) = self.stamp
            && Stamp::of(&self.file.metadata()?) != stamp
        {
            let what = "its size or time changed".into();
            return Err(io::Error::other(FormatError::Changed { path: self.path.clone(), what }));
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, time::Duration};

    use super::*;

    fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("input");
        fs::write(&path, text).unwrap();
        (dir, path)
    }

    /// Writes into the file itself; the time is set, for two writes may fall into one tick of the clock.
    fn overwrite(path: &Path, text: &str) {
        let later = fs::metadata(path).unwrap().modified().unwrap() + Duration::from_nanos(1);
        let mut file = File::options().write(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.set_modified(later).unwrap();
    }

    fn changed<T>(result: Result<T>) -> String {
        match result {
            Err(FormatError::Changed { path, what }) => format!("{}: {what}", path.display()),
            Err(e) => panic!("{e}"),
            Ok(_) => panic!("no error"),
        }
    }

    #[test]
    fn reads_by_place() {
        let (_dir, path) = written("0123456789");
        let file = InputFile::open(&path).unwrap();
        let mut out = [0; 4];
        file.read_at(3, &mut out).unwrap();
        assert_eq!(&out, b"3456");
        assert_eq!(file.read().unwrap(), b"0123456789");
        assert!(matches!(file.read_at(7, &mut out), Err(FormatError::Io { .. })), "beyond the end");
    }

    #[test]
    fn truncated_grown_and_overwritten_files_are_told_apart() {
        let truncate: fn(&Path) = |p| File::options().write(true).open(p).unwrap().set_len(4).unwrap();
        let grow: fn(&Path) = |p| overwrite(p, "0123456789ab");
        let rewrite: fn(&Path) = |p| overwrite(p, "x");
        for (change, says) in [
            (truncate, "from 10 to 4 bytes"),
            (grow, "grew from 10 to 12 bytes"),
            (rewrite, "still has 10 bytes, but its time"),
        ] {
            let (_dir, path) = written("0123456789");
            let file = InputFile::open(&path).unwrap();
            file.check().unwrap();
            change(&path);
            for message in [
                changed(file.check()),
                changed(file.read_at(0, &mut [0; 2])),
                changed(file.read_at(6, &mut [0; 4])),
            ] {
                assert!(message.contains(says) && message.contains("input"), "{message}");
            }
        }
    }

    #[test]
    fn a_file_that_takes_the_name_is_another_one() {
        let (dir, path) = written("old");
        let inputs = Inputs::default();
        assert_eq!(inputs.read(&path).unwrap(), b"old");
        fs::write(dir.path().join("new"), "newer").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        inputs.check().unwrap();
        assert_eq!(inputs.read(&path).unwrap(), b"old", "as it was the first time");
        fs::remove_file(&path).unwrap();
        inputs.check().unwrap();
        assert_eq!(inputs.read_if_there(&path).unwrap().as_deref(), Some(&b"old"[..]));
        assert_eq!(inputs.read_if_there(&dir.path().join("none")).unwrap(), None);
    }

    #[test]
    fn all_inputs_are_watched() {
        let (dir, path) = written("one");
        let other = dir.path().join("other");
        fs::write(&other, "two").unwrap();
        let inputs = Inputs::default();
        inputs.read(&path).unwrap();
        inputs.read(&other).unwrap();
        inputs.check().unwrap();
        overwrite(&other, "six");
        assert!(changed(inputs.check()).contains("other"));
    }

    #[test]
    fn streams_end_with_an_error_when_the_file_changes() {
        let (_dir, path) = written("0123456789");
        let mut stream = Watched::open(&path).unwrap();
        let mut out = [0; 4];
        stream.read_exact(&mut out).unwrap();
        overwrite(&path, "x");
        let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("input"), "{error}");
    }

    /// The memory of a process has no byte at address 0: reading there is an error of the device, as on a disk that fails.
    #[cfg(target_os = "linux")]
    #[test]
    fn errors_of_the_device_name_the_file() {
        let file = InputFile::open(Path::new("/proc/self/mem")).unwrap();
        match file.read_at(0, &mut [0; 8]) {
            Err(e @ FormatError::Io { .. }) => assert!(e.to_string().starts_with("/proc/self/mem: "), "{e}"),
            other => panic!("{other:?}"),
        }
    }
}
