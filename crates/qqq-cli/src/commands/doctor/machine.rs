//! CPU, memory, and the disks of the folders that commands write to.

use std::path::{Path, PathBuf};

use qqq_backend::{cpu::isa::Isa, pool};
use qqq_cuda::jit::Cache;
use qqq_formats::{cache, disk};
use qqq_model::{hub::HubAccess, memory};
use serde_json::json;

use super::Finding;
use crate::format;

/// Below this not even a small model runs.
const LEAST_MEMORY: u64 = 256 << 20;
/// Below this no model of some billions of weights is quantized.
const LITTLE_MEMORY: u64 = 4 << 30;
/// Below this no model fits into a cache.
const LITTLE_DISK: u64 = 2 << 30;

pub(super) fn look(threads: Option<usize>) -> Vec<Finding> {
    vec![kernels(), cores(threads), free_memory()]
}

fn kernels() -> Finding {
    const WHAT: &str = "CPU kernels";
    let names: Vec<&str> = Isa::available().into_iter().rev().map(Isa::name).collect();
    match Isa::selected() {
        Err(e) => Finding::fault(WHAT, e.to_string(), "unset QQQ_ISA, which leaves the choice to the tool"),
        Ok(isa) => {
            let found = format!("{isa}; this CPU runs {}", names.join(", "));
            let finding = if isa != Isa::best() {
                Finding::lack(
                    WHAT,
                    found,
                    format!("{} kernels are faster and compute the same", Isa::best()),
                    "unset QQQ_ISA",
                )
            } else if isa == Isa::Portable {
                Finding::lack(
                    WHAT,
                    found,
                    "products take several times as long as with vector instructions for 8-bit integers",
                    "a CPU with AVX2 (better: VNNI), or with NEON dot products",
                )
            } else {
                Finding::ok(WHAT, found)
            };
            finding.with(json!({ "selected": isa.name(), "available": names }))
        }
    }
}

fn cores(threads: Option<usize>) -> Finding {
    const WHAT: &str = "threads";
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if let Err(e) = pool::set_num_threads(threads) {
        return Finding::fault(WHAT, e.to_string(), "unset QQQ_THREADS: all cores are taken");
    }
    let threads = pool::num_threads();
    let found = format!("{threads} on {cores} core{}", if cores == 1 { "" } else { "s" });
    let finding = match threads.cmp(&cores) {
        std::cmp::Ordering::Equal => Finding::ok(WHAT, found),
        std::cmp::Ordering::Less => Finding::lack(
            WHAT,
            found,
            "cores do nothing",
            "leave --threads out and unset QQQ_THREADS: all cores are taken",
        ),
        std::cmp::Ordering::Greater => Finding::lack(
            WHAT,
            found,
            "threads wait for each other",
            "leave --threads out and unset QQQ_THREADS: as many as cores are taken",
        ),
    };
    finding.with(json!({ "threads": threads, "cores": cores }))
}

fn free_memory() -> Finding {
    const WHAT: &str = "memory";
    let Some(free) = memory::available() else {
        return Finding::ok(WHAT, "this system does not say how much there is");
    };
    let total = memory::total();
    let found = match total {
        Some(total) => format!("{} free of {}", format::bytes(free), format::bytes(total)),
        None => format!("{} free", format::bytes(free)),
    };
    let finding = match free {
        ..LEAST_MEMORY => Finding::fault(WHAT, found, "end other programs, or raise the container's limit"),
        LEAST_MEMORY..LITTLE_MEMORY => Finding::lack(
            WHAT,
            found,
            "models of some billions of weights are neither quantized nor run: a 7B takes about 4 GB for either",
            "end other programs, raise the container's limit, or take a smaller model",
        ),
        _ => Finding::ok(WHAT, found),
    };
    finding.with(json!({ "free": free, "total": total }))
}

/// The folders that commands write to without being told.
pub(super) fn disks() -> Vec<Finding> {
    let hub = HubAccess::of_user().ok().map(|hub| hub.cache());
    let kernels = Cache::of_user().folder().map(Path::to_owned);
    vec![
        folder("cache", cache::folder(), "`qqq demo` makes its checkpoint anew each time", "QQQ_CACHE"),
        folder("kernel cache", kernels, "GPU kernels are compiled anew by each process", "QQQ_KERNEL_CACHE"),
        folder("hub cache", hub, "no model can be fetched from the hub", "HF_HOME"),
    ]
}

fn folder(what: &'static str, path: Option<PathBuf>, cost: &str, variable: &str) -> Finding {
    let mend = format!("{variable} names another folder");
    let Some(path) = path else {
        return Finding::lack(what, "none", cost, mend);
    };
    // What is there of it: the rest is made when it is needed.
    let there = path.ancestors().find(|p| p.is_dir()).filter(|p| !p.as_os_str().is_empty());
    let there = there.unwrap_or(Path::new("."));
    let free = disk::free(there);
    let details = json!({ "path": path.display().to_string(), "free": free });
    let shown = path.display();
    if let Err(e) = tempfile::tempfile_in(there) {
        return Finding::lack(what, format!("{shown} cannot be written to: {e}"), cost, mend).with(details);
    }
    let finding = match free {
        Some(free) if free < LITTLE_DISK => Finding::lack(
            what,
            format!("{shown}, {} free", format::bytes(free)),
            "most models do not fit there",
            format!("free some space, or {mend}"),
        ),
        Some(free) => Finding::ok(what, format!("{shown}, {} free", format::bytes(free))),
        None => Finding::ok(what, shown.to_string()),
    };
    finding.with(details)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::State;

    #[test]
    fn folders_are_written_to_or_named() {
        let dir = tempfile::tempdir().unwrap();
        // Not there yet, and neither is its parent.
        let new = folder("cache", Some(dir.path().join("a/b")), "time", "QQQ_CACHE");
        assert_ne!(new.state, State::Fault);
        assert!(new.found.starts_with(&dir.path().join("a/b").display().to_string()), "{}", new.found);
        assert_eq!(dir.path().read_dir().unwrap().count(), 0, "a look leaves nothing");
        let none = folder("cache", None, "time", "QQQ_CACHE");
        assert_eq!((none.state, none.cost.as_deref()), (State::Lack, Some("time")));
        assert!(none.mend.unwrap().contains("QQQ_CACHE"));
        // Not even root makes files there.
        #[cfg(target_os = "linux")]
        {
            let refused = folder("cache", Some("/proc/cache".into()), "time", "QQQ_CACHE");
            assert!(refused.state == State::Lack && refused.found.contains("cannot be written to"));
        }
    }
}
