//! How long a run has taken and will take, told after each step.
//!
//! Time left is, for each kind of work, what is left of it times what a unit of it has taken so far. Before a kind was seen, a unit
//! is taken to cost what the other kinds' units cost on average, and before any was, the second that is expected.

use std::time::Instant;

use crate::{
    Progress, QuantError, Result,
    estimate::{Estimate, Kind, Units},
};

/// What was done of each kind, what it took, and what there is.
#[derive(Clone, Debug)]
struct Ledger {
    plan: [f64; Kind::COUNT],
    done: [f64; Kind::COUNT],
    seconds: [f64; Kind::COUNT],
}

impl Ledger {
    fn new(plan: [f64; Kind::COUNT]) -> Self {
        Self { plan, done: [0.0; Kind::COUNT], seconds: [0.0; Kind::COUNT] }
    }

    fn record(&mut self, units: Units, share: f64, seconds: f64) {
        self.done[units.kind as usize] += units.amount * share;
        self.seconds[units.kind as usize] += seconds;
    }

    /// Seconds a unit of a kind.
    fn rate(&self, kind: usize) -> f64 {
        // The first moments of a kind say little: a unit is counted as if a hundredth of it had been seen at the others' rate.
        let expected = self.others();
        let prior = self.plan[kind] / 100.0;
        let (done, seconds) = (self.done[kind] + prior, self.seconds[kind] + prior * expected);
        if done > 0.0 { seconds / done } else { expected }
    }

    /// Seconds a unit of the blocks' kinds together.
    fn others(&self) -> f64 {
        let sum = |values: &[f64; Kind::COUNT]| values[Kind::Ends as usize + 1..].iter().sum::<f64>();
        let prior = sum(&self.plan) / 1000.0;
        let done = sum(&self.done) + prior;
        if done > 0.0 { (sum(&self.seconds) + prior) / done } else { 1.0 }
    }

    /// Seconds left.
    fn left(&self) -> f64 {
        (0..Kind::COUNT).map(|k| (self.plan[k] - self.done[k]).max(0.0) * self.rate(k)).sum()
    }
}

/// Counts work and tells it.
pub(crate) struct Work<'a> {
    progress: &'a mut dyn Progress,
    ledger: Ledger,
    started: Instant,
    stage: Option<Units>,
    stage_started: Instant,
    label: String,
    warnings: Vec<String>,
}

impl<'a> Work<'a> {
    /// Begins a run over `blocks` blocks and tells how long it will be.
    pub(crate) fn new(progress: &'a mut dyn Progress, estimate: &Estimate, blocks: usize) -> Self {
        let now = Instant::now();
        let ledger = Ledger::new(estimate.plan(blocks));
        progress.planned(ledger.left());
        Self {
            progress,
            ledger,
            started: now,
            stage: None,
            stage_started: now,
            label: String::new(),
            warnings: Vec::new(),
        }
    }

    /// There is more to do than a run over the blocks.
    pub(crate) fn add(&mut self, more: Units) {
        self.ledger.plan[more.kind as usize] += more.amount;
    }

    /// The last stage is done; begins one of `units`.
    pub(crate) fn begin(&mut self, units: Units, label: impl Into<String>) -> Result<()> {
        self.close();
        self.stage = Some(units);
        self.label = label.into();
        self.at(0.0)
    }

    fn close(&mut self) {
        if let Some(stage) = self.stage.take() {
            let seconds = self.stage_started.elapsed().as_secs_f64();
            self.ledger.record(stage, 1.0, seconds);
            tracing::trace!(kind = ?stage.kind, units = stage.amount, seconds, "stage");
        }
        self.stage_started = Instant::now();
    }

    /// `share` of the running stage is done.
    pub(crate) fn at(&mut self, share: f64) -> Result<()> {
        let mut ledger = self.ledger.clone();
        if let Some(stage) = self.stage {
            ledger.record(stage, share, self.stage_started.elapsed().as_secs_f64());
        }
        self.tell(ledger.left())
    }

    /// Seconds that work takes, as what was done until now lets expect.
    pub(crate) fn expected(&self, units: Units) -> f64 {
        units.amount * self.ledger.rate(units.kind as usize)
    }

    /// The running stage is done; seconds that are left, as those until now let expect.
    pub(crate) fn left(&mut self) -> f64 {
        self.close();
        self.ledger.left()
    }

    fn tell(&mut self, left: f64) -> Result<()> {
        let done = self.started.elapsed().as_secs_f64();
        match self.progress.step(done, done + left, &self.label) {
            true => Ok(()),
            false => Err(QuantError::Interrupted),
        }
    }

    /// All is done.
    pub(crate) fn finish(&mut self) -> Vec<String> {
        self.close();
        let done = self.started.elapsed().as_secs_f64();
        self.progress.step(done, done, "done");
        std::mem::take(&mut self.warnings)
    }

    /// What was warned of until now.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Warnings of an earlier part of the run come before those of this one; what both have told stands there once.
    pub(crate) fn recall(&mut self, mut earlier: Vec<String>) {
        let new = std::mem::take(&mut self.warnings).into_iter().filter(|w| !earlier.contains(w));
        let new: Vec<String> = new.collect();
        earlier.extend(new);
        self.warnings = earlier;
    }

    pub(crate) fn note(&mut self, message: &str) {
        self.progress.note(message);
    }

    pub(crate) fn warn(&mut self, message: String) {
        self.progress.warn(&message);
        self.warnings.push(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(kind: Kind, amount: f64) -> Units {
        Units { kind, amount }
    }

    /// Two blocks of solving (4 units each) and packing (1 each), and 1 of embedding and head.
    fn ledger() -> Ledger {
        let mut plan = [0.0; Kind::COUNT];
        for (kind, amount) in [(Kind::Ends, 1.0), (Kind::Solve, 8.0), (Kind::Pack, 2.0)] {
            plan[kind as usize] = amount;
        }
        Ledger::new(plan)
    }

    fn near(value: f64, want: f64) {
        assert!((value / want - 1.0).abs() < 0.05, "{value} instead of {want}");
    }

    #[test]
    fn before_anything_was_seen_a_unit_is_a_second() {
        near(ledger().left(), 11.0);
    }

    #[test]
    fn what_comes_before_the_blocks_says_nothing_about_them() {
        let mut ledger = ledger();
        ledger.record(units(Kind::Ends, 1.0), 1.0, 300.0);
        near(ledger.left(), 10.0);
    }

    #[test]
    fn kinds_have_rates_of_their_own() {
        let mut ledger = ledger();
        ledger.record(units(Kind::Ends, 1.0), 1.0, 300.0);
        ledger.record(units(Kind::Solve, 4.0), 1.0, 40.0);
        // Solving takes 10 a unit; packing was not seen and is taken to be alike.
        near(ledger.left(), 40.0 + 20.0);
        ledger.record(units(Kind::Pack, 1.0), 1.0, 1.0);
        near(ledger.left(), 40.0 + 1.0);
    }

    #[test]
    fn a_part_of_a_stage_counts_as_much_as_it_is() {
        let mut ledger = ledger();
        ledger.record(units(Kind::Ends, 1.0), 1.0, 1.0);
        ledger.record(units(Kind::Solve, 4.0), 0.5, 14.0);
        // Two of eight units took 14 seconds.
        near(ledger.left(), 6.0 * 7.0 + 2.0 * 7.0);
    }

    #[test]
    fn more_than_was_planned_leaves_nothing() {
        let mut ledger = ledger();
        for kind in [Kind::Ends, Kind::Solve, Kind::Pack] {
            ledger.record(units(kind, 10.0), 1.0, 1.0);
        }
        assert_eq!(ledger.left(), 0.0);
    }
}
