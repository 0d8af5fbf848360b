//! Progress of what comes before a run.

use std::{cell::Cell, time::Instant};

use crate::Progress;

/// Tells of measuring instead of the run that it borrows its beginning from: that run's plan, notes and warnings are told
/// again, by itself.
pub(super) struct Measuring<'a> {
    inner: &'a mut dyn Progress,
    state: &'a State,
}

/// What is known of the time, from elsewhere.
pub(super) struct State {
    started: Instant,
    /// Seconds that are expected in all; 0 while nothing is known.
    pub expected: Cell<f64>,
    /// Those of them whose work is done.
    pub done: Cell<f64>,
    /// Whether notes are told.
    pub tells: Cell<bool>,
}

impl State {
    /// Begins now.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            expected: Cell::default(),
            done: Cell::default(),
            tells: Cell::default(),
        }
    }

    /// Seconds since the beginning.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

impl<'a> Measuring<'a> {
    pub fn new(inner: &'a mut dyn Progress, state: &'a State) -> Self {
        Self { inner, state }
    }
}

impl Progress for Measuring<'_> {
    fn step(&mut self, _done: f64, _total: f64, next: &str) -> bool {
        let seconds = self.state.seconds();
        let (expected, done) = (self.state.expected.get(), self.state.done.get());
        // The first moments say little.
        let all = if done > 0.02 * expected { seconds * expected / done } else { expected };
        self.inner.step(seconds, all.max(seconds), next)
    }

    fn warn(&mut self, _message: &str) {}

    fn note(&mut self, message: &str) {
        if self.state.tells.get() {
            self.inner.note(message);
        }
    }
}
