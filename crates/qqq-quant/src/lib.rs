//! The QQQ method: adaptive smoothing or rotation, Hessian-based compensation, recipes.
//!
//! [`pipeline::quantize`] walks a checkpoint block by block: transform, calibrate, solve, pack. The mathematics
//! lies in [`solve`], [`clip`], [`rotation`] and [`smooth`], each usable alone; [`transform`] and
//! [`smooth_sites`] apply it to a block's weights, [`windows`] runs the calibration passes. Nothing here names a device: what
//! computes is a [`Calibrate`](qqq_backend::Calibrate).
//!
//! # Example
//! A model is loaded, quantized and evaluated, and the result writes on:
//!
//! ```
//! use qqq_backend::{CpuBackend, KvDType};
//! use qqq_engine::{GenerateOptions, SamplingOptions, generate};
//! use qqq_eval::{WindowOptions, perplexity};
//! use qqq_formats::{Checkpoint, writer::Reservation};
//! use qqq_model::{Decoder, Tokenizer};
//! use qqq_quant::{Calibration, Gate, Output, OutputFormat, Recipe, calibration::Source, quantize};
//! # struct Silent;
//! # impl qqq_quant::Progress for Silent {
//! #     fn step(&mut self, _done: f64, _total: f64, _next: &str) -> bool { true }
//! #     fn warn(&mut self, _message: &str) {}
//! # }
//! # let (tiny, mut progress) = (qqq_testing::TinyModel::new(), Silent);
//! # let (model, text, out) = (tiny.model(), tiny.text(), tiny.path("w4a8"));
//!
//! let checkpoint = Checkpoint::open(&model)?;
//! let tokenizer = Tokenizer::load(&checkpoint)?;
//! let calibration = Calibration { windows: 8, window: 64, smooth_tokens: 64 };
//! let recipe = Recipe { calibration, ..Recipe::DEFAULT };
//! let source = Source::Files(vec![text.clone()]);
//! let reservation = Reservation::take(&out)?;
//! let output = Output::new(&reservation, "tiny");
//! let report = quantize(&CpuBackend::new(), &checkpoint, &tokenizer, &recipe, &source, &output, &mut progress)?;
//! let quality = report.quality.and_then(|quality| quality.divergence).expect("some text was held out");
//! println!("{:.4} nats from the float model", quality.kl_divergence.mean);
//! assert!(report.linear_bytes.1 * 6 < report.linear_bytes.0);
//!
//! let decoder = Decoder::load(CpuBackend::new(), &Checkpoint::open(&out)?)?;
//! let tokens = tokenizer.encode(&std::fs::read_to_string(&text)?, true)?;
//! let loss = perplexity(&decoder, &tokens[..512], &WindowOptions::new(128), &mut |_, _| true)?;
//! println!("perplexity {:.1}", loss.perplexity);
//!
//! let sampling = SamplingOptions::default();
//! let options = GenerateOptions { sampling, max_new_tokens: 8, eos: vec![], kv_dtype: KvDType::F16 };
//! let answer = generate(&decoder, &[tokens[..4].to_vec()], &options, &mut |_, _| true)?.remove(0);
//! println!("{}", tokenizer.decode(&answer.tokens, true)?);
//! # assert_eq!(answer.tokens.len(), 8);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `progress` is told what happens ([`Progress`]), and may interrupt.

mod activations;
mod behind;
pub mod budget;
pub mod calibration;
pub mod clip;
pub mod convert;
mod device_need;
mod dry_run;
pub mod error;
mod estimate;
mod float_layers;
pub mod float_linear;
mod float_stream;
mod gate;
pub mod half_type;
mod held_out;
mod layer_bytes;
mod memory_need;
pub mod model_card;
mod moments;
mod output;
pub mod pipeline;
pub mod precision;
mod preflight;
pub mod recipe;
pub mod recipes;
pub mod report;
pub mod resolved;
pub mod resume;
pub mod rotation;
pub mod rotations;
mod run;
mod scratch;
mod self_samples;
#[cfg(test)]
mod shapes;
mod site_search;
pub mod smooth;
pub mod smooth_sites;
pub mod solve;
mod source_types;
pub mod synth;
mod token_windows;
pub mod transform;
pub mod transform_choice;
mod trial;
mod value_hessian;
pub mod windows;
mod work;

pub use activations::{ActivationReport, Magnitudes};
pub use budget::{Budget, BudgetReport};
pub use dry_run::{DryRun, dry_run};
pub use error::{QuantError, Result};
pub use gate::{BeyondGate, Gate, MAX_KLD, Quality};
pub use output::{DETAILS_FILE, REPORT_FILE};
pub use pipeline::{MoreFiles, Output, Progress, quantize};
pub use precision::{Groups, Precision, Rule, Schemes};
pub use preflight::{NeedsText, check_recipe};
pub use recipe::{
    Calibration, Clip, GroupScales, Head, MAX_DAMPING, OutputFormat, Propagation, Recipe, RotationKind,
    Transform, ValueHessian,
};
pub use recipes::RecipeName;
pub use report::Report;
pub use resolved::Resolved;
pub use resume::Resume;
