//! Losses and gradients against PyTorch's (`scripts/make_omniquant_vectors.py`).

use qqq_backend::{AttentionKind, Gate, HeadLayout};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    gradients::{analytic, worst},
    reference::{Layer, Point, Problem},
};

/// Of the largest gradient. Decimals are exact; the order of sums is not the same.
const TOLERANCE: f64 = 1e-9;

fn get<T: DeserializeOwned>(case: &Value, key: &str) -> T {
    T::deserialize(&case[key]).unwrap_or_else(|e| panic!("{key}: {e}"))
}

#[test]
fn gradients_are_those_of_pytorch() {
    let all: Value = serde_json::from_str(include_str!("vectors.json")).unwrap();
    let [num_heads, num_kv_heads, head_dim] = get(&all, "heads");
    let heads = HeadLayout { num_heads, num_kv_heads, head_dim };
    let cases: Vec<Value> = get(&all, "cases");
    assert_eq!(cases.len(), 4);
    for (i, case) in cases.iter().enumerate() {
        let weights: Vec<Vec<Vec<f64>>> = get(case, "weights");
        let biases: Option<Vec<Vec<f64>>> = get(case, "biases");
        let grids: Vec<(f64, f64, f64, usize)> = get(case, "grids");
        let layer = |i: usize| Layer {
            weights: weights[i].clone(),
            bias: biases.as_ref().map(|biases| biases[i].clone()),
            grid: Some(grids[i]),
            is_int8: get(case, "is_int8"),
        };
        let problem = Problem {
            x: get(case, "x"),
            target: get(case, "target"),
            layers: [0, 1, 2, 3].map(layer),
            input_norm: get(case, "input_norm"),
            post_norm: get(case, "post_norm"),
            qk_norm: get(case, "qk_norm"),
            after: get(case, "after"),
            eps: get(&all, "eps"),
            kind: AttentionKind::causal(heads, get(case, "window")),
            rotary: Some((get(case, "cos"), get(case, "sin"), None)),
            gate: if case["gate"] == "silu" { Gate::Silu } else { Gate::GeluTanh },
            residual_scale: get(case, "residual_scale"),
        };
        let clips: Vec<Vec<f64>> = get(case, "clips");
        let mut clips = clips.into_iter().map(Some);
        let point =
            Point { clips: std::array::from_fn(|_| clips.next().unwrap()), scales: get(case, "scales") };
        let (loss, gradients) = analytic(&problem, &point);
        let (want, expected): (f64, Vec<f64>) = (get(case, "loss"), get(case, "gradients"));
        assert!((loss - want).abs() < 1e-10 * want, "case {i}: {loss} {want}");
        let (error, at) = worst(&gradients, &expected);
        assert!(error < TOLERANCE, "case {i}, number {at}: {} and not {}", gradients[at], expected[at]);
    }
}
