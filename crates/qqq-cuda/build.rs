//! Embeds an archive of compiled kernels when the feature `prebuilt-kernels` asks for it.

#[cfg(feature = "prebuilt-kernels")]
#[allow(dead_code, missing_docs)]
#[path = "src/jit/arch.rs"]
mod arch;
#[cfg(feature = "prebuilt-kernels")]
#[allow(dead_code, missing_docs)]
#[path = "src/jit/archive.rs"]
mod archive;
#[cfg(feature = "prebuilt-kernels")]
#[allow(dead_code, missing_docs)]
#[path = "src/jit/source.rs"]
mod source;

#[cfg(feature = "prebuilt-kernels")]
use {arch::Arch, source::Source};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "prebuilt-kernels")]
    if let Err(reason) = embed() {
        println!("cargo::error=prebuilt-kernels: {reason}");
    }
}

/// Copies the archive that `QQQ_PREBUILT_KERNELS` names to where `compiler.rs` includes it.
#[cfg(feature = "prebuilt-kernels")]
fn embed() -> Result<(), String> {
    use std::path::Path;

    const VARIABLE: &str = "QQQ_PREBUILT_KERNELS";
    const MAKE: &str = "`qqq kernels build` of this version makes one";
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let path = std::env::var(VARIABLE).map_err(|_| {
        format!("the environment variable {VARIABLE} must name an archive of kernels; {MAKE}")
    })?;
    if !Path::new(&path).is_absolute() {
        return Err(format!("{VARIABLE} must be an absolute path, not {path:?}"));
    }
    println!("cargo::rerun-if-changed={path}");
    let archive = archive::Archive::open(Path::new(&path)).map_err(|e| format!("{VARIABLE}: {e}; {MAKE}"))?;
    let mut current = 0;
    for kernel in archive.index().map_err(|e| format!("{VARIABLE}: {e}"))? {
        let cubin = archive.get(&kernel.key, kernel.arch).map_err(|e| format!("{VARIABLE}: {e}"))?;
        current += usize::from(kernel.is_current() && cubin.is_some());
    }
    if current == 0 {
        return Err(format!("{VARIABLE}: {path} holds none of this version's kernels; {MAKE}"));
    }
    let out = std::env::var("OUT_DIR").map_err(|e| e.to_string())?;
    std::fs::copy(&path, Path::new(&out).join("kernels.zip")).map_err(|e| format!("copying {path}: {e}"))?;
    Ok(())
}
