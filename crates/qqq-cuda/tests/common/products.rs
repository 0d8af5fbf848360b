//! What the tests of products on the GPU share. Needs the module `compile` beside it.

use std::sync::Arc;

use qqq_cuda::gemm::{GemmTypes, Plan, instances};
use qqq_cuda::{Arch, Device};
use qqq_testing::Missing;

use crate::compile::compile;

/// A NaN that no conversion makes, in float16 and in bfloat16.
pub const POISON: u16 = 0x7FAB;

/// The GPU, if it is one that all kernels are for.
pub fn device() -> Result<Arc<Device>, Missing> {
    match Device::new(0).and_then(|d| d.arch().map(|arch| (d, arch))) {
        Ok((device, Arch::Sm90a)) => Ok(device),
        Ok((device, _)) => Err(Missing::Machine(format!("{} is no Hopper GPU", device.name()))),
        Err(error) => Err(Missing::Machine(error.to_string())),
    }
}

/// Every plan of both kernels, which the cache holds afterwards. For slow tools such as compute-sanitizer,
/// `QQQ_TEST_EVERY` says every how manieth: others for other types.
pub fn plans(types: GemmTypes) -> Vec<Plan> {
    let every = std::env::var("QQQ_TEST_EVERY").map_or(1, |n| n.parse().expect("QQQ_TEST_EVERY is a number"));
    let first = format!("{types:?}").bytes().map(usize::from).sum::<usize>() % every;
    let plans: Vec<_> = [Arch::Sm90a, Arch::Sm80]
        .into_iter()
        .flat_map(|arch| instances(types, arch))
        .flat_map(Plan::all)
        .skip(first)
        .step_by(every)
        .collect();
    compile(&plans.iter().map(|p| p.config.source()).collect::<Vec<_>>(), Arch::Sm90a);
    plans
}
