//! Little-endian bytes to float values, with the check that all are finite.

use half::{bf16, f16};

use crate::{DType, FormatError, Result, WeightData};

/// Elements checked at a time: a block stays in the first-level cache between reading and checking.
const BLOCK: usize = 4096;

/// Decodes a stored float tensor. `bytes.len()` must be a multiple of the type's size.
///
/// # Errors
/// [`FormatError::Type`] for other types than `F32`, `F16`, `BF16`; [`FormatError::NotFinite`].
pub(crate) fn decode(location: &str, name: &str, dtype: DType, bytes: &[u8]) -> Result<WeightData> {
    let data = match dtype {
        DType::F32 => {
            WeightData::F32(bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
        }
        DType::F16 => {
            WeightData::F16(bytes.as_chunks::<2>().0.iter().map(|&b| f16::from_le_bytes(b)).collect())
        }
        DType::BF16 => {
            WeightData::BF16(bytes.as_chunks::<2>().0.iter().map(|&b| bf16::from_le_bytes(b)).collect())
        }
        other => {
            return Err(FormatError::Type {
                location: location.into(),
                name: name.into(),
                found: other.name().into(),
                expected: "F32, F16 or BF16".into(),
            });
        }
    };
    check(location, name, data)
}

/// A stored float tensor of so many bytes (a multiple of the type's size), which `fill` reads: where it can be, into the place
/// of the values.
///
/// # Errors
/// As [`decode`], and `fill`'s.
pub(crate) fn read(
    location: &str,
    name: &str,
    dtype: DType,
    bytes: usize,
    fill: impl FnOnce(&mut [u8]) -> Result<()>,
) -> Result<WeightData> {
    let size = match dtype {
        DType::F32 => 4,
        DType::F16 | DType::BF16 => 2,
        _ => 0,
    };
    if size > 0 && cfg!(target_endian = "little") {
        let mut data = WeightData::zeros(dtype, bytes / size);
        fill(data.bytes_mut())?;
        return check(location, name, data);
    }
    let mut stored = vec![0; bytes];
    fill(&mut stored)?;
    decode(location, name, dtype, &stored)
}

/// Passes on values that are all finite.
///
/// # Errors
/// [`FormatError::NotFinite`].
pub(crate) fn check(location: &str, name: &str, data: WeightData) -> Result<WeightData> {
    let bad = match &data {
        WeightData::F32(v) => not_finite(v, |x| x.to_bits() & 0x7F80_0000 == 0x7F80_0000),
        WeightData::F16(v) => not_finite(v, |x| x.to_bits() & 0x7C00 == 0x7C00),
        WeightData::BF16(v) => not_finite(v, |x| x.to_bits() & 0x7F80 == 0x7F80),
    };
    match bad {
        None => Ok(data),
        Some((first, count)) => {
            Err(FormatError::NotFinite { location: location.into(), name: name.into(), count, first })
        }
    }
}

/// Index of the first value for which `bad` holds, and their number. The usual case, none, is one pass
/// without branches inside a block.
fn not_finite<T: Copy>(values: &[T], bad: impl Fn(T) -> bool) -> Option<(usize, usize)> {
    let clean = values.chunks(BLOCK).all(|block| !block.iter().fold(false, |any, &x| any | bad(x)));
    if clean {
        return None;
    }
    let first = values.iter().position(|&x| bad(x))?;
    Some((first, values[first..].iter().filter(|&&x| bad(x)).count()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(values: &[[u8; N]]) -> Vec<u8> {
        values.concat()
    }

    #[test]
    fn every_float_type_keeps_its_bits() {
        let f = [1.5f32, -0.0, f32::MAX, f32::MIN_POSITIVE / 2.0];
        let got = decode("f", "t", DType::F32, &bytes(&f.map(f32::to_le_bytes))).unwrap();
        assert_eq!(got, WeightData::F32(f.to_vec()));
        let h = [1.5f32, -65504.0, 6e-8].map(f16::from_f32);
        assert_eq!(
            decode("f", "t", DType::F16, &bytes(&h.map(f16::to_le_bytes))).unwrap(),
            WeightData::F16(h.to_vec())
        );
        let b = [1.5f32, -3.0e38, 1e-40].map(bf16::from_f32);
        assert_eq!(
            decode("f", "t", DType::BF16, &bytes(&b.map(bf16::to_le_bytes))).unwrap(),
            WeightData::BF16(b.to_vec())
        );
    }

    #[test]
    fn values_that_are_not_finite_are_counted() {
        let mut v = vec![0.25f32; 3 * BLOCK + 17];
        v[BLOCK + 5] = f32::NAN;
        v[2 * BLOCK] = f32::NEG_INFINITY;
        v[3 * BLOCK + 16] = f32::INFINITY;
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let raw: Vec<u8> = match dtype {
                DType::F32 => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
                DType::F16 => v.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
                _ => v.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            };
            match decode("f", "t", dtype, &raw) {
                Err(FormatError::NotFinite { count: 3, first, .. }) => assert_eq!(first, BLOCK + 5),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn integers_are_not_floats() {
        let e = decode("f", "t", DType::I32, &[0; 4]).unwrap_err();
        assert!(e.to_string().contains("I32"), "{e}");
    }
}
