//! What a stopped run has finished.

use std::{
    fs::File,
    hash::Hasher as _,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use qqq_backend::Calibrate;
use qqq_formats::writer::{Reservation, WriterState, state_file};
use twox_hash::XxHash3_64;

use super::{Earlier, Header, MAGIC, fingerprint, fingerprint::Fingerprint};
use crate::{QuantError, Result, output, windows::Window};

/// Most bytes of a header: those of a model of thousands of blocks are fewer.
const MAX_HEADER: u64 = 1 << 30;

/// A stopped run.
pub(crate) struct Stopped {
    directory: PathBuf,
    header: Header,
    /// At the states.
    file: BufReader<File>,
    hash: XxHash3_64,
}

/// What a run had at the end of a block.
pub(crate) struct Restored<B: Calibrate> {
    /// The calibration windows.
    pub windows: Vec<Window<B>>,
    /// That of the smoothing search, where there is one.
    pub smoothing_window: Option<Window<B>>,
    pub earlier: Earlier,
}

/// Blocks that a stopped run has finished in a directory of [`Reservation::stopped`], and blocks of its model; `None`
/// where that cannot be read.
pub fn finished_blocks(directory: &Path) -> Option<(usize, usize)> {
    Stopped::open(directory).ok().map(|stopped| stopped.header.blocks)
}

impl Stopped {
    /// The latest run to an output that was stopped, if there is one.
    ///
    /// # Errors
    /// It was another run than this one: its fingerprint differs. Or what it has left is damaged.
    pub fn find(reservation: &Reservation, now: &Fingerprint) -> Result<Option<Self>> {
        let Some(directory) = reservation.stopped().first() else { return Ok(None) };
        let stopped = Self::open(directory)?;
        stopped.check(now)?;
        Ok(Some(stopped))
    }

    fn open(directory: &Path) -> Result<Self> {
        let path = state_file(directory);
        let fail = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof => damaged(directory, "it ends too early"),
            _ => output::io(&path, e),
        };
        let mut file = BufReader::new(File::open(&path).map_err(fail)?);
        let mut hash = XxHash3_64::new();
        let mut front = [0; 16];
        file.read_exact(&mut front).map_err(fail)?;
        hash.write(&front);
        let (magic, length) = front.split_at(MAGIC.len());
        let length = u64::from_le_bytes(length.try_into().unwrap_or_default());
        if magic != MAGIC || length > MAX_HEADER {
            return Err(damaged(directory, "another version of qqq may have written it"));
        }
        let mut text = vec![0; length as usize];
        file.read_exact(&mut text).map_err(fail)?;
        hash.write(&text);
        let header = serde_json::from_slice(&text).map_err(|e| damaged(directory, &e.to_string()))?;
        Ok(Self { directory: directory.into(), header, file, hash })
    }

    fn check(&self, now: &Fingerprint) -> Result<()> {
        match fingerprint::difference(&self.header.fingerprint, now) {
            None => Ok(()),
            Some(difference) => {
                Err(QuantError::Resume(format!("{}: {difference}", self.directory.display())))
            }
        }
    }

    /// That it was calibrated on these windows.
    ///
    /// # Errors
    /// It was not.
    pub fn check_windows(&self, mut now: Fingerprint, windows: &[Vec<u32>]) -> Result<()> {
        fingerprint::add_tokens(&mut now, windows);
        self.check(&now)
    }

    /// Where it lies.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Tensors that are written.
    pub fn written(&self) -> &WriterState {
        &self.header.written
    }

    /// Blocks that are finished.
    pub fn blocks(&self) -> usize {
        self.header.blocks.0
    }

    /// The calibration windows that the model has written.
    pub fn samples(&self) -> Vec<Vec<u32>> {
        self.header.samples.clone()
    }

    /// What the run had at the end of its last block.
    ///
    /// # Errors
    /// The file is damaged; those of the backend.
    pub fn restore<B: Calibrate>(mut self, backend: &B) -> Result<Restored<B>> {
        let Header { windows, smoothing_window, hidden, layers, smoothing, warnings, timings, .. } =
            std::mem::take(&mut self.header);
        let windows =
            windows.into_iter().map(|tokens| self.window(backend, tokens, hidden)).collect::<Result<_>>()?;
        let smoothing_window =
            smoothing_window.map(|tokens| self.window(backend, tokens, hidden)).transpose()?;
        let mut end = Vec::new();
        self.file.read_to_end(&mut end).map_err(|e| output::io(&state_file(&self.directory), e))?;
        if end != self.hash.finish().to_le_bytes() {
            return Err(damaged(&self.directory, "its hash is not that of its content"));
        }
        let earlier = Earlier { layers, smoothing, warnings, timings };
        Ok(Restored { windows, smoothing_window, earlier })
    }

    fn window<B: Calibrate>(&mut self, backend: &B, tokens: usize, hidden: usize) -> Result<Window<B>> {
        let mut states = vec![0f32; tokens * hidden];
        let bytes = bytemuck::cast_slice_mut(&mut states);
        self.file.read_exact(bytes).map_err(|_| damaged(&self.directory, "it ends too early"))?;
        self.hash.write(bytes);
        Window::new(backend, backend.upload(tokens, hidden, states)?, tokens)
    }
}

pub(crate) fn damaged(directory: &Path, how: &str) -> QuantError {
    QuantError::Resume(format!("{}: what it has left cannot be read: {how}", directory.display()))
}
