//! The QQQ checkpoint layout: words of eight codes in 16x16 tiles, and permuted scales.
//!
//! A layer `prefix` is stored as `prefix.B` (I32, `K/16 x 2N`), `prefix.s_channel` (F32, `1 x N`) and, per
//! group, `prefix.s_group` (F16, `K/128 x N`). The order follows the reference kernel's `mma` fragments:
//!
//! - Row `kt` of `B` holds input channels `16 kt .. 16 kt + 15`. A run of 128 words covers 64 output channels.
//! - In chunk `c`, word `4 t + j` (lane `t`, column tile `j`) holds the codes of input channels
//!   `16 kt + 4 (t % 4) + r` and output channels `64 c + 16 j + t / 4 + 8 b`, for `r` in 0..4 and `b` in 0..2.
//! - Which nibble holds which `(b, r)` depends on the mode: [`Mode`].

use std::ops::Range;

use half::f16;

use crate::{CodeBits, FormatError, QuantizedWeight, Result, Scales};
use crate::{linear::columns, scales::largest_code};

/// Input channels of a group, where there are groups.
pub const GROUP_SIZE: usize = 128;

/// Tile shapes `(K, N)` of the reference's kernels; one of them must divide a layer.
const KERNEL_TILES: [(usize, usize); 4] = [(64, 256), (128, 128), (128, 64), (64, 128)];

/// Output channels of a run of words.
pub(crate) const CHUNK: usize = 64;
/// Input channels of a row of words.
const TILE: usize = 16;
/// Words of a chunk in a row.
const CHUNK_WORDS: usize = 128;

/// The two encodings of codes in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Two's complement. The high nibbles of a word's bytes are the codes of `b = 0`, the low ones those of
    /// `b = 1`, so that masking gives four int8 of `16 * code`; the stored channel scale is divided by 16.
    PerChannel,
    /// `code + 8`. Nibbles 0, 4, 1, 5 are `r = 0..4` of `b = 0`; nibbles 2, 6, 3, 7 are those of `b = 1`.
    PerGroup,
}

impl Mode {
    /// Bit position of entry `[b][r]`.
    const fn shifts(self) -> [[u32; 4]; 2] {
        match self {
            Mode::PerChannel => [[4, 12, 20, 28], [0, 8, 16, 24]],
            Mode::PerGroup => [[0, 16, 4, 20], [8, 24, 12, 28]],
        }
    }

    /// The word of four codes each of `b = 0` and `b = 1`, which are given as little-endian bytes.
    fn word(self, b0: u32, b1: u32) -> u32 {
        const NIBBLES: u32 = 0x0f0f_0f0f;
        match self {
            Mode::PerChannel => (b0 & NIBBLES) << 4 | (b1 & NIBBLES),
            Mode::PerGroup => {
                let four = |codes: u32| {
                    // `code + 8` modulo 16.
                    let t = (codes & NIBBLES) ^ 0x0808_0808;
                    (t & 0xf) | (t & 0xf00) << 8 | (t & 0xf_0000) >> 12 | (t & 0xf00_0000) >> 4
                };
                four(b0) | four(b1) << 8
            }
        }
    }

    fn decode(self, nibble: u32) -> i8 {
        let nibble = (nibble & 15) as i8;
        match self {
            Mode::PerChannel => nibble << 4 >> 4, // sign extension
            Mode::PerGroup => nibble - 8,
        }
    }
}

/// Whether the format can hold a layer of `n` output and `k` input channels; the reason if it cannot.
///
/// # Errors
/// What does not fit, in words.
pub fn fits(n: usize, k: usize, group_size: Option<usize>) -> Result<(), String> {
    if n == 0 || k == 0 || !KERNEL_TILES.iter().any(|&(tk, tn)| k.is_multiple_of(tk) && n.is_multiple_of(tn))
    {
        return Err(format!(
            "{n} output and {k} input channels: the qqq format needs (inputs, outputs) to be multiples of (64, 256), \
             (128, 128), (128, 64) or (64, 128)"
        ));
    }
    match group_size {
        None => Ok(()),
        Some(GROUP_SIZE) if k == GROUP_SIZE => Err(format!(
            "{k} input channels make a single group of {GROUP_SIZE}, which readers of the qqq format take for a \
             per-channel layer"
        )),
        Some(GROUP_SIZE) if k.is_multiple_of(GROUP_SIZE) => Ok(()),
        Some(GROUP_SIZE) => {
            Err(format!("{k} input channels are not a multiple of the group size {GROUP_SIZE}"))
        }
        Some(other) => Err(format!("groups of {other}: the qqq format knows groups of {GROUP_SIZE} only")),
    }
}

/// A layer in the format's tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    /// Shape `K/16 x 2N`.
    pub b: Vec<i32>,
    /// Shape `1 x N`, permuted.
    pub s_channel: Vec<f32>,
    /// Shape `K / group_size x N`, permuted; empty per channel.
    pub s_group: Vec<f16>,
}

/// Packs a layer. Other shapes than the format's are taken as well where the formula allows it (`K` a
/// multiple of 16, `N` of 64); [`fits`] says what readers take.
///
/// # Errors
/// A shape or a code that the layout cannot express.
pub fn pack(weight: &QuantizedWeight) -> Result<Packed> {
    let (n, k) = (weight.out_features, weight.in_features);
    check_tiles(n, k)?;
    weight.check("weight to pack")?;
    pack_checked(weight)
}

/// As [`pack`], of a weight and a shape that were checked.
pub(crate) fn pack_checked(weight: &QuantizedWeight) -> Result<Packed> {
    let (n, k) = (weight.out_features, weight.in_features);
    match &weight.scales {
        Scales::PerChannel(scales) => {
            if weight.codes.contains(&-8) {
                return Err(FormatError::Layout(
                    "per channel the qqq format holds codes from -7 to 7, but the weight has -8".into(),
                ));
            }
            Ok(Packed {
                b: pack_codes(&weight.codes, n, k, Mode::PerChannel),
                // A power of two: exact but for subnormal scales.
                s_channel: permute_channel(&scales.iter().map(|s| s / 16.0).collect::<Vec<_>>()),
                s_group: Vec::new(),
            })
        }
        Scales::PerGroup { channel, group, .. } => Ok(Packed {
            b: pack_codes(&weight.codes, n, k, Mode::PerGroup),
            s_channel: permute_channel(channel),
            s_group: permute_group(group, n),
        }),
    }
}

/// Reverses [`pack`]. `group_size`: `None` per channel.
///
/// Writers other than the reference make channels whose int8 weights would overflow (GPTQModel takes the channel scale from
/// the float weights, which the largest code of a group may exceed). Kernels then saturate or wrap, depending on their
/// version. Here a part of such a channel's group scales is moved to its channel scale: its weights are those that the codes
/// stand for, rounded to int8 anew.
///
/// # Errors
/// Lengths that do not agree with the shape; scales that are not finite.
pub fn unpack(packed: &Packed, n: usize, k: usize, group_size: Option<usize>) -> Result<QuantizedWeight> {
    check_tiles(n, k)?;
    let groups = group_size.map_or(0, |g| k.checked_div(g).unwrap_or(0));
    if (packed.b.len(), packed.s_channel.len(), packed.s_group.len()) != (k / TILE * 2 * n, n, groups * n) {
        return Err(FormatError::Layout(format!(
            "{} words, {} channel and {} group scales do not make {n} output and {k} input channels",
            packed.b.len(),
            packed.s_channel.len(),
            packed.s_group.len()
        )));
    }
    let (codes, scales) = match group_size {
        None => {
            let scales = Scales::PerChannel(channel_scales(&packed.s_channel));
            (unpack_codes(&packed.b, n, k, Mode::PerChannel), scales)
        }
        Some(group_size) => {
            let mut channel = restore_channel(&packed.s_channel);
            let mut group = restore_group(&packed.s_group, n);
            let codes = unpack_codes(&packed.b, n, k, Mode::PerGroup);
            for (row, channel) in channel.iter_mut().enumerate() {
                let groups = row * (k / group_size)..(row + 1) * (k / group_size);
                fit_int8(&codes[row * k..(row + 1) * k], channel, &mut group[groups]);
            }
            (codes, Scales::PerGroup { group_size, channel, group })
        }
    };
    let weight = QuantizedWeight { bits: CodeBits::Four, out_features: n, in_features: k, codes, scales };
    weight.check("packed weight")?;
    Ok(weight)
}

impl Packed {
    /// The tensors of output channels `rows` of a layer of `n`, as those of a layer of their own: blocks of 64 channels
    /// stand side by side in every tensor. `b`, `s_channel` and `s_group` are as in [`Packed`]. `None` where they are not
    /// whole blocks, or a tensor is shorter.
    pub fn of_rows(
        b: &[i32],
        s_channel: &[f32],
        s_group: &[f16],
        n: usize,
        rows: Range<usize>,
    ) -> Option<Packed> {
        let fits = rows.start <= rows.end && rows.end <= n && n == s_channel.len();
        if !fits || !rows.start.is_multiple_of(CHUNK) || !rows.end.is_multiple_of(CHUNK) {
            return None;
        }
        Some(Packed {
            b: columns(b, 2 * n, 2 * rows.start..2 * rows.end),
            s_channel: s_channel[rows.clone()].to_vec(),
            s_group: columns(s_group, n, rows),
        })
    }
}

/// Moves a part of a channel's group scales to its channel scale if an int8 weight would overflow otherwise.
fn fit_int8(codes: &[i8], channel: &mut f32, group: &mut [f16]) {
    let sizes = codes.chunks_exact(codes.len() / group.len()).map(largest_code);
    let largest = sizes.zip(&*group).map(|(code, s)| (code * f32::from(*s)).abs()).fold(0.0, f32::max);
    if largest.round_ties_even() <= 127.0 || !largest.is_finite() {
        return;
    }
    let factor = largest / 127.0;
    *channel *= factor;
    for s in group {
        *s = f16::from_f32(f32::from(*s) / factor);
    }
}

fn check_tiles(n: usize, k: usize) -> Result<()> {
    if n == 0 || k == 0 || !n.is_multiple_of(CHUNK) || !k.is_multiple_of(TILE) || n.checked_mul(k).is_none() {
        return Err(FormatError::Layout(format!(
            "{n} output and {k} input channels: qqq tiles need multiples of {CHUNK} and {TILE}"
        )));
    }
    Ok(())
}

/// Calls `visit(word, row, column)` for every word, where its codes lie in rows `row` and `row + 8` of the
/// `N x K` codes, at columns `column .. column + 4`.
fn for_each_word(n: usize, k: usize, mut visit: impl FnMut(usize, usize, usize)) {
    for chunk in 0..n / CHUNK {
        for kt in 0..k / TILE {
            let first = kt * 2 * n + chunk * CHUNK_WORDS;
            for word in 0..CHUNK_WORDS {
                let (lane, tile) = (word / 4, word % 4);
                visit(first + word, CHUNK * chunk + 16 * tile + lane / 4, TILE * kt + 4 * (lane % 4));
            }
        }
    }
}

fn pack_codes(codes: &[i8], n: usize, k: usize, mode: Mode) -> Vec<i32> {
    let mut words = vec![0i32; k / TILE * 2 * n];
    let four = |start: usize| {
        let bytes = codes[start..start + 4].first_chunk().map_or([0; 4], |four| four.map(i8::cast_unsigned));
        u32::from_le_bytes(bytes)
    };
    for_each_word(n, k, |word, row, column| {
        let start = row * k + column;
        words[word] = mode.word(four(start), four(start + 8 * k)).cast_signed();
    });
    words
}

fn unpack_codes(words: &[i32], n: usize, k: usize, mode: Mode) -> Vec<i8> {
    let mut codes = vec![0i8; n * k];
    let shifts = mode.shifts();
    for_each_word(n, k, |word, row, column| {
        let bits = words[word].cast_unsigned();
        for (b, shifts) in shifts.iter().enumerate() {
            let start = (row + 8 * b) * k + column;
            for (code, shift) in codes[start..start + 4].iter_mut().zip(shifts) {
                *code = mode.decode(bits >> shift);
            }
        }
    });
    codes
}

/// Natural index of entry `p` of a packed vector of channel scales (blocks of 32).
fn channel_source(p: usize) -> usize {
    const PAIRS: [usize; 8] = [0, 1, 8, 9, 16, 17, 24, 25];
    p / 32 * 32 + 2 * (p % 32 / 8) + PAIRS[p % 8]
}

/// Natural column of entry `p` of a packed row of group scales (blocks of 64).
fn group_source(p: usize) -> usize {
    p / 64 * 64 + p % 64 / 8 + 8 * (p % 8)
}

fn permute_channel(natural: &[f32]) -> Vec<f32> {
    (0..natural.len()).map(|p| natural[channel_source(p)]).collect()
}

/// The scales of a per-channel layer, or of whole blocks of 64 of its channels, from its `s_channel`.
pub fn channel_scales(s_channel: &[f32]) -> Vec<f32> {
    restore_channel(s_channel).iter().map(|s| s * 16.0).collect()
}

fn restore_channel(packed: &[f32]) -> Vec<f32> {
    let mut natural = vec![0.0; packed.len()];
    for (p, &s) in packed.iter().enumerate() {
        natural[channel_source(p)] = s;
    }
    natural
}

/// `N x G` in natural order to `G x N`, permuted.
fn permute_group(natural: &[f16], n: usize) -> Vec<f16> {
    let groups = natural.len() / n;
    (0..natural.len()).map(|i| natural[group_source(i % n) * groups + i / n]).collect()
}

/// `G x N`, permuted, to `N x G` in natural order.
fn restore_group(packed: &[f16], n: usize) -> Vec<f16> {
    let groups = packed.len() / n;
    let mut natural = vec![f16::ZERO; packed.len()];
    for (i, &s) in packed.iter().enumerate() {
        natural[group_source(i % n) * groups + i / n] = s;
    }
    natural
}
