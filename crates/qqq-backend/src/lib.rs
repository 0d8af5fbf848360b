//! What computes. [`Backend`] lists the operations that a decoder needs, each named for what the
//! decoder does with it; [`cpu::CpuBackend`] implements them.
//!
//! # Example
//! A linear layer is read and multiplied in float, then made W4A8 and multiplied again, in integers:
//!
//! ```
//! use qqq_backend::{Backend, CpuBackend};
//! use qqq_formats::{CodeBits, Checkpoint, LinearWeight, QuantizedWeight, Scales};
//! # let tiny = qqq_testing::TinyModel::new();
//! # let model = tiny.model();
//!
//! let (n, k) = (128, 64);
//! let float = Checkpoint::open(&model)?.linear("model.layers.0.mlp.up_proj", n, k)?;
//! let LinearWeight::Float { data, .. } = &float else { panic!("it is quantized already") };
//! let values = data.clone().into_f32();
//!
//! // Rounded to nearest, with a scale for each output channel.
//! let largest = |row: &[f32]| row.iter().fold(0.0f32, |max, w| max.max(w.abs()));
//! let scales: Vec<f32> = values.chunks(k).map(|row| largest(row) / 7.0).collect();
//! let codes = values.iter().zip(0..).map(|(w, i)| (w / scales[i / k]).round() as i8).collect();
//! let scales = Scales::PerChannel(scales);
//! let w4a8 = QuantizedWeight { bits: CodeBits::Four, out_features: n, in_features: k, codes, scales };
//!
//! let backend = CpuBackend::new();
//! let x: Vec<f32> = (0..2 * k).map(|i| (i as f32).sin()).collect();
//! let mut outputs = Vec::new();
//! for weight in [float, LinearWeight::Quantized(w4a8)] {
//!     let layer = backend.linear_weight(weight, None)?;
//!     let (mut input, mut output) = (backend.input(2, k)?, backend.tensor(2, n)?);
//!     backend.to_input(&mut backend.upload(2, k, x.clone())?, backend.input_kind(&layer), &mut input)?;
//!     backend.linear(&input, &layer, &mut output)?;
//!     outputs.push(backend.read(&output)?.into_owned());
//! }
//! let [error, size] = [1, 0].map(|float| -> f32 {
//!     outputs[0].iter().zip(&outputs[1]).map(|(a, b)| (a - float as f32 * b).powi(2)).sum()
//! });
//! assert!(error < 0.05 * size, "{error} of {size}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod backend;
mod batch;
pub mod calibrate;
pub mod cpu;
pub mod describe;
pub mod error;
pub mod finite;
pub mod learn;
pub mod pick;
pub mod pool;
pub mod ranking;
pub mod rotate;
mod shared;
pub mod simd;
pub mod solve;
pub mod team;

pub use backend::{AttentionKind, Backend, Gate, HeadLayout, InputKind, KvDType, KvLayout, Norm, QueryScale};
pub use batch::{BatchPlan, PAGE, Span, pages_for};
pub use calibrate::{Calibrate, DeviationValues, Pieces};
pub use cpu::CpuBackend;
pub use describe::Describe;
pub use error::{BackendError, Result};
pub use finite::first_not_finite;
pub use learn::Learn;
pub use pick::{Drawn, PairScore, Pick, Picked};
pub use ranking::{descending, largest};
