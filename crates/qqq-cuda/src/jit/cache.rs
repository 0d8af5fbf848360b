//! A cache of compiled kernels on disk, shared by processes.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// First bytes of a cached kernel; then comes the SHA-256 of the rest.
const MAGIC: &[u8; 8] = b"QQQCUBN1";

/// A folder of kernels by key. Files appear under their name only when complete, so any number of processes may use it;
/// a file that is damaged is compiled again. Trouble with the folder costs time, never a result.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// The user's: `QQQ_KERNEL_CACHE`, or `kernels` in the [folder](qqq_formats::cache::folder) of all that can be made
    /// again (`QQQ_CACHE`). An empty `QQQ_KERNEL_CACHE` means none.
    pub fn of_user() -> Self {
        Self::by(std::env::var_os("QQQ_KERNEL_CACHE"), qqq_formats::cache::folder())
    }

    fn by(asked: Option<OsString>, of_user: Option<PathBuf>) -> Self {
        let folder = match asked {
            Some(folder) if folder.is_empty() => None,
            Some(folder) => Some(PathBuf::from(folder)),
            None => of_user.map(|folder| folder.join("kernels")),
        };
        Self { folder }
    }

    /// In this folder, which is made when it is needed.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self { folder: Some(folder.into()) }
    }

    /// None at all: nothing is found and nothing kept.
    pub fn none() -> Self {
        Self { folder: None }
    }

    /// The folder, if there is one.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The keys of all kernels, sorted.
    ///
    /// # Errors
    /// When the folder is there but cannot be read.
    pub fn keys(&self) -> io::Result<Vec<String>> {
        let entries = match &self.folder {
            Some(folder) if folder.exists() => folder.read_dir()?,
            _ => return Ok(Vec::new()),
        };
        let is_key = |n: &str| n.len() == 64 && n.bytes().all(|b| b.is_ascii_hexdigit());
        let names = entries.map(|e| Ok(e?.file_name().into_string().unwrap_or_default()));
        let mut keys: Vec<_> = names.collect::<io::Result<_>>()?;
        keys.retain(|n| is_key(n));
        keys.sort();
        Ok(keys)
    }

    /// The kernel of this key, if it is there and whole.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let path = self.folder.as_ref()?.join(key);
        let mut bytes = std::fs::read(&path).ok()?;
        let head = MAGIC.len() + 32;
        let whole = bytes.len() > head
            && bytes.starts_with(MAGIC)
            && bytes[MAGIC.len()..head] == *Sha256::digest(&bytes[head..]);
        if !whole {
            tracing::warn!("{}: a damaged kernel is compiled again", path.display());
            return None;
        }
        Some(bytes.split_off(head))
    }

    /// Keeps a kernel.
    pub fn put(&self, key: &str, cubin: &[u8]) {
        let Some(folder) = &self.folder else { return };
        if let Err(error) = write(folder, key, cubin) {
            tracing::warn!("{}: compiled kernels cannot be kept: {error}", folder.display());
        }
    }
}

fn write(folder: &Path, key: &str, cubin: &[u8]) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(MAGIC)?;
    file.write_all(&Sha256::digest(cubin))?;
    file.write_all(cubin)?;
    file.persist(folder.join(key))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_follows_the_users_cache() {
        let by = |asked: Option<&str>| {
            let cache = Cache::by(asked.map(Into::into), Some(PathBuf::from("/data/q")));
            cache.folder().map(|f| f.display().to_string())
        };
        assert_eq!(by(None).as_deref(), Some("/data/q/kernels"));
        assert_eq!(by(Some("/elsewhere")).as_deref(), Some("/elsewhere"));
        assert_eq!(by(Some("")), None);
    }

    #[test]
    fn kernels_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::in_folder(folder.path().join("made"));
        assert_eq!(cache.get("k"), None);
        cache.put("k", b"code");
        assert_eq!(cache.get("k").as_deref(), Some(&b"code"[..]));
        assert_eq!(cache.get("other"), None);
    }

    #[test]
    fn keys_are_listed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::in_folder(folder.path().join("made"));
        assert!(cache.keys().unwrap().is_empty());
        let keys = ["0f".repeat(32), "a1".repeat(32)];
        cache.put(&keys[1], b"b");
        cache.put(&keys[0], b"a");
        cache.put("other.json", b"no kernel");
        assert_eq!(cache.keys().unwrap(), keys);
        assert!(Cache::none().keys().unwrap().is_empty());
    }

    #[test]
    fn damaged_kernels_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::in_folder(folder.path());
        cache.put("k", b"some machine code");
        let path = folder.path().join("k");
        let good = std::fs::read(&path).unwrap();
        for bad in [
            &good[..good.len() - 1],
            &good[..10],
            b"",
            b"something else altogether, and long enough for a header",
        ] {
            std::fs::write(&path, bad).unwrap();
            assert_eq!(cache.get("k"), None);
        }
        cache.put("k", b"some machine code");
        assert!(cache.get("k").is_some());
    }

    #[test]
    fn writers_do_not_disturb_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::in_folder(folder.path());
        let code = vec![7u8; 100_000];
        std::thread::scope(|s| {
            for _ in 0..8 {
                s.spawn(|| {
                    for _ in 0..20 {
                        cache.put("k", &code);
                        assert_eq!(cache.get("k").as_deref(), Some(&code[..]));
                    }
                });
            }
        });
        // Nothing but the kernel is left.
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_written_costs_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let cache = Cache::in_folder(file.path().join("inside a file"));
        cache.put("k", b"code");
        assert_eq!(cache.get("k"), None);
        let none = Cache::none();
        none.put("k", b"code");
        assert_eq!(none.get("k"), None);
    }
}
