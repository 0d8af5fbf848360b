//! Linear layers whose arithmetic is simulated.
//!
//! An input is cut in two by its columns, outliers and others. Each part is multiplied for itself: as integer codes that the
//! 16-bit type holds exactly, or as the 16-bit numbers that it consists of. Products are cuBLASLt's, of all columns (those of the
//! other part are zeros) and with float32 sums, to which the scales are applied afterwards; so the codes, and sums of codes up to
//! 2^24, are those of integer arithmetic.

use std::sync::PoisonError;

use qqq_formats::SimulatedWeight;

use super::CudaBackend;
use super::blas::{Operands, Product};
use super::cached;
use super::linear::{check_half_width, half_values};
use super::memory::{Buffer, CudaInput, CudaTensor};
use super::options::Arithmetic;
use super::simulated::{
    self, CodeParameters, Coding, MarkParameters, SimulatedKernel, SumParameters, Summand,
};
use crate::{CudaError, DType, Device, KernelType, Result};

/// Rows that are multiplied at a time, which bounds the scratch memory.
const ROWS: usize = 1024;

/// A layer of a simulated checkpoint on a device.
#[derive(Debug)]
pub(super) struct SimulatedLayer {
    n: usize,
    k: usize,
    outliers: Outliers,
    /// What is multiplied by the columns that are no outliers, and by those that are.
    parts: Vec<Part>,
    /// float32.
    bias: Option<Buffer>,
}

/// Which columns are outliers.
#[derive(Debug)]
enum Outliers {
    /// Those in which a magnitude of the step reaches this.
    From(f32),
    /// Those with a 1, `k` bytes.
    Given(Buffer),
}

/// [`simulated::Part`] on a device.
#[derive(Debug)]
struct Part {
    of_outliers: bool,
    coding: Coding,
    /// `n x k` of the 16-bit type.
    values: Buffer,
    channel_scales: Option<Buffer>,
    channel_sums: Option<Buffer>,
}

impl Part {
    fn new(backend: &CudaBackend, part: simulated::Part) -> Result<Self> {
        let device = backend.device();
        let some = |values: &[f32]| match values {
            [] => Ok(None),
            values => Buffer::of(device, values).map(Some),
        };
        Ok(Self {
            of_outliers: part.of_outliers,
            coding: part.coding,
            values: half_values(device, part.values, backend.half())?,
            channel_scales: some(&part.channel_scales)?,
            channel_sums: some(&part.channel_sums)?,
        })
    }
}

/// Memory of a product: used in the stream's order.
#[derive(Debug)]
pub(super) struct SimulatedScratch {
    outliers: Buffer,
    codes: Buffer,
    /// Of each part: scales of rows, then zeros.
    rows: [Buffer; 2],
    /// Of each part.
    sums: [Buffer; 2],
}

impl SimulatedScratch {
    pub(super) fn new(device: &Device) -> Result<Self> {
        let empty = || Buffer::new(device, 0);
        Ok(Self {
            outliers: empty()?,
            codes: empty()?,
            rows: [empty()?, empty()?],
            sums: [empty()?, empty()?],
        })
    }
}

impl SimulatedLayer {
    /// # Errors
    /// Those of [`simulated::parts`]; a shape that no product takes; an arithmetic that was asked for instead.
    pub(super) fn new(backend: &CudaBackend, weight: SimulatedWeight, bias: Option<&[f32]>) -> Result<Self> {
        let asked = backend.shared.options.arithmetic;
        if asked != Arithmetic::default() {
            return Err(CudaError::Types(format!(
                "{asked} was asked for, but the checkpoint is simulated and says what its layers compute; leave it out"
            )));
        }
        let (n, k, device) = (weight.out_features, weight.in_features, backend.device());
        check_half_width(k)?;
        if let Some(b) = bias.filter(|b| b.len() != n) {
            return Err(CudaError::Shape(format!("a bias of {} values for {n} output channels", b.len())));
        }
        // Known before the weights are copied.
        backend.blas()?;
        let (outliers, parts) = simulated::parts(weight)?;
        let outliers = match outliers {
            simulated::Outliers::From(threshold) => Outliers::From(threshold),
            simulated::Outliers::Given(marks) => Outliers::Given(Buffer::of(device, &marks)?),
        };
        let parts = parts.into_iter().map(|part| Part::new(backend, part)).collect::<Result<_>>()?;
        let bias = bias.map(|b| Buffer::of(device, b)).transpose()?;
        device.stream().synchronize().map_err(crate::error::driver("copying weights to the GPU"))?;
        Ok(Self { n, k, outliers, parts, bias })
    }

    /// `x W^T + bias` by the method's arithmetic. `out` has its shape.
    ///
    /// # Errors
    /// What the device refuses.
    pub(super) fn multiply(&self, backend: &CudaBackend, x: &CudaInput, out: &CudaTensor) -> Result<()> {
        let (n, k, half) = (self.n, self.k, backend.half());
        let mut scratch = backend.shared.simulated_scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let SimulatedScratch { outliers, codes, rows, sums } = &mut *scratch;
        let outliers = match &self.outliers {
            Outliers::Given(marks) => marks.address(),
            Outliers::From(threshold) => {
                outliers.reserve(k)?;
                let parameters = MarkParameters {
                    x: x.buffer.address(),
                    outlier: outliers.address(),
                    m: x.rows as i32,
                    k: k as i32,
                    threshold: *threshold,
                };
                // SAFETY: the input has these rows, and the marks have room.
                unsafe { backend.launch_simulated(SimulatedKernel::Mark(half), k, parameters) }?;
                outliers.address()
            }
        };
        let most = x.rows.min(ROWS);
        codes.reserve(most * k * half.bytes())?;
        for (rows, sums) in rows.iter_mut().zip(sums.iter_mut()) {
            rows.reserve(2 * most * size_of::<f32>())?;
            sums.reserve(most * n * size_of::<f32>())?;
        }
        for first in (0..x.rows).step_by(ROWS) {
            let m = ROWS.min(x.rows - first);
            let mut summands = [Summand::default(); 2];
            for (i, part) in self.parts.iter().enumerate() {
                let (scale, zero) = (rows[i].address(), rows[i].address() + (most * size_of::<f32>()) as u64);
                let (coding, bits) = part.coding.codes();
                let parameters = CodeParameters {
                    x: x.buffer.address() + (first * k * half.bytes()) as u64,
                    outlier: outliers,
                    codes: codes.address(),
                    scale,
                    zero,
                    m: m as i32,
                    k: k as i32,
                    coding,
                    bits,
                    of_outliers: part.of_outliers.into(),
                };
                // SAFETY: the input has these rows, and what is written has room.
                unsafe { backend.launch_simulated(SimulatedKernel::Code(half), m, parameters) }?;
                let product = Product::linear((m, n, k), half, DType::F32, false);
                let operands = Operands {
                    a: part.values.address(),
                    b: codes.address(),
                    c: sums[i].address(),
                    d: sums[i].address(),
                    bias: 0,
                    alpha: 1.0,
                    beta: 0.0,
                };
                // SAFETY: the operands have these sizes.
                unsafe { backend.blas()?.launch(&product, &operands) }?;
                let address = |buffer: &Option<Buffer>| buffer.as_ref().map_or(0, Buffer::address);
                summands[i] = Summand {
                    sums: sums[i].address(),
                    scale: if part.channel_scales.is_some() { scale } else { 0 },
                    zero: if part.channel_sums.is_some() { zero } else { 0 },
                    channel_scale: address(&part.channel_scales),
                    channel_sum: address(&part.channel_sums),
                };
            }
            let parameters = SumParameters {
                summands,
                bias: self.bias.as_ref().map_or(0, Buffer::address),
                out: out.address() + (first * n * half.bytes()) as u64,
                m: m as i32,
                n: n as i32,
            };
            // SAFETY: the sums were made above with these sizes, and the output has these rows.
            unsafe { backend.launch_simulated(SimulatedKernel::Sum(half), m * n, parameters) }?;
        }
        Ok(())
    }
}

impl CudaBackend {
    /// Launches a kernel for so many columns, rows or outputs.
    ///
    /// # Safety
    /// As [`launch_step`](Self::launch_step).
    unsafe fn launch_simulated<T>(
        &self,
        simulated: SimulatedKernel,
        units: usize,
        mut parameters: T,
    ) -> Result<()> {
        let kernel =
            cached(&self.shared.simulated, simulated, || self.device().kernel(&simulated.source(), 0))?;
        let shape = (simulated.ctas(units), simulated.threads(), 0);
        // SAFETY: the caller's promise.
        unsafe { self.launch(&kernel, shape, &mut parameters) }
    }
}
