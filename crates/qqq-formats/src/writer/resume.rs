//! A writer that goes on where one was that was stopped.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    CheckpointWriter, Reservation, SHARD_BYTES,
    reservation::STATE_FILE,
    shard::{Shard, ShardState},
};
use crate::{
    FormatError, Result,
    safetensors::{SINGLE_FILE, Safetensors},
};

/// How the files of [`states_file`] begin.
const STATES_PREFIX: &str = ".resume-states-";

/// Which tensors a writer has written at some time, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterState {
    shards: Vec<ShardState>,
}

/// The file in a staging directory that says that a run can go on from there, and what it needs for that.
pub fn state_file(staging: &Path) -> PathBuf {
    staging.join(STATE_FILE)
}

/// Beside it: the hidden states that calibration had after so many blocks.
pub fn states_file(staging: &Path, blocks: usize) -> PathBuf {
    staging.join(format!("{STATES_PREFIX}{blocks}"))
}

/// Removes all files of that kind but the one after `kept` blocks.
///
/// # Errors
/// The system's.
pub fn remove_states(staging: &Path, kept: Option<usize>) -> io::Result<()> {
    let kept = kept.map(|blocks| states_file(staging, blocks));
    for entry in fs::read_dir(staging)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(STATES_PREFIX) && Some(entry.path()) != kept {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Where a new [`state_file`] is made, to replace the old one when it is complete.
pub fn new_state_file(staging: &Path) -> PathBuf {
    state_file(staging).with_extension("new")
}

/// Where shard `index` lies until all are complete.
pub(super) fn shard_path(staging: &Path, index: usize) -> PathBuf {
    staging.join(format!("shard-{:05}.safetensors", index + 1))
}

impl CheckpointWriter {
    /// What was written until now.
    pub fn state(&self) -> WriterState {
        WriterState { shards: self.shards.iter().map(Shard::state).collect() }
    }

    /// Goes on in a directory of [`Reservation::stopped`] behind the tensors that `state` has; what was written later
    /// is forgotten. If this writer is dropped unfinished the directory stays.
    ///
    /// # Errors
    /// Files that are missing or have lost something.
    pub fn resume(reservation: &Reservation, directory: &Path, state: &WriterState) -> Result<Self> {
        let fail = |source| FormatError::Io { path: directory.into(), source };
        let mut writer = Self::counting();
        writer.owner = reservation.adopt(directory)?;
        writer.reservation = Some(reservation.clone());
        (writer.staging, writer.shard_bytes, writer.is_kept) = (directory.into(), SHARD_BYTES, true);
        for (index, shard) in state.shards.iter().enumerate() {
            let path = shard_path(directory, index);
            // One that was killed while it finished may have given it its last name.
            if !path.exists()
                && let Some(named) = with_last_name(directory, index)
            {
                fs::rename(named, &path).map_err(fail)?;
            }
            writer.shards.push(Shard::reopen(path, shard).map_err(fail)?);
        }
        let shards = (state.shards.len()..).map(|index| shard_path(directory, index));
        let later = shards.take_while(|path| path.exists());
        let unfinished = Some(new_state_file(directory)).filter(|path| path.exists());
        for path in later.chain(unfinished) {
            fs::remove_file(path).map_err(fail)?;
        }
        writer.written = writer.tensors().map(|(_, bytes)| bytes).sum();
        Ok(writer)
    }

    /// The tensors until now, to be read before more are written.
    ///
    /// # Errors
    /// The system's.
    pub fn so_far(&mut self) -> Result<Safetensors> {
        let fail = |source| FormatError::Io { path: self.staging.clone(), source };
        self.shards.iter_mut().try_for_each(|shard| shard.write_header()).map_err(fail)?;
        let shards: Vec<_> = self.shards.iter().map(Shard::path).collect();
        Safetensors::open_shards(&self.staging, &shards)
    }

    /// Whether from now on the directory stays if this writer is dropped unfinished: a [state file](state_file) lies in
    /// it.
    pub fn keep_unfinished(&mut self, is_kept: bool) {
        self.is_kept = is_kept;
    }

    /// A handle of the file that is being written, for who syncs it.
    ///
    /// # Errors
    /// The system's.
    pub fn current_file(&self) -> Result<Option<File>> {
        let handle = self.shards.last().map_or(Ok(None), Shard::handle);
        handle.map_err(|source| FormatError::Io { path: self.staging.clone(), source })
    }
}

/// The file of shard `index` under the name that it has in a complete checkpoint.
fn with_last_name(directory: &Path, index: usize) -> Option<PathBuf> {
    let single = directory.join(SINGLE_FILE);
    if index == 0 && single.exists() {
        return Some(single);
    }
    let start = format!("model-{:05}-of-", index + 1);
    let entries = fs::read_dir(directory).ok()?;
    entries.flatten().find(|e| e.file_name().to_string_lossy().starts_with(&start)).map(|e| e.path())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn add(writer: &mut CheckpointWriter, name: &str) {
        writer.add(name, DType::U8, &[1000], &[name.as_bytes()[0]; 1000]).unwrap();
    }

    /// Writes tensors in shards of two, stops before `stop` and goes on from the state before `kept`.
    fn interrupted(out: &Path, kept: usize, stop: usize, finishes: bool) {
        const ALL: [&str; 5] = ["a", "b", "c", "d", "e"];
        let mut writer = CheckpointWriter::with_shard_size(out, 2000).unwrap();
        let mut state = writer.state();
        for (i, name) in ALL.into_iter().enumerate().take(stop) {
            if i == kept {
                state = writer.state();
                fs::write(state_file(writer.staging()), "what a run needs").unwrap();
                fs::write(new_state_file(writer.staging()), "half of it").unwrap();
                writer.keep_unfinished(true);
            }
            add(&mut writer, name);
        }
        if finishes {
            // Killed when the shards have their names: put back by hand.
            let staging = writer.staging().to_owned();
            for i in 0..writer.shards.len() {
                let named = staging.join(format!("model-{:05}-of-00003.safetensors", i + 1));
                fs::rename(shard_path(&staging, i), named).unwrap();
            }
        }
        drop(writer);
        let reservation = Reservation::take(out).unwrap();
        let [stopped] = reservation.stopped() else { panic!("{:?}", reservation.stopped()) };
        let mut writer = CheckpointWriter::resume(&reservation, stopped, &state).unwrap();
        writer.shard_bytes = 2000;
        ALL[kept..].iter().for_each(|name| add(&mut writer, name));
        writer.finish().unwrap();
    }

    #[test]
    fn a_checkpoint_is_the_same_however_often_it_was_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("whole");
        let mut writer = CheckpointWriter::with_shard_size(&whole, 2000).unwrap();
        ["a", "b", "c", "d", "e"].into_iter().for_each(|name| add(&mut writer, name));
        writer.finish().unwrap();
        for (kept, stop, finishes) in
            [(0, 1, false), (1, 2, false), (1, 5, false), (2, 4, false), (4, 5, true)]
        {
            let out = dir.path().join(format!("{kept}-{stop}"));
            interrupted(&out, kept, stop, finishes);
            assert_eq!(names(&whole), names(&out));
            for name in names(&whole) {
                let same = fs::read(whole.join(&name)).unwrap() == fs::read(out.join(&name)).unwrap();
                assert!(same, "{name}, {kept} of {stop}");
            }
        }
        assert_eq!(names(dir.path()).len(), 6, "{:?}", names(dir.path()));
    }

    #[test]
    fn a_run_that_begins_anew_removes_what_was_kept() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let stop = || {
            let mut writer = CheckpointWriter::create(&out).unwrap();
            add(&mut writer, "a");
            fs::write(state_file(writer.staging()), "").unwrap();
            fs::write(new_state_file(writer.staging()), "").unwrap();
            writer.keep_unfinished(true);
            (writer.staging().to_owned(), writer.state())
        };
        let (staging, state) = stop();
        // Whoever only looks removes nothing.
        let reservation = Reservation::take(&out).unwrap();
        assert_eq!(reservation.stopped(), std::slice::from_ref(&staging));
        assert_eq!(reservation.left_behind(), Some(staging.clone()));
        // What has lost something is no place to go on from.
        let shard = shard_path(&staging, 0);
        let file = File::options().write(true).open(&shard).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        let error = CheckpointWriter::resume(&reservation, &staging, &state).err().unwrap().to_string();
        assert!(error.contains("that were kept"), "{error}");
        drop(reservation);
        stop();
        assert!(Reservation::take(&out).unwrap().stopped().len() == 1);
        drop(CheckpointWriter::create(&out).unwrap());
        assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
    }
}
