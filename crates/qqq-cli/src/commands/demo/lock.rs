//! Which demo is at work on a result in the cache. The system releases a lock when its process ends, however it ends.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    path::Path,
};

use qqq_formats::lock::is_at;

/// What a demo does with a result.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Several demos can use it at a time.
    Use,
    /// One demo alone makes or removes it.
    Make,
}

/// A lock that is held until it is dropped. Its file stays: others may be waiting for it.
#[derive(Debug)]
pub struct Lock {
    /// `None` where there are no locks: on some network file systems, and in folders that cannot be written to.
    _file: Option<File>,
}

impl Lock {
    /// Takes the lock on the file at `path`, which is made if it is not there; `None` where another demo has it.
    pub fn attempt(path: &Path, work: Work) -> Option<Self> {
        loop {
            let Ok(file) = open(path) else { return Some(Self { _file: None }) };
            let attempt = match work {
                Work::Use => file.try_lock_shared(),
                Work::Make => file.try_lock(),
            };
            match attempt {
                // Who has removed a result removes the file of its lock: then this one locks nothing.
                Ok(()) if !is_at(&file, path) => {}
                Ok(()) => return Some(Self { _file: Some(file) }),
                Err(TryLockError::WouldBlock) => return None,
                Err(TryLockError::Error(_)) => return Some(Self { _file: None }),
            }
        }
    }

    /// As [`Lock::attempt`], again and again; `wait` is called in between, and ends it by an error.
    ///
    /// # Errors
    /// Those of `wait`.
    pub fn take(
        path: &Path,
        work: Work,
        wait: &mut dyn FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        loop {
            if let Some(lock) = Self::attempt(path, work) {
                return Ok(lock);
            }
            wait()?;
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let written = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    // Of a cache that others fill.
    written.or_else(|_| File::open(path))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn many_use_and_one_makes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let has = |work: Work| Lock::attempt(&path, work).is_some();
        let users = [(); 2].map(|()| Lock::attempt(&path, Work::Use).unwrap());
        assert!(has(Work::Use) && !has(Work::Make));
        drop(users);
        let maker = Lock::attempt(&path, Work::Make).unwrap();
        assert!(!has(Work::Use) && !has(Work::Make));
        // It removes what it locks, and the lock's file: a new one is another matter.
        fs::remove_file(&path).unwrap();
        assert!(has(Work::Make));
        drop(maker);
        assert!(has(Work::Make));
    }

    #[test]
    fn waiting_can_be_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mut other = Lock::attempt(&path, Work::Make);
        let mut waits = 0;
        let ended = Lock::take(&path, Work::Use, &mut || {
            waits += 1;
            if waits == 3 { Err(anyhow::anyhow!("enough")) } else { Ok(()) }
        });
        assert_eq!((ended.unwrap_err().to_string().as_str(), waits), ("enough", 3));
        Lock::take(&path, Work::Use, &mut || {
            other = None;
            Ok(())
        })
        .unwrap();
    }
}
