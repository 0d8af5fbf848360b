//! Who may write an output: found out before any work is spent on it.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    FormatError, Result,
    lock::{Attempt, FileLock},
};

/// In a staging directory, locked while its process lives.
const OWNER_FILE: &str = ".owner";
/// In a staging directory from which a later run can go on: what it needs beside the tensors.
pub(super) const STATE_FILE: &str = ".resume";

/// The right to write an output that does not exist yet. While it lives, no other process gets it for the same
/// output: `.NAME.lock` beside the output is locked. Clones share it.
#[derive(Clone, Debug)]
pub struct Reservation(Arc<Place>);

#[derive(Debug)]
struct Place {
    out: PathBuf,
    parent: PathBuf,
    /// `.NAME`, as the output is called until it is complete.
    hidden_name: OsString,
    /// `None` on a file system without locks.
    lock: Option<FileLock>,
    removed: Vec<PathBuf>,
    kept: Vec<PathBuf>,
    stopped: Vec<PathBuf>,
}

impl Reservation {
    /// Reserves `out`, and removes what earlier runs to it have left that were killed, unless a run can
    /// [go on](Reservation::stopped) from there.
    ///
    /// # Errors
    /// `out` exists, another process is writing it, or its parent is missing, no directory, or not writable.
    pub fn take(out: &Path) -> Result<Self> {
        let malformed = |reason: String| FormatError::Malformed { path: out.into(), reason };
        refuse_existing(out)?;
        let Some(name) = out.file_name() else {
            return Err(malformed("this does not name a new directory".into()));
        };
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if !parent.is_dir() {
            let what = if parent.exists() { "is not a directory" } else { "does not exist" };
            return Err(malformed(format!("its parent directory {} {what}", parent.display())));
        }
        let mut hidden_name = OsString::from(".");
        hidden_name.push(name);
        let mut lock_name = hidden_name.clone();
        lock_name.push(".lock");
        let lock_path = parent.join(&lock_name);
        let attempt = FileLock::attempt(&lock_path).map_err(|e| {
            let reason = match fs::symlink_metadata(&lock_path) {
                Ok(_) => format!("its lock {} cannot be taken: {e}", lock_path.display()),
                Err(_) => format!("its parent directory {} cannot be written to: {e}", parent.display()),
            };
            FormatError::Io { path: out.into(), source: io::Error::new(e.kind(), reason) }
        })?;
        let lock = match attempt {
            Attempt::Taken(lock) => Some(lock),
            Attempt::NoLocks(_) => None,
            Attempt::Held(by) => {
                let reason = format!("{by} is writing it; wait for that one, or choose another name");
                let source = io::Error::new(io::ErrorKind::ResourceBusy, reason);
                return Err(FormatError::Io { path: out.into(), source });
            }
        };
        // Another run may have finished while this one came for the lock.
        refuse_existing(out)?;
        let mut place = Place {
            // Without what may follow the name, as in `out/.`: nothing can be renamed to that.
            out: out.with_file_name(name),
            parent: parent.into(),
            hidden_name,
            lock,
            removed: Vec::new(),
            kept: Vec::new(),
            stopped: Vec::new(),
        };
        place.clean_up();
        Ok(Self(Arc::new(place)))
    }

    /// The path that is reserved for the output.
    pub fn path(&self) -> &Path {
        &self.0.out
    }

    /// Staging directories of runs that were killed, which [`Reservation::take`] has removed.
    pub fn removed(&self) -> &[PathBuf] {
        &self.0.removed
    }

    /// Directories that look like those, but whose process may still be alive, or that could not be removed.
    pub fn kept(&self) -> &[PathBuf] {
        &self.0.kept
    }

    /// Staging directories of runs that were stopped and from which a run can go on, the latest first. A run that
    /// begins anew removes them.
    pub fn stopped(&self) -> &[PathBuf] {
        &self.0.stopped
    }

    /// A staging directory from which a run can go on that has come into being since.
    pub fn left_behind(&self) -> Option<PathBuf> {
        self.0.staging_directories().map(|(path, _)| path).find(|path| path.join(STATE_FILE).is_file())
    }

    /// The file that is locked; it is removed with the reservation.
    pub fn lock_path(&self) -> Option<&Path> {
        self.0.lock.as_ref().map(FileLock::path)
    }

    /// Takes over a directory of [`Reservation::stopped`], and removes the others.
    pub(super) fn adopt(&self, directory: &Path) -> Result<Option<FileLock>> {
        self.forget_stopped(Some(directory));
        let owner = FileLock::attempt(&directory.join(OWNER_FILE))
            .map_err(|source| FormatError::Io { path: directory.into(), source })?;
        match owner {
            Attempt::Taken(owner) => Ok(Some(owner)),
            Attempt::NoLocks(_) => Ok(None),
            Attempt::Held(by) => {
                let source = io::Error::new(io::ErrorKind::ResourceBusy, format!("{by} is writing there"));
                Err(FormatError::Io { path: directory.into(), source })
            }
        }
    }

    /// Removes what runs could have gone on from, but for one of them.
    fn forget_stopped(&self, but: Option<&Path>) {
        for path in self.0.stopped.iter().filter(|path| Some(path.as_path()) != but) {
            // What cannot be removed is in nobody's way, and the next run tries again.
            let _ = fs::remove_dir_all(path);
        }
    }

    /// Makes the staging directory, with the lock that shows that it has an owner.
    pub(super) fn stage(&self) -> Result<(PathBuf, Option<FileLock>)> {
        self.forget_stopped(None);
        let directory = |number: u32| {
            let mut name = self.0.hidden_name.clone();
            name.push(format!("{PARTIAL}{number}"));
            self.0.parent.join(name)
        };
        let mut number = std::process::id();
        // In containers every run can have the same number, and what another has left was kept if nobody knew whose.
        while fs::symlink_metadata(directory(number)).is_ok() && number < u32::MAX - PROCESSES {
            number += PROCESSES;
        }
        let staging = directory(number);
        let fail = |source| FormatError::Io { path: staging.clone(), source };
        fs::create_dir(&staging).map_err(fail)?;
        match FileLock::attempt(&staging.join(OWNER_FILE)).map_err(fail)? {
            Attempt::Taken(owner) => Ok((staging, Some(owner))),
            Attempt::Held(_) | Attempt::NoLocks(_) => Ok((staging, None)),
        }
    }
}

/// Between an output's hidden name and its process' number.
const PARTIAL: &str = ".partial-";
/// More than there are processes at a time (Linux: 2^22 on 64-bit machines).
const PROCESSES: u32 = 1 << 22;

impl Place {
    /// The staging directories of all runs to this output, with their processes' numbers.
    fn staging_directories(&self) -> impl Iterator<Item = (PathBuf, u32)> {
        let prefix = self.hidden_name.to_str().map(|n| format!("{n}{PARTIAL}"));
        fs::read_dir(&self.parent).into_iter().flatten().flatten().filter_map(move |entry| {
            let name = entry.file_name();
            let number = name.to_str()?.strip_prefix(prefix.as_ref()?)?.parse::<u32>().ok()?;
            // A link would lead to what is not ours.
            entry.file_type().is_ok_and(|t| t.is_dir()).then(|| (entry.path(), number % PROCESSES))
        })
    }

    /// Removes staging directories that nobody owns any more and no run can go on from.
    fn clean_up(&mut self) {
        let directories: Vec<_> = self.staging_directories().collect();
        for (path, process) in directories {
            if !is_abandoned(&path, process) {
                self.kept.push(path);
            } else if path.join(STATE_FILE).is_file() {
                self.stopped.push(path);
            } else if fs::remove_dir_all(&path).is_ok() {
                self.removed.push(path);
            } else {
                self.kept.push(path);
            }
        }
        let kept_at = |path: &PathBuf| fs::metadata(path.join(STATE_FILE)).and_then(|m| m.modified()).ok();
        self.stopped.sort_by_key(|path| std::cmp::Reverse(kept_at(path)));
    }
}

/// Whether the run that made a staging directory is gone. The number of its process says little: the system gives it
/// to others later. The lock in it is released only by the owner's end.
fn is_abandoned(staging: &Path, process: u32) -> bool {
    let owner = staging.join(OWNER_FILE);
    if owner.is_file() {
        return matches!(FileLock::attempt(&owner), Ok(Attempt::Taken(_)));
    }
    // Of a version that took no locks, or killed just before it had one. This process has staged nothing yet.
    let listed = |process: u32| Path::new("/proc").join(process.to_string()).exists();
    process == std::process::id() || (listed(std::process::id()) && !listed(process))
}

/// A symbolic link that leads nowhere counts as existing.
pub(super) fn refuse_existing(out: &Path) -> Result<()> {
    match fs::symlink_metadata(out) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        // A parent that is a file; what follows says so.
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => Ok(()),
        Err(source) => Err(FormatError::Io { path: out.into(), source }),
        Ok(_) => Err(FormatError::Io {
            path: out.into(),
            source: io::Error::new(
                io::ErrorKind::AlreadyExists,
                "it exists already and is not overwritten; choose another name or remove it",
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_has_one_writer() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let first = Reservation::take(&out).unwrap();
        let again = Reservation::take(&out).unwrap_err().to_string();
        assert!(again.contains(&format!("process {}", std::process::id())), "{again}");
        assert!(first.lock_path().is_some_and(Path::exists));
        let clone = first.clone();
        drop(first);
        assert!(Reservation::take(&out).is_err(), "a clone has it");
        drop(clone);
        assert!(Reservation::take(&out).is_ok());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_what_nobody_owns_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let staging = |process: u32| dir.path().join(format!(".out.partial-{process}"));
        for process in [1, 2] {
            fs::create_dir(staging(process)).unwrap();
            fs::write(staging(process).join(OWNER_FILE), "process 1\n").unwrap();
        }
        let Attempt::Taken(owner) = FileLock::attempt(&staging(2).join(OWNER_FILE)).unwrap() else {
            panic!("nobody has it")
        };
        // Process 1 always runs, but it is not the one that made this.
        let taken = Reservation::take(&out).unwrap();
        assert_eq!(taken.removed(), [staging(1)]);
        assert_eq!(taken.kept(), [staging(2)]);
        drop(owner);
        // A link leads to what is not ours.
        #[cfg(unix)]
        {
            fs::remove_dir_all(staging(2)).unwrap();
            std::os::unix::fs::symlink(dir.path(), staging(3)).unwrap();
            drop(taken);
            let taken = Reservation::take(&out).unwrap();
            assert!(taken.removed().is_empty() && taken.kept().is_empty());
        }
    }

    #[test]
    fn names_end_at_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let place = Reservation::take(&dir.path().join("out/.")).unwrap();
        assert_eq!(place.path(), dir.path().join("out"));
        // What a process of the same number has left, where it cannot be known whose it is, is not in the way.
        let other = dir.path().join(format!(".out.partial-{}", std::process::id()));
        fs::create_dir(&other).unwrap();
        let (staging, owner) = place.stage().unwrap();
        assert_ne!(staging, other);
        drop(owner);
        drop(place);
        let place = Reservation::take(&dir.path().join("out")).unwrap();
        assert_eq!((place.removed().len(), place.kept().len()), (2, 0));
    }
}
