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
use qqq_report::{Circumstances, Figure, PAGE_FILE, figures, page};

use crate::{console::Console, errors::bad_input_hint, files};

/// Makes the page while the output is being written; what is wrong with that costs no finished run.
pub struct Pages {
    circumstances: Circumstances,
    /// Of the report that a page was made of.
    drawn: RefCell<Result<Vec<Figure>, String>>,
}

impl Pages {
    /// Of a run on a device.
    pub fn new(device: &str, console: &Console) -> Self {
        Self { circumstances: circumstances(device, console), drawn: RefCell::new(Ok(Vec::new())) }
    }

    /// Files that stand beside a report.
    pub fn files(&self, report: &Report) -> Vec<(String, String)> {
        let drawn = figures(report).map_err(|e| e.to_string());
        let page = drawn.as_ref().map(|figures| page(report, figures, &self.circumstances));
        let files = page.map(|page| vec![(PAGE_FILE.to_owned(), page)]).unwrap_or_default();
        *self.drawn.borrow_mut() = drawn;
        files
    }

    /// Tells what went wrong.
    pub fn tell(&self, console: &Console) {
        if let Err(reason) = &*self.drawn.borrow() {
            console.warn(&format!("there is no {PAGE_FILE}: {reason}"));
        }
    }

    /// Writes the figures as SVG files into a folder.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn write_plots(&self, folder: &Path) -> anyhow::Result<()> {
        for figure in self.drawn.borrow().iter().flatten() {
            let path = folder.join(format!("{}.svg", figure.name));
            files::write(&path, |file| file.write_all(figure.svg.as_bytes()))
                .with_context(|| format!("--plots {}", folder.display()))?;
        }
        Ok(())
    }
}

/// What was asked for, and where it runs.
pub fn circumstances(device: &str, console: &Console) -> Circumstances {
    let command = console.recorded().map(|run| run.command()).unwrap_or_default();
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let environment =
        [("device", device.to_owned()), ("system", format!("{os}, {arch}, {} threads", pool::num_threads()))];
    let environment = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
    Circumstances { command, environment }
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
