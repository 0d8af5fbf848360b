//! Results of demos in the cache: a checkpoint `KEY`, the SHA-256 of its files in `KEY.sha256`, and the lock `KEY.lock`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use qqq_quant::{REPORT_FILE, Report};

use super::{
    lock::{Lock, Work},
    sums::Sums,
};
use crate::{errors::failed_hint, files};

const SUMS: &str = "sha256";
const LOCK: &str = "lock";
/// Digits of a key.
pub const KEY: usize = 16;

/// The place of a result, whether it is there or not.
pub struct Cached {
    checkpoint: PathBuf,
    key: String,
}

/// What is at such a place.
pub enum Found {
    /// There is no such folder.
    Nothing,
    /// What a demo has made, as it was made.
    Sound(Box<Report>, Sums),
    /// Something else; this says why.
    Damaged(String),
}

impl Cached {
    /// Of a key, in the folder of the demos' results.
    pub fn new(folder: &Path, key: String) -> Self {
        Self { checkpoint: folder.join(&key), key }
    }

    /// The checkpoint's directory.
    pub fn checkpoint(&self) -> &Path {
        &self.checkpoint
    }

    /// The lock's file.
    pub fn lock(&self) -> PathBuf {
        self.checkpoint.with_extension(LOCK)
    }

    fn sums(&self) -> PathBuf {
        self.checkpoint.with_extension(SUMS)
    }

    fn kept_sums(&self) -> Option<Sums> {
        Sums::parse(&fs::read_to_string(self.sums()).ok()?, &self.key)
    }

    fn report(&self) -> Option<Report> {
        serde_json::from_slice(&fs::read(self.checkpoint.join(REPORT_FILE)).ok()?).ok()
    }

    /// Looks what there is, at every byte of it.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn look(&self) -> anyhow::Result<Found> {
        if fs::symlink_metadata(&self.checkpoint).is_err() {
            return Ok(Found::Nothing);
        }
        if !is_directory(&self.checkpoint) {
            return Ok(Found::Damaged("it is no directory".into()));
        }
        let Some(kept) = self.kept_sums() else {
            return Ok(Found::Damaged("the SHA-256 of its files are not known".into()));
        };
        if let Some(difference) = kept.difference(&Sums::of(&self.checkpoint)?) {
            return Ok(Found::Damaged(difference));
        }
        Ok(match self.report() {
            Some(report) => Found::Sound(Box::new(report), kept),
            None => Found::Damaged(format!("{REPORT_FILE} cannot be read")),
        })
    }

    /// Keeps the SHA-256 of what was just made.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn keep_sums(&self) -> anyhow::Result<()> {
        let text = Sums::of(&self.checkpoint)?.text(&self.key);
        files::write(&self.sums(), |file| std::io::Write::write_all(file, text.as_bytes()))
    }

    /// Removes what is there, to make it anew.
    ///
    /// # Errors
    /// Nothing shows that a demo has made it, or it cannot be removed.
    pub fn remove(&self) -> anyhow::Result<()> {
        let path = &self.checkpoint;
        if fs::symlink_metadata(path).is_err() {
            return Ok(());
        }
        let is_ours = is_directory(path) && (path.join(REPORT_FILE).is_file() || self.kept_sums().is_some());
        if !is_ours {
            return Err(failed_hint(
                format!("{} is in the way: nothing in it shows that a demo has made it", path.display()),
                "move it away",
            ));
        }
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))
    }
}

/// Removes the results of other models and versions, which would pile up: what a demo has made and none uses.
pub fn remove_others(kept: &Cached) {
    let Some(folder) = kept.checkpoint.parent() else { return };
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut keys: Vec<String> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let key = [SUMS, LOCK]
                .iter()
                .find_map(|kind| name.strip_suffix(kind)?.strip_suffix('.'))
                .unwrap_or(&name)
                .to_owned();
            (is_key(&key) && key != kept.key).then_some(key)
        })
        .collect();
    keys.sort();
    keys.dedup();
    for other in keys.into_iter().map(|key| Cached::new(folder, key)) {
        let is_there = fs::symlink_metadata(&other.checkpoint).is_ok();
        if is_there && !(is_directory(&other.checkpoint) && other.report().is_some()) {
            continue;
        }
        let Some(_lock) = Lock::attempt(&other.lock(), Work::Make) else { continue };
        // A cache that cannot be cleaned is no reason to fail.
        if is_there {
            let _ = fs::remove_dir_all(&other.checkpoint);
        }
        if other.kept_sums().is_some() {
            let _ = fs::remove_file(other.sums());
        }
        // Last, while it is held; locks have nothing in them.
        if fs::symlink_metadata(other.lock()).is_ok_and(|m| m.is_file() && m.len() == 0) {
            let _ = fs::remove_file(other.lock());
        }
    }
}

/// Whether a name is that of a result.
fn is_key(name: &str) -> bool {
    name.len() == KEY && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A link would lead to what is not ours.
fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.is_dir())
}
