//! Every backward pass against central differences in float64.

use qqq_backend::{
    AttentionKind, HeadLayout, Learn,
    cpu::learn::{Array, CpuLearner},
};
use qqq_model::Site;

use super::{
    PLAIN, Random, Shape, array, block, learned, ops, point, problem,
    reference::{self, Point, Rounding},
};
use crate::recipes::omniquant::block::Scales;

/// Of the largest gradient: what differences in float64 leave.
const TOLERANCE: f64 = 1e-6;

/// Loss and gradients by all numbers of a point, in their order.
pub(super) fn analytic(problem: &reference::Problem, point: &Point) -> (f64, Vec<f64>) {
    let (ops, block, learned) = (ops::<f64>(), block::<f64>(problem), learned::<f64>(point));
    let weights = block.weights(&ops, &learned).unwrap();
    let trace = block.forward(&ops, &array(&problem.x), &learned, &weights).unwrap();
    let target = array(&problem.target);
    let loss = ops.squared_distance(&trace.out, Some(&target)).unwrap();
    let dout = ops.difference(&trace.out, &target, 2.0).unwrap();
    let gradients = block.backward(&ops, &dout, &learned, &weights, &trace).unwrap();
    let mut all = Vec::new();
    for site in Site::ALL {
        assert_eq!(gradients.clips[site].is_some(), point.clips[site as usize].is_some());
        all.extend(gradients.clips[site].iter().flat_map(|clip| &clip.data));
    }
    assert_eq!(gradients.scales.is_some(), point.scales.is_some());
    if let Some(Scales { qkv, values, gate_up }) = &gradients.scales {
        all.extend(qkv.data.iter().chain(&values.data).chain(&gate_up.data));
    }
    (loss, all)
}

/// The same by differences.
fn numeric(problem: &reference::Problem, point: &Point) -> (f64, Vec<f64>) {
    let mut rounding = Rounding::default();
    let loss = problem.loss(point, &mut rounding);
    rounding.freeze();
    let step = 1e-5;
    let count = point.clone().numbers().len();
    let gradients = (0..count).map(|i| {
        let mut at = |by: f64| {
            let mut moved = point.clone();
            *moved.numbers()[i] += by;
            problem.loss(&moved, &mut rounding)
        };
        (at(step) - at(-step)) / (2.0 * step)
    });
    (loss, gradients.collect())
}

/// The worst difference as a share of the largest gradient, and where it is.
pub(super) fn worst(a: &[f64], b: &[f64]) -> (f64, usize) {
    assert_eq!(a.len(), b.len());
    let most = b.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs() / most).zip(0..);
    differences.fold((0.0, 0), |worst, one| if one.0 > worst.0 { one } else { worst })
}

fn check(shape: Shape, seed: u64) {
    let problem = problem(shape, seed);
    let point = point(shape, &problem, seed);
    let (loss, mut gradients) = analytic(&problem, &point);
    let (expected_loss, expected) = numeric(&problem, &point);
    assert!((loss - expected_loss).abs() < 1e-9 * expected_loss, "{loss} {expected_loss}");
    let (error, at) = worst(&gradients, &expected);
    assert!(
        error < TOLERANCE,
        "{shape:?}, number {at} of {}: {} and not {}",
        expected.len(),
        gradients[at],
        expected[at]
    );
    // A hundredth too much of one of them is seen: of a clipping strength, and of a scale.
    let most = expected.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    let is_felt =
        |range: std::ops::Range<usize>| range.into_iter().find(|&i| expected[i].abs() > 1e-3 * most);
    let clips: usize = point.clips.iter().flatten().map(Vec::len).sum();
    let planted = [is_felt(0..clips), is_felt(clips..expected.len())];
    assert_eq!(planted.iter().flatten().count(), if shape.both { 2 } else { 1 });
    for i in planted.into_iter().flatten() {
        gradients[i] *= 1.01;
        assert!(worst(&gradients, &expected).0 > TOLERANCE);
        gradients[i] /= 1.01;
    }
}

#[test]
fn gradients_are_those_of_the_reference() {
    for seed in 0..4 {
        check(PLAIN, seed);
    }
}

#[test]
fn with_all_that_a_family_may_have() {
    for seed in 0..4 {
        check(Shape { is_rich: true, ..PLAIN }, seed);
    }
}

#[test]
fn of_weights_alone_and_in_groups() {
    for seed in 0..4 {
        for is_rich in [false, true] {
            check(Shape { both: false, group: Some(4), is_rich, ..PLAIN }, seed);
            check(Shape { group: Some(4), is_rich, ..PLAIN }, seed);
        }
    }
}

/// Where work is divided into several tasks and blocks of queries.
#[test]
fn attention_over_many_tokens() {
    let heads = HeadLayout { num_heads: 4, num_kv_heads: 2, head_dim: 3 };
    let tokens = 300;
    let random = &mut Random::new(9);
    let qkv = random.rows(tokens, heads.qkv_width(), 2.0);
    let dy = random.rows(tokens, heads.q_width(), 1.0);
    for window in [None, Some(1), Some(70), Some(400)] {
        let kind = AttentionKind::causal(heads, window);
        let x: Array<f64> = array(&qkv);
        let y = ops::<f64>().attention(&x, &kind).unwrap();
        let expected = array::<f64>(&reference::attention(&qkv, &kind));
        assert!(worst(&y.data, &expected.data).0 < 1e-12);
        let back = ops::<f64>().attention_back(&array(&dy), &y, &x, &kind).unwrap();
        let loss = |qkv: &Vec<Vec<f64>>| -> f64 {
            let y = reference::attention(qkv, &kind);
            y.iter().flatten().zip(dy.iter().flatten()).map(|(y, dy)| y * dy).sum()
        };
        for i in (0..x.data.len()).step_by(171) {
            let at = |by: f64| {
                let mut moved = qkv.clone();
                moved[i / x.cols][i % x.cols] += by;
                loss(&moved)
            };
            let expected = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((back.data[i] - expected).abs() < 1e-7, "{window:?} {i}: {} {expected}", back.data[i]);
        }
    }
}

/// The three orientations, larger than a task.
#[test]
fn products_of_many_rows() {
    let random = &mut Random::new(4);
    let (m, n, k) = (300, 270, 37);
    let (x, w) = (random.rows(m, k, 1.0), random.rows(n, k, 1.0));
    let (dy, bias) = (random.rows(m, n, 1.0), random.numbers(n, -1.0, 1.0));
    let ops: CpuLearner<f64> = ops();
    let [ax, aw, ady, abias] = [array(&x), array(&w), array(&dy), array(std::slice::from_ref(&bias))];
    let naive = |rows: usize, cols: usize, at: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
        (0..rows * cols).map(|p| at(p / cols, p % cols)).collect()
    };
    let forward = ops.product(&ax, &aw, Some(&abias)).unwrap();
    let expected = naive(m, n, &|i, j| (0..k).map(|c| x[i][c] * w[j][c]).sum::<f64>() + bias[j]);
    assert!(worst(&forward.data, &expected).0 < 1e-12);
    let by_x = ops.product_back_x(&ady, &aw).unwrap();
    let expected = naive(m, k, &|i, c| (0..n).map(|j| dy[i][j] * w[j][c]).sum());
    assert!(worst(&by_x.data, &expected).0 < 1e-12);
    let by_w = ops.product_back_w(&ady, &ax).unwrap();
    let expected = naive(n, k, &|j, c| (0..m).map(|i| dy[i][j] * x[i][c]).sum());
    assert!(worst(&by_w.data, &expected).0 < 1e-12);
}
