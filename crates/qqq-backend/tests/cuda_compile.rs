//! Every kernel that can be chosen compiles, for every architecture it is for, without spills and without the
//! compiler's remark that matrix instructions were serialized. Needs NVRTC, but no GPU. All of them in CI, which takes
//! minutes; a selection elsewhere.

use std::sync::atomic::{AtomicUsize, Ordering};

use qqq_backend::cuda::bench::Ceilings;
use qqq_backend::cuda::gemm::prepack::{self, Direction};
use qqq_backend::cuda::gemm::{OutputType, WeightKind, instances};
use qqq_backend::cuda::quantize::{Precision, QuantizeConfig};
use qqq_backend::cuda::{Arch, Nvrtc, Resources, Source};

const KINDS: [WeightKind; 8] = [
    WeightKind::Channel4,
    WeightKind::GroupInteger4(32),
    WeightKind::GroupInteger4(64),
    WeightKind::GroupInteger4(128),
    WeightKind::GroupHalf4(32),
    WeightKind::GroupHalf4(64),
    WeightKind::GroupHalf4(128),
    WeightKind::Channel8,
];

fn kernels() -> Vec<(Source, Arch)> {
    let mut kernels = Vec::new();
    for weights in KINDS {
        for output in [OutputType::Float16, OutputType::Bfloat16] {
            for arch in Arch::ALL {
                // The output's type changes one conversion: between these architectures, half of the kernels will do.
                if output == OutputType::Bfloat16 && ![Arch::Sm80, Arch::Sm90a].contains(&arch) {
                    continue;
                }
                kernels.extend(instances(weights, output, arch).into_iter().map(|c| (c.source(), arch)));
            }
            // Ampere's kernels run on Hopper as well.
            let others = instances(weights, output, Arch::Sm80).into_iter();
            kernels.extend(others.map(|c| (c.source(), Arch::Sm90a)));
        }
    }
    for arch in Arch::ALL {
        let mut configs = QuantizeConfig::all();
        if ![Arch::Sm80, Arch::Sm90a].contains(&arch) {
            configs.retain(|c| c.input == OutputType::Float16 && c.precision == Precision::Float32);
        }
        kernels.extend(configs.iter().map(|c| (c.source(), arch)));
        for weights in KINDS {
            kernels.extend([Direction::Pack, Direction::Unpack].map(|d| (prepack::source(weights, d), arch)));
        }
    }
    kernels.extend(Ceilings::sources().map(|source| (source, Arch::Sm90a)));
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
