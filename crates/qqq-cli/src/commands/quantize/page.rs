//! The page of a run, `report.html`, and its figures as files.

use std::{
    cell::RefCell,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use qqq_backend::pool;
use qqq_quant::Report;
use qqq_report::{Circumstances, PAGE_FILE, figures, page};

use crate::{console::Console, errors::bad_input_hint, files};

/// Makes the page while the output is being written; what is wrong with that costs no finished run.
pub struct Pages {
    circumstances: Circumstances,
    failed: RefCell<Option<String>>,
}

impl Pages {
    /// Of a run on a device.
    pub fn new(device: &str) -> Self {
        Self { circumstances: circumstances(device), failed: RefCell::new(None) }
    }

    /// Files that stand beside a report.
    pub fn files(&self, report: &Report) -> Vec<(String, String)> {
        match page(report, &self.circumstances) {
            Ok(page) => vec![(PAGE_FILE.to_owned(), page)],
            Err(e) => {
                *self.failed.borrow_mut() = Some(e.to_string());
                Vec::new()
            }
        }
    }

    /// Tells what went wrong.
    pub fn tell(&self, console: &Console) {
        if let Some(reason) = self.failed.take() {
            console.warn(&format!("there is no {PAGE_FILE}: {reason}"));
        }
    }
}

/// What this process was asked for, and where it runs.
pub fn circumstances(device: &str) -> Circumstances {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let quoted =
        shlex::try_join(arguments.iter().map(String::as_str)).unwrap_or_else(|_| arguments.join(" "));
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let environment =
        [("device", device.to_owned()), ("system", format!("{os}, {arch}, {} threads", pool::num_threads()))];
    let environment = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
    Circumstances { command: format!("qqq {quoted}"), environment }
}

/// That figures can be written into a folder: before the run, so that nothing is done for nothing.
///
/// # Errors
/// It cannot be made, or is in the output.
pub fn plots_folder(path: &Path, output: &Path) -> anyhow::Result<PathBuf> {
    let hint = format!("give another folder; {} always has the figures in {PAGE_FILE}", output.display());
    super::refuse_inside(output, "--plots", path, hint)?;
    fs::create_dir_all(path).map_err(|e| {
        bad_input_hint(
            format!("--plots {}: {e}", path.display()),
            "give a folder that can be made or is there",
        )
    })?;
    Ok(path.to_owned())
}

/// Writes the figures of a report as SVG files into a folder.
///
/// # Errors
/// A figure that cannot be drawn, files that cannot be written.
pub fn write_plots(folder: &Path, report: &Report) -> anyhow::Result<()> {
    for figure in figures(report)? {
        let path = folder.join(format!("{}.svg", figure.name));
        files::write(&path, |file| file.write_all(figure.svg.as_bytes()))
            .with_context(|| format!("--plots {}", folder.display()))?;
    }
    Ok(())
}
