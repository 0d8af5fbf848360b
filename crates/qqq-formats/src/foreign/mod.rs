//! Weight-only 4-bit checkpoints (W4A16) of other tools, read as [`Int4Weight`](crate::Int4Weight)s, and the forms of GPTQ and compressed-tensors
//! that they are written in.
//!
//! | `quant_method` | layout | file |
//! |---|---|---|
//! | `gptq` | `qweight`, `qzeros`, `scales`, `g_idx`; zero points less one, or as they are (`gptq_v2`) | `gptq.rs` |
//! | `awq` | the same tensors, packed along the output channels in an interleaved order | `awq.rs` |
//! | `auto-round` | one of these two, as `packing_format` says | `config.rs` |
//! | `compressed-tensors` | `pack-quantized`, symmetric or not, without quantized activations | `packed.rs` |
//!
//! All of them store an unsigned code `u` and a zero point `z` per group: the weight is `(u - z) * scale`. `recentre.rs` makes
//! signed codes of that where nothing is lost, and refuses the layer otherwise.

mod act_order;
mod awq;
mod beside;
mod checkpoint;
mod config;
mod declared;
mod gptq;
mod packed;
mod recentre;

pub use checkpoint::{Int4Checkpoint, Int4Layer};
pub use config::Method;
pub use gptq::{GptqScales, gptq_value, write_gptq};
pub use packed::{packed_value, write_packed};
pub use recentre::Changes;

use crate::WeightData;

/// A weight as the formats have it: the float weight is `(u - z) * scale`.
#[derive(Clone, Debug)]
struct RawWeight {
    /// Output channels, `N`.
    n: usize,
    /// Input channels, `K`.
    k: usize,
    group_size: Option<usize>,
    /// Unsigned codes `0..=15`, `N x K`.
    codes: Vec<u8>,
    /// Zero points `0..=15`, `N x G`.
    zeros: Vec<u8>,
    /// `N x G`.
    scales: WeightData,
}

/// Codes of a word.
const PER_WORD: usize = 8;

/// The eight nibbles of a word, the lowest first.
fn nibbles(word: i32) -> [u8; PER_WORD] {
    std::array::from_fn(|i| (word.cast_unsigned() >> (4 * i) & 15) as u8)
}

/// Reverses [`nibbles`].
fn word(nibbles: impl Iterator<Item = u8>) -> i32 {
    nibbles.enumerate().fold(0u32, |word, (i, n)| word | u32::from(n & 15) << (4 * i)).cast_signed()
}
