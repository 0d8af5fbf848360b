//! Options that published recipes have of their own.

use std::str::FromStr;

use qqq_formats::SimulatedMethod;

use super::RecipeArgs;
use crate::{errors::bad_input, numbers};

/// Options of one or two recipes.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Options of published recipes")]
pub(super) struct PaperArgs {
    /// How much of the outliers --recipe smoothquant moves into the weights, from 0 to 1, or "search": for each input what loses
    /// least [default: 0.5]
    #[arg(long, value_name = "STRENGTH", value_parser = str::parse::<Alpha>)]
    pub alpha: Option<Alpha>,
    /// Times that --recipe omniquant goes through the calibration windows; 0: nothing is learned [default: 20]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = numbers::whole)]
    pub epochs: Option<usize>,
    /// --recipe llm-int8: magnitude from which on an input makes its channel one of 16 bits [default: 6]. --recipe spqr:
    /// sensitivity from which on a weight is kept in 16 bits, as a share of the layer's mean; "inf": none [default: 0.2]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub outlier_threshold: Option<f64>,
    /// --recipe quik: share of a layer's input channels that stay in 16 bits [default: 0.0625, 256 of 4096]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub outliers: Option<f64>,
    /// --recipe quik: bits of the weights and activations of these channels, 8 or 16 [default: 16]
    #[arg(long, value_name = "BITS")]
    pub outlier_bits: Option<u8>,
    /// --recipe quik: bits of the down projection's weights and activations, 4 or 8 [default: 8]
    #[arg(long, value_name = "BITS")]
    pub down_bits: Option<u8>,
    /// --recipe spqr: input channels that share a scale and a zero [default: 16]
    #[arg(long, value_name = "CHANNELS")]
    pub beta1: Option<usize>,
    /// --recipe spqr: output channels whose scales, and zeros, are quantized together [default: 16]
    #[arg(long, value_name = "CHANNELS")]
    pub beta2: Option<usize>,
    /// --recipe spqr: bits of a scale and of a zero; 16: not quantized [default: 3]
    #[arg(long, value_name = "BITS")]
    pub statistics_bits: Option<u8>,
    /// --recipe quip: greedy passes over the columns after the rounding [default: 0]
    #[arg(long, value_name = "PASSES")]
    pub greedy: Option<usize>,
    /// --recipe quip: half the range of the codes, in root mean squares of a layer's turned weights [default: 2.4]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub rho: Option<f64>,
    /// --recipe quip: round the weights as they are, without random matrices
    #[arg(long)]
    pub no_incoherence: bool,
}

impl PaperArgs {
    /// Their names.
    pub const OPTIONS: [&str; 12] = [
        "alpha",
        "epochs",
        "outlier-threshold",
        "outliers",
        "outlier-bits",
        "down-bits",
        "beta1",
        "beta2",
        "statistics-bits",
        "greedy",
        "rho",
        "no-incoherence",
    ];
}

/// Parameters of simulated methods that are called otherwise on the command line.
const RENAMED: [(&str, &str); 3] =
    [("threshold", "outlier-threshold"), ("group", "beta1"), ("statistics_group", "beta2")];

/// `--alpha`: how much of the outliers migrates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Alpha {
    /// So much.
    Given(f64),
    /// What loses least, for each site.
    Search,
}

impl FromStr for Alpha {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            _ if text == "search" => Ok(Self::Search),
            Ok(strength) if (0.0..=1.0).contains(&strength) => Ok(Self::Given(strength)),
            _ => Err(format!("{text:?} is neither a number from 0 to 1 nor search")),
        }
    }
}

fn set<T>(parameter: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *parameter = given;
    }
}

impl RecipeArgs {
    /// A simulated method with what was said of it.
    pub(super) fn simulated(&self, mut method: SimulatedMethod) -> anyhow::Result<SimulatedMethod> {
        let bits = self.given.has("bits").then_some(self.bits);
        let damping = self.given.has("damping").then_some(self.damping);
        let given = &self.papers;
        match &mut method {
            SimulatedMethod::LlmInt8(options) => {
                set(&mut options.threshold, given.outlier_threshold.map(|x| x as f32));
            }
            SimulatedMethod::Quik(options) => {
                set(&mut options.bits, bits);
                set(&mut options.down_bits, given.down_bits);
                set(&mut options.outliers, given.outliers);
                set(&mut options.outlier_bits, given.outlier_bits);
                set(&mut options.damping, damping);
            }
            SimulatedMethod::SpQr(options) => {
                set(&mut options.bits, bits);
                set(&mut options.group, given.beta1);
                set(&mut options.statistics_group, given.beta2);
                set(&mut options.statistics_bits, given.statistics_bits);
                set(&mut options.threshold, given.outlier_threshold);
                set(&mut options.damping, damping);
            }
            SimulatedMethod::Quip(options) => {
                set(&mut options.bits, bits);
                set(&mut options.greedy, given.greedy);
                set(&mut options.rho, given.rho);
                set(&mut options.damping, damping);
                options.incoherence &= !given.no_incoherence;
            }
        }
        match method.check() {
            Ok(()) => Ok(method),
            // It begins with the parameter.
            Err(reason) => {
                let (parameter, rest) = reason.split_once(' ').unwrap_or((&reason, ""));
                let renamed = RENAMED.iter().find(|(name, _)| *name == parameter);
                let option = renamed.map_or_else(|| parameter.replace('_', "-"), |(_, to)| (*to).to_owned());
                Err(bad_input(format!("--{option} {rest}, with --recipe {}", self.name)))
            }
        }
    }
}
