//! A product's shape with every kernel that its numbers of tokens need, loaded: launches neither compile nor allocate.

use cudarc::driver::sys;
use qqq_backend::pool::parallel_each_mut;

use super::launch::GemmKernel;
use super::weights::check_shape;
use super::{GemmOperands, GemmSpec, Plan, Planner};
use crate::{CudaError, Device, Result};

/// Most tokens of a product.
pub const MAX_TOKENS: usize = 65536;
/// Up to here a plan serves this many numbers of tokens, beyond eight times as many.
const STEP: usize = 8;
const FINE: usize = 1024;
/// Bytes of a workspace's counters, which come first: the same for every shape, so that no other shape's partial sums
/// are left where counters must be zero.
const COUNTER_BYTES: usize = 64 << 10;

/// The products of one shape `n x k`, for up to a number of tokens.
#[derive(Debug)]
pub struct GemmPlans {
    n: usize,
    k: usize,
    kernels: Vec<GemmKernel>,
    /// Most tokens of a range, and the kernel that serves it; ascending.
    ranges: Vec<(usize, usize)>,
    partial_bytes: usize,
}

impl GemmPlans {
    /// Plans, compiles (or takes from the cache) and loads what 1 to `most_tokens` tokens need.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for a shape that no kernel takes; when NVRTC is needed and missing, or the driver refuses a
    /// kernel.
    pub fn new(planner: &Planner, spec: &GemmSpec, most_tokens: usize) -> Result<Self> {
        check_tokens(most_tokens)?;
        // What was tuned holds up to numbers of tokens at which a range ends as well.
        let (plans, ranges) = ranges(most_tokens, |m| planner.plan(spec, m));
        Self::load(planner.device(), (spec.n, spec.k), &plans, ranges)
    }

    /// One plan for 1 to `most_tokens` tokens of `n x k` weights, whether or not it suits them.
    ///
    /// # Errors
    /// As [`new`](Self::new); also for a plan whose kernel is not for this GPU.
    pub fn of_plan(device: &Device, plan: Plan, shape: (usize, usize), most_tokens: usize) -> Result<Self> {
        check_tokens(most_tokens)?;
        Self::load(device, shape, &[plan], vec![(most_tokens, 0)])
    }

    fn load(
        device: &Device,
        (n, k): (usize, usize),
        plans: &[Plan],
        ranges: Vec<(usize, usize)>,
    ) -> Result<Self> {
        check_shape(n, k)?;
        // Those that must be compiled, several at a time.
        let mut loaded: Vec<_> = plans.iter().map(|_| None).collect();
        parallel_each_mut(&mut loaded, |i, kernel| *kernel = Some(GemmKernel::new(device, plans[i])));
        let kernels = loaded.into_iter().flatten().collect::<Result<Vec<_>>>()?;
        let (mut partial_bytes, mut counter_bytes) = (0, 0);
        for kernel in &kernels {
            let (partials, counters) = kernel.plan().most_workspace_bytes(n);
            partial_bytes = partials.max(partial_bytes);
            counter_bytes = counters.max(counter_bytes);
        }
        if counter_bytes > COUNTER_BYTES {
            return Err(CudaError::Shape(format!(
                "{n} output channels are more than the GPU kernels can count"
            )));
        }
        Ok(Self { n, k, kernels, ranges, partial_bytes })
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
        Ok(self.kernel(m)?.plan().plan())
    }

    /// Bytes of a workspace that serves any number of tokens. It must be zero before the first launch, and is fit for
    /// the next one after each; products of other shapes on the same stream may share it if it is large enough for
    /// each.
    pub fn workspace_bytes(&self) -> usize {
        COUNTER_BYTES + self.partial_bytes
    }

    /// Launches `y = x W^T + bias` on `stream`. Nothing is compiled or allocated, and nothing waits. With `overlap`,
    /// the launch may begin while the one before it on the stream still runs (programmatic dependent launch): until
    /// that one has finished, it only reads weights.
    ///
    /// # Errors
    /// [`CudaError::Shape`] when the operands' shape is not this one, an address is missing or not aligned, or the
    /// workspace is too small; [`CudaError::Driver`] when the driver refuses the launch.
    ///
    /// # Safety
    /// The operands must be device memory of the sizes given; `workspace`, an address and the bytes there, not in use
    /// by another launch at the same time; with `overlap`, no launch that may still run writes the weights.
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
        let range = self.ranges.partition_point(|(last, _)| *last < m);
        match self.ranges.get(range) {
            Some((_, kernel)) if m > 0 => Ok(&self.kernels[*kernel]),
            _ => Err(CudaError::Shape(format!(
                "a product of {m} tokens where 1 to {} were prepared",
                self.ranges.last().map_or(0, |(last, _)| *last)
            ))),
        }
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

fn check_tokens(most_tokens: usize) -> Result<()> {
    if most_tokens == 0 || most_tokens > MAX_TOKENS {
        return Err(CudaError::Shape(format!(
            "a product of {most_tokens} tokens: the GPU kernels take 1 to {MAX_TOKENS}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{CostModel, GemmTypes, WeightKind};
    use crate::{Arch, DType};

    #[test]
    fn every_number_of_tokens_has_the_plan_of_its_range() {
        let types = GemmTypes::int8(WeightKind::Channel4, DType::F16);
        let spec = GemmSpec::new(types, (4096, 11008));
        let plan_for = |m| CostModel::new(132).plan(&spec, Arch::Sm90a, m);
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
