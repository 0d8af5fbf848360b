//! The packed weight that all kernels read.
//!
//! Output channels come in blocks of 16. Of 4 bits, input channels come in chunks of 32. A chunk of a block is four
//! lines of 64 bytes; line j holds channels j, 4 + j, 8 + j and 12 + j of the block, 16 bytes each. Byte i
//! of these 16 has input channel i of the chunk in its low nibble and input channel 16 + i in its high
//! one, as code + 8.
//!
//! So a 128-bit lane belongs to one output channel: a byte shuffle can look the int8 weights of a
//! group up in a table of 16 (group scales make a table for each channel), 16 activations
//! are broadcast to all lanes, and transposing four lines as 4x4 blocks of 32-bit words inside the lanes
//! puts the 16 channels in order.
//!
//! Of 8 bits, input channels come in steps of 16: four lines that hold the same channels, with a byte for a code. These are
//! what the kernels make of half a chunk, so they are multiplied as they lie.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use half::f16;
use qqq_formats::{CodeBits, QuantizedWeight, Scales};

use crate::pool::parallel_chunks_mut;
use crate::{BackendError, Result};

/// Output channels of a block.
pub(super) const BLOCK: usize = 16;
/// Input channels of a chunk.
pub(super) const CHUNK: usize = 32;
/// Lines of a chunk, and of a step of 16 input channels.
pub(super) const LINES: usize = 4;
/// Input channels of a step.
pub(super) const STEP: usize = 16;
/// Largest K whose accumulators cannot overflow: 128 * 128 * 65536 < 2^31, and 255 * 128 * 65536 < 2^31 for
/// kernels that add an offset to the weights.
const MAX_IN_FEATURES: usize = 65536;

/// A cache line of packed codes.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Line(pub [u8; 64]);

/// Scales of the groups, as the kernels read them.
#[derive(Clone, Debug)]
pub(super) struct GroupScales {
    /// Input channels of a group: 32, 64 or 128.
    pub size: usize,
    /// Shape `blocks x groups x BLOCK`.
    pub scales: Vec<f16>,
}

/// How codes lie in the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codes {
    /// Two in a byte, as code + 8.
    Nibbles,
    /// One in a byte.
    Bytes {
        /// Whether they are stored as code + 128.
        unsigned: bool,
        /// Whether there is a code of -128.
        lowest: bool,
    },
}

/// See the module's description.
#[derive(Clone, Debug)]
pub(super) struct PackedWeight {
    /// Output channels, `N`.
    pub out_features: usize,
    /// Input channels, `K`.
    pub in_features: usize,
    /// How their bytes are read.
    pub codes: Codes,
    /// Shape `blocks x chunks x LINES`, or `blocks x steps x LINES` of 8 bits. If K is an odd multiple of 16, the high
    /// nibbles of a block's last chunk hold code 0 and no kernel uses them.
    pub lines: Vec<Line>,
    /// Scales of the output channels, shape `N`.
    pub channel_scales: Vec<f32>,
    /// `None` per channel.
    pub groups: Option<GroupScales>,
}

impl PackedWeight {
    /// `unsigned`: codes of 8 bits are stored as code + 128.
    ///
    /// # Errors
    /// See [`IntegerLinear::with_isa`](super::IntegerLinear::with_isa).
    pub(super) fn new(weight: &QuantizedWeight, unsigned: bool) -> Result<Self> {
        check_shape(weight)?;
        let (n, k) = (weight.out_features, weight.in_features);
        let (width, flip) = match weight.bits {
            CodeBits::Four => (CHUNK, 0),
            CodeBits::Eight => (STEP, if unsigned { 0x80 } else { 0 }),
        };
        let chunks = k.div_ceil(width);
        let count = n / BLOCK * chunks * LINES;
        let mut lines: Vec<Line> = Vec::with_capacity(count);
        let good = AtomicBool::new(true);
        // Uninitialized, so that the threads share the work of the system, which gives the pages when they are first touched.
        parallel_chunks_mut(&mut lines.spare_capacity_mut()[..count], chunks * LINES, |block, lines| {
            let rows = block * BLOCK..(block + 1) * BLOCK;
            good.fetch_and(first_misfit(weight, rows.clone()).is_none(), Relaxed);
            for (chunk, lines) in lines.chunks_exact_mut(LINES).enumerate() {
                let columns = chunk * width..k.min((chunk + 1) * width);
                for (j, line) in lines.iter_mut().enumerate() {
                    let mut bytes = [0; 64];
                    for (lane, bytes) in bytes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                        let row = (rows.start + LINES * lane + j) * k;
                        let codes = &weight.codes[row + columns.start..row + columns.end];
                        *bytes = match (weight.bits, codes.first_chunk::<STEP>()) {
                            (CodeBits::Eight, Some(codes)) => codes.map(|code| code.cast_unsigned() ^ flip),
                            _ => packed_lane(codes),
                        };
                    }
                    line.write(Line(bytes));
                }
            }
        });
        // SAFETY: the chunks cover the first `count` lines, and each of them was written whole.
        unsafe { lines.set_len(count) };
        if !good.into_inner() {
            return Err(misfit(weight));
        }
        let groups = match &weight.scales {
            Scales::PerChannel(_) => None,
            Scales::PerGroup { group_size, group, .. } => {
                let count = k / group_size;
                let mut scales = vec![f16::ZERO; n * count];
                parallel_chunks_mut(&mut scales, count * BLOCK, |block, scales| {
                    for (i, scale) in scales.iter_mut().enumerate() {
                        *scale = group[(block * BLOCK + i % BLOCK) * count + i / BLOCK];
                    }
                });
                Some(GroupScales { size: *group_size, scales })
            }
        };
        let channel_scales = weight.channel_scales().to_vec();
        let codes = match weight.bits {
            CodeBits::Four => Codes::Nibbles,
            CodeBits::Eight => Codes::Bytes { unsigned, lowest: weight.codes.contains(&i8::MIN) },
        };
        Ok(Self { out_features: n, in_features: k, codes, lines, channel_scales, groups })
    }

    /// The lines of a block, chunk by chunk, or step by step.
    #[inline]
    pub(super) fn block(&self, block: usize) -> &[Line] {
        let width = if self.codes == Codes::Nibbles { CHUNK } else { STEP };
        let len = self.in_features.div_ceil(width) * LINES;
        &self.lines[block * len..(block + 1) * len]
    }

    /// Group size and the scales of a block's groups, shape `groups x BLOCK`; `None` per channel.
    #[inline]
    pub(super) fn block_groups(&self, block: usize) -> Option<(usize, &[[f16; BLOCK]])> {
        let groups = self.groups.as_ref()?;
        let count = self.in_features / groups.size;
        Some((groups.size, &groups.scales.as_chunks().0[block * count..(block + 1) * count]))
    }

    /// Rows up to which it does not pay to write the expanded weight down and read it again: expanding
    /// is cheap per channel, and takes table lookups per group.
    pub(super) fn skinny_rows(&self) -> usize {
        if self.groups.is_some() { 8 } else { 16 }
    }

    /// Bytes of codes and scales.
    pub(super) fn bytes(&self) -> usize {
        let groups = self.groups.as_ref().map_or(0, |groups| size_of_val(&groups.scales[..]));
        size_of_val(&self.lines[..]) + size_of_val(&self.channel_scales[..]) + groups
    }
}

/// 32 codes of a channel, or the last 16, as 16 bytes of a line.
#[inline]
fn packed_lane(codes: &[i8]) -> [u8; 16] {
    let (low, high) = codes.split_at(16);
    // What is missing is code 0.
    let mut bytes = [0x80; 16];
    if let Some(high) = high.first_chunk::<16>() {
        bytes = high.map(|code| code.wrapping_add(8).cast_unsigned() << 4);
    }
    bytes.iter_mut().zip(low).for_each(|(byte, code)| *byte |= code.wrapping_add(8).cast_unsigned() & 15);
    bytes
}

fn error(weight: &QuantizedWeight, what: &str) -> BackendError {
    let (n, k) = (weight.out_features, weight.in_features);
    BackendError::Shape(format!("{}-bit weight of shape {n} x {k}: {what}", weight.bits.get()))
}

/// Checks all but the values of codes and group scales.
fn check_shape(weight: &QuantizedWeight) -> Result<()> {
    let (n, k) = (weight.out_features, weight.in_features);
    let fail = |what: String| Err(error(weight, &what));
    if n == 0 || k == 0 || n % BLOCK != 0 || k % 16 != 0 {
        return fail("the integer kernels take N and K divisible by 16".into());
    }
    if k > MAX_IN_FEATURES {
        return fail(format!("the integer kernels take K up to {MAX_IN_FEATURES}"));
    }
    if n.checked_mul(k) != Some(weight.codes.len()) {
        return fail(format!("it has {} codes", weight.codes.len()));
    }
    let scales = weight.channel_scales();
    if scales.len() != n {
        return fail(format!("it has {} channel scales", scales.len()));
    }
    if let Some(i) = scales.iter().position(|s| !s.is_finite()) {
        return fail(format!("the scale of channel {i} is {}", scales[i]));
    }
    let Scales::PerGroup { group_size, group, .. } = &weight.scales else {
        return Ok(());
    };
    if weight.bits == CodeBits::Eight {
        return fail(format!("it has groups of {group_size}; 8 bits go with a scale an output channel"));
    }
    if ![32, 64, 128].contains(group_size) || k % group_size != 0 {
        return fail(format!(
            "the group size is {group_size}; the integer kernels take 32, 64 and 128, where it divides K, and per-channel scales"
        ));
    }
    if group.len() != weight.codes.len() / group_size {
        return fail(format!("it has {} scales of groups of {group_size}", group.len()));
    }
    Ok(())
}

/// Says what is wrong with the first code or group scale of `rows` with which something is.
fn first_misfit(weight: &QuantizedWeight, rows: Range<usize>) -> Option<String> {
    let k = weight.in_features;
    let codes = &weight.codes[rows.start * k..rows.end * k];
    if weight.bits == CodeBits::Eight {
        return None;
    }
    // Without an early exit, so that it is vectorized.
    if codes.iter().fold(false, |bad, &c| bad | !(-8..=7).contains(&c)) {
        let i = codes.iter().position(|c| !(-8..=7).contains(c)).unwrap_or(0);
        return Some(format!("code {} of channel {} is not in -8..=7", codes[i], rows.start + i / k));
    }
    let Scales::PerGroup { group_size, group, .. } = &weight.scales else { return None };
    let groups = k / group_size;
    let scales = &group[rows.start * groups..rows.end * groups];
    codes.chunks_exact(*group_size).zip(scales).enumerate().find_map(|(i, (codes, scale))| {
        let scale = f32::from(*scale);
        let largest = codes.iter().fold(0, |m: u8, c| m.max(c.unsigned_abs()));
        // Not finite is not below either.
        let fits = (f32::from(largest) * scale).round_ties_even().abs() <= 127.0;
        let (channel, g) = (rows.start + i / groups, i % groups);
        (!fits).then(|| {
            format!(
                "group scale {scale} of channel {channel}, group {g}, takes int8 weights out of -127..=127"
            )
        })
    })
}

/// The error of a weight of which some channel does not fit.
fn misfit(weight: &QuantizedWeight) -> BackendError {
    let channels = 0..weight.out_features;
    let first = channels.into_iter().find_map(|channel| first_misfit(weight, channel..channel + 1));
    error(weight, &first.unwrap_or_default())
}
