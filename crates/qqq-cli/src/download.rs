//! Progress of downloads from the hub. The model library calls a plain function, so what it needs is kept here.

use std::sync::{Mutex, OnceLock, PoisonError};

use qqq_model::hub::Transfer;

use crate::{console::Console, format, progress::Progress};

static CONSOLE: OnceLock<Console> = OnceLock::new();
/// The file that is being downloaded, and its bar.
static CURRENT: Mutex<Option<(String, Progress)>> = Mutex::new(None);

/// Shows downloads on this console from now on.
pub fn show_on(console: &Console) {
    // There is one console in a process.
    let _ = CONSOLE.set(console.clone());
}

/// The console of this process; `None` before it was told.
pub fn console() -> Option<&'static Console> {
    CONSOLE.get()
}

/// Shows how far a download is; for [`qqq_model::HubOptions`].
pub fn show(transfer: &Transfer<'_>) {
    let Some(console) = CONSOLE.get() else { return };
    // A bar that was being drawn when another thread panicked can be drawn again.
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    if current.as_ref().is_none_or(|(file, _)| file != transfer.file) {
        *current = Some((transfer.file.to_owned(), Progress::new(console, "downloading")));
    }
    if let Some((file, progress)) = current.as_mut() {
        let what = match transfer.size {
            Some(size) => format!("{file} ({})", format::bytes(size)),
            None => format!("{file} ({} so far)", format::bytes(transfer.done)),
        };
        progress.update(transfer.done as f64, transfer.size.unwrap_or(0) as f64, &what);
    }
    if transfer.size.is_some_and(|size| transfer.done >= size) {
        // Dropped, a bar goes away.
        *current = None;
    }
}
