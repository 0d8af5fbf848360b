//! Keeping what is finished.

use std::{
    fs::{self, File},
    hash::Hasher as _,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    thread::JoinHandle,
    time::Instant,
};

use qqq_backend::Calibrate;
use qqq_formats::{
    disk, size,
    writer::{new_state_file, state_file},
};
use twox_hash::XxHash3_64;

use super::{Header, MAGIC, fingerprint, fingerprint::Fingerprint};
use crate::{output::OutputCheckpoint, report::Timings, run::Run, windows::Windows};

/// Keeping a block may take this share of the time since the last one was kept.
const SHARE: f64 = 1.0 / 50.0;
/// Bytes of states a second that are expected to be written, before any were.
const EXPECTED_RATE: f64 = 1e9;

/// Keeps finished blocks.
pub(crate) struct Keeper {
    directory: PathBuf,
    fingerprint: Fingerprint,
    samples: Vec<Vec<u32>>,
    /// Tokens of each window, and bytes of all their states.
    tokens: Vec<usize>,
    states: u64,
    /// When this run began, and seconds of those before it.
    started: Instant,
    earlier: f64,
    /// Where there is no more use in trying.
    is_off: bool,
    /// What the last one took, in seconds, and when that was.
    last: Option<(f64, Instant)>,
    /// Has the last one on the disk.
    settling: Option<JoinHandle<io::Result<()>>>,
}

impl Keeper {
    /// For a run that began at `started` with these calibration windows; `samples`: whether the model has written them;
    /// `hidden`: width of their states.
    pub fn new(
        directory: &Path,
        mut fingerprint: Fingerprint,
        windows: &[Vec<u32>],
        samples: bool,
        hidden: usize,
        started: Instant,
    ) -> Self {
        fingerprint::add_tokens(&mut fingerprint, windows);
        Self {
            directory: directory.into(),
            fingerprint,
            samples: if samples { windows.to_vec() } else { Vec::new() },
            tokens: windows.iter().map(Vec::len).collect(),
            states: windows.iter().map(|window| 4 * (window.len() * hidden) as u64).sum(),
            started,
            earlier: 0.0,
            is_off: false,
            last: None,
            settling: None,
        }
    }

    /// Runs before this one took so many seconds.
    pub fn add_earlier(&mut self, seconds: f64) {
        self.earlier = seconds;
    }

    /// Seconds of this run and those before it.
    pub fn seconds(&self) -> f64 {
        self.earlier + self.started.elapsed().as_secs_f64()
    }

    /// Keeps nothing where the disk has no room beside `output` bytes of the checkpoint; the reason.
    pub fn check_room(&mut self, output: u64) -> Option<String> {
        // The old states stay until the new ones are there.
        let states = 2 * self.states;
        let free = disk::free(&self.directory)?;
        self.is_off = free < output + states;
        self.is_off.then(|| {
            format!(
                "the disk has no room for what a stopped run would need to go on ({} beside the checkpoint): this run cannot \
                 be resumed",
                size::bytes(states)
            )
        })
    }

    /// Keeps the run as it is after `done` blocks, unless that would take too long.
    pub fn keep<B: Calibrate>(
        &mut self,
        done: usize,
        run: &mut Run<'_, B>,
        windows: &Windows<'_, B>,
        writer: &mut OutputCheckpoint<'_>,
    ) {
        let expected = self.states as f64 / EXPECTED_RATE;
        let (took, when) = self.last.unwrap_or((expected, self.started));
        let is_due = when.elapsed().as_secs_f64() * SHARE >= took;
        let is_busy = self.settling.as_ref().is_some_and(|thread| !thread.is_finished());
        if self.is_off || !is_due || is_busy {
            return;
        }
        let clock = Instant::now();
        self.settle(run, writer);
        if self.is_off {
            return;
        }
        match self.write(done, run, windows, writer) {
            Ok(thread) => self.settling = Some(thread),
            Err(e) => self.give_up(&e, run),
        }
        let took = clock.elapsed().as_secs_f64();
        run.timings.keep += took;
        self.last = Some((took, Instant::now()));
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
        run.work.warn(format!(
            "{}: what a stopped run would need to go on cannot be kept: {e}",
            self.directory.display()
        ));
    }

    fn write<B: Calibrate>(
        &self,
        done: usize,
        run: &Run<'_, B>,
        windows: &Windows<'_, B>,
        writer: &mut OutputCheckpoint<'_>,
    ) -> io::Result<JoinHandle<io::Result<()>>> {
        let config = run.around.config;
        let other = |e: &dyn std::fmt::Display| io::Error::other(e.to_string());
        // Nothing comes behind the last block that looks at states.
        let is_last = done == config.num_layers;
        let of_windows = windows.states().filter(|_| !is_last);
        let of_search = run.smoothing_window.iter().map(|window| &window.flow.residual);
        let of_search = of_search.filter(|_| !is_last);
        let tokens = if is_last { &[][..] } else { &self.tokens };
        let smoothing_window =
            (!is_last && run.smoothing_window.is_some()).then_some(run.recipe.calibration.smooth_tokens);
        let header = Header {
            fingerprint: self.fingerprint.clone(),
            blocks: (done, config.num_layers),
            written: writer.writer_mut().state(),
            samples: self.samples.clone(),
            windows: tokens.to_vec(),
            smoothing_window,
            hidden: config.hidden_size,
            layers: run.layers.clone(),
            smoothing: run.smoothing.clone(),
            warnings: run.work.warnings().to_vec(),
            timings: Timings { total: self.seconds(), ..run.timings },
        };
        let header = serde_json::to_vec(&header)?;
        let path = new_state_file(&self.directory);
        let mut out = Hashed { file: BufWriter::new(File::create(&path)?), hash: XxHash3_64::new() };
        out.write_all(MAGIC)?;
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for tensor in of_windows.chain(of_search) {
            // One at a time: a device hands out a copy.
            let states = run.around.backend.read(tensor).map_err(|e| other(&e))?;
            out.write_all(bytemuck::cast_slice(&states))?;
        }
        let hash = out.hash.finish();
        out.file.write_all(&hash.to_le_bytes())?;
        let file = out.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        let tensors = writer.writer_mut().current_file().map_err(|e| other(&e))?;
        let directory = self.directory.clone();
        Ok(std::thread::spawn(move || {
            if let Some(tensors) = tensors {
                tensors.sync_data()?;
            }
            file.sync_all()?;
            fs::rename(&path, state_file(&directory))?;
            if cfg!(unix) { File::open(&directory)?.sync_all() } else { Ok(()) }
        }))
    }
}

/// Hashes what it writes.
struct Hashed {
    file: BufWriter<File>,
    hash: XxHash3_64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.write(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
