//! Measuring matrix products.

use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::{CudaSlice, DevicePtr};
use half::{bf16, f16};
use qqq_formats::QuantizedWeight;

use super::peer::Cublas;
use super::{Ceilings, data, timing};
use crate::cuda::device::{Device, driver};
use crate::cuda::gemm::{
    GemmLayer, OutputType, PackedWeights, Plan, TunedChoice, WeightKind, candidates, tuned,
};
use crate::cuda::{Arch, CudaError, Result};

/// Where plans come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choosing {
    /// What was tuned earlier, else the heuristic: as in a model.
    Usual,
    /// The heuristic alone.
    Heuristic,
    /// All candidates are timed; what is faster than the heuristic's choice, twice, is kept on disk if there is a folder for
    /// it.
    Tune,
}

/// A measured product.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// Tokens.
    pub m: usize,
    /// The instance that ran.
    pub plan: Plan,
    /// Whether tuning chose it, not the heuristic.
    pub tuned: bool,
    /// Microseconds of a launch that may overlap the end of the one before.
    pub microseconds: f64,
    /// Microseconds where each launch waits for the one before.
    pub serial_microseconds: f64,
    /// 10^12 operations a second.
    pub tops: f64,
    /// GB/s, each operand counted once.
    pub gb_per_second: f64,
    /// The least time that the measured ceilings allow, as a part of the time.
    pub of_ceiling: Option<f64>,
    /// Microseconds that a launch takes the host.
    pub host_microseconds: f64,
    /// Milliseconds of getting the kernel: reading or compiling it, loading, room for partial sums. Later ones with the same
    /// kernel find it loaded.
    pub prepare_milliseconds: f64,
    /// Microseconds of cuBLAS in float16, where it is installed.
    pub cublas_microseconds: Option<f64>,
}

/// Products with weights of one shape.
pub struct GemmBench {
    device: Arc<Device>,
    ceilings: Option<Ceilings>,
    shape: (usize, usize),
    cublas: Option<Cublas>,
}

/// Memory that all copies of the weights should fill, in bytes: several times the L2 cache.
const ROTATE: usize = 200 << 20;
/// Outputs that are compared with the host's, before anything is timed.
const CHECKED: usize = 200;

impl GemmBench {
    /// For weights of shape `n x k`.
    ///
    /// # Errors
    /// See [`CudaError`].
    pub fn new(device: &Arc<Device>, ceilings: Option<Ceilings>, n: usize, k: usize) -> Result<Self> {
        let copies = (ROTATE / (n * k * 2) + 1).clamp(2, 16);
        let cublas = Cublas::new(device.stream(), n, k, copies)?;
        Ok(Self { device: device.clone(), ceilings, shape: (n, k), cublas })
    }

    /// Whether cuBLAS is there to compare with.
    pub fn has_cublas(&self) -> bool {
        self.cublas.is_some()
    }

    /// Checks and times the product for each number of tokens, by the kernels of `arch` (the device's own or Ampere's).
    ///
    /// # Errors
    /// Also when an output differs from what the host computes, and when what was tuned cannot be kept.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &self,
        weights: WeightKind,
        output: OutputType,
        arch: Arch,
        tokens: &[usize],
        choosing: Choosing,
        on_result: &mut dyn FnMut(Measurement),
    ) -> Result<()> {
        let (n, k) = self.shape;
        let weight = match weights {
            WeightKind::Channel4 | WeightKind::Channel8 => data::weight(1, n, k, None),
            WeightKind::GroupInteger4(g) => data::weight(1, n, k, Some((g, true))),
            WeightKind::GroupHalf4(g) => data::weight(1, n, k, Some((g, false))),
        };
        let shape = |e: crate::BackendError| CudaError::Shape(e.to_string());
        let (packed, int8) = if weights == WeightKind::Channel8 {
            let codes = data::normal_integers(2, n * k, 127);
            (PackedWeights::from_int8(&codes, weight.channel_scales(), k).map_err(shape)?, codes)
        } else {
            (PackedWeights::new(&weight).map_err(shape)?, weight.int8_weights())
        };
        let copies = (ROTATE / packed.chunks.len() + 1).clamp(2, 32);
        let layers = (0..copies)
            .map(|_| GemmLayer::new(&self.device, &packed, None, output))
            .collect::<Result<Vec<_>>>()?;
        for &m in tokens {
            let mut problem = Problem::new(&self.device, m, n, k)?;
            let found = match choosing {
                Choosing::Tune => {
                    Some(self.tune(&layers, &problem, arch, candidates(packed.kind, output, arch, m))?)
                }
                _ => None,
            };
            let better = match (choosing, found) {
                (Choosing::Usual, _) => layers[0].tuned_plan(m, arch),
                (_, found) => found.and_then(|f| f.plan),
            };
            let plan = better.unwrap_or_else(|| layers[0].heuristic_plan(m, arch));
            let begin = Instant::now();
            layers[0].prepare(m, Some(plan))?;
            let prepare_milliseconds = begin.elapsed().as_secs_f64() * 1e3;
            problem.check(&self.device, &layers[0], output, &weight, &int8)?;
            let store = self.device.tuned_store();
            if let (Some(found), Some(_)) = (found, store.path()) {
                store.put(&layers[0].tuned_key(arch), m, &found)?;
            }
            let microseconds = self.time(&layers, &problem, plan, true)?;
            let serial_microseconds = self.time(&layers, &problem, plan, false)?;
            let host_microseconds = self.launch_cost(&layers, &problem)?;
            let operations = 2.0 * m as f64 * n as f64 * k as f64;
            let bytes = (packed.chunks.len() + m * k + 2 * m * n) as f64;
            let cublas = self.cublas.as_ref().map(|c| c.microseconds(m)).transpose()?;
            on_result(Measurement {
                m,
                plan,
                tuned: better.is_some(),
                microseconds,
                serial_microseconds,
                tops: operations / microseconds / 1e6,
                gb_per_second: bytes / microseconds / 1e3,
                of_ceiling: self.ceilings.map(|c| c.floor_microseconds(operations, bytes) / microseconds),
                host_microseconds,
                prepare_milliseconds,
                cublas_microseconds: cublas,
            });
        }
        Ok(())
    }

    /// The fastest of the candidates, if it is worth keeping.
    fn tune(
        &self,
        layers: &[GemmLayer],
        problem: &Problem,
        arch: Arch,
        candidates: Vec<Plan>,
    ) -> Result<TunedChoice> {
        let time = |plan| self.time(layers, problem, plan, true);
        let usual = layers[0].heuristic_plan(problem.m, arch);
        let usual_time = time(usual)?;
        let mut best = (usual_time, usual);
        for plan in candidates {
            if plan != usual && plan.config.ranks() <= problem.k.div_ceil(128) {
                let time = time(plan)?;
                if time < best.0 {
                    best = (time, plan);
                }
            }
        }
        // The fastest of many was also lucky: it must win again.
        let worth = tuned::is_worth_keeping(best.0, usual_time) && {
            let (again, usual_again) = (time(best.1)?, time(usual)?);
            tuned::is_worth_keeping(again, usual_again)
        };
        Ok(TunedChoice {
            plan: worth.then_some(best.1),
            microseconds: best.0,
            heuristic_microseconds: usual_time,
        })
    }

    /// Microseconds that a launch takes the host while the device is busy: the median of a few rounds.
    fn launch_cost(&self, layers: &[GemmLayer], problem: &Problem) -> Result<f64> {
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
                let layer = &layers[i % layers.len()];
                // SAFETY: the operands have the layer's shape; all launches are on one stream.
                unsafe { layer.launch(stream.cu_stream(), operands, problem.m, true) }?;
            }
            *round = begin.elapsed().as_secs_f64() * 1e6 / LAUNCHES as f64;
        }
        stream.synchronize().map_err(driver("timing launches"))?;
        rounds.sort_by(f64::total_cmp);
        Ok(rounds[ROUNDS / 2])
    }

    fn time(&self, layers: &[GemmLayer], problem: &Problem, plan: Plan, overlap: bool) -> Result<f64> {
        for layer in layers {
            layer.prepare(problem.m, Some(plan))?;
        }
        let stream = self.device.stream();
        let operands = problem.addresses(&self.device);
        timing::microseconds(stream, layers.len(), |i| {
            // SAFETY: the operands have the layer's shape; all launches are on one stream.
            unsafe { layers[i % layers.len()].launch(stream.cu_stream(), operands, problem.m, overlap) }
        })
    }
}

/// Activations, and room for the output.
struct Problem {
    m: usize,
    n: usize,
    k: usize,
    host: (Vec<i8>, Vec<f32>),
    x: CudaSlice<i8>,
    scale: CudaSlice<f32>,
    y: CudaSlice<u16>,
}

impl Problem {
    fn new(device: &Device, m: usize, n: usize, k: usize) -> Result<Self> {
        let failed = || driver("allocating activations");
        let x = data::normal_integers(5, m * k, 127);
        let scale: Vec<f32> = (0..m).map(|i| 0.001 + 0.05 * data::uniform(6, i)).collect();
        let stream = device.stream();
        Ok(Self {
            m,
            n,
            k,
            x: stream.clone_htod(&x).map_err(failed())?,
            scale: stream.clone_htod(&scale).map_err(failed())?,
            y: stream.alloc_zeros(m * n).map_err(failed())?,
            host: (x, scale),
        })
    }

    fn addresses(&self, device: &Device) -> (u64, u64, u64) {
        let stream = device.stream();
        (self.x.device_ptr(stream).0, self.scale.device_ptr(stream).0, self.y.device_ptr(stream).0)
    }

    /// Compares some outputs bit for bit with exact integer sums on the host, and looks that none is left unwritten.
    fn check(
        &mut self,
        device: &Device,
        layer: &GemmLayer,
        output: OutputType,
        weight: &QuantizedWeight,
        int8: &[i8],
    ) -> Result<()> {
        let failed = || driver("checking a product");
        let stream = device.stream();
        // NaN in both output types.
        let poison = vec![0x7FFFu16; self.m * self.n];
        let (x, scale, y) = self.addresses(device);
        // On the same stream: a copy that only the host waits for may land after the launch.
        stream.memcpy_htod(&poison, &mut self.y).map_err(failed())?;
        // SAFETY: the operands have the layer's shape.
        unsafe { layer.launch(stream.cu_stream(), (x, scale, y), self.m, false) }?;
        let got = stream.clone_dtoh(&self.y).map_err(failed())?;
        stream.synchronize().map_err(failed())?;
        if let Some(i) = got.iter().position(|v| *v == 0x7FFF) {
            return Err(CudaError::Device(format!(
                "the kernel left the output of token {}, channel {} unwritten",
                i / self.n,
                i % self.n
            )));
        }
        let last = self.m * self.n - 1;
        for i in 0..CHECKED {
            let at = ((data::uniform(9, i) * self.m as f32 * self.n as f32) as usize).min(last);
            let (token, channel) = (at / self.n, at % self.n);
            let sum: i32 = self.host.0[token * self.k..][..self.k]
                .iter()
                .zip(&int8[channel * self.k..][..self.k])
                .map(|(a, b)| i32::from(*a) * i32::from(*b))
                .sum();
            let expected = sum as f32 * weight.channel_scales()[channel] * self.host.1[token];
            let bits = match output {
                OutputType::Float16 => f16::from_f32(expected).to_bits(),
                OutputType::Bfloat16 => bf16::from_f32(expected).to_bits(),
            };
            if got[at] != bits {
                return Err(CudaError::Device(format!(
                    "the kernel gives {:#06x} for token {token}, channel {channel}; exact sums give {bits:#06x}",
                    got[at]
                )));
            }
        }
        Ok(())
    }
}
