//! What a user sees while a model is loaded and while it reads a prompt, and what is said of it once it is there.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use qqq_backend::Backend;
use qqq_model::Decoder;

use crate::{console::Console, device::Place, format, progress::Progress};

/// Seconds that something must have lasted, and that must be left of it, to be shown: what is over in a second is not.
const SHORT: f64 = 0.5;

/// Progress that appears where the wait is long enough.
struct Wait {
    console: Console,
    title: &'static str,
    started: Instant,
    /// With what was done when it appeared: the time left is reckoned from there.
    shown: Option<(Progress, f64)>,
}

impl Wait {
    fn new(console: &Console, title: &'static str) -> Self {
        Self { console: console.clone(), title, started: Instant::now(), shown: None }
    }

    fn update(&mut self, done: f64, total: f64, what: &str) {
        if self.shown.is_none() && is_long(self.started.elapsed().as_secs_f64(), done, total) {
            self.shown = Some((Progress::new(&self.console, self.title), done));
        }
        if let Some((progress, before)) = &mut self.shown {
            progress.update(done - *before, total - *before, what);
        }
    }
}

/// Whether something takes long enough to be shown: it has lasted for a while, and will for another.
fn is_long(elapsed: f64, done: f64, total: f64) -> bool {
    let left = elapsed * (total - done) / done.max(1.0);
    elapsed > SHORT && left > SHORT
}

/// The loading of one model.
pub struct Loading(Wait);

impl Loading {
    /// Shows that a model is loading, where standard error is a terminal.
    pub fn new(console: &Console) -> Self {
        Self(Wait::new(console, "loading"))
    }

    /// `done` bytes of `total` are read; `what` is being loaded.
    pub fn update(&mut self, done: u64, total: u64, what: &str) {
        self.0.update(done as f64, total as f64, what);
    }

    /// Ends: a line says what runs the model, and with `-v` another one for every kind of its layers. From now on the wait
    /// for the first token behind a long prompt is shown as well.
    pub fn finish<P: Place>(self, what: &str, place: &P, decoder: &mut Decoder<P::Backend>) {
        let Wait { console, started, shown, .. } = self.0;
        drop(shown);
        console.status(&format!(
            "loaded {what} in {}: {}",
            format::seconds(started.elapsed().as_secs_f64()),
            place.describe(decoder),
        ));
        watch_prefill(console, decoder);
    }
}

/// Shows how far prompts are.
fn watch_prefill<B: Backend>(console: Console, decoder: &mut Decoder<B>) {
    let current: Mutex<Option<Wait>> = Mutex::new(None);
    decoder.watch_prefill(Box::new(move |done, total| {
        // A bar that was being drawn when another thread panicked can be drawn again.
        let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
        if done >= total {
            // Dropped, a bar goes away, before the answer begins.
            *current = None;
            return;
        }
        let wait = current.get_or_insert_with(|| Wait::new(&console, "reading the prompt"));
        wait.update(done, total, &format!("{total:.0} tokens"));
    }));
}

#[cfg(test)]
mod tests {
    use super::is_long;

    #[test]
    fn short_waits_show_nothing() {
        assert!(!is_long(0.4, 10.0, 1000.0), "nothing is known yet");
        assert!(is_long(0.6, 0.0, 1000.0) && is_long(0.6, 10.0, 1000.0) && is_long(5.0, 900.0, 1000.0));
        assert!(!is_long(0.6, 600.0, 1000.0), "0.4 s are left");
        assert!(!is_long(60.0, 1000.0, 1000.0));
    }
}
