//! `qqq kernels`: archives of kernels, made without a GPU.

mod common;

use std::{fs, io::Cursor, process::ExitCode};

use common::{Place, Run};
use qqq_cuda::DType;
use qqq_cuda::{
    Arch, Archive, Compiler, Nvrtc,
    gemm::WeightKind,
    jit::{ArchivedKernel, Cache},
    prebuild::{Selection, kernels},
};
use qqq_testing::{Missing, Suite, tests};

fn main() -> ExitCode {
    Suite::new()
        .with(compiler, tests![an_archive_takes_the_place_of_the_compiler])
        .with(no_kernels_of_its_own, tests![without_a_compiler_the_error_names_all_places, a_broken_archive])
        .tests(tests![lists_for_people, wrong_usage, kernels_in_the_binary])
        .run()
}

/// That the binary must look elsewhere for kernels: it was built without the cargo feature `prebuilt-kernels`.
fn no_kernels_of_its_own() -> Result<(), Missing> {
    match qqq_cuda::embedded() {
        None => Ok(()),
        Some(_) => Err(Missing::Machine("this binary has kernels of its own".into())),
    }
}

/// That it compiles them.
fn compiler() -> Result<(), Missing> {
    no_kernels_of_its_own()?;
    Nvrtc::find().map(drop).map_err(|e| Missing::tool("QQQ_NVRTC", e))
}

const BUILD: &str = "kernels build --arch sm_80 --weights channel --activations int8 --type f16 --tokens 8";

/// Runs a command line with these variables and no others of ours.
fn run(place: &Place, line: &str, variables: &[(&str, &str)]) -> Run {
    let mut command = place.command();
    for name in ["QQQ_KERNELS", "QQQ_KERNEL_CACHE"] {
        command.env_remove(name);
    }
    Run::of(command.args(line.split_whitespace()).envs(variables.iter().copied()).output().unwrap())
}

/// The kernel that [`BUILD`] makes.
fn kernel() -> ArchivedKernel {
    let selection = Selection {
        weights: vec![WeightKind::Channel4],
        activations: vec![DType::I8],
        outputs: vec![DType::F16],
        tokens: vec![8],
    };
    kernels(Arch::Sm80, &selection).remove(0)
}

/// An archive with made-up machine code for a kernel.
fn fake(place: &Place, file: &str, kernel: ArchivedKernel) {
    let mut out = Cursor::new(Vec::new());
    Archive::write(&mut out, &[(kernel, b"fake machine code".to_vec())]).unwrap();
    fs::write(place.path(file), out.into_inner()).unwrap();
}

fn an_archive_takes_the_place_of_the_compiler((): ()) {
    let place = Place::new();
    let built = run(&place, &format!("{BUILD} -o k.zip --json"), &[("QQQ_KERNEL_CACHE", "cache")]).success();
    assert_eq!(built.json()["kernels"], 1);
    assert_eq!(built.json()["architectures"], serde_json::json!(["sm_80"]));
    assert_eq!(place.names(), ["cache", "k.zip", "model", "text.txt"]);

    // The archive, and the cache that the compiler has filled on the way.
    let listed = |what: &str| {
        let json = run(&place, &format!("kernels list {what} --json"), &[("QQQ_KERNEL_CACHE", "cache")])
            .success()
            .json();
        assert_eq!(json["other_versions"], 0);
        assert_eq!(json["kernels"].as_array().unwrap().len(), 1, "{json}");
        json["kernels"][0].clone()
    };
    let entry = listed("k.zip");
    assert_eq!(entry, listed(""));
    let kernel = kernel();
    assert_eq!(entry["name"], kernel.source.name);
    assert_eq!(entry["architecture"], "sm_80");
    assert_eq!(entry["shared_bytes"], kernel.shared_bytes);
    assert!((32..=255).contains(&entry["registers"].as_u64().unwrap()), "{entry}");

    let compiled = Cache::in_folder(place.path("cache")).get(&kernel.key).unwrap();
    assert!(compiled.starts_with(b"\x7fELF"));
    let compiler = Compiler::new(Cache::none()).with_archive(place.path("k.zip"));
    assert_eq!(compiler.prebuilt(&kernel.source, Arch::Sm80).unwrap().as_ref(), Some(&compiled));
    assert_eq!(compiler.prebuilt(&kernel.source, Arch::Sm86).unwrap(), None);
    // By the variable, in another process that has no compiler: the same archive, byte for byte.
    let none = [("QQQ_NVRTC", "/nowhere"), ("QQQ_KERNEL_CACHE", ""), ("QQQ_KERNELS", "k.zip")];
    run(&place, &format!("{BUILD} -o again.zip"), &none).success();
    assert_eq!(fs::read(place.path("again.zip")).unwrap(), fs::read(place.path("k.zip")).unwrap());
}

fn without_a_compiler_the_error_names_all_places((): ()) {
    let place = Place::new();
    let failed = run(
        &place,
        &format!("{BUILD} -o k.zip"),
        &[("QQQ_NVRTC", "/no/nvrtc"), ("QQQ_KERNEL_CACHE", "no/cache")],
    );
    for says in ["no/cache", "in this binary", "QQQ_KERNELS", "/no/nvrtc", "(QQQ_NVRTC names it)"] {
        assert!(failed.stderr.contains(says), "{}", failed.stderr);
    }
    // Empty is not set: it is looked for, and found or not.
    let empty = [("QQQ_NVRTC", ""), ("QQQ_KERNEL_CACHE", "")];
    let looked = run(&place, &format!("{BUILD} -o k.zip"), &empty);
    assert!(!looked.stderr.contains("names it"), "{}", looked.stderr);
    let _ = fs::remove_file(place.path("k.zip"));
    failed.failure(1, "is not there and cannot be compiled");
    // An archive of another version does not help, and is not used.
    let mut old = kernel();
    old.key = "0".repeat(64);
    fake(&place, "old.zip", old);
    let with_old = [("QQQ_NVRTC", "/no/nvrtc"), ("QQQ_KERNEL_CACHE", ""), ("QQQ_KERNELS", "old.zip")];
    let failed = run(&place, &format!("{BUILD} -o k.zip"), &with_old);
    // A place a line.
    let line = failed.stderr.lines().find(|l| l.contains("old.zip")).unwrap();
    assert!(
        line.starts_with("  QQQ_KERNELS, ") && line.ends_with("was it made by this very version?"),
        "{line}"
    );
    assert!(!place.path("k.zip").exists());
    let json = run(&place, "kernels list old.zip --json", &[]).success().json();
    assert_eq!((&json["other_versions"], json["kernels"].as_array().unwrap().len()), (&1.into(), 0));
}

fn lists_for_people() {
    let place = Place::new();
    fake(&place, "k.zip", kernel());
    let text = run(&place, "kernels list k.zip", &[]).success().stdout;
    assert!(text.contains(&kernel().source.name) && text.contains("k.zip: 1 kernels, 17 B"), "{text}");
    let cache = [("QQQ_KERNEL_CACHE", "nothing-yet")];
    assert!(run(&place, "kernels list", &cache).success().stdout.contains("nothing-yet: 0 kernels"));
}

fn wrong_usage() {
    let place = Place::new();
    run(&place, &format!("{BUILD} -o none/k.zip"), &[]).failure(2, "its folder does not exist");
    run(&place, &format!("{BUILD} -o model"), &[]).failure(2, "a folder, not a file");
    run(&place, "kernels build -o k.zip --arch sm_80 --tokens 9", &[]).failure(2, "no kernel for sm_80");
    run(&place, "kernels build -o k.zip --arch sm_75", &[]).failure(2, "sm_75");
    run(&place, "kernels list text.txt", &[]).failure(2, "text.txt: not a usable archive of kernels");
    run(&place, "kernels list", &[("QQQ_KERNEL_CACHE", "")]).failure(1, "no cache");
    let follows = run(&place, "kernels list --json", &[("QQQ_CACHE", "cache-of-all")]).success().json();
    assert_eq!(follows["place"], "cache-of-all/kernels");
}

fn a_broken_archive((): ()) {
    let place = Place::new();
    let broken = [("QQQ_KERNELS", "text.txt"), ("QQQ_KERNEL_CACHE", "")];
    run(&place, &format!("{BUILD} -o k.zip"), &broken)
        .failure(1, "QQQ_KERNELS, text.txt: not a usable archive of kernels");
}

fn kernels_in_the_binary() {
    let place = Place::new();
    let listed = run(&place, "kernels list --embedded --json", &[]);
    match qqq_cuda::embedded() {
        None => drop(listed.failure(2, "built without kernels")),
        Some(archive) => {
            let json = listed.success().json();
            assert_eq!(json["other_versions"], 0);
            assert_eq!(json["kernels"].as_array().unwrap().len(), archive.index().unwrap().len());
        }
    }
}
