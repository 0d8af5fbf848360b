//! Learning on the emulated GPU, with products of matrices on the host.

use std::ffi::OsString;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use qqq_backend::pool::parallel_for;
use qqq_cuda::decoder::learn::kernels::LearnKernel;
use qqq_cuda::decoder::learn::products::{Multiplication, Part};
use qqq_cuda::decoder::learn::{DeviceLearner, LearnDevice};
use qqq_cuda::{CudaError, Result, Source};

use crate::emulator::{Emulator, Memory, Region, Shape};
use crate::learning::{Bounds, check};

const BOUNDS: Bounds = Bounds { sums: 1e-5, gradients: 1e-5 };
/// What memory holds before it is written: no number.
const POISON: u8 = 0xFF;

/// A device of one emulator.
struct Emulated<'a> {
    emulator: &'a Emulator,
    memory: Mutex<Memory>,
}

impl Emulated<'_> {
    fn with<T>(&self, job: impl FnOnce(&mut Memory) -> T) -> T {
        job(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// That bytes lie in one operand.
    fn holds(&self, at: u64, bytes: u64) -> Result<()> {
        let is_in = |r: &Region| r.address <= at && at + bytes <= r.address + r.bytes;
        match self.with(|memory| memory.regions().iter().any(is_in)) {
            true => Ok(()),
            false => Err(CudaError::Device(format!("{bytes} bytes at {at:#x} are not memory"))),
        }
    }
}

/// Address of an element of a matrix.
fn element(part: Part, row: usize, col: usize) -> u64 {
    let (row, col) = if part.transposed { (col, row) } else { (row, col) };
    part.at + 4 * (row * part.pitch + col) as u64
}

impl LearnDevice for Emulated<'_> {
    type Memory = Region;

    fn room(&self, bytes: usize) -> Result<(Region, u64)> {
        let region = self.with(|memory| memory.upload(&vec![POISON; bytes]));
        Ok((region, region.address))
    }

    fn upload(&self, values: &[f32]) -> Result<(Region, u64)> {
        let region = self.with(|memory| memory.upload(values));
        Ok((region, region.address))
    }

    fn read(&self, memory: &Region, bytes: usize) -> Result<Vec<u8>> {
        let mut all: Vec<u8> = self.with(|own| own.download(*memory));
        all.truncate(bytes);
        Ok(all)
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.holds(from, bytes as u64)?;
        self.holds(to, bytes as u64)?;
        // SAFETY: both are operands of this size, and no kernel runs.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn launch<T>(&self, kernel: LearnKernel, units: usize, parameters: T) -> Result<()> {
        let shape = Shape {
            blocks: kernel.ctas(units),
            threads: kernel.threads(),
            cluster: 1,
            shared_bytes: 0,
            together: false,
        };
        let raw = ((&raw const parameters).cast(), size_of::<T>());
        let run = |memory: &mut Memory| {
            self.emulator.launch(&kernel.source(), shape, raw, memory, &[], units as u64)
        };
        self.with(run).map_err(CudaError::Device)
    }

    unsafe fn multiply(&self, of: &Multiplication) -> Result<()> {
        let Multiplication { m, n, k, a, b, out, alpha, beta, bias, .. } = *of;
        for (part, rows, cols) in [(a, m, k), (b, k, n), (out, m, n)] {
            self.holds(part.at, element(part, rows - 1, cols - 1) + 4 - part.at)?;
        }
        if bias != 0 {
            self.holds(bias, 4 * n as u64)?;
        }
        // SAFETY: the corners lie in operands, which hold float32; no kernel runs.
        let value = |at: u64| f64::from(unsafe { (at as *const f32).read() });
        for i in 0..m {
            for j in 0..n {
                let products = (0..k).map(|l| value(element(a, i, l)) * value(element(b, l, j)));
                let mut sum = alpha * products.sum::<f64>();
                let at = element(out, i, j);
                if beta != 0.0 {
                    sum += beta * value(at);
                }
                if bias != 0 {
                    sum += value(bias + 4 * j as u64);
                }
                // SAFETY: as above.
                unsafe { (at as *mut f32).write(sum as f32) };
            }
        }
        Ok(())
    }
}

fn sources() -> Vec<Source> {
    LearnKernel::all().into_iter().map(LearnKernel::source).collect()
}

fn learner(emulator: &Emulator) -> DeviceLearner<Emulated<'_>> {
    DeviceLearner::new(Emulated { emulator, memory: Mutex::default() })
}

pub fn operations_of_learning_are_those_of_the_host(compiler: OsString) {
    let emulator = Emulator::new(&compiler, sources());
    check(&learner(&emulator), BOUNDS).unwrap();
}

/// Mistakes that the test must find: text of a header, and what is there instead.
const MISTAKES: [(&str, &str, &str); 14] = [
    ("learn.cuh", "if (slice > 0 || column >= p.columns) return;", "if (slice > 0) return;"),
    ("learn.cuh", "end = min(p.rows, (chunk + 1) * kProductRows)", "end = p.rows"),
    ("learn.cuh", "p.divisors ? p.out[i] - __fdiv_rn", "p.divisors ? p.out[i] + __fdiv_rn"),
    ("learn.cuh", "p.least > value ? p.least : value", "value"),
    ("learn_rows.cuh", "unit % p.segments * p.width;", "unit % p.segments;"),
    ("learn_rows.cuh", "p.factors && head < p.queries", "p.factors"),
    ("learn_rows.cuh", "query + 1 - p.window", "query - p.window"),
    ("learn_rows.cuh", "gradient - sum);", "gradient);"),
    ("learn_rows.cuh", "(x[i] < 0.0f ? -share : share)", "share"),
    ("learn_rows.cuh", "own == largest ? at : 0x7FFFFFFF", "at"),
    ("learn_weights.cuh", "p.scales + first % p.k", "p.scales"),
    ("learn_weights.cuh", "if (v > high) high = v, high_at = i;", "if (v >= high) high = v, high_at = i;"),
    ("learn_weights.cuh", "code == ended ? code - __fdiv_rn(v, step) : ended", "code - __fdiv_rn(v, step)"),
    ("learn_weights.cuh", "is_upper ? by_reach * share : -by_reach * share", "by_reach * share"),
];

pub fn mistakes_in_learning_are_found(compiler: OsString) {
    let missed = Mutex::new(Vec::new());
    parallel_for(MISTAKES.len(), |i| {
        let (file, text, replacement) = MISTAKES[i];
        let found = AtomicUsize::new(0);
        let emulator = Emulator::with_headers(&compiler, sources(), |name, header| {
            if name != file {
                return header.to_owned();
            }
            found.fetch_add(header.matches(text).count(), Ordering::Relaxed);
            header.replace(text, replacement)
        });
        assert_eq!(found.into_inner(), 1, "how often there is {text:?}");
        if check(&learner(&emulator), BOUNDS).is_ok() {
            missed.lock().unwrap().push((text, replacement));
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found: {missed:#?}");
}
