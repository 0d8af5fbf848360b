//! Measuring matrix products.
//!
//! Times are medians of short bursts of launches in a CUDA graph, after a pause each: a long run would measure how far
//! the GPU's power limit lowers the clock. Weights are rotated among copies that together exceed the L2 cache several
//! times, so that they come from memory, as they do in a model. All data is random. Where plans are compared, their bursts
//! take turns, so that what drifts meets all of them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::{CudaSlice, DevicePtr};
use qqq_backend::pool::parallel_each_mut;
use qqq_cuda::timing::{Burst, rotating_copies};
use qqq_cuda::{
    Arch, DType, Device, KernelType, Result,
    error::driver,
    gemm::{
        CostModel, DeviceWeights, GemmPlans, GemmSpec, GemmTypes, MAX_TOKENS, PackedWeights, Plan, Planner,
        SumOrder, TunedChoice, TunedStore, WeightKind, candidates, tuned,
    },
};

use super::timing;
use super::{ceilings::Ceilings, cublas::Cublas, data, problem::Problem};

/// Where plans come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choosing {
    /// What was tuned earlier or is tried now, else the heuristic: as in a model.
    Usual,
    /// The heuristic alone.
    Heuristic,
    /// All candidates are timed; what is faster than the heuristic's choice, twice, is kept on disk if there is a
    /// folder for it.
    Tune,
    /// Every candidate is measured that may be the fastest by a generous reading of the estimate; what is chosen is the
    /// heuristic's where only the `estimated` choice is asked for, else the usual one.
    Each { estimated: bool },
}

/// What is measured of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// The time of launches that may overlap.
    Time,
    /// Also that of launches that do not, what a launch costs the host, and cuBLAS.
    All,
}

/// A measured product.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// Tokens, the rows of the activations.
    pub m: usize,
    /// The instance that ran.
    pub plan: Plan,
    /// Whether it is what a model would run.
    pub chosen: bool,
    /// Whether tuning chose it, not the heuristic.
    pub tuned: bool,
    /// Microseconds of a launch that may overlap the end of the one before.
    pub microseconds: f64,
    /// Microseconds where each launch waits for the one before. With [`Extent::All`].
    pub serial_microseconds: Option<f64>,
    /// 10^12 operations a second.
    pub tops: f64,
    /// GB/s, each operand counted once.
    pub gb_per_second: f64,
    /// The least time that the measured ceilings allow, as a part of the time.
    pub of_ceiling: Option<f64>,
    /// Microseconds that a launch takes the host. With [`Extent::All`].
    pub host_microseconds: Option<f64>,
    /// Milliseconds of getting the kernel: reading or compiling it, loading, room for partial sums. Later ones with the
    /// same kernel find it loaded.
    pub prepare_milliseconds: f64,
    /// Microseconds of cuBLAS in float16, where it is installed. With [`Extent::All`].
    pub cublas_microseconds: Option<f64>,
}

/// Products with weights of one shape.
pub struct GemmBench {
    device: Arc<Device>,
    ceilings: Option<Ceilings>,
    shape: (usize, usize),
    extent: Extent,
    cublas: Option<Cublas>,
}

/// [`Choosing::Each`] leaves out plans that are estimated to take more than this many times the least.
const WORTH_MEASURING: f64 = 1.6;

impl GemmBench {
    /// For weights of shape `n x k`.
    ///
    /// # Errors
    /// See [`CudaError`](qqq_cuda::CudaError).
    pub fn new(
        device: &Arc<Device>,
        ceilings: Option<Ceilings>,
        (n, k): (usize, usize),
        extent: Extent,
    ) -> Result<Self> {
        let copies = rotating_copies(n * k * 2, 16);
        let cublas = match extent {
            Extent::Time => None,
            Extent::All => Cublas::new(device.stream(), n, k, copies)?,
        };
        Ok(Self { device: device.clone(), ceilings, shape: (n, k), extent, cublas })
    }

    /// Whether cuBLAS is there and wanted, to compare with.
    pub fn has_cublas(&self) -> bool {
        self.cublas.is_some()
    }

    /// Checks and times the product for each number of tokens, by the kernels of `arch` (the device's own or Ampere's).
    /// Ceilings of 16-bit activations are half those of int8. `on_result` is told each result, and says whether to go
    /// on.
    ///
    /// # Errors
    /// Also when an output differs from what the host computes, for operands whose types no kernel takes together, and
    /// when what was tuned cannot be kept.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &self,
        weights: WeightKind,
        (activation, output): (DType, DType),
        arch: Arch,
        tokens: &[usize],
        choosing: Choosing,
        on_result: &mut dyn FnMut(Measurement) -> ControlFlow<()>,
    ) -> Result<()> {
        let (n, k) = self.shape;
        let weight = match weights {
            WeightKind::Channel4 | WeightKind::Channel8 => data::weight(1, n, k, None),
            WeightKind::GroupInteger4(g) => data::weight(1, n, k, Some((g, true))),
            WeightKind::GroupHalf4(g) => data::weight(1, n, k, Some((g, false))),
        };
        let (packed, int8) = if weights == WeightKind::Channel8 {
            let codes = data::normal_integers(2, n * k, 127);
            (PackedWeights::from_int8(&codes, weight.channel_scales(), k)?, codes)
        } else {
            (PackedWeights::for_activation(&weight, activation)?, weight.int8_weights())
        };
        let types = GemmTypes::new(packed.kind, activation, output)?;
        let copies = rotating_copies(packed.weight_tiles.len(), 32);
        let copies = (0..copies)
            .map(|_| DeviceWeights::new(&self.device, &packed, None))
            .collect::<Result<Vec<_>>>()?;
        let planner = Planner::new(&self.device)?.with_arch(arch);
        let spec = GemmSpec::new(types, (n, k));
        if matches!(choosing, Choosing::Usual | Choosing::Each { estimated: false }) {
            planner.try_plans(&spec, MAX_TOKENS)?;
        }
        let store = TunedStore::of_device(&self.device);
        for &m in tokens {
            let mut problem = Problem::new(&self.device, activation, m, n, k)?;
            let cublas = self.cublas.as_ref().map(|c| c.microseconds(m)).transpose()?;
            let mut candidates = candidates(types, arch, m, SumOrder::Free);
            candidates.retain(|p| p.instance.tile().takes(k) && p.is_distinct((m, n, k), self.device.sms()));
            if matches!(choosing, Choosing::Tune | Choosing::Each { .. }) {
                // On all cores: one after the other they take a second each. The device keeps what it has loaded.
                let mut loaded: Vec<_> = candidates.iter().map(|_| Ok(())).collect();
                parallel_each_mut(&mut loaded, |i, loaded| {
                    *loaded = GemmPlans::of_plan(&self.device, candidates[i], (n, k), m).map(drop);
                });
                loaded.into_iter().collect::<Result<()>>()?;
            }
            let estimated = planner.estimated(&spec, m);
            let found = match choosing {
                Choosing::Tune => Some(self.tune(&copies, &problem, estimated, &candidates)?),
                _ => None,
            };
            let better = match (choosing, found) {
                (Choosing::Usual | Choosing::Each { estimated: false }, _) => planner.tuned(&spec, m),
                (_, found) => found.and_then(|f| f.plan),
            };
            let chosen = better.unwrap_or(estimated);
            let plans = match choosing {
                Choosing::Each { .. } => self.worth_measuring(candidates, m),
                _ => vec![chosen],
            };
            let mut products = Vec::with_capacity(plans.len());
            let mut prepared = Vec::with_capacity(plans.len());
            for &plan in &plans {
                let begin = Instant::now();
                let product = Product::new(&self.device, plan, (n, k), m)?;
                prepared.push(begin.elapsed().as_secs_f64() * 1e3);
                problem.check(&self.device, output, &weight, &int8, |addresses| {
                    product.launch(&copies[0], addresses, false)
                })?;
                products.push(product);
            }
            if let (Some(found), Some(_)) = (found, store.path()) {
                store.put(&planner.tuned_key(&spec), m, &found)?;
            }
            let times = self.times(&products, &copies, &problem)?;
            for (((plan, product), prepare_milliseconds), microseconds) in
                plans.into_iter().zip(&products).zip(prepared).zip(times)
            {
                let (serial_microseconds, host_microseconds) = match self.extent {
                    Extent::Time => (None, None),
                    Extent::All => (
                        Some(timing::in_turn(&[self.burst(product, &copies, &problem, false)?])?[0]),
                        Some(self.launch_cost(product, &copies, &problem)?),
                    ),
                };
                let operations = 2.0 * m as f64 * n as f64 * k as f64;
                let bytes = (packed.weight_tiles.len() + m * k * activation.bytes() + 2 * m * n) as f64;
                let rate = activation.bytes() as f64;
                let going_on = on_result(Measurement {
                    m,
                    plan,
                    chosen: plan == chosen,
                    tuned: better == Some(plan),
                    microseconds,
                    serial_microseconds,
                    tops: operations / microseconds / 1e6,
                    gb_per_second: bytes / microseconds / 1e3,
                    of_ceiling: self
                        .ceilings
                        .map(|c| c.floor_microseconds(rate * operations, bytes) / microseconds),
                    host_microseconds,
                    prepare_milliseconds,
                    cublas_microseconds: cublas,
                });
                if going_on.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The fastest of the candidates, if it is worth keeping instead of the usual one.
    fn tune(
        &self,
        copies: &[DeviceWeights],
        problem: &Problem,
        usual: Plan,
        candidates: &[Plan],
    ) -> Result<TunedChoice> {
        let time = |plans: &[Plan]| {
            let products = plans
                .iter()
                .map(|plan| Product::new(&self.device, *plan, self.shape, problem.m))
                .collect::<Result<Vec<_>>>()?;
            self.times(&products, copies, problem)
        };
        let mut plans = vec![usual];
        plans.extend(candidates.iter().filter(|plan| **plan != usual));
        let times = time(&plans)?;
        let usual_time = times[0];
        let best = times
            .into_iter()
            .zip(plans)
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .expect("the usual plan is among them");
        // The fastest of many was also lucky: it must win again.
        let worth = tuned::is_worth_keeping(best.0, usual_time) && {
            let again = time(&[best.1, usual])?;
            tuned::is_worth_keeping(again[0], again[1])
        };
        Ok(TunedChoice {
            plan: worth.then_some(best.1),
            microseconds: best.0,
            heuristic_microseconds: usual_time,
        })
    }

    /// Microseconds that a launch takes the host while the device is busy: the median of a few rounds.
    fn launch_cost(&self, product: &Product, copies: &[DeviceWeights], problem: &Problem) -> Result<f64> {
        // Fewer than the driver queues before it waits.
        const LAUNCHES: usize = 200;
        const ROUNDS: usize = 5;
        let stream = self.device.stream();
        let operands = problem.addresses(&self.device);
        let mut rounds = [0.0; ROUNDS];
        for round in &mut rounds {
            stream.synchronize().map_err(driver("timing launches"))?;
            let begin = Instant::now();
            for i in 0..LAUNCHES {
                product.launch(&copies[i % copies.len()], operands, true)?;
            }
            *round = begin.elapsed().as_secs_f64() * 1e6 / LAUNCHES as f64;
        }
        stream.synchronize().map_err(driver("timing launches"))?;
        rounds.sort_by(f64::total_cmp);
        Ok(rounds[ROUNDS / 2])
    }

    /// The candidates that the estimate doesn't find much slower than the one that is fastest by it.
    fn worth_measuring(&self, mut candidates: Vec<Plan>, m: usize) -> Vec<Plan> {
        let (n, k) = self.shape;
        let model = CostModel::new(self.device.sms());
        let cycles = |plan: &Plan| model.cycles(plan, (m, n, k));
        let least = candidates.iter().map(cycles).fold(f64::INFINITY, f64::min);
        candidates.retain(|plan| cycles(plan) <= least * WORTH_MEASURING);
        candidates
    }

    /// Microseconds of launches that may overlap; several products are measured in turn.
    fn times(&self, products: &[Product], copies: &[DeviceWeights], problem: &Problem) -> Result<Vec<f64>> {
        let bursts = products
            .iter()
            .map(|product| self.burst(product, copies, problem, true))
            .collect::<Result<Vec<_>>>()?;
        timing::in_turn(&bursts)
    }

    fn burst(
        &self,
        product: &Product,
        copies: &[DeviceWeights],
        problem: &Problem,
        overlap: bool,
    ) -> Result<Burst> {
        let operands = problem.addresses(&self.device);
        timing::burst(self.device.stream(), copies.len(), |i| {
            product.launch(&copies[i % copies.len()], operands, overlap)
        })
    }
}

/// A plan for a number of tokens, ready to be launched.
struct Product<'a> {
    device: &'a Device,
    plans: GemmPlans,
    workspace: CudaSlice<u8>,
    m: usize,
}

impl<'a> Product<'a> {
    fn new(device: &'a Device, plan: Plan, shape: (usize, usize), m: usize) -> Result<Self> {
        let plans = GemmPlans::of_plan(device, plan, shape, m)?;
        let failed = || driver("allocating the workspace of a product");
        let workspace = device.stream().alloc_zeros(plans.workspace_bytes()).map_err(failed())?;
        device.stream().synchronize().map_err(failed())?;
        Ok(Self { device, plans, workspace, m })
    }

    /// Launches it on the device's stream, with the addresses of activations, token scales and output.
    fn launch(&self, weights: &DeviceWeights, addresses: (u64, u64, u64), overlap: bool) -> Result<()> {
        let stream = self.device.stream();
        let operands = weights.operands(self.device, addresses, self.m);
        let workspace = (self.workspace.device_ptr(stream).0, self.workspace.len());
        // SAFETY: the operands have the shape that was planned; all launches are on one stream, on which the memory is
        // freed.
        unsafe { self.plans.launch(stream.cu_stream(), &operands, workspace, overlap) }
    }
}
