//! The kernels of the smoothing search.

use std::ffi::OsString;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::f16;
use qqq_backend::pool::parallel_for;
use qqq_backend::solve::Scheme;
use qqq_cuda::decoder::calibrate::kernels::CalibrationKernel as Kernel;
use qqq_cuda::decoder::calibrate::parameters::{
    DistanceParameters, DivideParameters, HalvesParameters, RangeParameters, RoundParameters,
    SmoothParameters,
};
use qqq_cuda::{DType, KernelType};
use qqq_formats::{CodeBits, Scales};

use crate::emulated_calibrate::{Check, alike, close, launch, numbers};
use crate::emulator::{Emulator, Memory};

const HALVES: [DType; 2] = [DType::F16, DType::BF16];

/// `ValueType` of the kernels.
fn value_type(dtype: DType) -> i32 {
    i32::from(dtype == DType::BF16)
}

fn sources() -> Vec<qqq_cuda::Source> {
    let mut kernels = vec![Kernel::ChannelRange, Kernel::Distances, Kernel::DivideRows];
    kernels.extend([false, true].map(|grouped| Kernel::RoundScaled { grouped }));
    kernels.extend(HALVES.map(Kernel::SmoothRows));
    kernels.extend(HALVES.map(Kernel::Halves));
    kernels.into_iter().map(Kernel::source).collect()
}

pub fn candidates_of_the_smoothing_search(compiler: OsString) {
    check(&Emulator::new(&compiler, sources())).unwrap();
}

fn check(emulator: &Emulator) -> Check {
    // Widths below and above what a CTA's threads take at once.
    for (k, group) in [(48, None), (1040, None), (160, Some(32)), (1088, Some(64)), (384, Some(128))] {
        weights(emulator, k, Scheme::w4a8(group))?;
    }
    weights(emulator, 80, Scheme { bits: CodeBits::Eight, ..Scheme::w4a8(None) })?;
    for half in HALVES {
        for k in [48, 2064] {
            rows(emulator, half, k)?;
        }
        losses(emulator, half)?;
        float_weights(emulator, half)?;
    }
    Ok(())
}

/// A candidate's weights: rows that are usual, zero, with a zero group, and with groups whose scales have a common divisor.
fn weights(emulator: &Emulator, k: usize, scheme: Scheme) -> Check {
    let (n, group) = (6, scheme.group_size);
    let len = group.unwrap_or(k);
    let mut weights = numbers(1, n * k, 0.3);
    weights.iter_mut().enumerate().filter(|(i, _)| i % 41 == 7).for_each(|(_, w)| *w *= 5.0);
    let mut factors: Vec<f32> = (0..k).map(|j| if j % 5 == 2 { 1.0 + j as f32 / 9.0 } else { 1.0 }).collect();
    weights[k..2 * k].fill(0.0);
    if let Some(group) = group {
        weights[2 * k..2 * k + group].fill(0.0);
        // Multiples of 3/8, of which 1 is none: the scale of groups without weights, which lie around.
        factors[..group * 3].fill(1.0);
        let row = &mut weights[3 * k..4 * k];
        row.fill(0.0);
        for (g, row) in row.chunks_mut(group).enumerate().skip(1).take(2) {
            row.iter_mut().for_each(|w| *w = 0.375);
            row[3] = -0.375 * 7.5 * g as f32;
        }
    }
    let grid = scheme.grid();
    let groups = k / len;
    let mut memory = Memory::default();
    let [weights_at, factors_at] = [&weights, &factors].map(|v| memory.upload(v));
    let codes_at = memory.upload(&vec![99i8; n * k]);
    let channels_at = memory.upload(&vec![f32::NAN; n]);
    let multiples_at = memory.upload(&vec![0x7FABu16; n * groups]);
    let parameters = RoundParameters {
        weights: weights_at.address,
        factors: factors_at.address,
        codes: codes_at.address,
        channels: channels_at.address,
        multiples: if group.is_some() { multiples_at.address } else { 0 },
        k: k as i32,
        group: len as i32,
        low: grid.low,
        high: grid.high,
        reach: grid.reach,
    };
    launch(emulator, Kernel::RoundScaled { grouped: group.is_some() }, n, parameters, &memory)?;
    let (mut codes, mut effective) = (Vec::new(), Vec::new());
    for row in weights.chunks(k) {
        let scaled: Vec<f32> = row.iter().zip(&factors).map(|(w, s)| w * s).collect();
        for w in scaled.chunks(len) {
            let step = w.iter().fold(0.0f32, |max, w| max.max(w.abs())) / grid.reach;
            let scale = if step > f32::MIN_POSITIVE { step } else { 1.0 };
            let inverse = 1.0 / scale;
            codes.extend(w.iter().map(|w| (w * inverse).round_ties_even().clamp(grid.low, grid.high) as i8));
            effective.push(scale);
        }
    }
    let what = format!("{k} channels, {scheme:?}");
    alike(&memory.download::<i8>(codes_at), &codes, &format!("{what}: codes"))?;
    let channels: Vec<f32> = memory.download(channels_at);
    let Some(group_size) = group else {
        return alike(&channels, &effective, &format!("{what}: scales"));
    };
    let Scales::PerGroup { channel, group, .. } =
        Scales::from_effective(&codes, n, k, group_size, &effective)
    else {
        return Err("no groups".into());
    };
    assert_eq!(channel[3], 0.375, "{what}: the row of multiples");
    alike(&channels, &channel, &format!("{what}: channel scales"))?;
    let multiples: Vec<f16> = memory.download::<u16>(multiples_at).into_iter().map(f16::from_bits).collect();
    alike(&multiples, &group, &format!("{what}: group scales"))
}

/// A candidate's inputs, and the range of channels.
fn rows(emulator: &Emulator, half: DType, k: usize) -> Check {
    let m = 19;
    let mut x = numbers(2, m * k, 9.0);
    x[k..2 * k].fill(0.0);
    let bits: Vec<u16> = x.iter().map(|v| half.encode(*v)).collect();
    let x: Vec<f32> = bits.iter().map(|b| half.decode(*b)).collect();
    let factors: Vec<f32> = numbers(3, k, 0.5).iter().map(|f| 0.5 + f.abs()).collect();
    let mut memory = Memory::default();
    let (x_at, factors_at) = (memory.upload(&bits), memory.upload(&factors));
    let out = memory.upload(&vec![99i8; m * k]);
    let scales_at = memory.upload(&vec![f32::NAN; m]);
    let parameters = SmoothParameters {
        x: x_at.address,
        factors: factors_at.address,
        out: out.address,
        scales: scales_at.address,
        k: k as i32,
    };
    launch(emulator, Kernel::SmoothRows(half), m, parameters, &memory)?;
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for row in x.chunks(k) {
        let scaled: Vec<f32> = row.iter().zip(&factors).map(|(x, f)| x * f).collect();
        let largest = scaled.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        let scale = if largest > 0.0 { largest } else { 1.0 } / 127.0;
        codes.extend(scaled.iter().map(|v| (v / scale).round_ties_even().clamp(-128.0, 127.0) as i8));
        scales.push(scale);
    }
    let what = format!("{k} channels of {half}");
    alike(&memory.download::<f32>(scales_at), &scales, &format!("{what}: scales of tokens"))?;
    alike(&memory.download::<i8>(out), &codes, &format!("{what}: codes of tokens"))?;

    let [most, least] = [0, 1].map(|_| memory.upload(&vec![f32::NAN; k]));
    let parameters = RangeParameters {
        x: x_at.address,
        most: most.address,
        least: least.address,
        rows: m as i32,
        k: k as i32,
        value_type: value_type(half),
    };
    launch(emulator, Kernel::ChannelRange, k, parameters, &memory)?;
    let column = |j: usize| x.iter().skip(j).step_by(k).copied();
    let want: Vec<f32> = (0..k).map(|j| column(j).fold(f32::NEG_INFINITY, f32::max)).collect();
    alike(&memory.download(most), &want, &format!("{what}: largest values"))?;
    let want: Vec<f32> = (0..k).map(|j| column(j).fold(f32::INFINITY, f32::min)).collect();
    alike(&memory.download(least), &want, &format!("{what}: least values"))
}

fn losses(emulator: &Emulator, half: DType) -> Check {
    let (m, columns) = (3, 600);
    let bits = |seed| numbers(seed, m * columns, 2.0).iter().map(|v| half.encode(*v)).collect::<Vec<u16>>();
    let (a, b) = (bits(4), bits(5));
    let mut memory = Memory::default();
    let [a_at, b_at] = [&a, &b].map(|v| memory.upload(v));
    for with_other in [true, false] {
        let out = memory.upload(&vec![f64::NAN; m]);
        let parameters = DistanceParameters {
            a: a_at.address,
            b: if with_other { b_at.address } else { 0 },
            out: out.address,
            columns: columns as i32,
            value_type: value_type(half),
        };
        launch(emulator, Kernel::Distances, m, parameters, &memory)?;
        for (row, got) in memory.download::<f64>(out).into_iter().enumerate() {
            let own = row * columns..(row + 1) * columns;
            let want: f64 = (a[own.clone()].iter().zip(&b[own]))
                .map(|(a, b)| half.decode(*a) - if with_other { half.decode(*b) } else { 0.0 })
                .map(|d| f64::from(d) * f64::from(d))
                .sum();
            close(got, want, 1e-12, 0.0, &format!("distance of row {row}, {half}"))?;
        }
    }
    Ok(())
}

fn float_weights(emulator: &Emulator, half: DType) -> Check {
    let (n, k) = (5, 48);
    let weights = numbers(6, n * k, 3.0);
    let mut memory = Memory::default();
    let x = memory.upload(&weights);
    let out = memory.upload(&vec![0x7FABu16; n * k]);
    let count = n * k / 2;
    let parameters = HalvesParameters { x: x.address, out: out.address, count: count as i64 };
    launch(emulator, Kernel::Halves(half), count, parameters, &memory)?;
    let want: Vec<u16> = weights.iter().map(|w| half.encode(*w)).collect();
    alike(&memory.download(out), &want, &format!("weights in {half}"))?;

    let divisors: Vec<f32> = (0..n - 1).map(|i| 1.0 + i as f32 / 3.0).collect();
    let divisors_at = memory.upload(&divisors);
    let parameters = DivideParameters {
        weights: x.address + 4 * k as u64,
        divisors: divisors_at.address,
        count: ((n - 1) * k) as i64,
        k: k as i32,
    };
    launch(emulator, Kernel::DivideRows, (n - 1) * k, parameters, &memory)?;
    let divided = |(i, w): (usize, &f32)| if i < k { *w } else { w / divisors[i / k - 1] };
    let want: Vec<f32> = weights.iter().enumerate().map(divided).collect();
    alike(&memory.download(x), &want, "divided rows")
}

/// Mistakes that the test must find: text of `smooth.cuh`, and what is there instead.
const MISTAKES: [(&str, &str); 15] = [
    ("v[j] = __fmul_rn(v[j], factor[j])", "v[j] = __fadd_rn(v[j], 0.0f)"),
    ("step > kLeastNormal ? step : 1.0f", "step"),
    ("clamp(round_even(__fmul_rn(v[j], inverse)), p.low, p.high)", "round_even(__fmul_rn(v[j], inverse))"),
    ("most = fmaxf(most, fabsf(code))", "most = fmaxf(most, code)"),
    ("& 0xFF) << 8 * j", "& 0xFF) << 8 * (3 - j)"),
    ("if (code > 0.0f) top =", "top ="),
    ("largest_codes[g] > 0 ? __fdiv_rn(scales[g], channel) : 0.0f", "__fdiv_rn(scales[g], channel)"),
    ("wrong |= wrong_parts(top, scales[g], (float)largest_codes[g])", "wrong = 0xFFFF"),
    ("load_floats(p.factors + i + 4, high)", "load_floats(p.factors + i, high)"),
    ("largest >= 1e-30f ? fminf(largest, 3.4e38f) : 1.0f", "fmaxf(largest, 1e-30f)"),
    ("row += kSlices", "row += kSlices + 1"),
    ("for (int i = 1; i < kSlices; ++i)", "for (int i = 2; i < kSlices; ++i)"),
    ("sum += (double)d * (double)d", "sum += (double)(d * d)"),
    ("pack_floats<Bfloat>(p.x[2 * i], p.x[2 * i + 1])", "pack_floats<Bfloat>(p.x[2 * i], p.x[2 * i])"),
    ("p.divisors[i / p.k]", "p.divisors[0]"),
];

pub fn mistakes_in_the_smoothing_search_are_found(compiler: OsString) {
    let missed = Mutex::new(Vec::new());
    parallel_for(MISTAKES.len(), |i| {
        let (text, replacement) = MISTAKES[i];
        let found = AtomicUsize::new(0);
        let emulator = Emulator::with_headers(&compiler, sources(), |name, header| {
            if name != "smooth.cuh" {
                return header.to_owned();
            }
            found.fetch_add(header.matches(text).count(), Ordering::Relaxed);
            header.replace(text, replacement)
        });
        assert_eq!(found.into_inner(), 1, "how often there is {text:?}");
        if check(&emulator).is_ok() {
            missed.lock().unwrap().push(text);
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found: {missed:#?}");
}
