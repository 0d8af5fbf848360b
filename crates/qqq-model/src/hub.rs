//! NOTE (lead): the workspace now uses hf-hub 0.5 (sync `ureq` API), not 1.x: it needs 67 crates instead of 302.
//! Finding a model: a directory, a GGUF file, or an id on the Hugging Face hub.

use std::path::PathBuf;

use crate::Result;

/// Where and how to look on the hub.
#[derive(Clone, Debug, Default)]
pub struct HubOptions {
    /// Branch, tag or commit.
    pub revision: Option<String>,
    /// Access token; else `HF_TOKEN` or the token file of the hub's own tools.
    pub token: Option<String>,
    /// Use what is in the cache only.
    pub offline: bool,
}

/// Resolves `spec` to a local directory or GGUF file: an existing path, or `owner/name` on the hub
/// (`owner/name:file.gguf` for one GGUF file of a repository). Downloads go to the hub's cache.
pub fn resolve(_spec: &str, _options: &HubOptions) -> Result<PathBuf> {
    unimplemented!()
}

/// Downloads the text-bearing files of a hub data set (`owner/name`, optionally
/// `owner/name:config/split`), and returns their local paths.
pub fn dataset_files(_spec: &str, _options: &HubOptions) -> Result<Vec<PathBuf>> {
    unimplemented!()
}
