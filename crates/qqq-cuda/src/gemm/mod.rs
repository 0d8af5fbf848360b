//! Matrix products on NVIDIA GPUs: `Y = (X W^T)`. W4A8 and W8A8 have int8 activations (one float32 scale a token), 4-bit
//! weights (per channel, or in groups) or int8 weights, int32 accumulation, and float16 or bfloat16 output. W4A16 has
//! float16 or bfloat16 activations, 4-bit weights, float32 accumulation, and output of the activations' type.
//!
//! Integer sums are exact, so a result of int8 activations depends neither on the tile shape, nor on how the work is
//! split, nor on the batch: every launch is deterministic and batch-invariant. Sums of 16-bit activations are added in an
//! order that the plan and the shape determine, so that a launch is deterministic; with [`SumOrder::Fixed`] they are
//! batch-invariant too.

mod config;
mod config80;
mod heuristic;
mod launch;
mod layer;
mod plans;
pub mod prepack;
mod schedule;
pub mod tuned;
mod types;
mod weights;
mod weights16;

pub use config::{Instance, Sm90Config};
pub use config80::Sm80Config;
pub use heuristic::{Plan, SumOrder, candidates, instances, plan};
pub use launch::{GemmKernel, GemmLaunch, GemmOperands, GemmParameters};
pub use layer::GemmLayer;
pub use plans::load;
pub use plans::{GemmPlans, MAX_TOKENS};
pub use prepack::{PrepackKernel, PrepackOperands, PrepackParameters};
pub use schedule::Schedule;
pub use tuned::{TunedChoice, TunedKey, TunedPlans, TunedStore};
pub use types::{Activation, GemmTypes, OutputType};
pub use weights::{PackedWeights, WeightKind};
