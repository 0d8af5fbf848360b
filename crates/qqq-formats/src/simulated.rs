//! Simulated checkpoints: 16-bit weights, and a record of the arithmetic that a method would run them with.
//!
//! There are methods whose arithmetic no kernel here runs. Their weights are stored in 16 bits at the values that the method
//! would multiply by, and `config.json` names the method; what a layer's arithmetic needs besides lies beside its weight. Its
//! `quantization_config`:
//!
//! ```json
//! {"quant_method": "qqq-simulated", "recipe": "quik", "parameters": {"bits": 4, ...}, "bits_per_weight": 4.92}
//! ```
//!
//! Tensors beside `weight` (`N x K`): of `quik` `weight_scale` (`N`, of the weight's type) and `outlier_columns` (I32, rising),
//! where these have 8 bits `outlier_scale` (as `weight_scale`).
//! No other tool may take such a checkpoint for one of floats. vLLM refuses the `quant_method`; transformers, which passes over
//! a method that it does not know, refuses the `model_type`, which is [`METHOD`] as well.

mod weight;

use std::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::{
    Result,
    keys::shown,
    quantization_config::{found, unsupported},
};

pub(crate) use weight::arithmetic;
pub use weight::{Arithmetic, SimulatedWeight};

/// `quant_method`, and `model_type`, of simulated checkpoints.
pub const METHOD: &str = "qqq-simulated";
/// The scales of a QUIK layer's codes.
pub const SCALE: &str = "weight_scale";
/// The outlier channels of a QUIK layer.
pub const OUTLIERS: &str = "outlier_columns";
/// The scales of a QUIK layer's outlier weights, where these are codes.
pub const OUTLIER_SCALE: &str = "outlier_scale";

/// LLM.int8() (Dettmers et al., arXiv 2208.07339): input channels with large values in 16 bits, the rest in int8.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LlmInt8 {
    /// Magnitude from which on a value makes its channel an outlier of a step's tokens.
    pub threshold: f32,
}

impl Default for LlmInt8 {
    fn default() -> Self {
        Self { threshold: 6.0 }
    }
}

/// QUIK (Ashkboos et al., arXiv 2310.09259): weights and activations of 4 bits, but for outlier channels in 16 bits (or 8), and
/// for the down projection in 8 bits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quik {
    /// Bits of weights and activations, 4 or 8.
    pub bits: u8,
    /// The same of the down projection.
    pub down_bits: u8,
    /// Share of a layer's input channels that are outliers: the paper's 256 of 4096.
    pub outliers: f64,
    /// Bits of the outliers' weights and activations, 8 or 16.
    pub outlier_bits: u8,
    /// Share of the Hessian's mean diagonal that is added to it.
    pub damping: f64,
}

impl Default for Quik {
    fn default() -> Self {
        Self { bits: 4, down_bits: 8, outliers: 0.0625, outlier_bits: 16, damping: 0.01 }
    }
}

impl Quik {
    /// Bits of weights and activations of the linear layer `module`.
    pub fn bits_of(&self, module: &str) -> u8 {
        if module.ends_with("down_proj") { self.down_bits } else { self.bits }
    }
}

/// SpQR (Dettmers et al., arXiv 2306.03078): small groups with quantized scales and zeros, sensitive weights in 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpQr {
    /// Bits of a weight, 2 to 8.
    pub bits: u8,
    /// Input channels that share a scale and a zero (the paper's beta 1).
    pub group: usize,
    /// Bits of a scale and of a zero, 2 to 16; at 16 they are not quantized.
    pub statistics_bits: u8,
    /// Output channels whose scales (and zeros) of a group of input channels share theirs (the paper's beta 2).
    pub statistics_group: usize,
    /// Saliency from which on a weight is an outlier, as a share of the mean of a column's variance over its `(H^-1)_jj`:
    /// the paper's tau in a unit that fits all layers. Infinite (`null`): there are no outliers.
    #[serde(with = "finite_or_null")]
    pub threshold: f64,
    /// Share of the Hessian's mean diagonal that is added to it.
    pub damping: f64,
}

impl Default for SpQr {
    fn default() -> Self {
        Self { bits: 3, group: 16, statistics_bits: 3, statistics_group: 16, threshold: 0.2, damping: 1.0 }
    }
}

/// JSON has no infinity.
mod finite_or_null {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        value.is_finite().then_some(*value).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
    }
}

/// QuIP (Chee et al., arXiv 2307.13304): incoherence by random orthogonal matrices on both sides, and adaptive rounding.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quip {
    /// Bits of a weight, 2 to 8.
    pub bits: u8,
    /// Whether weights are turned and rescaled before they are rounded (the paper's incoherence processing).
    pub incoherence: bool,
    /// Greedy passes over the columns after LDLQ (the paper has 10, and 5 for large models).
    pub greedy: usize,
    /// Half the range of the codes, in standard deviations of the processed weights.
    pub rho: f64,
    /// Share of the Hessian's mean diagonal that is added to it (the paper's alpha).
    pub damping: f64,
}

impl Default for Quip {
    fn default() -> Self {
        Self { bits: 2, incoherence: true, greedy: 0, rho: 2.4, damping: 0.01 }
    }
}

/// A method that is simulated, with its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "recipe", content = "parameters", rename_all = "kebab-case")]
pub enum SimulatedMethod {
    /// Decides on outliers when it runs.
    LlmInt8(LlmInt8),
    /// Knows its outliers, and quantizes activations.
    Quik(Quik),
    /// Weights alone.
    #[serde(rename = "spqr")]
    SpQr(SpQr),
    /// Weights alone.
    Quip(Quip),
}

impl SimulatedMethod {
    /// Names of all of them.
    pub const NAMES: [&str; 4] = ["llm-int8", "quik", "spqr", "quip"];

    /// As in `recipe` of the configuration.
    pub fn name(&self) -> &'static str {
        let [llm_int8, quik, spqr, quip] = Self::NAMES;
        match self {
            Self::LlmInt8(_) => llm_int8,
            Self::Quik(_) => quik,
            Self::SpQr(_) => spqr,
            Self::Quip(_) => quip,
        }
    }

    /// The method `name` with parameters, of which those that are missing have the values of its paper.
    ///
    /// # Errors
    /// A name or a parameter that is not known, values that are none of the method's, in words that go on after "the recipe ".
    pub fn with(name: &str, parameters: Map<String, Value>) -> std::result::Result<Self, String> {
        fn read<T: DeserializeOwned>(name: &str, parameters: Map<String, Value>) -> Result<T, String> {
            serde_json::from_value(Value::Object(parameters)).map_err(|e| format!("{name}: {e}"))
        }
        let [llm_int8, quik, spqr, quip] = Self::NAMES;
        let method = match name {
            _ if name == llm_int8 => Self::LlmInt8(read(name, parameters)?),
            _ if name == quik => Self::Quik(read(name, parameters)?),
            _ if name == spqr => Self::SpQr(read(name, parameters)?),
            _ if name == quip => Self::Quip(read(name, parameters)?),
            _ => return Err(format!("{name:?} is none of {}", Self::NAMES.join(", "))),
        };
        method.check().map_err(|reason| format!("{name}: {reason}"))?;
        Ok(method)
    }

    /// Whether its layers do more with their inputs than to multiply them.
    pub fn has_arithmetic(&self) -> bool {
        matches!(self, Self::LlmInt8(_) | Self::Quik(_))
    }

    /// Share of the Hessian's mean diagonal that it adds to that; 0 where it looks at none.
    pub fn damping(&self) -> f64 {
        match *self {
            Self::LlmInt8(_) => 0.0,
            Self::Quik(Quik { damping, .. })
            | Self::SpQr(SpQr { damping, .. })
            | Self::Quip(Quip { damping, .. }) => damping,
        }
    }

    /// Checks the ranges of its parameters.
    ///
    /// # Errors
    /// A value that is none of the method's, in words that name the parameter.
    pub fn check(&self) -> std::result::Result<(), String> {
        let damped = |damping: f64| (0.0..=1e6).contains(&damping);
        let within = |what: &str, bits: u8, least: u8, most: u8| {
            if (least..=most).contains(&bits) {
                return Ok(());
            }
            Err(format!("{what} is {bits}, but must be from {least} to {most}"))
        };
        let number = |holds: bool, what: &str, value: f64, must: &str| {
            if holds { Ok(()) } else { Err(format!("{what} is {value}, but must be {must}")) }
        };
        match *self {
            Self::LlmInt8(LlmInt8 { threshold }) => number(
                threshold > 0.0 && threshold.is_finite(),
                "threshold",
                threshold.into(),
                "a number > 0",
            ),
            Self::Quik(Quik { bits, down_bits, outliers, outlier_bits, damping }) => {
                for (what, bits) in [("bits", bits), ("down_bits", down_bits)] {
                    number(bits == 4 || bits == 8, what, bits.into(), "4 or 8")?;
                }
                number((0.0..=0.5).contains(&outliers), "outliers", outliers, "a share from 0 to 0.5")?;
                number([8, 16].contains(&outlier_bits), "outlier_bits", outlier_bits.into(), "8 or 16")?;
                number(damped(damping), "damping", damping, "a number from 0 to 1e6")
            }
            Self::SpQr(SpQr { bits, group, statistics_bits, statistics_group, threshold, damping }) => {
                within("bits", bits, 2, 8)?;
                within("statistics_bits", statistics_bits, 2, 16)?;
                for (what, size) in [("group", group), ("statistics_group", statistics_group)] {
                    number((2..=4096).contains(&size), what, size as f64, "from 2 to 4096")?;
                }
                number(threshold > 0.0, "threshold", threshold, "a number > 0")?;
                number(damped(damping), "damping", damping, "a number from 0 to 1e6")
            }
            Self::Quip(Quip { bits, greedy, rho, damping, .. }) => {
                within("bits", bits, 2, 16)?;
                number(greedy <= 1000, "greedy", greedy as f64, "at most 1000 passes")?;
                number(rho > 0.0 && rho.is_finite(), "rho", rho, "a number > 0")?;
                number(damped(damping), "damping", damping, "a number from 0 to 1e6")
            }
        }
    }
}

impl fmt::Display for SimulatedMethod {
    /// Its name and its parameters: `quik (bits 4, ...)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = serde_json::to_value(self).unwrap_or_default();
        let parameters = value.get("parameters").and_then(Value::as_object);
        let parameters: Vec<String> =
            parameters.into_iter().flatten().map(|(key, value)| format!("{key} {value}")).collect();
        write!(f, "{} ({})", self.name(), parameters.join(", "))
    }
}

/// The `quantization_config` of a simulated checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Simulated {
    /// What is simulated.
    pub method: SimulatedMethod,
    /// Bits for a weight of the blocks' linear layers that the method would store, scales and outliers included; `None` while
    /// that is not known.
    pub bits_per_weight: Option<f64>,
}

// A number of bits is no NaN: `read` sees to it.
impl Eq for Simulated {}

impl Simulated {
    /// Reads the value of `quantization_config`.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`]: a method or keys that are not known.
    pub(crate) fn read(map: &Map<String, Value>) -> Result<Self> {
        const KEYS: [&str; 4] = ["quant_method", "recipe", "parameters", "bits_per_weight"];
        if let Some((key, value)) = map.iter().find(|(key, _)| !KEYS.contains(&key.as_str())) {
            return Err(unsupported(format_args!(
                "{key} of {METHOD} is {}, which is not known",
                shown(value)
            )));
        }
        let Some(name) = map.get("recipe").and_then(Value::as_str) else {
            return Err(unsupported(format_args!("recipe of {METHOD} is {}", found(map, "recipe"))));
        };
        let Some(Value::Object(parameters)) = map.get("parameters") else {
            return Err(unsupported(format_args!("parameters of {METHOD} are {}", found(map, "parameters"))));
        };
        let method = SimulatedMethod::with(name, parameters.clone())
            .map_err(|reason| unsupported(format_args!("of {METHOD} the recipe {reason}")))?;
        let bits_per_weight = match map.get("bits_per_weight") {
            None | Some(Value::Null) => None,
            Some(value) => {
                let bits = value.as_f64().filter(|bits| *bits > 0.0 && bits.is_finite());
                Some(bits.ok_or_else(|| unsupported(format_args!("bits_per_weight of {METHOD} is {value}")))?)
            }
        };
        Ok(Self { method, bits_per_weight })
    }

    /// The value of `quantization_config`.
    pub(crate) fn to_value(self) -> Value {
        let mut value = json!({"quant_method": METHOD});
        if let (Value::Object(map), Ok(Value::Object(method))) =
            (&mut value, serde_json::to_value(self.method))
        {
            map.extend(method);
            map.extend(self.bits_per_weight.map(|bits| ("bits_per_weight".to_owned(), json!(bits))));
        }
        value
    }
}
