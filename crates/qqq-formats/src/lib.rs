//! What is on disk: safetensors and GGUF files, `config.json`, and the integer layouts of
//! quantized checkpoints (QQQ tiles, compressed-tensors). No arithmetic beyond packing and unpacking.
//!
//! A [`Checkpoint`] is a model as it lies on disk, whatever its container: its configuration and
//! a [`TensorSource`] whose tensors carry the names that Hugging Face gives them.

pub mod cache;
pub mod checkpoint;
pub mod compressed_tensors;
pub mod config;
pub mod disk;
pub mod dtype;
pub mod error;
mod float;
pub mod foreign;
pub mod generation_config;
pub mod gguf;
pub mod input;
mod int4;
mod json;
mod keys;
pub mod layer;
pub mod linear;
pub mod lock;
mod module_pattern;
pub mod qqq;
pub mod quantization_config;
mod renamed;
pub mod safetensors;
mod scales;
mod scheme;
pub mod simulated;
pub mod size;
pub mod source;
pub mod writer;

pub use checkpoint::Checkpoint;
pub use config::ModelConfig;
pub use dtype::DType;
pub use error::{FormatError, Result};
pub use foreign::{Int4Checkpoint, Int4Layer};
pub use input::{InputFile, Inputs};
pub use int4::Int4Weight;
pub use layer::{LayerReader, WeightKind};
pub use linear::{LinearWeight, QuantizedWeight, WeightData};
pub use module_pattern::ModulePattern;
pub use quantization_config::{CheckpointFormat, CodeLayout, QuantizationConfig};
pub use scales::Scales;
pub use scheme::{Activations, CodeBits, LayerScheme};
pub use simulated::{Simulated, SimulatedMethod, SimulatedWeight};
pub use source::{TensorInfo, TensorSource};
