//! The QQQ method: adaptive smoothing or rotation, Hessian-based compensation, recipes.
//!
//! [`pipeline::quantize`] walks a checkpoint block by block: transform, calibrate, solve, pack. The mathematics
//! lies in [`hessian`], [`solve`], [`clip`], [`rotation`] and [`smooth`], each usable alone.

pub mod calibration;
pub mod clip;
pub mod error;
pub mod hessian;
pub mod pipeline;
pub mod recipe;
pub mod report;
pub mod rotation;
pub mod smooth;
pub mod solve;

pub use error::{QuantError, Result};
pub use pipeline::{Progress, quantize};
pub use recipe::{Calibration, Clip, OutputFormat, Propagation, Recipe, RotationKind, Transform};
pub use report::Report;
