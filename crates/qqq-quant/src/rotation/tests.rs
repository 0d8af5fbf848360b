use super::hadamard::{Factor, GaloisField, plan};
use super::*;

/// Largest deviation of `Q Q^T` from the identity, in f64.
fn deviation(q: &[f32], n: usize) -> f64 {
    let q = Mat::from_fn(n, n, |i, j| f64::from(q[i * n + j]));
    let product = &q * q.transpose();
    let mut worst = 0.0f64;
    for i in 0..n {
        for j in 0..n {
            worst = worst.max((product[(i, j)] - f64::from(u8::from(i == j))).abs());
        }
    }
    worst
}

#[test]
fn every_plan_gives_a_hadamard_matrix() {
    let mut built = Vec::new();
    for n in 1..=260 {
        let Some(h) = hadamard(n) else { continue };
        let unit = (1.0 / (n as f64).sqrt()) as f32;
        assert!(h.iter().all(|v| v.abs() == unit), "order {n}: values other than +-1/sqrt(n)");
        assert!(deviation(&h, n) < 1e-5, "order {n}");
        built.push(n);
    }
    // Every multiple of 4 up to here but the orders that need other constructions (Williamson's and later ones).
    let missing: Vec<_> = (4..=260).step_by(4).filter(|n| !built.contains(n)).collect();
    assert_eq!(missing, [92, 116, 156, 172, 184, 188, 232, 236, 260]);
    assert_eq!(built[..4], [1, 2, 4, 8]);
}

#[test]
fn widths_of_real_models() {
    // Hidden sizes and head widths of the families that are supported.
    for n in [576, 768, 896, 960, 1024, 1152, 1280, 1536, 1600, 2048] {
        assert!(deviation(&hadamard(n).expect("width of a real model"), n) < 1e-5, "width {n}");
    }
    for n in [2560, 3072, 3584, 4096, 5120, 6144, 6656, 7168, 8192, 64, 80, 96, 112, 128, 256] {
        assert!(plan(n).is_some(), "width {n}");
        assert_eq!(plan(n).expect("checked").into_iter().map(Factor::order).product::<usize>(), n);
    }
}

#[test]
fn widths_without_a_hadamard_matrix_take_one_that_is_nearly_as_flat() {
    for width in [3, 6, 34, 50, 75, 92, 94, 577, 944] {
        for rotation in
            [Rotation::head(width), Rotation::new(RotationKind::Hadamard, width, 3).expect("any width")]
        {
            assert_eq!(rotation.family, Family::Hartley, "width {width}");
            assert!(deviation(rotation.matrix(), width) < 1e-5, "width {width}");
            let largest = rotation.matrix().iter().fold(0.0f32, |max, v| max.max(v.abs()));
            assert!(
                largest * (width as f32).sqrt() <= std::f32::consts::SQRT_2 * (1.0 + 3e-7),
                "width {width}: {largest}"
            );
        }
    }
    for width in [1, 2, 36, 64, 576] {
        assert_eq!(Rotation::head(width).family, Family::Hadamard);
    }
    assert!(Rotation::new(RotationKind::Hadamard, 0, 0).is_err());
}

#[test]
fn fields_of_prime_powers() {
    // GF(9): exactly the squares of x^2 = -1 (or whichever polynomial was found) make half of the units.
    for q in [3, 7, 9, 25, 27, 49, 81, 121, 125, 243, 343] {
        let field = GaloisField::new(q).expect("a prime power");
        assert_eq!(field.order(), q);
        // The character of -1 tells q mod 4; in a field it is the Paley construction's symmetry.
        let minus_one = field.subtract(0, 1);
        assert_eq!(field.quadratic_character()[minus_one], if q % 4 == 1 { 1 } else { -1 });
    }
    assert_eq!(GaloisField::prime_power(15), None);
    assert_eq!(GaloisField::prime_power(27), Some((3, 3)));
}

#[test]
fn rotations_are_orthogonal_and_reproducible() {
    for kind in [RotationKind::Hadamard, RotationKind::Orthogonal] {
        for width in [1, 12, 64, 576] {
            let a = Rotation::new(kind, width, 7).expect("buildable");
            assert!(deviation(a.matrix(), width) < 1e-5, "{kind:?} {width}");
            assert_eq!(a.matrix(), Rotation::new(kind, width, 7).expect("buildable").matrix());
            if width > 1 {
                assert_ne!(a.matrix(), Rotation::new(kind, width, 8).expect("buildable").matrix());
            }
        }
    }
}

/// `x W^T`, for `x` of `rows x k` and `W` of `n x k`.
fn linear(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    x.chunks_exact(k)
        .flat_map(|x| {
            w.chunks_exact(k)
                .map(move |w| x.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32)
        })
        .collect()
}

fn assert_close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() < 2e-5, "{a} against {b}");
    }
}

fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random::<f32>() - 0.5).collect()
}

#[test]
fn rotating_both_sides_changes_nothing() {
    let (rows, inner) = (300, 20);
    for (kind, width) in
        [(RotationKind::Hadamard, 36), (RotationKind::Hadamard, 34), (RotationKind::Orthogonal, 36)]
    {
        let q = Rotation::new(kind, width, 1).expect("buildable");
        // A layer that writes the stream, and one that reads it.
        let (x, mut writer, mut bias, mut reader) =
            (random(rows * inner, 1), random(width * inner, 2), random(width, 3), random(500 * width, 4));
        let stream = |writer: &[f32], bias: &[f32]| -> Vec<f32> {
            linear(&x, writer, inner).iter().zip(bias.iter().cycle()).map(|(a, b)| a + b).collect()
        };
        let plain = stream(&writer, &bias);
        let outputs = linear(&plain, &reader, width);
        q.apply_outputs(&mut writer, inner);
        q.apply_rows(&mut bias);
        q.apply_rows(&mut reader);
        let rotated = stream(&writer, &bias);
        assert_close(&linear(&rotated, &reader, width), &outputs);
        let mut direct = plain;
        q.apply_rows(&mut direct);
        assert_close(&rotated, &direct);
    }
}

#[test]
fn heads_turn_one_by_one() {
    for head_dim in [12, 36, 50, 75, 94] {
        turn_heads(head_dim);
    }
}

fn turn_heads(head_dim: usize) {
    let (heads, hidden, rows) = (3, 8, 10);
    let q = Rotation::head(head_dim);
    let (x, mut v, mut o) = (
        random(rows * hidden, 1),
        random(heads * head_dim * hidden, 2),
        random(hidden * heads * head_dim, 3),
    );
    let outputs = |v: &[f32], o: &[f32]| linear(&linear(&x, v, hidden), o, heads * head_dim);
    let plain = outputs(&v, &o);
    q.apply_outputs(&mut v, hidden);
    q.apply_rows(&mut o);
    assert_close(&outputs(&v, &o), &plain);
}
