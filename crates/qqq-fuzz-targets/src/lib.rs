//! What the fuzzer calls (`fuzz/`, which needs a nightly compiler); a test replays its seeds with any compiler.
//!
//! A target takes any bytes. It panics when what reads them breaks a promise; else it says whether they were accepted, or
//! why they were refused.

mod archive;
mod chat_template;
mod config;
mod gguf;
mod safetensors;

pub use archive::archive;
pub use chat_template::chat_template;
pub use config::config;
pub use gguf::gguf;
pub use safetensors::safetensors;

/// `Err`: why the bytes were refused.
pub type Outcome = Result<(), String>;

/// A target by the name of its folder of seeds.
pub type Target = (&'static str, fn(&[u8]) -> Outcome);

/// What the fuzzer can be pointed at, and whose seeds the tests replay.
pub const TARGETS: [Target; 5] = [
    ("archive", archive),
    ("chat_template", chat_template),
    ("config", config),
    ("gguf", gguf),
    ("safetensors", safetensors),
];

/// An error's text, which must say something.
fn text(error: impl ToString) -> String {
    let text = error.to_string();
    assert!(!text.trim().is_empty(), "an error without a word");
    text
}
