//! Rotary embedding, KV cache and attention of the CPU backend against their definitions in f64, on every instruction
//! set; those that this machine lacks are reported as ignored.

#[path = "common/backend.rs"]
mod backend;

use std::process::ExitCode;

use half::f16;
use qqq_backend::cpu::{CpuBackend, CpuKvCache, FloatIsa, matrix::Matrix};
use qqq_backend::{Backend, HeadLayout, KvDType, KvLayout, Span, WindowedCausal};
use qqq_testing::{Suite, tests, values};

fn main() -> ExitCode {
    let mut suite = Suite::new().tests(tests![truncated_and_reused_slots, a_gap_in_the_cache_is_refused]);
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
    fn new(qkv: &Matrix, heads: HeadLayout, norm: Option<(&[f32], &[f32], f32)>, dtype: KvDType) -> Self {
        let d = heads.head_dim;
        let freq = inv_freq(d);
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
                    for i in 0..d / 2 {
                        // The angle is a float32 product by definition.
                        let (sin, cos) = f64::from(p as f32 * freq[i]).sin_cos();
                        let (a, b) = (head[i], head[i + d / 2]);
                        (head[i], head[i + d / 2]) = (a * cos - b * sin, b * cos + a * sin);
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

    fn attention(&self, position: usize, mask: WindowedCausal) -> Vec<f64> {
        let HeadLayout { num_heads, num_kv_heads, head_dim: d } = self.heads;
        let first = mask.window.map_or(0, |w| (position + 1).saturating_sub(w));
        let mut out = Vec::new();
        for h in 0..num_heads {
            let kv_head = h / (num_heads / num_kv_heads);
            let key = self.heads.q_width() + kv_head * d;
            let value = key + self.heads.kv_width();
            let q = &self.rows[position][h * d..(h + 1) * d];
            let scores: Vec<f64> = (first..=position)
                .map(|p| {
                    q.iter().zip(&self.rows[p][key..]).map(|(a, b)| a * b).sum::<f64>() / (d as f64).sqrt()
                })
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
    mask: WindowedCausal,
    dtype: KvDType,
    qk_norm: bool,
}

impl Case {
    fn new(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> Self {
        Self {
            heads: HeadLayout { num_heads, num_kv_heads, head_dim },
            mask: WindowedCausal { window: None },
            dtype: KvDType::F32,
            qk_norm: false,
        }
    }

    fn cache(&self, b: &CpuBackend) -> CpuKvCache {
        let HeadLayout { num_kv_heads, head_dim, .. } = self.heads;
        b.kv_cache(KvLayout { num_layers: 2, num_kv_heads, head_dim, dtype: self.dtype })
    }

    fn norms(&self) -> Option<(Vec<f32>, Vec<f32>, f32)> {
        let d = self.heads.head_dim;
        self.qk_norm.then(|| (values(d, 50), values(d, 51), 1e-6))
    }

    /// Appends and attends to parts of sequences; returns the attention rows.
    fn step(&self, b: &CpuBackend, kv: &mut CpuKvCache, parts: &[(&Matrix, Span)]) -> Matrix {
        let rows: Vec<f32> = parts
            .iter()
            .flat_map(|(x, s)| x.data[s.start * x.cols..(s.start + s.len) * x.cols].iter().copied())
            .collect();
        let spans: Vec<Span> = parts.iter().map(|p| p.1).collect();
        let mut qkv = b.tensor(spans.iter().map(|s| s.len).sum(), self.heads.qkv_width(), rows);
        let rope = b.rope(&inv_freq(self.heads.head_dim), 4096);
        let norms = self.norms();
        let norms = norms.as_ref().map(|(q, k, eps)| (q, k, *eps));
        b.rope_append_kv(&mut qkv, self.heads, norms, &rope, kv, 1, &spans);
        b.attention(&qkv, self.heads, self.mask, kv, 1, &spans)
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
            inputs.iter().map(|x| Reference::new(x, self.heads, norms, self.dtype)).collect();
        let mut kv = self.cache(b);
        let slots: Vec<usize> = inputs.iter().map(|_| b.kv_add_slot(&mut kv)).collect();
        let mut starts = vec![0; inputs.len()];
        for step in 0..sequences.iter().map(|pieces| pieces.len()).max().unwrap() {
            // The sequences that have a piece left, in reverse order.
            let active: Vec<usize> = (0..inputs.len()).rev().filter(|&i| step < sequences[i].len()).collect();
            let parts: Vec<(&Matrix, Span)> = active
                .iter()
                .map(|&i| (&inputs[i], Span { slot: slots[i], start: starts[i], len: sequences[i][step] }))
                .collect();
            let out = self.step(b, &mut kv, &parts);
            let mut row = 0;
            for (&i, (_, span)) in active.iter().zip(&parts) {
                for p in span.start..span.start + span.len {
                    let what = format!("{:?} {:?} sequence {i} position {p}", b.simd_level(), self.heads);
                    self.check(out.row(row), &references[i].attention(p, self.mask), &what);
                    row += 1;
                }
                starts[i] += span.len;
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
        let mask = WindowedCausal { window: Some(window) };
        Case { mask, ..Case::new(4, 2, 32) }.run(&b, &[&[290, 1, 1, 40], &[5, 1]]);
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
            let mut kv = case.cache(&b);
            let slot = b.kv_add_slot(&mut kv);
            let mut out: Vec<f32> = Vec::new();
            let mut start = 0;
            for len in [200, 1, 1, 60, 1, 67] {
                out.extend(case.step(&b, &mut kv, &[(&x, Span { slot, start, len })]).data.iter());
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

/// A decode step over a long cache splits the positions; so does a short prefill.
fn long_decode(b: CpuBackend) {
    Case::new(3, 1, 64).run(&b, &[&[700, 1, 1, 20, 1]]);
    Case { mask: WindowedCausal { window: Some(300) }, ..Case::new(3, 1, 64) }
        .run(&b, &[&[700, 1, 1, 20, 1]]);
}

fn truncated_and_reused_slots() {
    let case = Case::new(4, 2, 32);
    let b = CpuBackend::default();
    let (x, y) = (case.sequence(200, 70), case.sequence(150, 71));
    let span = |slot, start, len| Span { slot, start, len };
    let mut kv = case.cache(&b);
    let a = b.kv_add_slot(&mut kv);
    let whole = case.step(&b, &mut kv, &[(&x, span(a, 0, 200))]);

    // Forget the end and append it again.
    b.kv_truncate(&mut kv, a, 137);
    let end = case.step(&b, &mut kv, &[(&x, span(a, 137, 63))]);
    let reference = Reference::new(&x, case.heads, None, case.dtype);
    for p in 137..200 {
        case.check(end.row(p - 137), &reference.attention(p, case.mask), "after truncation");
    }

    // NaNs of a forgotten sequence must not come back.
    let mut bad = x.clone();
    bad.data.fill(f32::NAN);
    let c = b.kv_add_slot(&mut kv);
    let out = case.step(&b, &mut kv, &[(&bad, span(c, 0, 200))]);
    assert!(out.data.iter().all(|v| v.is_nan()));
    b.kv_truncate(&mut kv, c, 0);
    assert_eq!(case.step(&b, &mut kv, &[(&x, span(c, 0, 200))]), whole);

    // A freed slot is empty when it is used again.
    b.kv_remove_slot(&mut kv, a);
    let again = b.kv_add_slot(&mut kv);
    assert_eq!(again, a);
    let fresh = case.step(&b, &mut kv, &[(&y, span(again, 0, 150))]);
    let reference = Reference::new(&y, case.heads, None, case.dtype);
    for p in 0..150 {
        case.check(fresh.row(p), &reference.attention(p, case.mask), "in a reused slot");
    }
    // The other slot is as it was.
    let more = case.step(&b, &mut kv, &[(&x, span(c, 199, 1))]);
    case.check(
        more.row(0),
        &whole.row(199).iter().map(|&v| f64::from(v)).collect::<Vec<_>>(),
        "decode after prefill",
    );
}

fn a_gap_in_the_cache_is_refused() {
    let panic = std::panic::catch_unwind(|| {
        let case = Case::new(2, 1, 32);
        let b = CpuBackend::default();
        let mut kv = case.cache(&b);
        let slot = b.kv_add_slot(&mut kv);
        case.step(&b, &mut kv, &[(&case.sequence(8, 80), Span { slot, start: 5, len: 1 })]);
    });
    let message = panic.expect_err("a gap is refused");
    let message = message.downcast_ref::<String>().expect("a message with numbers");
    assert!(message.contains("holds 0 positions, not 5"), "{message}");
}
