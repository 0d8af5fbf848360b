//! GGUF files.

/// An open GGUF file.
pub struct GgufFile {}
