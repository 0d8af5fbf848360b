//! The Hessian of the value projection.

use qqq_backend::Calibrate;

use crate::{
    Result,
    moments::{Moments, Sums},
};

/// Weight of the second moment of `x` itself, relative to that of `z`: it speaks for tokens that some other text
/// attends to.
const INPUT_SHARE: f64 = 0.3;

/// What the value projection is solved for: the moments of the averages, plus a share of those of the `inputs` at equal
/// trace of the Hessians.
///
/// # Errors
/// Those of the backend, and Hessians of different widths.
pub(crate) fn value_moments<B: Calibrate>(
    b: &B,
    averages: Sums<B>,
    inputs: &Moments<B>,
) -> Result<Moments<B>> {
    let Moments { mut hessian, mut deviation } = averages.moments(b)?;
    if let (Some(own), Some(others)) = (&mut deviation, &inputs.deviation) {
        let factor = match trace(b, &inputs.hessian)? {
            others if others > 0.0 => INPUT_SHARE * trace(b, &hessian)? / others,
            _ => 0.0,
        };
        b.deviation_add(own, others, factor)?;
    }
    b.hessian_add(&mut hessian, &inputs.hessian, INPUT_SHARE)?;
    Ok(Moments { hessian, deviation })
}

fn trace<B: Calibrate>(b: &B, hessian: &B::Hessian) -> Result<f64> {
    let values = b.read_hessian(hessian)?;
    let width = values.len().isqrt();
    Ok(values.iter().step_by(width + 1).map(|&d| f64::from(d)).sum())
}

#[cfg(test)]
mod tests {
    use qqq_backend::{AttentionKind, Backend, CpuBackend, HeadLayout, InputKind};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::solve::{SolveOptions, solve};

    const HEADS: HeadLayout = HeadLayout { num_heads: 4, num_kv_heads: 2, head_dim: 8 };

    fn random(len: usize, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..len).map(|_| 4.0 * rng.random::<f32>() - 2.0).collect()
    }

    /// Of a layer that is not corrected.
    fn value_hessian(
        b: &CpuBackend,
        averages: <CpuBackend as Calibrate>::Gram,
        inputs: &<CpuBackend as Calibrate>::Hessian,
    ) -> <CpuBackend as Calibrate>::Hessian {
        let inputs = Moments { hessian: inputs.clone(), deviation: None };
        value_moments(b, Sums::plain(averages), &inputs).unwrap().hessian
    }

    fn input(b: &CpuBackend, width: usize, values: Vec<f32>) -> <CpuBackend as Backend>::Input {
        let mut x = b.upload(values.len() / width, width, values).unwrap();
        let mut input = b.input(0, width).unwrap();
        b.to_input(&mut x, InputKind::Float, &mut input).unwrap();
        input
    }

    #[test]
    fn a_value_projection_solved_for_averages_has_the_better_output() {
        // Every query looks at the first token most, whose input is unlike the others.
        let (tokens, k, n) = (512, 64, 32);
        let mut x = random(tokens * k, 3);
        x[..k].iter_mut().enumerate().for_each(|(j, v)| *v = if j % 9 == 0 { 12.0 } else { 0.0 });
        let width = HEADS.qkv_width();
        let mut qkv = random(tokens * width, 4);
        for row in qkv.chunks_exact_mut(width) {
            row[..32].iter_mut().for_each(|q| *q += 2.0);
        }
        qkv[32..48].fill(2.0);
        let b = CpuBackend::default();
        let x = input(&b, k, x);
        let qkv = b.upload(tokens, width, qkv).unwrap();
        let z = b.attended(&x, &qkv, &AttentionKind::causal(HEADS, None)).unwrap();
        let (of_x, of_z) = (b.gram_of(k, &[&x]).unwrap(), b.gram_of(k, &[&z]).unwrap());
        let z = b.read_input(&z).unwrap();
        let weight = random(n * k, 5);
        let error = |h: &<CpuBackend as Calibrate>::Hessian| {
            let h = b.read_hessian(h).unwrap();
            let solved = solve("v", &weight, n, k, Some(&h), &SolveOptions::default()).unwrap().weight;
            let value = |row: usize, j: usize| {
                f64::from(solved.codes[row * k + j]) * f64::from(solved.channel_scales()[row])
            };
            let of = |row: usize, z: &[f32]| {
                let terms =
                    (0..k).map(|j| (f64::from(weight[row * k + j]) - value(row, j)) * f64::from(z[j]));
                terms.sum::<f64>().powi(2)
            };
            z.chunks_exact(k).map(|z| (0..n).map(|row| of(row, z)).sum::<f64>()).sum::<f64>()
        };
        let inputs = b.hessian(of_x).unwrap();
        let (plain, averaged) = (error(&inputs), error(&value_hessian(&b, of_z, &inputs)));
        assert!(averaged < 0.5 * plain, "{averaged} against {plain}");
    }

    #[test]
    fn inputs_have_their_share_of_the_trace() {
        let b = CpuBackend::default();
        let gram = |rows: usize, seed| b.gram_of(6, &[&input(&b, 6, random(rows * 6, seed))]).unwrap();
        let hessian = |gram| b.hessian(gram).unwrap();
        let values = |h: &_| b.read_hessian(h).unwrap().into_owned();
        let trace = |h: &_| values(h).iter().step_by(7).map(|&d| f64::from(d)).sum::<f64>();
        let (z, x) = (hessian(gram(40, 6)), hessian(gram(90, 7)));
        let ratio = trace(&value_hessian(&b, gram(40, 6), &x)) / trace(&z);
        assert!((ratio - 1.0 - INPUT_SHARE).abs() < 1e-6, "{ratio}");
        let nothing = hessian(b.gram(6).unwrap());
        assert_eq!(values(&value_hessian(&b, gram(40, 6), &nothing)), values(&z));
    }
}
