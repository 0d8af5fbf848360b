//! The 16-bit type of everything that is not quantized: embedding, output head, norms, biases.

use half::{
    bf16, f16,
    slice::{HalfBitsSliceExt, HalfFloatSliceExt},
};
use qqq_backend::pool::parallel_each_mut;
use qqq_formats::{DType, WeightData};

use crate::{QuantError, Result};

/// Values that are rounded at a time.
const PIECE: usize = 256;
/// Values that one task rounds.
const SHARE: usize = 1 << 16;

/// A 16-bit float type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfType {
    /// IEEE binary16: 11 bits of precision, up to 65,504.
    F16,
    /// bfloat16: 8 bits of precision, the range of binary32.
    BF16,
}

impl HalfType {
    /// As a type of tensors on disk.
    pub fn dtype(self) -> DType {
        match self {
            HalfType::F16 => DType::F16,
            HalfType::BF16 => DType::BF16,
        }
    }

    /// As `config.json` spells it.
    pub fn config_name(self) -> &'static str {
        match self {
            HalfType::F16 => "float16",
            HalfType::BF16 => "bfloat16",
        }
    }

    /// `x` after a round trip through this type.
    pub fn round(self, x: f32) -> f32 {
        match self {
            HalfType::F16 => f16::from_f32(x).to_f32(),
            HalfType::BF16 => bf16::from_f32(x).to_f32(),
        }
    }

    /// Rounds values in place.
    pub fn round_all(self, values: &mut [f32]) {
        values.iter_mut().for_each(|x| *x = self.round(*x));
    }

    /// Numbers of this type by their little-endian bytes.
    pub fn values(self, bytes: Vec<u8>) -> WeightData {
        let numbers = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        match self {
            HalfType::F16 => WeightData::F16(numbers.map(f16::from_bits).collect()),
            HalfType::BF16 => WeightData::BF16(numbers.map(bf16::from_bits).collect()),
        }
    }

    /// Little-endian bytes of the rounded values, appended to `out`.
    ///
    /// # Errors
    /// A value that the type cannot hold.
    pub fn append(self, name: &str, values: &[f32], out: &mut Vec<u8>) -> Result<()> {
        if values.len() <= SHARE {
            return self.append_here(name, values, out);
        }
        let mut parts: Vec<_> = values.chunks(SHARE).map(|values| (values, Vec::new(), Ok(()))).collect();
        parallel_each_mut(&mut parts, |_, (values, bytes, result)| {
            *result = self.append_here(name, values, bytes);
        });
        out.reserve(values.len() * 2);
        for (_, bytes, result) in parts {
            result?;
            out.extend(bytes);
        }
        Ok(())
    }

    fn append_here(self, name: &str, values: &[f32], out: &mut Vec<u8>) -> Result<()> {
        out.reserve(values.len() * 2);
        // Some at a time, for which processors have instructions.
        let mut buffer = [0; PIECE];
        for values in values.chunks(PIECE) {
            let bits = &mut buffer[..values.len()];
            let first_bad = match self {
                HalfType::F16 => {
                    let halves: &mut [f16] = bits.reinterpret_cast_mut();
                    halves.convert_from_f32_slice(values);
                    halves.iter().position(|h| !h.is_finite())
                }
                HalfType::BF16 => {
                    let halves: &mut [bf16] = bits.reinterpret_cast_mut();
                    halves.convert_from_f32_slice(values);
                    halves.iter().position(|h| !h.is_finite())
                }
            };
            if let Some(i) = first_bad {
                return Err(QuantError::NotFinite {
                    layer: name.to_owned(),
                    reason: format!(
                        "the value {} is beyond the range of {}, in which it is to be stored{}",
                        values[i],
                        self.config_name(),
                        match self {
                            HalfType::F16 => "; save the model as bfloat16 first, or leave it unrotated",
                            HalfType::BF16 => "",
                        }
                    ),
                });
            }
            let begin = out.len();
            out.resize(begin + 2 * bits.len(), 0);
            for (bytes, bits) in out[begin..].chunks_exact_mut(2).zip(bits) {
                bytes.copy_from_slice(&bits.to_le_bytes());
            }
        }
        Ok(())
    }
}

/// The rows from `first` on of a matrix with `cols` columns, in its type.
pub(crate) fn some_rows(data: &WeightData, cols: usize, first: usize, rows: usize) -> WeightData {
    data.part(first * cols..(first + rows) * cols)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip_and_overflow_is_an_error() {
        for half in [HalfType::F16, HalfType::BF16] {
            let values = [0.0, 1.0, -2.5, 0.1, 1000.0];
            let mut bytes = Vec::new();
            half.append("t", &values, &mut bytes).unwrap();
            assert_eq!(half.values(bytes.clone()).into_f32(), values.map(|x| half.round(x)));
            // Many are as one.
            let many: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.3) * 1.37f32.powi(i % 37 - 30)).collect();
            let mut bytes = Vec::new();
            half.append("t", &many, &mut bytes).unwrap();
            assert_eq!(
                half.values(bytes.clone()).into_f32(),
                many.iter().map(|x| half.round(*x)).collect::<Vec<_>>()
            );
        }
        let error = HalfType::F16.append("model.norm.weight", &[1e6], &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("model.norm.weight"), "{error}");
        HalfType::BF16.append("t", &[1e6], &mut Vec::new()).unwrap();
    }
}
