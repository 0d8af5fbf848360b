//! Where models run.

use clap::{
    Arg, Command, Error,
    builder::{PossibleValue, StringValueParser, TypedValueParser},
    error::{ContextKind, ContextValue, ErrorKind},
};

/// Where a command computes.
#[derive(Clone, Debug, clap::Args)]
pub struct DeviceArgs {
    /// Where to compute: cpu, which is what auto takes too. On GPUs models run in vLLM, by the plugin qqq-vllm
    #[arg(long, value_name = "DEVICE", help_heading = None::<&str>, default_value = "auto", value_parser = DeviceParser)]
    // Whatever the parser lets through is the CPU: nobody needs to look.
    device: Device,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Device {
    Cpu,
}

/// Takes what is a CPU, and says of GPUs where models run on them.
#[derive(Clone)]
struct DeviceParser;

/// What other tools call GPUs.
const GPUS: [&str; 10] = ["cuda", "gpu", "rocm", "hip", "mps", "metal", "vulkan", "xpu", "tpu", "npu"];

impl TypedValueParser for DeviceParser {
    type Value = Device;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Device, Error> {
        let text = StringValueParser::new().parse_ref(command, arg, value)?;
        let name = text.split(':').next().unwrap_or_default().to_lowercase();
        if ["auto", "cpu"].contains(&text.as_str()) {
            return Ok(Device::Cpu);
        }
        if GPUS.contains(&name.as_str()) {
            return Err(Error::raw(
                ErrorKind::InvalidValue,
                format!(
                    "--device {text}: models run on CPUs here (--device cpu), and on NVIDIA GPUs in vLLM with the plugin \
                     qqq-vllm: vllm serve CHECKPOINT --quantization qqq\n"
                ),
            )
            .with_cmd(command));
        }
        let mut error = Error::new(ErrorKind::InvalidValue).with_cmd(command);
        let option = arg.map_or_else(|| "--device".to_owned(), ToString::to_string);
        error.insert(ContextKind::InvalidArg, ContextValue::String(option));
        error.insert(ContextKind::InvalidValue, ContextValue::String(text));
        error.insert(ContextKind::ValidValue, ContextValue::Strings(vec!["auto".into(), "cpu".into()]));
        Err(error)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(["auto", "cpu"].into_iter().map(PossibleValue::new)))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        _device: DeviceArgs,
    }

    #[test]
    fn cpus_are_taken_and_gpus_explained() {
        let parse =
            |device: &str| Line::try_parse_from(["qqq", "--device", device]).map_err(|e| e.to_string());
        assert!(parse("auto").is_ok() && parse("cpu").is_ok());
        for gpu in ["cuda", "cuda:1", "CUDA", "gpu", "mps"] {
            let error = parse(gpu).unwrap_err();
            assert!(error.contains(&format!("--device {gpu}: models run on CPUs here")), "{error}");
            assert!(error.contains("in vLLM with the plugin"), "{error}");
        }
        let error = parse("cpu:0").unwrap_err();
        assert!(error.contains("invalid value 'cpu:0'") && error.contains("auto, cpu"), "{error}");
    }
}
