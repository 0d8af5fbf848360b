//! What the host does beside a device that computes: it reads the next layer ahead, and writes the last one behind.

use std::{
    panic::resume_unwind,
    thread::{Scope, ScopedJoinHandle},
    time::Instant,
};

use qqq_formats::{Checkpoint, LinearWeight};
use qqq_model::Site;

use crate::{
    Result,
    float_linear::{StoredLayer, StoredLayers, read_layer, read_layers},
    output::OutputCheckpoint,
};

/// What is read before it is needed: a layer, or those of a block.
pub(crate) enum Ahead<'scope, T = StoredLayer> {
    /// Now, by a thread.
    Reading(ScopedJoinHandle<'scope, Result<T>>),
    /// In another scope, and what came of it.
    Read(Result<T>),
}

impl<'scope> Ahead<'scope> {
    /// Begins to read a layer of block `index`.
    pub fn read<'env>(
        scope: &'scope Scope<'scope, 'env>,
        checkpoint: &'env Checkpoint,
        index: usize,
        site: Site,
    ) -> Self {
        Self::Reading(scope.spawn(move || read_layer(checkpoint, index, site)))
    }
}

impl<'scope> Ahead<'scope, StoredLayers> {
    /// Begins to read the layers of block `index`.
    pub fn read_block<'env>(
        scope: &'scope Scope<'scope, 'env>,
        checkpoint: &'env Checkpoint,
        index: usize,
    ) -> Self {
        Self::Reading(scope.spawn(move || read_layers(checkpoint, index)))
    }
}

impl<T> Ahead<'_, T> {
    /// Waits for it.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn wait(self) -> Result<T> {
        match self {
            Self::Reading(handle) => handle.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Self::Read(result) => result,
        }
    }
}

/// A writer that may have a layer in work.
pub(crate) struct Behind<'scope, 'env, 'w> {
    scope: &'scope Scope<'scope, 'env>,
    state: State<'scope, 'env, 'w>,
    /// Seconds that writing took.
    pub seconds: f64,
}

type Writer<'env, 'w> = &'env mut OutputCheckpoint<'w>;

enum State<'scope, 'env, 'w> {
    Idle(Writer<'env, 'w>),
    Writing(ScopedJoinHandle<'scope, (Writer<'env, 'w>, f64, Result<()>)>),
    /// For the moment in which it changes.
    Nothing,
}

impl<'scope, 'env, 'w: 'env> Behind<'scope, 'env, 'w> {
    /// With nothing in work.
    pub fn new(scope: &'scope Scope<'scope, 'env>, writer: Writer<'env, 'w>) -> Self {
        Self { scope, state: State::Idle(writer), seconds: 0.0 }
    }

    /// Writes a layer once the one before is written, and returns before it is.
    ///
    /// # Errors
    /// Those of writing the layer before.
    pub fn write(
        &mut self,
        index: usize,
        site: Site,
        weight: LinearWeight,
        bias: Option<Vec<f32>>,
    ) -> Result<()> {
        self.wait()?;
        if let State::Idle(writer) = std::mem::replace(&mut self.state, State::Nothing) {
            self.state = State::Writing(self.scope.spawn(move || {
                let clock = Instant::now();
                let result = writer.add_linear(index, site, &weight, bias.as_deref());
                (writer, clock.elapsed().as_secs_f64(), result)
            }));
        }
        Ok(())
    }

    /// Writes a layer.
    ///
    /// # Errors
    /// Those of writing it, and the layer before.
    pub fn write_now(
        &mut self,
        index: usize,
        site: Site,
        weight: &LinearWeight,
        bias: Option<&[f32]>,
    ) -> Result<()> {
        self.wait()?;
        let clock = Instant::now();
        if let State::Idle(writer) = &mut self.state {
            writer.add_linear(index, site, weight, bias)?;
        }
        self.seconds += clock.elapsed().as_secs_f64();
        Ok(())
    }

    /// Waits for the layer in work.
    ///
    /// # Errors
    /// Those of writing it.
    pub fn wait(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.state, State::Nothing) {
            State::Writing(handle) => {
                let (writer, seconds, result) = handle.join().unwrap_or_else(|panic| resume_unwind(panic));
                self.state = State::Idle(writer);
                self.seconds += seconds;
                result
            }
            idle => {
                self.state = idle;
                Ok(())
            }
        }
    }
}
