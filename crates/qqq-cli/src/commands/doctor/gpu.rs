//! Driver, GPUs, and what compiles kernels for them.

use std::path::Path;

use qqq_cuda::{Archive, CudaError, Device, Nvrtc, driver, driver::Gpu, embedded};
use serde_json::json;

use super::Finding;
use crate::format;

/// The oldest CUDA whose driver is enough.
const OLDEST: (u32, u32) = (12, 0);

pub(super) fn look() -> Vec<Finding> {
    let version = driver::version();
    let mut findings = vec![of_driver(&version)];
    let mut has_gpu = false;
    if version.is_ok() {
        match driver::gpus() {
            Ok(gpus) if gpus.is_empty() => findings.push(Finding::lack(
                "GPU",
                "the driver finds none",
                "models run on the CPU",
                "an NVIDIA GPU, Ampere or newer; CUDA_VISIBLE_DEVICES must not hide it",
            )),
            Ok(gpus) => {
                has_gpu = true;
                findings.extend(gpus.iter().map(of_gpu));
            }
            Err(e) => findings.push(Finding::lack(
                "GPU",
                e.to_string(),
                "models run on the CPU",
                "`nvidia-smi` must work; in a container, hand the GPU on to it",
            )),
        }
    }
    findings.push(compiler(has_gpu));
    findings.extend(archive());
    findings
}

fn of_driver(version: &Result<(u32, u32), CudaError>) -> Finding {
    const WHAT: &str = "GPU driver";
    match version {
        Err(CudaError::NoDriver) => Finding::lack(
            WHAT,
            "none (libcuda.so cannot be loaded)",
            "models run on the CPU",
            "where there is an NVIDIA GPU, install its driver; in a container, hand the GPU on to it",
        ),
        Err(e) => Finding::lack(WHAT, e.to_string(), "models run on the CPU", "`nvidia-smi` must work"),
        Ok((major, minor)) => {
            let found = format!("for CUDA {major}.{minor}");
            let finding = if (*major, *minor) < OLDEST {
                Finding::lack(
                    WHAT,
                    found,
                    "GPU kernels may not load",
                    format!("install a driver for CUDA {}.{} or newer", OLDEST.0, OLDEST.1),
                )
            } else {
                Finding::ok(WHAT, found)
            };
            finding.with(json!({ "cuda": format!("{major}.{minor}") }))
        }
    }
}

fn of_gpu(gpu: &Gpu) -> Finding {
    const WHAT: &str = "GPU";
    let Gpu { number, name, capability: (major, minor), memory } = gpu;
    let of_all = format!("cuda:{number} {name}, compute capability {major}.{minor}");
    // Only an open GPU says how much is free.
    let opened = Device::new(*number).and_then(|device| Ok((device.memory()?.0, device.arch()?)));
    let (free, finding) = match opened {
        Ok((free, arch)) => {
            let found = format!(
                "{of_all} (kernels for {arch}), {} free of {}",
                format::bytes(free as u64),
                format::bytes(*memory as u64)
            );
            (Some(free), Finding::ok(WHAT, found))
        }
        Err(e) => {
            let mend = match e {
                CudaError::Device(_) => {
                    "a GPU of compute capability 8.0 or newer: Ampere, Ada, Hopper, Blackwell"
                }
                _ => "another program may hold it or all of its memory: see `nvidia-smi`",
            };
            (None, Finding::lack(WHAT, format!("{of_all}: {e}"), "it is not used", mend))
        }
    };
    finding.with(json!({
        "number": number, "name": name, "compute_capability": format!("{major}.{minor}"),
        "memory": { "total": memory, "free": free },
    }))
}

fn compiler(has_gpu: bool) -> Finding {
    const WHAT: &str = "NVRTC";
    let mend = format!(
        "pip install nvidia-cuda-nvrtc, version {}.{} or newer; or QQQ_NVRTC names the library; or QQQ_KERNELS names an \
         archive from `qqq kernels build`",
        Nvrtc::RECOMMENDED.0,
        Nvrtc::RECOMMENDED.1
    );
    match Nvrtc::find() {
        Ok(nvrtc) => {
            let (major, minor) = nvrtc.version();
            let found = format!("{major}.{minor}, {}", nvrtc.path().display());
            let finding = if nvrtc.version() < Nvrtc::RECOMMENDED {
                Finding::lack(WHAT, found, "kernels for Hopper GPUs are slower", mend)
            } else {
                Finding::ok(WHAT, found)
            };
            finding.with(json!({
                "version": format!("{major}.{minor}"), "path": nvrtc.path().display().to_string(),
            }))
        }
        // Named, and unusable: somebody wants it.
        Err(e) if std::env::var_os("QQQ_NVRTC").is_some_and(|v| !v.is_empty()) => {
            Finding::lack(WHAT, e.to_string(), "GPU kernels that are not compiled yet cannot be", mend)
        }
        Err(_) if !has_gpu => Finding::ok(WHAT, "none; nothing needs it without a GPU"),
        Err(_) => Finding::lack(
            WHAT,
            "none",
            "GPU kernels that are not compiled yet cannot be: models run on the CPU",
            mend,
        ),
    }
}

/// Kernels that were compiled ahead.
fn archive() -> Option<Finding> {
    const WHAT: &str = "compiled kernels";
    let named = std::env::var_os("QQQ_KERNELS").filter(|v| !v.is_empty());
    match (named, embedded()) {
        (Some(path), _) => Some(match Archive::open(Path::new(&path)) {
            Ok(archive) => Finding::ok(WHAT, archive.place()),
            Err(e) => Finding::lack(
                WHAT,
                e.to_string(),
                "GPU kernels cannot be looked up: whatever runs on a GPU stops",
                "unset QQQ_KERNELS, or make the archive anew: qqq kernels build",
            ),
        }),
        (None, Some(archive)) => Some(Finding::ok(WHAT, archive.place())),
        (None, None) => None,
    }
}
