//! What a stopped run has finished.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use qqq_backend::Calibrate;
use qqq_formats::writer::{Reservation, WriterState, state_file};

use super::{
    Earlier, Header, MAGIC, fingerprint,
    fingerprint::Fingerprint,
    states::{Reader, States},
};
use crate::{
    Budget, BudgetReport, QuantError, Result, calibration::TokenWindows, output,
    transform_choice::TransformReport,
};

/// Most bytes of a header: those of a model of thousands of blocks are fewer.
const MAX_HEADER: u64 = 1 << 30;

/// A stopped run.
pub(crate) struct Stopped {
    directory: PathBuf,
    header: Header,
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
        let file = File::open(&path).map_err(|e| output::io(&path, e))?;
        let mut reader = Reader::new(directory, &path, file);
        let mut front = [0; 16];
        reader.read(&mut front)?;
        let (magic, length) = front.split_at(MAGIC.len());
        let length = u64::from_le_bytes(length.try_into().unwrap_or_default());
        if magic != MAGIC || length > MAX_HEADER {
            return Err(damaged(directory, "another version of qqq may have written it"));
        }
        let mut text = vec![0; length as usize];
        reader.read(&mut text)?;
        reader.end()?;
        let header = serde_json::from_slice(&text).map_err(|e| damaged(directory, &e.to_string()))?;
        Ok(Self { directory: directory.into(), header })
    }

    /// What the latest run to an output that was stopped has found by trials of transforms.
    ///
    /// # Errors
    /// Its transform was not left to trials.
    pub fn transform(reservation: &Reservation) -> Result<Option<TransformReport>> {
        let Some(directory) = reservation.stopped().first() else { return Ok(None) };
        match Self::open(directory)?.header.transform {
            Some(kept) => Ok(Some(kept)),
            None => Err(QuantError::Resume(format!(
                "{}: the transform was named or the usual one, and is auto",
                directory.display()
            ))),
        }
    }

    /// What the latest run to an output that was stopped has measured for this budget.
    ///
    /// # Errors
    /// It had another budget, or none.
    pub fn budget(reservation: &Reservation, budget: Budget) -> Result<Option<BudgetReport>> {
        let Some(directory) = reservation.stopped().first() else { return Ok(None) };
        match Self::open(directory)?.header.budget {
            Some(kept) if kept.budget == budget => Ok(Some(kept)),
            kept => {
                let was = kept.map_or_else(|| "not there".into(), |kept| kept.budget.to_string());
                Err(QuantError::Resume(format!(
                    "{}: the budget was {was}, and is {budget}",
                    directory.display()
                )))
            }
        }
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
    pub fn check_windows(&self, mut now: Fingerprint, windows: &TokenWindows) -> Result<()> {
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

    /// The windows that the model has written.
    pub fn samples(&self) -> TokenWindows {
        TokenWindows { calibration: self.header.samples.clone(), held_out: self.header.held_out.clone() }
    }

    /// The last hidden states that were kept, if there are any. Behind the last block none are needed but those that are
    /// `held_out`.
    ///
    /// # Errors
    /// Their file is damaged; those of the backend.
    pub fn states<B: Calibrate>(&self, b: &B, held_out: bool) -> Result<Option<States<B>>> {
        let (done, all) = self.header.blocks;
        match self.header.states {
            _ if done == all && !held_out => Ok(Some(States::none(done))),
            Some(blocks) => States::read(b, &self.directory, blocks),
            None => Ok(None),
        }
    }

    /// What the report has of the run.
    pub fn earlier(self) -> Earlier {
        let Header { layers, smoothing, learning, activations, warnings, timings, .. } = self.header;
        Earlier { layers, smoothing, learning, activations, warnings, timings }
    }
}

pub(crate) fn damaged(directory: &Path, how: &str) -> QuantError {
    QuantError::Resume(format!("{}: what it has left cannot be read: {how}", directory.display()))
}
