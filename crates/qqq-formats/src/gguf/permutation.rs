//! The order of q and k rows.
//!
//! transformers' rotary embedding turns element `i` of a head with element `i + head_dim / 2`;
//! llama.cpp's, for the architecture `llama` and those made after it, turns `2i` with `2i + 1`. Its converter
//! moves the rows of q and k (weights and biases) accordingly: row `half * (head_dim / 2) + i` of a head becomes
//! row `2 * i + half`. Qwen models are stored unchanged.

use super::{Metadata, reader};
use crate::Result;

/// A tensor whose rows are permuted within heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Permuted {
    /// Bytes of a row, or of an element of a bias.
    row_bytes: usize,
    /// Rows of a head, even.
    head_rows: usize,
}

impl Permuted {
    /// Bytes of a head: rows move within one.
    pub(super) fn head_bytes(self) -> usize {
        self.row_bytes * self.head_rows
    }

    /// Moves the rows back to where Hugging Face has them. Rows of any type are runs of bytes, so
    /// this needs no dequantization.
    pub(super) fn restore(self, bytes: &[u8]) -> Vec<u8> {
        let row = self.row_bytes;
        let mut out = Vec::with_capacity(bytes.len());
        for head in bytes.chunks_exact(row * self.head_rows) {
            for half in [0, row] {
                for pair in head.chunks_exact(2 * row) {
                    out.extend_from_slice(&pair[half..half + row]);
                }
            }
        }
        out
    }
}

/// How the tensor of a GGUF name is permuted, if it is; `heads` are query and key heads where the architecture's are.
///
/// # Errors
/// The tensor's rows are no whole number of heads of even width.
pub(super) fn of_tensor(
    name: &str,
    entry: &reader::Entry,
    heads: Option<(usize, usize)>,
    metadata: &Metadata,
) -> Result<Option<Permuted>> {
    let Some((q_heads, kv_heads)) = heads else {
        return Ok(None);
    };
    let module = name.strip_prefix("blk.").and_then(|n| n.split_once('.')).map(|(_, m)| m);
    let heads = match module {
        Some("attn_q.weight" | "attn_q.bias") => q_heads,
        Some("attn_k.weight" | "attn_k.bias") => kv_heads,
        _ => return Ok(None),
    };
    // A bias may be one row of elements; those of a block type cannot be moved one by one.
    let rows = entry.shape[0];
    let row_bytes = entry.range.len().checked_div(rows).unwrap_or(0);
    let movable = entry.shape.len() == 2 || (entry.shape.len() == 1 && entry.ty.block() == 1);
    if !movable || row_bytes == 0 || !rows.is_multiple_of(2 * heads) {
        return Err(metadata.malformed(format!(
            "tensor {name:?} of shape {:?} and type {} cannot be split into {heads} heads of even width",
            entry.shape,
            entry.ty.name()
        )));
    }
    Ok(Some(Permuted { row_bytes, head_rows: rows / heads }))
}

#[cfg(test)]
mod tests {
    use super::Permuted;

    #[test]
    fn rows_return_to_their_halves() {
        // Two heads of six rows of two bytes; llama.cpp stores 0 3 1 4 2 5.
        let stored: Vec<u8> =
            [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11].iter().flat_map(|&r| [r, 100 + r]).collect();
        let restored = Permuted { row_bytes: 2, head_rows: 6 }.restore(&stored);
        let expected: Vec<u8> = (0..12).flat_map(|r| [r, 100 + r]).collect();
        assert_eq!(restored, expected);
    }
}
