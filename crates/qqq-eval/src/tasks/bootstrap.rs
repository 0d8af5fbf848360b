//! The standard error of a perplexity, as lm-evaluation-harness 0.4.13 makes it: documents are drawn anew, as many as there are,
//! 100 000 times, and the spread of their perplexities is taken.

use qqq_backend::pool::parallel_each_mut;

use super::python_random::PythonRandom;
use crate::Estimate;

/// Draws of the harness, each with a seed of its own for as many perplexities.
const SEEDS: usize = 100;
const DRAWS: usize = 1000;

/// exp of the mean loss, of log-likelihoods of documents.
pub(super) fn perplexity(loglikelihoods: &[f64]) -> Estimate {
    let count = loglikelihoods.len();
    let of_sum = |sum: f64| (-sum / count as f64).exp();
    let mut drawn: Vec<Vec<f64>> = vec![Vec::new(); if count > 1 { SEEDS } else { 0 }];
    parallel_each_mut(&mut drawn, |seed, out| {
        let mut random = PythonRandom::new(seed as u32);
        let mut draw = || loglikelihoods[(random.unit() * count as f64) as usize];
        *out = (0..DRAWS).map(|_| of_sum((0..count).map(|_| draw()).sum())).collect();
    });
    let spread = |values: Vec<f64>| {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt()
    };
    Estimate {
        mean: of_sum(loglikelihoods.iter().sum()),
        standard_error: (count > 1).then(|| spread(drawn.concat())),
    }
}
