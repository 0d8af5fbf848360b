//! Dequantization of GGUF's block types to f32.
//!
//! The arithmetic (order of multiplications and subtractions, each rounded to f32) is that of
//! llama.cpp's `dequantize_row_*` and of the Python package `gguf`, so the values agree bit for
//! bit. All integers of a block are little-endian.

mod k_quants;
mod legacy;

use half::f16;

use super::GgmlType;

/// Reads whole blocks and writes their values.
type Kernel = fn(&[u8], &mut [f32]);

impl GgmlType {
    /// The kernel of this type: reads `out.len() / block()` blocks, `None` if there is none.
    fn kernel(self) -> Option<Kernel> {
        Some(match self.name() {
            "Q4_0" => legacy::q4_0,
            "Q4_1" => legacy::q4_1,
            "Q5_0" => legacy::q5_0,
            "Q5_1" => legacy::q5_1,
            "Q8_0" => legacy::q8_0,
            "Q2_K" => k_quants::q2_k,
            "Q3_K" => k_quants::q3_k,
            "Q4_K" => k_quants::q4_k,
            "Q5_K" => k_quants::q5_k,
            "Q6_K" => k_quants::q6_k,
            "Q8_K" => k_quants::q8_k,
            _ => return None,
        })
    }

    /// Dequantizes whole blocks of a block type; `None` if this type has no dequantizer (the plain
    /// float types need none) or `bytes` is no whole number of blocks.
    pub fn dequantize(self, bytes: &[u8]) -> Option<Vec<f32>> {
        let kernel = self.kernel()?;
        if !bytes.len().is_multiple_of(self.block_bytes()) {
            return None;
        }
        let mut out = vec![0.0; bytes.len() / self.block_bytes() * self.block()];
        kernel(bytes, &mut out);
        Some(out)
    }
}

/// `N` bytes at a time with `E` elements at a time.
fn blocks<'a, const N: usize, const E: usize>(
    bytes: &'a [u8],
    out: &'a mut [f32],
) -> impl Iterator<Item = (&'a [u8; N], &'a mut [f32; E])> {
    bytes.as_chunks::<N>().0.iter().zip(out.as_chunks_mut::<E>().0)
}

/// The f16 at byte `at` of a block.
fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}
