//! Decoders, tokenizers and chat templates. A model is written once ([`decoder`]), generic over
//! the backend; the quantizer and the engine drive the same definition.
//!
//! # Example
//! A model is loaded, float or W4A8 as the checkpoint has it, and goes on with a text, always by the likeliest token:
//!
//! ```
//! use qqq_backend::{Backend, CpuBackend, KvDType, Span};
//! use qqq_formats::Checkpoint;
//! use qqq_model::{Decoder, Tokenizer};
//! # let tiny = qqq_testing::TinyModel::new();
//! # let model = tiny.model();
//!
//! let checkpoint = Checkpoint::open(&model)?;
//! let tokenizer = Tokenizer::load(&checkpoint)?;
//! let decoder = Decoder::load(CpuBackend::new(), &checkpoint)?;
//! let mut kv = decoder.kv_cache(KvDType::F16);
//! let slot = decoder.backend.kv_add_slot(&mut kv);
//!
//! let mut text = tokenizer.encode("w1 w5 w25", true)?;
//! let mut start = 0;
//! for _ in 0..8 {
//!     let new = &text[start..];
//!     let hidden = decoder.hidden(new, &[Span { slot, start, len: new.len() }], &mut kv)?;
//!     let last = decoder.backend.select_rows(&hidden, &[new.len() - 1]);
//!     let (_logit, token) = decoder.top_logits(&last, 1)[0][0];
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
pub mod prefill;
mod reading;
pub mod rope;
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
pub use tensor_bytes::TensorBytes;
pub use text::{TextOptions, TextReader};
pub use tokenizer::Tokenizer;
pub use weights::{BlockNorms, BlockWeights, JoinedLinear, check_tensors};
