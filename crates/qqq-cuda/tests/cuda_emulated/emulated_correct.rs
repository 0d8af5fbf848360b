//! The kernels that compare a layer's inputs with the float model's, and that move its weights.

use std::ffi::OsString;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use qqq_backend::pool::parallel_for;
use qqq_cuda::decoder::calibrate::kernels::CalibrationKernel as Kernel;
use qqq_cuda::decoder::calibrate::parameters::{DeviateParameters, DoublesParameters, MoveParameters};
use qqq_cuda::{DType, KernelType};

use crate::emulated_calibrate::{Check, alike, close, launch, numbers};
use crate::emulator::{Emulator, Memory};

const HALVES: [DType; 2] = [DType::F16, DType::BF16];

fn sources() -> Vec<qqq_cuda::Source> {
    let mut kernels = vec![Kernel::Doubles, Kernel::MoveWeights];
    kernels.extend(HALVES.map(Kernel::Deviate));
    kernels.into_iter().map(Kernel::source).collect()
}

pub fn weights_are_corrected(compiler: OsString) {
    check(&Emulator::new(&compiler, sources())).unwrap();
}

fn check(emulator: &Emulator) -> Check {
    for out in HALVES {
        for y in HALVES {
            // int8 inputs, and those of either type.
            for x in [None, Some(DType::F16), Some(DType::BF16)] {
                deviations(emulator, x, y, out)?;
            }
        }
    }
    steps(emulator)
}

fn deviations(emulator: &Emulator, x_half: Option<DType>, y_half: DType, out: DType) -> Check {
    let (m, k) = (7, 48);
    let what = format!("{x_half:?} inputs beside {y_half}, in {out}");
    let codes: Vec<i8> = (0..m * k).map(|i| (i as i32 * 37 % 255 - 127) as i8).collect();
    let mut scales = numbers(1, m, 0.1);
    // What codes of a scale like this stand for is in every type.
    scales[m - 1] = 0.25;
    let mut memory = Memory::default();
    let (x, x_at, scales_at) = match x_half {
        None => {
            let x: Vec<f32> = codes.iter().enumerate().map(|(i, q)| f32::from(*q) * scales[i / k]).collect();
            (x, memory.upload(&codes).address, memory.upload(&scales).address)
        }
        Some(half) => {
            let bits: Vec<u16> = numbers(2, m * k, 9.0).iter().map(|v| half.encode(*v)).collect();
            let x = bits.iter().map(|bits| half.decode(*bits)).collect();
            (x, memory.upload(&bits).address, 0)
        }
    };
    // In the last row both models agree where types allow it.
    let y: Vec<u16> = numbers(3, m * k, 9.0)
        .iter()
        .zip(&x)
        .enumerate()
        .map(|(i, (noise, x))| y_half.encode(if i / k == m - 1 { *x } else { x + noise }))
        .collect();
    let y_at = memory.upload(&y);
    let out_at = memory.upload(&vec![0x7FABu16; m * k]);
    let type_of = |half: DType| i32::from(half == DType::BF16);
    let parameters = DeviateParameters {
        x: x_at,
        scales: scales_at,
        y: y_at.address,
        out: out_at.address,
        count: (m * k / 4) as i64,
        row_count: (k / 4) as i32,
        x_type: x_half.map_or(0, type_of),
        y_type: type_of(y_half),
    };
    launch(emulator, Kernel::Deviate(out), m * k / 4, parameters, &memory)?;
    let got: Vec<u16> = memory.download(out_at);
    for (i, bits) in got.iter().enumerate() {
        let want = out.encode(y_half.decode(y[i]) - x[i]);
        alike(bits, &want, &format!("{what}: deviation {i}"))?;
    }
    if x_half.is_none_or(|half| half == y_half) {
        alike(&got[(m - 1) * k..].iter().all(|bits| *bits == 0), &true, &format!("{what}: agreement"))?;
    }
    Ok(())
}

fn steps(emulator: &Emulator) -> Check {
    let (n, k, strength) = (5, 48, 0.3);
    let (weights, products) = (numbers(4, n * k, 0.1), numbers(5, n * k, 3.0));
    let mut diagonal: Vec<f32> = numbers(6, k, 2.0).into_iter().map(f32::abs).collect();
    diagonal[7] = 0.0;
    let mut memory = Memory::default();
    let [weights_at, products_at, diagonal_at] = [&weights, &products, &diagonal].map(|v| memory.upload(v));
    let steps_at = memory.upload(&vec![f64::NAN; n * k]);
    let count = (n * k) as i64;
    let parameters = DoublesParameters { x: products_at.address, out: steps_at.address, count };
    launch(emulator, Kernel::Doubles, n * k, parameters, &memory)?;
    let steps: Vec<f64> = memory.download(steps_at);
    alike(&steps, &products.iter().map(|v| f64::from(*v)).collect(), "float64")?;
    let moved = memory.upload(&vec![f32::NAN; n * k]);
    let parameters = MoveParameters {
        weights: weights_at.address,
        steps: steps_at.address,
        diagonal: diagonal_at.address,
        out: moved.address,
        count,
        k: k as i32,
        strength,
    };
    launch(emulator, Kernel::MoveWeights, n * k, parameters, &memory)?;
    for (i, got) in memory.download::<f32>(moved).into_iter().enumerate() {
        let w = weights[i];
        if i % k == 7 {
            alike(&got, &w, &format!("weight {i} of an input that is always zero"))?;
        } else {
            close(f64::from(got), f64::from(w) + strength * steps[i], 1e-6, 1e-9, &format!("weight {i}"))?;
        }
    }
    Ok(())
}

/// Mistakes that the tests must find: text of `correct.cuh`, and what is there instead.
const MISTAKES: [(&str, &str); 9] = [
    ("value_at(p.y, p.y_type, 4 * i + j) - d[j]", "d[j] - value_at(p.y, p.y_type, 4 * i + j)"),
    ("value_at(p.y, p.y_type, 4 * i + j) - d[j]", "value_at(p.y, p.x_type, 4 * i + j) - d[j]"),
    ("value_at(p.x, p.x_type, 4 * i + j)", "value_at(p.x, p.y_type, 4 * i + j)"),
    ("p.scales[i / p.row_count]", "p.scales[0]"),
    ("(float)(int8)(codes >> 8 * j)", "(float)(codes >> 8 * j & 0xFF)"),
    ("pack_floats<Bfloat>(d[2], d[3])", "pack_floats<Bfloat>(d[3], d[2])"),
    ("p.out[i] = (double)p.x[i]", "p.out[i] = (double)p.x[i / 2]"),
    ("p.diagonal[i % p.k] > 0.0f", "p.diagonal[i % p.k] >= 0.0f"),
    ("(double)w + p.strength * p.steps[i]", "(double)w + p.steps[i]"),
];

pub fn mistakes_in_the_correction_are_found(compiler: OsString) {
    let missed = Mutex::new(Vec::new());
    parallel_for(MISTAKES.len(), |i| {
        let (text, replacement) = MISTAKES[i];
        let found = AtomicUsize::new(0);
        let emulator = Emulator::with_headers(&compiler, sources(), |name, header| {
            if name != "correct.cuh" {
                return header.to_owned();
            }
            found.fetch_add(header.matches(text).count(), Ordering::Relaxed);
            header.replace(text, replacement)
        });
        assert_eq!(found.into_inner(), 1, "how often there is {text:?}");
        if check(&emulator).is_ok() {
            missed.lock().unwrap().push((text, replacement));
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found: {missed:#?}");
}
