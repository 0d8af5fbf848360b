//! How far a prompt is: whoever waits for the first token of an answer is told after every block.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use qqq_backend::Backend;

use crate::Decoder;

/// Told how much of a prompt is computed, and how much there is, in tokens.
pub type PrefillWatch = Box<dyn Fn(f64, f64) + Send + Sync>;

/// The prompt that is being computed, and who is told of it; nobody by default.
#[derive(Default)]
pub struct Prefill {
    watch: Option<PrefillWatch>,
    /// Tokens of it; 0 while there is none.
    total: AtomicUsize,
    /// Tokens whose passes are over.
    done: AtomicUsize,
}

impl Prefill {
    /// A pass of `tokens` is through `layer` of `layers` blocks.
    pub(crate) fn pass(&self, tokens: usize, layer: usize, layers: usize) {
        let total = self.total.load(Relaxed);
        let Some(watch) = self.watch.as_ref().filter(|_| total > 0) else { return };
        let mut done = self.done.load(Relaxed);
        if layer == layers {
            done += tokens;
            self.done.store(done, Relaxed);
            if done >= total {
                // What comes now is the answer.
                self.total.store(0, Relaxed);
            }
            return watch(done as f64, total as f64);
        }
        watch(done as f64 + tokens as f64 * layer as f64 / layers as f64, total as f64);
    }
}

impl<B: Backend> Decoder<B> {
    /// From now on `watch` is told how far the prompts are that [`Decoder::begin_prefill`] announces.
    pub fn watch_prefill(&mut self, watch: PrefillWatch) {
        self.prefill.watch = Some(watch);
    }

    /// The next passes are the `tokens` of prompts; an announcement before is forgotten.
    pub fn begin_prefill(&self, tokens: usize) {
        self.prefill.done.store(0, Relaxed);
        self.prefill.total.store(tokens, Relaxed);
    }

    /// No pass of the prompts that were announced is to come any more: they were given up. The watch is told that nothing is
    /// left.
    pub fn end_prefill(&self) {
        if self.prefill.total.swap(0, Relaxed) > 0
            && let Some(watch) = &self.prefill.watch
        {
            watch(0.0, 0.0);
        }
    }
}
