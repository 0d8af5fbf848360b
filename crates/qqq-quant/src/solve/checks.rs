//! What is refused before a layer is solved.

use half::f16;
use qqq_backend::first_not_finite;

use super::{Correction, ScaleDType, SolveOptions, not_finite, numerics};
use crate::{QuantError, Result};

fn check_shape(layer: &str, what: &str, len: usize, rows: usize, cols: usize) -> Result<()> {
    match rows.checked_mul(cols) {
        Some(want) if want == len && want > 0 => Ok(()),
        _ => Err(QuantError::Recipe(format!("{layer}: {what} has {len} values, not {rows} x {cols}"))),
    }
}

pub(super) fn check(layer: &str, weights: &[f32], n: usize, k: usize, options: &SolveOptions) -> Result<()> {
    check_shape(layer, "the weight", weights.len(), n, k)?;
    check_options(layer, k, options)?;
    if let Some(i) = first_not_finite(weights) {
        return Err(not_finite(layer, format!("weight [{}, {}] is {}", i / k, i % k, weights[i])));
    }
    let grid = options.scheme().grid();
    let largest = weights.iter().fold(0.0f32, |max, w| max.max(w.abs()));
    if options.scale_dtype == ScaleDType::F16 && largest / grid.reach > f16::MAX.to_f32() {
        return Err(too_large(layer, largest));
    }
    Ok(())
}

pub(super) fn check_options(layer: &str, k: usize, options: &SolveOptions) -> Result<()> {
    if let Err(reason) = options.scheme().check(k) {
        return Err(QuantError::Recipe(format!(
            "{layer}: {reason}; choose another group size, or per channel"
        )));
    }
    if !(options.damping >= 0.0 && options.damping.is_finite()) {
        return Err(QuantError::Recipe(format!(
            "{layer}: damping is {}, but must be a number >= 0",
            options.damping
        )));
    }
    Ok(())
}

/// Why scales do not fit float16.
pub(super) fn too_large(layer: &str, largest: f32) -> QuantError {
    not_finite(
        layer,
        format!(
            "weights of up to {largest} take scales beyond float16, the type of the model's 16-bit tensors; save the \
             model as bfloat16 first, or choose the qqq format, whose scales are float32"
        ),
    )
}

pub(super) fn check_hessian(layer: &str, hessian: &[f32], k: usize) -> Result<()> {
    check_shape(layer, "the Hessian", hessian.len(), k, k)?;
    if let Some(i) = first_not_finite(hessian) {
        return Err(not_finite(
            layer,
            format!(
                "Hessian [{}, {}] is {}: the layer's inputs overflowed during calibration; the model's weights are damaged, \
                 or too large for 32-bit floats",
                i / k,
                i % k,
                hessian[i]
            ),
        ));
    }
    if let Some(j) = (0..k).find(|j| hessian[j * k + j] < 0.0) {
        return Err(numerics(
            layer,
            format!("Hessian [{j}, {j}] is {}: no sum of squares", hessian[j * k + j]),
        ));
    }
    Ok(())
}

/// Scales that are given.
pub(super) fn check_scales(
    layer: &str,
    scales: &[f32],
    n: usize,
    k: usize,
    options: &SolveOptions,
) -> Result<()> {
    check_shape(layer, "the list of its scales", scales.len(), n, k / options.group_size.unwrap_or(k))?;
    match scales.iter().find(|scale| !(scale.is_finite() && **scale > 0.0)) {
        Some(scale) => Err(not_finite(layer, format!("a scale of its weights is {scale}"))),
        None => Ok(()),
    }
}

pub(super) fn check_correction(layer: &str, correction: &Correction<'_>, k: usize) -> Result<()> {
    for values in [correction.cross, correction.square] {
        check_shape(layer, "the deviation of its inputs", values.len(), k, k)?;
        if let Some(i) = first_not_finite(values) {
            return Err(not_finite(
                layer,
                format!(
                    "the deviation of its inputs [{}, {}] is {}: they overflowed during calibration",
                    i / k,
                    i % k,
                    values[i]
                ),
            ));
        }
    }
    Ok(())
}
