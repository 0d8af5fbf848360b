//! Rotary embedding, KV cache and attention of the CPU backend against their definitions in f64, on every instruction
//! set; those that this machine lacks are reported as ignored.

#[path = "common/backend.rs"]
mod backend;

use std::process::ExitCode;

use half::f16;
use qqq_backend::cpu::{CpuBackend, CpuKvPool, FloatIsa, matrix::Matrix};
use qqq_backend::{
    AttentionKind, Backend, BackendError, BatchPlan, HeadLayout, KvDType, KvLayout, Norm, pages_for,
};
use qqq_testing::{Suite, tests, values};

fn main() -> ExitCode {
    let mut suite =
        Suite::new().tests(tests![shortened_and_reused_pages, pages_that_were_never_written_are_refused]);
    for isa in FloatIsa::ALL {
        suite = suite.on(
            &format!("{isa:?}"),
            move || backend::on_isa(isa),
            tests![
                head_shapes,
                several_spans_and_many_pieces,
                sliding_windows,
                half_precision_cache,
                what_half_precision_cannot_hold_is_kept,
                head_norms,
                partial_rope_no_rope_and_other_scales,
                long_decode
            ],
        );
    }
    suite.run()
}

fn inv_freq(head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / head_dim as f32)).collect()
}

/// Queries, keys and values of one sequence by the definition, in f64: after norms and rotation.
struct Reference {
    heads: HeadLayout,
    rows: Vec<Vec<f64>>,
}

impl Reference {
    fn new(
        qkv: &Matrix,
        heads: HeadLayout,
        norm: Option<(&[f32], &[f32], f32)>,
        dtype: KvDType,
        turned: usize,
    ) -> Self {
        let d = heads.head_dim;
        let freq = inv_freq(turned);
        let rows = (0..qkv.rows)
            .map(|p| {
                let mut row: Vec<f64> = qkv.row(p).iter().map(|&v| f64::from(v)).collect();
                for (h, head) in
                    row.chunks_exact_mut(d).take(heads.num_heads + heads.num_kv_heads).enumerate()
                {
                    if let Some((q, k, eps)) = norm {
                        let mean = head.iter().map(|v| v * v).sum::<f64>() / d as f64;
                        let scale = 1.0 / (mean + f64::from(eps)).sqrt();
                        let weight = if h < heads.num_heads { q } else { k };
                        head.iter_mut().zip(weight).for_each(|(v, &w)| *v *= scale * f64::from(w));
                    }
                    for i in 0..turned / 2 {
                        // The angle is a float32 product by definition.
                        let (sin, cos) = f64::from(p as f32 * freq[i]).sin_cos();
                        let (a, b) = (head[i], head[i + turned / 2]);
                        (head[i], head[i + turned / 2]) = (a * cos - b * sin, b * cos + a * sin);
                    }
                }
                if dtype == KvDType::F16 {
                    let (keys, values) = row[heads.q_width()..].split_at_mut(heads.kv_width());
                    for (part, limit) in [(keys, 512.0), (values, 65504.0)] {
                        for head in part.chunks_exact_mut(d) {
                            let largest = head.iter().fold(0.0f64, |max, v| max.max(v.abs()));
                            if largest < limit && largest >= 2f64.powi(-14) {
                                head.iter_mut().for_each(|v| *v = f64::from(f16::from_f64(*v)));
                            }
                        }
                    }
                }
                row
            })
            .collect();
        Self { heads, rows }
    }

    fn attention(&self, position: usize, window: Option<usize>, scale: f64) -> Vec<f64> {
        let HeadLayout { num_heads, num_kv_heads, head_dim: d } = self.heads;
        let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
        let mut out = Vec::new();
        for h in 0..num_heads {
            let kv_head = h / (num_heads / num_kv_heads);
            let key = self.heads.q_width() + kv_head * d;
            let value = key + self.heads.kv_width();
            let q = &self.rows[position][h * d..(h + 1) * d];
            let scores: Vec<f64> = (first..=position)
                .map(|p| q.iter().zip(&self.rows[p][key..]).map(|(a, b)| a * b).sum::<f64>() * scale)
                .collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let total: f64 = weights.iter().sum();
            out.extend((0..d).map(|i| {
                weights.iter().zip(first..).map(|(w, p)| w * self.rows[p][value + i]).sum::<f64>() / total
            }));
        }
        out
    }
}

struct Case {
    heads: HeadLayout,
    window: Option<usize>,
    dtype: KvDType,
    qk_norm: bool,
    /// Components of a head that the rotary embedding turns; 0: there is none.
    turned: usize,
    /// Factor of the scores; `None`: `head_dim^-1/2`.
    scale: Option<f32>,
}

/// New tokens of the sequence that has these pages.
#[derive(Clone, Copy)]
struct Part<'a> {
    pages: &'a [u32],
    start: usize,
    len: usize,
}

impl Case {
    fn new(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> Self {
        Self {
            heads: HeadLayout { num_heads, num_kv_heads, head_dim },
            window: None,
            dtype: KvDType::F32,
            qk_norm: false,
            turned: head_dim,
            scale: None,
        }
    }

    fn pool(&self, b: &CpuBackend, pages: usize) -> CpuKvPool {
        let HeadLayout { num_kv_heads, head_dim, .. } = self.heads;
        b.kv_pool(KvLayout { num_layers: 2, num_kv_heads, head_dim, dtype: self.dtype }, pages).unwrap()
    }

    fn kind(&self) -> AttentionKind {
        let plain = AttentionKind::causal(self.heads, self.window);
        AttentionKind { scale: self.scale.unwrap_or(plain.scale), ..plain }
    }

    fn expected(&self, reference: &Reference, position: usize) -> Vec<f64> {
        let scale = self.scale.map_or(1.0 / (self.heads.head_dim as f64).sqrt(), f64::from);
        reference.attention(position, self.window, scale)
    }

    fn norms(&self) -> Option<(Vec<f32>, Vec<f32>, f32)> {
        let d = self.heads.head_dim;
        self.qk_norm.then(|| (values(d, 50), values(d, 51), 1e-6))
    }

    /// Appends and attends to parts of sequences; returns the attention rows.
    fn step(&self, b: &CpuBackend, kv: &mut CpuKvPool, parts: &[(&Matrix, Part)]) -> Matrix {
        self.try_step(b, kv, parts).unwrap()
    }

    fn try_step(
        &self,
        b: &CpuBackend,
        kv: &mut CpuKvPool,
        parts: &[(&Matrix, Part)],
    ) -> Result<Matrix, BackendError> {
        let rows: Vec<f32> = parts
            .iter()
            .flat_map(|(x, s)| x.data[s.start * x.cols..(s.start + s.len) * x.cols].iter().copied())
            .collect();
        let mut plan = BatchPlan::default();
        parts.iter().for_each(|(_, part)| plan.push(&vec![0; part.len], part.start, part.pages));
        let batch = b.batch(&plan)?;
        let mut qkv = b.upload(plan.rows(), self.heads.qkv_width(), rows)?;
        let rope = b.rope(&inv_freq(self.turned), 1.0, None, 4096)?;
        let norms = self.norms().map(|(q, k, eps)| [q, k].map(|weight| Norm { weight, eps }));
        let norms = norms.as_ref().map(|[q, k]| (q, k));
        let rope = (self.turned > 0).then_some(&rope);
        b.rope_append(&mut qkv, self.heads, norms, rope, kv, 1, &batch)?;
        let mut out = b.tensor(0, 0)?;
        b.attention(&qkv, &self.kind(), kv, 1, &batch, &mut out)?;
        Ok(out)
    }

    fn sequence(&self, len: usize, seed: u64) -> Matrix {
        let cols = self.heads.qkv_width();
        Matrix { rows: len, cols, data: values(len * cols, seed).iter().map(|v| 2.0 * v).collect() }
    }

    fn check(&self, got: &[f32], want: &[f64], what: &str) {
        // Scores are sums of head_dim products of size up to 4, whose error goes into the weights as
        // a relative one; weights and values add a few roundings. An f16 cache also rounds to the other
        // side where the float32 key is off by its last bit.
        let d = self.heads.head_dim as f64;
        let rounding = if self.dtype == KvDType::F16 { 2f64.powi(-10) } else { 0.0 };
        let bound = (4.0 * d.sqrt() * d * 2f64.powi(-24) + 32.0 * 2f64.powi(-24) + rounding) * 2.0;
        for (i, (&got, want)) in got.iter().zip(want).enumerate() {
            assert!(
                (f64::from(got) - want).abs() <= bound,
                "{what}, value {i}: {got}, not {want} (bound {bound})"
            );
        }
    }

    /// Sequences in pieces of the given lengths, all together as spans of one batch.
    fn run(&self, b: &CpuBackend, sequences: &[&[usize]]) {
        let inputs: Vec<Matrix> = sequences
            .iter()
            .enumerate()
            .map(|(i, pieces)| self.sequence(pieces.iter().sum(), 60 + i as u64))
            .collect();
        let norms = self.norms();
        let norms = norms.as_ref().map(|(q, k, eps)| (q.as_slice(), k.as_slice(), *eps));
        let references: Vec<Reference> =
            inputs.iter().map(|x| Reference::new(x, self.heads, norms, self.dtype, self.turned)).collect();
        // Pages of the sequences in turns.
        let most = inputs.iter().map(|x| pages_for(x.rows)).max().unwrap();
        let mut kv = self.pool(b, most * inputs.len());
        let table = |i: usize| (0..most).map(|page| (page * inputs.len() + i) as u32).collect();
        let tables: Vec<Vec<u32>> = (0..inputs.len()).map(table).collect();
        let mut starts = vec![0; inputs.len()];
        for step in 0..sequences.iter().map(|pieces| pieces.len()).max().unwrap() {
            // The sequences that have a piece left, in reverse order.
            let active: Vec<usize> = (0..inputs.len()).rev().filter(|&i| step < sequences[i].len()).collect();
            let part = |i: usize| Part { pages: &tables[i], start: starts[i], len: sequences[i][step] };
            let parts: Vec<(&Matrix, Part)> = active.iter().map(|&i| (&inputs[i], part(i))).collect();
            let out = self.step(b, &mut kv, &parts);
            let mut row = 0;
            for &i in &active {
                for p in starts[i]..starts[i] + sequences[i][step] {
                    let what = format!("{:?} {:?} sequence {i} position {p}", b.simd_level(), self.heads);
                    self.check(out.row(row), &self.expected(&references[i], p), &what);
                    row += 1;
                }
                starts[i] += sequences[i][step];
            }
            assert_eq!(row, out.rows);
        }
    }
}

fn head_shapes(b: CpuBackend) {
    for (heads, kv_heads, d) in [(9, 3, 64), (4, 4, 32), (6, 2, 80), (4, 1, 128), (14, 2, 64), (2, 2, 6)] {
        Case::new(heads, kv_heads, d).run(&b, &[&[70, 1, 1, 63, 30]]);
    }
}

fn several_spans_and_many_pieces(b: CpuBackend) {
    Case::new(6, 2, 32).run(&b, &[&[1, 1, 1, 200, 1], &[300, 1, 1, 7], &[33], &[31, 1, 1, 95, 1, 128, 1]]);
}

fn sliding_windows(b: CpuBackend) {
    for window in [1, 2, 31, 128, 130, 1000] {
        let window = Some(window);
        Case { window, ..Case::new(4, 2, 32) }.run(&b, &[&[290, 1, 1, 40], &[5, 1]]);
    }
}

fn half_precision_cache(b: CpuBackend) {
    Case { dtype: KvDType::F16, ..Case::new(9, 3, 64) }.run(&b, &[&[200, 1, 1, 90], &[1, 1, 40]]);
    Case { dtype: KvDType::F16, ..Case::new(2, 1, 80) }.run(&b, &[&[40, 1, 1, 300, 1]]);
}

/// What float16 cannot hold is kept as it is: a model that is the same but for powers of two between queries and keys, and
/// behind the values, gives the same bits as one whose cache is float32.
fn what_half_precision_cannot_hold_is_kept(b: CpuBackend) {
    for (heads, kv_heads, d) in [(9, 3, 64), (4, 1, 50)] {
        let half = Case { dtype: KvDType::F16, ..Case::new(heads, kv_heads, d) };
        let exact = Case::new(heads, kv_heads, d);
        let (plain, q_width) = (exact.sequence(330, 90), exact.heads.q_width());
        let kv_width = exact.heads.kv_width();
        let run = |case: &Case, keys: f32, values: f32| {
            let mut x = plain.clone();
            for row in x.data.chunks_exact_mut(plain.cols) {
                row[..q_width].iter_mut().for_each(|q| *q /= keys);
                row[q_width..q_width + kv_width].iter_mut().for_each(|k| *k *= keys);
                row[q_width + kv_width..].iter_mut().for_each(|v| *v *= values);
            }
            let mut kv = case.pool(&b, 3);
            let pages = &[2, 0, 1];
            let mut out: Vec<f32> = Vec::new();
            let mut start = 0;
            for len in [200, 1, 1, 60, 1, 67] {
                out.extend(case.step(&b, &mut kv, &[(&x, Part { pages, start, len })]).data.iter());
                start += len;
            }
            out.iter_mut().for_each(|v| *v /= values);
            out
        };
        let (float, rounded) = (run(&exact, 1.0, 1.0), run(&half, 1.0, 1.0));
        assert_ne!(float, rounded);
        let (large, small) = (2f32.powi(20), 2f32.powi(-20));
        for (keys, values) in [(large, large), (small, small), (large, small), (small, large)] {
            assert_eq!(run(&half, keys, values), float, "{:?}: {keys}, {values}", b.simd_level());
        }
        // Of moderate size they are rounded as ever (but for the digits of components among the subnormals).
        let moderate = run(&half, 64.0, 1024.0);
        let difference = moderate.iter().zip(&rounded).fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
        assert!(difference < 2e-6, "{difference}");
    }
}

fn head_norms(b: CpuBackend) {
    Case { qk_norm: true, ..Case::new(4, 2, 64) }.run(&b, &[&[50, 1, 3]]);
}

fn partial_rope_no_rope_and_other_scales(b: CpuBackend) {
    for turned in [0, 2, 24, 48] {
        Case { turned, scale: Some(0.3), ..Case::new(4, 2, 48) }.run(&b, &[&[140, 1, 3], &[2, 1]]);
    }
}

/// A decode step over a long cache splits the positions; so does a short prefill.
fn long_decode(b: CpuBackend) {
    Case::new(3, 1, 64).run(&b, &[&[700, 1, 1, 20, 1]]);
    Case { window: Some(300), ..Case::new(3, 1, 64) }.run(&b, &[&[700, 1, 1, 20, 1]]);
}

fn shortened_and_reused_pages() {
    let case = Case::new(4, 2, 32);
    let b = CpuBackend::default();
    let (x, y) = (case.sequence(200, 70), case.sequence(150, 71));
    let part = |pages, start, len| Part { pages, start, len };
    let mut kv = case.pool(&b, 4);
    let a = &[3, 1];
    let whole = case.step(&b, &mut kv, &[(&x, part(a, 0, 200))]);

    // The end is forgotten and appended again.
    let end = case.step(&b, &mut kv, &[(&x, part(a, 137, 63))]);
    let reference = Reference::new(&x, case.heads, None, case.dtype, case.turned);
    for p in 137..200 {
        case.check(end.row(p - 137), &case.expected(&reference, p), "after its end was forgotten");
    }

    // NaNs of a forgotten sequence must not come back.
    let mut bad = x.clone();
    bad.data.fill(f32::NAN);
    let c = &[0, 2];
    let out = case.step(&b, &mut kv, &[(&bad, part(c, 0, 200))]);
    assert!(out.data.iter().all(|v| v.is_nan()));
    assert_eq!(case.step(&b, &mut kv, &[(&x, part(c, 0, 200))]), whole);

    // Pages of another sequence.
    let fresh = case.step(&b, &mut kv, &[(&y, part(a, 0, 150))]);
    let reference = Reference::new(&y, case.heads, None, case.dtype, case.turned);
    for p in 0..150 {
        case.check(fresh.row(p), &case.expected(&reference, p), "in pages that were another's");
    }
    // The other sequence is as it was.
    let more = case.step(&b, &mut kv, &[(&x, part(c, 199, 1))]);
    case.check(
        more.row(0),
        &whole.row(199).iter().map(|&v| f64::from(v)).collect::<Vec<_>>(),
        "decode after prefill",
    );
}

fn pages_that_were_never_written_are_refused() {
    let case = Case::new(2, 1, 32);
    let b = CpuBackend::default();
    let mut kv = case.pool(&b, 3);
    let x = case.sequence(300, 80);
    for (pages, start, what) in
        [([0, 1, 2], 256, "page 0 of layer 1 was never written"), ([0, 1, 3], 256, "no page 3, only 3")]
    {
        let part = Part { pages: &pages, start, len: 1 };
        let error = case.try_step(&b, &mut kv, &[(&x, part)]).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    let layout = KvLayout { num_layers: 2, num_kv_heads: 2, head_dim: 32, dtype: KvDType::F32 };
    let mut other = b.kv_pool(layout, 3).unwrap();
    let part = Part { pages: &[0], start: 0, len: 1 };
    let error = case.try_step(&b, &mut other, &[(&x, part)]).unwrap_err().to_string();
    assert!(error.contains("KV pool"), "{error}");
}
