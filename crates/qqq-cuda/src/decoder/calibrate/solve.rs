//! Solving a layer, as the host's solver does: scales, rounding to nearest, compensation of which the better is kept row by row.

use half::{bf16, f16};
use qqq_backend::solve::{ErrorPower, Grid, Problem, Solution, Unsolved};
use qqq_backend::{BackendError, Result};

use super::super::CudaBackend;
use super::super::blas::{Matrix, Number, Operands, Product};
use super::super::memory::{Buffer, copy, doubles, read_values};
use super::super::steps::value_type;
use super::factor::{Factor, factorize};
use super::kernels::{CalibrationKernel as Kernel, SOLVE_BLOCK};
use super::parameters::{
    CodeParameters, ColumnParameters, FormParameters, KeepParameters, ScaleParameters, SolveParameters,
};
use super::{CudaDeviation, CudaHessian, CudaWeights};
use crate::DType;

/// Columns of a Hessian that a quadratic form multiplies at a time.
const FORM_PANEL: usize = 1024;
/// Times that rows with two levels of scales are solved while their channel scale moves.
const CHANNEL_SCALE_ROUNDS: usize = 2;

/// A layer that is solved here.
pub(super) type CudaProblem<'a> = Problem<'a, CudaWeights, CudaHessian, CudaDeviation>;

/// The outputs `w y` of rows of weights in the float model, as they are compared with.
struct Target {
    /// `w D^T`, `n x k` float32.
    products: Buffer,
    /// `w S w^T`, `n` float64, with `S` the second moment of the deviation.
    own: Buffer,
}

/// A problem on the device.
struct Rows<'p> {
    b: &'p CudaBackend,
    problem: &'p CudaProblem<'p>,
    grid: Grid,
    group: usize,
    n: usize,
    /// Address of `n x k` float32: what is rounded.
    weights: u64,
    /// `n x groups` float32.
    scales: Buffer,
    /// `n` float32: of int8 weights.
    channels: Buffer,
    /// `n x k` float32: what a quadratic form is of, and its product with the Hessian.
    rows: Buffer,
    product: Buffer,
}

impl CudaBackend {
    /// See [`Calibrate::solve`](qqq_backend::Calibrate::solve).
    pub(super) fn solve_layer(
        &self,
        problem: &CudaProblem<'_>,
    ) -> Result<std::result::Result<Solution, Unsolved>> {
        let (n, k) = (problem.rows.len(), problem.k);
        check(problem)?;
        let float = problem.weights.row(problem.rows.start);
        if let Some(i) = self.position_not_finite(float, n * k, DType::F32)? {
            let (row, col) = (i / k, i % k);
            return Err(BackendError::NotFinite(format!("weight [{row}, {col}] is not finite")));
        }
        let diagonal = match problem.hessian {
            Some(hessian) => self.checked_diagonal(hessian)?,
            None => vec![1.0; k],
        };
        let dead_channels = diagonal.iter().filter(|d| **d == 0.0).count();
        let device = self.device();
        let moved = match (&problem.correction, problem.hessian) {
            (Some(correction), Some(hessian)) => {
                match self.moved(problem, correction, hessian, &diagonal)? {
                    Ok(moved) => Some(moved),
                    Err(reason) => return Ok(Err(reason)),
                }
            }
            _ => None,
        };
        let weights = moved.as_ref().map_or(float, Buffer::address);
        let mut compensation = None;
        let mut importance = diagonal.clone();
        if let (Some(how), Some(hessian)) = (problem.compensation, problem.hessian) {
            let mut order: Vec<i32> = (0..k as i32).collect();
            if how.act_order {
                order.sort_by(|&a, &b| diagonal[b as usize].total_cmp(&diagonal[a as usize]));
            }
            let on_device = Buffer::of(device, &order)?;
            let factor = match factorize(self, hessian, &diagonal, &on_device, how.damping)? {
                Ok(factor) => factor,
                Err(reason) => return Ok(Err(Unsolved::Damping(reason))),
            };
            for (&channel, &cost) in order.iter().zip(&factor.cost) {
                let channel = channel as usize;
                importance[channel] = if diagonal[channel] > 0.0 { cost } else { 0.0 };
            }
            compensation = Some((factor, on_device));
        }
        let group = problem.scheme.group_size.unwrap_or(k);
        let groups = k / group;
        let mut rows = Rows {
            b: self,
            problem,
            grid: problem.scheme.grid(),
            group,
            n,
            weights,
            scales: Buffer::new(device, 4 * n * groups)?,
            channels: Buffer::new(device, 4 * n)?,
            rows: Buffer::new(device, 4 * n * k)?,
            product: Buffer::new(device, if problem.hessian.is_some() { 4 * n * k } else { 0 })?,
        };
        rows.choose_scales(&importance)?;
        let best = Buffer::new(device, n * k)?;
        rows.codes(Kernel::RoundCodes, &best, weights)?;
        let least = rows.losses(&best)?;
        let energies = rows.forms(rows.weights)?;
        let mut error_nearest: f64 = doubles(&least, n)?.iter().sum();
        let nearest = match problem.correction {
            Some(_) => {
                let nearest = Buffer::new(device, n * k)?;
                copy(self, best.address(), nearest.address(), n * k)?;
                Some(nearest)
            }
            None => None,
        };
        if let Some((factor, order)) = &compensation
            && !rows.compensate(factor, order, &best, &least)?
        {
            return Ok(Err(Unsolved::Damping("the compensated weights overflow".into())));
        }
        drop(compensation);
        let energies = doubles(&energies, n)?;
        let mut errors = doubles(&least, n)?;
        let mut scales = read_values(&rows.scales, n * groups, DType::F32)?;
        if problem.scales.fit {
            rows.fit_scales(&best, &energies, &mut errors, &mut scales)?;
        }
        let (mut energy, mut error) = (energies.iter().sum(), errors.iter().sum());
        let target = match (&problem.correction, nearest) {
            (Some(correction), Some(nearest)) => {
                let target = rows.target(float, correction.deviation)?;
                energy = rows.against(&target, float)?;
                rows.differences(&nearest, float)?;
                error_nearest = rows.against(&target, rows.rows.address())?;
                Some(target)
            }
            _ => None,
        };
        rows.scales.write(bytemuck::cast_slice(&scales))?;
        rows.differences(&best, float)?;
        if let Some(target) = target {
            error = rows.against(&target, rows.rows.address())?;
        }
        let squares = |at| -> Result<f64> { Ok(doubles(&rows.sums(at, 0, 0)?, n)?.iter().sum()) };
        let (weight_energy, weight_error) = (squares(float)?, squares(rows.rows.address())?);
        let codes = bytemuck::cast_vec(best.read(n * k)?);
        Ok(Ok(Solution {
            codes,
            scales,
            energy,
            error_nearest,
            error,
            weight_energy,
            weight_error,
            dead_channels,
        }))
    }

    /// The diagonal of a Hessian whose values are all finite, and its diagonal not negative.
    fn checked_diagonal(&self, hessian: &CudaHessian) -> Result<Vec<f32>> {
        let k = hessian.width;
        if let Some(i) = self.position_not_finite(hessian.values.address(), k * k, DType::F32)? {
            return Err(BackendError::NotFinite(format!(
                "Hessian [{}, {}] is not finite: the layer's inputs overflowed during calibration; the model's weights are \
                 damaged, or too large for 32-bit floats",
                i / k,
                i % k
            )));
        }
        let diagonal = self.diagonal(hessian)?;
        match diagonal.iter().position(|d| *d < 0.0) {
            Some(j) => Err(BackendError::NotFinite(format!(
                "Hessian [{j}, {j}] is {}: no sum of squares",
                diagonal[j]
            ))),
            None => Ok(diagonal),
        }
    }
}

fn check(problem: &CudaProblem<'_>) -> Result<()> {
    let (n, k) = (problem.rows.len(), problem.k);
    let fits = problem.weights.k == k
        && problem.weights.has(&problem.rows)
        && problem.hessian.is_none_or(|h| h.width == k)
        && problem.correction.as_ref().is_none_or(|c| c.deviation.width == k)
        && problem.scheme.check(k).is_ok()
        && n > 0
        && k > 0
        && n < i32::MAX as usize
        && k < i32::MAX as usize;
    let looks = problem.compensation.is_some() || problem.correction.is_some();
    if fits && (!looks || problem.hessian.is_some()) {
        return Ok(());
    }
    Err(BackendError::Shape(format!("a layer of {n} x {k} that does not fit its Hessian or its groups")))
}

impl Rows<'_> {
    fn groups(&self) -> usize {
        self.problem.k / self.group
    }

    fn is_grouped(&self) -> bool {
        self.problem.scheme.group_size.is_some()
    }

    /// Whether scales have two levels.
    fn two_levels(&self) -> bool {
        self.problem.scheme.has_two_levels()
    }

    fn elements(&self) -> usize {
        self.n * self.problem.k
    }

    /// Scales by the problem's rule; `importance` is what a squared error of a channel costs.
    fn choose_scales(&self, importance: &[f32]) -> Result<()> {
        let (b, choice) = (self.b, &self.problem.scales);
        let live = |v: &f32| if *v > 0.0 { 1.0f32 } else { 0.0 };
        let weights: Vec<f32> = match choice.weighted {
            true => importance.to_vec(),
            false => importance.iter().map(live).collect(),
        };
        let importance = Buffer::of(b.device(), &weights)?;
        let (from, to, stride) = choice.search.map_or((100, 100, 0), |s| (s.from, s.to, s.stride));
        let parameters = ScaleParameters {
            weights: self.weights,
            importance: importance.address(),
            scales: self.scales.address(),
            n: self.n as i32,
            k: self.problem.k as i32,
            group: self.group as i32,
            low: self.grid.low,
            high: self.grid.high,
            reach: self.grid.reach,
            from,
            to,
            stride,
            steep: i32::from(choice.power == ErrorPower::Steep),
            value_type: value_type(choice.dtype)?,
        };
        let (n, groups) = (self.n, self.groups());
        // SAFETY: all have the problem's sizes.
        unsafe {
            b.calibrate(Kernel::ChooseScales { grouped: self.is_grouped() }, n * groups, parameters)?;
            b.calibrate(Kernel::FillScales, n, parameters)?;
            if choice.integer {
                b.calibrate(Kernel::IntegerScales, n, parameters)?;
            }
        }
        Ok(())
    }

    /// A kernel that works on codes, `n x k` int8, and on weights at an address, `n x k` float32.
    fn codes(&self, kernel: Kernel, codes: &Buffer, weights: u64) -> Result<()> {
        let channels = if self.two_levels() { &self.channels } else { &self.scales };
        let parameters = CodeParameters {
            weights,
            scales: self.scales.address(),
            channels: channels.address(),
            codes: codes.address(),
            out: self.rows.address(),
            n: self.n as i32,
            k: self.problem.k as i32,
            group: self.group as i32,
            low: self.grid.low,
            high: self.grid.high,
        };
        let units = if kernel == Kernel::ChannelScales { self.n } else { self.elements() };
        // SAFETY: all have the problem's sizes.
        Ok(unsafe { self.b.calibrate(kernel, units, parameters) }?)
    }

    /// `v H v^T` of each row `v` of a matrix, `n` float64; without a Hessian `v v^T`.
    fn forms(&self, rows: u64) -> Result<Buffer> {
        let Some(hessian) = self.problem.hessian else { return self.sums(rows, 0, 0) };
        self.multiply(rows, &hessian.values)?;
        self.sums(rows, self.product.address(), 0)
    }

    /// Products `p` of the rows `v` of a matrix with a symmetric one `M`, such that `v p^T = v M v^T`.
    ///
    /// Each pair of channels is multiplied once and counted twice: column panel by column panel, the square on the diagonal
    /// and twice what is below it.
    fn multiply(&self, rows: u64, symmetric: &Buffer) -> Result<()> {
        let (n, k) = (self.n, self.problem.k);
        let at = |row: usize, col: usize| symmetric.address() + (4 * (row * k + col)) as u64;
        let whole = Matrix::new(Number::F32, k);
        for first in (0..k).step_by(FORM_PANEL) {
            let end = (first + FORM_PANEL).min(k);
            let product = self.product.address() + (4 * first) as u64;
            // Rows `from..to` of the panel's columns; row-major matrices are the library's transposes.
            let multiply = |from: usize, to: usize, alpha: f64, beta: f64| -> Result<()> {
                let operands = Operands {
                    a: at(from, first),
                    b: rows + (4 * from) as u64,
                    c: product,
                    d: product,
                    bias: 0,
                    alpha,
                    beta,
                };
                let (m, k) = (end - first, to - from);
                let shape = Product { m, n, k, a: whole, b: whole, c: whole, d: whole, bias: false };
                // SAFETY: all lie in matrices of the problem's sizes.
                Ok(unsafe { self.b.product(&shape, &operands) }?)
            };
            multiply(first, end, 1.0, 0.0)?;
            if end < k {
                multiply(end, k, 2.0, 1.0)?;
            }
        }
        Ok(())
    }

    /// Sums of the rows of a matrix times those of another one (times themselves, if its address is 0), each with a number
    /// that is added to it (if that address is not 0): `n` float64, none below 0.
    fn sums(&self, rows: u64, product: u64, added: u64) -> Result<Buffer> {
        let out = Buffer::new(self.b.device(), 8 * self.n)?;
        let k = self.problem.k as i32;
        let parameters = FormParameters { rows, product, added, out: out.address(), k };
        // SAFETY: all have the problem's sizes.
        unsafe { self.b.calibrate(Kernel::Forms, self.n, parameters) }?;
        Ok(out)
    }

    /// What weights at an address give in the float model.
    fn target(&self, float: u64, deviation: &CudaDeviation) -> Result<Target> {
        self.multiply(float, &deviation.square)?;
        let own = self.sums(float, self.product.address(), 0)?;
        let products = Buffer::new(self.b.device(), 4 * self.elements())?;
        self.b.deviated(float, deviation, self.n, &products)?;
        Ok(Target { products, own })
    }

    /// The sum over rows of `e H e^T + 2 e D w^T + w S w^T`: the mean of `|e x + w (y - x)|^2`, where rows `e` are `w - q`.
    fn against(&self, target: &Target, rows: u64) -> Result<f64> {
        if let Some(hessian) = self.problem.hessian {
            self.multiply(rows, &hessian.values)?;
        }
        self.b.add_matrix(&self.product, &target.products, self.elements(), 2.0)?;
        let sums = self.sums(rows, self.product.address(), target.own.address())?;
        Ok(doubles(&sums, self.n)?.iter().sum())
    }

    /// Weights at an address minus what the kernels multiply for their codes.
    fn differences(&self, codes: &Buffer, weights: u64) -> Result<()> {
        if self.two_levels() {
            self.codes(Kernel::ChannelScales, codes, weights)?;
        }
        self.codes(Kernel::Differences { grouped: self.two_levels() }, codes, weights)
    }

    /// `(w-q) H (w-q)^T` of each row for codes, as the kernels see them.
    fn losses(&self, codes: &Buffer) -> Result<Buffer> {
        self.differences(codes, self.weights)?;
        self.forms(self.rows.address())
    }

    /// Replaces the codes of each row by compensated ones where these have the smaller loss; false on overflow.
    ///
    /// With two levels of scales, int8 weights depend on the channel's scale, and so on the largest of the codes that are sought: the scale of
    /// the codes before stands in, and rows are solved once more with the one that was reached.
    fn compensate(&self, factor: &Factor, order: &Buffer, best: &Buffer, least: &Buffer) -> Result<bool> {
        let (b, n, k) = (self.b, self.n, self.problem.k);
        let device = b.device();
        let columns = Buffer::new(device, 4 * n * k)?;
        let errors = Buffer::new(device, 4 * n * k)?;
        let column_codes = Buffer::new(device, n * k)?;
        let codes = Buffer::new(device, n * k)?;
        let parameters = ColumnParameters {
            weights: self.weights,
            codes: codes.address(),
            order: order.address(),
            columns: columns.address(),
            column_codes: column_codes.address(),
            n: n as i32,
            k: k as i32,
        };
        // SAFETY: all have the problem's sizes.
        unsafe { b.calibrate(Kernel::ToColumns, n * k, parameters) }?;
        let targets = Buffer::new(device, 4 * n * SOLVE_BLOCK)?;
        let channels = if self.two_levels() { &self.channels } else { &self.scales };
        for _ in 0..if self.two_levels() { CHANNEL_SCALE_ROUNDS } else { 1 } {
            for start in (0..k).step_by(SOLVE_BLOCK) {
                let width = SOLVE_BLOCK.min(k - start);
                let own = columns.address() + (4 * start * n) as u64;
                let mut at = own;
                if start > 0 {
                    // Rows are the library's rows: a column of errors is one of its columns.
                    let matrix = Matrix::new(Number::F32, n);
                    let product = Product {
                        m: n,
                        n: width,
                        k: start,
                        a: matrix,
                        b: Matrix::new(Number::F32, k),
                        c: matrix,
                        d: matrix,
                        bias: false,
                    };
                    at = targets.address();
                    let operands = Operands {
                        a: errors.address(),
                        b: factor.feedback.address() + (4 * start * k) as u64,
                        c: own,
                        d: at,
                        bias: 0,
                        alpha: 1.0,
                        beta: 1.0,
                    };
                    // SAFETY: as above.
                    unsafe { b.product(&product, &operands) }?;
                }
                let parameters = SolveParameters {
                    feedback: factor.feedback.address(),
                    order: order.address(),
                    scales: self.scales.address(),
                    channels: channels.address(),
                    columns: columns.address(),
                    targets: at,
                    errors: errors.address(),
                    codes: column_codes.address(),
                    n: n as i32,
                    k: k as i32,
                    group: self.group as i32,
                    groups: self.groups() as i32,
                    start: start as i32,
                    width: width as i32,
                    low: self.grid.low,
                    high: self.grid.high,
                };
                // SAFETY: as above.
                unsafe { b.calibrate(Kernel::SolveBlock { grouped: self.two_levels() }, n, parameters) }?;
            }
            if b.position_not_finite(errors.address(), n * k, DType::F32)?.is_some() {
                return Ok(false);
            }
            // SAFETY: as above.
            unsafe { b.calibrate(Kernel::FromColumns, n * k, parameters) }?;
            let losses = self.losses(&codes)?;
            let parameters = KeepParameters {
                codes: codes.address(),
                best: best.address(),
                errors: losses.address(),
                least: least.address(),
                k: k as i32,
            };
            // SAFETY: as above.
            unsafe { b.calibrate(Kernel::KeepBetter, n, parameters) }?;
        }
        Ok(true)
    }

    /// Per channel: the scale of least loss for the codes as they are, `s = (w H q) / (q H q)` with `q` the codes; kept where
    /// the loss falls. All forms are known: `(w - s q) H (w - s q)^T = w H w^T - 2 s w H q^T + s^2 q H q^T`.
    fn fit_scales(
        &self,
        codes: &Buffer,
        energies: &[f64],
        errors: &mut [f64],
        scales: &mut [f32],
    ) -> Result<()> {
        self.codes(Kernel::CodeValues, codes, self.weights)?;
        let squares = doubles(&self.forms(self.rows.address())?, self.n)?;
        for (row, scale) in scales.iter_mut().enumerate() {
            let (s, square) = (f64::from(*scale), squares[row]);
            let mixed = (energies[row] + s * s * square - errors[row]) / (2.0 * s);
            let fit = (mixed / square) as f32;
            if !(fit.is_normal() && fit > 0.0) {
                continue;
            }
            let stored = stored(fit, self.problem.scales.dtype);
            let s = f64::from(stored);
            let error = energies[row] - 2.0 * s * mixed + s * s * square;
            if error < errors[row] {
                (*scale, errors[row]) = (stored, error.max(0.0));
            }
        }
        Ok(())
    }
}

/// A positive scale to the nearest of its type, but never to zero or infinity.
fn stored(scale: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(scale).clamp(f16::MIN_POSITIVE_SUBNORMAL, f16::MAX).to_f32(),
        DType::BF16 => bf16::from_f32(scale).clamp(bf16::MIN_POSITIVE_SUBNORMAL, bf16::MAX).to_f32(),
        _ => scale,
    }
}
