//! GPTQ's layout, as AutoGPTQ, GPTQModel and AutoRound write it.
//!
//! A layer `prefix` is stored as `prefix.qweight` (I32, `K/8 x N`: eight input channels of an output channel a word, the lowest
//! nibble first), `prefix.qzeros` (I32, `G x N/8`: eight output channels a word), `prefix.scales` (float, `G x N`) and
//! `prefix.g_idx` (integers, `K`: the group of every input channel; groups in their order where it is missing). The float weight
//! is `(u - z) * scale`. In the first version of the format `qzeros` holds `z - 1`; in the second (`gptq_v2`) `z`.

use serde_json::{Map, Value, json};

use super::{PER_WORD, RawWeight, nibbles, word};
use crate::{
    DType, FormatError, Int4Weight, Result, WeightData, int4, layer::Source, quantization_config::HEAD,
    writer::CheckpointWriter,
};

/// Tensors of a layer in this layout and in AWQ's.
pub(super) const TENSORS: [&str; 4] = ["qweight", "qzeros", "scales", "g_idx"];

/// Reads a layer, and the group of every input channel if that is stored.
///
/// # Errors
/// Tensors that are missing or of other types or shapes; a zero point of the first version that its readers disagree about.
pub(super) fn read(
    source: &Source<'_>,
    n: usize,
    k: usize,
    group_size: Option<usize>,
    less_one: bool,
) -> Result<(RawWeight, Option<Vec<i64>>)> {
    whole_words(source, n, k, group_size)?;
    let groups = int4::groups(k, group_size);
    let words = source.words("qweight", &[k / PER_WORD, n])?;
    let mut codes = vec![0; n * k];
    for (row, words) in words.chunks_exact(n).enumerate() {
        for (column, word) in words.iter().enumerate() {
            let start = column * k + row * PER_WORD;
            codes[start..start + PER_WORD].copy_from_slice(&nibbles(*word));
        }
    }
    let words = source.words("qzeros", &[groups, n / PER_WORD])?;
    let mut zeros = vec![0; n * groups];
    for (group, words) in words.chunks_exact(n / PER_WORD).enumerate() {
        for (i, stored) in words.iter().flat_map(|word| nibbles(*word)).enumerate() {
            if less_one && stored == 15 {
                return Err(source.at(&format!(
                    "the zero point of group {group} of output channel {i} is stored as 15, which readers of this version \
                     take for 16 or for 0; store the checkpoint in the format gptq_v2 with what has made it"
                )));
            }
            zeros[i * groups + group] = stored + u8::from(less_one);
        }
    }
    let scales = int4::transposed(&source.floats("scales", &[groups, n])?, groups, n);
    let g_idx = source.integers("g_idx", k)?;
    Ok((RawWeight { n, k, group_size, codes, zeros, scales }, g_idx))
}

/// Refuses shapes that words of eight do not hold.
pub(super) fn whole_words(source: &Source<'_>, n: usize, k: usize, group_size: Option<usize>) -> Result<()> {
    let size = group_size.unwrap_or(k);
    let whole = n.is_multiple_of(PER_WORD) && k.is_multiple_of(PER_WORD) && k.is_multiple_of(size.max(1));
    if n == 0 || k == 0 || size == 0 || !whole {
        return Err(source.at(&format!(
            "{n} output and {k} input channels in groups of {size}: the layout holds multiples of {PER_WORD}, in whole groups"
        )));
    }
    Ok(())
}

/// Scales as they were written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GptqScales {
    /// Their type.
    pub dtype: DType,
    /// By how much of itself one has moved at most.
    pub moved: f64,
}

/// By how much of itself a scale may move: twice what rounding to float16 takes where that has all its bits.
const MOST_MOVED: f64 = 1.0 / 1024.0;

/// Adds the tensors of the linear layer `prefix`, in the first version of the format with zero points of 8: what every
/// reader of it takes. Float32 scales become 16-bit ones of which the integer kernels get the same weights
/// ([`Int4Weight::with_half_scales`]). Where there are none they are rounded to float16.
///
/// # Errors
/// A shape that the layout does not hold; a scale that is too large for float16, or so small that it would move by more than
/// 2^-10 of itself.
pub fn write_gptq(writer: &mut CheckpointWriter, prefix: &str, weight: &Int4Weight) -> Result<GptqScales> {
    let (n, k, groups) = (weight.out_features, weight.in_features, weight.groups());
    let fail = |reason: String| FormatError::Layout(format!("{prefix}: {reason}"));
    if !n.is_multiple_of(PER_WORD) || !k.is_multiple_of(PER_WORD) {
        return Err(fail(format!(
            "{n} output and {k} input channels: GPTQ's layout holds multiples of {PER_WORD}"
        )));
    }
    let row = |first: usize| (0..n).map(move |column| column * k + first);
    let words = (0..k).step_by(PER_WORD).flat_map(row).map(|start| {
        let codes = &weight.codes[start..start + PER_WORD];
        word(codes.iter().map(|code| code.wrapping_add(8).cast_unsigned()))
    });
    let words: Vec<u8> = words.flat_map(i32::to_le_bytes).collect();
    writer.add(&format!("{prefix}.qweight"), DType::I32, &[k / PER_WORD, n], &words)?;
    let zeros = word([8 - 1; PER_WORD].into_iter()).to_le_bytes().repeat(groups * n / PER_WORD);
    writer.add(&format!("{prefix}.qzeros"), DType::I32, &[groups, n / PER_WORD], &zeros)?;
    let exact = match weight.scales {
        WeightData::F32(_) => weight.with_half_scales(prefix)?,
        WeightData::F16(_) | WeightData::BF16(_) => None,
    };
    let size = k / groups.max(1);
    // The scale of codes that are all zero is none of the weight's.
    let used = |i: usize| weight.codes[i * size..(i + 1) * size].iter().any(|code| *code != 0);
    let (scales, moved) = half_scales(&exact.as_ref().unwrap_or(weight).scales, used).map_err(fail)?;
    let dtype = scales.dtype();
    writer.add_float(&format!("{prefix}.scales"), &[groups, n], &int4::transposed(&scales, n, groups))?;
    let g_idx: Vec<u8> = (0..k).flat_map(|channel| ((channel / size) as i32).to_le_bytes()).collect();
    writer.add(&format!("{prefix}.g_idx"), DType::I32, &[k], &g_idx)?;
    Ok(GptqScales { dtype, moved })
}

/// Scales in float16, or bfloat16 where only that holds all of them; and by how much of itself one that is `used` has moved at
/// most.
fn half_scales(scales: &WeightData, used: impl Fn(usize) -> bool) -> Result<(WeightData, f64), String> {
    let wide = scales.clone().into_f32();
    let exact = |rounded: &[f32]| rounded == wide;
    let halves: Vec<half::f16> = wide.iter().map(|s| half::f16::from_f32(*s)).collect();
    let back: Vec<f32> = halves.iter().map(|s| s.to_f32()).collect();
    if exact(&back) {
        return Ok((WeightData::F16(halves), 0.0));
    }
    let brains: Vec<half::bf16> = wide.iter().map(|s| half::bf16::from_f32(*s)).collect();
    if exact(&brains.iter().map(|s| s.to_f32()).collect::<Vec<_>>()) {
        return Ok((WeightData::BF16(brains), 0.0));
    }
    let mut most = 0f64;
    for (i, (scale, rounded)) in wide.iter().zip(&back).enumerate() {
        let moved = match scale == rounded || rounded.is_finite() && !used(i) {
            true => 0.0,
            false => (f64::from(*rounded) / f64::from(*scale) - 1.0).abs(),
        };
        if moved > MOST_MOVED {
            let size = if rounded.is_finite() { "small" } else { "large" };
            return Err(format!(
                "the scale {scale:e} is too {size} for float16, which GPTQ's readers take, and would become {rounded:e}; convert \
                 to compressed-tensors (--to compressed-tensors), which keeps float32 scales"
            ));
        }
        most = most.max(moved);
    }
    Ok((WeightData::F16(halves), most))
}

/// The `quantization_config` of layers written by [`write_gptq`]. `float` names the linear layers of blocks that are not
/// quantized.
pub fn gptq_value(group_size: Option<usize>, float: &[String]) -> Value {
    let mut value = json!({
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": 4,
        "group_size": group_size.map_or(json!(-1), |g| json!(g)),
        "sym": true,
        "desc_act": false,
        "static_groups": false,
        "true_sequential": true,
        "lm_head": false,
        "damp_percent": 0.01,
        "pack_dtype": "int32",
    });
    // GPTQModel's way to say which layers are not quantized: expressions after "-:".
    let skipped: Map<String, Value> = float
        .iter()
        .filter(|name| name.as_str() != HEAD)
        .map(|name| (format!("-:^{}$", name.replace('.', "\\.")), json!({})))
        .collect();
    if !skipped.is_empty() {
        value["dynamic"] = skipped.into();
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_keep_their_values_where_16_bits_hold_them() {
        let of = |scales: &[f32]| half_scales(&WeightData::F32(scales.to_vec()), |i| i != 2).unwrap();
        assert!(matches!(of(&[0.25, -1.0, 0.0]), (WeightData::F16(_), 0.0)));
        // 1e-30 needs the range of bfloat16.
        let small = half::bf16::from_f32(1e-30).to_f32();
        assert!(matches!(of(&[0.25, small]), (WeightData::BF16(_), 0.0)));
        let (scales, moved) = of(&[1.0 + 2f32.powi(-12), 0.5]);
        assert_eq!(scales.into_f32(), [1.0, 0.5]);
        assert!((moved - 2f64.powi(-12)).abs() < 1e-6, "{moved}");
        let refused = |scale: f32| half_scales(&WeightData::F32(vec![1.0, scale]), |_| true).unwrap_err();
        for (scale, says) in [(1.001e6, "too large"), (1e-9, "too small"), (-1.001e-6, "too small")] {
            let error = refused(scale);
            assert!(error.contains(says) && error.contains("--to compressed-tensors"), "{error}");
        }
        // One that no code uses may be anything that is finite.
        assert_eq!(of(&[1.0 + 2f32.powi(-12), 0.5, 1e-12]).0.into_f32(), [1.0, 0.5, 0.0]);
    }
}
