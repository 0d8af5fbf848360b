//! Attention over the KV cache, in tiles with a running softmax: after Dao et al., "FlashAttention"
//! (arXiv 2205.14135), and Milakov and Gimelshein, "Online normalizer calculation for softmax" (arXiv
//! 1805.02867).
//!
//! The queries of all heads that share a key/value head are stacked: row `t * group + h` is head `h` of
//! the group at the span's token `t`. So a decode step reads its keys and values once for the group.

use super::{
    kv_pool::{CpuKvPool, LayerPages, PageLayout},
    matrix::Matrix,
    norm::softmax_piece,
    rope::check_heads,
    tile::{MR, NR, Tile},
};
use crate::{
    AttentionKind, BackendError, BatchPlan, HeadLayout, PAGE, Result, Span, pool,
    shared::{SharedMut, with_scratch},
    simd::SimdLevel,
};

/// Stacked rows of a job: 8 tiles.
const ROWS_PER_JOB: usize = 8 * MR;
/// Pages of keys that a job sees where a span has few rows. A fixed number, so that results do not
/// depend on the number of threads.
const PAGES_PER_SPLIT: usize = 2;

/// One job: some stacked rows of a span and key/value head, over some pages of the sequence.
struct Job<'a> {
    span: Span,
    cache: LayerPages<'a>,
    /// First row of the span in the batch.
    first_row: usize,
    kv_head: usize,
    rows: std::ops::Range<usize>,
    pages: std::ops::Range<usize>,
    /// Place of the result among the partial ones, if the pages are a part of what the rows see.
    partial: Option<usize>,
}

/// See [`Backend::attention`](crate::Backend::attention).
///
/// # Errors
/// Shapes that disagree, and pages that the pool has not or that were never written.
pub(crate) fn attention(
    level: SimdLevel,
    qkv: &Matrix,
    kind: &AttentionKind,
    kv: &CpuKvPool,
    layer: usize,
    batch: &BatchPlan,
    out: &mut Matrix,
) -> Result<()> {
    let heads = kind.heads;
    check_heads(qkv, heads, kv, batch)?;
    if kind.window == Some(0) {
        return Err(BackendError::Shape("a sliding window of 0".into()));
    }
    let context = Context {
        level,
        qkv,
        heads,
        scale: kind.scale,
        group: heads.num_heads / heads.num_kv_heads,
        window: kind.window.unwrap_or(usize::MAX),
        layout: kv.page_layout(),
    };
    let mut jobs = Vec::new();
    let mut merges = Vec::new();
    let mut partials = 0;
    let mut first_row = 0;
    for &span in &batch.spans {
        let cache = kv.pages(layer, batch.table(&span))?;
        let stacked = span.len * context.group;
        for kv_head in 0..heads.num_kv_heads {
            for start in (0..stacked).step_by(ROWS_PER_JOB) {
                let rows = start..(start + ROWS_PER_JOB).min(stacked);
                let pages = context.visible_pages(span, &rows);
                let job = |pages, partial| Job {
                    span,
                    cache,
                    first_row,
                    kv_head,
                    rows: rows.clone(),
                    pages,
                    partial,
                };
                if stacked > ROWS_PER_JOB || pages.len() <= PAGES_PER_SPLIT {
                    jobs.push(job(pages, None));
                    continue;
                }
                let first = partials;
                for from in pages.clone().step_by(PAGES_PER_SPLIT) {
                    jobs.push(job(from..(from + PAGES_PER_SPLIT).min(pages.end), Some(partials)));
                    partials += rows.len();
                }
                merges.push((job(pages, None), first..partials));
            }
        }
        first_row += span.len;
    }
    // Long jobs first, so that the last ones to finish are short.
    jobs.sort_by_key(|job| std::cmp::Reverse(job.rows.len() * job.pages.len()));
    let partial_size = context.layout.head_dim + 2;
    out.reshape(qkv.rows, heads.q_width());
    let mut partial = vec![0.0; partials * partial_size];
    let shared_out = SharedMut::new(&mut out.data);
    let shared_partial = SharedMut::new(&mut partial);
    // SAFETY: jobs have different rows or heads, or different places among the partial results.
    pool::parallel_for(jobs.len(), |i| unsafe { context.run(&jobs[i], &shared_out, &shared_partial) });
    for (job, places) in &merges {
        // SAFETY: all jobs are done.
        unsafe {
            context.merge(job, &partial[places.start * partial_size..places.end * partial_size], &shared_out)
        };
    }
    Ok(())
}

struct Context<'a> {
    level: SimdLevel,
    qkv: &'a Matrix,
    heads: HeadLayout,
    scale: f32,
    group: usize,
    window: usize,
    layout: PageLayout,
}

impl Context<'_> {
    /// Positions that a stacked row sees.
    fn visible(&self, span: Span, row: usize) -> std::ops::Range<usize> {
        let end = span.start + row / self.group + 1;
        end.saturating_sub(self.window)..end
    }

    /// Chunks that some of the rows see.
    fn visible_pages(&self, span: Span, rows: &std::ops::Range<usize>) -> std::ops::Range<usize> {
        let (first, last) = (self.visible(span, rows.start), self.visible(span, rows.end - 1));
        first.start / PAGE..last.end.div_ceil(PAGE)
    }

    /// Index of the first component of a stacked row in a matrix of rows of `width` values that starts
    /// with the query heads.
    fn index(&self, job: &Job, row: usize, width: usize) -> usize {
        let head = job.kv_head * self.group + row % self.group;
        (job.first_row + row / self.group) * width + head * self.heads.head_dim
    }

    /// Runs a job into the output, or its unnormalised sums, maximum and sum of weights into its partial result.
    ///
    /// # Safety
    /// No other job may write the same rows and heads of `out`, or place of `partial`.
    unsafe fn run(&self, job: &Job, out: &SharedMut<f32>, partial: &SharedMut<f32>) {
        let PageLayout { head_dim, value_stride, head_size } = self.layout;
        let rows = job.rows.len();
        let sizes = [head_dim * rows, rows * PAGE, rows * value_stride, head_size, 2 * rows];
        let sizes = sizes.map(|n| n.next_multiple_of(16));
        with_scratch(sizes.iter().sum(), |scratch| {
            let (queries, scratch) = scratch.split_at_mut(sizes[0]);
            let (scores, scratch) = scratch.split_at_mut(sizes[1]);
            let (sums, scratch) = scratch.split_at_mut(sizes[2]);
            let (wide, state) = scratch.split_at_mut(sizes[3]);
            let (maxima, weights) = state.split_at_mut(rows);
            self.load_queries(job, queries);
            sums.fill(0.0);
            maxima.fill(f32::NEG_INFINITY);
            weights.fill(0.0);

            for page in job.pages.clone() {
                let base = page * PAGE;
                let end = self.visible(job.span, job.rows.end - 1).end;
                let positions = (end - base).min(PAGE);
                let (keys, values) =
                    job.cache.head(self.level, self.layout, page, job.kv_head, positions, wide);
                self.score(rows, queries, keys, scores);
                for (r, row) in job.rows.clone().enumerate() {
                    let visible = self.visible(job.span, row);
                    let from = visible.start.saturating_sub(base).min(positions);
                    let to = visible.end.saturating_sub(base).clamp(from, positions);
                    let scores = &mut scores[r * PAGE..r * PAGE + positions];
                    let (max, sum) = softmax_piece(self.level, scores, from, to, maxima[r]);
                    if max != maxima[r] && weights[r] != 0.0 {
                        let factor = (maxima[r] - max).exp();
                        weights[r] *= factor;
                        sums[r * value_stride..(r + 1) * value_stride].iter_mut().for_each(|v| *v *= factor);
                    }
                    maxima[r] = max;
                    weights[r] += sum;
                }
                self.weigh(rows, positions, scores, values, sums);
            }

            for (r, row) in job.rows.clone().enumerate() {
                let sums = &sums[r * value_stride..r * value_stride + head_dim];
                if let Some(place) = job.partial {
                    let size = head_dim + 2;
                    // SAFETY: the place is the job's own.
                    let result = unsafe { partial.slice((place + r) * size..(place + r + 1) * size) };
                    result[..head_dim].copy_from_slice(sums);
                    result[head_dim..].copy_from_slice(&[maxima[r], weights[r]]);
                } else {
                    let at = self.index(job, row, self.heads.q_width());
                    // SAFETY: the rows and heads are the job's own.
                    let result = unsafe { out.slice(at..at + head_dim) };
                    let factor = 1.0 / weights[r];
                    result.iter_mut().zip(sums).for_each(|(out, v)| *out = v * factor);
                }
            }
        });
    }

    /// Copies the rows' queries, scaled, as `[component][row]`.
    fn load_queries(&self, job: &Job, queries: &mut [f32]) {
        let rows = job.rows.len();
        for (r, row) in job.rows.clone().enumerate() {
            let at = self.index(job, row, self.qkv.cols);
            for (d, &q) in self.qkv.data[at..at + self.heads.head_dim].iter().enumerate() {
                queries[d * rows + r] = q * self.scale;
            }
        }
    }

    /// `scores[row][position] = query . key`, rows [`PAGE`] values apart.
    fn score(&self, rows: usize, queries: &[f32], keys: &[f32], scores: &mut [f32]) {
        let head_dim = self.heads.head_dim;
        for (block, keys) in keys.chunks_exact(head_dim * NR).enumerate() {
            for r in (0..rows).step_by(MR) {
                let tile = Tile {
                    rows: MR.min(rows - r),
                    depth: head_dim,
                    a: queries[r..].as_ptr(),
                    a_step: rows,
                    b: keys.as_ptr(),
                    b_step: NR,
                    c: scores[r * PAGE + block * NR..].as_mut_ptr(),
                    c_row: PAGE,
                    add: false,
                };
                // SAFETY: the operands are `head_dim x rows`, `head_dim x 32` and `rows x PAGE` values.
                unsafe { tile.run::<1>(self.level) };
            }
        }
    }

    /// `sums += weights values` over the page's positions.
    fn weigh(&self, rows: usize, positions: usize, weights: &[f32], values: &[f32], sums: &mut [f32]) {
        let stride = self.layout.value_stride;
        assert!(values.len() >= positions * stride);
        for col in (0..stride).step_by(NR) {
            for r in (0..rows).step_by(MR) {
                let tile = Tile {
                    rows: MR.min(rows - r),
                    depth: positions,
                    a: weights[r * PAGE..].as_ptr(),
                    a_step: 1,
                    b: values[col..].as_ptr(),
                    b_step: stride,
                    c: sums[r * stride + col..].as_mut_ptr(),
                    c_row: stride,
                    add: true,
                };
                // SAFETY: the operands are `rows x PAGE`, `positions x stride` and `rows x stride` values.
                unsafe { tile.run::<PAGE>(self.level) };
            }
        }
    }

    /// Joins the partial results of a job's parts, one after the other, into the output.
    ///
    /// # Safety
    /// Nothing else may write the job's rows and heads of `out`.
    unsafe fn merge(&self, job: &Job, partial: &[f32], out: &SharedMut<f32>) {
        let (head_dim, rows) = (self.heads.head_dim, job.rows.len());
        let size = head_dim + 2;
        for (r, row) in job.rows.clone().enumerate() {
            let parts = || partial.chunks_exact(size).skip(r).step_by(rows);
            let max = parts().fold(f32::NEG_INFINITY, |max, part| max.max(part[head_dim]));
            let at = self.index(job, row, self.heads.q_width());
            // SAFETY: the caller's promise.
            let result = unsafe { out.slice(at..at + head_dim) };
            result.fill(0.0);
            let mut weight = 0.0;
            for part in parts() {
                let factor = if part[head_dim + 1] == 0.0 { 0.0 } else { (part[head_dim] - max).exp() };
                weight += part[head_dim + 1] * factor;
                result.iter_mut().zip(part).for_each(|(out, v)| *out += v * factor);
            }
            result.iter_mut().for_each(|v| *v /= weight);
        }
    }
}
