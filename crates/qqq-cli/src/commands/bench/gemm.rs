//! `qqq bench gemm`.

use std::str::FromStr;

use qqq_backend::cuda::bench::{Ceilings, GemmBench, Measurement, WeightChoice};
use qqq_backend::cuda::gemm::{Activation, OutputType};
use qqq_backend::cuda::{Arch, CudaError, Device};
use serde::Serialize;

use crate::{
    console::Console,
    errors::{bad_input, failed_hint},
    progress::Progress,
    table::table,
};

const AFTER_HELP: &str = "\
Examples:
  qqq bench gemm
  qqq bench gemm --shape 22016x4096 --weights g128 --tokens 1,16,256,4096
  qqq bench gemm --activations f16 --weights channel,g128
  qqq bench gemm --tune --json

Every kernel is checked before it is timed: against exact sums with int8 activations, and within what rounding explains with \
16-bit ones (W4A16). Times are medians of short bursts in a CUDA graph, on \
random data, with weights that come from memory. \"us\" lets a launch begin while the one before it ends, as in a model; \
\"alone us\" does not. The ceilings are what this GPU gives at most, measured first: \"of ceiling\" is the least time they \
allow as a part of the time; with 16-bit activations they count half the rate of int8.";

/// Speed of the GPU's matrix products, beside cuBLAS in float16
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct GemmArgs {
    /// Output and input channels of the weights
    #[arg(long = "shape", value_name = "NxK", default_value = "8192x21760", value_delimiter = ',')]
    shapes: Vec<Shape>,
    /// Numbers of tokens
    #[arg(long, value_name = "M", default_value = "1,16,32,64,128,256,512,1024,4096", value_delimiter = ',')]
    tokens: Vec<usize>,
    /// Weights: channel, g32, g64, g128 (integer group scales), g32-half, g64-half, g128-half (float16 ones), int8;
    /// 16-bit activations take all group scales as 16-bit numbers
    #[arg(long, value_name = "KIND", default_value = "channel", value_delimiter = ',')]
    weights: Vec<Weights>,
    /// Type of the activations: int8 with a scale a token (W4A8), or f16 or bf16 (W4A16, 4-bit weights only)
    #[arg(long, value_name = "TYPE", default_value = "int8")]
    activations: Activations,
    /// Type of the output [default: f16, or the activations' own]
    #[arg(long, value_name = "TYPE")]
    output: Option<Output>,
    /// Kernels: the GPU's own, or those for every GPU since Ampere (mma.sync)
    #[arg(long, value_name = "WHICH", default_value = "auto")]
    kernels: Kernels,
    /// Number of the GPU
    #[arg(long, value_name = "N", default_value_t = 0)]
    gpu: usize,
    /// Try all instances of the kernel and report the fastest
    #[arg(long)]
    tune: bool,
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

#[derive(Clone, Debug)]
struct Weights {
    name: String,
    choice: WeightChoice,
}

impl FromStr for Weights {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let size = |s: &str| s.parse().ok().filter(|g| [32, 64, 128].contains(g));
        let choice = match s {
            "channel" => Some(WeightChoice::Channel),
            "int8" => Some(WeightChoice::Int8),
            _ => s.strip_prefix('g').and_then(|rest| match rest.strip_suffix("-half") {
                Some(group) => size(group).map(WeightChoice::GroupHalf),
                None => size(rest).map(WeightChoice::GroupInteger),
            }),
        };
        let choice =
            choice.ok_or("one of channel, g32, g64, g128, g32-half, g64-half, g128-half, int8 is needed")?;
        Ok(Self { name: s.to_owned(), choice })
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Activations {
    Int8,
    F16,
    Bf16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    F16,
    Bf16,
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
    microseconds: f64,
    alone_microseconds: f64,
    tops: f64,
    gb_per_second: f64,
    of_ceiling: Option<f64>,
    cublas_f16_microseconds: Option<f64>,
    speed_up: Option<f64>,
}

impl Line {
    fn new(shape: Shape, weights: &str, activations: Activations, m: &Measurement) -> Self {
        Self {
            n: shape.n,
            k: shape.k,
            weights: weights.to_owned(),
            activations: match activations {
                Activations::Int8 => "int8",
                Activations::F16 => "f16",
                Activations::Bf16 => "bf16",
            },
            tokens: m.m,
            kernel: m.plan.config.source().name,
            split: m.plan.split,
            microseconds: m.microseconds,
            alone_microseconds: m.serial_microseconds,
            tops: m.tops,
            gb_per_second: m.gb_per_second,
            of_ceiling: m.of_ceiling,
            cublas_f16_microseconds: m.cublas_microseconds,
            speed_up: m.cublas_microseconds.map(|c| c / m.microseconds),
        }
    }
}

/// What activations and output are made of.
fn types(args: &GemmArgs) -> anyhow::Result<(Activation, OutputType)> {
    let (activation, own) = match args.activations {
        Activations::Int8 => (Activation::Int8, None),
        Activations::F16 => (Activation::Float16, Some(Output::F16)),
        Activations::Bf16 => (Activation::Bfloat16, Some(Output::Bf16)),
    };
    if own.is_some() && args.output.is_some_and(|o| Some(o) != own) {
        return Err(bad_input("--output: 16-bit activations give outputs of their own type"));
    }
    if own.is_some() && args.weights.iter().any(|w| w.choice == WeightChoice::Int8) {
        return Err(bad_input("--weights int8 needs --activations int8: there is no W8A16 kernel"));
    }
    let output = match args.output.or(own).unwrap_or(Output::F16) {
        Output::F16 => OutputType::Float16,
        Output::Bf16 => OutputType::Bfloat16,
    };
    Ok((activation, output))
}

/// Runs the command.
pub fn run(args: &GemmArgs, console: &Console) -> anyhow::Result<()> {
    for s in &args.shapes {
        if s.n == 0 || s.k == 0 || !s.n.is_multiple_of(16) || !s.k.is_multiple_of(16) || s.k > 65536 {
            return Err(bad_input(format!(
                "--shape {}x{}: both must be multiples of 16, and K at most 65,536",
                s.n, s.k
            )));
        }
        for w in &args.weights {
            if let WeightChoice::GroupInteger(g) | WeightChoice::GroupHalf(g) = w.choice
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
    let types = types(args)?;
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
    let ceilings = Ceilings::measure(&device)?;
    let mut results = Vec::new();
    let mut progress = Progress::new(console, "measuring");
    let total = (args.shapes.len() * args.weights.len() * args.tokens.len()) as f64;
    let mut without_cublas = false;
    for &shape in &args.shapes {
        let bench = GemmBench::new(&device, ceilings, shape.n, shape.k)?;
        without_cublas |= !bench.has_cublas();
        for weights in &args.weights {
            bench.run(weights.choice, types, arch, &args.tokens, args.tune, &mut |m| {
                progress.update(results.len() as f64, total, &format!("{} tokens", m.m));
                results.push(Line::new(shape, &weights.name, args.activations, &m));
            })?;
        }
    }
    drop(progress);
    if without_cublas {
        console
            .note("cuBLASLt is not installed (libcublasLt.so cannot be loaded): no comparison with float16");
    }
    let outcome = Outcome {
        gpu: device.name().to_owned(),
        read_gb_per_second: ceilings.map(|c| c.read_gb_per_second),
        int8_tops: ceilings.map(|c| c.int8_tops),
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
                format!("{:.1}", l.alone_microseconds),
                format!("{:.0}", l.tops),
                format!("{:.0}", l.gb_per_second),
                l.of_ceiling.map_or(String::from("-"), |c| format!("{:.0}%", c * 100.0)),
                optional(l.cublas_f16_microseconds, 1),
                optional(l.speed_up, 2),
                l.kernel.replace("_gemm", "") + if l.split { " split" } else { "" },
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
            "cuBLAS f16 us",
            "speed-up",
            "kernel",
        ];
        let table = table(console, &header, 2, rows);
        let ceilings = match (o.read_gb_per_second, o.int8_tops) {
            (Some(read), Some(tops)) => format!("ceilings: {read:.0} GB/s read, {tops:.0} TOPS int8"),
            _ => String::from("its ceilings are not measured"),
        };
        format!("{table}\n{}; {ceilings}", o.gpu)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(types(&[]), Ok((Activation::Int8, OutputType::Float16)));
        assert_eq!(types(&["--output", "bf16"]), Ok((Activation::Int8, OutputType::Bfloat16)));
        assert_eq!(types(&["--activations", "bf16"]), Ok((Activation::Bfloat16, OutputType::Bfloat16)));
        assert_eq!(
            types(&["--activations", "f16", "--output", "f16"]),
            Ok((Activation::Float16, OutputType::Float16))
        );
        assert!(types(&["--activations", "f16", "--output", "bf16"]).unwrap_err().contains("own type"));
        assert!(types(&["--activations", "bf16", "--weights", "g64,int8"]).unwrap_err().contains("W8A16"));
    }

    #[test]
    fn shapes_and_weights() {
        let shape: Shape = "4096x11008".parse().unwrap();
        assert_eq!((shape.n, shape.k), (4096, 11008));
        assert!("4096".parse::<Shape>().is_err() && "4096x".parse::<Shape>().is_err());
        let choice = |s: &str| s.parse::<Weights>().map(|w| w.choice);
        assert_eq!(choice("g64"), Ok(WeightChoice::GroupInteger(64)));
        assert_eq!(choice("g128-half"), Ok(WeightChoice::GroupHalf(128)));
        assert_eq!(choice("channel"), Ok(WeightChoice::Channel));
        assert!(choice("g16").is_err() && choice("g").is_err() && choice("half").is_err());
    }
}
