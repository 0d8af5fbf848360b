//! What the tests of products on the GPU share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use qqq_backend::cuda::gemm::{GemmTypes, Plan, instances};
use qqq_backend::cuda::{Arch, Compiler, Device};

/// A NaN that no conversion makes, in float16 and in bfloat16.
pub const POISON: u16 = 0x7FAB;

/// The GPU, if there is one that the kernels are for.
pub fn device() -> Option<Arc<Device>> {
    match Device::new(0).and_then(|d| d.arch().map(|arch| (d, arch))) {
        Ok((device, Arch::Sm90a)) => return Some(device),
        Ok((device, _)) => eprintln!("skipped: {} is no Hopper GPU", device.name()),
        Err(error) => eprintln!("skipped: {error}"),
    }
    None
}

/// A cheap deterministic sequence (splitmix64).
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An integer in `low..=high`.
    pub fn int(&mut self, low: i32, high: i32) -> i32 {
        low + (self.next() % (high - low + 1) as u64) as i32
    }
}

/// Every plan of both kernels, which the cache holds afterwards: they are compiled on all cores. For slow tools such as
/// compute-sanitizer, `QQQ_TEST_EVERY` says every how manieth.
pub fn plans(types: GemmTypes) -> Vec<Plan> {
    let every = std::env::var("QQQ_TEST_EVERY").map_or(1, |n| n.parse().expect("QQQ_TEST_EVERY is a number"));
    let plans: Vec<_> = [Arch::Sm90a, Arch::Sm80]
        .into_iter()
        .flat_map(|arch| instances(types, arch))
        .flat_map(|config| [false, true].map(|split| Plan { config, split }))
        .filter(|p| !p.split || p.config.ranks() == 1)
        .step_by(every)
        .collect();
    let (compiler, next) = (Compiler::default(), AtomicUsize::new(0));
    std::thread::scope(|s| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            s.spawn(|| {
                while let Some(plan) = plans.get(next.fetch_add(1, Ordering::Relaxed)) {
                    compiler.cubin(&plan.config.source(), Arch::Sm90a).unwrap();
                }
            });
        }
    });
    plans
}
