//! The smoothing search on the device: a candidate's weights and inputs are made of the float ones that lie there, and of its
//! loss a sum for each token comes back.

use qqq_backend::solve::Scheme;
use qqq_backend::{Backend, BackendError, Result};
use qqq_formats::{Activations, CodeBits};

use super::super::CudaBackend;
use super::super::linear::{CudaLinear, check_half_width};
use super::super::memory::{Buffer, CudaInput, Elements, doubles, read_values};
use super::super::steps::value_type;
use super::CudaWeights;
use super::kernels::{CalibrationKernel as Kernel, MOST_GROUPS};
use super::parameters::{
    CodeParameters, DistanceParameters, DivideParameters, HalvesParameters, RangeParameters, RoundParameters,
    ScaleParameters, SmoothParameters,
};
use crate::gemm::WeightKind;
use crate::{DType, KernelType};

impl CudaBackend {
    /// See [`Calibrate::float_linear`](qqq_backend::Calibrate::float_linear).
    pub(super) fn half_linear(&self, weights: &CudaWeights, bias: Option<&[f32]>) -> Result<CudaLinear> {
        let (n, k) = (weights.n, weights.k);
        check_half_width(k)?;
        let half = self.half();
        let values = Buffer::new(self.device(), n * k * half.bytes())?;
        let parameters = HalvesParameters {
            x: weights.values.address(),
            out: values.address(),
            count: (n * k / 2) as i64,
        };
        // SAFETY: both have this size.
        unsafe { self.calibrate(Kernel::Halves(half), n * k / 2, parameters) }?;
        Ok(CudaLinear::sharing(self, (n, k), values.into(), bias, half)?)
    }

    /// See [`Calibrate::divide_outputs`](qqq_backend::Calibrate::divide_outputs).
    pub(super) fn divide_rows(&self, weights: &CudaWeights, first: usize, s: &[f32]) -> Result<()> {
        let rows = first..first.saturating_add(s.len());
        if !weights.has(&rows) {
            return Err(BackendError::Shape(format!("channels {rows:?} of {} are divided", weights.n)));
        }
        let divisors = Buffer::of(self.device(), s)?;
        let count = s.len() * weights.k;
        let parameters = DivideParameters {
            weights: weights.row(first),
            divisors: divisors.address(),
            count: count as i64,
            k: weights.k as i32,
        };
        // SAFETY: there are these rows.
        Ok(unsafe { self.calibrate(Kernel::DivideRows, count, parameters) }?)
    }

    /// See [`Calibrate::round_scaled`](qqq_backend::Calibrate::round_scaled). Group scales are float16 here even where all are
    /// small integers: the int8 weights are the same.
    pub(super) fn round_candidate(
        &self,
        weights: &CudaWeights,
        s: &[f32],
        scheme: Scheme,
        bias: Option<&[f32]>,
        linear: &mut Option<CudaLinear>,
    ) -> Result<()> {
        let (n, k) = (weights.n, weights.k);
        check_factors(s, k)?;
        scheme.check(k).map_err(BackendError::Shape)?;
        let group_size = scheme.group_size;
        if let Some(group) = group_size
            && !([32, 64, 128].contains(&group) && k / group <= MOST_GROUPS)
        {
            return Err(BackendError::Shape(format!(
                "groups of {group} of {k} input channels: the GPU kernels take 32, 64 or 128"
            )));
        }
        let kind = match (scheme.bits, scheme.activations, group_size) {
            (CodeBits::Four, Activations::Int8, None) => WeightKind::Channel4,
            (CodeBits::Four, Activations::Int8, Some(group)) => WeightKind::GroupHalf4(group),
            _ => return self.round_by_host(weights, s, scheme, bias, linear),
        };
        let linear = match linear {
            Some(made) if made.is_of(kind, (n, k)) => made,
            other => other.insert(CudaLinear::unfilled(self, kind, (n, k), bias)?),
        };
        let device = self.device();
        let group = group_size.unwrap_or(k);
        let factors = Buffer::of(device, s)?;
        let codes = Buffer::new(device, n * k)?;
        let channels = Buffer::new(device, 4 * n)?;
        let multiples = Buffer::new(device, if group_size.is_some() { 2 * n * (k / group) } else { 0 })?;
        let grid = scheme.grid();
        let parameters = RoundParameters {
            weights: weights.values.address(),
            factors: factors.address(),
            codes: codes.address(),
            channels: channels.address(),
            multiples: multiples.address(),
            k: k as i32,
            group: group as i32,
            low: grid.low,
            high: grid.high,
            reach: grid.reach,
        };
        // SAFETY: all have these sizes. Memory is freed in the stream's order.
        unsafe {
            self.calibrate(Kernel::RoundScaled { grouped: group_size.is_some() }, n, parameters)?;
            linear.prepack(self, (codes.address(), multiples.address(), channels.address()))?;
        }
        Ok(())
    }

    /// Of schemes whose weights no kernel makes of codes on the device: codes and scales are made there, as the solver makes
    /// them, and the layer of these on the host.
    fn round_by_host(
        &self,
        weights: &CudaWeights,
        s: &[f32],
        scheme: Scheme,
        bias: Option<&[f32]>,
        linear: &mut Option<CudaLinear>,
    ) -> Result<()> {
        let (n, k) = (weights.n, weights.k);
        let device = self.device();
        let factors = Buffer::of(device, s)?;
        let scaled = Buffer::new(device, 4 * n * k)?;
        self.floats(weights.values.address(), DType::F32, factors.address(), &scaled, n * k, k)?;
        let (codes, scales) = self.rounded(scaled.address(), (n, k), scheme)?;
        *linear = None;
        let layer = scheme.layer(scheme.weight((n, k), codes, scales), self.half());
        *linear = Some(self.linear_weight(layer, bias.map(<[f32]>::to_vec))?);
        Ok(())
    }

    /// Codes and effective scales, `n x k` and `n x groups`, of weights at an address rounded to nearest, where every largest
    /// weight just fits.
    fn rounded(&self, weights: u64, (n, k): (usize, usize), scheme: Scheme) -> Result<(Vec<i8>, Vec<f32>)> {
        let device = self.device();
        let group = scheme.group_size.unwrap_or(k);
        let count = n * (k / group);
        let grid = scheme.grid();
        let importance = Buffer::of(device, &vec![1.0f32; k])?;
        let [scales, codes] = [Buffer::new(device, 4 * count)?, Buffer::new(device, n * k)?];
        let scaling = ScaleParameters {
            weights,
            importance: importance.address(),
            scales: scales.address(),
            n: n as i32,
            k: k as i32,
            group: group as i32,
            low: grid.low,
            high: grid.high,
            reach: grid.reach,
            from: 100,
            to: 100,
            stride: 0,
            steep: 0,
            value_type: value_type(DType::F32)?,
        };
        let rounding = CodeParameters {
            weights,
            scales: scales.address(),
            channels: 0,
            codes: codes.address(),
            out: 0,
            n: n as i32,
            k: k as i32,
            group: group as i32,
            low: grid.low,
            high: grid.high,
        };
        // SAFETY: all have these sizes; what has no address is neither read nor written.
        unsafe {
            self.calibrate(Kernel::ChooseScales { grouped: scheme.group_size.is_some() }, count, scaling)?;
            self.calibrate(Kernel::FillScales, n, scaling)?;
            self.calibrate(Kernel::RoundCodes, n * k, rounding)?;
        }
        Ok((bytemuck::cast_vec(codes.read(n * k)?), read_values(&scales, count, DType::F32)?))
    }

    /// Rows of a float input whose channel `j` is divided by `s[j]`, in 16 bits.
    pub(super) fn divide_columns(&self, x: &CudaInput, s: &[f32], out: &mut CudaInput) -> Result<()> {
        let (rows, k) = (x.rows, x.cols);
        check_float(x)?;
        check_factors(s, k)?;
        check_half_width(k)?;
        let inverse: Vec<f32> = s.iter().map(|s| 1.0 / s).collect();
        let factors = Buffer::of(self.device(), &inverse)?;
        let values = Buffer::new(self.device(), 4 * rows * k)?;
        self.floats(x.buffer.address(), x.half, factors.address(), &values, rows * k, k)?;
        out.reshape(rows, k, Elements::Half)?;
        let count = rows * k / 2;
        let parameters =
            HalvesParameters { x: values.address(), out: out.buffer.address(), count: count as i64 };
        // SAFETY: both have this size.
        Ok(unsafe { self.calibrate(Kernel::Halves(out.half), count, parameters) }?)
    }

    /// See [`Calibrate::smooth_input`](qqq_backend::Calibrate::smooth_input). From the product with `1 / s` to the codes all is
    /// float32, as behind a norm into which the factors were absorbed.
    pub(super) fn smooth_rows(&self, x: &CudaInput, s: &[f32], out: &mut CudaInput) -> Result<()> {
        let (rows, k) = (x.rows, x.cols);
        check_float(x)?;
        check_factors(s, k)?;
        if !k.is_multiple_of(16) {
            return Err(BackendError::Shape(format!(
                "{k} input channels: the GPU kernels take multiples of 16"
            )));
        }
        let inverse: Vec<f32> = s.iter().map(|s| 1.0 / s).collect();
        let factors = Buffer::of(self.device(), &inverse)?;
        out.reshape(rows, k, Elements::Int8)?;
        let parameters = SmoothParameters {
            x: x.buffer.address(),
            factors: factors.address(),
            out: out.buffer.address(),
            scales: out.scales.address(),
            k: k as i32,
        };
        // SAFETY: all have these sizes.
        Ok(unsafe { self.calibrate(Kernel::SmoothRows(x.half), rows, parameters) }?)
    }

    /// See [`Calibrate::channel_range`](qqq_backend::Calibrate::channel_range).
    pub(super) fn range_of(&self, x: &CudaInput) -> Result<(Vec<f32>, Vec<f32>)> {
        check_float(x)?;
        let (rows, k) = (x.rows, x.cols);
        let [most, least] = [Buffer::new(self.device(), 4 * k)?, Buffer::new(self.device(), 4 * k)?];
        let parameters = RangeParameters {
            x: x.buffer.address(),
            most: most.address(),
            least: least.address(),
            rows: rows as i32,
            k: k as i32,
            value_type: value_type(x.half)?,
        };
        // SAFETY: all have these sizes.
        unsafe { self.calibrate(Kernel::ChannelRange, k, parameters) }?;
        Ok((read_values(&most, k, DType::F32)?, read_values(&least, k, DType::F32)?))
    }

    /// See [`Calibrate::squared_distance`](qqq_backend::Calibrate::squared_distance). Summed by rows in float64, then over
    /// rows in their order.
    pub(super) fn distance(&self, a: &CudaInput, b: Option<&CudaInput>) -> Result<f64> {
        check_float(a)?;
        if let Some(b) = b {
            check_float(b)?;
            if (a.rows, a.cols, a.half) != (b.rows, b.cols, b.half) {
                return Err(BackendError::Shape(format!(
                    "{} x {} values compared with {} x {}",
                    a.rows, a.cols, b.rows, b.cols
                )));
            }
        }
        let sums = Buffer::new(self.device(), 8 * a.rows)?;
        let parameters = DistanceParameters {
            a: a.buffer.address(),
            b: b.map_or(0, |b| b.buffer.address()),
            out: sums.address(),
            columns: a.cols as i32,
            value_type: value_type(a.half)?,
        };
        // SAFETY: all have these sizes.
        unsafe { self.calibrate(Kernel::Distances, a.rows, parameters) }?;
        Ok(doubles(&sums, a.rows)?.iter().sum())
    }
}

fn check_float(x: &CudaInput) -> Result<()> {
    match x.elements {
        Elements::Half => Ok(()),
        Elements::Int8 => Err(BackendError::Shape("int8 rows where float ones are smoothed".into())),
    }
}

fn check_factors(s: &[f32], k: usize) -> Result<()> {
    if s.len() == k {
        return Ok(());
    }
    Err(BackendError::Shape(format!("{} factors for {k} channels", s.len())))
}
