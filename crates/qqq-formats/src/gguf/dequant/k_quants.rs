//! The types with super-blocks of 256: sub-blocks of 16 or 32 elements whose scales (and minima)
//! are small integers, times one f16 scale (and minimum) of the super-block.

use super::{blocks, f16_at};

/// 16 scales and minima of 4 bits, 64 bytes of 2-bit codes, `d`, `dmin`:
/// `q * (d * scale) - dmin * min`, sub-blocks of 16.
pub(super) fn q2_k(x: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<84, 256>(x, out) {
        let (scales, qs) = (&b[..16], &b[16..80]);
        let (d, dmin) = (f16_at(b, 80), f16_at(b, 82));
        for (s, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let (dl, ml) = (d * f32::from(scales[s] & 15), dmin * f32::from(scales[s] >> 4));
            // 32 bytes hold 128 elements: the two bits at 2j of each are elements 32j..32j + 32.
            let (from, shift) = (s / 8 * 32 + s % 2 * 16, s / 2 % 4 * 2);
            for (y, &q) in y.iter_mut().zip(&qs[from..from + 16]) {
                *y = dl * f32::from(q >> shift & 3) - ml;
            }
        }
    }
}

/// The 16 six-bit scales of Q3_K, less 32: low nibbles in bytes 0..8 (scales 0..8 low, 8..16
/// high), the upper two bits in bytes 8..12.
fn q3_scales(packed: &[u8]) -> [i8; 16] {
    std::array::from_fn(|i| {
        let low = packed[i % 8] >> (i / 8 * 4) & 15;
        let high = packed[8 + i % 4] >> (i / 4 * 2) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// 256 third bits (a set bit means no offset of -4), 64 bytes of 2-bit codes, 16 scales of 6 bits,
/// `d`: `q * (d * scale)`, sub-blocks of 16.
pub(super) fn q3_k(x: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<110, 256>(x, out) {
        let (hmask, qs) = (&b[..32], &b[32..96]);
        let scales = q3_scales(&b[96..108]);
        let d = f16_at(b, 108);
        for (s, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let dl = d * f32::from(scales[s]);
            let (from, shift) = (s / 8 * 32 + s % 2 * 16, s / 2 % 4 * 2);
            let (hfrom, hbit) = (s % 2 * 16, s / 2);
            for (i, y) in y.iter_mut().enumerate() {
                let offset = if hmask[hfrom + i] >> hbit & 1 == 1 { 0 } else { 4 };
                *y = dl * f32::from((qs[from + i] >> shift & 3) as i8 - offset);
            }
        }
    }
}

/// Scale and minimum of sub-block `i` of Q4_K and Q5_K, six bits each: the first four pairs in the
/// low bits of bytes 0..4 and 4..8, the rest in the nibbles of bytes 8..12 and the upper bits of
/// bytes 0..8.
fn scale_min(packed: &[u8], i: usize) -> (f32, f32) {
    let (scale, min) = if i < 4 {
        (packed[i] & 63, packed[i + 4] & 63)
    } else {
        (packed[i + 4] & 15 | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}

/// `d`, `dmin`, 8 scales and minima of 6 bits, 128 bytes of nibbles:
/// `q * (d * scale) - dmin * min`, sub-blocks of 32.
pub(super) fn q4_k(x: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<144, 256>(x, out) {
        let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
        let (scales, qs) = (&b[4..16], &b[16..]);
        for (s, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = scale_min(scales, s);
            let (dl, ml) = (d * scale, dmin * min);
            // 32 bytes hold 64 elements: low nibbles first.
            let (from, shift) = (s / 2 * 32, s % 2 * 4);
            for (y, &q) in y.iter_mut().zip(&qs[from..from + 32]) {
                *y = dl * f32::from(q >> shift & 15) - ml;
            }
        }
    }
}

/// Q4_K with 256 fifth bits (bit `s` of byte `i`: element `i` of sub-block `s`) before the nibbles.
pub(super) fn q5_k(x: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<176, 256>(x, out) {
        let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
        let (scales, qh, qs) = (&b[4..16], &b[16..48], &b[48..]);
        for (s, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = scale_min(scales, s);
            let (dl, ml) = (d * scale, dmin * min);
            let (from, shift) = (s / 2 * 32, s % 2 * 4);
            for (i, y) in y.iter_mut().enumerate() {
                let q = qs[from + i] >> shift & 15 | (qh[i] >> s & 1) << 4;
                *y = dl * f32::from(q) - ml;
            }
        }
    }
}

/// 128 bytes of low nibbles, 64 bytes of upper two bits, 16 signed scales, `d`:
/// `(q - 32) * (d * scale)`, sub-blocks of 16.
pub(super) fn q6_k(x: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<210, 256>(x, out) {
        let (ql, qh, scales) = (&b[..128], &b[128..192], &b[192..208]);
        let d = f16_at(b, 208);
        for (s, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let dl = d * f32::from(scales[s] as i8);
            // Halves of 128 elements: 64 bytes of nibbles (elements 0..64 low, 64..128 high) and
            // 32 bytes of upper bits (two bits at 2j: elements 32j..32j + 32).
            let (half, within) = (s / 8, s % 8);
            let (lfrom, lshift) = (half * 64 + within % 4 * 16, within / 4 * 4);
            let (hfrom, hshift) = (half * 32 + within % 2 * 16, within / 2 * 2);
            for (i, y) in y.iter_mut().enumerate() {
                let q = ql[lfrom + i] >> lshift & 15 | (qh[hfrom + i] >> hshift & 3) << 4;
                *y = dl * f32::from(q as i8 - 32);
            }
        }
    }
}

/// `d` as f32, 256 signed bytes, 16 sums that dequantization does not need: `q * d`.
pub(super) fn q8_k(x: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<292, 256>(x, out) {
        let d = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        for (y, &q) in y.iter_mut().zip(&b[4..260]) {
            *y = d * f32::from(q as i8);
        }
    }
}
