//! Layers whose arithmetic is simulated, against those of the CPU. Products, which are a library's, are made in float64.

use std::ffi::OsString;

use qqq_backend::CpuBackend;
use qqq_cuda::decoder::simulated::{
    CodeParameters, MarkParameters, Outliers, SimulatedKernel, SumParameters, Summand, parts,
};
use qqq_cuda::{DType, KernelType};
use qqq_formats::SimulatedWeight;

use crate::emulator::{Emulator, Memory, Shape};
use crate::simulated::{input, output, weights};

/// A NaN in either 16-bit type.
const POISON: u16 = 0x7FAB;

fn launch<T>(emulator: &Emulator, kernel: SimulatedKernel, units: usize, parameters: &T, memory: &Memory) {
    let shape = Shape {
        blocks: kernel.ctas(units),
        threads: kernel.threads(),
        cluster: 1,
        shared_bytes: 0,
        together: false,
    };
    let raw = ((&raw const *parameters).cast(), size_of::<T>());
    emulator.launch(&kernel.source(), shape, raw, memory, &memory.regions(), 1).unwrap();
}

/// What the kernels make of a layer and `m` rows.
fn emulated(
    emulator: &Emulator,
    half: DType,
    weight: SimulatedWeight,
    (m, x, bias): (usize, &[f32], Option<&[f32]>),
) -> Vec<f32> {
    let (n, k) = (weight.out_features, weight.in_features);
    let (outliers, parts) = parts(weight).unwrap();
    let mut memory = Memory::default();
    let x = memory.upload(&x.iter().map(|v| half.encode(*v)).collect::<Vec<_>>());
    let marks = match &outliers {
        Outliers::Given(marks) => memory.upload(marks),
        Outliers::From(threshold) => {
            let marks = memory.upload(&vec![7u8; k]);
            let parameters = MarkParameters {
                x: x.address,
                outlier: marks.address,
                m: m as i32,
                k: k as i32,
                threshold: *threshold,
            };
            launch(emulator, SimulatedKernel::Mark(half), k, &parameters, &memory);
            marks
        }
    };
    let mut summands = [Summand::default(); 2];
    for (part, summand) in parts.iter().zip(&mut summands) {
        let codes = memory.upload(&vec![POISON; m * k]);
        let [scale, zero] = [(); 2].map(|()| memory.upload(&vec![f32::NAN; m]));
        let (coding, bits) = part.coding.codes();
        let parameters = CodeParameters {
            x: x.address,
            outlier: marks.address,
            codes: codes.address,
            scale: scale.address,
            zero: zero.address,
            m: m as i32,
            k: k as i32,
            coding,
            bits,
            of_outliers: part.of_outliers.into(),
        };
        launch(emulator, SimulatedKernel::Code(half), m, &parameters, &memory);
        let codes: Vec<u16> = memory.download(codes);
        let codes: Vec<f64> = codes.iter().map(|c| f64::from(half.decode(*c))).collect();
        let values: Vec<f32> = part.values.clone().into_f32();
        let mut sums = Vec::new();
        for codes in codes.chunks(k) {
            let sum = |w: &[f32]| codes.iter().zip(w).map(|(c, w)| c * f64::from(*w)).sum::<f64>() as f32;
            sums.extend(values.chunks(k).map(sum));
        }
        let mut some = |values: &[f32]| if values.is_empty() { 0 } else { memory.upload(values).address };
        let (channel_scale, channel_sum) = (some(&part.channel_scales), some(&part.channel_sums));
        *summand = Summand {
            sums: some(&sums),
            scale: if channel_scale == 0 { 0 } else { scale.address },
            zero: if channel_sum == 0 { 0 } else { zero.address },
            channel_scale,
            channel_sum,
        };
    }
    let out = memory.upload(&vec![POISON; m * n]);
    let parameters = SumParameters {
        summands,
        bias: bias.map_or(0, |bias| memory.upload(bias).address),
        out: out.address,
        m: m as i32,
        n: n as i32,
    };
    launch(emulator, SimulatedKernel::Sum(half), m * n, &parameters, &memory);
    memory.download::<u16>(out).into_iter().map(|v| half.decode(v)).collect()
}

pub fn simulated_layers_are_those_of_the_cpu(compiler: OsString) {
    let sources = SimulatedKernel::all().into_iter().map(SimulatedKernel::source).collect();
    let (emulator, cpu) = (Emulator::new(&compiler, sources), CpuBackend::new());
    for half in [DType::F16, DType::BF16] {
        // More columns than threads, and more rows than are marked together.
        for (i, (m, n, k)) in [(3, 16, 48), (21, 32, 272), (1, 16, 16)].into_iter().enumerate() {
            let x = input(half, (m, k));
            let bias: Vec<f32> = (0..n).map(|j| j as f32 / 7.0 - 1.0).collect();
            let bias = (i % 2 == 0).then_some(bias.as_slice());
            for weight in weights(half, (n, k)) {
                let what = format!("{m} x {n} x {k} in {half}, {:?}", weight.arithmetic);
                let got = emulated(&emulator, half, weight.clone(), (m, &x, bias));
                let want = output(&cpu, weight, bias.map(<[f32]>::to_vec), (m, &x));
                assert_eq!(got.len(), want.len());
                // The output is rounded once.
                let unit = if half == DType::BF16 { 1.0 / 256.0 } else { 1.0 / 2048.0 };
                for (j, (got, want)) in got.iter().zip(&want).enumerate() {
                    let bound = 1.01 * unit * want.abs() + 1e-4;
                    assert!((got - want).abs() <= bound, "{what}: {j} is {got} instead of {want}");
                }
            }
        }
    }
}

/// A row with a value that is not finite has no finite outputs, and the others keep theirs.
pub fn simulated_layers_show_what_is_not_finite(compiler: OsString) {
    let half = DType::BF16;
    let kernels = [SimulatedKernel::Mark(half), SimulatedKernel::Code(half), SimulatedKernel::Sum(half)];
    let emulator = Emulator::new(&compiler, kernels.map(SimulatedKernel::source).into());
    let (m, n, k) = (4, 16, 48);
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        // In a column of outliers, and in another one.
        for column in [7, 20] {
            for weight in weights(half, (n, k)) {
                let mut x = input(half, (m, k));
                x[2 * k + column] = value;
                let what = format!("{value} in column {column}, {:?}", weight.arithmetic);
                let got = emulated(&emulator, half, weight, (m, &x, None));
                for (row, values) in got.chunks(n).enumerate() {
                    assert!(
                        values.iter().all(|v| v.is_finite() != (row == 2)),
                        "{what}: row {row}: {values:?}"
                    );
                }
            }
        }
    }
}
