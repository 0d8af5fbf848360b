//! A simulated layer: its weights, and the arithmetic that belongs to them.

use std::ops::Range;

use super::{LlmInt8, OUTLIER_SCALE, OUTLIERS, SCALE, Simulated, SimulatedMethod};
use crate::{DType, FormatError, Result, WeightData, layer::Source, writer::CheckpointWriter};

/// What a simulated layer does with its input and its weights.
#[derive(Clone, Debug, PartialEq)]
pub enum Arithmetic {
    /// Weights rounded to int8 by each output channel's largest magnitude; inputs by each token's, of the channels in which no
    /// token of the step reaches the threshold. These alone are multiplied by the 16-bit weights.
    LlmInt8 {
        /// Magnitude that makes an outlier.
        threshold: f32,
    },
    /// Weights are codes times scales, but in outlier channels, where they are what they are. Inputs are rounded to the codes of
    /// their token, from its least value to its largest, but in these channels.
    Quik {
        /// Bits of both kinds of codes, 4 or 8.
        bits: u8,
        /// Scales of the output channels, shape `N`.
        scales: Vec<f32>,
        /// Outlier channels, rising.
        outliers: Vec<usize>,
        /// Where the outliers have 8 bits: the scales of their weights, shape `N`. Inputs are rounded there as elsewhere, among
        /// themselves. `None`: they have 16.
        outlier_scales: Option<Vec<f32>>,
    },
}

impl Arithmetic {
    /// That of some of a layer's output channels.
    pub(crate) fn of_rows(&self, rows: Range<usize>) -> Self {
        match self.clone() {
            Self::Quik { bits, scales, outliers, outlier_scales } => Self::Quik {
                bits,
                scales: scales[rows.clone()].to_vec(),
                outliers,
                outlier_scales: outlier_scales.map(|scales| scales[rows].to_vec()),
            },
            other => other,
        }
    }
}

/// A layer whose arithmetic is simulated.
#[derive(Clone, Debug, PartialEq)]
pub struct SimulatedWeight {
    /// Output channels, `N`.
    pub out_features: usize,
    /// Input channels, `K`.
    pub in_features: usize,
    /// `N K` values.
    pub data: WeightData,
    /// What is done with them.
    pub arithmetic: Arithmetic,
}

impl SimulatedWeight {
    /// The codes of a [`Arithmetic::Quik`] layer, shape `N x K`, zero in outlier channels; `None` for another arithmetic.
    ///
    /// # Errors
    /// [`FormatError::Layout`]: a weight that is no code times its scale.
    pub fn codes(&self) -> Result<Option<Vec<i8>>> {
        match &self.arithmetic {
            Arithmetic::Quik { bits, scales, outliers, .. } => {
                self.codes_of(*bits, scales, outliers, false).map(Some)
            }
            Arithmetic::LlmInt8 { .. } => Ok(None),
        }
    }

    /// The 8-bit codes of its outlier channels, shape `N x K`, zero elsewhere; `None` where these have none.
    ///
    /// # Errors
    /// As [`codes`](Self::codes).
    pub fn outlier_codes(&self) -> Result<Option<Vec<i8>>> {
        match &self.arithmetic {
            Arithmetic::Quik { outliers, outlier_scales: Some(scales), .. } => {
                self.codes_of(8, scales, outliers, true).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Codes of `bits` bits, in outlier channels alone or in the others alone.
    fn codes_of(&self, bits: u8, scales: &[f32], outliers: &[usize], of_outliers: bool) -> Result<Vec<i8>> {
        let k = self.in_features;
        let values = self.data.clone().into_f32();
        let (low, high) = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1);
        let mut codes = vec![0i8; values.len()];
        let rows = codes.chunks_exact_mut(k).zip(values.chunks_exact(k)).zip(scales).enumerate();
        for (row, ((codes, values), &scale)) in rows {
            let mut outliers = outliers.iter().copied().peekable();
            for (j, (code, &value)) in codes.iter_mut().zip(values).enumerate() {
                if outliers.next_if_eq(&j).is_some() != of_outliers {
                    continue;
                }
                let nearest = (value / scale).round_ties_even();
                // A 16-bit number is off by 2^-9 of itself at most.
                let exact = (value - nearest * scale).abs() <= value.abs() / 256.0;
                if !exact || !(low as f32..=high as f32).contains(&nearest) {
                    return Err(FormatError::Layout(format!(
                        "weight [{row}, {j}] is {value}, which is no {bits}-bit code times the scale {scale} of its channel"
                    )));
                }
                *code = nearest as i8;
            }
        }
        Ok(codes)
    }

    /// Some of its output channels.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let k = self.in_features;
        Self {
            out_features: rows.len(),
            in_features: k,
            data: self.data.part(rows.start * k..rows.end * k),
            arithmetic: self.arithmetic.of_rows(rows),
        }
    }

    /// The layers of one input as one, in their order; `None` if their arithmetic differs.
    pub fn joined(parts: Vec<Self>) -> Option<Self> {
        let mut parts = parts.into_iter();
        let Self { mut out_features, in_features, data, mut arithmetic } = parts.next()?;
        let dtype = data.dtype();
        let mut values = data.into_f32();
        let mut alike = true;
        for part in parts {
            alike &= part.in_features == in_features && part.data.dtype() == dtype;
            alike &= join(&mut arithmetic, part.arithmetic);
            out_features += part.out_features;
            values.extend(part.data.into_f32());
        }
        let data = WeightData::of_f32(dtype, &values);
        alike.then_some(Self { out_features, in_features, data, arithmetic })
    }
}

/// Makes an arithmetic that of more output channels; `false` where theirs differs.
fn join(arithmetic: &mut Arithmetic, other: Arithmetic) -> bool {
    match (arithmetic, other) {
        (Arithmetic::LlmInt8 { threshold: a }, Arithmetic::LlmInt8 { threshold: b }) => *a == b,
        (
            Arithmetic::Quik { bits, scales, outliers, outlier_scales },
            Arithmetic::Quik {
                bits: other_bits,
                scales: more,
                outliers: others,
                outlier_scales: more_of_outliers,
            },
        ) => {
            scales.extend(more);
            let outliers_alike = match (outlier_scales, more_of_outliers) {
                (Some(scales), Some(more)) => {
                    scales.extend(more);
                    true
                }
                (scales, more) => scales.is_none() && more.is_none(),
            };
            *bits == other_bits && *outliers == others && outliers_alike
        }
        _ => false,
    }
}

impl CheckpointWriter {
    /// Adds the tensors of the simulated linear layer `prefix`.
    ///
    /// # Errors
    /// As [`CheckpointWriter::add`].
    pub fn add_simulated(&mut self, prefix: &str, weight: &SimulatedWeight) -> Result<()> {
        let SimulatedWeight { out_features: n, in_features: k, data, arithmetic } = weight;
        self.add_float(&format!("{prefix}.weight"), &[*n, *k], data)?;
        if let Arithmetic::Quik { scales, outliers, outlier_scales, .. } = arithmetic {
            for (name, scales) in [(SCALE, Some(scales)), (OUTLIER_SCALE, outlier_scales.as_ref())] {
                let Some(scales) = scales else { continue };
                let scales = WeightData::of_f32(data.dtype(), scales);
                self.add_float(&format!("{prefix}.{name}"), &[*n], &scales)?;
            }
            let columns: Vec<u8> = outliers.iter().flat_map(|j| (*j as i32).to_le_bytes()).collect();
            self.add(&format!("{prefix}.{OUTLIERS}"), DType::I32, &[outliers.len()], &columns)?;
        }
        Ok(())
    }
}

/// What layer `source` of a checkpoint with this record computes, apart from its weight; `None`: it multiplies by that.
///
/// # Errors
/// Tensors that are missing, or not what they should be.
pub(crate) fn arithmetic(
    record: &Simulated,
    source: &Source<'_>,
    n: usize,
    k: usize,
) -> Result<Option<Arithmetic>> {
    match record.method {
        SimulatedMethod::LlmInt8(LlmInt8 { threshold }) => Ok(Some(Arithmetic::LlmInt8 { threshold })),
        SimulatedMethod::Quik(quik) => {
            let scales = |name: &str| -> Result<Vec<f32>> {
                let scales = source.floats(name, &[n])?.into_f32();
                match scales.iter().position(|s| *s <= 0.0) {
                    Some(row) => {
                        Err(source.at(&format!("the {name} of output channel {row} is {}", scales[row])))
                    }
                    None => Ok(scales),
                }
            };
            let name = source.name(OUTLIERS);
            let Some(count) = source.tensors.info(&name).and_then(|info| info.shape.first().copied()) else {
                return Err(source.missing(OUTLIERS));
            };
            source.check(&name, DType::I32, &[count])?;
            let stored = source.words(OUTLIERS, &[count])?;
            let outliers: Vec<usize> = stored.iter().map(|j| *j as usize).collect();
            let rising = outliers.array_windows().all(|[a, b]| a < b);
            if !rising || outliers.iter().any(|j| *j >= k) || stored.iter().any(|j| *j < 0) {
                return Err(source.at(&format!("{OUTLIERS} are no rising numbers of its {k} input channels")));
            }
            let bits = quik.bits_of(source.prefix);
            let outlier_scales = (quik.outlier_bits == 8).then(|| scales(OUTLIER_SCALE)).transpose()?;
            Ok(Some(Arithmetic::Quik { bits, scales: scales(SCALE)?, outliers, outlier_scales }))
        }
        SimulatedMethod::SpQr(_) | SimulatedMethod::Quip(_) => Ok(None),
    }
}
