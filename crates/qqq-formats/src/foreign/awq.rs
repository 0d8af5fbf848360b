//! AWQ's layout, version "gemm", as AutoAWQ and AutoRound write it.
//!
//! A layer `prefix` is stored as `prefix.qweight` (I32, `K x N/8`: eight output channels of an input channel a word),
//! `prefix.qzeros` (I32, `G x N/8`) and `prefix.scales` (float, `G x N`). Nibble `i` of a word, from the lowest, is output channel
//! [`ORDER`]`[i]` of its eight. The float weight is `(u - z) * scale`.

use super::{PER_WORD, RawWeight, gptq::whole_words, nibbles};
use crate::{Result, int4, layer::Source};

/// Output channel of each nibble.
const ORDER: [usize; PER_WORD] = [0, 2, 4, 6, 1, 3, 5, 7];

/// Reads a layer.
///
/// # Errors
/// Tensors that are missing or of other types or shapes; a `g_idx`, which its readers do not look at.
pub(super) fn read(source: &Source<'_>, n: usize, k: usize, group_size: Option<usize>) -> Result<RawWeight> {
    if source.dtype("g_idx").is_some() {
        return Err(source.at(
            "it has a g_idx, which AWQ's layout has not: its groups would follow another order than AWQ's readers give them. \
             Take a checkpoint that was made without act-order (desc_act false), or correct quant_method if it is GPTQ's",
        ));
    }
    whole_words(source, n, k, group_size)?;
    let groups = int4::groups(k, group_size);
    let codes = unpacked(&source.words("qweight", &[k, n / PER_WORD])?, k, n);
    let zeros = unpacked(&source.words("qzeros", &[groups, n / PER_WORD])?, groups, n);
    let scales = int4::transposed(&source.floats("scales", &[groups, n])?, groups, n);
    Ok(RawWeight { n, k, group_size, codes, zeros, scales })
}

/// `rows x N/8` words to `N x rows` nibbles.
fn unpacked(words: &[i32], rows: usize, n: usize) -> Vec<u8> {
    let mut out = vec![0; n * rows];
    for (row, words) in words.chunks_exact(n / PER_WORD).enumerate() {
        for (i, word) in words.iter().enumerate() {
            for (nibble, channel) in nibbles(*word).into_iter().zip(ORDER) {
                out[(i * PER_WORD + channel) * rows + row] = nibble;
            }
        }
    }
    out
}
