//! Rotary position embedding, and the append to the KV cache that goes with it.

use std::{ops::Range, sync::OnceLock};

use super::{
    kv_pool::{CpuKvPool, NewPositions, PageWriter},
    matrix::Matrix,
    norm::norm_in_place,
    tile::NR,
};
use crate::{
    BackendError, BatchPlan, HeadLayout, KvDType, PAGE, QueryScale, Result, pool,
    shared::SharedMut,
    simd::{SimdLevel, fma, multiversion},
};

/// Positions of a table that are computed together.
const TOGETHER: usize = 256;

/// Cosines and sines by position, computed when a position is first used: a long context that is
/// never reached costs nothing.
#[derive(Debug)]
pub struct CpuRope {
    inv_freq: Vec<f32>,
    /// Factor of all cosines and sines.
    factor: f32,
    query_scale: Option<QueryScale>,
    max_positions: usize,
    /// [`TOGETHER`] positions each: per position, the cosines, then the sines.
    pages: Vec<OnceLock<Box<[f32]>>>,
}

impl CpuRope {
    pub(crate) fn new(
        inv_freq: &[f32],
        factor: f32,
        query_scale: Option<QueryScale>,
        max_positions: usize,
    ) -> Self {
        let pages = (0..max_positions.div_ceil(TOGETHER)).map(|_| OnceLock::new()).collect();
        Self { inv_freq: inv_freq.to_vec(), factor, query_scale, max_positions, pages }
    }

    /// Components of a head that are turned.
    fn width(&self) -> usize {
        2 * self.inv_freq.len()
    }

    /// Cosines and sines of a position, half of [`width`](Self::width) each.
    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.inv_freq.len();
        let page = self.pages[position / TOGETHER].get_or_init(|| {
            let first = position / TOGETHER * TOGETHER;
            let mut page = Vec::with_capacity(TOGETHER * 2 * half);
            for p in first..first + TOGETHER {
                // The angle is rounded to f32 first, as transformers does.
                let angles = self.inv_freq.iter().map(|f| f64::from(p as f32 * f));
                page.extend(angles.clone().map(|a| a.cos() as f32 * self.factor));
                page.extend(angles.map(|a| a.sin() as f32 * self.factor));
            }
            page.into_boxed_slice()
        });
        page[position % TOGETHER * 2 * half..][..2 * half].split_at(half)
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

/// Weights and epsilon of a norm.
pub(crate) type NormOf<'a> = (&'a [f32], f32);

/// See [`Backend::rope_append`](crate::Backend::rope_append).
///
/// # Errors
/// Shapes that disagree, a position that is not below the rope's limit, pages that the pool has not.
#[allow(clippy::too_many_arguments)]
pub(crate) fn rope_append(
    level: SimdLevel,
    qkv: &mut Matrix,
    heads: HeadLayout,
    norms: Option<[NormOf; 2]>,
    rope: Option<&CpuRope>,
    kv: &mut CpuKvPool,
    layer: usize,
    batch: &BatchPlan,
) -> Result<()> {
    check_heads(qkv, heads, kv, batch)?;
    if let Some(rope) = rope.filter(|rope| rope.width() > heads.head_dim) {
        return Err(BackendError::Shape(format!(
            "a rotary embedding of {} components for heads of {}",
            rope.width(),
            heads.head_dim
        )));
    }
    let layout = kv.page_layout();
    let rounds = kv.layout().dtype == KvDType::F16;
    let width = qkv.cols;
    let mut first_row = 0;
    for span in &batch.spans {
        let end = span.end();
        if let Some(rope) = rope.filter(|rope| end > rope.max_positions) {
            return Err(BackendError::Batch(format!(
                "position {end} is beyond the rotary embedding's {}",
                rope.max_positions
            )));
        }
        // Pages that get new positions.
        let first_page = span.start / PAGE;
        let table = &batch.table(span)[first_page..];
        kv.check(layer, table)?;
        let mut pages = kv.take(layer, table, span.start % PAGE);
        let rows = SharedMut::new(&mut qkv.data[first_row * width..(first_row + span.len) * width]);
        // One job for each block of 32 positions that the span touches.
        let blocks = span.start / NR..end.div_ceil(NR);
        let positions = |block: usize| (block * NR).max(span.start)..((block + 1) * NR).min(end);
        let store = |block: usize, rows: &[f32], pages: &[PageWriter]| {
            let Range { start: from, end: to } = positions(block);
            for h in 0..heads.num_kv_heads {
                let key = heads.q_width() + h * heads.head_dim;
                let new = NewPositions {
                    head: h,
                    first: from % PAGE,
                    count: to - from,
                    keys: &rows[key..],
                    values: &rows[key + heads.kv_width()..],
                    stride: width,
                };
                // SAFETY: jobs have different positions.
                unsafe { pages[from / PAGE - first_page].write(level, layout, new) };
            }
        };
        let writers: Vec<PageWriter> = pages.iter_mut().map(|page| page.writer(rounds)).collect();
        pool::parallel_for(blocks.len(), |b| {
            let block = blocks.start + b;
            let positions = positions(block);
            // SAFETY: jobs have different positions.
            let rows = unsafe {
                rows.slice((positions.start - span.start) * width..(positions.end - span.start) * width)
            };
            for (row, position) in rows.chunks_exact_mut(width).zip(positions) {
                turn_row(level, row, heads, norms, rope, position);
            }
            store(block, rows, &writers);
        });
        let overflowed: Vec<usize> = (0..writers.len()).filter(|&p| writers[p].overflowed()).collect();
        if !overflowed.is_empty() {
            drop(writers);
            overflowed.iter().for_each(|&page| pages[page].widen(level));
            let writers: Vec<PageWriter> = pages.iter_mut().map(|page| page.writer(rounds)).collect();
            let rows = &qkv.data[first_row * width..(first_row + span.len) * width];
            let is_wide = |block: &usize| overflowed.contains(&(block * NR / PAGE - first_page));
            for block in blocks.filter(is_wide) {
                let positions = positions(block);
                let rows =
                    &rows[(positions.start - span.start) * width..(positions.end - span.start) * width];
                store(block, rows, &writers);
            }
        }
        kv.put_back(layer, table, pages);
        first_row += span.len;
    }
    Ok(())
}

/// Checks that rows, heads, pool and batch fit together.
pub(crate) fn check_heads(qkv: &Matrix, heads: HeadLayout, kv: &CpuKvPool, batch: &BatchPlan) -> Result<()> {
    let refuse = |what: String| Err(BackendError::Shape(what));
    if qkv.cols != heads.qkv_width() || qkv.rows != batch.rows() {
        return refuse(format!(
            "queries, keys and values of shape {} x {} for {} rows of {}",
            qkv.rows,
            qkv.cols,
            batch.rows(),
            heads.qkv_width()
        ));
    }
    if (heads.num_kv_heads, heads.head_dim) != (kv.layout().num_kv_heads, kv.layout().head_dim) {
        return refuse(format!("a KV pool of {:?} for {heads:?}", kv.layout()));
    }
    if heads.num_kv_heads == 0 || !heads.num_heads.is_multiple_of(heads.num_kv_heads) {
        return refuse(format!("query heads are not a multiple of key heads: {heads:?}"));
    }
    Ok(())
}

/// Norms and rotates the query and key heads of a row.
fn turn_row(
    level: SimdLevel,
    row: &mut [f32],
    heads: HeadLayout,
    norms: Option<[NormOf; 2]>,
    rope: Option<&CpuRope>,
    position: usize,
) {
    let angles = rope.map(|rope| rope.at(position));
    let query_scale = rope.and_then(|rope| rope.query_scale).map_or(1.0, |scale| scale.at(position));
    let turned = (heads.num_heads + heads.num_kv_heads) * heads.head_dim;
    for (h, head) in row[..turned].chunks_exact_mut(heads.head_dim).enumerate() {
        if let Some(norms) = norms {
            let (weight, eps) = norms[usize::from(h >= heads.num_heads)];
            norm_in_place(level, head, weight, eps);
        }
        if let Some((cos, sin)) = angles {
            rotate(level, &mut head[..2 * cos.len()], cos, sin);
        }
        if query_scale != 1.0 && h < heads.num_heads {
            head.iter_mut().for_each(|x| *x *= query_scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::{KvLayout, pages_for};

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
        let layout = KvLayout { num_layers: 1, num_kv_heads, head_dim, dtype };
        let mut kv = CpuKvPool::new(layout, pages_for(LEN) + 2);
        // Any pages in any order.
        let table: Vec<u32> = (0..pages_for(LEN) as u32).map(|page| (2 * page + 1) % 5).collect();
        let rope = CpuRope::new(&vec![0.3; head_dim / 2], 1.0, None, LEN);
        let mut start = 0;
        for &len in pieces {
            let data = x.data[start * x.cols..(start + len) * x.cols].to_vec();
            let mut part = Matrix { rows: len, cols: x.cols, data };
            let mut plan = BatchPlan::default();
            plan.push(&vec![0; len], start, &table);
            rope_append(level, &mut part, HEADS, None, Some(&rope), &mut kv, 0, &plan).unwrap();
            start += len;
        }
        assert_eq!(start, LEN);
        let layout = kv.page_layout();
        let mut heads = Vec::new();
        for head in 0..num_kv_heads {
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for position in 0..LEN {
                let (page, at) = (position / PAGE, position % PAGE);
                let mut wide = vec![0.0; layout.head_size];
                let pages = kv.pages(0, &table).unwrap();
                let (k, v) = pages.head(level, layout, page, head, at + 1, &mut wide);
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
