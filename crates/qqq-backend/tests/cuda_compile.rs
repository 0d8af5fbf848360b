//! Every kernel that can be chosen compiles, for every architecture it is for, without spills and without the
//! compiler's remark that matrix instructions were serialized. Needs NVRTC, but no GPU. All of them in CI, which takes
//! minutes; a selection elsewhere.

use std::sync::atomic::{AtomicUsize, Ordering};

use qqq_backend::cuda::archive::ArchivedKernel;
use qqq_backend::cuda::prebuild::{self, Selection};
use qqq_backend::cuda::{Arch, Nvrtc, Resources};

fn kernels() -> Vec<ArchivedKernel> {
    let mut kernels = Vec::new();
    for arch in Arch::ALL {
        let mut all = prebuild::kernels(arch, &Selection::default());
        // The type of output and input changes some conversions: between these architectures, half of the kernels will do.
        if ![Arch::Sm80, Arch::Sm90a].contains(&arch) {
            all.retain(|k| !k.source.name.contains("_bf16") && !k.source.name.contains("_stepwise"));
        }
        kernels.extend(all);
    }
    if std::env::var_os("CI").is_none() {
        kernels = kernels.into_iter().step_by(17).collect();
    }
    kernels
}

#[test]
fn every_kernel_compiles_cleanly() {
    let nvrtc = match Nvrtc::find() {
        Ok(nvrtc) => nvrtc,
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("skipped: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let kernels = kernels();
    let next = AtomicUsize::new(0);
    let problems = std::sync::Mutex::new(Vec::new());
    let worker = || {
        while let Some(kernel) = kernels.get(next.fetch_add(1, Ordering::Relaxed)) {
            let problem = match nvrtc.compile(&kernel.source, kernel.arch) {
                Err(error) => error.to_string(),
                Ok(compiled) => {
                    let r = Resources::from_log(&compiled.log);
                    if r.spill_stores + r.spill_loads == 0 && r.warnings.is_empty() && r.registers > 0 {
                        continue;
                    }
                    format!("{} for {}: {r:?}", kernel.source.name, kernel.arch)
                }
            };
            problems.lock().unwrap().push(problem);
        }
    };
    std::thread::scope(|s| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            s.spawn(worker);
        }
    });
    let problems = problems.into_inner().unwrap();
    assert!(problems.is_empty(), "{} of {}:\n{}", problems.len(), kernels.len(), problems.join("\n"));
}
