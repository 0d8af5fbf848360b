//! Attention over one sequence from its start, head by head: the scores of one are held, which the caches of a GPU have room for.
//! Probabilities are made again where gradients need them.

use qqq_backend::{AttentionKind, HeadLayout, Result};

use super::kernels::LearnKernel as Kernel;
use super::parameters::{ScoreGradientParameters, SoftmaxParameters};
use super::products::{Factors, Multiplication, Part};
use super::{DeviceLearner, DeviceMatrix, LearnDevice, expect};

/// Queries, keys and values of a sequence.
struct Attending<'a, D: LearnDevice> {
    ops: &'a DeviceLearner<D>,
    qkv: &'a DeviceMatrix<D::Memory>,
    kind: &'a AttentionKind,
}

impl<'a, D: LearnDevice> Attending<'a, D> {
    fn new(
        ops: &'a DeviceLearner<D>,
        qkv: &'a DeviceMatrix<D::Memory>,
        kind: &'a AttentionKind,
    ) -> Result<Self> {
        expect(qkv, (qkv.rows, kind.heads.qkv_width()), "queries, keys and values")?;
        Ok(Self { ops, qkv, kind })
    }

    fn tokens(&self) -> usize {
        self.qkv.rows
    }

    /// Room for what every query has for every key.
    fn scores(&self) -> crate::Result<DeviceMatrix<D::Memory>> {
        self.ops.matrix(self.tokens(), self.tokens())
    }

    /// Columns of the queries, keys and values of a query head.
    fn columns(&self, head: usize) -> [usize; 3] {
        let HeadLayout { num_heads, num_kv_heads, head_dim } = self.kind.heads;
        let key = num_heads + head / (num_heads / num_kv_heads);
        [head, key, key + num_kv_heads].map(|head| head * head_dim)
    }

    /// `out = alpha a b`, added to what is there if `adds`.
    ///
    /// # Safety
    /// As [`LearnDevice::multiply`].
    unsafe fn multiply(
        &self,
        (m, n, k): (usize, usize, usize),
        (a, b, out): (Part, Part, Part),
        (alpha, adds): (f32, bool),
        factors: Factors,
    ) -> crate::Result<()> {
        let (alpha, beta) = (f64::from(alpha), if adds { 1.0 } else { 0.0 });
        let of = Multiplication { m, n, k, a, b, out, alpha, beta, bias: 0, factors };
        // SAFETY: the caller's promise.
        unsafe { self.ops.device.multiply(&of) }
    }

    /// The probabilities of a query head.
    fn probabilities(&self, head: usize, out: &DeviceMatrix<D::Memory>) -> crate::Result<()> {
        let (tokens, width) = (self.tokens(), self.kind.heads.head_dim);
        let [q, k, _] = self.columns(head);
        let keys = Part { transposed: true, ..head_of(self.qkv, k) };
        let sides = (head_of(self.qkv, q), keys, Part::new(out.at(0), tokens));
        let window = self.kind.window.map_or(0, |window| i32::try_from(window).unwrap_or(0));
        let softmax = SoftmaxParameters { scores: out.at(0), tokens: tokens as i32, window };
        // SAFETY: heads lie in their matrix; there is a score for each pair of tokens.
        unsafe {
            self.multiply((tokens, tokens, width), sides, (self.kind.scale, false), Factors::Exact)?;
            self.ops.device.launch(Kernel::Softmax, tokens, softmax)
        }
    }
}

/// A head of a matrix whose rows are tokens, from a column on.
fn head_of<M>(x: &DeviceMatrix<M>, column: usize) -> Part {
    Part::new(x.at(column), x.cols)
}

/// See [`Learn::attention`](qqq_backend::learn::Learn::attention).
pub(super) fn forward<D: LearnDevice>(
    ops: &DeviceLearner<D>,
    qkv: &DeviceMatrix<D::Memory>,
    kind: &AttentionKind,
) -> Result<DeviceMatrix<D::Memory>> {
    let attending = Attending::new(ops, qkv, kind)?;
    let (tokens, width) = (attending.tokens(), kind.heads.head_dim);
    let out = ops.matrix(tokens, kind.heads.q_width())?;
    let scores = attending.scores()?;
    for head in 0..kind.heads.num_heads {
        attending.probabilities(head, &scores)?;
        let [q, _, v] = attending.columns(head);
        let sides = (
            Part::new(scores.at(0), tokens),
            head_of(qkv, v),
            // Outputs have the columns of queries.
            head_of(&out, q),
        );
        // SAFETY: heads lie in their matrices.
        unsafe { attending.multiply((tokens, width, tokens), sides, (1.0, false), Factors::Exact) }?;
    }
    Ok(out)
}

/// See [`Learn::attention_back`](qqq_backend::learn::Learn::attention_back). With probabilities `P`: `dV = P^T dY`,
/// `dS = P (dY V^T - rowsum(dY Y))`, `dQ = scale dS K`, `dK = scale dS^T Q`. Heads that share keys and values add to theirs in order.
pub(super) fn back<D: LearnDevice>(
    ops: &DeviceLearner<D>,
    dy: &DeviceMatrix<D::Memory>,
    y: &DeviceMatrix<D::Memory>,
    qkv: &DeviceMatrix<D::Memory>,
    kind: &AttentionKind,
) -> Result<DeviceMatrix<D::Memory>> {
    let attending = Attending::new(ops, qkv, kind)?;
    let HeadLayout { num_heads, num_kv_heads, head_dim: width } = kind.heads;
    let tokens = attending.tokens();
    for x in [dy, y] {
        expect(x, (tokens, kind.heads.q_width()), "outputs of attention")?;
    }
    let out = ops.matrix(tokens, qkv.cols)?;
    let (probabilities, gradients) = (attending.scores()?, attending.scores()?);
    let [p, ds] = [&probabilities, &gradients].map(|matrix| Part::new(matrix.at(0), tokens));
    let transposed = |part: Part| Part { transposed: true, ..part };
    for head in 0..num_heads {
        attending.probabilities(head, &probabilities)?;
        let columns = attending.columns(head);
        let [q, k, v] = columns.map(|column| head_of(qkv, column));
        let [dq, dk, dv] = columns.map(|column| head_of(&out, column));
        let dy_head = head_of(dy, columns[0]);
        let adds = head % (num_heads / num_kv_heads) > 0;
        let parameters = ScoreGradientParameters {
            probabilities: probabilities.at(0),
            gradients: gradients.at(0),
            dy: dy.at(0),
            y: y.at(0),
            tokens: tokens as i32,
            pitch: dy.cols as i32,
            first: columns[0] as i32,
            width: width as i32,
        };
        let of_head = (tokens, width, tokens);
        // SAFETY: heads lie in their matrices; there is a score for each pair of tokens.
        unsafe {
            let sides = (transposed(p), dy_head, dv);
            attending.multiply(of_head, sides, (1.0, adds), Factors::Rounded)?;
            let sides = (dy_head, transposed(v), ds);
            attending.multiply((tokens, tokens, width), sides, (1.0, false), Factors::Rounded)?;
            ops.device.launch(Kernel::ScoreGradients, tokens, parameters)?;
            attending.multiply(of_head, (ds, k, dq), (kind.scale, false), Factors::Rounded)?;
            attending.multiply(of_head, (transposed(ds), q, dk), (kind.scale, adds), Factors::Rounded)?;
        }
    }
    Ok(out)
}
