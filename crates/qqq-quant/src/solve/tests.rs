use super::*;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn normal(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| (0..6).map(|_| rng.random::<f32>() - 0.5).sum()).collect()
}

/// Hessian of tokens whose channels are correlated and of very different size.
fn correlated(k: usize, tokens: usize, seed: u64) -> Vec<f32> {
    let factors = k / 4 + 1;
    let (mixing, common, own) =
        (normal(factors * k, seed), normal(tokens * factors, seed + 1), normal(tokens * k, seed + 2));
    let mut h = vec![0.0f64; k * k];
    for t in 0..tokens {
        let x: Vec<f64> = (0..k)
            .map(|j| {
                let shared: f32 = (0..factors).map(|f| common[t * factors + f] * mixing[f * k + j]).sum();
                f64::from(shared + 0.3 * own[t * k + j]) * (1.0 + (j * 7 % 11) as f64)
            })
            .collect();
        for i in 0..k {
            for j in 0..k {
                h[i * k + j] += 2.0 / tokens as f64 * x[i] * x[j];
            }
        }
    }
    h.into_iter().map(|v| v as f32).collect()
}

/// `tr(d H d^T)` by the definition.
fn quadratic(d: &[f64], h: &[f32], k: usize) -> f64 {
    d.chunks_exact(k)
        .map(|d| {
            (0..k).map(|i| (0..k).map(|j| d[i] * f64::from(h[i * k + j]) * d[j]).sum::<f64>()).sum::<f64>()
        })
        .sum()
}

/// What a kernel multiplies.
fn values(q: &QuantizedWeight, activations: Activations) -> Vec<f32> {
    match activations {
        Activations::Int8 => q.dequantize(),
        Activations::Half => (0..q.out_features).flat_map(|row| q.row_values(row)).collect(),
    }
}

fn relative_loss(weights: &[f32], q: &QuantizedWeight, h: &[f32], activations: Activations) -> f64 {
    let k = q.in_features;
    let w: Vec<f64> = weights.iter().map(|&w| f64::from(w)).collect();
    let d: Vec<f64> = w.iter().zip(values(q, activations)).map(|(w, q)| w - f64::from(q)).collect();
    quadratic(&d, h, k) / quadratic(&w, h, k)
}

/// Inverse by Gauss-Jordan elimination (positive definite: no pivoting).
fn inverse(mut a: Vec<f64>, k: usize) -> Vec<f64> {
    let mut inv: Vec<f64> = (0..k * k).map(|i| f64::from(u8::from(i / k == i % k))).collect();
    for p in 0..k {
        let pivot = a[p * k + p];
        for j in 0..k {
            a[p * k + j] /= pivot;
            inv[p * k + j] /= pivot;
        }
        for i in (0..k).filter(|&i| i != p) {
            let f = a[i * k + p];
            for j in 0..k {
                a[i * k + j] -= f * a[p * k + j];
                inv[i * k + j] -= f * inv[p * k + j];
            }
        }
    }
    inv
}

/// Follows the textbook (the inverse Hessian, one column eliminated after the other, all in f64) along the codes of
/// `solved`: every code must be the nearest to what the textbook wants at that point, within `slack` of a step. Following the
/// codes instead of comparing them keeps one tie from spoiling the rest of the row. Returns the share of exact choices.
/// Not for scales that were fitted to the codes afterwards.
fn assert_textbook(weights: &[f32], h: &[f32], solved: &Solved, options: &SolveOptions, slack: f64) -> f64 {
    let q = &solved.weight;
    let k = q.in_features;
    let mean = (0..k).map(|j| f64::from(h[j * k + j])).sum::<f64>() / k as f64;
    let mut order: Vec<usize> = (0..k).collect();
    if options.act_order {
        order.sort_by(|&a, &b| h[b * k + b].total_cmp(&h[a * k + a]));
    }
    let damped: Vec<f64> = (0..k * k)
        .map(|at| {
            let (i, j) = (order[at / k], order[at % k]);
            f64::from(h[i * k + j]) + if i == j { solved.damping * mean } else { 0.0 }
        })
        .collect();
    let inv = inverse(damped, k);
    let grid = options.scheme().grid();
    let values = values(q, options.activations);
    let group = options.group_size.unwrap_or(k);
    let scale = |row: usize, channel: usize| match &q.scales {
        Scales::PerChannel(s) => f64::from(s[row]),
        Scales::PerGroup { channel: c, group: g, .. } => {
            f64::from(c[row]) * g[row * (k / group) + channel / group].to_f64()
        }
    };
    let channel_scales: Vec<f64> = q.channel_scales().iter().map(|&s| f64::from(s)).collect();
    let mut exact = 0;
    for row in 0..q.out_features {
        let mut w: Vec<f64> = order.iter().map(|&c| f64::from(weights[row * k + c])).collect();
        let mut inv = inv.clone();
        for p in 0..k {
            let channel = order[p];
            let (code, s) = (f64::from(q.codes[row * k + channel]), scale(row, channel));
            let wanted = (w[p] / s).clamp(f64::from(grid.low), f64::from(grid.high));
            // The kernel's int8 weights lie up to half a unit beside the codes' values.
            let beside = if options.scheme().has_two_levels() { 0.5 * channel_scales[row] / s } else { 0.0 };
            let slack = slack + beside;
            assert!(
                (wanted - code).abs() <= 0.5 + slack,
                "row {row}, column {p}: code {code}, but the textbook wants {wanted}"
            );
            exact += usize::from((wanted - code).abs() <= 0.5);
            let error = (w[p] - f64::from(values[row * k + channel])) / inv[p * k + p];
            for j in p..k {
                w[j] -= error * inv[p * k + j];
            }
            let (column, pivot): (Vec<f64>, f64) = ((p..k).map(|j| inv[p * k + j]).collect(), inv[p * k + p]);
            for i in p..k {
                for j in p..k {
                    inv[i * k + j] -= column[i - p] * column[j - p] / pivot;
                }
            }
        }
    }
    exact as f64 / (q.out_features * k) as f64
}

#[test]
fn follows_the_textbook_per_channel() {
    for (k, act_order) in [(48, true), (48, false), (160, true)] {
        let n = 5;
        let (w, h) = (normal(n * k, 1), correlated(k, 4 * k, 2));
        let options = SolveOptions { act_order, ..SolveOptions::default() };
        let solved = solve("layer", &w, n, k, Some(&h), &options).expect("well-conditioned");
        let exact = assert_textbook(&w, &h, &solved, &options, 1e-3);
        assert!(exact > 0.999, "{exact}");
        assert_eq!(solved.damping, 0.01);
        assert!(solved.weight.codes.iter().all(|c| (-7..=7).contains(c)));
    }
}

#[test]
fn follows_the_textbook_with_eight_bits() {
    for (k, act_order) in [(48, true), (160, false)] {
        let n = 5;
        let (w, h) = (normal(n * k, 1), correlated(k, 4 * k, 2));
        let options = SolveOptions { bits: CodeBits::Eight, act_order, ..SolveOptions::default() };
        let solved = solve("layer", &w, n, k, Some(&h), &options).expect("well-conditioned");
        // Steps are a sixteenth as large, and so are weights' last digits many of them.
        let exact = assert_textbook(&w, &h, &solved, &options, 2e-2);
        assert!(exact > 0.99, "{exact}");
        assert_eq!(solved.weight.bits, CodeBits::Eight);
        assert!(solved.weight.codes.iter().all(|c| *c >= -127));
        assert!(solved.weight.codes.iter().any(|c| c.unsigned_abs() > 100));
        let four = SolveOptions { bits: CodeBits::Four, ..options.clone() };
        let four = solve("layer", &w, n, k, Some(&h), &four).expect("well-conditioned");
        assert!(solved.loss < four.loss / 100.0 && solved.loss < solved.loss_nearest);
        let grouped = SolveOptions { group_size: Some(16), ..options };
        let error = solve("layer", &w, n, k, Some(&h), &grouped).unwrap_err().to_string();
        assert!(error.contains("no groups of 16"), "{error}");
    }
}

#[test]
fn follows_the_textbook_where_weights_alone_are_quantized() {
    let (n, k) = (5, 128);
    let (w, h) = (normal(n * k, 3), correlated(k, 4 * k, 4));
    for (scale_dtype, group_scales) in
        [(ScaleDType::BF16, GroupScales::Half), (ScaleDType::F16, GroupScales::Integer)]
    {
        let options = SolveOptions {
            activations: Activations::Half,
            group_size: Some(32),
            scale_dtype,
            group_scales,
            ..SolveOptions::default()
        };
        let solved = solve("layer", &w, n, k, Some(&h), &options).expect("well-conditioned");
        let exact = assert_textbook(&w, &h, &solved, &options, 1e-3);
        assert!(exact > 0.999, "{exact}");
        // One level: the scales of a row have no common divisor.
        let plain = SolveOptions { group_scales: GroupScales::Half, ..options.clone() };
        let plain = solve("layer", &w, n, k, Some(&h), &plain).expect("well-conditioned");
        assert_eq!(plain.weight, solved.weight);
    }
}

#[test]
fn follows_the_textbook_per_group() {
    let (n, k) = (5, 128);
    let (mut w, mut h) = (normal(n * k, 3), correlated(k, 4 * k, 4));
    // The channel that is solved first holds the largest weight of every row (code 7, beyond any doubt), so that it
    // settles the channel scale.
    (0..n).for_each(|row| w[row * k] = 4.0);
    h[0] = 2.0 * (0..k).map(|j| h[j * k + j]).fold(0.0, f32::max);
    let options = SolveOptions { group_size: Some(32), ..SolveOptions::default() };
    let solved = solve("layer", &w, n, k, Some(&h), &options).expect("well-conditioned");
    let exact = assert_textbook(&w, &h, &solved, &options, 1e-3);
    assert!(exact > 0.9, "{exact}");
    assert!(solved.weight.int8_weights().iter().all(|w| (-127..=127).contains(w)));
}

#[test]
fn integer_group_scales_are_integers_and_lose_little() {
    let (n, k) = (130, 96);
    let (mut w, h) = (normal(n * k, 5), correlated(k, 300, 6));
    // Groups of different size, up to four times.
    w.iter_mut().enumerate().for_each(|(i, w)| *w *= (1 + i / 32 % 4) as f32);
    for dtype in [ScaleDType::F32, ScaleDType::F16, ScaleDType::BF16] {
        for clip in [Clip::None, Clip::Weight, Clip::Output] {
            let half =
                SolveOptions { group_size: Some(32), clip, scale_dtype: dtype, ..SolveOptions::default() };
            let integer = SolveOptions { group_scales: GroupScales::Integer, ..half.clone() };
            let solved = |options| solve("layer", &w, n, k, Some(&h), options).expect("well-conditioned");
            let (half, integer) = (solved(&half), solved(&integer));
            let Scales::PerGroup { group, .. } = &integer.weight.scales else { panic!("groups") };
            assert!(group.iter().all(|s| (0..=15).any(|i| s.to_f32() == i as f32)), "{dtype:?} {clip:?}");
            assert!(group.iter().any(|s| s.to_f32() > 7.0), "{dtype:?} {clip:?}: precision is left unused");
            assert!(
                integer.loss < 1.2 * half.loss,
                "{dtype:?} {clip:?}: {} with integers, {} with float16",
                integer.loss,
                half.loss
            );
        }
    }
}

#[test]
fn losses_are_those_of_the_dequantized_weight() {
    let (n, k) = (130, 96);
    let (w, h) = (normal(n * k, 5), correlated(k, 300, 6));
    let (int8, half) = (Activations::Int8, Activations::Half);
    for (bits, group_size, activations) in [
        (CodeBits::Four, None, int8),
        (CodeBits::Four, Some(32), int8),
        (CodeBits::Four, Some(32), half),
        (CodeBits::Eight, None, int8),
    ] {
        for clip in [Clip::None, Clip::Weight, Clip::Output] {
            let scale_dtype = if activations == half { ScaleDType::BF16 } else { ScaleDType::F32 };
            let options =
                SolveOptions { bits, group_size, activations, clip, scale_dtype, ..SolveOptions::default() };
            let solved = solve("layer", &w, n, k, Some(&h), &options).expect("well-conditioned");
            let loss = relative_loss(&w, &solved.weight, &h, activations);
            assert!(
                (solved.loss - loss).abs() < 1e-4 * loss,
                "{bits} {group_size:?} {activations:?} {clip:?}: {} against {loss}",
                solved.loss
            );
            assert!(
                solved.loss < 0.6 * solved.loss_nearest,
                "{group_size:?} {clip:?}: {} {}",
                solved.loss,
                solved.loss_nearest
            );

            let nearest = solve("layer", &w, n, k, Some(&h), &SolveOptions { compensate: false, ..options })
                .expect("nothing can fail");
            let loss = relative_loss(&w, &nearest.weight, &h, activations);
            assert!((nearest.loss - loss).abs() < 1e-4 * loss);
            // Clipping by output fits the channel scales once more.
            assert!(nearest.loss <= nearest.loss_nearest);
            if clip != Clip::Output {
                assert_eq!(nearest.loss, nearest.loss_nearest);
            }
        }
    }
}

#[test]
fn rounds_to_nearest_without_compensation() {
    let w = [0.7, -0.34, 0.04, 0.14, 0.0, 0.21, -0.7, 0.699];
    let h: Vec<f32> = (0..16).map(|i| f32::from(u8::from(i % 5 == 0))).collect();
    let options = SolveOptions { compensate: false, ..SolveOptions::default() };
    let solved = solve("layer", &w, 2, 4, Some(&h), &options).expect("fine");
    assert_eq!(solved.weight.codes, [7, -3, 0, 1, 0, 2, -7, 7]);
    assert_eq!(solved.weight.channel_scales(), [0.1, 0.1]);
}

#[test]
fn dead_channels_change_nothing_else() {
    let (n, k) = (20, 64);
    let dead = [3, 17, 40];
    let alive: Vec<usize> = (0..k).filter(|j| !dead.contains(j)).collect();
    let (mut w, mut h) = (normal(n * k, 7), correlated(k, 300, 8));
    for &d in &dead {
        (0..n).for_each(|i| w[i * k + d] = 1e6);
        (0..k).for_each(|j| (h[d * k + j], h[j * k + d]) = (0.0, 0.0));
    }
    let solved =
        solve("layer", &w, n, k, Some(&h), &SolveOptions::default()).expect("dead channels are no failure");
    assert_eq!(solved.dead_channels, 3);
    assert!(solved.loss.is_finite() && solved.loss < solved.loss_nearest);

    // The same layer without them.
    let m = alive.len();
    let w2: Vec<f32> =
        (0..n).flat_map(|i| alive.iter().map(move |&j| (i, j))).map(|(i, j)| w[i * k + j]).collect();
    let h2: Vec<f32> = (0..m * m).map(|at| h[alive[at / m] * k + alive[at % m]]).collect();
    let without = solve("layer", &w2, n, m, Some(&h2), &SolveOptions::default()).expect("well-conditioned");
    assert_eq!(solved.weight.scales, without.weight.scales);
    let same = (0..n)
        .flat_map(|i| alive.iter().enumerate().map(move |(at, &j)| (i, at, j)))
        .filter(|&(i, at, j)| solved.weight.codes[i * k + j] == without.weight.codes[i * m + at])
        .count();
    assert_eq!(same, n * m);

    let nothing =
        solve("layer", &w, n, k, Some(&vec![0.0; k * k]), &SolveOptions::default()).expect("all dead");
    assert_eq!((nothing.dead_channels, nothing.loss), (k, 0.0));
}

#[test]
fn a_singular_hessian_raises_the_damping() {
    let (n, k) = (8, 64);
    // Fewer tokens than channels, and no damping to begin with.
    let (w, h) = (normal(n * k, 9), correlated(k, 20, 10));
    let options = SolveOptions { damping: 0.0, ..SolveOptions::default() };
    let solved = solve("layer", &w, n, k, Some(&h), &options).expect("cured by damping");
    assert!(solved.damping > 0.0, "{}", solved.damping);
    assert!(solved.loss <= solved.loss_nearest);

    // Indefinite by a little: rounding of a Hessian does that.
    let mut h = correlated(k, 300, 11);
    let mean = (0..k).map(|j| h[j * k + j]).sum::<f32>() / k as f32;
    for (a, b) in [(0, 1), (5, 30)] {
        let off = (h[a * k + a] * h[b * k + b]).sqrt() + 0.05 * mean;
        (h[a * k + b], h[b * k + a]) = (off, off);
    }
    let solved = solve("layer", &w, n, k, Some(&h), &SolveOptions::default()).expect("cured by damping");
    assert!(solved.damping > 0.01 && solved.damping <= 10.0, "{}", solved.damping);
}

#[test]
fn hopeless_input_is_an_error_that_names_the_layer() {
    let (n, k) = (2, 32);
    let (w, h) = (normal(n * k, 1), correlated(k, 100, 2));
    let message = |w: &[f32], h: &[f32], options: SolveOptions| {
        let error =
            solve("model.layers.3.o_proj", w, n, k, Some(h), &options).expect_err("must fail").to_string();
        assert!(error.contains("model.layers.3.o_proj"), "{error}");
        error
    };
    let mut bad = h.clone();
    (bad[1], bad[k]) = (1e9, 1e9);
    assert!(message(&w, &bad, SolveOptions::default()).contains("positive definite"));
    bad[1] = f32::NAN;
    assert!(message(&w, &bad, SolveOptions::default()).contains("NaN"));
    let mut negative = h.clone();
    negative[0] = -1.0;
    assert!(message(&w, &negative, SolveOptions::default()).contains("-1"));
    let mut weights = w.clone();
    weights[k + 5] = f32::INFINITY;
    assert!(message(&weights, &h, SolveOptions::default()).contains("[1, 5]"));
    assert!(message(&w[1..], &h, SolveOptions::default()).contains("2 x 32"));
    assert!(message(&w, &h[1..], SolveOptions::default()).contains("32 x 32"));
    assert!(message(&w, &h, SolveOptions { group_size: Some(24), ..Default::default() }).contains("24"));
    assert!(message(&w, &h, SolveOptions { group_size: Some(0), ..Default::default() }).contains('0'));
    for damping in [-0.1, f64::NAN] {
        assert!(message(&w, &h, SolveOptions { damping, ..Default::default() }).contains("damping"));
    }
}

#[test]
fn zero_weights_stay_zero() {
    let k = 64;
    let h = correlated(k, 200, 1);
    for group_size in [None, Some(32)] {
        let options = SolveOptions { group_size, ..SolveOptions::default() };
        let solved = solve("layer", &vec![0.0; 3 * k], 3, k, Some(&h), &options).expect("fine");
        assert_eq!((solved.loss, solved.loss_nearest), (0.0, 0.0));
        assert!(solved.weight.dequantize().iter().all(|&w| w == 0.0));
    }
}

#[test]
fn the_order_of_channels_does_not_matter_with_act_order() {
    let (n, k) = (40, 96);
    let (w, h) = (normal(n * k, 12), correlated(k, 300, 13));
    let solved = solve("layer", &w, n, k, Some(&h), &SolveOptions::default()).expect("well-conditioned");
    let shuffled = |j: usize| j * 35 % k;
    let w2: Vec<f32> = (0..n * k).map(|at| w[at / k * k + shuffled(at % k)]).collect();
    let h2: Vec<f32> = (0..k * k).map(|at| h[shuffled(at / k) * k + shuffled(at % k)]).collect();
    let again = solve("layer", &w2, n, k, Some(&h2), &SolveOptions::default()).expect("well-conditioned");
    for at in 0..n * k {
        assert_eq!(again.weight.codes[at], solved.weight.codes[at / k * k + shuffled(at % k)]);
    }
}

#[test]
fn rows_are_independent_and_runs_repeat() {
    let (n, k) = (230, 64);
    let (w, h) = (normal(n * k, 14), correlated(k, 300, 15));
    for group_size in [None, Some(32)] {
        let options = SolveOptions { group_size, clip: Clip::Output, ..SolveOptions::default() };
        let all = solve("layer", &w, n, k, Some(&h), &options).expect("well-conditioned");
        let again = solve("layer", &w, n, k, Some(&h), &options).expect("well-conditioned");
        assert_eq!(all.weight, again.weight);
        assert_eq!(all.loss.to_bits(), again.loss.to_bits());
        let parts: Vec<_> = [(0, 101), (101, 230)]
            .map(|(a, b)| {
                solve("layer", &w[a * k..b * k], b - a, k, Some(&h), &options)
                    .expect("well-conditioned")
                    .weight
            })
            .into();
        let joined = QuantizedWeight::concat(&[&parts[0], &parts[1]]).expect("same shape");
        let same = joined.codes.iter().zip(&all.weight.codes).filter(|(a, b)| a == b).count();
        assert!(same as f64 > 0.999 * (n * k) as f64, "{same} of {}", n * k);
    }
}

#[test]
fn scales_are_rounded_before_weights_are() {
    let (n, k) = (10, 64);
    let (w, h) = (normal(n * k, 16), correlated(k, 300, 17));
    for scale_dtype in [ScaleDType::F16, ScaleDType::BF16] {
        let options = SolveOptions { scale_dtype, ..SolveOptions::default() };
        let solved = solve("layer", &w, n, k, Some(&h), &options).expect("well-conditioned");
        assert!(solved.weight.channel_scales().iter().all(|&s| scale_dtype.round(s) == s));
        assert_textbook(&w, &h, &solved, &options, 1e-3);
    }
}

#[test]
fn results_that_no_reader_could_use_are_errors() {
    let (n, k) = (8, 32);
    let (w, h) = (normal(n * k, 18), correlated(k, 100, 19));
    let large: Vec<f32> = w.iter().map(|v| v * 1e6).collect();
    for group_size in [None, Some(16)] {
        let options = |scale_dtype| SolveOptions {
            group_size,
            scale_dtype,
            clip: Clip::Output,
            ..SolveOptions::default()
        };
        // Scales of some 5e5.
        for dtype in [ScaleDType::F32, ScaleDType::BF16] {
            solve("layer", &large, n, k, Some(&h), &options(dtype)).expect("scales within range");
        }
        let error =
            solve("layer", &large, n, k, Some(&h), &options(ScaleDType::F16)).unwrap_err().to_string();
        assert!(error.contains("layer") && error.contains("bfloat16"), "{error}");
        // Quadratic forms beyond float32.
        let (huge, much) =
            (w.iter().map(|v| v * 1e20).collect::<Vec<_>>(), h.iter().map(|v| v * 1e30).collect::<Vec<_>>());
        let error = solve("layer", &huge, n, k, Some(&much), &options(ScaleDType::F32)).unwrap_err();
        assert!(error.to_string().contains("layer"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn compensation_and_clipping_by_output_never_lose(
        n in 1usize..120, k in prop::sample::select(vec![16usize, 32, 48, 96]), seed in 0u64..1000,
        grouped in any::<bool>(), act_order in any::<bool>(),
        clip in prop::sample::select(vec![Clip::None, Clip::Weight, Clip::Output]),
    ) {
        let (w, h) = (normal(n * k, seed), correlated(k, 3 * k, seed + 1));
        let options = SolveOptions { group_size: grouped.then_some(16), act_order, clip, ..SolveOptions::default() };
        let solved = solve("layer", &w, n, k, Some(&h), &options).expect("well-conditioned");
        prop_assert!(solved.loss <= solved.loss_nearest);
        let least = if grouped { -8 } else { -7 };
        prop_assert!(solved.weight.codes.iter().all(|c| (least..=7).contains(c)));
        prop_assert!(solved.weight.int8_weights().iter().all(|w| (-127..=127).contains(w)));
        prop_assert_eq!((solved.weight.out_features, solved.weight.in_features), (n, k));
    }
}

/// Without a Hessian: what one gives that counts every input the same.
#[test]
fn no_hessian_is_the_identity() {
    let (n, k) = (100, 96);
    let w = normal(n * k, 1);
    let mut identity = vec![0.0; k * k];
    identity.iter_mut().step_by(k + 1).for_each(|d| *d = 1.0);
    for group_size in [None, Some(32)] {
        for clip in [Clip::None, Clip::Weight, Clip::Output] {
            let options = SolveOptions { group_size, clip, compensate: false, ..SolveOptions::default() };
            let [with, without] = [Some(identity.as_slice()), None]
                .map(|h| solve("layer", &w, n, k, h, &options).expect("finite weights"));
            assert_eq!(with.weight, without.weight);
            assert_eq!((with.loss, with.loss_nearest), (without.loss, without.loss_nearest));
            assert_eq!((with.damping, with.dead_channels), (without.damping, without.dead_channels));
        }
    }
    let error = solve("layer", &w, n, k, None, &SolveOptions::default()).unwrap_err().to_string();
    assert!(error.contains("layer: compensation takes a Hessian"), "{error}");
}
