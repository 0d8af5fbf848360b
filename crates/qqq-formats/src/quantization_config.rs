//! `quantization_config` of `config.json`: which layers are quantized, and how each of them is stored.

use serde_json::{Map, Value};

use crate::{
    FormatError, Result,
    keys::{KnownKeys, shown},
    module_pattern::ModulePattern,
};

mod compressed_tensors;
mod qqq;

pub(crate) use compressed_tensors::weight_only;
pub(crate) use qqq::PROVENANCE;

/// On-disk form of a W4A8 checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointFormat {
    /// The QQQ reference's tiles (`B`, `s_channel`, `s_group`).
    Qqq,
    /// compressed-tensors: int4 weights with dynamic per-token int8 activations.
    CompressedTensors,
}

impl CheckpointFormat {
    /// Name on the command line and in reports; `quant_method` in config.json.
    pub fn name(self) -> &'static str {
        match self {
            CheckpointFormat::Qqq => "qqq",
            CheckpointFormat::CompressedTensors => "compressed-tensors",
        }
    }
}

/// How the codes of a layer lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeLayout {
    /// Tiles of the QQQ reference, `quant_method` "qqq".
    Tiles,
    /// Eight codes in a word (compressed-tensors' `pack-quantized`).
    Packed,
    /// A code in a byte (compressed-tensors' `int-quantized`).
    Bytes,
}

/// How one linear layer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerScheme {
    /// Input channels that share a scale; `None`: one scale per output channel.
    pub group_size: Option<usize>,
    /// How the codes lie in the file.
    pub layout: CodeLayout,
}

/// How the linear layers of a checkpoint are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizationConfig {
    /// How tensors are named and laid out on disk.
    pub format: CheckpointFormat,
    /// The first that matches a layer counts; a layer that none matches is float.
    rules: Vec<Rule>,
}

/// What holds for the layers that a pattern names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    pattern: ModulePattern,
    /// `None`: these layers are float.
    scheme: Option<LayerScheme>,
}

/// Group sizes that the kernels take.
pub(crate) const GROUP_SIZES: [u64; 3] = [32, 64, 128];

/// The module that stays float where nothing else is said.
pub(crate) const HEAD: &str = "lm_head";

/// What the error messages say is possible.
pub(crate) const SUPPORTED: &str = "supported are quant_method \"qqq\" (wbits or bits 4, group_size -1 or 128) and \
    \"compressed-tensors\" in the forms pack-quantized and int-quantized with symmetric int4 weights (per channel, or \
    groups of 32, 64 or 128) and dynamic symmetric per-token int8 input activations; qqq convert makes such checkpoints of \
    4-bit weights alone (GPTQ, AWQ, AutoRound, compressed-tensors W4A16)";

impl QuantizationConfig {
    /// All linear layers alike, but for the output head, which is float: what the quantizer writes.
    pub fn uniform(format: CheckpointFormat, group_size: Option<usize>) -> Self {
        let layout = match format {
            CheckpointFormat::Qqq => CodeLayout::Tiles,
            CheckpointFormat::CompressedTensors => CodeLayout::Packed,
        };
        let rules = vec![
            Rule { pattern: ModulePattern::name(HEAD), scheme: None },
            Rule { pattern: ModulePattern::every_linear(), scheme: Some(LayerScheme { group_size, layout }) },
        ];
        Self { format, rules }
    }

    /// As [`uniform`](Self::uniform), but for the modules `float`, which are not quantized either.
    pub fn uniform_but(format: CheckpointFormat, group_size: Option<usize>, float: &[String]) -> Self {
        let mut config = Self::uniform(format, group_size);
        let rules = float.iter().map(|name| Rule { pattern: ModulePattern::name(name), scheme: None });
        config.rules.splice(1..1, rules);
        config
    }

    /// Reads the value of `quantization_config`.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`] for everything that would not run exactly as it says, keys that are not known
    /// among them.
    pub fn from_value(value: &Value) -> Result<Self> {
        let map =
            value.as_object().ok_or_else(|| unsupported(format_args!("it is not an object: {value}")))?;
        match map.get("quant_method").and_then(Value::as_str) {
            Some("qqq") => qqq::read(map),
            Some("compressed-tensors") => compressed_tensors::read(map),
            Some(other) => Err(unsupported(format_args!("quant_method is {other:?}"))),
            None => Err(unsupported(format_args!("it names no quant_method"))),
        }
    }

    /// The value of `quantization_config`, as other readers of the format expect it.
    pub fn to_value(&self) -> Value {
        match self.format {
            CheckpointFormat::Qqq => qqq::write(&self.rules),
            CheckpointFormat::CompressedTensors => compressed_tensors::write(&self.rules),
        }
    }

    /// How the linear layer `module` (`lm_head`, `model.layers.0.mlp.down_proj`) is stored; `None` if it is float.
    ///
    /// # Errors
    /// A regular expression of the configuration that takes too long to match.
    pub fn scheme(&self, module: &str) -> Result<Option<LayerScheme>> {
        for rule in &self.rules {
            if rule.pattern.matches(module).map_err(|e| unsupported(format_args!("{e}")))? {
                return Ok(rule.scheme);
            }
        }
        Ok(None)
    }

    /// Whether the module `name` is kept in float.
    pub fn ignores(&self, name: &str) -> bool {
        matches!(self.scheme(name), Ok(None))
    }

    /// The kinds of quantized layers that the configuration names, each once.
    pub fn schemes(&self) -> Vec<LayerScheme> {
        let mut schemes = Vec::new();
        for scheme in self.rules.iter().filter_map(|rule| rule.scheme) {
            if !schemes.contains(&scheme) {
                schemes.push(scheme);
            }
        }
        schemes
    }
}

pub(crate) fn unsupported(what: std::fmt::Arguments<'_>) -> FormatError {
    FormatError::Unsupported(format!("quantization_config is not supported: {what}; {SUPPORTED}"))
}

/// The value of `key` for a message.
pub(crate) fn found(map: &Map<String, Value>, key: &str) -> String {
    map.get(key).map_or_else(|| "missing".into(), shown)
}

/// Checks that `key` (or `default`, where it is missing) is one of `allowed`.
pub(crate) fn expect(
    map: &Map<String, Value>,
    at: &str,
    key: &str,
    allowed: &[Value],
    default: Option<&Value>,
) -> Result<()> {
    match map.get(key).or(default) {
        Some(value) if allowed.contains(value) => Ok(()),
        _ => Err(unsupported(format_args!("{at}{key} is {}", found(map, key)))),
    }
}

/// Refuses keys that are not known.
pub(crate) fn expect_known(map: &Map<String, Value>, at: &str, keys: &KnownKeys) -> Result<()> {
    match keys.first_unknown(map, &[]) {
        None => Ok(()),
        Some((key, value)) => Err(unsupported(format_args!(
            "{at}{key} is {}, a key that is not known here and may change what the weights mean (remove it if it \
             does not)",
            shown(value)
        ))),
    }
}
