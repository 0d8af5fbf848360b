//! What a test may need beyond the repository.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// Why a test cannot run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// A file or a program that can be had: to lack it is a failure in CI.
    Obtainable(String),
    /// A part of the machine, which it has or has not.
    Machine(String),
    /// Something that was asked for by name and is not there: a failure everywhere.
    Asked(String),
}

impl Missing {
    /// A program or a library that the environment may name by a variable.
    pub fn tool(variable: &str, reason: impl ToString) -> Self {
        let asked = std::env::var_os(variable).is_some();
        (if asked { Self::Asked } else { Self::Obtainable })(reason.to_string())
    }

    /// What it is, and how to get it.
    pub fn reason(&self) -> &str {
        match self {
            Self::Obtainable(reason) | Self::Machine(reason) | Self::Asked(reason) => reason,
        }
    }

    /// Whether a test that needs it fails, rather than being ignored.
    pub fn is_failure(&self, in_ci: bool) -> bool {
        match self {
            Self::Obtainable(_) => in_ci,
            Self::Machine(_) => false,
            Self::Asked(_) => true,
        }
    }
}

/// Whether this is a run of the gate, which must have everything that can be had: `CI=true`.
pub fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|v| v == "true")
}

/// The test model, SmolLM2-135M-Instruct.Q4_1.gguf: the file that `QQQ_TEST_SMOLLM2` names, else the one that `qqq demo
/// --fetch-only` obtains.
///
/// # Errors
/// There is no such file.
pub fn smollm2() -> Result<PathBuf, Missing> {
    if let Some(path) = std::env::var_os("QQQ_TEST_SMOLLM2") {
        let path = PathBuf::from(path);
        let missing = || Missing::Asked(format!("QQQ_TEST_SMOLLM2 is {}: no such file", path.display()));
        return if path.is_file() { Ok(path) } else { Err(missing()) };
    }
    let lacks = |place: String| Missing::Obtainable(format!("no {place}: qqq demo --fetch-only obtains it"));
    match qqq_formats::cache::demo_model() {
        Some(path) if path.is_file() => Ok(path),
        Some(path) => Err(lacks(path.display().to_string())),
        None => Err(lacks(String::from("cache directory of this user"))),
    }
}

/// Gemma 3 270M, gemma-3-270m-q4_k_m.gguf: the file that `QQQ_TEST_GEMMA3` names, else the one that
/// `scripts/fetch-gemma3.sh` obtains.
///
/// # Errors
/// There is no such file.
pub fn gemma3() -> Result<PathBuf, Missing> {
    if let Some(path) = std::env::var_os("QQQ_TEST_GEMMA3") {
        let path = PathBuf::from(path);
        let missing = || Missing::Asked(format!("QQQ_TEST_GEMMA3 is {}: no such file", path.display()));
        return if path.is_file() { Ok(path) } else { Err(missing()) };
    }
    let path = qqq_formats::cache::folder().map(|folder| folder.join("models/gemma-3-270m-q4_k_m.gguf"));
    let place =
        path.as_ref().map_or("cache directory of this user".into(), |path| path.display().to_string());
    let missing = || Missing::Obtainable(format!("no {place}: scripts/fetch-gemma3.sh obtains it"));
    path.filter(|path| path.is_file()).ok_or_else(missing)
}

/// The host's C compiler: `CC`, else `cc`.
///
/// # Errors
/// It cannot be run.
pub fn cc() -> Result<OsString, Missing> {
    compiler("CC", "cc", "gcc")
}

/// The host's C++ compiler: `CXX`, else `c++`.
///
/// # Errors
/// It cannot be run.
pub fn cxx() -> Result<OsString, Missing> {
    compiler("CXX", "c++", "g++")
}

fn compiler(variable: &str, usual: &str, package: &str) -> Result<OsString, Missing> {
    let name = std::env::var_os(variable).unwrap_or_else(|| OsString::from(usual));
    let missing = |error| {
        let reason = format!("no compiler {name:?} ({error}): install {package}, or set {variable}");
        Missing::tool(variable, reason)
    };
    Command::new(&name).arg("--version").output().map_err(missing)?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_had_must_be_there_in_ci() {
        let [obtainable, machine, asked] =
            [Missing::Obtainable, Missing::Machine, Missing::Asked].map(|m| m(String::from("x")));
        assert_eq!([false, true].map(|ci| obtainable.is_failure(ci)), [false, true]);
        assert_eq!([false, true].map(|ci| machine.is_failure(ci)), [false, false]);
        assert_eq!([false, true].map(|ci| asked.is_failure(ci)), [true, true]);
    }
}
