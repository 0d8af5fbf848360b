//! Keeping what is finished.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    thread::JoinHandle,
    time::Instant,
};

use qqq_backend::Calibrate;
use qqq_formats::{
    disk, size,
    writer::{new_state_file, remove_states, state_file},
};

use super::{
    Header, MAGIC, fingerprint,
    fingerprint::Fingerprint,
    states::{self, Hashed},
};
use crate::{
    calibration::TokenWindows, output::OutputCheckpoint, report::Timings, run::Run, windows::Windows,
};

/// Keeping states may take this share of the time since the last ones were kept.
const SHARE: f64 = 1.0 / 50.0;
/// Bytes of states a second that are expected to be written, before any were.
const EXPECTED_RATE: f64 = 1e9;

/// Keeps finished blocks.
pub(crate) struct Keeper {
    directory: PathBuf,
    fingerprint: Fingerprint,
    samples: TokenWindows,
    /// Tokens of each calibration window, and bytes of all states.
    tokens: Vec<usize>,
    state_bytes: u64,
    /// Of these, bytes of held-out windows: the only ones behind the last block.
    held_out_bytes: u64,
    /// Whether the disk has room for them.
    has_room: bool,
    /// Blocks behind which the last ones were kept.
    states: Option<usize>,
    /// When this run began, and seconds of those before it.
    started: Instant,
    earlier: f64,
    /// Where there is no more use in trying.
    is_off: bool,
    /// What the last states took, in seconds, and when that was.
    last: Option<(f64, Instant)>,
    /// Has the last block on the disk.
    settling: Option<JoinHandle<io::Result<()>>>,
}

impl Keeper {
    /// For a run that began at `started` with these windows; `samples`: whether the model has written them; `width`: of all
    /// states of a calibration token, `hidden`: of one.
    pub fn new(
        directory: &Path,
        mut fingerprint: Fingerprint,
        windows: &TokenWindows,
        samples: bool,
        (width, hidden): (usize, usize),
        started: Instant,
    ) -> Self {
        fingerprint::add_tokens(&mut fingerprint, windows);
        let bytes = |windows: &[Vec<u32>], width: usize| -> u64 {
            windows.iter().map(|window| 4 * (window.len() * width) as u64).sum()
        };
        let held_out_bytes = bytes(&windows.held_out, 2 * hidden);
        Self {
            directory: directory.into(),
            fingerprint,
            samples: if samples { windows.clone() } else { TokenWindows::default() },
            tokens: windows.calibration.iter().map(Vec::len).collect(),
            state_bytes: bytes(&windows.calibration, width) + held_out_bytes,
            held_out_bytes,
            has_room: true,
            states: None,
            started,
            earlier: 0.0,
            is_off: false,
            last: None,
            settling: None,
        }
    }

    /// Runs before this one took so many seconds, and have kept states behind so many blocks.
    pub fn add_earlier(&mut self, seconds: f64, states: Option<usize>) {
        (self.earlier, self.states) = (seconds, states);
    }

    /// Seconds of this run and those before it.
    pub fn seconds(&self) -> f64 {
        self.earlier + self.started.elapsed().as_secs_f64()
    }

    /// Keeps no states where the disk has no room for them beside `output` bytes of the checkpoint; what that means.
    pub fn check_room(&mut self, output: u64) -> Option<String> {
        // The old states stay until the new ones are there.
        let states = 2 * self.state_bytes;
        let free = disk::free(&self.directory)?;
        self.has_room = free >= output + states;
        (!self.has_room).then(|| {
            format!(
                "the disk has no room for the hidden states ({} beside the checkpoint): a stopped run would run its finished blocks \
                 again to go on",
                size::bytes(states)
            )
        })
    }

    /// Keeps the run as it is after `done` blocks, with the states unless that would take too long.
    pub fn keep<B: Calibrate>(
        &mut self,
        done: usize,
        run: &mut Run<'_, B>,
        windows: &Windows<'_, B>,
        writer: &mut OutputCheckpoint<'_>,
    ) {
        let is_busy = self.settling.as_ref().is_some_and(|thread| !thread.is_finished());
        if self.is_off || is_busy {
            return;
        }
        let clock = Instant::now();
        self.settle(run, writer);
        if self.is_off {
            return;
        }
        // What comes behind the last block looks at held-out text alone.
        let is_last = done == run.around.config.num_layers;
        let bytes = if is_last { self.held_out_bytes } else { self.state_bytes };
        let needs = bytes > 0 && self.has_room;
        let expected = bytes as f64 / EXPECTED_RATE;
        let (took, when) = self.last.unwrap_or((expected, self.started));
        let keeps = needs && when.elapsed().as_secs_f64() * SHARE >= took;
        match self.write(done, keeps, run, windows, writer) {
            Ok(thread) => self.settling = Some(thread),
            Err(e) => self.give_up(&e, run),
        }
        let took = clock.elapsed().as_secs_f64();
        run.timings.keep += took;
        if keeps {
            self.last = Some((took, Instant::now()));
        }
    }

    /// Waits until the last one is on the disk; from then on the directory outlives the run.
    pub fn settle<B: Calibrate>(&mut self, run: &mut Run<'_, B>, writer: &mut OutputCheckpoint<'_>) {
        let Some(thread) = self.settling.take() else { return };
        match thread.join() {
            Ok(Ok(())) => writer.writer_mut().keep_unfinished(true),
            Ok(Err(e)) => self.give_up(&e, run),
            Err(_) => self.give_up(&io::Error::other("the thread that syncs it has panicked"), run),
        }
    }

    /// It is no reason to stop. What was kept before is good still.
    fn give_up<B: Calibrate>(&mut self, e: &io::Error, run: &mut Run<'_, B>) {
        self.is_off = true;
        let _ = fs::remove_file(new_state_file(&self.directory));
        let _ = remove_states(&self.directory, self.states);
        run.work.warn(format!(
            "{}: what a stopped run would need to go on cannot be kept: {e}",
            self.directory.display()
        ));
    }

    fn write<B: Calibrate>(
        &mut self,
        done: usize,
        keeps_states: bool,
        run: &Run<'_, B>,
        windows: &Windows<'_, B>,
        writer: &mut OutputCheckpoint<'_>,
    ) -> io::Result<JoinHandle<io::Result<()>>> {
        let states = match keeps_states {
            true => Some(states::write(&self.directory, done, run, windows, &self.tokens)?),
            false => None,
        };
        if states.is_some() {
            self.states = Some(done);
        }
        let header = Header {
            fingerprint: self.fingerprint.clone(),
            blocks: (done, run.around.config.num_layers),
            states: self.states,
            written: writer.writer_mut().state(),
            samples: self.samples.calibration.clone(),
            held_out: self.samples.held_out.clone(),
            layers: run.layers.clone(),
            smoothing: run.smoothing.clone(),
            learning: run.learning.clone(),
            activations: run.activations.clone(),
            warnings: run.work.warnings().to_vec(),
            timings: Timings { total: self.seconds(), ..run.timings },
            transform: run.transform.clone(),
            budget: run.budget.clone(),
        };
        let header = serde_json::to_vec(&header)?;
        let path = new_state_file(&self.directory);
        let mut out = Hashed::create(&path)?;
        out.write_all(MAGIC)?;
        out.write_with_length(&header)?;
        let file = out.end()?;
        let tensors = writer.writer_mut().current_file().map_err(|e| io::Error::other(e.to_string()))?;
        let (directory, kept) = (self.directory.clone(), self.states);
        Ok(std::thread::spawn(move || {
            tensors.map_or(Ok(()), |file| file.sync_data())?;
            states.map_or(Ok(()), |file| file.sync_data())?;
            file.sync_all()?;
            fs::rename(&path, state_file(&directory))?;
            if cfg!(unix) {
                File::open(&directory)?.sync_all()?;
            }
            remove_states(&directory, kept)
        }))
    }
}
