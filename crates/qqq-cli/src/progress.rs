//! Progress: a bar with the time left on a terminal, a line now and then elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{console::Console, format};

/// Time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Time between two redraws of a bar.
const DRAW_INTERVAL: Duration = Duration::from_millis(100);
const STEPS: f64 = 1000.0;

/// Progress of one piece of work.
pub struct Progress {
    console: Console,
    title: String,
    bar: Option<ProgressBar>,
    started: Instant,
    shown: Instant,
}

impl Progress {
    /// A bar with a title on a terminal; elsewhere lines from time to time.
    pub fn new(console: &Console, title: &str) -> Self {
        let now = Instant::now();
        let bar = (console.fancy_err() && !console.quiet()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(STEPS as u64), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:24} {percent:>3}%  {msg}") {
                bar.set_style(style.progress_chars("━╸ "));
            }
            bar.set_prefix(title.to_owned());
            bar
        });
        Self { console: console.clone(), title: title.into(), bar, started: now, shown: now }
    }

    /// `done` of `total`, in any unit that grows with time; `what` is being done now.
    pub fn update(&mut self, done: f64, total: f64, what: &str) {
        if !self.is_due() {
            return;
        }
        let share = if total > 0.0 { (done / total).clamp(0.0, 1.0) } else { 0.0 };
        let elapsed = self.started.elapsed().as_secs_f64();
        // The first moments say little about the rest.
        let left = (share > 0.005 && elapsed > 2.0).then(|| elapsed * (1.0 - share) / share);
        self.show(share, left, what);
    }

    /// `done` seconds of work are done, about `left` are left; `what` is being done now.
    pub fn update_seconds(&mut self, done: f64, left: f64, what: &str) {
        if self.is_due() {
            let total = done + left;
            self.show(if total > 0.0 { done / total } else { 0.0 }, Some(left), what);
        }
    }

    fn is_due(&mut self) -> bool {
        let interval = if self.bar.is_some() { DRAW_INTERVAL } else { LINE_INTERVAL };
        let due = self.shown.elapsed() >= interval;
        if due {
            self.shown = Instant::now();
        }
        due
    }

    fn show(&mut self, share: f64, left: Option<f64>, what: &str) {
        let left = left.map(|s| format!("{} left", format::seconds(s))).unwrap_or_default();
        let message = [what, &left].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(", ");
        match &self.bar {
            Some(bar) => {
                bar.set_position((share * STEPS) as u64);
                bar.set_message(message);
            }
            None => self.console.status(&format!("{}: {:.0}%  {message}", self.title, share * 100.0)),
        }
    }

    /// Prints a warning above the bar.
    pub fn warn(&self, message: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.console.warn(message)),
            None => self.console.warn(message),
        }
    }

    /// Prints a note above the bar.
    pub fn note(&self, message: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.console.note(message)),
            None => self.console.note(message),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
