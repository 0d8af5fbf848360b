//! Writing files, and telling them apart.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::Context;
use qqq_formats::writer::Reservation;
use sha2::{Digest, Sha256};

use crate::{
    console::Console,
    errors::{bad_input, bad_input_hint},
    interrupt::Temporary,
};

/// SHA-256 of a file, in hexadecimal.
pub fn sha256(path: &Path) -> anyhow::Result<String> {
    let context = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(context)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).with_context(context)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// Writes a file that appears under its name only when it is complete, replacing one that is there.
pub fn write(path: &Path, content: impl FnOnce(&mut File) -> io::Result<()>) -> anyhow::Result<()> {
    let context = || format!("cannot write {}", path.display());
    let mut file = staged(path).with_context(context)?;
    content(file.as_file_mut()).and_then(|()| file.as_file().sync_all()).with_context(context)?;
    file.persist(path).with_context(context)?;
    Ok(())
}

/// As [`write()`], of a file that must not be there yet.
pub fn write_new(path: &Path, content: impl FnOnce(&mut File) -> io::Result<()>) -> anyhow::Result<()> {
    let context = || format!("cannot write {}", path.display());
    let mut file = staged(path).with_context(context)?;
    content(file.as_file_mut()).and_then(|()| file.as_file().sync_all()).with_context(context)?;
    file.persist_noclobber(path).with_context(context)?;
    Ok(())
}

/// A file beside the one that it will replace.
fn staged(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".qqq-");
    // As other files: the user's mask decides who may read it.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(parent(path))
}

/// Refuses to write where something is read.
pub fn check_no_input<'a>(
    path: &Path,
    option: &str,
    mut inputs: impl Iterator<Item = &'a Path>,
) -> anyhow::Result<()> {
    let Ok(own) = path.canonicalize() else { return Ok(()) };
    match inputs.find(|input| input.canonicalize().is_ok_and(|input| input == own)) {
        Some(input) => Err(bad_input_hint(
            format!("{option} {} would take the place of {}, which is read", path.display(), input.display()),
            "give another name",
        )),
        None => Ok(()),
    }
}

/// As [`check_writable`], for a figure: its name ends in .svg, so that nothing else is replaced by mistake.
pub fn check_figure(path: &Path, option: &str) -> anyhow::Result<()> {
    check_writable(path, option)?;
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("svg")) {
        return Ok(());
    }
    Err(bad_input_hint(
        format!("{option} {}: figures are SVG, and the name does not end in .svg", path.display()),
        "name it so",
    ))
}

/// Refuses a path that could not be written to, before work is spent on what goes there.
pub fn check_writable(path: &Path, option: &str) -> anyhow::Result<()> {
    let refuse = |reason: String| Err(bad_input(format!("{option} {}: {reason}", path.display())));
    let ends_as_folder = path.as_os_str().as_encoded_bytes().ends_with(b"/");
    if path.is_dir() || path.file_name().is_none() || ends_as_folder {
        return refuse("a folder, not a file".into());
    }
    // A complete file takes its place, which a device or a pipe would not survive.
    if path.exists() && !path.is_file() {
        return refuse("neither a file nor a new name".into());
    }
    let folder = parent(path);
    match std::fs::metadata(&folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return refuse("its folder does not exist".into()),
        Ok(m) if !m.is_dir() => return refuse(format!("{} is not a folder", folder.display())),
        _ => {}
    }
    // It goes away at once; that it could be made is what counts.
    match staged(path) {
        Ok(_) => Ok(()),
        Err(e) => refuse(format!("its folder cannot be written to: {}", cause(&e))),
    }
}

/// An error without the path that was tried.
fn cause(e: &io::Error) -> io::Error {
    e.raw_os_error().map_or_else(|| e.kind().into(), io::Error::from_raw_os_error)
}

/// A directory or a file that only this process may make.
pub struct Reserved {
    reservation: Reservation,
    _lock: Option<Temporary>,
}

impl Reserved {
    /// Reserves `path`, and says what killed runs to it have left.
    ///
    /// # Errors
    /// It exists, another process is making it, or nothing can be made there.
    pub fn new(path: &Path, console: &Console) -> anyhow::Result<Self> {
        let reserved = Self::take(path, console)?;
        for stopped in reserved.reservation.stopped() {
            console.note(&format!(
                "{} has {}: this run starts anew and removes it (qqq quantize --resume goes on with it)",
                stopped.display(),
                blocks_of(stopped)
            ));
        }
        Ok(reserved)
    }

    /// As [`new`](Self::new), of a command that is not `quantize`: what a stopped run of that has finished is not its to
    /// remove.
    ///
    /// # Errors
    /// Also where there is such a run.
    pub fn unless_stopped(path: &Path, console: &Console) -> anyhow::Result<Self> {
        let reserved = Self::take(path, console)?;
        match reserved.reservation.stopped() {
            [] => Ok(reserved),
            [stopped, ..] => Err(bad_input_hint(
                format!("{}: {} has {}", path.display(), stopped.display(), blocks_of(stopped)),
                "go on with it (qqq quantize --resume), remove that directory, or choose another name",
            )),
        }
    }

    /// As [`new`](Self::new), to go on with what a run has left that was stopped.
    pub fn to_go_on(path: &Path, console: &Console) -> anyhow::Result<Self> {
        let reserved = Self::take(path, console)?;
        if reserved.reservation.stopped().is_empty() {
            console.note(&format!(
                "--resume: no run to {} has left finished blocks; this one starts at the first",
                path.display()
            ));
        }
        Ok(reserved)
    }

    /// Says what is kept for a run that goes on, if there is something.
    pub fn tell_kept(&self, console: &Console) {
        if let Some(kept) = self.reservation.left_behind() {
            console.note(&format!(
                "{} has {}: the same command with --resume goes on there, without it starts anew and removes it",
                kept.display(),
                blocks_of(&kept)
            ));
        }
    }

    fn take(path: &Path, console: &Console) -> anyhow::Result<Self> {
        refuse_existing(path)?;
        let reservation = Reservation::take(path)?;
        for removed in reservation.removed() {
            console.note(&format!("removed {}, left by a run that was killed", removed.display()));
        }
        for kept in reservation.kept() {
            console.warn(&format!(
                "{} may be what a killed run has left; remove it if no other run is writing it",
                kept.display()
            ));
        }
        let lock = reservation.lock_path().map(Temporary::new);
        Ok(Self { reservation, _lock: lock })
    }

    /// What will be made.
    pub fn path(&self) -> &Path {
        self.reservation.path()
    }

    /// For who makes it.
    pub fn reservation(&self) -> &Reservation {
        &self.reservation
    }
}

/// What a stopped run has finished, in words.
fn blocks_of(directory: &Path) -> String {
    match qqq_quant::resume::finished_blocks(directory) {
        Some((done, all)) => format!("{done} of {all} blocks that a stopped run has finished"),
        None => "what a stopped run has finished".into(),
    }
}

/// Refuses a path that something has already.
pub fn refuse_existing(path: &Path) -> anyhow::Result<()> {
    if std::fs::symlink_metadata(path).is_ok() {
        return Err(bad_input_hint(
            format!("{} exists already", path.display()),
            "name another output, or remove that one first",
        ));
    }
    Ok(())
}

fn parent(path: &Path) -> PathBuf {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn files_appear_when_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let failed = write(&path, |f| f.write_all(b"half").and_then(|()| Err(io::Error::other("full"))));
        assert!(failed.unwrap_err().to_string().contains("file"));
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
        for text in ["first", "2nd"] {
            write(&path, |f| f.write_all(text.as_bytes())).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert!(write_new(&path, |f| f.write_all(b"3rd")).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "2nd");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
        write_new(&folder.path().join("new"), |f| f.write_all(b"new")).unwrap();
    }

    #[test]
    fn places_that_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let check = |p: &Path| check_writable(p, "--plot").map_err(|e| e.to_string());
        assert!(check(folder.path()).unwrap_err().contains("a folder"));
        assert!(check(&folder.path().join("none/file")).unwrap_err().contains("does not exist"));
        assert!(check(&folder.path().join("file/")).unwrap_err().contains("a folder"));
        check(&folder.path().join("file")).unwrap();
        check(Path::new("file")).unwrap();
        std::fs::write(folder.path().join("file"), "old").unwrap();
        check(&folder.path().join("file")).unwrap();
        assert!(check(&folder.path().join("file/below")).unwrap_err().contains("is not a folder"));
        assert_eq!(folder.path().read_dir().unwrap().count(), 1, "a check leaves nothing");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn devices_and_folders_that_take_no_files() {
        let check = |p: &str| check_writable(Path::new(p), "--plot").unwrap_err().to_string();
        assert!(check("/dev/null").contains("neither a file"));
        // Not even root makes files there.
        assert!(check("/proc/figure.svg").contains("cannot be written to"));
    }
}
