//! Rotary position embedding, and the append to the KV cache that goes with it.

use std::{ops::Range, sync::OnceLock};

use super::{
    kv_cache::{CHUNK, ChunkWriter, CpuKvCache, NewPositions},
    matrix::Matrix,
    norm::norm_in_place,
    pool,
    shared::SharedMut,
    simd::{SimdLevel, fma, multiversion},
    tile::NR,
};
use crate::{HeadLayout, Span};

/// Positions of a table that are computed together.
const PAGE: usize = 256;

/// Cosines and sines by position, computed when a position is first used: a long context that is
/// never reached costs nothing.
#[derive(Debug)]
pub struct CpuRope {
    inv_freq: Vec<f32>,
    /// Factor of all cosines and sines.
    factor: f32,
    max_positions: usize,
    /// Per position, the cosines, then the sines.
    pages: Vec<OnceLock<Box<[f32]>>>,
}

impl CpuRope {
    pub(crate) fn new(inv_freq: &[f32], factor: f32, max_positions: usize) -> Self {
        let pages = (0..max_positions.div_ceil(PAGE)).map(|_| OnceLock::new()).collect();
        Self { inv_freq: inv_freq.to_vec(), factor, max_positions, pages }
    }

    /// Cosines and sines of a position, `head_dim / 2` each.
    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.inv_freq.len();
        let page = self.pages[position / PAGE].get_or_init(|| {
            let first = position / PAGE * PAGE;
            let mut page = Vec::with_capacity(PAGE * 2 * half);
            for p in first..first + PAGE {
                // The angle is rounded to f32 first, as transformers does.
                let angles = self.inv_freq.iter().map(|f| f64::from(p as f32 * f));
                page.extend(angles.clone().map(|a| a.cos() as f32 * self.factor));
                page.extend(angles.map(|a| a.sin() as f32 * self.factor));
            }
            page.into_boxed_slice()
        });
        page[position % PAGE * 2 * half..][..2 * half].split_at(half)
    }
}

multiversion! {
    fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
        let (a, b) = head.split_at_mut(cos.len());
        for (((a, b), &c), &s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
            (*a, *b) = (fma::<FMA>(*a, c, -(*b * s)), fma::<FMA>(*b, c, *a * s));
        }
    }
}

/// Weights and epsilon of the head norms of q and k.
pub(crate) type QkNorm<'a> = Option<(&'a [f32], &'a [f32], f32)>;

/// See [`Backend::rope_append_kv`](crate::Backend::rope_append_kv).
///
/// # Panics
/// If shapes disagree, a position is not below the rope's limit, or a slot holds fewer than `start` positions.
#[allow(clippy::too_many_arguments)]
pub(crate) fn rope_append_kv(
    level: SimdLevel,
    qkv: &mut Matrix,
    heads: HeadLayout,
    norm: QkNorm,
    rope: &CpuRope,
    kv: &mut CpuKvCache,
    layer: usize,
    spans: &[Span],
) {
    assert_eq!(qkv.cols, heads.qkv_width(), "width of a qkv row");
    assert_eq!(qkv.rows, spans.iter().map(|s| s.len).sum::<usize>(), "rows of the spans");
    assert_eq!(
        (heads.num_kv_heads, heads.head_dim),
        (kv.layout().num_kv_heads, kv.layout().head_dim),
        "KV layout"
    );
    assert_eq!(heads.head_dim, 2 * rope.inv_freq.len(), "head_dim of the rope");
    let layout = kv.chunk_layout();
    let width = qkv.cols;
    let mut first_row = 0;
    for span in spans {
        let end = span.start + span.len;
        assert!(end <= rope.max_positions, "position {end} is beyond the limit of {}", rope.max_positions);
        kv.extend(span.slot, layer, span.start, span.len);
        let chunks = kv.writers(span.slot, layer);
        let rows = SharedMut::new(&mut qkv.data[first_row * width..(first_row + span.len) * width]);
        // One job for each block of 32 positions that the span touches.
        let blocks = span.start / NR..end.div_ceil(NR);
        let positions = |block: usize| (block * NR).max(span.start)..((block + 1) * NR).min(end);
        let store = |block: usize, rows: &[f32], chunks: &[ChunkWriter]| {
            let Range { start: from, end: to } = positions(block);
            for h in 0..heads.num_kv_heads {
                let key = heads.q_width() + h * heads.head_dim;
                let new = NewPositions {
                    head: h,
                    first: from % CHUNK,
                    count: to - from,
                    keys: &rows[key..],
                    values: &rows[key + heads.kv_width()..],
                    stride: width,
                };
                // SAFETY: jobs have different positions.
                unsafe { chunks[from / CHUNK].write(level, layout, new) };
            }
        };
        pool::parallel_for(blocks.len(), |b| {
            let block = blocks.start + b;
            let positions = positions(block);
            // SAFETY: jobs have different positions.
            let rows = unsafe {
                rows.slice((positions.start - span.start) * width..(positions.end - span.start) * width)
            };
            for (row, position) in rows.chunks_exact_mut(width).zip(positions) {
                turn_row(level, row, heads, norm, rope, position);
            }
            store(block, rows, &chunks);
        });
        let overflowed: Vec<usize> = (0..chunks.len()).filter(|&c| chunks[c].overflowed()).collect();
        if !overflowed.is_empty() {
            drop(chunks);
            overflowed.iter().for_each(|&chunk| kv.widen_chunk(level, span.slot, layer, chunk));
            let chunks = kv.writers(span.slot, layer);
            let rows = &qkv.data[first_row * width..(first_row + span.len) * width];
            for block in blocks.filter(|block| overflowed.contains(&(block * NR / CHUNK))) {
                let positions = positions(block);
                let rows =
                    &rows[(positions.start - span.start) * width..(positions.end - span.start) * width];
                store(block, rows, &chunks);
            }
        }
        first_row += span.len;
    }
}

/// Norms and rotates the query and key heads of a row.
fn turn_row(
    level: SimdLevel,
    row: &mut [f32],
    heads: HeadLayout,
    norm: QkNorm,
    rope: &CpuRope,
    position: usize,
) {
    let (cos, sin) = rope.at(position);
    let turned = (heads.num_heads + heads.num_kv_heads) * heads.head_dim;
    for (h, head) in row[..turned].chunks_exact_mut(heads.head_dim).enumerate() {
        if let Some((q, k, eps)) = norm {
            norm_in_place(level, head, if h < heads.num_heads { q } else { k }, eps);
        }
        rotate(level, head, cos, sin);
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::{KvDType, KvLayout};

    const HEADS: HeadLayout = HeadLayout { num_heads: 2, num_kv_heads: 2, head_dim: 40 };
    const LEN: usize = 300;

    /// Rows of queries, keys and values; those of some heads and positions are what float16 cannot hold.
    fn rows(extremes: bool) -> Matrix {
        let cols = HEADS.qkv_width();
        let mut data = vec![0.0; LEN * cols];
        for (i, v) in data.iter_mut().enumerate() {
            let (position, head) = (i / cols, i % cols / HEADS.head_dim);
            let factor = match (position + 5 * head) % 67 {
                _ if !extremes => 1.0,
                3 => 1e6,
                17 => 1e-6,
                31 => 700.0,
                _ => 1.0,
            };
            *v = (((i * 7919) % 1009) as f32 / 504.5 - 1.0) * factor;
        }
        if extremes {
            data[200 * cols + 2 * HEADS.head_dim..201 * cols].fill(0.0);
        }
        Matrix { rows: LEN, cols, data }
    }

    /// The cache after all rows have been appended in pieces: bytes, and all keys and values of each head.
    fn append(level: SimdLevel, dtype: KvDType, x: &Matrix, pieces: &[usize]) -> (usize, Vec<Vec<f32>>) {
        let HeadLayout { num_kv_heads, head_dim, .. } = HEADS;
        let mut kv = CpuKvCache::new(KvLayout { num_layers: 1, num_kv_heads, head_dim, dtype });
        let rope = CpuRope::new(&vec![0.3; head_dim / 2], 1.0, LEN);
        let slot = kv.add_slot();
        let mut start = 0;
        for &len in pieces {
            let data = x.data[start * x.cols..(start + len) * x.cols].to_vec();
            let mut part = Matrix { rows: len, cols: x.cols, data };
            rope_append_kv(level, &mut part, HEADS, None, &rope, &mut kv, 0, &[Span { slot, start, len }]);
            start += len;
        }
        assert_eq!(start, LEN);
        let layout = kv.chunk_layout();
        let mut heads = Vec::new();
        for head in 0..num_kv_heads {
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for position in 0..LEN {
                let (chunk, at) = (position / CHUNK, position % CHUNK);
                let mut wide = vec![0.0; layout.head_size];
                let (k, v) = kv.layer(slot, 0).head(level, layout, chunk, head, at + 1, &mut wide);
                keys.extend((0..head_dim).map(|d| k[(at / NR * head_dim + d) * NR + at % NR]));
                values.extend_from_slice(&v[at * layout.value_stride..][..head_dim]);
            }
            heads.extend([keys, values]);
        }
        (kv.bytes(), heads)
    }

    #[test]
    fn what_is_kept_of_a_position_depends_on_nothing_else() {
        let level = SimdLevel::detect();
        let x = rows(true);
        let (_, exact) = append(level, KvDType::F32, &x, &[LEN]);
        // Keys, then values of each head.
        let expected: Vec<Vec<f32>> = exact
            .iter()
            .enumerate()
            .map(|(i, heads)| {
                let limit = if i % 2 == 0 { 511.99 } else { 65504.0 };
                let kept = heads.chunks_exact(HEADS.head_dim).flat_map(|head| {
                    let largest = head.iter().fold(0.0f32, |max, v| max.max(v.abs()));
                    let fits = largest == 0.0 || (6.2e-5..limit).contains(&largest);
                    head.iter().map(move |&v| if fits { f16::from_f32(v).to_f32() } else { v })
                });
                kept.collect()
            })
            .collect();
        assert_ne!(expected, exact);
        for pieces in [&[LEN][..], &[1, 1, 30, 64, 5, 199], &[127, 1, 1, 127, 44], &[1; LEN]] {
            assert_eq!(append(level, KvDType::F16, &x, pieces).1, expected, "{pieces:?}");
        }
    }

    #[test]
    fn an_ordinary_sequence_takes_half_the_memory() {
        let x = rows(false);
        let bytes = |dtype| append(SimdLevel::detect(), dtype, &x, &[100, 1, 199]).0;
        assert_eq!(2 * bytes(KvDType::F16), bytes(KvDType::F32));
    }
}
