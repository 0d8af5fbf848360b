//! Choosing the next token.

use qqq_backend::{descending, first_not_finite};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How to sample.
#[derive(Clone, Debug)]
pub struct SamplingOptions {
    /// 0 means greedy.
    pub temperature: f32,
    /// 0 means all.
    pub top_k: usize,
    /// 1 means all.
    pub top_p: f32,
    /// Tokens less likely than `min_p` times the likeliest are dropped; 0 means none.
    pub min_p: f32,
    /// 1 means none.
    pub repetition_penalty: f32,
    /// Seed of the random choices: the same seed and logits give the same tokens.
    pub seed: u64,
}

impl Default for SamplingOptions {
    /// Greedy.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl SamplingOptions {
    /// What makes no sense among these options, as a sentence; `None` if all is well.
    pub fn problem(&self) -> Option<String> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Some(format!("the temperature is {}, but must be 0 (greedy) or above", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Some(format!("top-p is {}, but must be above 0 and at most 1", self.top_p));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return Some(format!("min-p is {}, but must be from 0 to 1", self.min_p));
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return Some(format!(
                "the repetition penalty is {}, but must be above 0",
                self.repetition_penalty
            ));
        }
        None
    }
}

/// A logit that is NaN or infinite: there is nothing to choose by.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("the logit of token {token} is {value}")]
pub struct BadLogit {
    /// Number of the token in the vocabulary.
    pub token: u32,
    /// The token's logit.
    pub value: f32,
}

/// What of a row of logits decides which token a sampler takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Need {
    /// So many of the largest.
    Top(usize),
    /// All, as `softmax(y / temperature)`, of which nothing is left out.
    Draw(f32),
    /// The likeliest at this temperature, as many as their probabilities say.
    Likeliest(f32),
    /// All of them.
    All,
}

/// Samples tokens; holds the random state.
///
/// The order is that of transformers: repetition penalty (Keskar et al., arXiv 1909.05858), temperature, top-k,
/// top-p (Holtzman et al., arXiv 1904.09751), min-p (Nguyen et al., arXiv 2407.01082), each on what the last one left.
pub struct Sampler {
    options: SamplingOptions,
    rng: ChaCha8Rng,
    /// Candidates of the step: logit and id. Kept to save an allocation per token.
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler. The same options give the same tokens for the same logits.
    pub fn new(options: SamplingOptions) -> Self {
        Self::for_sequence(options, 0)
    }

    /// The sampler of sequence `index` of a batch: sequences of one seed draw independently.
    pub fn for_sequence(options: SamplingOptions, index: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        rng.set_stream(index as u64);
        Self { options, rng, candidates: Vec::new() }
    }

    /// Next token from logits; `history` are the tokens so far (for the repetition penalty).
    /// Among equal logits the lowest id comes first.
    ///
    /// # Errors
    /// A logit that is not finite.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32, BadLogit> {
        if let Some(bad) = first_not_finite(logits) {
            return Err(BadLogit { token: bad as u32, value: logits[bad] });
        }
        let o = &self.options;
        self.candidates.clear();
        self.candidates.extend(logits.iter().copied().zip(0..));
        penalize(&mut self.candidates, history, o.repetition_penalty);
        if self.is_greedy() {
            return Ok(likeliest(&self.candidates));
        }
        if o.top_k > 0 {
            if o.top_k < self.candidates.len() {
                self.candidates.select_nth_unstable_by(o.top_k, descending);
                self.candidates.truncate(o.top_k);
            }
            // In the order of `sample_top`, so that both draw alike.
            self.candidates.sort_unstable_by(descending);
        }
        Ok(self.draw(None))
    }

    /// How many of the largest logits decide, so that [`sample_top`](Self::sample_top) serves; `None` if all may.
    pub fn top_needed(&self) -> Option<usize> {
        match self.need() {
            Need::Top(count) => Some(count),
            _ => None,
        }
    }

    pub(crate) fn need(&self) -> Need {
        let o = &self.options;
        match o.top_k {
            // The penalty can bring down the largest.
            _ if o.repetition_penalty != 1.0 => Need::All,
            _ if self.is_greedy() => Need::Top(1),
            0 if o.top_p < 1.0 || o.min_p > 0.0 => Need::Likeliest(o.temperature),
            0 => Need::Draw(o.temperature),
            k => Need::Top(k),
        }
    }

    /// The next number in [0, 1) of its sequence: what a draw is made by.
    pub(crate) fn chance(&mut self) -> f64 {
        self.rng.random()
    }

    /// The token that [`sample`](Self::sample) would give, from the largest logits alone: at least as many as
    /// [`top_needed`](Self::top_needed) says (or all), with their ids, in the order of [`descending`].
    ///
    /// # Errors
    /// A logit that is not finite.
    pub fn sample_top(&mut self, top: &[(f32, u32)]) -> Result<u32, BadLogit> {
        if let Some(&(value, token)) = top.iter().find(|(value, _)| !value.is_finite()) {
            return Err(BadLogit { token, value });
        }
        self.candidates.clear();
        match self.top_needed() {
            Some(count) => self.candidates.extend_from_slice(&top[..count.min(top.len())]),
            None => self.candidates.extend_from_slice(top),
        }
        Ok(if self.is_greedy() { likeliest(&self.candidates) } else { self.draw(None) })
    }

    /// The token that [`sample`](Self::sample) would give where top-p and min-p decide, from some of the largest logits in the
    /// order of [`descending`], and the sum of `exp((y - max) / temperature)` over all. `None`, and nothing is drawn, if more
    /// logits may be left over. At the border of top-p another order of sums may decide otherwise.
    pub(crate) fn sample_likeliest(
        &mut self,
        top: &[(f32, u32)],
        total: f64,
    ) -> Option<Result<u32, BadLogit>> {
        if let Some(&(value, token)) = top.iter().find(|(value, _)| !value.is_finite()) {
            return Some(Err(BadLogit { token, value }));
        }
        let o = &self.options;
        let (max, last) = (top.first()?.0, top.last()?.0);
        let weight = |value: f32| ((value - max) / o.temperature).exp();
        let ends = weight(last) < o.min_p;
        let mass: f64 = top.iter().map(|(value, _)| f64::from(weight(*value))).sum();
        if !ends && (o.top_p >= 1.0 || mass < f64::from(o.top_p) * total) {
            return None;
        }
        self.candidates.clear();
        self.candidates.extend_from_slice(top);
        if o.top_p >= 1.0 {
            // As where all are candidates; top-p has them in the order of their weights.
            self.candidates.sort_unstable_by_key(|(_, token)| *token);
        }
        Some(Ok(self.draw(Some(total))))
    }

    fn is_greedy(&self) -> bool {
        self.options.temperature <= 0.0 || self.options.top_k == 1
    }

    /// Draws from the candidates, which top-k has left over. `all` is the sum of all weights where candidates are not all.
    fn draw(&mut self, all: Option<f64>) -> u32 {
        let o = &self.options;
        let top = likeliest(&self.candidates);
        let max = logit_of(&self.candidates, top);
        // Logits become weights, relative to the likeliest.
        for (value, _) in &mut self.candidates {
            *value = ((*value - max) / o.temperature).exp();
        }
        if o.top_p < 1.0 {
            self.candidates.sort_unstable_by(descending);
            let sum = || self.candidates.iter().map(|(w, _)| f64::from(*w)).sum();
            let total: f64 = all.unwrap_or_else(sum);
            let mut mass = 0.0;
            // As many as it takes to reach top_p, at least one.
            let cut = self.candidates.iter().position(|(w, _)| {
                mass += f64::from(*w);
                mass >= f64::from(o.top_p) * total
            });
            self.candidates.truncate(cut.map_or(usize::MAX, |i| i + 1));
        }
        if o.min_p > 0.0 {
            self.candidates.retain(|(w, _)| *w >= o.min_p);
        }
        let total: f64 = self.candidates.iter().map(|(w, _)| f64::from(*w)).sum();
        let mut rest = self.chance() * total;
        for (w, id) in &self.candidates {
            rest -= f64::from(*w);
            if rest < 0.0 {
                return *id;
            }
        }
        // Rounding left nothing over: the likeliest is as good as any.
        top
    }
}

/// Divides positive and multiplies negative logits of tokens seen before by `penalty`, once each. What would be beyond the
/// range of numbers becomes the largest: an extreme penalty makes tokens certain or impossible, but no logit infinite.
fn penalize(candidates: &mut [(f32, u32)], history: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = history.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        if let Some((logit, _)) = candidates.get_mut(id as usize) {
            let penalized = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            *logit = penalized.clamp(f32::MIN, f32::MAX);
        }
    }
}

fn likeliest(candidates: &[(f32, u32)]) -> u32 {
    candidates.iter().min_by(|a, b| descending(a, b)).map_or(0, |(_, id)| *id)
}

fn logit_of(candidates: &[(f32, u32)], id: u32) -> f32 {
    candidates.iter().find(|(_, i)| *i == id).map_or(f32::NEG_INFINITY, |(logit, _)| *logit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> SamplingOptions {
        SamplingOptions { temperature: 1.0, seed: 7, ..SamplingOptions::default() }
    }

    /// Shares of `draws` samples.
    fn shares(options: SamplingOptions, logits: &[f32], history: &[u32], draws: usize) -> Vec<f64> {
        let mut sampler = Sampler::new(options);
        let mut counts = vec![0usize; logits.len()];
        for _ in 0..draws {
            counts[sampler.sample(logits, history).unwrap() as usize] += 1;
        }
        counts.into_iter().map(|c| c as f64 / draws as f64).collect()
    }

    fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
        let e: Vec<f64> = logits.iter().map(|l| (f64::from(*l) / temperature).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.into_iter().map(|x| x / sum).collect()
    }

    /// Five standard deviations of a share over 20,000 draws is at most 0.018.
    fn assert_shares(found: &[f64], expected: &[f64]) {
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < 0.018, "{found:?} vs {expected:?}");
            assert!(*e > 0.0 || *f == 0.0, "an impossible token was drawn: {found:?} vs {expected:?}");
        }
    }

    const LOGITS: [f32; 5] = [0.5, 2.0, -1.0, 1.5, 0.0];

    #[test]
    fn temperature_shapes_the_distribution() {
        for t in [0.5, 1.0, 2.0] {
            let found = shares(SamplingOptions { temperature: t, ..options() }, &LOGITS, &[], 20_000);
            assert_shares(&found, &softmax(&LOGITS, f64::from(t)));
        }
    }

    #[test]
    fn top_k_keeps_the_k_likeliest() {
        let found = shares(SamplingOptions { top_k: 2, ..options() }, &LOGITS, &[], 20_000);
        let p = softmax(&[2.0, 1.5], 1.0);
        assert_shares(&found, &[0.0, p[0], 0.0, p[1], 0.0]);
    }

    #[test]
    fn the_largest_logits_are_enough() {
        let logits: Vec<f32> = (0..200).map(|i| ((i * 71) % 37) as f32 / 4.0).collect();
        let settings = [
            SamplingOptions { temperature: 0.0, ..options() },
            SamplingOptions { top_k: 1, ..options() },
            SamplingOptions { top_k: 40, ..options() },
            SamplingOptions { top_k: 7, top_p: 0.8, min_p: 0.1, ..options() },
            SamplingOptions { top_k: 1000, ..options() },
        ];
        for options in settings {
            let (mut all, mut few) = (Sampler::new(options.clone()), Sampler::new(options.clone()));
            let count = few.top_needed().expect("top-k or greedy");
            let top = qqq_backend::largest(&logits, count);
            for _ in 0..300 {
                assert_eq!(all.sample(&logits, &[]), few.sample_top(&top), "{options:?}");
            }
        }
        for options in [
            SamplingOptions { top_p: 0.9, ..options() },
            SamplingOptions { temperature: 0.0, repetition_penalty: 1.1, ..options() },
        ] {
            assert_eq!(Sampler::new(options).top_needed(), None);
        }
    }

    #[test]
    fn the_likeliest_are_enough_where_their_probabilities_say_so() {
        let logits: Vec<f32> = (0..400).map(|i| ((i * 71) % 397) as f32 / 24.0).collect();
        let settings = [
            (SamplingOptions { top_p: 0.9, ..options() }, 120, true),
            (SamplingOptions { min_p: 0.05, ..options() }, 120, true),
            (SamplingOptions { top_p: 0.99, min_p: 0.2, temperature: 1.5, ..options() }, 120, true),
            // Too few for top-p, but not for min-p.
            (SamplingOptions { top_p: 0.999, min_p: 0.3, ..options() }, 40, true),
            (SamplingOptions { top_p: 0.999, ..options() }, 40, false),
            (SamplingOptions { min_p: 1e-4, ..options() }, 120, false),
            (SamplingOptions { top_p: 0.9, temperature: 30.0, ..options() }, 120, false),
        ];
        for (options, count, enough) in settings {
            let (mut all, mut few) = (Sampler::new(options.clone()), Sampler::new(options.clone()));
            assert_eq!(few.need(), Need::Likeliest(options.temperature), "{options:?}");
            let top = qqq_backend::largest(&logits, count);
            let total: f64 =
                logits.iter().map(|l| f64::from(((l - top[0].0) / options.temperature).exp())).sum();
            for _ in 0..300 {
                let found = few.sample_likeliest(&top, total);
                assert_eq!(found.is_some(), enough, "{options:?}");
                if let Some(token) = found {
                    assert_eq!(token, all.sample(&logits, &[]), "{options:?}");
                }
            }
            // What was not drawn has used up nothing.
            assert_eq!(few.chance(), all.chance(), "{options:?}");
        }
        let mut sampler = Sampler::new(SamplingOptions { top_p: 0.9, ..options() });
        assert!(matches!(
            sampler.sample_likeliest(&[(f32::NAN, 7)], 0.0),
            Some(Err(BadLogit { token: 7, .. }))
        ));
    }

    #[test]
    fn what_decides_is_asked_for() {
        let need = |options| Sampler::new(options).need();
        assert_eq!(need(options()), Need::Draw(1.0));
        assert_eq!(need(SamplingOptions { top_k: 9, top_p: 0.5, ..options() }), Need::Top(9));
        assert_eq!(need(SamplingOptions { temperature: 0.0, top_p: 0.5, ..options() }), Need::Top(1));
        assert_eq!(need(SamplingOptions { repetition_penalty: 1.1, top_k: 9, ..options() }), Need::All);
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        // Probabilities 0.5, 0.3, 0.15, 0.05.
        let logits: Vec<f32> = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
        let found = shares(SamplingOptions { top_p: 0.7, ..options() }, &logits, &[], 20_000);
        assert_shares(&found, &[0.625, 0.375, 0.0, 0.0]);
        let found = shares(SamplingOptions { top_p: 0.01, ..options() }, &logits, &[], 100);
        assert_eq!(found[0], 1.0);
    }

    #[test]
    fn min_p_is_relative_to_the_likeliest() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
        let found = shares(SamplingOptions { min_p: 0.29, ..options() }, &logits, &[], 20_000);
        assert_shares(&found, &[0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.0]);
    }

    #[test]
    fn repetition_penalty_counts_a_token_once_and_respects_signs() {
        let o = SamplingOptions { repetition_penalty: 2.0, ..options() };
        let found = shares(o, &LOGITS, &[1, 1, 2, 900], 20_000);
        assert_shares(&found, &softmax(&[0.5, 1.0, -2.0, 1.5, 0.0], 1.0));
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let mut greedy = Sampler::new(SamplingOptions::default());
        assert_eq!(greedy.sample(&[1.0, -2.0, 3.0, 3.0], &[]), Ok(2));
        assert_eq!(greedy.sample(&[f32::MIN, f32::MAX], &[]), Ok(1));
    }

    #[test]
    fn a_logit_that_is_not_finite_is_an_error() {
        let ways = [
            SamplingOptions::default(),
            options(),
            SamplingOptions { top_p: 0.9, top_k: 2, min_p: 0.1, ..options() },
            SamplingOptions { temperature: 0.0, repetition_penalty: 1.3, ..options() },
        ];
        for options in ways {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut sampler = Sampler::new(options.clone());
                let error = sampler.sample(&[1.0, bad, 2.0], &[1]).unwrap_err();
                assert_eq!((error.token, error.value.to_bits()), (1, bad.to_bits()), "{options:?}");
                assert!(sampler.sample_top(&[(bad, 1)]).is_err(), "{options:?}");
            }
        }
    }

    #[test]
    fn extreme_options_choose_among_the_likeliest() {
        let coldest = SamplingOptions { temperature: f32::from_bits(1), ..options() };
        assert_eq!(shares(coldest, &[1.0, 3.0, f32::MIN], &[], 100), [0.0, 1.0, 0.0]);
        let hottest = SamplingOptions { temperature: f32::MAX, ..options() };
        assert_shares(&shares(hottest, &[1e30, -1e30], &[], 20_000), &[0.5, 0.5]);
        // Infinite, were it not held back.
        let favoured = SamplingOptions { repetition_penalty: f32::from_bits(1), ..options() };
        assert_eq!(shares(favoured, &[1.0, 3.0, 2.0], &[2], 100), [0.0, 0.0, 1.0]);
        let banned = SamplingOptions { repetition_penalty: 3e38, ..options() };
        assert_shares(&shares(banned, &[-1e3, -1e30, -1e3], &[1], 20_000), &[0.5, 0.0, 0.5]);
    }

    #[test]
    fn a_seed_fixes_the_draws_and_sequences_differ() {
        let draw = |seed, sequence| {
            let mut s = Sampler::for_sequence(SamplingOptions { seed, ..options() }, sequence);
            (0..64).map(|_| s.sample(&[0.0; 50], &[]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1, 0), draw(1, 0));
        assert_ne!(draw(1, 0), draw(2, 0));
        assert_ne!(draw(1, 0), draw(1, 1));
    }

    #[test]
    fn senseless_options_are_named() {
        assert_eq!(options().problem(), None);
        for bad in [
            SamplingOptions { temperature: f32::NAN, ..options() },
            SamplingOptions { temperature: -1.0, ..options() },
            SamplingOptions { top_p: 0.0, ..options() },
            SamplingOptions { top_p: 1.5, ..options() },
            SamplingOptions { min_p: -0.1, ..options() },
            SamplingOptions { repetition_penalty: 0.0, ..options() },
        ] {
            assert!(bad.problem().is_some(), "{bad:?}");
        }
    }
}
