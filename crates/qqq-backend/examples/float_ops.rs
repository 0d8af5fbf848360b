//! Times the float operations at the sizes of SmolLM2-135M: `cargo run --release -p qqq-backend --example float_ops [FILTER]`.
//! Each line is the best of several runs.

use std::time::{Duration, Instant};

use half::f16;
use qqq_backend::cpu::{CpuBackend, CpuInput, matrix::Matrix};
use qqq_backend::pool;
use qqq_backend::{
    AttentionKind, Backend, BackendError, BatchPlan, Gate, HeadLayout, InputKind, KvDType, KvLayout, Norm,
};
use qqq_formats::{LinearWeight, WeightData};

/// Runs `f` for about a second and reports its best time as a rate of `amount` (in units of 10^9).
fn time(
    name: &str,
    unit: &str,
    amount: f64,
    mut f: impl FnMut() -> Result<(), BackendError>,
) -> Result<(), BackendError> {
    if std::env::args().nth(1).is_some_and(|filter| !name.contains(&filter)) {
        return Ok(());
    }
    let start = Instant::now();
    let mut best = Duration::MAX;
    let mut runs = 0;
    while runs < 3 || start.elapsed() < Duration::from_secs(1) {
        let run = Instant::now();
        f()?;
        best = best.min(run.elapsed());
        runs += 1;
    }
    let rate = amount / best.as_secs_f64() / 1e9;
    println!("{name:32} {:10.1} us {rate:8.1} {unit}", best.as_secs_f64() * 1e6);
    Ok(())
}

fn matrix(rows: usize, cols: usize) -> Matrix {
    Matrix { rows, cols, data: (0..rows * cols).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect() }
}

fn main() -> Result<(), BackendError> {
    let b = CpuBackend::default();
    let mut out = Matrix::default();
    let mut input = CpuInput::default();
    println!("{}, {} threads", b.simd_level().isa().name(), pool::num_threads());
    for (name, n, k) in [
        ("head", 49152, 576),
        ("qkv", 960, 576),
        ("o", 576, 576),
        ("gate_up", 3072, 576),
        ("down", 576, 1536),
    ] {
        let data = WeightData::F16((0..n * k).map(|i| f16::from_f32((i % 127) as f32 / 127.0)).collect());
        let weight = LinearWeight::Float { out_features: n, in_features: k, data };
        let weight = b.linear_weight(weight, None)?;
        for m in [1, 4, 8, 16, 32, 64, 128, 512, 2048] {
            if m > 32 && n > 40_000 {
                continue;
            }
            let x = CpuInput::Float(matrix(m, k));
            let (unit, amount) = if m == 1 { ("GB/s", 2 * n * k) } else { ("GFLOP/s", 2 * m * n * k) };
            time(&format!("{name} {m}x{n}x{k}"), unit, amount as f64, || b.linear(&x, &weight, &mut out))?;
        }
    }

    let heads = HeadLayout { num_heads: 9, num_kv_heads: 3, head_dim: 64 };
    let rope = b.rope(&[0.01; 32], 1.0, None, 8192)?;
    let pages: Vec<u32> = (0..16).collect();
    let step = |start: usize, len: usize| {
        let mut plan = BatchPlan::default();
        plan.push(&vec![0; len], start, &pages);
        b.batch(&plan)
    };
    let kind = AttentionKind::causal(heads, None);
    for dtype in [KvDType::F32, KvDType::F16] {
        let layout = KvLayout { num_layers: 1, num_kv_heads: 3, head_dim: 64, dtype };
        let mut kv = b.kv_pool(layout, pages.len())?;
        let mut qkv = matrix(2048, heads.qkv_width());
        let prefill = step(0, 2048)?;
        time(&format!("rope and append 2048 {dtype:?}"), "Gelem/s", qkv.data.len() as f64, || {
            b.rope_append(&mut qkv, heads, None, Some(&rope), &mut kv, 0, &prefill)
        })?;
        // Scores and sums, below the diagonal.
        let flops = 4.0 * 64.0 * 9.0 * 2048.0 * 2049.0 / 2.0;
        time(&format!("attention prefill 2048 {dtype:?}"), "GFLOP/s", flops, || {
            b.attention(&qkv, &kind, &kv, 0, &prefill, &mut out)
        })?;
        for start in [16, 128, 512, 2040] {
            let step = step(start, 1)?;
            let row = matrix(1, heads.qkv_width());
            let size = if dtype == KvDType::F16 { 2 } else { 4 };
            let bytes = (2 * 3 * 64 * size * (start + 1)) as f64;
            time(&format!("attention decode {start} {dtype:?}"), "GB/s", bytes, || {
                b.attention(&row, &kind, &kv, 0, &step, &mut out)
            })?;
        }
        let (mut row, at_2000) = (matrix(1, heads.qkv_width()), step(2000, 1)?);
        time(&format!("rope and append 1 {dtype:?}"), "Gelem/s", row.data.len() as f64, || {
            b.rope_append(&mut row, heads, None, Some(&rope), &mut kv, 0, &at_2000)
        })?;
    }

    let norm = Norm { weight: b.vector(vec![1.0; 576])?, eps: 1e-5 };
    for rows in [1, 2048] {
        for kind in [InputKind::Float, InputKind::Int8] {
            let (mut x, y) = (matrix(rows, 576), matrix(rows, 576));
            time(&format!("add_norm {rows} {kind:?}"), "Gelem/s", (rows * 576) as f64, || {
                b.add_norm(&mut x, Some((&y, 1.0)), &norm, kind, &mut input)
            })?;
            let gate_up = matrix(rows, 3072);
            time(&format!("gated {rows} {kind:?}"), "Gelem/s", (rows * 1536) as f64, || {
                b.gated(&gate_up, Gate::Silu, kind, &mut input)
            })?;
        }
    }
    Ok(())
}
