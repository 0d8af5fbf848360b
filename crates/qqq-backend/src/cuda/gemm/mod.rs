//! W4A8 matrix product on NVIDIA GPUs: `Y = (X W^T)` with int8 activations (one float32 scale a token), 4-bit weights
//! (per channel, or in groups) or int8 weights, int32 accumulation, and float16 or bfloat16 output.
//!
//! Integer sums are exact, so a result depends neither on the tile shape, nor on how the work is split, nor on the
//! batch: every launch is deterministic and batch-invariant.

mod config;
mod config80;
mod heuristic;
mod launch;
mod layer;
mod plans;
pub mod prepack;
mod schedule;
pub mod tuned;
mod weights;

pub use config::{Instance, OutputType, Sm90Config};
pub use config80::Sm80Config;
pub use heuristic::{Plan, candidates, instances, plan};
pub use launch::{GemmKernel, GemmOperands};
pub use layer::GemmLayer;
pub use plans::{GemmPlans, MAX_TOKENS};
pub use prepack::{PrepackKernel, PrepackOperands};
pub use schedule::Schedule;
pub use tuned::{TunedChoice, TunedKey, TunedPlans, TunedStore};
pub use weights::{PackedWeights, WeightKind};
