//! Every kernel that can be chosen compiles, for every architecture it is for, without spills and without the
//! compiler's remark that matrix instructions were serialized. Needs NVRTC, but no GPU. All of them in CI, which takes
//! minutes; a selection elsewhere.

use std::sync::atomic::{AtomicUsize, Ordering};

use qqq_backend::cuda::gemm::{Activation, GemmTypes, OutputType, WeightKind, instances};
use qqq_backend::cuda::{Arch, Nvrtc, Resources, Source};

fn kernels() -> Vec<(Source, Arch)> {
    use Activation::{Bfloat16, Float16, Int8};
    let mut types = Vec::new();
    for weights in [
        WeightKind::Channel4,
        WeightKind::GroupInteger4(32),
        WeightKind::GroupInteger4(64),
        WeightKind::GroupInteger4(128),
        WeightKind::GroupHalf4(32),
        WeightKind::GroupHalf4(64),
        WeightKind::GroupHalf4(128),
        WeightKind::Channel8,
    ] {
        for (activation, output) in [
            (Int8, OutputType::Float16),
            (Int8, OutputType::Bfloat16),
            (Float16, OutputType::Float16),
            (Bfloat16, OutputType::Bfloat16),
        ] {
            // 16-bit activations are not for all weights.
            types.extend(GemmTypes::new(weights, activation, output));
        }
    }
    let mut kernels = Vec::new();
    for types in types {
        for arch in Arch::ALL {
            // The two 16-bit types change a few instructions: between these architectures, half of the kernels will do.
            if types.output() == OutputType::Bfloat16 && ![Arch::Sm80, Arch::Sm90a].contains(&arch) {
                continue;
            }
            kernels.extend(instances(types, arch).into_iter().map(|c| (c.source(), arch)));
        }
        // Ampere's kernels run on Hopper as well.
        kernels.extend(instances(types, Arch::Sm80).into_iter().map(|c| (c.source(), Arch::Sm90a)));
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
        while let Some((source, arch)) = kernels.get(next.fetch_add(1, Ordering::Relaxed)) {
            let problem = match nvrtc.compile(source, *arch) {
                Err(error) => error.to_string(),
                Ok(compiled) => {
                    let r = Resources::from_log(&compiled.log);
                    if r.spill_stores + r.spill_loads == 0 && r.warnings.is_empty() && r.registers > 0 {
                        continue;
                    }
                    format!("{} for {arch}: {r:?}", source.name)
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
