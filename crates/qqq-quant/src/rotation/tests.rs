use super::hadamard::{Factor, Field, plan};
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
    // Every multiple of 4 up to here but the orders that need other constructions (Williamson's and later ones), or the field
    // of 3^5 elements (244, which no model has).
    let missing: Vec<_> = (4..=260).step_by(4).filter(|n| !built.contains(n)).collect();
    assert_eq!(missing, [92, 116, 156, 172, 184, 188, 232, 236, 244, 260]);
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
fn fields_have_squares_as_they_should() {
    for q in [3, 7, 11, 25, 27, 49, 199] {
        let field = Field::new(q).expect("the order of a field");
        let character = field.quadratic_character();
        // In a field half of the units are squares; a ring has fewer, or elements other than 0 whose square is 0.
        assert_eq!(character.iter().filter(|&&c| c == 1).count(), (q - 1) / 2, "{q}");
        assert_eq!(character[0], 0, "{q}");
        // The character of -1 tells q mod 4; it is the Paley construction's symmetry.
        assert_eq!(character[field.subtract(0, 1)], if q % 4 == 1 { 1 } else { -1 }, "{q}");
    }
    assert!([0, 1, 2, 4, 9, 15, 243].into_iter().all(|q| Field::new(q).is_none()));
}

/// A checkpoint depends on the matrix: for a width and a seed it stays what it was.
#[test]
fn matrices_stay_the_same() {
    for (width, want) in [
        (28, 0x6f9cf1b951619da5),
        (52, 0x940d2e93082b9ac5),
        (64, 0x4f79e13741822325),
        (80, 0xad25b466044be825),
        (96, 0x56b581d647a85725),
        (100, 0xd247eb39c74f3e85),
        (112, 0x6fb65aa5fec85325),
        (128, 0x5b22d401b7cd4325),
        (160, 0xee01c4b23ae8c625),
        (192, 0x94996ffed323a325),
        (256, 0xb92661c0131f8325),
        (576, 0x17727e68a689bb25),
        (896, 0x24857b7214d00b25),
        (960, 0xb8bf13cc75debb25),
        (1152, 0x2f15632193068925),
        (1600, 0xa5ce83410abf9325),
    ] {
        let rotation = Rotation::new(RotationKind::Hadamard, width, 3).expect("any width");
        // FNV-1a.
        let hash = rotation
            .matrix()
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        assert_eq!(hash, want, "width {width}");
    }
    // Larger ones by their factors: doubled as often as can be, then a Paley matrix.
    for (width, core) in [
        (2304, Factor::PaleyII(17)),
        (2560, Factor::PaleyI(19)),
        (3072, Factor::PaleyI(11)),
        (3200, Factor::PaleyII(49)),
        (3584, Factor::PaleyI(27)),
        (5120, Factor::PaleyI(19)),
        (5376, Factor::PaleyI(83)),
        (6144, Factor::PaleyI(11)),
        (6656, Factor::PaleyII(25)),
        (7168, Factor::PaleyI(27)),
        (8192, Factor::Sylvester),
        (12288, Factor::PaleyI(11)),
        (14336, Factor::PaleyI(27)),
        (16384, Factor::Sylvester),
    ] {
        let plan = plan(width).expect("width of a real model");
        let (last, doublings) = plan.split_last().expect("more than one factor");
        assert_eq!((*last, doublings.iter().all(|f| *f == Factor::Sylvester)), (core, true), "{width}");
        assert_eq!(plan.into_iter().map(Factor::order).product::<usize>(), width);
    }
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
