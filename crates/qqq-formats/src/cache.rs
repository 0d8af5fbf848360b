//! Where this user's files lie that can be obtained again.

use std::ffi::OsString;
use std::path::PathBuf;

/// The model of `qqq demo`, which the tests use too.
const DEMO_MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// The folder: `QQQ_CACHE`, else `qqq` in the user's folder for caches (`XDG_CACHE_HOME`, else `.cache` in `HOME`; what is
/// usual on other systems). An empty variable counts as none. `None` where the user has no such folder.
pub fn folder() -> Option<PathBuf> {
    folder_by(std::env::var_os("QQQ_CACHE"), dirs::cache_dir())
}

/// Where `qqq demo --fetch-only` puts its model, whether it is there or not.
pub fn demo_model() -> Option<PathBuf> {
    Some(folder()?.join("models").join(DEMO_MODEL))
}

fn folder_by(asked: Option<OsString>, of_user: Option<PathBuf>) -> Option<PathBuf> {
    match asked {
        Some(folder) if !folder.is_empty() => Some(folder.into()),
        _ => of_user.map(|folder| folder.join("qqq")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_comes_before_the_users_folder() {
        let user = || Some(PathBuf::from("/home/u/.cache"));
        assert_eq!(folder_by(Some("/data/q".into()), user()), Some("/data/q".into()));
        assert_eq!(folder_by(Some("/data/q".into()), None), Some("/data/q".into()));
        for none in [None, Some(OsString::new())] {
            assert_eq!(folder_by(none.clone(), user()), Some("/home/u/.cache/qqq".into()));
            assert_eq!(folder_by(none, None), None);
        }
    }
}
