//! Ctrl-C.
//!
//! By default the process ends at once. While a [`Guard`] lives, the first Ctrl-C only sets a flag, so that the work in
//! hand can stop cleanly; the second one ends the process all the same.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use crate::errors::{INTERRUPTED, Interrupted};

static GUARDS: AtomicUsize = AtomicUsize::new(0);
static PRESSED: AtomicBool = AtomicBool::new(false);
/// Files that must not outlive the process.
static TEMPORARY: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Undoes what must not outlive the process.
static BEFORE_EXIT: OnceLock<fn()> = OnceLock::new();

/// Handles SIGINT, SIGTERM and SIGHUP from now on. `json`: an object is due on standard output even then.
pub fn install(json: bool) -> anyhow::Result<()> {
    ctrlc::set_handler(move || {
        if GUARDS.load(SeqCst) > 0 && !PRESSED.swap(true, SeqCst) {
            return;
        }
        // Nothing is dropped when a process ends at once.
        for path in TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = std::fs::remove_file(path);
        }
        if let Some(undo) = BEFORE_EXIT.get() {
            undo();
        }
        let _ = writeln!(std::io::stderr(), "\nerror: interrupted");
        if json {
            let failure = crate::errors::Failure::of(&Interrupted.into());
            let _ = writeln!(std::io::stdout(), "{}", failure.to_json());
        }
        std::process::exit(i32::from(INTERRUPTED));
    })?;
    Ok(())
}

/// Has a signal that ends the process at once call this first. There is one such call in a process.
pub fn before_exit(undo: fn()) {
    let _ = BEFORE_EXIT.set(undo);
}

/// While it lives, a Ctrl-C that ends the process at once removes this file.
pub struct Temporary(PathBuf);

impl Temporary {
    /// Of a file that its owner removes itself unless the process ends before.
    pub fn new(path: &Path) -> Self {
        TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner).push(path.to_owned());
        Self(path.to_owned())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner).retain(|p| *p != self.0);
    }
}

/// While it lives, Ctrl-C is a request.
pub struct Guard(());

impl Guard {
    /// Takes over; forgets earlier requests unless another guard lives.
    pub fn new() -> Self {
        if GUARDS.fetch_add(1, SeqCst) == 0 {
            PRESSED.store(false, SeqCst);
        }
        Self(())
    }

    /// Whether Ctrl-C was pressed.
    pub fn pressed(&self) -> bool {
        PRESSED.load(SeqCst)
    }

    /// An error if Ctrl-C was pressed.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.pressed() { Err(Interrupted.into()) } else { Ok(()) }
    }
}

/// Whether Ctrl-C was pressed while some guard lives: for work that does not know of it.
pub fn requested() -> bool {
    GUARDS.load(SeqCst) > 0 && PRESSED.load(SeqCst)
}

impl Drop for Guard {
    fn drop(&mut self) {
        GUARDS.fetch_sub(1, SeqCst);
    }
}
