//! Sequences, sampling and generation over a decoder.
//!
//! ```
//! use qqq_backend::{CpuBackend, KvDType};
//! use qqq_engine::{GenerateOptions, SamplingOptions, generate};
//! use qqq_formats::Checkpoint;
//! use qqq_model::Decoder;
//! # let tiny = qqq_testing::TinyModel::new();
//! # let model = tiny.model();
//!
//! let decoder = Decoder::load(CpuBackend::new(), &Checkpoint::open(&model)?)?;
//! let sampling = SamplingOptions { temperature: 0.8, top_k: 20, seed: 7, ..SamplingOptions::default() };
//! let options = GenerateOptions { sampling, max_new_tokens: 6, eos: vec![], kv_dtype: KvDType::F16 };
//! // Two prompts, as tokens, in one batch; the callback may stop a sequence.
//! let prompts = [vec![1, 5, 25], vec![7]];
//! let written = generate(&decoder, &prompts, &options, &mut |sequence, token| sequence == 0 || token != 3)?;
//! println!("{:?} {:?}", written[0].tokens, written[1].tokens);
//! # assert_eq!(written[0].tokens.len(), 6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod batch;
mod choose;
pub mod generate;
mod pages;
pub mod sampling;
pub mod session;
mod stop;
pub mod text;

pub use generate::{FinishReason, GenerateOptions, Generation, generate, generate_while};
pub use sampling::{BadLogit, Sampler, SamplingOptions};
pub use session::Session;
pub use stop::StopStrings;
pub use text::{Prompt, TextEvent, TextGeneration, TextRun};
