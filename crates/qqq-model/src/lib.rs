//! Decoders, tokenizers and chat templates. A model is written once ([`decoder`]), generic over
//! the backend; the quantizer and the engine drive the same definition.

pub mod block;
pub mod chat;
pub mod companions;
pub mod decoder;
pub mod error;
pub mod finite;
pub mod hub;
pub mod memory;
pub mod names;
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
pub use tensor_bytes::TensorBytes;
pub use text::{TextOptions, TextReader};
pub use tokenizer::Tokenizer;
pub use weights::{BlockNorms, BlockWeights, JoinedLinear, check_tensors};
