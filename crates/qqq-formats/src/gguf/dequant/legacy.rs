//! The types with blocks of 32: a scale (`_0`), or a scale and a minimum (`_1`), in f16.
//!
//! Nibble `i` of the 16 bytes `qs` is element `i` (low) and element `i + 16` (high).

use super::{blocks, f16_at};

/// `d`, 16 bytes of nibbles: `(q - 8) * d`.
pub(super) fn q4_0(x: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<18, 32>(x, out) {
        let d = f16_at(b, 0);
        for i in 0..16 {
            y[i] = d * f32::from((b[2 + i] & 15) as i8 - 8);
            y[i + 16] = d * f32::from((b[2 + i] >> 4) as i8 - 8);
        }
    }
}

/// `d`, `m`, 16 bytes of nibbles: `q * d + m`.
pub(super) fn q4_1(x: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<20, 32>(x, out) {
        let (d, m) = (f16_at(b, 0), f16_at(b, 2));
        for i in 0..16 {
            y[i] = d * f32::from(b[4 + i] & 15) + m;
            y[i + 16] = d * f32::from(b[4 + i] >> 4) + m;
        }
    }
}

/// The fifth bits of elements `i` and `i + 16`, in place (0 or 16).
fn fifth_bits(qh: u32, i: usize) -> (u8, u8) {
    (((qh >> i) & 1) as u8 * 16, ((qh >> (i + 16)) & 1) as u8 * 16)
}

/// `d`, 32 fifth bits, 16 bytes of nibbles: `(q - 16) * d`.
pub(super) fn q5_0(x: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<22, 32>(x, out) {
        let d = f16_at(b, 0);
        let qh = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
        for i in 0..16 {
            let (lo, hi) = fifth_bits(qh, i);
            y[i] = d * f32::from((b[6 + i] & 15 | lo) as i8 - 16);
            y[i + 16] = d * f32::from((b[6 + i] >> 4 | hi) as i8 - 16);
        }
    }
}

/// `d`, `m`, 32 fifth bits, 16 bytes of nibbles: `q * d + m`.
pub(super) fn q5_1(x: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<24, 32>(x, out) {
        let (d, m) = (f16_at(b, 0), f16_at(b, 2));
        let qh = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
        for i in 0..16 {
            let (lo, hi) = fifth_bits(qh, i);
            y[i] = d * f32::from(b[8 + i] & 15 | lo) + m;
            y[i + 16] = d * f32::from(b[8 + i] >> 4 | hi) + m;
        }
    }
}

/// `d`, 32 signed bytes: `q * d`.
pub(super) fn q8_0(x: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<34, 32>(x, out) {
        let d = f16_at(b, 0);
        for (y, &q) in y.iter_mut().zip(&b[2..]) {
            *y = d * f32::from(q as i8);
        }
    }
}
