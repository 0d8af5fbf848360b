//! The QQQ method: adaptive smoothing or rotation, Hessian-based compensation, recipes.
//!
//! [`pipeline::quantize`] walks a checkpoint block by block: transform, calibrate, solve, pack. The mathematics
//! lies in [`hessian`], [`attended`], [`solve`], [`clip`], [`rotation`] and [`smooth`], each usable alone; [`transform`] and
//! [`smooth_sites`] apply it to a block's weights, [`stages`] runs the calibration passes.

pub mod attended;
pub mod calibration;
pub mod clip;
pub mod error;
pub mod float_block;
mod float_layers;
pub mod half_type;
pub mod hessian;
mod memory_need;
pub mod model_card;
pub mod nearest;
mod output;
mod parallel;
pub mod pipeline;
mod preflight;
pub mod recipe;
pub mod report;
pub mod rotation;
mod rotations;
mod run;
mod scratch;
mod self_samples;
pub mod smooth;
pub mod smooth_sites;
pub mod solve;
mod source_types;
pub mod stages;
pub mod transform;
mod work;

pub use error::{QuantError, Result};
pub use output::REPORT_FILE;
pub use pipeline::{Output, Progress, quantize};
pub use recipe::{
    Calibration, Clip, GroupScales, MAX_DAMPING, OutputFormat, Propagation, Recipe, RotationKind, Transform,
    ValueHessian,
};
pub use report::Report;
