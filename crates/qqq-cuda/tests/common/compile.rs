//! Kernels for tests that run many.

use qqq_backend::pool::parallel_for;
use qqq_cuda::{Arch, Compiler, Source};

/// Fills the cache of kernels on all cores.
pub fn compile(sources: &[Source], arch: Arch) {
    let compiler = Compiler::default();
    parallel_for(sources.len(), |i| {
        compiler.cubin(&sources[i], arch).unwrap();
    });
}
