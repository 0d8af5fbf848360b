//! compressed-tensors' layouts of int4 and int8 weights.
//!
//! In `pack-quantized` a layer `prefix` is stored as `prefix.weight_packed` (I32, `N x ceil(K/8)`: eight nibbles of `code + 8` a
//! word, the lowest first, zeros behind the last; of 8 bits `N x ceil(K/4)`, four bytes of `code + 128`), `prefix.weight_scale` (float, `N x G`, or `N x 1` per
//! channel) and `prefix.weight_shape` (I64, `[N, K]`); in `int-quantized` as `prefix.weight` (I8, `N x K`, a code in a byte)
//! and `prefix.weight_scale`. The float weight is `code * scale`.
//!
//! The format has one scale per group, our kernels two levels ([`Scales::PerGroup`]). The second level is
//! derived by [`Scales::from_effective`] from the stored scales, so it comes out the same on every load;
//! [`effective_scales`] finds stored scales from which exactly the given ones are derived.

use half::{bf16, f16};

use crate::{Activations, CodeBits, FormatError, QuantizedWeight, Result, Scales, WeightData, linear};

/// 4-bit codes of a word.
const PER_WORD: usize = 8;

/// Words of a row of `k` codes.
pub fn row_words(bits: CodeBits, k: usize) -> usize {
    k.div_ceil(32 / bits.get())
}

/// Packs `N x K` codes, row by row.
pub fn pack_codes(bits: CodeBits, codes: &[i8], k: usize) -> Vec<i32> {
    let (width, mask) = (bits.get(), (1 << bits.get()) - 1);
    // Of the codes' range, so that what is packed is unsigned.
    let offset = 1u32 << (width - 1);
    let pack = |word: &[i8]| {
        let unsigned = |code: &i8| i32::from(*code).cast_unsigned().wrapping_add(offset) & mask;
        word.iter().rev().fold(0u32, |bits, code| bits << width | unsigned(code)).cast_signed()
    };
    codes.chunks(k.max(1)).flat_map(|row| row.chunks(32 / width).map(pack)).collect()
}

/// Reverses [`pack_codes`]: `N x` [`row_words`] words to `N x K` codes.
pub fn unpack_codes(bits: CodeBits, words: &[i32], k: usize) -> Vec<i8> {
    let width = row_words(bits, k).max(1);
    let mut codes = vec![0i8; words.len() / width * k];
    for (words, codes) in words.chunks_exact(width).zip(codes.chunks_exact_mut(k.max(1))) {
        let words = words.iter().map(|word| word.cast_unsigned());
        match bits {
            CodeBits::Four => words.zip(codes.chunks_mut(PER_WORD)).for_each(|(word, codes)| {
                codes.copy_from_slice(&unpack_word(word)[..codes.len()]);
            }),
            // Less 128 in each byte.
            CodeBits::Eight => words.zip(codes.chunks_mut(4)).for_each(|(word, codes)| {
                let word = (word ^ 0x8080_8080).to_le_bytes().map(u8::cast_signed);
                codes.copy_from_slice(&word[..codes.len()]);
            }),
        }
    }
    codes
}

/// The eight codes of a word, in its order.
fn unpack_word(word: u32) -> [i8; PER_WORD] {
    // Nibbles to bytes, by halves.
    let spread = |bits: u64, shift: u32, mask: u64| (bits | bits << shift) & mask;
    let bits = spread(u64::from(word), 16, 0x0000_ffff_0000_ffff);
    let bits = spread(bits, 8, 0x00ff_00ff_00ff_00ff);
    let nibbles = spread(bits, 4, 0x0f0f_0f0f_0f0f_0f0f);
    // Less 8 in each byte, which borrows from a bit that is set for that.
    let codes = ((nibbles | 0x8080_8080_8080_8080) - 0x0808_0808_0808_0808) ^ 0x8080_8080_8080_8080;
    codes.to_le_bytes().map(u8::cast_signed)
}

/// Scales to store for a weight, shape `N x G` (`N x 1` per channel), in the narrowest of bf16, f16 and f32
/// from which loading gives back the weight's own scales exactly. Scales that were rounded
/// to bf16 before [`Scales::from_effective`] are stored as bf16, the type of most models' parameters.
///
/// # Errors
/// [`FormatError::Layout`] if there are no such effective scales: the two levels were not
/// derived by [`Scales::from_effective`], or for 16-bit activations by [`Scales::weight_only`].
pub fn effective_scales(
    weight: &QuantizedWeight,
    activations: Activations,
    name: &str,
) -> Result<WeightData> {
    let natural = match &weight.scales {
        Scales::PerChannel(scales) => scales.clone(),
        Scales::PerGroup { channel, group, .. } => {
            let groups = group.len() / channel.len().max(1);
            group.iter().enumerate().map(|(i, g)| f32::from(*g) * channel[i / groups]).collect()
        }
    };
    let survives = |stored: Vec<f32>| same_weights(weight, &scales_from_stored(weight, activations, stored));

    let b: Vec<bf16> = natural.iter().map(|s| bf16::from_f32(*s)).collect();
    if survives(b.iter().map(|s| s.to_f32()).collect()) {
        return Ok(WeightData::BF16(b));
    }
    let h: Vec<f16> = natural.iter().map(|s| f16::from_f32(*s)).collect();
    if survives(h.iter().map(|s| s.to_f32()).collect()) {
        return Ok(WeightData::F16(h));
    }
    let f = match &weight.scales {
        Scales::PerChannel(_) => natural,
        Scales::PerGroup { .. } if activations == Activations::Half => natural,
        Scales::PerGroup { group_size, channel, group } => {
            let (k, groups) = (weight.in_features, weight.in_features / group_size);
            let rows = weight.codes.chunks_exact(k).zip(natural.chunks_exact(groups));
            let levels = channel.iter().zip(group.chunks_exact(groups));
            rows.zip(levels)
                .flat_map(|((codes, natural), (channel, group))| {
                    row_scales(codes, natural, *group_size, *channel, group)
                })
                .collect()
        }
    };
    if survives(f.clone()) {
        return Ok(WeightData::F32(f));
    }
    Err(FormatError::Layout(format!(
        "{name}: its scales of channels and of groups do not come from one scale per group, which is all that compressed-tensors \
         and GPTQ store, so the other form would hold other weights; keep the checkpoint in the qqq form, which runs as it is, \
         or quantize the float model (qqq quantize --format compressed-tensors)"
    )))
}

/// The scales of a weight whose codes (and kind of scales) are those of `like`, from its stored scales.
fn scales_from_stored(like: &QuantizedWeight, activations: Activations, stored: Vec<f32>) -> Scales {
    derived(&like.codes, (like.out_features, like.in_features), activations, like.scales.group_size(), stored)
}

/// The scales of `N x K` codes of which `stored` are one a group, or one a channel.
fn derived(
    codes: &[i8],
    (n, k): (usize, usize),
    activations: Activations,
    group_size: Option<usize>,
    stored: Vec<f32>,
) -> Scales {
    match (group_size, activations) {
        (None, _) => Scales::PerChannel(stored),
        (Some(group_size), Activations::Int8) => Scales::from_effective(codes, n, k, group_size, &stored),
        (Some(group_size), Activations::Half) => Scales::weight_only(n, group_size, &stored),
    }
}

/// Whether `scales` make the same weights of the codes as the weight's own: equal, but for the scales of
/// groups whose codes are all zero.
pub(crate) fn same_weights(weight: &QuantizedWeight, scales: &Scales) -> bool {
    match (&weight.scales, scales) {
        (
            Scales::PerGroup { group_size, channel, group },
            Scales::PerGroup { channel: c2, group: g2, .. },
        ) => {
            channel == c2
                && group.len() == g2.len()
                && weight
                    .codes
                    .chunks_exact(*group_size)
                    .zip(group.iter().zip(g2))
                    .all(|(codes, (a, b))| a == b || codes.iter().all(|c| *c == 0))
        }
        (a, b) => a == b,
    }
}

/// Scales of a row from which [`Scales::from_effective`] derives its two levels, where there are any: `group * channel`,
/// or what [`hit_channel`] makes of them, or these with one moved to the next number, lest scales that by chance have a
/// common divisor are taken for integers.
fn row_scales(codes: &[i8], natural: &[f32], group_size: usize, channel: f32, group: &[f16]) -> Vec<f32> {
    let k = codes.len();
    let want = QuantizedWeight {
        bits: CodeBits::Four,
        out_features: 1,
        in_features: k,
        codes: codes.to_vec(),
        scales: Scales::PerGroup { group_size, channel: vec![channel], group: group.to_vec() },
    };
    let good = |scales: &[f32]| same_weights(&want, &Scales::from_effective(codes, 1, k, group_size, scales));
    if good(natural) {
        return natural.to_vec();
    }
    let hit = hit_channel(codes, natural, group_size, channel);
    if good(&hit) {
        return hit;
    }
    let moved = (0..hit.len()).flat_map(|g| [f32::next_down, f32::next_up].map(|to| (g, to)));
    let mut candidates = moved.map(|(g, to)| {
        let mut scales = hit.clone();
        scales[g] = to(scales[g]);
        scales
    });
    candidates.find(|scales| good(scales)).unwrap_or(hit)
}

/// Moves the scales of a row by the few units in the last place after which `max |code * s| / 127` is
/// exactly `channel`: `group * channel` misses it by the rounding of `group` to f16.
fn hit_channel(codes: &[i8], scales: &[f32], group_size: usize, channel: f32) -> Vec<f32> {
    let largest = |g: usize| {
        let codes = &codes[g * group_size..(g + 1) * group_size];
        f32::from(codes.iter().fold(0, |m: u8, c| m.max(c.unsigned_abs())))
    };
    // Largest magnitude that the scale of a group with largest code `c` may have.
    let limit = |c: f32| {
        let fits = |s: f32| s * c / 127.0 <= channel;
        let mut s = channel / c * 127.0;
        // Three roundings are a few units; the bound is for scales at the ends of the range of f32.
        for _ in 0..16 {
            s = if fits(s.next_up()) {
                s.next_up()
            } else if fits(s) {
                break;
            } else {
                s.next_down()
            };
        }
        s
    };
    let mut out = scales.to_vec();
    let mut nearest: Option<(f32, usize, f32)> = None;
    for (g, s) in out.iter_mut().enumerate() {
        let c = largest(g);
        if c == 0.0 || *s == 0.0 {
            continue;
        }
        let limit = limit(c).copysign(*s);
        if s.abs() > limit.abs() {
            *s = limit;
        }
        let reach = (*s / limit).abs();
        if nearest.is_none_or(|(best, ..)| reach > best) {
            nearest = Some((reach, g, limit));
        }
    }
    if let Some((_, g, limit)) = nearest {
        out[g] = limit;
    }
    out
}

/// Builds a weight from what `pack-quantized` stores: `words` `N x` [`row_words`], `scales` `N x G` (`N x 1` per channel).
/// `kind`: bits, what the layer multiplies, and its groups.
///
/// # Errors
/// As [`from_codes`].
pub fn unpack(
    name: &str,
    words: &[i32],
    scales: Vec<f32>,
    (n, k): (usize, usize),
    kind: (CodeBits, Activations, Option<usize>),
) -> Result<QuantizedWeight> {
    if words.len() != n * row_words(kind.0, k) {
        return Err(FormatError::Layout(format!(
            "{name}: {} words do not make {n} output and {k} input channels",
            words.len()
        )));
    }
    from_codes(name, unpack_codes(kind.0, words, k), scales, (n, k), kind)
}

/// Builds a weight from what `int-quantized` stores: `codes` `N x K`, `scales` `N x G` (`N x 1` per channel). `kind`: bits,
/// what the layer multiplies, and its groups.
///
/// # Errors
/// Lengths that do not agree, a group size that does not divide `k`, 8 bits with groups, codes that are no signed numbers of
/// these bits, scales out of range.
pub fn from_codes(
    name: &str,
    codes: Vec<i8>,
    scales: Vec<f32>,
    (n, k): (usize, usize),
    (bits, activations, group_size): (CodeBits, Activations, Option<usize>),
) -> Result<QuantizedWeight> {
    if group_size.is_some_and(|g| g == 0 || !k.is_multiple_of(g)) {
        return Err(FormatError::Layout(format!(
            "{name}: {k} input channels are not a multiple of the group size {}",
            group_size.unwrap_or_default()
        )));
    }
    let per_row = group_size.map_or(1, |g| k / g);
    if n == 0 || k == 0 || codes.len() != n * k || scales.len() != n * per_row {
        return Err(FormatError::Layout(format!(
            "{name}: {} codes and {} scales do not make {n} output and {k} input channels",
            codes.len(),
            scales.len()
        )));
    }
    // Before scales are derived of them.
    if let Some(i) = linear::first_beyond(bits, &codes) {
        return Err(FormatError::Layout(format!(
            "{name}: code {} at index {i} is not a signed 4-bit number",
            codes[i]
        )));
    }
    let scales = derived(&codes, (n, k), activations, group_size, scales);
    let weight = QuantizedWeight { bits, out_features: n, in_features: k, codes, scales };
    weight.check(name)?;
    Ok(weight)
}
