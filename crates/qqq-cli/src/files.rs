//! Writing files.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use anyhow::Context;

use crate::errors::bad_input;

/// Writes a file that appears under its name only when it is complete, replacing one that is there.
pub fn write(path: &Path, content: impl FnOnce(&mut File) -> io::Result<()>) -> anyhow::Result<()> {
    let context = || format!("cannot write {}", path.display());
    let mut builder = tempfile::Builder::new();
    builder.prefix(".qqq-");
    // As other files: the user's mask decides who may read it.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(parent(path)).with_context(context)?;
    content(file.as_file_mut()).and_then(|()| file.as_file().sync_all()).with_context(context)?;
    file.persist(path).with_context(context)?;
    Ok(())
}

/// Refuses a path that could not be written to, before work is spent on what goes there.
pub fn check_writable(path: &Path, option: &str) -> anyhow::Result<()> {
    if path.is_dir() || path.file_name().is_none() {
        return Err(bad_input(format!("{option} {}: a folder, not a file", path.display())));
    }
    if !parent(path).is_dir() {
        return Err(bad_input(format!("{option} {}: its folder does not exist", path.display())));
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
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn places_that_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let check = |p: &Path| check_writable(p, "--plot").map_err(|e| e.to_string());
        assert!(check(folder.path()).unwrap_err().contains("a folder"));
        assert!(check(&folder.path().join("none/file")).unwrap_err().contains("does not exist"));
        check(&folder.path().join("file")).unwrap();
        check(Path::new("file")).unwrap();
    }
}
