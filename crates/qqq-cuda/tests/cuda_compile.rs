//! Every kernel that can be chosen compiles, for every architecture it is for, without spills and without the
//! compiler's remark that matrix instructions were serialized. Needs NVRTC, but no GPU. In CI each instance of the
//! products with one of its two types of output, for Ampere, Hopper and two of the other four architectures, which takes
//! minutes; a selection elsewhere; `QQQ_COMPILE=all` compiles all of it, `QQQ_COMPILE=attention` what has this in its name.

use std::process::ExitCode;

use qqq_backend::pool::parallel_for;
use qqq_cuda::jit::ArchivedKernel;
use qqq_cuda::prebuild::{self, Selection};
use qqq_cuda::{Arch, Nvrtc, Resources};
use qqq_testing::{Missing, Suite, in_ci, tests};

fn main() -> ExitCode {
    let nvrtc = || Nvrtc::find().map_err(|e| Missing::tool("QQQ_NVRTC", e));
    Suite::new().with(nvrtc, tests![every_kernel_compiles_cleanly]).run()
}

/// Whether this is the type of output that stands for both: the type changes how results are rounded, after the main
/// loop, where a kernel has registers to spare. Either type comes up for every kind of product.
fn stands_for_both(name: &str) -> bool {
    let (instance, sum) = instance(name);
    instance == name || name.ends_with("_bf16") == (sum % 2 == 1)
}

/// A name without its type of output, and the sum of its bytes, by which halves are chosen.
fn instance(name: &str) -> (&str, usize) {
    let instance = name.trim_end_matches("_f16").trim_end_matches("_bf16");
    (instance, instance.bytes().map(usize::from).sum())
}

/// Whether it is the turn of this architecture, of those that run the kernels of Ampere: each instance is compiled for every
/// second of them, beside Ampere itself.
fn has_turn(name: &str, arch: Arch) -> bool {
    let place = Arch::ALL.iter().filter(|a| !ENDS.contains(a)).position(|a| *a == arch).unwrap_or(0);
    let (instance, sum) = instance(name);
    instance == name || (sum / 2 + place).is_multiple_of(2)
}

/// The architectures that all kernels are compiled for.
const ENDS: [Arch; 2] = [Arch::Sm80, Arch::Sm90a];

fn kernels() -> Vec<ArchivedKernel> {
    let mut kernels = Vec::new();
    for arch in Arch::ALL {
        let mut all = prebuild::kernels(arch, &Selection::default());
        // Between these architectures, half of the kernels that quantize will do, and of calibration's, which are plain code,
        // those with the most registers.
        if !ENDS.contains(&arch) {
            let most = ["solve_block", "integer_scales", "factor_square", "probabilities", "round_scaled"];
            all.retain(|k| match &k.source.name {
                name if name.contains("quantize_") => !name.contains("_stepwise"),
                name if name.contains("calibrate_") => most.iter().any(|part| name.contains(part)),
                _ => true,
            });
        }
        kernels.extend(all);
    }
    match std::env::var("QQQ_COMPILE") {
        Ok(all) if all == "all" => return kernels,
        Ok(part) if !part.is_empty() => {
            kernels.retain(|k| k.source.name.contains(&part));
            assert!(!kernels.is_empty(), "no kernel's name has {part:?}");
            return kernels;
        }
        _ => {}
    }
    kernels.retain(|k| {
        stands_for_both(&k.source.name) && (ENDS.contains(&k.arch) || has_turn(&k.source.name, k.arch))
    });
    if !in_ci() {
        kernels = kernels.into_iter().step_by(17).collect();
    }
    kernels
}

fn every_kernel_compiles_cleanly(nvrtc: Nvrtc) {
    let kernels = kernels();
    let problems = std::sync::Mutex::new(Vec::new());
    parallel_for(kernels.len(), |i| {
        let kernel = &kernels[i];
        let problem = match nvrtc.compile(&kernel.source, kernel.arch) {
            Err(error) => error.to_string(),
            Ok(compiled) => {
                let r = Resources::from_log(&compiled.log);
                if r.spill_stores + r.spill_loads == 0 && r.warnings.is_empty() && r.registers > 0 {
                    return;
                }
                format!("{} for {}: {r:?}", kernel.source.name, kernel.arch)
            }
        };
        problems.lock().unwrap().push(problem);
    });
    let problems = problems.into_inner().unwrap();
    assert!(problems.is_empty(), "{} of {}:\n{}", problems.len(), kernels.len(), problems.join("\n"));
}
