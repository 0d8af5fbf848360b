//! compressed-tensors' `pack-quantized` with weights alone (W4A16), symmetric or not.
//!
//! Weights lie as in [`compressed_tensors`]. Asymmetric ones have `prefix.weight_zero_point`: signed zero points plus 8, eight
//! output channels a word (I32, `ceil(N/8) x G`), or a byte each as they are (I8, `N x G`), as old versions write them.
//! `prefix.weight_g_idx` names the group of every input channel, if they do not lie in order.

use serde_json::Value;

use super::{PER_WORD, RawWeight, nibbles};
use crate::{
    Activations, CheckpointFormat, CodeBits, DType, Int4Weight, LayerScheme, QuantizationConfig, Result,
    compressed_tensors, int4, layer::Source, writer::CheckpointWriter,
};

/// Tensors of a layer.
pub(super) const TENSORS: [&str; 5] =
    ["weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"];

/// Reads a layer, and the group of every input channel if that is stored.
///
/// # Errors
/// Tensors that are missing or of other types or shapes; zero points where there are to be none, or none where there are to
/// be some.
pub(super) fn read(
    source: &Source<'_>,
    n: usize,
    k: usize,
    group_size: Option<usize>,
    symmetric: bool,
) -> Result<(RawWeight, Option<Vec<i64>>)> {
    source.check_shape(n, k)?;
    if let Some(g) = group_size.filter(|g| *g == 0 || !k.is_multiple_of(*g)) {
        return Err(source.at(&format!("{k} input channels are not a multiple of the group size {g}")));
    }
    let groups = int4::groups(k, group_size);
    let words = source.words("weight_packed", &[n, compressed_tensors::row_words(CodeBits::Four, k)])?;
    let signed = compressed_tensors::unpack_codes(CodeBits::Four, &words, k);
    let codes = signed.iter().map(|code| (code + 8).cast_unsigned()).collect();
    let zeros = match (source.dtype("weight_zero_point"), symmetric) {
        (None, true) => vec![8; n * groups],
        (None, false) => return Err(source.missing("weight_zero_point")),
        (Some(DType::I8), _) => {
            source.check(&source.name("weight_zero_point"), DType::I8, &[n, groups])?;
            let stored = source.tensors.bytes(&source.name("weight_zero_point"))?;
            let zero = |byte: &u8| u8::try_from(i16::from(byte.cast_signed()) + 8).ok().filter(|z| *z < 16);
            let zeros: Option<Vec<u8>> = stored.iter().map(zero).collect();
            zeros.ok_or_else(|| source.at("weight_zero_point holds what is no signed 4-bit number"))?
        }
        (Some(_), _) => {
            let words = source.words("weight_zero_point", &[n.div_ceil(PER_WORD), groups])?;
            let nibble = |i: usize| {
                let (row, group) = (i / groups, i % groups);
                nibbles(words[row / PER_WORD * groups + group])[row % PER_WORD]
            };
            (0..n * groups).map(nibble).collect()
        }
    };
    if symmetric && zeros.iter().any(|zero| *zero != 8) {
        return Err(
            source.at("it has zero points (weight_zero_point), but config.json says that it is symmetric")
        );
    }
    let scales = source.floats("weight_scale", &[n, groups])?;
    let g_idx = source.integers("weight_g_idx", k)?;
    Ok((RawWeight { n, k, group_size, codes, zeros, scales }, g_idx))
}

/// Adds the tensors of the linear layer `prefix`: those of compressed-tensors' `pack-quantized`, whatever activations are to be.
/// Scales keep their type.
///
/// # Errors
/// As [`CheckpointWriter::add`].
pub fn write_packed(writer: &mut CheckpointWriter, prefix: &str, weight: &Int4Weight) -> Result<()> {
    let shape = (weight.out_features, weight.in_features);
    writer.add_packed(prefix, (CodeBits::Four, &weight.codes), shape, weight.group_size, &weight.scales)
}

/// The `quantization_config` of weights alone (W4A16) written by [`write_packed`]. `float` names the linear layers that are not
/// quantized.
pub fn packed_value(group_size: Option<usize>, float: &[String]) -> Value {
    let format = CheckpointFormat::CompressedTensors;
    let scheme = LayerScheme { activations: Activations::Half, ..LayerScheme::w4a8(format, group_size) };
    QuantizationConfig::all_but(format, scheme, float).to_value()
}
