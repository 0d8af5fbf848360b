//! Rotary position embedding, and the append to the KV cache that goes with it.

use std::sync::OnceLock;

use super::{
    kv_cache::{CHUNK, CpuKvCache, NewPositions},
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
        let (first_block, blocks) = (span.start / NR, end.div_ceil(NR) - span.start / NR);
        pool::parallel_for(blocks, |b| {
            let block = (first_block + b) * NR;
            let (from, to) = (block.max(span.start), (block + NR).min(end));
            // SAFETY: jobs have different positions.
            let rows = unsafe { rows.slice((from - span.start) * width..(to - span.start) * width) };
            for (row, position) in rows.chunks_exact_mut(width).zip(from..) {
                turn_row(level, row, heads, norm, rope, position);
            }
            let chunk = &chunks[from / CHUNK];
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
                unsafe { chunk.write(layout, new) };
            }
        });
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
