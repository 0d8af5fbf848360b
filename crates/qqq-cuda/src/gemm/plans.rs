//! A product's shape with every kernel that its numbers of tokens need, loaded: launches neither compile nor allocate.

use std::sync::Arc;

use cudarc::driver::sys;

use super::weights::check_shape;
use super::{GemmKernel, GemmOperands, GemmTypes, Plan, SumOrder, TunedKey, plan};
use crate::device::Device;
use crate::{Arch, CudaError, Result};
use qqq_backend::cpu::pool::parallel_chunks_mut;

/// Most tokens of a product.
pub const MAX_TOKENS: usize = 65536;
/// Up to here a plan serves this many numbers of tokens, beyond eight times as many.
const STEP: usize = 8;
const FINE: usize = 1024;
/// Bytes of a workspace's counters, which come first: the same for every shape, so that no other shape's partial sums are
/// left where counters must be zero.
const COUNTER_BYTES: usize = 64 << 10;

/// The products of one shape `n x k`, for up to a number of tokens.
#[derive(Debug)]
pub struct GemmPlans {
    n: usize,
    k: usize,
    most_tokens: usize,
    kernels: Vec<GemmKernel>,
    /// Most tokens of a range, and the kernel that serves it; ascending.
    ranges: Vec<(usize, usize)>,
    partial_bytes: usize,
}

impl GemmPlans {
    /// Plans, compiles (or takes from the cache) and loads what 1 to `most_tokens` tokens need, by the kernels of `arch`:
    /// the device's own, or Ampere's, which run everywhere.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for a shape that no kernel takes; see [`GemmKernel::new`] for the others.
    pub fn new(
        device: &Arc<Device>,
        (types, arch): (GemmTypes, Arch),
        (n, k): (usize, usize),
        most_tokens: usize,
    ) -> Result<Self> {
        check_shape(n, k)?;
        if most_tokens == 0 || most_tokens > MAX_TOKENS {
            return Err(CudaError::Shape(format!(
                "a product of {most_tokens} tokens: the GPU kernels take 1 to {MAX_TOKENS}"
            )));
        }
        // What was tuned holds up to numbers of tokens at which a range ends as well.
        let key = TunedKey { arch, types, n, k };
        let plan_for = |m| {
            let tuned = device.tuned().plan(&key, m);
            tuned.unwrap_or_else(|| plan(types, arch, (m, n, k), device.multiprocessors(), SumOrder::Free))
        };
        let (plans, ranges) = ranges(most_tokens, plan_for);
        let kernels = load(device, &plans)?;
        let (mut partial_bytes, mut counter_bytes) = (0, 0);
        for kernel in &kernels {
            let (partials, counters) = kernel.most_workspace_bytes(n);
            partial_bytes = partials.max(partial_bytes);
            counter_bytes = counters.max(counter_bytes);
        }
        if counter_bytes > COUNTER_BYTES {
            return Err(CudaError::Shape(format!(
                "{n} output channels are more than the GPU kernels can count"
            )));
        }
        Ok(Self { n, k, most_tokens, kernels, ranges, partial_bytes })
    }

    /// Output and input channels.
    pub fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    /// The plan for `m` tokens.
    ///
    /// # Errors
    /// [`CudaError::Shape`] when that is 0 or more than were planned for.
    pub fn plan(&self, m: usize) -> Result<Plan> {
        Ok(self.kernel(m)?.plan)
    }

    /// Bytes of a workspace that serves any number of tokens. It must be zero before the first launch, and is fit for the
    /// next one after each; products of other shapes on the same stream may share it if it is large enough for each.
    pub fn workspace_bytes(&self) -> usize {
        COUNTER_BYTES + self.partial_bytes
    }

    /// Launches `y = x W^T` on `stream`; see [`GemmKernel::launch`] for `overlap`. Nothing is compiled or allocated, and
    /// nothing waits.
    ///
    /// # Errors
    /// [`CudaError::Shape`] when the operands' shape is not this one, or the workspace is too small;
    /// [`CudaError::Driver`].
    ///
    /// # Safety
    /// As [`GemmKernel::launch`]; `workspace` is an address and the bytes there.
    pub unsafe fn launch(
        &self,
        stream: sys::CUstream,
        o: &GemmOperands,
        (workspace, bytes): (u64, usize),
        overlap: bool,
    ) -> Result<()> {
        if (o.n, o.k) != (self.n, self.k) {
            return Err(CudaError::Shape(format!(
                "operands of {} x {} for a product of {} x {} weights",
                o.n, o.k, self.n, self.k
            )));
        }
        if bytes < self.workspace_bytes() {
            return Err(CudaError::Shape(format!(
                "a workspace of {bytes} bytes where the product of {} x {} needs {}",
                self.n,
                self.k,
                self.workspace_bytes()
            )));
        }
        let kernel = self.kernel(o.m)?;
        let parts = (workspace + COUNTER_BYTES as u64, workspace);
        // SAFETY: the workspace is as large as this kernel's; the rest is the caller's promise.
        unsafe { kernel.launch(stream, o, parts, overlap) }
    }

    fn kernel(&self, m: usize) -> Result<&GemmKernel> {
        if m == 0 || m > self.most_tokens {
            return Err(CudaError::Shape(format!(
                "a product of {m} tokens where 1 to {} were prepared",
                self.most_tokens
            )));
        }
        let range = self.ranges.partition_point(|(last, _)| *last < m);
        Ok(&self.kernels[self.ranges[range].1])
    }
}

/// The distinct plans, and for each range of tokens its last number and its plan.
fn ranges(most_tokens: usize, plan_for: impl Fn(usize) -> Plan) -> (Vec<Plan>, Vec<(usize, usize)>) {
    let (mut plans, mut ranges) = (Vec::<Plan>::new(), Vec::<(usize, usize)>::new());
    // One token is a case of its own; a range is planned for its largest number.
    let mut last = 1;
    loop {
        let plan = plan_for(last);
        let index = plans.iter().position(|p| *p == plan).unwrap_or_else(|| {
            plans.push(plan);
            plans.len() - 1
        });
        match ranges.last_mut() {
            Some(range) if range.1 == index => range.0 = last,
            _ => ranges.push((last, index)),
        }
        if last == most_tokens {
            return (plans, ranges);
        }
        let step = if last < FINE { STEP } else { STEP * 8 };
        last = (last + 1).next_multiple_of(step).min(most_tokens);
    }
}

/// Loads kernels; those that must be compiled, several at a time.
///
/// # Errors
/// See [`GemmKernel::new`].
pub fn load(device: &Device, plans: &[Plan]) -> Result<Vec<GemmKernel>> {
    let mut loaded: Vec<_> = plans.iter().map(|_| None).collect();
    parallel_chunks_mut(&mut loaded, 1, |i, kernel| kernel[0] = Some(GemmKernel::new(device, plans[i])));
    loaded.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{OutputType, WeightKind};

    #[test]
    fn every_number_of_tokens_has_the_plan_of_its_range() {
        let types = GemmTypes::int8(WeightKind::Channel4, OutputType::Float16);
        let plan_for = |m| plan(types, Arch::Sm90a, (m, 4096, 11008), 132, SumOrder::Free);
        for most in [1, 5, 8, 300, 1024, 1025, 5000, MAX_TOKENS] {
            let (plans, ranges) = ranges(most, plan_for);
            assert_eq!(ranges.last().unwrap().0, most);
            assert!(ranges.is_sorted_by(|a, b| a.0 < b.0), "{ranges:?}");
            assert_eq!(plans[ranges[0].1], plan_for(1));
            for m in [1, 8, 16, 64, 256, 1024, 4096, MAX_TOKENS] {
                if m <= most {
                    let range = ranges.partition_point(|(last, _)| *last < m);
                    assert_eq!(plans[ranges[range].1], plan_for(m), "{m} of {most}");
                }
            }
        }
    }
}
