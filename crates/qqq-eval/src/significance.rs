//! Whether two models that were measured on the same windows or questions differ by more than chance: paired tests.

use qqq_model::scores::{WindowSum, estimate};
use statrs::distribution::{Binomial, ContinuousCDF, DiscreteCDF, Normal, StudentsT};

use crate::Estimate;

/// Probability of a difference at least as large, with either sign, if none of two perplexities were lower than the other:
/// Student's t test of the mean difference of their negative log-likelihoods, window by window. `ratio` is that of the
/// perplexities, as [`kl_divergence`](crate::kl_divergence()) gives it. `None` for a single window.
pub fn of_perplexities(ratio: Estimate, windows: usize) -> Option<f64> {
    let standard_error = ratio.standard_error.map(|e| e / ratio.mean);
    of_mean(Estimate { mean: ratio.mean.ln(), standard_error }, windows)
}

/// The same for a mean difference of `samples` independent pairs.
fn of_mean(difference: Estimate, samples: usize) -> Option<f64> {
    let freedom = samples.checked_sub(1).filter(|n| *n > 0)?;
    let t = statistic(difference)?;
    Some(2.0 * StudentsT::new(0.0, 1.0, freedom as f64).ok()?.sf(t))
}

/// The same for a mean difference of many pairs, or for a mean of such means.
pub fn of_large_mean(difference: Estimate) -> Option<f64> {
    Some(2.0 * Normal::standard().sf(statistic(difference)?))
}

/// The absolute difference by its standard error. Pairs that are all alike have none to tell by, unless they do not differ.
fn statistic(difference: Estimate) -> Option<f64> {
    match difference.standard_error? {
        error if error > 0.0 => Some((difference.mean / error).abs()),
        _ if difference.mean == 0.0 => Some(0.0),
        _ => None,
    }
}

/// Answers of two models to the same questions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairedAnswers {
    /// Questions that the first one alone answers rightly.
    pub only_first: u64,
    /// Questions that the second one alone answers rightly.
    pub only_second: u64,
    /// Share of right answers of the second less that of the first.
    pub difference: Estimate,
}

impl PairedAnswers {
    /// Of the questions that both have answered, whether each answer is right; the first ones where one has more.
    pub fn new(first: impl Iterator<Item = bool>, second: impl Iterator<Item = bool>) -> Self {
        let pairs: Vec<(bool, bool)> = first.zip(second).collect();
        let count = |wanted: (bool, bool)| pairs.iter().filter(|pair| **pair == wanted).count() as u64;
        let change = |(first, second): &(bool, bool)| f64::from(i8::from(*second) - i8::from(*first));
        let sums: Vec<_> = pairs.iter().map(|pair| WindowSum { sum: change(pair), tokens: 1 }).collect();
        Self {
            only_first: count((true, false)),
            only_second: count((false, true)),
            difference: estimate(&sums),
        }
    }

    /// Probability of so uneven numbers if both were as good.
    pub fn probability(&self) -> f64 {
        of_answers(self.only_first, self.only_second)
    }
}

/// Probability of so uneven numbers of questions that one model alone answers rightly, if both were as good: McNemar's test,
/// exactly, by the binomial distribution.
fn of_answers(only_first: u64, only_second: u64) -> f64 {
    let (fewer, all) = (only_first.min(only_second), only_first + only_second);
    // A chance of a half is one, whatever the number.
    Binomial::new(0.5, all).map_or(1.0, |coin| (2.0 * coin.cdf(fewer)).min(1.0))
}

/// Probabilities of several tests, adjusted so that of all that are true nothing but chance falls below a level as often as the
/// level says (Holm 1979).
pub fn holm(probabilities: &[Option<f64>]) -> Vec<Option<f64>> {
    let mut order: Vec<(usize, f64)> =
        probabilities.iter().enumerate().filter_map(|(i, p)| Some((i, (*p)?))).collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut adjusted = vec![None; probabilities.len()];
    let mut largest: f64 = 0.0;
    for (rank, (i, p)) in order.iter().enumerate() {
        largest = largest.max(p * (order.len() - rank) as f64).min(1.0);
        adjusted[*i] = Some(largest);
    }
    adjusted
}

/// The mean of estimates that are independent of each other, each as heavy as the others.
pub fn mean_of(estimates: &[Estimate]) -> Option<Estimate> {
    let count = estimates.len() as f64;
    let squares = estimates.iter().map(|e| e.standard_error.map(|error| error * error)).sum::<Option<f64>>();
    (!estimates.is_empty()).then(|| Estimate {
        mean: estimates.iter().map(|e| e.mean).sum::<f64>() / count,
        standard_error: squares.map(|squares| squares.sqrt() / count),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(values: &[f64]) -> Estimate {
        estimate(&values.iter().map(|value| WindowSum { sum: *value, tokens: 1 }).collect::<Vec<_>>())
    }

    #[track_caller]
    fn assert_near(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 1e-9, "{found} is not {expected}");
    }

    // The numbers are those of scipy 1.17.1 and statsmodels 0.15.0.

    #[test]
    fn windows_are_judged_by_students_t() {
        let few = [0.012, 0.034, -0.004, 0.021, 0.017];
        assert_near(of_mean(mean(&few), 5).unwrap(), 0.060_981_701_091_577_28);
        assert_near(of_perplexities(mean(&few).exp(), 5).unwrap(), 0.060_981_701_091_577_28);
        assert_near(of_mean(mean(&[0.5, -0.4]), 2).unwrap(), 0.929_553_425_045_445_5);
        assert_eq!(of_mean(mean(&[0.5]), 1), None);
        assert_eq!(of_mean(mean(&[0.0; 3]), 3), Some(1.0));
        assert_eq!(of_mean(mean(&[0.1; 4]), 4).filter(|p| *p > 1e-9), None);
    }

    #[test]
    fn answers_are_judged_by_coins() {
        for (first, second, expected) in [
            (15, 5, 0.041_389_465_332_031_25),
            (0, 6, 0.031_25),
            (10, 10, 1.0),
            (1, 0, 1.0),
            (130, 181, 0.004_502_363_055_215_128),
            (1200, 1000, 2.181_702_640_791_420_4e-5),
        ] {
            assert_near(of_answers(first, second), expected);
            assert_near(of_answers(second, first), expected);
        }
        assert_eq!(of_answers(0, 0), 1.0);
    }

    #[test]
    fn answers_come_in_pairs() {
        let bits = |text: &'static str| text.bytes().map(|b| b == b'1');
        let found = PairedAnswers::new(bits("1110100000"), bits("1001000001111"));
        assert_eq!((found.only_first, found.only_second), (3, 2));
        // 0, -1, -1, 1, -1, 0, 0, 0, 0, 1.
        assert_near(found.difference.mean, -0.1);
        assert_near(found.difference.standard_error.unwrap(), (4.9f64 / 90.0).sqrt());
        assert_eq!(found.probability(), 1.0);
    }

    #[test]
    fn tasks_are_averaged_with_their_errors() {
        let tasks = [
            mean(&[1.0, -1.0, 0.0, 0.0, -1.0, -1.0, 0.0, 0.0, -1.0, 0.0]),
            mean(&[0.0, 0.0, -1.0, -1.0, 1.0, -1.0, -1.0, 0.0]),
        ];
        let average = mean_of(&tasks).unwrap();
        assert_near(average.mean, -0.3375);
        assert_near(average.standard_error.unwrap(), 0.169_375_311_163_540_07);
        assert_near(of_large_mean(average).unwrap(), 0.046_303_482_705_638_006);
        assert_eq!(mean_of(&[]), None);
        assert_eq!(mean_of(&[tasks[0], mean(&[1.0])]).unwrap().standard_error, None);
    }

    #[test]
    fn several_tests_are_adjusted_as_holm_has_it() {
        let found = holm(&[Some(0.01), None, Some(0.04), Some(0.03), Some(0.005), Some(0.6)]);
        for (found, expected) in found.iter().zip([0.04, -1.0, 0.09, 0.09, 0.025, 0.6]) {
            assert_near(found.unwrap_or(-1.0), expected);
        }
        assert_eq!(holm(&[None]), [None]);
    }
}
