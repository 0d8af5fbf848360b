//! What the tests of products on the GPU share. Needs the module `compile` beside it.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr};
use qqq_cuda::gemm::{DeviceWeights, GemmPlans, GemmTypes, Plan, instances};
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
    compile(&plans.iter().map(|p| p.instance.source()).collect::<Vec<_>>(), Arch::Sm90a);
    plans
}

/// Products of one shape, with a workspace that every launch must leave as it found it.
pub struct Products<'a> {
    device: &'a Device,
    plans: GemmPlans,
    workspace: CudaSlice<u8>,
}

impl<'a> Products<'a> {
    pub fn new(device: &'a Device, plans: GemmPlans) -> Self {
        let workspace = device.stream().alloc_zeros(plans.workspace_bytes()).unwrap();
        Self { device, plans, workspace }
    }

    /// The plan for so many tokens.
    #[allow(dead_code, reason = "not every test asks")]
    pub fn plan(&self, m: usize) -> Plan {
        self.plans.plan(m).unwrap()
    }

    /// Launches on the device's stream, with the addresses of activations, token scales and output.
    pub fn launch(&self, weights: &DeviceWeights, addresses: (u64, u64, u64), m: usize, overlap: bool) {
        let stream = self.device.stream();
        let operands = weights.operands(self.device, addresses, m);
        let workspace = (self.workspace.device_ptr(stream).0, self.workspace.len());
        // SAFETY: the operands have the shape of the products; all launches are on one stream.
        unsafe { self.plans.launch(stream.cu_stream(), &operands, workspace, overlap) }.unwrap();
    }

    /// What the GPU gives, `repeats` times. There are no `scales` for 16-bit activations.
    pub fn run<X: DeviceRepr>(
        &self,
        weights: &DeviceWeights,
        (x, scales): (&[X], &[f32]),
        m: usize,
        repeats: usize,
    ) -> Vec<Vec<u16>> {
        let stream = self.device.stream();
        let x = stream.clone_htod(x).unwrap();
        let scales = (!scales.is_empty()).then(|| stream.clone_htod(scales).unwrap());
        let poison = vec![POISON; m * self.plans.shape().0];
        let mut y = stream.clone_htod(&poison).unwrap();
        let scales = scales.as_ref().map_or(0, |s| s.device_ptr(stream).0);
        let addresses = (x.device_ptr(stream).0, scales, y.device_ptr(stream).0);
        (0..repeats)
            .map(|_| {
                // On the same stream: a copy that only the host waits for may land after the launch.
                stream.memcpy_htod(&poison, &mut y).unwrap();
                self.launch(weights, addresses, m, true);
                stream.clone_dtoh(&y).unwrap()
            })
            .collect()
    }
}
