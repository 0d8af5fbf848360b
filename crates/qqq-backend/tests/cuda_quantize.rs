//! What the GPU makes of activations and weights before a product: int8 activations against float64 on the host, every
//! instance of the kernel; prepacked weights against those of the host, byte for byte. Needs a GPU that there are kernels
//! for; says so and ends well without one.

#[path = "common/compile.rs"]
mod compile;

use std::sync::Arc;

use cudarc::driver::{CudaSlice, DevicePtr};
use half::{bf16, f16};
use qqq_backend::cuda::Device;
use qqq_backend::cuda::gemm::prepack::{self, Direction};
use qqq_backend::cuda::gemm::{OutputType, PackedWeights, PrepackKernel, PrepackOperands, WeightKind};
use qqq_backend::cuda::quantize::{
    NormType, Operation, Precision, QuantizeConfig, QuantizeKernel, QuantizeOperands,
};
use qqq_formats::{QuantizedWeight, Scales};

use compile::compile;

const EPSILON: f32 = 1e-5;

fn device() -> Option<Arc<Device>> {
    match Device::new(0).and_then(|d| d.arch().map(|_| d)) {
        Ok(device) => Some(device),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// A uniform number in [0, 1), from a counter (splitmix64).
fn uniform(seed: u64, i: usize) -> f32 {
    let mut z = seed
        .wrapping_mul(0xd134_2543_de82_ef95)
        .wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
}

fn to_bits(output: OutputType, x: f32) -> u16 {
    match output {
        OutputType::Float16 => f16::from_f32(x).to_bits(),
        OutputType::Bfloat16 => bf16::from_f32(x).to_bits(),
    }
}

fn from_bits(output: OutputType, bits: u16) -> f32 {
    match output {
        OutputType::Float16 => f16::from_bits(bits).to_f32(),
        OutputType::Bfloat16 => bf16::from_bits(bits).to_f32(),
    }
}

/// Inputs of an operation, and the exact result before int8.
struct Case {
    config: QuantizeConfig,
    m: usize,
    k: usize,
    x: Vec<u16>,
    residual: Option<Vec<u16>>,
    norm: Vec<f32>,
}

impl Case {
    fn new(config: QuantizeConfig, m: usize, k: usize, with_residual: bool) -> Self {
        let columns = if config.operation == Operation::Gated { 2 * k } else { k };
        let spread = |row: usize| match row {
            // Zeros, and values whose scale is subnormal in float16.
            1 => 0.0,
            2 => 1e-4,
            _ => 8.0 * uniform(1, row) + 0.01,
        };
        let value = |seed: u64, i: usize| (0..4).map(|j| uniform(seed, 4 * i + j) - 0.5).sum::<f32>();
        let input = config.input;
        Self {
            config,
            m,
            k,
            x: (0..m * columns).map(|i| to_bits(input, value(2, i) * spread(i / columns))).collect(),
            residual: with_residual.then(|| (0..m * k).map(|i| to_bits(input, value(3, i))).collect()),
            norm: (0..k).map(|i| 0.5 + uniform(4, i)).collect(),
        }
    }

    /// To the input's type, where the precision asks for it.
    fn round(&self, x: f64) -> f64 {
        match self.config.precision {
            Precision::Float32 => x,
            Precision::Stepwise => {
                f64::from(from_bits(self.config.input, to_bits(self.config.input, x as f32)))
            }
        }
    }

    /// Input + residual, in the input's type.
    fn sum(&self) -> Vec<u16> {
        let input = self.config.input;
        match &self.residual {
            None => self.x.clone(),
            Some(r) => {
                let add = |(x, r): (&u16, &u16)| to_bits(input, from_bits(input, *x) + from_bits(input, *r));
                self.x.iter().zip(r).map(add).collect()
            }
        }
    }

    /// A row before it becomes int8.
    fn exact(&self, row: usize, norm: &[f32]) -> Vec<f64> {
        let value = |bits: u16| f64::from(from_bits(self.config.input, bits));
        match self.config.operation {
            Operation::Plain => self.x[row * self.k..][..self.k].iter().map(|b| value(*b)).collect(),
            Operation::Gated => {
                let (gate, up) = self.x[row * 2 * self.k..][..2 * self.k].split_at(self.k);
                let one = |(g, u): (&u16, &u16)| {
                    let g = value(*g);
                    self.round(self.round(g / (1.0 + (-g).exp())) * value(*u))
                };
                gate.iter().zip(up).map(one).collect()
            }
            Operation::Norm => {
                let v: Vec<f64> = self.sum()[row * self.k..][..self.k].iter().map(|b| value(*b)).collect();
                let mean = v.iter().map(|x| x * x).sum::<f64>() / self.k as f64;
                let factor = 1.0 / (mean + f64::from(EPSILON)).sqrt();
                v.iter().zip(norm).map(|(x, w)| self.round(self.round(x * factor) * f64::from(*w))).collect()
            }
        }
    }

    fn check(&self, device: &Device, norm_type: NormType) {
        let what = format!("{:?}, {} x {}, {norm_type:?}", self.config, self.m, self.k);
        let stream = device.stream();
        let x = stream.clone_htod(&self.x).unwrap();
        let residual = self.residual.as_ref().map(|r| stream.clone_htod(r).unwrap());
        let (norm_bytes, norm): (Vec<u8>, Vec<f32>) = match norm_type {
            NormType::Float32 => {
                (self.norm.iter().flat_map(|v| v.to_le_bytes()).collect(), self.norm.clone())
            }
            other => {
                let half =
                    if other == NormType::Float16 { OutputType::Float16 } else { OutputType::Bfloat16 };
                let bits: Vec<u16> = self.norm.iter().map(|v| to_bits(half, *v)).collect();
                (
                    bits.iter().flat_map(|b| b.to_le_bytes()).collect(),
                    bits.iter().map(|b| from_bits(half, *b)).collect(),
                )
            }
        };
        let norm_device = stream.clone_htod(&norm_bytes).unwrap();
        // One row more than there is to write.
        let q = stream.clone_htod(&vec![0x55i8; (self.m + 1) * self.k]).unwrap();
        let scale = stream.clone_htod(&vec![f32::NAN; self.m + 1]).unwrap();
        let sum = stream.clone_htod(&vec![-7i32; self.m + 1]).unwrap();
        fn address<T>(device: &Device, slice: &CudaSlice<T>) -> u64 {
            slice.device_ptr(device.stream()).0
        }
        let kernel = QuantizeKernel::new(
            device,
            self.config.operation,
            self.config.input,
            self.config.precision,
            self.k,
        )
        .unwrap();
        let operands = QuantizeOperands {
            x: address(device, &x),
            residual: residual.as_ref().map_or(0, |r| address(device, r)),
            norm: if self.config.operation == Operation::Norm { address(device, &norm_device) } else { 0 },
            norm_type,
            epsilon: EPSILON,
            q: address(device, &q),
            scale: address(device, &scale),
            sum: address(device, &sum),
            m: self.m,
        };
        // SAFETY: the operands have these sizes.
        unsafe { kernel.launch(stream.cu_stream(), &operands, true) }.unwrap();
        let (q, scale, sum) = (
            stream.clone_dtoh(&q).unwrap(),
            stream.clone_dtoh(&scale).unwrap(),
            stream.clone_dtoh(&sum).unwrap(),
        );
        if let Some(r) = &residual {
            assert_eq!(stream.clone_dtoh(r).unwrap(), self.sum(), "{what}: residual");
        }
        assert!(
            q[self.m * self.k..].iter().all(|v| *v == 0x55) && scale[self.m].is_nan(),
            "{what}: written too far"
        );
        assert_eq!(sum[self.m], -7, "{what}: written too far");

        let plain = self.config.operation == Operation::Plain;
        let stepwise = self.config.precision == Precision::Stepwise;
        let mut different = 0;
        for row in 0..self.m {
            let exact = self.exact(row, &norm);
            let largest = exact.iter().fold(0.0f64, |a, v| a.max(v.abs())) as f32;
            let mut expected = if largest >= 1e-30 { largest } else { 1.0 } / 127.0f32;
            if stepwise {
                expected = from_bits(self.config.input, to_bits(self.config.input, expected));
                if self.config.input == OutputType::Float16 {
                    expected = expected.max(5.960_464_5e-8);
                }
            }
            let got = scale[row];
            // A result beside a boundary may round the other way: one step of the type, twice where two follow.
            let tolerance = match (plain, stepwise, self.config.input) {
                (true, ..) => 0.0,
                (_, false, _) => 1e-5,
                (_, true, OutputType::Float16) => 3e-3,
                (_, true, OutputType::Bfloat16) => 2e-2,
            };
            // A subnormal scale has fewer bits.
            let floor = if stepwise && !plain { 6e-8 } else { 0.0 };
            assert!(
                (got - expected).abs() <= tolerance * expected + floor,
                "{what}: scale {row}: {got} for {expected}"
            );
            let q = &q[row * self.k..][..self.k];
            assert_eq!(sum[row], q.iter().map(|v| i32::from(*v)).sum::<i32>(), "{what}: sum of {row}");
            for (i, (got, exact)) in q.iter().zip(&exact).enumerate() {
                // With the scale that was found: an error there is no error here.
                let expected = (*exact as f32 / scale[row]).round_ties_even().clamp(-128.0, 127.0) as i32;
                let difference = (i32::from(*got) - expected).abs();
                assert!(difference <= i32::from(!plain), "{what}: row {row}, {i}: {got} for {expected}");
                different += usize::from(difference > 0);
            }
        }
        let most = if stepwise { 0.03 } else { 0.001 };
        assert!(
            different as f64 <= most * (self.m * self.k) as f64 + 2.0,
            "{what}: {different} of {} differ",
            self.m * self.k
        );
    }
}

#[test]
fn activations_are_those_of_float64() {
    let Some(device) = device() else { return };
    let configs = QuantizeConfig::all();
    let sources: Vec<_> = configs.iter().map(QuantizeConfig::source).collect();
    compile(&sources, device.arch().unwrap());
    let mut checked = 0;
    for config in configs {
        let widest = if config.vectors == 0 { 65536 } else { config.row_threads * config.vectors * 8 };
        // The widest row, and one that leaves threads without work.
        for (m, k) in [(2, widest), (6, widest / 2 + 16)] {
            assert_eq!(QuantizeConfig::new(config.operation, config.input, config.precision, k), config);
            if config.operation == Operation::Norm {
                for norm in [NormType::Float16, NormType::Bfloat16, NormType::Float32] {
                    for residual in [false, true] {
                        Case::new(config, m, k, residual).check(&device, norm);
                        checked += 1;
                    }
                }
            } else {
                Case::new(config, m, k, false).check(&device, NormType::Float32);
                checked += 1;
            }
        }
    }
    // The smallest, and many rows.
    for (m, k) in [(1, 16), (4097, 1040)] {
        let config = QuantizeConfig::new(Operation::Plain, OutputType::Float16, Precision::Float32, k);
        Case::new(config, m, k, false).check(&device, NormType::Float32);
    }
    println!("{checked} operations checked");
}

#[test]
fn weights_are_packed_as_on_the_host() {
    let Some(device) = device() else { return };
    let kinds = WeightKind::ALL;
    let sources = |direction| kinds.iter().map(move |k| prepack::source(*k, direction));
    let sources: Vec<_> = sources(Direction::Pack).chain(sources(Direction::Unpack)).collect();
    compile(&sources, device.arch().unwrap());
    for kind in kinds {
        let group = kind.group_size().unwrap_or(16);
        for (n, k) in [(64, 128), (80, group), (208, 256 + group), (1040, 1152 + group)] {
            check_packing(&device, kind, n, k);
        }
    }
}

fn check_packing(device: &Device, kind: WeightKind, n: usize, k: usize) {
    let what = format!("{kind:?}, {n} x {k}");
    let channel: Vec<f32> = (0..n).map(|i| 1e-4 + uniform(5, i)).collect();
    let limit = if kind == WeightKind::Channel8 { 256.0 } else { 16.0 };
    let codes: Vec<i8> = (0..n * k).map(|i| ((uniform(6, i) * limit).floor() - limit / 2.0) as i8).collect();
    // Bytes of the group scales as the kernel takes them.
    let mut scales: Vec<u8> = Vec::new();
    let packed = match kind.group_size() {
        None if kind == WeightKind::Channel8 => PackedWeights::from_int8(&codes, &channel, k),
        None => PackedWeights::new(&QuantizedWeight {
            out_features: n,
            in_features: k,
            codes: codes.clone(),
            scales: Scales::PerChannel(channel.clone()),
        }),
        Some(group_size) => {
            let integer = matches!(kind, WeightKind::GroupInteger4(_));
            let group: Vec<f16> = (0..n * (k / group_size))
                .map(|i| {
                    let s = uniform(7, i) * 15.0;
                    f16::from_f32(if integer { s.round() } else { s + 0.01 })
                })
                .collect();
            for s in &group {
                if integer {
                    scales.push(s.to_f32() as u8);
                } else {
                    scales.extend(s.to_le_bytes());
                }
            }
            PackedWeights::new(&QuantizedWeight {
                out_features: n,
                in_features: k,
                codes: codes.clone(),
                scales: Scales::PerGroup { group_size, channel: channel.clone(), group },
            })
        }
    }
    .unwrap();
    assert_eq!(packed.kind, kind, "{what}");
    assert_eq!(PrepackKernel::chunks_bytes(kind, n, k), packed.chunks.len(), "{what}");

    let stream = device.stream();
    // Nothing cannot be allocated.
    let upload =
        |bytes: &[u8]| stream.clone_htod(if bytes.is_empty() { &[0u8; 16][..] } else { bytes }).unwrap();
    let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    let poison = |count: usize| vec![0xA5u8; count];
    let codes: Vec<u8> = codes.iter().map(|c| *c as u8).collect();
    let neutral = [upload(&codes), upload(&scales), upload(&bytes(&channel))];
    let chunks = upload(&poison(packed.chunks.len() + 16));
    let padded = upload(&poison(packed.channel_scale.len() * 4 + 16));
    let back =
        [upload(&poison(codes.len() + 16)), upload(&poison(scales.len() + 16)), upload(&poison(4 * n + 16))];
    let address = |s: &CudaSlice<u8>| s.device_ptr(stream).0;
    for (direction, [codes, scales, channel]) in [(Direction::Pack, &neutral), (Direction::Unpack, &back)] {
        let operands = PrepackOperands {
            codes: address(codes),
            scales: if kind.group_size().is_some() { address(scales) } else { 0 },
            chunks: address(&chunks),
            channel_scale: address(channel),
            padded_scale: address(&padded),
            n,
            k,
        };
        let kernel = PrepackKernel::new(device, kind, direction).unwrap();
        // SAFETY: the operands have these sizes.
        unsafe { kernel.launch(stream.cu_stream(), &operands) }.unwrap();
    }
    let check = |what: &str, got: &CudaSlice<u8>, expected: &[u8]| {
        let got = stream.clone_dtoh(got).unwrap();
        let end = expected.len();
        assert!(got[..end] == *expected, "{what} differ");
        assert!(got[end..].iter().all(|b| *b == 0xA5), "{what}: written too far");
    };
    check(&format!("{what}: chunks"), &chunks, &packed.chunks);
    check(&format!("{what}: padded scales"), &padded, &bytes(&packed.channel_scale));
    check(&format!("{what}: codes"), &back[0], &codes);
    check(&format!("{what}: group scales"), &back[1], &scales);
    check(&format!("{what}: channel scales"), &back[2], &bytes(&channel));
}
