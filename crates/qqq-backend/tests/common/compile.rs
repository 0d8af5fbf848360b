//! Kernels for tests that run many.

use std::sync::atomic::{AtomicUsize, Ordering};

use qqq_backend::cuda::{Arch, Compiler, Source};

/// Fills the cache of kernels on all cores.
pub fn compile(sources: &[Source], arch: Arch) {
    let (compiler, next) = (Compiler::default(), AtomicUsize::new(0));
    std::thread::scope(|s| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            s.spawn(|| {
                while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    compiler.cubin(source, arch).unwrap();
                }
            });
        }
    });
}
