//! Progress of what comes before a run.

use std::{cell::Cell, time::Instant};

use crate::Progress;

/// Tells of measuring instead of the run that it borrows its beginning from: that run's plan, notes and warnings are told
/// again, by itself.
pub(super) struct Measuring<'a> {
    inner: &'a mut dyn Progress,
    started: Instant,
    state: &'a State,
}

/// What is known of the time, from elsewhere.
#[derive(Default)]
pub(super) struct State {
    /// Seconds that are expected.
    pub expected: Cell<f64>,
    /// Share of the work that is done.
    pub done: Cell<f64>,
    /// Whether notes are told.
    pub tells: Cell<bool>,
}

impl<'a> Measuring<'a> {
    pub fn new(inner: &'a mut dyn Progress, state: &'a State) -> Self {
        Self { inner, started: Instant::now(), state }
    }
}

impl Progress for Measuring<'_> {
    fn step(&mut self, _done: f64, _total: f64, next: &str) -> bool {
        let seconds = self.started.elapsed().as_secs_f64();
        let done = self.state.done.get();
        // The first moments say little.
        let seen = if done > 0.02 { seconds / done } else { self.state.expected.get() };
        self.inner.step(seconds, seen.max(seconds), next)
    }

    fn warn(&mut self, _message: &str) {}

    fn note(&mut self, message: &str) {
        if self.state.tells.get() {
            self.inner.note(message);
        }
    }
}
