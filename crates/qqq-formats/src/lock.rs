//! Advisory locks on files. The system releases them when their process ends, however it ends, so that a lock file
//! that was left behind locks nothing.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

/// How a lock file begins; the number of its holder follows.
const MARK: &str = "process ";
/// Files are replaced under their names now and then, but not for ever.
const ATTEMPTS: usize = 100;

/// A lock on a file, held until it is dropped, which removes the file.
#[derive(Debug)]
pub struct FileLock {
    path: PathBuf,
    file: File,
    /// Whether the file outlives the lock.
    is_left: bool,
}

/// What came of the attempt to take a lock.
#[derive(Debug)]
pub enum Attempt {
    /// It is ours.
    Taken(FileLock),
    /// Another process has it: what the lock file says of its holder, as `process 4711 on buildhost`.
    Held(String),
    /// The file system has no locks (some network file systems).
    NoLocks(io::Error),
}

impl FileLock {
    /// Takes the lock on the file at `path`, which is made if it is not there, without waiting.
    ///
    /// # Errors
    /// The file can be neither made nor opened.
    pub fn attempt(path: &Path) -> io::Result<Attempt> {
        for _ in 0..ATTEMPTS {
            let (mut file, is_new) = open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(Attempt::Held(holder(path))),
                Err(TryLockError::Error(e)) => {
                    if is_new {
                        let _ = fs::remove_file(path);
                    }
                    return Ok(Attempt::NoLocks(e));
                }
            }
            // Its last holder may have removed the file after it was opened here: then it locks nothing.
            if !is_at(&file, path) {
                continue;
            }
            let mut text = [0; MARK.len()];
            let length = file.read(&mut text)?;
            if length > 0 && text[..length] != *MARK.as_bytes() {
                let reason = format!("{} is a file of another kind; move it away", path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, reason));
            }
            // Whom to name is a courtesy to others; a full disk is no reason to stop here.
            let _ = file
                .set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| writeln!(file, "{MARK}{}{}", std::process::id(), on_this_host()));
            return Ok(Attempt::Taken(Self { path: path.into(), file, is_left: false }));
        }
        Ok(Attempt::NoLocks(io::Error::other("what is opened there is never what the path names")))
    }

    /// Releases the lock, and leaves the file as a process does that is killed.
    pub fn leave(mut self) {
        self.is_left = true;
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Removed while it is locked: afterwards the file could be another's. Nobody can be told if it fails, and
        // the file would do no harm.
        if !self.is_left {
            let _ = fs::remove_file(&self.path);
        }
        let _ = self.file.unlock();
    }
}

/// Opens a lock file, or makes it: whether it is new. A link is not followed: it would lead to what is no lock. A file
/// that another user has left may be locked, though not written.
fn open(path: &Path) -> io::Result<(File, bool)> {
    let options = |write: bool| {
        let mut options = OpenOptions::new();
        options.read(true).write(write);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(
            &mut options,
            rustix::fs::OFlags::NOFOLLOW.bits() as i32,
        );
        options
    };
    match options(true).create_new(true).open(path) {
        Ok(file) => return Ok((file, true)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e),
    }
    let existing = match options(true).open(path) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => options(false).open(path),
        // Removed meanwhile.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            options(true).create(true).truncate(false).open(path)
        }
        other => other,
    };
    existing.map(|file| (file, false))
}

/// What a lock file says of its holder.
fn holder(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    match text.lines().next().map(str::trim) {
        Some(line) if line.starts_with(MARK) => line.to_owned(),
        _ => "another process".into(),
    }
}

/// ` on HOST`, where the system says so: outputs on a shared file system can be another machine's.
fn on_this_host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or(String::new(), |name| format!(" on {}", name.trim()))
}

/// Whether an open file is still what its path names.
#[cfg(unix)]
pub fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Elsewhere an open file keeps its name.
#[cfg(not(unix))]
pub fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_who_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let Attempt::Taken(lock) = FileLock::attempt(&path).unwrap() else { panic!("it is free") };
        assert_eq!(lock.path(), path);
        let Attempt::Held(by) = FileLock::attempt(&path).unwrap() else { panic!("it is held") };
        assert!(by.starts_with(&format!("process {}", std::process::id())), "{by}");
        drop(lock);
        assert!(!path.exists());
        let Attempt::Taken(lock) = FileLock::attempt(&path).unwrap() else { panic!("it is free again") };
        lock.leave();
        assert!(path.exists());
        assert!(matches!(FileLock::attempt(&path).unwrap(), Attempt::Taken(_)));
    }

    #[test]
    fn a_file_that_was_left_behind_locks_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        fs::write(&path, "process 1 on elsewhere, with a longer line than the next one\n").unwrap();
        let Attempt::Taken(lock) = FileLock::attempt(&path).unwrap() else { panic!("nobody holds it") };
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("process {}{}\n", std::process::id(), on_this_host()));
        assert!(matches!(FileLock::attempt(&path).unwrap(), Attempt::Held(_)));
        // What somebody put in its place is another lock.
        fs::remove_file(&path).unwrap();
        let Attempt::Taken(other) = FileLock::attempt(&path).unwrap() else { panic!("another file") };
        drop((lock, other));
        assert!(FileLock::attempt(&dir.path().join("no/lock")).is_err());
    }

    #[test]
    fn what_is_no_lock_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        fs::write(&path, "precious").unwrap();
        let says = FileLock::attempt(&path).unwrap_err().to_string();
        assert!(says.contains("is a file of another kind"), "{says}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        // Neither is a link to one, or to nothing.
        #[cfg(unix)]
        for target in ["lock", "nowhere"] {
            let link = dir.path().join(format!("link to {target}"));
            std::os::unix::fs::symlink(dir.path().join(target), &link).unwrap();
            assert!(FileLock::attempt(&link).is_err());
            assert!(link.symlink_metadata().unwrap().is_symlink());
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert!(!dir.path().join("nowhere").exists());
    }
}
