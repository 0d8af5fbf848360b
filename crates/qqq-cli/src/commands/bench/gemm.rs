//! `qqq bench gemm`.

mod ceilings;
mod cublas;
mod data;
mod measure;
mod problem;
mod timing;

use std::{ops::ControlFlow, path::PathBuf, str::FromStr};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use qqq_cuda::{
    Arch, CudaError, DType, Device, KernelType,
    dtype::{ACTIVATIONS, HALVES},
    gemm::{TunedStore, WeightKind},
};
use serde::Serialize;

use self::{
    ceilings::Ceilings,
    measure::{Choosing, Extent, GemmBench, Measurement},
};
use super::plot::{self, Point};
use crate::{
    console::Console,
    errors::{InterruptedWithResult, bad_input, failed_hint},
    files,
    interrupt::Guard,
    numbers,
    progress::Progress,
    table::table,
};

const AFTER_HELP: &str = "\
Examples:
  qqq bench gemm
  qqq bench gemm --shape 22016x4096 --weights g128 --tokens 1,16,256,4096
  qqq bench gemm --activations f16 --weights channel,g128
  qqq bench gemm --tune --json
  qqq bench gemm --weights channel,g128 --plot speed-up.svg

Every kernel is checked before it is timed: against exact sums with int8 activations, and within what rounding explains with \
16-bit ones (W4A16). Times are medians of short bursts in a CUDA graph, on \
random data, with weights that come from memory. \"us\" lets a launch begin while the one before it ends, as in a model; \
\"alone us\" does not. The ceilings are what this GPU gives at most, measured first: \"of ceiling\" is the least time they \
allow as a part of the time; with 16-bit activations they count half the rate of int8. \
\"tuned\" after a kernel's name: the device was faster with it than with the estimate's choice, found by --tune, or when \
a model with this shape (or this benchmark of it) was first loaded, by trying the eight best estimates. It is kept in the folder of compiled \
kernels, and holds for this model of GPU, these operands, this shape, and numbers of tokens up to the same of 8, 16, 32, \
48, 64, 96, 128 and so on. Ctrl-C ends with what was measured until then.";

/// Speed of the GPU's matrix products, beside cuBLAS in float16
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct GemmArgs {
    /// Output and input channels of the weights
    #[arg(long = "shape", value_name = "NxK", default_value = "8192x21760", value_delimiter = ',')]
    shapes: Vec<Shape>,
    /// Numbers of tokens
    #[arg(long, value_name = "M", default_value = "1,16,32,64,128,256,512,1024,4096", value_delimiter = ',',
        allow_negative_numbers = true, value_parser = numbers::count)]
    tokens: Vec<usize>,
    /// Weights: channel, g32, g64, g128 (integer group scales), g32-half, g64-half, g128-half (float16 ones), int8;
    /// 16-bit activations take all group scales as 16-bit numbers
    #[arg(long, value_name = "KIND", default_value = "channel", value_delimiter = ',')]
    weights: Vec<WeightKind>,
    /// Type of the activations: int8 with a scale a token (W4A8), or f16 or bf16 (W4A16, 4-bit weights only)
    #[arg(long, value_name = "TYPE", default_value = "int8", value_parser = activations())]
    activations: DType,
    /// Type of the output [default: f16, or the activations' own]
    #[arg(long, value_name = "TYPE", value_parser = output())]
    output: Option<DType>,
    /// Kernels: the GPU's own, or those for every GPU since Ampere (mma.sync)
    #[arg(long, value_name = "WHICH", default_value = "auto")]
    kernels: Kernels,
    /// Number of the GPU
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true, value_parser = numbers::whole)]
    gpu: usize,
    /// Try all instances of the kernel; keep the fastest for this GPU if it is more than 2% faster than the usual choice
    #[arg(long)]
    tune: bool,
    /// Choose by the estimate alone: leave out what was tuned earlier and what a device tries when a model is loaded
    #[arg(long, conflicts_with = "tune")]
    no_tuned: bool,
    /// Measure every instance of the kernel that may be the fastest, in turn, not only the one that is chosen
    #[arg(long, conflicts_with_all = ["tune", "plot"])]
    each: bool,
    /// Measure only the time ("us"): neither "alone us", nor what a launch costs the host, nor cuBLAS
    #[arg(long, conflicts_with = "plot")]
    quick: bool,
    /// Draw the speed-up over cuBLAS against the number of tokens, as an SVG figure
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    n: usize,
    k: usize,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let parts: Vec<_> = s.split('x').map(str::parse).collect();
        match parts[..] {
            [Ok(n), Ok(k)] => Ok(Self { n, k }),
            _ => Err(String::from("two numbers are needed, such as 8192x21760")),
        }
    }
}

/// Types of activations on the command line.
pub fn activations() -> impl TypedValueParser<Value = DType> {
    types_of(ACTIVATIONS)
}

/// Types of outputs on the command line.
pub fn output() -> impl TypedValueParser<Value = DType> {
    types_of(HALVES)
}

fn types_of<const N: usize>(types: [DType; N]) -> impl TypedValueParser<Value = DType> {
    PossibleValuesParser::new(types.map(DType::kernel_name))
        .map(|name| DType::from_kernel_name(&name).expect("one of the possible values"))
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Kernels {
    Auto,
    Sm80,
}

#[derive(Serialize)]
struct Outcome {
    gpu: String,
    read_gb_per_second: Option<f64>,
    int8_tops: Option<f64>,
    /// Ctrl-C ended it before all was measured.
    interrupted: bool,
    results: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    n: usize,
    k: usize,
    weights: String,
    activations: &'static str,
    tokens: usize,
    kernel: String,
    split: bool,
    paired: bool,
    chosen: bool,
    tuned: bool,
    microseconds: f64,
    alone_microseconds: Option<f64>,
    tops: f64,
    gb_per_second: f64,
    of_ceiling: Option<f64>,
    host_microseconds: Option<f64>,
    prepare_milliseconds: f64,
    cublas_f16_microseconds: Option<f64>,
    speed_up: Option<f64>,
}

impl Line {
    fn new(shape: Shape, weights: WeightKind, activations: DType, m: &Measurement) -> Self {
        Self {
            n: shape.n,
            k: shape.k,
            weights: weights.to_string(),
            activations: activations.kernel_name(),
            tokens: m.m,
            kernel: m.plan.instance.source().name,
            split: m.plan.stream_k,
            paired: m.plan.paired,
            chosen: m.chosen,
            tuned: m.tuned,
            microseconds: m.microseconds,
            alone_microseconds: m.serial_microseconds,
            tops: m.tops,
            gb_per_second: m.gb_per_second,
            of_ceiling: m.of_ceiling,
            host_microseconds: m.host_microseconds,
            prepare_milliseconds: m.prepare_milliseconds,
            cublas_f16_microseconds: m.cublas_microseconds,
            speed_up: m.cublas_microseconds.map(|c| c / m.microseconds),
        }
    }

    /// For the figure.
    fn point(&self) -> Option<Point> {
        let (shape, series) = ((self.n, self.k), label(&self.weights, self.activations));
        self.speed_up.map(|speed_up| Point { shape, series, tokens: self.tokens, speed_up })
    }
}

/// Where what a model would run takes longest against the fastest kernel that was measured, and by how much.
fn worst_choice(results: &[Line]) -> Option<(f64, &Line)> {
    let alike = |a: &Line, b: &Line| (a.n, a.k, &a.weights, a.tokens) == (b.n, b.k, &b.weights, b.tokens);
    let loss = |l: &Line| {
        let best =
            results.iter().filter(|r| alike(r, l)).map(|r| r.microseconds).fold(f64::INFINITY, f64::min);
        l.microseconds / best - 1.0
    };
    results.iter().filter(|l| l.chosen).map(|l| (loss(l), l)).max_by(|a, b| a.0.total_cmp(&b.0))
}

/// What operands are called in a figure.
fn label(weights: &str, activations: &str) -> String {
    let a = if activations == "int8" { "A8" } else { "A16" };
    match (weights, weights.trim_start_matches('g').split_once("-half")) {
        ("channel", _) => format!("W4{a} per channel"),
        ("int8", _) => format!("W8{a}"),
        (_, Some((group, _))) => format!("W4{a} in groups of {group}, float16 scales"),
        (group, None) => format!("W4{a} in groups of {}", group.trim_start_matches('g')),
    }
}

/// What activations and output are made of.
fn types(args: &GemmArgs) -> anyhow::Result<(DType, DType)> {
    let own = (args.activations != DType::I8).then_some(args.activations);
    if own.is_some() && args.output.is_some_and(|o| Some(o) != own) {
        return Err(bad_input("--output: 16-bit activations give outputs of their own type"));
    }
    if own.is_some() && args.weights.contains(&WeightKind::Channel8) {
        return Err(bad_input("--weights int8 needs --activations int8: there is no W8A16 kernel"));
    }
    Ok((args.activations, args.output.or(own).unwrap_or(DType::F16)))
}

/// Runs the command.
pub fn run(args: &GemmArgs, console: &Console) -> anyhow::Result<()> {
    for s in &args.shapes {
        if s.n == 0
            || s.k == 0
            || !s.n.is_multiple_of(16)
            || !s.k.is_multiple_of(16)
            || s.k > 65536
            || s.n > 1 << 20
        {
            return Err(bad_input(format!(
                "--shape {}x{}: both must be multiples of 16, N at most 1,048,576 and K at most 65,536",
                s.n, s.k
            )));
        }
        for w in &args.weights {
            if let Some(g) = w.group_size()
                && !s.k.is_multiple_of(g)
            {
                return Err(bad_input(format!(
                    "--shape {}x{}: K is no multiple of the group size {g}",
                    s.n, s.k
                )));
            }
        }
    }
    if args.tokens.iter().any(|m| *m == 0 || *m > 65536) {
        return Err(bad_input("--tokens must be between 1 and 65,536"));
    }
    // The driver counts with 32 bits, and would take another one.
    if i32::try_from(args.gpu).is_err() {
        return Err(bad_input(format!("--gpu {}: there is no GPU of that number", args.gpu)));
    }
    if let Some(path) = &args.plot {
        files::check_figure(path, "--plot")?;
    }
    let types = types(args)?;
    let choosing = match (args.tune, args.no_tuned, args.each) {
        (true, ..) => Choosing::Tune,
        (_, estimated, true) => Choosing::Each { estimated },
        (_, true, _) => Choosing::Heuristic,
        _ => Choosing::Usual,
    };
    let device = Device::new(args.gpu).map_err(|e| match e {
        CudaError::NoDriver => failed_hint(
            "no NVIDIA driver on this machine: libcuda.so cannot be loaded",
            "run this where `nvidia-smi` lists a GPU; for the CPU see `qqq bench model`",
        ),
        e => e.into(),
    })?;
    let arch = match args.kernels {
        Kernels::Auto => device.arch()?,
        Kernels::Sm80 => Arch::Sm80,
    };
    if args.tune {
        console.note(&match TunedStore::of_device(&device).path() {
            Some(path) => format!("what is found is kept in {}", path.display()),
            None => String::from("what is found is not kept: there is no folder for it (QQQ_KERNEL_CACHE)"),
        });
    }
    let ceilings = Ceilings::measure(&device)?;
    let guard = Guard::new();
    let mut results = Vec::new();
    let mut progress = Progress::new(console, "measuring");
    let total = (args.shapes.len() * args.weights.len() * args.tokens.len()) as f64;
    let mut without_cublas = false;
    let extent = if args.quick { Extent::Time } else { Extent::All };
    for &shape in &args.shapes {
        if guard.pressed() {
            break;
        }
        let bench = GemmBench::new(&device, ceilings, (shape.n, shape.k), extent)?;
        without_cublas |= !args.quick && !bench.has_cublas();
        if without_cublas && args.plot.is_some() {
            return Err(plot::no_cublas());
        }
        for weights in args.weights.iter().take_while(|_| !guard.pressed()) {
            bench.run(*weights, types, arch, &args.tokens, choosing, &mut |m| {
                progress.update((results.len() as f64).min(total), total, &format!("{} tokens", m.m));
                results.push(Line::new(shape, *weights, args.activations, &m));
                if guard.pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
        }
    }
    drop(progress);
    if without_cublas {
        console
            .note("cuBLASLt is not installed (libcublasLt.so cannot be loaded): no comparison with float16");
    }
    if let Some(path) = &args.plot
        && !guard.pressed()
    {
        plot::write(path, device.name(), &results.iter().filter_map(Line::point).collect::<Vec<_>>())?;
        console.note(&format!("the figure is {}", path.display()));
    }
    let outcome = Outcome {
        gpu: device.name().to_owned(),
        read_gb_per_second: ceilings.map(|c| c.read_gb_per_second),
        int8_tops: ceilings.map(|c| c.int8_tops),
        interrupted: guard.pressed(),
        results,
    };
    console.result(&outcome, |o| {
        let optional =
            |v: Option<f64>, digits: usize| v.map_or(String::from("-"), |v| format!("{v:.digits$}"));
        let rows = o.results.iter().map(|l| {
            vec![
                format!("{}x{}", l.n, l.k),
                format!("{}, {}", l.weights, l.activations),
                l.tokens.to_string(),
                format!("{:.1}", l.microseconds),
                optional(l.alone_microseconds, 1),
                format!("{:.0}", l.tops),
                format!("{:.0}", l.gb_per_second),
                l.of_ceiling.map_or(String::from("-"), |c| format!("{:.0}%", c * 100.0)),
                optional(l.host_microseconds, 1),
                format!("{:.0}", l.prepare_milliseconds),
                optional(l.cublas_f16_microseconds, 1),
                optional(l.speed_up, 2),
                l.kernel.replace("_gemm", "")
                    + if l.split { " split" } else { "" }
                    + if l.paired { " paired" } else { "" }
                    + if l.tuned { " tuned" } else { "" }
                    + if args.each && l.chosen { " chosen" } else { "" },
            ]
        });
        let header = [
            "NxK",
            "weights, activations",
            "tokens",
            "us",
            "alone us",
            "TOPS",
            "GB/s",
            "of ceiling",
            "host us",
            "load ms",
            "cuBLAS f16 us",
            "speed-up",
            "kernel",
        ];
        let table = table(console, &header, 2, rows);
        let ceilings = match (o.read_gb_per_second, o.int8_tops) {
            (Some(read), Some(tops)) => format!("ceilings: {read:.0} GB/s read, {tops:.0} TOPS int8"),
            _ => String::from("its ceilings are not measured"),
        };
        let lost = worst_choice(&o.results).filter(|_| args.each).map_or(String::new(), |(loss, l)| {
            format!(
                "\nthe choice of kernels loses at most {:.1}%: {}x{}, {}, {} tokens",
                100.0 * loss,
                l.n,
                l.k,
                l.weights,
                l.tokens
            )
        });
        format!("{table}\n{}; {ceilings}{lost}", o.gpu)
    })?;
    if outcome.interrupted { Err(InterruptedWithResult.into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        assert_eq!(label("channel", "int8"), "W4A8 per channel");
        assert_eq!(label("g64", "int8"), "W4A8 in groups of 64");
        assert_eq!(label("g128-half", "int8"), "W4A8 in groups of 128, float16 scales");
        assert_eq!(label("int8", "int8"), "W8A8");
        assert_eq!(label("channel", "bf16"), "W4A16 per channel");
    }

    #[test]
    fn types_that_go_together() {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: GemmArgs,
        }
        let types = |more: &[&str]| {
            let cli: Cli = clap::Parser::parse_from(["gemm"].iter().chain(more));
            types(&cli.args).map_err(|e| e.to_string())
        };
        assert_eq!(types(&[]), Ok((DType::I8, DType::F16)));
        assert_eq!(types(&["--output", "bf16"]), Ok((DType::I8, DType::BF16)));
        assert_eq!(types(&["--activations", "bf16"]), Ok((DType::BF16, DType::BF16)));
        assert_eq!(types(&["--activations", "f16", "--output", "f16"]), Ok((DType::F16, DType::F16)));
        assert!(types(&["--activations", "f16", "--output", "bf16"]).unwrap_err().contains("own type"));
        assert!(types(&["--activations", "bf16", "--weights", "g64,int8"]).unwrap_err().contains("W8A16"));
    }

    #[test]
    fn shapes() {
        let shape: Shape = "4096x11008".parse().unwrap();
        assert_eq!((shape.n, shape.k), (4096, 11008));
        assert!("4096".parse::<Shape>().is_err() && "4096x".parse::<Shape>().is_err());
    }
}
