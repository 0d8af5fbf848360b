//! Weights of 4 or 8 bits for 16-bit activations, which a CPU multiplies as the floats that they stand for.

use half::{bf16, f16};
use qqq_formats::{DType, QuantizedWeight, WeightData};

use crate::pool::parallel_chunks_mut;
use crate::{BackendError, Result};

/// What a weight's codes stand for, `code * scale`, rounded once to `dtype`; shape `N x K`.
///
/// # Errors
/// A weight that does not [hold what it promises](QuantizedWeight::check).
pub(super) fn float_weights(weight: &QuantizedWeight, dtype: DType) -> Result<WeightData> {
    weight.check("weight").map_err(|e| BackendError::Shape(e.to_string()))?;
    let mut data = WeightData::zeros(dtype, weight.codes.len());
    match &mut data {
        WeightData::F32(out) => fill(out, weight, |v| v),
        WeightData::F16(out) => fill(out, weight, f16::from_f32),
        WeightData::BF16(out) => fill(out, weight, bf16::from_f32),
    }
    Ok(data)
}

fn fill<T: Send>(out: &mut [T], weight: &QuantizedWeight, round: impl Fn(f32) -> T + Sync) {
    parallel_chunks_mut(out, weight.in_features, |row, out| {
        out.iter_mut().zip(weight.row_values(row)).for_each(|(o, v)| *o = round(v));
    });
}
