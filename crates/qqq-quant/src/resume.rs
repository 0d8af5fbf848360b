//! Runs that go on where another was stopped.
//!
//! After a block its tensors are in the output's staging directory already. What else a run needs to go on is written
//! beside them, into one file that replaces the one before: the hidden states of the calibration windows (in 32 bits,
//! as they are), the report's entries, and a fingerprint of all that decides on the result. A file is complete under
//! its name or not there: it is renamed when it and the tensors before it are on the disk.
//!
//! States are large (a gigabyte for 65,536 tokens of a model 4,096 wide), and writing them takes time from the run. So
//! a block is not kept if that would take more than a fiftieth of the time since the last one was: a run loses at most
//! so much time by keeping, and at most fifty times what keeping takes when it is stopped. The disk catches up while
//! the next block is worked on.
//!
//! A run that ends with an error of the model or the numbers would end with it again, and leaves nothing.

mod fingerprint;
mod keeper;
mod stopped;

use qqq_formats::writer::WriterState;
use serde::{Deserialize, Serialize};

pub use self::stopped::finished_blocks;
pub(crate) use self::{
    fingerprint::{Fingerprint, of_run as fingerprint},
    keeper::Keeper,
    stopped::{Restored, Stopped, damaged},
};
use crate::report::{LayerReport, SmoothReport, Timings};

/// Has finished blocks kept, so that a run that is stopped can be gone on with.
#[derive(Clone, Copy, Debug)]
pub struct Resume<'a> {
    /// What computes, in words; another device could give other last bits.
    pub device: &'a str,
    /// Goes on with what a stopped run has finished, if there is something.
    pub goes_on: bool,
}

/// First bytes of a state file; then come the header's length, the header, the states and a hash of all.
const MAGIC: &[u8; 8] = b"QQQRUN01";

/// What a state file says beside the states.
#[derive(Default, Serialize, Deserialize)]
struct Header {
    fingerprint: Fingerprint,
    /// Blocks that are finished, and that the model has.
    blocks: (usize, usize),
    written: WriterState,
    /// The calibration windows, where the model has written them; else they are read again.
    samples: Vec<Vec<u32>>,
    /// Tokens of each window whose states follow; those of the smoothing search are the last.
    windows: Vec<usize>,
    smoothing_window: Option<usize>,
    /// Width of the states.
    hidden: usize,
    layers: Vec<LayerReport>,
    smoothing: Vec<SmoothReport>,
    warnings: Vec<String>,
    timings: Timings,
}

/// What the report of a run that goes on has of the runs before it.
#[derive(Default)]
pub(crate) struct Earlier {
    pub layers: Vec<LayerReport>,
    pub smoothing: Vec<SmoothReport>,
    pub warnings: Vec<String>,
    pub timings: Timings,
}
