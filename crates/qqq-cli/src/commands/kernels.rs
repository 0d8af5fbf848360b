//! `qqq kernels`.

use std::{collections::HashMap, path::PathBuf};

use clap::Subcommand;
use qqq_cuda::{
    Arch, Archive, Compiler, DType, embedded,
    gemm::WeightKind,
    jit::{ArchivedKernel, Cache, cubin},
    prebuild::{self, Selection},
};
use serde::Serialize;

use crate::{
    console::Console,
    errors::{Interrupted, bad_input, bad_input_hint, failed_hint},
    files, format,
    interrupt::Guard,
    numbers,
    progress::Progress,
    table::table,
};

/// Compile GPU kernels ahead of time, look at compiled ones
#[derive(Debug, clap::Args)]
pub struct KernelsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(BuildArgs),
    List(ListArgs),
}

const AFTER_HELP_BUILD: &str = "\
Examples:
  qqq kernels build --output kernels.zip --arch sm_90a
  QQQ_KERNELS=kernels.zip qqq bench gemm
  QQQ_PREBUILT_KERNELS=$PWD/kernels.zip cargo install --path crates/qqq-cli --features prebuilt-kernels

Needs NVRTC, but no GPU. With such an archive, named at run time or made part of the binary, a GPU \
needs its driver alone. An archive serves the very version of qqq that made it; others ignore what it holds.";

/// Compile all kernels that GPUs may ask for into one archive
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP_BUILD)]
struct BuildArgs {
    /// The archive, a zip file; one that is there is replaced when the new one is complete
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Architectures: sm_80, sm_86, sm_89, sm_90a, sm_100, sm_120 [default: all]
    #[arg(long, value_name = "ARCH", value_delimiter = ',')]
    arch: Vec<Arch>,
    /// Only products with these weights, named as for `qqq bench gemm`
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    weights: Vec<WeightKind>,
    /// Only products with such activations
    #[arg(long, value_name = "TYPE", value_delimiter = ',', value_parser = super::bench::activations())]
    activations: Vec<DType>,
    /// Only products whose output is of this type
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',', value_parser = super::bench::output())]
    types: Vec<DType>,
    /// Only products whose tiles have this many tokens
    #[arg(long, value_name = "M", value_delimiter = ',', allow_negative_numbers = true, value_parser = numbers::count)]
    tokens: Vec<usize>,
}

const AFTER_HELP_LIST: &str = "\
Examples:
  qqq kernels list
  qqq kernels list kernels.zip
  qqq kernels list --embedded --json

\"shared\" is the dynamic shared memory of a block. Kernels that another version of qqq has made are never used.";

/// What an archive, the cache, or this binary holds
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP_LIST)]
struct ListArgs {
    /// An archive of `qqq kernels build` [default: the cache of compiled kernels]
    #[arg(value_name = "ARCHIVE")]
    archive: Option<PathBuf>,
    /// What is part of this binary
    #[arg(long, conflicts_with = "archive")]
    embedded: bool,
}

/// Runs the command.
pub fn run(args: &KernelsArgs, console: &Console) -> anyhow::Result<()> {
    match &args.command {
        Command::Build(args) => build(args, console),
        Command::List(args) => list(args, console),
    }
}

#[derive(Serialize)]
struct Built {
    output: PathBuf,
    architectures: Vec<String>,
    kernels: usize,
    bytes: u64,
}

fn build(args: &BuildArgs, console: &Console) -> anyhow::Result<()> {
    files::check_writable(&args.output, "--output")?;
    let mut architectures = if args.arch.is_empty() { Arch::ALL.to_vec() } else { args.arch.clone() };
    architectures.sort();
    architectures.dedup();
    let selection = Selection {
        weights: args.weights.clone(),
        activations: args.activations.clone(),
        outputs: args.types.clone(),
        tokens: args.tokens.clone(),
    };
    let kernels: Vec<_> = architectures.iter().flat_map(|a| prebuild::kernels(*a, &selection)).collect();
    if let Some(none) = architectures.iter().find(|a| kernels.iter().all(|k| k.arch != **a)) {
        return Err(bad_input(format!("no kernel for {none} has such operands and tiles of so many tokens")));
    }
    let guard = Guard::new();
    let mut progress = Progress::new(console, "compiling");
    let mut done = 0;
    let cubins = prebuild::compile_all(&Compiler::default(), &kernels, &mut |kernel| {
        done += 1;
        progress.update(
            done as f64,
            kernels.len() as f64,
            &format!("{} {}", kernel.arch, kernel.source.name),
        );
        !guard.pressed()
    })?;
    drop(progress);
    let cubins = cubins.ok_or(Interrupted)?;
    let count = kernels.len();
    let entries: Vec<_> = kernels.into_iter().zip(cubins).collect();
    files::write(&args.output, |file| Archive::write(file, &entries))?;
    let built = Built {
        output: args.output.clone(),
        architectures: architectures.iter().map(Arch::to_string).collect(),
        kernels: count,
        bytes: std::fs::metadata(&args.output)?.len(),
    };
    console.result(&built, |b| {
        let (output, kernels, size) = (b.output.display(), b.kernels, format::bytes(b.bytes));
        format!("{output}: {kernels} kernels for {}, {size}", b.architectures.join(", "))
    })
}

#[derive(Serialize)]
struct Listing {
    place: String,
    kernels: Vec<Entry>,
    /// Kernels of other versions, which nothing of this one asks for.
    other_versions: usize,
    bytes: u64,
}

#[derive(Serialize)]
struct Entry {
    name: String,
    architecture: String,
    registers: Option<u32>,
    shared_bytes: usize,
    bytes: usize,
    key: String,
}

impl Entry {
    fn new(kernel: &ArchivedKernel, code: &[u8]) -> Self {
        Self {
            name: kernel.source.name.clone(),
            architecture: kernel.arch.to_string(),
            registers: cubin::registers(code),
            shared_bytes: kernel.shared_bytes,
            bytes: code.len(),
            key: kernel.key.clone(),
        }
    }
}

fn list(args: &ListArgs, console: &Console) -> anyhow::Result<()> {
    let listing = match (&args.archive, args.embedded) {
        (Some(path), _) => of_archive(&Archive::open(path).map_err(|e| bad_input(e.to_string()))?)?,
        (None, true) => match embedded() {
            Some(archive) => of_archive(&archive)?,
            None => {
                return Err(bad_input_hint(
                    "this binary was built without kernels",
                    "build it with --features prebuilt-kernels, see `qqq kernels build --help`",
                ));
            }
        },
        (None, false) => of_cache(&Cache::of_user())?,
    };
    console.result(&listing, |l| {
        let rows = l.kernels.iter().map(|k| {
            vec![
                k.name.clone(),
                k.architecture.clone(),
                k.registers.map_or(String::from("-"), |r| r.to_string()),
                k.shared_bytes.to_string(),
                k.bytes.to_string(),
            ]
        });
        let header = ["kernel", "architecture", "registers", "shared", "bytes"];
        let table = table(console, &header, 2, rows);
        let others = match l.other_versions {
            0 => String::new(),
            n => format!(", and {n} of other versions"),
        };
        let (place, count, size) = (&l.place, l.kernels.len(), format::bytes(l.bytes));
        format!("{table}\n{place}: {count} kernels{others}, {size}")
    })
}

/// Every kernel of this version by its key.
fn known() -> HashMap<String, ArchivedKernel> {
    let all = Arch::ALL.into_iter().flat_map(|a| prebuild::kernels(a, &Selection::default()));
    all.map(|k| (k.key.clone(), k)).collect()
}

fn of_archive(archive: &Archive) -> anyhow::Result<Listing> {
    let known = known();
    let mut listing =
        Listing { place: archive.place().to_owned(), kernels: Vec::new(), other_versions: 0, bytes: 0 };
    for kernel in archive.index()? {
        let code = archive.get(&kernel.key, kernel.arch)?;
        let code =
            code.ok_or_else(|| bad_input(format!("{}: {} is missing", archive.place(), kernel.key)))?;
        listing.add(known.get(&kernel.key), &code);
    }
    Ok(listing)
}

fn of_cache(cache: &Cache) -> anyhow::Result<Listing> {
    let folder = cache.folder().ok_or_else(|| {
        failed_hint("there is no cache of compiled kernels", "set QQQ_KERNEL_CACHE to a folder for it")
    })?;
    let known = known();
    let mut listing =
        Listing { place: folder.display().to_string(), kernels: Vec::new(), other_versions: 0, bytes: 0 };
    for key in cache.keys()? {
        // One that is damaged is no kernel; the log says so.
        if let Some(code) = cache.get(&key) {
            listing.add(known.get(&key), &code);
        }
    }
    listing.kernels.sort_by(|a, b| (&a.architecture, &a.name).cmp(&(&b.architecture, &b.name)));
    Ok(listing)
}

impl Listing {
    fn add(&mut self, kernel: Option<&ArchivedKernel>, code: &[u8]) {
        self.bytes += code.len() as u64;
        match kernel {
            Some(kernel) => self.kernels.push(Entry::new(kernel, code)),
            None => self.other_versions += 1,
        }
    }
}
