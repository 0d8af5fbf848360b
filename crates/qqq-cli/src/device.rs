//! Where models run: the option, and what it names.

use std::{
    fmt::{self, Display, Formatter},
    sync::Arc,
};

use clap::{
    Arg, Command, Error,
    builder::{PossibleValue, StringValueParser, TypedValueParser},
    error::{ContextKind, ContextValue, ErrorKind},
};
use qqq_backend::{Calibrate, CpuBackend, cpu::isa::Isa, pool};
use qqq_cuda::{Arithmetic, CudaBackend, CudaError, CudaOptions, DType, Device};
use qqq_formats::Checkpoint;
use qqq_model::{Decoder, names};

use crate::{
    console::Console,
    download,
    errors::{bad_input_hint, failed_hint},
    format,
    model::{self, HubArgs},
};

/// Where a command that runs a model computes.
#[derive(Clone, Debug, clap::Args)]
pub struct DeviceArgs {
    /// Where to compute: cpu, cuda (the first GPU), cuda:N (GPU number N), or auto: a GPU if there is one that can, else the CPU
    #[arg(long, value_name = "DEVICE", help_heading = None::<&str>, default_value = "auto",
        value_parser = DeviceParser { gpus: true })]
    pub device: Choice,
}

/// Where a command computes that knows the CPU alone.
#[derive(Clone, Debug, clap::Args)]
pub struct CpuArgs {
    /// Where to compute: cpu, which is what auto takes too. `quantize` knows GPUs
    #[arg(long, value_name = "DEVICE", help_heading = None::<&str>, default_value = "auto",
        value_parser = DeviceParser { gpus: false })]
    // Whatever the parser lets through is the CPU: nobody needs to look.
    device: Choice,
}

/// A device that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// A GPU if there is one that can, else the CPU.
    Auto,
    /// The CPU, whatever else is there.
    Cpu,
    /// A GPU by its number.
    Cuda(usize),
}

impl Display for Choice {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// Takes devices' names, and says of other makers' GPUs, and of GPUs where a command has no use for them, what to do instead.
#[derive(Clone)]
struct DeviceParser {
    gpus: bool,
}

/// Takes the names of devices that a model runs on.
pub fn parser() -> impl TypedValueParser<Value = Choice> {
    DeviceParser { gpus: true }
}

/// What other tools call GPUs.
const GPUS: [&str; 10] = ["cuda", "gpu", "rocm", "hip", "mps", "metal", "vulkan", "xpu", "tpu", "npu"];

impl TypedValueParser for DeviceParser {
    type Value = Choice;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Choice, Error> {
        let text = StringValueParser::new().parse_ref(command, arg, value)?;
        let (name, number) = text.split_once(':').unwrap_or((&text, ""));
        match (text.as_str(), name, number.parse()) {
            ("auto", ..) => return Ok(Choice::Auto),
            ("cpu", ..) => return Ok(Choice::Cpu),
            ("cuda", ..) if self.gpus => return Ok(Choice::Cuda(0)),
            (_, "cuda", Ok(number)) if self.gpus => return Ok(Choice::Cuda(number)),
            _ => {}
        }
        if GPUS.contains(&name.to_lowercase().as_str()) && (name != "cuda" || !self.gpus) {
            let reason = match self.gpus {
                true => {
                    "models run on CPUs (--device cpu) and on NVIDIA GPUs (--device cuda, or cuda:1 for the second one)"
                }
                false => {
                    "this command computes on the CPU alone (--device cpu); `qqq quantize` knows NVIDIA GPUs, and what it writes runs there"
                }
            };
            return Err(
                Error::raw(ErrorKind::InvalidValue, format!("--device {text}: {reason}\n")).with_cmd(command)
            );
        }
        let mut error = Error::new(ErrorKind::InvalidValue).with_cmd(command);
        let option = arg.map_or_else(|| "--device".to_owned(), ToString::to_string);
        error.insert(ContextKind::InvalidArg, ContextValue::String(option));
        error.insert(ContextKind::InvalidValue, ContextValue::String(text));
        let valid = self.names().iter().map(|name| (*name).to_owned()).collect();
        error.insert(ContextKind::ValidValue, ContextValue::Strings(valid));
        Err(error)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.names().iter().map(PossibleValue::new)))
    }
}

impl DeviceParser {
    fn names(&self) -> &'static [&'static str] {
        if self.gpus { &["auto", "cpu", "cuda", "cuda:N"] } else { &["auto", "cpu"] }
    }
}

/// Runs an expression with a [`Place`] of whatever type the choice of a device for a model comes to.
macro_rules! on_device {
    ($choice:expr, $spec:expr, $hub:expr, |$place:ident| $job:expr) => {
        $crate::device::on_chosen!($crate::device::choose($choice, $spec, $hub)?, |$place| $job)
    };
}

/// Runs an expression with the [`Place`] that a choice came to, of whatever type.
macro_rules! on_chosen {
    ($chosen:expr, |$place:ident| $job:expr) => {
        match $chosen {
            $crate::device::Chosen::Cpu($place) => $job,
            $crate::device::Chosen::Cuda($place) => $job,
        }
    };
}
pub(crate) use {on_chosen, on_device};

/// What a choice comes to.
pub enum Chosen {
    /// The model runs on the CPU.
    Cpu(CpuPlace),
    /// The model runs on this GPU.
    Cuda(CudaPlace),
}

/// What a choice of a device for a model comes to on this machine. Where the choice is left to the tool, a line says why a
/// GPU that is there is not taken.
///
/// # Errors
/// A GPU was asked for, and there is none that can.
pub fn choose(choice: Choice, spec: &str, hub: &HubArgs) -> anyhow::Result<Chosen> {
    choose_by(choice, |device| match model::open(spec, hub) {
        Ok(checkpoint) => room(device, &checkpoint).map_err(Some),
        // What is wrong with the model is said where it is loaded.
        Err(_) => Err(None),
    })
}

/// As [`choose`], for work on a model that is open.
///
/// # Errors
/// As [`choose`].
pub fn choose_for(choice: Choice, checkpoint: &Checkpoint) -> anyhow::Result<Chosen> {
    choose_by(choice, |_| CudaBackend::check(&checkpoint.config).map_err(|e| Some(e.to_string())))
}

/// `fits` says why a GPU is not to be taken, if the choice is left to the tool; without a reason nothing is said.
fn choose_by(
    choice: Choice,
    fits: impl FnOnce(&Device) -> Result<(), Option<String>>,
) -> anyhow::Result<Chosen> {
    match choice {
        Choice::Cpu => Ok(Chosen::Cpu(CpuPlace)),
        Choice::Cuda(number) => {
            let device = usable(number).map_err(|e| {
                failed_hint(format!("--device cuda:{number}: {e}"), "--device cpu runs it on the CPU")
            })?;
            Ok(Chosen::Cuda(CudaPlace(device)))
        }
        Choice::Auto => {
            let reason = match usable(0) {
                Ok(device) => match fits(&device) {
                    Ok(()) => return Ok(Chosen::Cuda(CudaPlace(device))),
                    Err(Some(reason)) => reason,
                    Err(None) => return Ok(Chosen::Cpu(CpuPlace)),
                },
                Err(CudaError::NoDriver) => return Ok(Chosen::Cpu(CpuPlace)),
                Err(error) => error.to_string(),
            };
            let quiet = Console::new(false, true);
            download::console()
                .unwrap_or(&quiet)
                .note(&format!("running on the CPU, not on the GPU: {reason}"));
            Ok(Chosen::Cpu(CpuPlace))
        }
    }
}

/// A GPU that there are kernels for.
fn usable(number: usize) -> Result<Arc<Device>, CudaError> {
    let device = Device::new(number)?;
    device.arch()?;
    Ok(device)
}

/// Beside weights and cache: activations, workspaces, what the driver takes.
const SPARE_BYTES: u64 = 1 << 30;
/// Positions of the KV cache for which there must be room: a chat has half of them at first, and doubles once.
const CACHED_POSITIONS: usize = 8192;

/// That a GPU runs a model.
///
/// # Errors
/// Why it does not.
fn room(device: &Device, checkpoint: &Checkpoint) -> Result<(), String> {
    let config = &checkpoint.config;
    CudaBackend::check(config).map_err(|e| e.to_string())?;
    let weights: u64 = checkpoint
        .tensors
        .names()
        .iter()
        .filter_map(|name| checkpoint.tensors.info(name))
        .map(|info| {
            let elements: u64 = info.shape.iter().map(|n| *n as u64).product();
            // Floats are made 16-bit ones, also those of GGUF's blocks.
            if matches!(info.dtype, DType::I8 | DType::U8 | DType::I32 | DType::I64) {
                info.bytes
            } else {
                2 * elements
            }
        })
        .sum();
    let positions = config.max_position_embeddings.min(CACHED_POSITIONS);
    let cache = (4 * config.num_layers * config.num_kv_heads * config.head_dim * positions) as u64;
    let (free, _) = device.memory().map_err(|e| e.to_string())?;
    // What is simulated has codes of 16 bits beside 16-bit weights.
    let simulated = config.quantization.as_ref().and_then(|q| q.simulated());
    let twice = simulated.is_some_and(|simulated| simulated.method.has_arithmetic());
    let weights = if twice { 2 * weights } else { weights };
    let needed = weights + cache + SPARE_BYTES;
    if needed <= free as u64 {
        return Ok(());
    }
    Err(format!(
        "the model takes about {}, and {} are free",
        format::bytes(needed),
        format::bytes(free as u64)
    ))
}

/// Where a model is loaded.
pub trait Place {
    /// What computes there.
    type Backend: Calibrate;

    /// What computes a model there, with what can be said to a GPU.
    ///
    /// # Errors
    /// What the device refuses, and options where there is no GPU.
    fn backend_with(&self, checkpoint: &Checkpoint, options: CudaOptions) -> anyhow::Result<Self::Backend>;

    /// Names what results depend on to the last bit.
    ///
    /// # Errors
    /// Kernels are asked for that this machine does not have.
    fn identity(&self) -> anyhow::Result<String>;

    /// In a line, what runs a model: kernels, and memory of the weights.
    fn describe(&self, decoder: &Decoder<Self::Backend>) -> String;

    /// Bytes of a GPU's memory that can be allocated.
    fn available(&self) -> Option<u64>;

    /// Bytes of memory that a decoder takes when it is loaded: on a CPU its weights; on a GPU what is less [available](Self::available)
    /// than `before`, when it was not there.
    fn taken(&self, decoder: &Decoder<Self::Backend>, before: Option<u64>) -> Option<u64>;
}

/// The CPU, with the kernels that it has instructions for.
pub struct CpuPlace;

impl Place for CpuPlace {
    type Backend = CpuBackend;

    fn backend_with(&self, _checkpoint: &Checkpoint, options: CudaOptions) -> anyhow::Result<CpuBackend> {
        if options.memory_limit.is_some() {
            return Err(bad_input_hint(
                "--memory says how much of a GPU's memory may be taken, but the CPU computes",
                "leave it out, or choose a GPU (--device cuda)",
            ));
        }
        if options.arithmetic != Arithmetic::default() {
            return Err(bad_input_hint(
                format!(
                    "{} is not computed on the CPU, which computes what the checkpoint says",
                    options.arithmetic
                ),
                "choose a GPU (--device cuda)",
            ));
        }
        Ok(CpuBackend::default())
    }

    fn identity(&self) -> anyhow::Result<String> {
        Ok(format!("cpu with {} kernels", Isa::selected()?))
    }

    fn describe(&self, decoder: &Decoder<CpuBackend>) -> String {
        let kinds = decoder.layer_kinds();
        let mut kernels: Vec<(&str, &str)> = Vec::new();
        // The embedding is a table; what multiplies comes behind it.
        for kind in kinds.iter().skip(1) {
            if !kernels.contains(&(kind.kernel, kind.arithmetic)) {
                kernels.push((kind.kernel, kind.arithmetic));
            }
        }
        let kernels: Vec<String> =
            kernels.iter().map(|(kernel, arithmetic)| format!("{kernel} ({arithmetic})")).collect();
        for kind in &kinds {
            let bytes = match kind.bytes {
                0 => "the embedding's memory".into(),
                bytes => format::bytes(bytes as u64),
            };
            tracing::info!("{kind}, {bytes}");
        }
        format!(
            "kernels {}; {}; weights take {}",
            kernels.join(", "),
            format::threads(pool::num_threads()),
            format::bytes(kinds.iter().map(|k| k.bytes as u64).sum()),
        )
    }

    fn available(&self) -> Option<u64> {
        None
    }

    fn taken(&self, decoder: &Decoder<CpuBackend>, _before: Option<u64>) -> Option<u64> {
        Some(decoder.layer_kinds().iter().map(|kind| kind.bytes as u64).sum())
    }
}

/// A GPU that models can run on, opened.
pub struct CudaPlace(Arc<Device>);

impl Place for CudaPlace {
    type Backend = CudaBackend;

    /// Activations have the type of a model that is stored in float16, and bfloat16 otherwise, which has no numbers that are
    /// too large.
    fn backend_with(&self, checkpoint: &Checkpoint, options: CudaOptions) -> anyhow::Result<CudaBackend> {
        CudaBackend::check(&checkpoint.config)
            .map_err(|e| failed_hint(e.to_string(), "--device cpu runs it on the CPU"))?;
        let stored = checkpoint.tensors.info(names::EMBEDDING).map(|info| info.dtype);
        let half = if stored == Some(DType::F16) { DType::F16 } else { DType::BF16 };
        Ok(CudaBackend::with_options(&self.0, half, options)?)
    }

    fn identity(&self) -> anyhow::Result<String> {
        Ok(self.0.name().to_owned())
    }

    fn describe(&self, decoder: &Decoder<CudaBackend>) -> String {
        let (free, total) = self.0.memory().unwrap_or_default();
        format!(
            "{}, kernels for {}, activations {}; {} of {} are taken",
            self.0.name(),
            self.0.arch().map_or_else(|e| e.to_string(), |arch| arch.to_string()),
            decoder.backend.half(),
            format::bytes(total.saturating_sub(free) as u64),
            format::bytes(total as u64),
        )
    }

    fn available(&self) -> Option<u64> {
        self.0.available_memory().ok().map(|bytes| bytes as u64)
    }

    fn taken(&self, _decoder: &Decoder<CudaBackend>, before: Option<u64>) -> Option<u64> {
        before?.checked_sub(self.available()?)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        device: DeviceArgs,
    }

    #[derive(Debug, Parser)]
    struct CpuLine {
        #[command(flatten)]
        _device: CpuArgs,
    }

    #[test]
    fn devices_are_named() {
        let parse = |device: &str| {
            Line::try_parse_from(["qqq", "--device", device])
                .map(|line| line.device.device)
                .map_err(|e| e.to_string())
        };
        assert_eq!(parse("auto"), Ok(Choice::Auto));
        assert_eq!(parse("cpu"), Ok(Choice::Cpu));
        assert_eq!(parse("cuda"), Ok(Choice::Cuda(0)));
        assert_eq!(parse("cuda:3"), Ok(Choice::Cuda(3)));
        for gpu in ["gpu", "mps", "CUDA", "rocm:0"] {
            let error = parse(gpu).unwrap_err();
            assert!(error.contains(&format!("--device {gpu}: models run on CPUs (--device cpu)")), "{error}");
        }
        for wrong in ["cpu:0", "cuda:", "cuda:-1", "abacus"] {
            let error = parse(wrong).unwrap_err();
            assert!(
                error.contains(&format!("invalid value '{wrong}'")) && error.contains("cuda:N"),
                "{error}"
            );
        }
    }

    #[test]
    fn commands_of_the_cpu_explain_themselves() {
        let parse =
            |device: &str| CpuLine::try_parse_from(["qqq", "--device", device]).map_err(|e| e.to_string());
        assert!(parse("auto").is_ok() && parse("cpu").is_ok());
        for gpu in ["cuda", "cuda:1", "CUDA", "gpu", "mps"] {
            let error = parse(gpu).unwrap_err();
            assert!(
                error.contains(&format!("--device {gpu}: this command computes on the CPU alone")),
                "{error}"
            );
        }
        let error = parse("cpu:0").unwrap_err();
        assert!(error.contains("invalid value 'cpu:0'") && error.contains("auto, cpu"), "{error}");
    }
}
