//! Decoders, tokenizers and chat templates. A model is written once ([`decoder`]), generic over
//! the backend; the quantizer and the engine drive the same definition.
//!
//! # Example
//! A model is loaded, float or W4A8 as the checkpoint has it, and goes on with a text, always by the likeliest token:
//!
//! ```
//! use qqq_backend::{BatchPlan, CpuBackend, KvDType};
//! use qqq_formats::Checkpoint;
//! use qqq_model::{Decoder, Runner, Tokenizer};
//! # let tiny = qqq_testing::TinyModel::new();
//! # let model = tiny.model();
//!
//! let checkpoint = Checkpoint::open(&model)?;
//! let tokenizer = Tokenizer::load(&checkpoint)?;
//! let decoder = Decoder::load(CpuBackend::new(), &checkpoint)?;
//! let mut runner = Runner::for_positions(&decoder, KvDType::F16, 32)?;
//!
//! let mut text = tokenizer.encode("w1 w5 w25", true)?;
//! let mut start = 0;
//! for _ in 0..8 {
//!     // One sequence, whose keys and values lie in the first page of the pool.
//!     let mut plan = BatchPlan::default();
//!     plan.push(&text[start..], start, &[0]);
//!     runner.step(&plan)?;
//!     let (_logit, token) = runner.top_logits(&[plan.rows() - 1], 1)?[0][0];
//!     start = text.len();
//!     text.push(token);
//! }
//! println!("{}", tokenizer.decode(&text, true)?);
//! # assert_eq!(text.len(), 11);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `qqq-engine` samples, and generates for several sequences at once.

pub mod block;
pub mod chat;
pub mod companions;
pub mod decoder;
pub mod error;
pub mod finite;
pub mod hub;
pub mod layer_kinds;
pub mod memory;
pub mod names;
mod output_head;
pub mod prefill;
mod reading;
pub mod rope;
mod runner;
pub mod scores;
pub mod shards;
mod site;
mod tensor_bytes;
pub mod text;
pub mod tokenizer;
mod weights;

pub use block::Block;
pub use chat::{ChatTemplate, Message};
pub use decoder::Decoder;
pub use error::{ModelError, Result};
pub use finite::NotFinite;
pub use hub::HubOptions;
pub use layer_kinds::LayerKind;
pub use output_head::{OutputHead, final_norm_of};
pub use rope::RopeChoice;
pub use runner::Runner;
pub use site::{LinearLayer, Site, Sites};
pub use tensor_bytes::TensorBytes;
pub use text::{TextOptions, TextReader};
pub use tokenizer::Tokenizer;
pub use weights::{BlockNorms, BlockWeights, check_tensors, check_tied};
