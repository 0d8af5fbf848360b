//! Kernels as machine code: from the cache, or compiled.

use std::sync::OnceLock;

use super::cache::Cache;
use super::{Arch, Nvrtc, Resources, Result, Source};

/// Looks a kernel up in the cache on disk and compiles it when it is not there. NVRTC is looked for when it is needed.
#[derive(Debug)]
pub struct Compiler {
    cache: Cache,
    nvrtc: OnceLock<Nvrtc>,
}

impl Default for Compiler {
    /// With the user's cache.
    fn default() -> Self {
        Self::new(Cache::of_user())
    }
}

impl Compiler {
    /// With this cache.
    pub fn new(cache: Cache) -> Self {
        Self { cache, nvrtc: OnceLock::new() }
    }

    /// The machine code of a source.
    ///
    /// # Errors
    /// When it must be compiled and NVRTC is missing, or the compilation fails.
    pub fn cubin(&self, source: &Source, arch: Arch) -> Result<Vec<u8>> {
        let key = source.key(arch);
        if let Some(cubin) = self.cache.get(&key) {
            return Ok(cubin);
        }
        let compiled = self.nvrtc()?.compile(source, arch)?;
        tracing::debug!("compiled {} for {arch} in {:.2} s", source.name, compiled.seconds);
        let resources = Resources::from_log(&compiled.log);
        if resources.warnings.is_empty() {
            self.cache.put(&key, &compiled.cubin);
        } else {
            // A newer compiler does better: this one's code is not kept.
            tracing::warn!("{} for {arch}: {}", source.name, resources.warnings.join("; "));
        }
        Ok(compiled.cubin)
    }

    fn nvrtc(&self) -> Result<&Nvrtc> {
        if let Some(n) = self.nvrtc.get() {
            return Ok(n);
        }
        let found = Nvrtc::find()?;
        Ok(self.nvrtc.get_or_init(|| found))
    }
}
