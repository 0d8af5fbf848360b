//! Queries, keys and values of a step, and what attention makes of them in float64. Needs the module `uniform` beside it.

use qqq_backend::{AttentionKind, BatchPlan, HeadLayout, pages_for};
use qqq_cuda::{DType, KernelType};

use crate::uniform::uniform;

/// Sequences of a step: new tokens, and positions before them.
#[derive(Clone, Debug)]
pub struct Attending {
    pub kind: AttentionKind,
    pub half: DType,
    pub spans: Vec<(usize, usize)>,
}

impl Attending {
    pub fn new(
        (num_heads, num_kv_heads, head_dim): (usize, usize, usize),
        window: Option<usize>,
        half: DType,
        spans: &[(usize, usize)],
    ) -> Self {
        let heads = HeadLayout { num_heads, num_kv_heads, head_dim };
        Self { kind: AttentionKind::causal(heads, window), half, spans: spans.to_vec() }
    }

    /// Pages of a pool that is a little larger than needed.
    pub fn pages(&self) -> usize {
        self.spans.iter().map(|(len, start)| pages_for(len + start)).sum::<usize>() + 2
    }

    /// Page tables: pages of all sequences, out of order. Each with `range` of its tokens as new ones.
    pub fn plan(&self, range: impl Fn(usize, usize) -> std::ops::Range<usize>) -> BatchPlan {
        let mut order: Vec<u32> = (0..self.pages() as u32).collect();
        order.sort_by_key(|i| uniform(77, *i as usize).to_bits());
        let mut pages = order.into_iter();
        let mut plan = BatchPlan::default();
        for &(len, start) in &self.spans {
            let own: Vec<u32> = pages.by_ref().take(pages_for(len + start)).collect();
            let range = range(len, start);
            if !range.is_empty() {
                plan.push(&vec![0; range.len()], range.start, &own);
            }
        }
        plan
    }

    /// The number in the query, key and value heads of a sequence's token; some keys are met much more than others.
    fn value(&self, sequence: usize, position: usize, column: usize) -> f32 {
        let at = (sequence * 10_000 + position) * 8192 + column;
        let spread: f32 = (0..4).map(|j| uniform(5, 4 * at + j) - 0.5).sum();
        let heads = &self.kind.heads;
        let is_key = column >= heads.q_width() && column < heads.q_width() + heads.kv_width();
        let factor = if is_key && position % 37 == 5 { 4.0 } else { 1.5 };
        self.half.decode(self.half.encode(factor * spread))
    }

    /// A row of q, k and v.
    pub fn row(&self, sequence: usize, position: usize) -> Vec<f32> {
        (0..self.kind.heads.qkv_width()).map(|column| self.value(sequence, position, column)).collect()
    }

    /// Of each new token in order, of each head: the result, and how much it may be off.
    pub fn expected(&self) -> Vec<(f64, f64)> {
        let HeadLayout { num_heads, num_kv_heads, head_dim } = self.kind.heads;
        let group = num_heads / num_kv_heads;
        // Probabilities and results are rounded to the 16-bit type: twice the half of a unit in the last place.
        let unit = if self.half == DType::BF16 { 1.0 / 128.0 } else { 1.0 / 1024.0 };
        let mut all = Vec::new();
        for (sequence, &(len, start)) in self.spans.iter().enumerate() {
            let rows: Vec<Vec<f32>> = (0..start + len).map(|p| self.row(sequence, p)).collect();
            for position in start..start + len {
                let first = self.kind.window.map_or(0, |w| (position + 1).saturating_sub(w));
                for head in 0..num_heads {
                    let query = &rows[position][head * head_dim..][..head_dim];
                    let key_at = (num_heads + head / group) * head_dim;
                    let value_at = key_at + num_kv_heads * head_dim;
                    let scores: Vec<f64> = (first..=position)
                        .map(|p| {
                            let key = &rows[p][key_at..][..head_dim];
                            let dot: f64 =
                                query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                            dot * f64::from(self.kind.scale)
                        })
                        .collect();
                    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for d in 0..head_dim {
                        let (mut sum, mut size) = (0.0, 0.0);
                        for (p, w) in (first..=position).zip(&weights) {
                            let term = w / total * f64::from(rows[p][value_at + d]);
                            sum += term;
                            size += term.abs();
                        }
                        all.push((sum, unit * size + 1e-6));
                    }
                }
            }
        }
        all
    }

    /// That results are those of float64.
    ///
    /// # Errors
    /// Where they are not.
    pub fn check(&self, got: &[f32]) -> Result<(), String> {
        let expected = self.expected();
        assert_eq!(got.len(), expected.len());
        let width = self.kind.heads.q_width();
        for (i, (got, (want, bound))) in got.iter().zip(expected).enumerate() {
            let error = (f64::from(*got) - want).abs();
            if error.is_nan() || error > bound {
                return Err(format!(
                    "{self:?}: row {}, column {}: {got} instead of {want}, allowed {bound}",
                    i / width,
                    i % width
                ));
            }
        }
        Ok(())
    }
}
