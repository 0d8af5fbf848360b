//! Matrix products on NVIDIA GPUs: `Y = (X W^T)`. W4A8 and W8A8 have int8 activations (one float32 scale a token),
//! 4-bit weights (per channel, or in groups) or int8 weights, int32 accumulation, and float16 or bfloat16 output. W4A16
//! has float16 or bfloat16 activations, 4-bit weights, float32 accumulation, and output of the activations' type.
//!
//! Integer sums are exact, so a result of int8 activations depends neither on the tile shape, nor on how the work is
//! split, nor on the batch: every launch is deterministic and batch-invariant. Sums of 16-bit activations are added in
//! an order that the plan and the shape determine, so that a launch is deterministic; with [`SumOrder::Fixed`] they are
//! batch-invariant too.

mod cost;
mod device_weights;
mod instances;
mod launch;
mod pack16;
mod pack8;
mod plan;
mod planner;
mod plans;
pub mod prepack;
mod schedule;
mod sm80_config;
mod sm90_config;
mod tile;
pub mod trials;
pub mod tuned;
mod types;
mod weight_kind;
mod weights;

pub use cost::CostModel;
pub use device_weights::DeviceWeights;
pub use instances::{Instance, instances};
pub use launch::{GemmLaunch, GemmOperands, GemmParameters};
pub use plan::{Plan, candidates};
pub use planner::Planner;
pub use plans::{GemmPlans, MAX_TOKENS};
pub use prepack::{PrepackKernel, PrepackOperands, PrepackParameters};
pub use schedule::Schedule;
pub use sm80_config::{Sm80Config, Sm80Shape};
pub use sm90_config::Sm90Config;
pub use tile::Tile;
pub use tuned::{TunedChoice, TunedKey, TunedPlans, TunedStore};
pub use types::{GemmSpec, GemmTypes, SumOrder};
pub use weight_kind::WeightKind;
pub use weights::{PackedWeights, check_shape};
