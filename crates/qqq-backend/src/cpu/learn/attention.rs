//! Attention over one sequence from its start, head by head. Probabilities are computed again where gradients need them: they
//! would be the largest thing in memory.

use std::ops::Range;

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};

use super::{Array, Real};
use crate::{AttentionKind, HeadLayout, pool::parallel_each_mut};

/// Queries whose probabilities are held at a time.
const QUERIES: usize = 128;

/// A head of attention.
struct Head<'a, T> {
    q: MatRef<'a, T>,
    k: MatRef<'a, T>,
    v: MatRef<'a, T>,
    kind: &'a AttentionKind,
}

/// Some queries and the keys that they see, row-major.
struct Probabilities<T> {
    queries: Range<usize>,
    keys: Range<usize>,
    values: Vec<T>,
}

impl<T: Real> Probabilities<T> {
    fn view(&self) -> MatRef<'_, T> {
        MatRef::from_row_major_slice(&self.values, self.queries.len(), self.keys.len())
    }
}

impl<'a, T: Real> Head<'a, T> {
    fn new(qkv: &'a Array<T>, kind: &'a AttentionKind, head: usize) -> Self {
        let HeadLayout { num_heads, num_kv_heads, head_dim } = kind.heads;
        let key = head / (num_heads / num_kv_heads);
        let at = |head: usize| qkv.view().subcols(head * head_dim, head_dim);
        Self { q: at(head), k: at(num_heads + key), v: at(num_heads + num_kv_heads + key), kind }
    }

    /// `softmax(scale q k^T)` over the keys that each query sees; 0 elsewhere.
    fn probabilities(&self, queries: Range<usize>) -> Probabilities<T> {
        let oldest = |query: usize| self.kind.window.map_or(0, |window| (query + 1).saturating_sub(window));
        let keys = oldest(queries.start)..queries.end;
        let mut values = vec![T::ZERO; queries.len() * keys.len()];
        matmul(
            MatMut::from_row_major_slice_mut(&mut values, queries.len(), keys.len()),
            Accum::Replace,
            rows(self.q, &queries),
            rows(self.k, &keys).transpose(),
            T::of(f64::from(self.kind.scale)),
            Par::Seq,
        );
        for (query, row) in queries.clone().zip(values.chunks_exact_mut(keys.len())) {
            let seen = oldest(query) - keys.start..query + 1 - keys.start;
            row[..seen.start].fill(T::ZERO);
            row[seen.end..].fill(T::ZERO);
            let row = &mut row[seen];
            let most = row.iter().copied().fold(row[0], T::larger);
            row.iter_mut().for_each(|x| *x -= most);
            T::exp_all(row);
            let sum: T = row.iter().copied().sum();
            row.iter_mut().for_each(|x| *x /= sum);
        }
        Probabilities { queries, keys, values }
    }
}

fn rows<'a, T>(x: MatRef<'a, T>, range: &Range<usize>) -> MatRef<'a, T> {
    x.subrows(range.start, range.len())
}

fn blocks(tokens: usize) -> impl Iterator<Item = Range<usize>> {
    (0..tokens).step_by(QUERIES).map(move |first| first..tokens.min(first + QUERIES))
}

fn rows_mut<'a, T>(x: &'a mut [T], range: &Range<usize>, cols: usize) -> MatMut<'a, T> {
    let rows = &mut x[range.start * cols..range.end * cols];
    MatMut::from_row_major_slice_mut(rows, range.len(), cols)
}

/// Attention's output, `tokens x (heads * head_dim)`.
pub(super) fn forward<T: Real>(qkv: &Array<T>, kind: &AttentionKind) -> Array<T> {
    let (tokens, width) = (qkv.rows, kind.heads.head_dim);
    let mut heads = vec![vec![T::ZERO; tokens * width]; kind.heads.num_heads];
    parallel_each_mut(&mut heads, |head, out| {
        let head = Head::new(qkv, kind, head);
        for block in blocks(tokens) {
            let p = head.probabilities(block);
            let out = rows_mut(out, &p.queries, width);
            matmul(out, Accum::Replace, p.view(), rows(head.v, &p.keys), T::ONE, Par::Seq);
        }
    });
    Array::filled(tokens, kind.heads.q_width(), |i, row| {
        for (out, head) in row.chunks_exact_mut(width).zip(&heads) {
            out.copy_from_slice(&head[i * width..][..width]);
        }
    })
}

/// Gradients by the queries, keys and values of a query head, `tokens x head_dim` each.
struct HeadGradients<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
}

/// The gradient by queries, keys and values. With probabilities `P`: `dV = P^T dY`, `dS = P (dY V^T - rowsum(dY Y))`,
/// `dQ = scale dS K`, `dK = scale dS^T Q`.
pub(super) fn back<T: Real>(dy: &Array<T>, y: &Array<T>, qkv: &Array<T>, kind: &AttentionKind) -> Array<T> {
    let HeadLayout { num_heads, num_kv_heads, head_dim: width } = kind.heads;
    let tokens = qkv.rows;
    let zeros = || vec![T::ZERO; tokens * width];
    let mut heads: Vec<_> =
        (0..num_heads).map(|_| HeadGradients { q: zeros(), k: zeros(), v: zeros() }).collect();
    let scale = T::of(f64::from(kind.scale));
    parallel_each_mut(&mut heads, |index, gradients| {
        let head = Head::new(qkv, kind, index);
        let at = |x: &Array<T>, token: usize| -> Range<usize> {
            let first = token * x.cols + index * width;
            first..first + width
        };
        for block in blocks(tokens) {
            let p = head.probabilities(block);
            let dy_head = rows(dy.view().subcols(index * width, width), &p.queries);
            let dv = rows_mut(&mut gradients.v, &p.keys, width);
            matmul(dv, Accum::Add, p.view().transpose(), dy_head, T::ONE, Par::Seq);
            let mut ds = vec![T::ZERO; p.values.len()];
            matmul(
                MatMut::from_row_major_slice_mut(&mut ds, p.queries.len(), p.keys.len()),
                Accum::Replace,
                dy_head,
                rows(head.v, &p.keys).transpose(),
                T::ONE,
                Par::Seq,
            );
            let pairs = ds.chunks_exact_mut(p.keys.len()).zip(p.values.chunks_exact(p.keys.len()));
            for (token, (ds, p)) in p.queries.clone().zip(pairs) {
                let outputs = dy.data[at(dy, token)].iter().zip(&y.data[at(y, token)]);
                let sum: T = outputs.map(|(dy, y)| *dy * *y).sum();
                ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = *p * (*ds - sum));
            }
            let ds = MatRef::from_row_major_slice(&ds, p.queries.len(), p.keys.len());
            let dq = rows_mut(&mut gradients.q, &p.queries, width);
            matmul(dq, Accum::Replace, ds, rows(head.k, &p.keys), scale, Par::Seq);
            let dk = rows_mut(&mut gradients.k, &p.keys, width);
            matmul(dk, Accum::Add, ds.transpose(), rows(head.q, &p.queries), scale, Par::Seq);
        }
    });
    let each = num_heads / num_kv_heads;
    Array::filled(tokens, kind.heads.qkv_width(), |i, row| {
        let of_token = i * width..(i + 1) * width;
        let (q, kv) = row.split_at_mut(kind.heads.q_width());
        let (k, v) = kv.split_at_mut(kind.heads.kv_width());
        for (out, head) in q.chunks_exact_mut(width).zip(&heads) {
            out.copy_from_slice(&head.q[of_token.clone()]);
        }
        let shared = k.chunks_exact_mut(width).zip(v.chunks_exact_mut(width)).zip(heads.chunks_exact(each));
        for ((k, v), heads) in shared {
            for head in heads {
                k.iter_mut().zip(&head.k[of_token.clone()]).for_each(|(sum, x)| *sum += *x);
                v.iter_mut().zip(&head.v[of_token.clone()]).for_each(|(sum, x)| *sum += *x);
            }
        }
    })
}
