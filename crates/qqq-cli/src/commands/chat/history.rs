//! Where the messages of earlier chats are kept.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

/// Names the file.
const VARIABLE: &str = "QQQ_HISTORY";
/// Messages that are kept.
pub const MESSAGES: usize = 1000;

/// The file: what `QQQ_HISTORY` says, else `qqq/chat-history` in the user's folder for state (`XDG_STATE_HOME`, else
/// `.local/state` in `HOME`; what is usual on other systems). `None` where there is no such folder.
pub fn file() -> Option<PathBuf> {
    file_by(std::env::var_os(VARIABLE), dirs::state_dir().or_else(dirs::data_local_dir))
}

fn file_by(asked: Option<OsString>, of_user: Option<PathBuf>) -> Option<PathBuf> {
    match asked {
        Some(file) if !file.is_empty() => Some(file.into()),
        _ => of_user.map(|folder| folder.join("qqq").join("chat-history")),
    }
}

/// Makes the file, and lets nobody but the user read it. `false`: it is not to be kept in a file at all (`/dev/null`).
pub fn prepare(path: &Path) -> io::Result<bool> {
    if fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
        return Ok(false);
    }
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(folder)?;
    }
    let mut options = fs::OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let _file = options.open(path)?;
    // One that was there before, or a mask that says otherwise.
    #[cfg(unix)]
    _file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_comes_before_the_users_folder() {
        let user = || Some(PathBuf::from("/home/u/.local/state"));
        assert_eq!(file_by(Some("/data/h".into()), user()), Some("/data/h".into()));
        for none in [None, Some(OsString::new())] {
            assert_eq!(file_by(none.clone(), user()), Some("/home/u/.local/state/qqq/chat-history".into()));
            assert_eq!(file_by(none, None), None);
        }
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_reads_it() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a").join("history");
        assert!(prepare(&path).unwrap());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        // One that others could read.
        fs::write(&path, "hello\n").unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(prepare(&path).unwrap());
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_to_string(&path).unwrap(), "hello\n");
        assert!(!prepare(Path::new("/dev/null")).unwrap());
        assert!(prepare(folder.path()).is_err());
    }
}
