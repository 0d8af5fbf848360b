//! Ctrl-C.
//!
//! By default the process ends at once. While a [`Guard`] lives, the first Ctrl-C only sets a flag, so that the work in
//! hand can stop cleanly; the second one ends the process all the same. Where a line editor has the terminal
//! ([`keys_are_read`]), Ctrl-C is a key outside of guards: one that still comes as a signal was pressed for work that has
//! just ended, and asks for nothing more.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use crate::{
    console::Console,
    errors::{Failure, INTERRUPTED, Interrupted},
};

static GUARDS: AtomicUsize = AtomicUsize::new(0);
static PRESSED: AtomicBool = AtomicBool::new(false);
/// Whether Ctrl-C is a key outside of guards.
static KEYS: AtomicBool = AtomicBool::new(false);
/// What is said at the first Ctrl-C, where what it asks for takes a while.
static NOTICE: Mutex<Option<&'static str>> = Mutex::new(None);
/// Files that must not outlive the process.
static TEMPORARY: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Undoes what must not outlive the process.
static BEFORE_EXIT: OnceLock<fn()> = OnceLock::new();

/// Handles SIGINT, SIGTERM and SIGHUP from now on. The console is told, for an object may be due even then.
#[cfg(unix)]
pub fn install(console: Console) -> anyhow::Result<()> {
    use signal_hook::{
        consts::{SIGHUP, SIGINT, SIGTERM},
        iterator::{SignalsInfo, exfiltrator::WithOrigin},
    };

    let mut signals = SignalsInfo::<WithOrigin>::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for origin in signals.forever() {
            // The terminal's signals come from no process.
            let is_key = origin.signal == SIGINT && origin.process.is_none_or(|process| process.pid == 0);
            interrupted(&console, is_key);
        }
    })?;
    Ok(())
}

/// Handles Ctrl-C from now on. The console is told, for an object may be due even then.
#[cfg(not(unix))]
pub fn install(console: Console) -> anyhow::Result<()> {
    ctrlc::set_handler(move || interrupted(&console, true))?;
    Ok(())
}

/// What a signal does. `is_key`: a key of the terminal has sent it.
fn interrupted(console: &Console, is_key: bool) {
    let is_guarded = GUARDS.load(SeqCst) > 0;
    if is_guarded && !PRESSED.swap(true, SeqCst) {
        if let Some(notice) = *NOTICE.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = writeln!(std::io::stderr(), "\n{notice}");
        }
        return;
    }
    if is_key && !is_guarded && KEYS.load(SeqCst) {
        return;
    }
    // Nothing is dropped when a process ends at once.
    for path in TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        let _ = std::fs::remove_file(path);
    }
    if let Some(undo) = BEFORE_EXIT.get() {
        undo();
    }
    // Behind the terminal's ^C, or what is left of a bar.
    let _ = writeln!(std::io::stderr());
    console.failure(&Failure::of(&Interrupted.into()));
    std::process::exit(i32::from(INTERRUPTED));
}

/// From now on the keys of the terminal are read one by one, Ctrl-C among them, but for what guards last.
pub fn keys_are_read() {
    KEYS.store(true, SeqCst);
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

    /// As [`new`](Self::new); the first Ctrl-C is answered by a line on standard error.
    pub fn telling(notice: &'static str) -> Self {
        let guard = Self::new();
        *NOTICE.lock().unwrap_or_else(PoisonError::into_inner) = Some(notice);
        guard
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
        if GUARDS.fetch_sub(1, SeqCst) == 1 {
            *NOTICE.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}
