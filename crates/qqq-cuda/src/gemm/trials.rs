//! Trials: of the plans that the cost model finds best, a device says itself which is fastest.
//!
//! The estimate errs by a tenth for some shapes, and other constants only move the error to other shapes. Among the eight plans
//! that it finds best, however, there is nearly always one within a few percent of the fastest: these are launched on the
//! device, for numbers of tokens up to [`MOST_TOKENS`], when a model's layers come with a shape for the first time. What is
//! found is kept in the [`TunedStore`](super::TunedStore), so that it happens once on a model of GPU.
//!
//! Only of products with int8 activations: their results depend on no plan.

use cudarc::driver::{CudaSlice, DevicePtr};
use qqq_backend::pool::parallel_each_mut;

use super::tuned::is_worth_keeping;
use super::weight_kind::WEIGHT_TILE_ROWS;
use super::{CostModel, GemmOperands, GemmPlans, GemmSpec, Plan, Planner, PrepackKernel, TunedChoice};
use crate::error::driver;
use crate::timing::{Burst, rotating_copies, rough_microseconds};
use crate::{Arch, DType, Device, KernelType, Result};

/// Beyond, the estimate stands: the tiles are the largest, and their waves many.
pub const MOST_TOKENS: usize = 2048;
/// Products of fewer weights take hardly longer than the launch of any plan.
const FEWEST_WEIGHTS: usize = 1 << 20;
/// Plans that are tried for a number of tokens,
const PLANS: usize = 8;
/// as far as the estimate finds them at most so many times slower than the best.
const SLOWEST: f64 = 1.6;
/// Rounds of bursts of launches, in which plans take turns; the least counts, as others only ever make a launch slower.
const ROUNDS: usize = 3;
/// Microseconds of a burst: launches overlap, and its ends must not count.
const BURST_MICROSECONDS: f64 = 400.0;
/// Plans so many times slower than the best so far are given up: by launches that the host may hold up, and by a burst.
const GIVEN_UP: (f64, f64) = (1.25, 1.1);
/// Copies of the weights at most.
const MOST_COPIES: usize = 32;
/// Random bytes of the host, which fill the operands over and over.
const RANDOM: usize = 4 << 20;

/// The numbers of tokens that are tried: each serves those below it, down to the one before. They lie where tiles and their
/// rounds end.
pub fn tokens() -> impl Iterator<Item = usize> {
    let steps = [(8, 128), (16, 256), (32, 512), (64, 1024), (256, MOST_TOKENS)];
    let mut last = 0;
    let steps = steps.into_iter().flat_map(move |(step, end)| {
        let begin = last + step;
        last = end;
        (begin..=end).step_by(step)
    });
    std::iter::once(1).chain(steps)
}

/// Whether plans of a product are tried at all.
pub fn are_tried(spec: &GemmSpec) -> bool {
    spec.types.activation() == DType::I8 && spec.n * spec.k >= FEWEST_WEIGHTS
}

/// The plans that are tried for `m` tokens, best estimate first.
pub fn worth_trying(model: &CostModel, spec: &GemmSpec, arch: Arch, m: usize) -> Vec<Plan> {
    let mut plans: Vec<_> = model.estimates(spec, arch, m).collect();
    plans.sort_by(|a, b| a.0.total_cmp(&b.0));
    let most = plans.first().map_or(0.0, |(least, _)| least * SLOWEST);
    plans.into_iter().take(PLANS).take_while(|(cycles, _)| *cycles <= most).map(|(_, plan)| plan).collect()
}

/// What is chosen for a product whose plans took so long; the first is the estimate's.
fn choice(plans: &[Plan], microseconds: &[f64]) -> TunedChoice {
    let best = (0..plans.len()).min_by(|a, b| microseconds[*a].total_cmp(&microseconds[*b]));
    let best = best.expect("the estimate's plan is among them");
    TunedChoice {
        plan: is_worth_keeping(microseconds[best], microseconds[0]).then_some(plans[best]),
        microseconds: microseconds[best],
        heuristic_microseconds: microseconds[0],
    }
}

/// What was found for numbers of tokens.
#[derive(Debug)]
pub(super) struct Trials {
    pub(super) choices: Vec<(usize, TunedChoice)>,
    /// Whether none was left out.
    pub(super) complete: bool,
}

/// Tries the plans of a product for those numbers of tokens that are `wanted`. Plans whose kernels cannot be loaded are left
/// out. `None` where there is no memory for it.
///
/// # Errors
/// What the driver refuses, except for want of memory.
pub(super) fn run(planner: &Planner, spec: &GemmSpec, wanted: &[usize]) -> Result<Option<Trials>> {
    let device = planner.device();
    let model = CostModel::new(device.sms());
    let lists: Vec<_> = wanted.iter().map(|m| worth_trying(&model, spec, planner.arch(), *m)).collect();
    let most = wanted.iter().copied().max().unwrap_or(1);
    let mut distinct: Vec<Plan> = Vec::new();
    for plan in lists.iter().flatten() {
        if !distinct.contains(plan) {
            distinct.push(*plan);
        }
    }
    // Those that must be compiled, several at a time.
    let mut loaded: Vec<_> = distinct.iter().map(|_| None).collect();
    parallel_each_mut(&mut loaded, |i, product| {
        match GemmPlans::of_plan(device, distinct[i], (spec.n, spec.k), most) {
            Ok(loaded) => *product = Some(loaded),
            Err(error) => tracing::debug!("{} is not tried: {error}", distinct[i].instance.source().name),
        }
    });
    let product = |plan: &Plan| {
        let index = distinct.iter().position(|p| p == plan)?;
        loaded[index].as_ref()
    };

    let workspace_bytes = loaded.iter().flatten().map(GemmPlans::workspace_bytes).max().unwrap_or(0);
    let Some(operands) = Operands::new(device, spec, most, workspace_bytes)? else { return Ok(None) };
    let mut choices = Vec::with_capacity(wanted.len());
    for (&m, list) in wanted.iter().zip(&lists) {
        let (plans, products): (Vec<_>, Vec<_>) =
            list.iter().filter_map(|plan| Some((*plan, product(plan)?))).unzip();
        // Without the kernel of the estimate's choice there is nothing to compare with; who needs it is told.
        if plans.first() == list.first() {
            choices.push((m, choice(&plans, &operands.times(&products, m)?)));
        }
    }
    let complete = loaded.iter().all(Option::is_some);
    Ok(Some(Trials { choices, complete }))
}

/// Operands of products of up to some number of tokens: all of it random.
struct Operands<'a> {
    device: &'a Device,
    spec: GemmSpec,
    weights: Vec<CudaSlice<u8>>,
    x: CudaSlice<u8>,
    y: CudaSlice<u8>,
    /// Token scales and channel scales.
    scales: (CudaSlice<f32>, CudaSlice<f32>),
    workspace: CudaSlice<u8>,
}

impl<'a> Operands<'a> {
    /// `None` where that would take more than half of the memory that is left.
    fn new(device: &'a Device, spec: &GemmSpec, most: usize, workspace_bytes: usize) -> Result<Option<Self>> {
        let (n, k) = (spec.n, spec.k);
        let weight_bytes = PrepackKernel::weight_bytes(spec.types.weights(), n, k);
        let copies = rotating_copies(weight_bytes, MOST_COPIES);
        let (x_bytes, y_bytes) = (most * k, most * n * spec.types.output().bytes());
        let all = copies * weight_bytes + x_bytes + y_bytes + workspace_bytes;
        if all > device.available_memory()? / 2 {
            return Ok(None);
        }
        let failed = || driver("allocating operands for trials");
        let stream = device.stream();
        let random = random_bytes();
        let filled = |bytes: usize| -> Result<CudaSlice<u8>> {
            // SAFETY: all of it is written below.
            let mut slice = unsafe { stream.alloc::<u8>(bytes) }.map_err(failed())?;
            for begin in (0..bytes).step_by(RANDOM) {
                let end = bytes.min(begin + RANDOM);
                let mut part = slice.slice_mut(begin..end);
                stream.memcpy_htod(&random[..end - begin], &mut part).map_err(failed())?;
            }
            Ok(slice)
        };
        let scales = |count: usize| stream.clone_htod(&vec![0.01f32; count]).map_err(failed());
        let made = Self {
            device,
            spec: *spec,
            weights: (0..copies).map(|_| filled(weight_bytes)).collect::<Result<_>>()?,
            x: filled(x_bytes)?,
            y: filled(y_bytes)?,
            scales: (scales(most)?, scales(n.next_multiple_of(WEIGHT_TILE_ROWS))?),
            workspace: stream.alloc_zeros(workspace_bytes.max(1)).map_err(failed())?,
        };
        stream.synchronize().map_err(failed())?;
        Ok(Some(made))
    }

    /// Microseconds of a launch of `m` tokens, of each of the products: launches overlap as in a model.
    fn times(&self, products: &[&GemmPlans], m: usize) -> Result<Vec<f64>> {
        let stream = self.device.stream();
        let address = |slice: &CudaSlice<u8>| slice.device_ptr(stream).0;
        let operands = |i: usize| GemmOperands {
            x: address(&self.x),
            token_scale: self.scales.0.device_ptr(stream).0,
            y: address(&self.y),
            weights: address(&self.weights[i % self.weights.len()]),
            channel_scale: self.scales.1.device_ptr(stream).0,
            bias: 0,
            m,
            n: self.spec.n,
            k: self.spec.k,
        };
        let workspace = (address(&self.workspace), self.workspace.len());
        let launch = |product: &GemmPlans, i: usize| {
            // SAFETY: the operands have the product's shape, for as many tokens; all launches are on one stream, on which the
            // memory is freed.
            unsafe { product.launch(stream.cu_stream(), &operands(i), workspace, true) }
        };
        let period = self.weights.len();
        let mut times = vec![f64::INFINITY; products.len()];
        for (time, product) in times.iter_mut().zip(products) {
            *time = rough_microseconds(stream, period, |i| launch(product, i))?;
        }
        let within = |times: &[f64], factor: f64| -> Vec<usize> {
            let most = factor * times.iter().copied().fold(f64::INFINITY, f64::min);
            // The estimate's choice is what others are compared with.
            (0..times.len()).filter(|i| *i == 0 || times[*i] <= most).collect()
        };
        let mut bursts = Vec::new();
        for i in within(&times, GIVEN_UP.0) {
            let length = (BURST_MICROSECONDS, times[i]);
            bursts.push((i, Burst::new(stream, period, length, |launched| launch(products[i], launched))?));
        }
        times.fill(f64::INFINITY);
        for _ in 0..ROUNDS {
            for (i, burst) in &bursts {
                times[*i] = times[*i].min(burst.microseconds()?);
            }
            let left = within(&times, GIVEN_UP.1);
            bursts.retain(|(i, _)| left.contains(i));
        }
        Ok(times)
    }
}

/// Bytes of a generator of random numbers (splitmix64).
fn random_bytes() -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut bytes = Vec::with_capacity(RANDOM);
    while bytes.len() < RANDOM {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bytes.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::tuned::bucket;
    use crate::gemm::{GemmTypes, WeightKind};

    const SPEC: GemmSpec = GemmSpec::new(GemmTypes::int8(WeightKind::Channel4, DType::F16), (4096, 11008));

    #[test]
    fn numbers_of_tokens_ascend_to_the_last_and_leave_no_bucket_out() {
        let tokens: Vec<_> = tokens().collect();
        assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
        assert_eq!((tokens[0], tokens[1], *tokens.last().unwrap()), (1, 8, MOST_TOKENS));
        // So the next number that was tried is always in the bucket.
        for m in 1..=MOST_TOKENS {
            let next = tokens.iter().find(|t| **t >= m).unwrap();
            assert_eq!(bucket(*next), bucket(m), "{m}");
        }
    }

    #[test]
    fn the_estimates_choice_is_the_first_that_is_tried() {
        let model = CostModel::new(132);
        for arch in Arch::ALL {
            for m in tokens() {
                let plans = worth_trying(&model, &SPEC, arch, m);
                assert_eq!(plans[0], model.plan(&SPEC, arch, m), "{m}");
                assert!(plans.len() <= PLANS);
                let cycles: Vec<_> = plans.iter().map(|p| model.cycles(p, (m, SPEC.n, SPEC.k))).collect();
                assert!(cycles.is_sorted() && cycles.last().unwrap() <= &(cycles[0] * SLOWEST));
            }
        }
    }

    #[test]
    fn the_fastest_is_chosen_where_it_is_clearly_so() {
        let plans = worth_trying(&CostModel::new(132), &SPEC, Arch::Sm90a, 64);
        let times = |times: &[f64]| choice(&plans[..times.len()], times);
        let better = times(&[10.0, 9.0, 8.5, 11.0]);
        assert_eq!((better.plan, better.microseconds), (Some(plans[2]), 8.5));
        assert_eq!(better.heuristic_microseconds, 10.0);
        assert_eq!(times(&[10.0, 9.9]).plan, None);
        assert_eq!(times(&[10.0]).plan, None);
    }

    #[test]
    fn small_products_and_16_bit_activations_are_not_tried() {
        assert!(are_tried(&SPEC));
        assert!(!are_tried(&GemmSpec::new(SPEC.types, (512, 1024))));
        let half = GemmTypes::new(WeightKind::Channel4, DType::F16, DType::F16).unwrap();
        assert!(!are_tried(&GemmSpec::new(half, (4096, 11008))));
    }
}
