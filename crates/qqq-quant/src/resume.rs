//! Runs that go on where another was stopped.
//!
//! After a block its tensors are in the output's staging directory already. What else a run needs to go on is written
//! beside them: the report's entries, where the tensors lie, and a fingerprint of all that decides on the result. That file is
//! complete under its name or not there: it is renamed when it and the tensors before it are on the disk. The disk catches up
//! while the next block is worked on.
//!
//! The hidden states of the calibration windows and of those held out (in 32 bits, as they are) are large, a gigabyte for 65,536 tokens of a model
//! 4,096 wide, and writing them takes time from the run. So they are kept if that takes at most a fiftieth of the time since
//! the last ones were. A run that goes on reads the last states that there are, else it embeds its tokens again, and runs
//! the finished blocks behind them once more, without solving them: that takes a small part of the time and gives the same bits.
//!
//! A run that ends with an error of the model or the numbers would end with it again, and leaves nothing.

mod fingerprint;
mod keeper;
mod states;
mod stopped;

use qqq_formats::writer::WriterState;
use serde::{Deserialize, Serialize};

pub use self::stopped::finished_blocks;
pub(crate) use self::{
    fingerprint::{Fingerprint, of_run as fingerprint},
    keeper::Keeper,
    states::States,
    stopped::{Stopped, damaged},
};
use crate::report::{LayerReport, LearnReport, SmoothReport, Timings};
use crate::{ActivationReport, BudgetReport, transform_choice::TransformReport};

/// Has finished blocks kept, so that a run that is stopped can be gone on with.
#[derive(Clone, Copy, Debug)]
pub struct Resume<'a> {
    /// What computes, in words; another device could give other last bits.
    pub device: &'a str,
    /// Goes on with what a stopped run has finished, if there is something.
    pub goes_on: bool,
}

/// First bytes of a state file; then come the header's length, the header, and a hash of all.
const MAGIC: &[u8; 8] = b"QQQRUN03";

/// What a state file says.
#[derive(Default, Serialize, Deserialize)]
struct Header {
    fingerprint: Fingerprint,
    /// Blocks that are finished, and that the model has.
    blocks: (usize, usize),
    /// Blocks behind which states were kept.
    states: Option<usize>,
    written: WriterState,
    /// The calibration windows, and those that are held out, where the model has written them; else they are read again.
    samples: Vec<Vec<u32>>,
    held_out: Vec<Vec<u32>>,
    layers: Vec<LayerReport>,
    smoothing: Vec<SmoothReport>,
    #[serde(default)]
    learning: Vec<LearnReport>,
    #[serde(default)]
    activations: Vec<ActivationReport>,
    warnings: Vec<String>,
    timings: Timings,
    /// What was chosen before that, where trials decided on the transform.
    #[serde(default)]
    transform: Option<TransformReport>,
    /// What was measured before the first block, where there is a budget.
    #[serde(default)]
    budget: Option<BudgetReport>,
}

/// What the report of a run that goes on has of the runs before it.
#[derive(Default)]
pub(crate) struct Earlier {
    pub layers: Vec<LayerReport>,
    pub smoothing: Vec<SmoothReport>,
    pub learning: Vec<LearnReport>,
    pub activations: Vec<ActivationReport>,
    pub warnings: Vec<String>,
    pub timings: Timings,
}
