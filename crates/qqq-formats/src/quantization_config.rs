//! `quantization_config` of `config.json`: which layers are quantized, and how each of them is stored.

use serde_json::{Map, Value};

use crate::{
    Activations, CodeBits, FormatError, LayerScheme, Result,
    keys::{KnownKeys, shown},
    module_pattern::ModulePattern,
    simulated::{METHOD, Simulated},
};

mod compressed_tensors;
mod qqq;

pub(crate) use compressed_tensors::{has_int8_activations, weight_only};
pub(crate) use qqq::PROVENANCE;

/// On-disk form of a quantized checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointFormat {
    /// The QQQ reference's tiles (`B`, `s_channel`, `s_group`).
    Qqq,
    /// compressed-tensors: int4 and int8 weights, for activations that are dynamic per-token int8, or of 16 bits.
    CompressedTensors,
    /// 16-bit weights and the arithmetic of a method that nothing here runs as such ([`simulated`](crate::simulated)).
    Simulated,
}

impl CheckpointFormat {
    /// Name on the command line and in reports; `quant_method` in config.json.
    pub fn name(self) -> &'static str {
        match self {
            CheckpointFormat::Qqq => "qqq",
            CheckpointFormat::CompressedTensors => "compressed-tensors",
            CheckpointFormat::Simulated => METHOD,
        }
    }

    /// How it stores codes of so many bits, as other readers expect them: W8A8 in bytes, everything else packed. (A simulated
    /// checkpoint stores none.)
    pub fn layout(self, bits: CodeBits, activations: Activations) -> CodeLayout {
        match (self, bits, activations) {
            (CheckpointFormat::Qqq, ..) => CodeLayout::Tiles,
            (_, CodeBits::Eight, Activations::Int8) => CodeLayout::Bytes,
            _ => CodeLayout::Packed,
        }
    }
}

/// How the codes of a layer lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeLayout {
    /// Tiles of the QQQ reference, `quant_method` "qqq".
    Tiles,
    /// As many codes in a word of 32 bits as fit (compressed-tensors' `pack-quantized`).
    Packed,
    /// A code in a byte (compressed-tensors' `int-quantized`).
    Bytes,
}

/// How the linear layers of a checkpoint are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizationConfig {
    /// How tensors are named and laid out on disk.
    pub format: CheckpointFormat,
    /// The first that matches a layer counts; a layer that none matches is float.
    rules: Vec<Rule>,
    /// What a simulated checkpoint stands for.
    simulated: Option<Simulated>,
}

/// What holds for the layers that a pattern names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    pattern: ModulePattern,
    /// `None`: these layers are float.
    scheme: Option<LayerScheme>,
}

impl Rule {
    /// Where it stands among the rules of compressed-tensors.
    fn order(&self) -> (bool, u8, String) {
        (self.scheme.is_some(), self.pattern.rank(), self.pattern.text().into())
    }
}

/// Group sizes that the kernels take.
pub(crate) const GROUP_SIZES: [u64; 3] = [32, 64, 128];

/// The module that stays float where nothing else is said.
pub(crate) const HEAD: &str = "lm_head";

/// What the error messages say is possible.
pub(crate) const SUPPORTED: &str = "supported are quant_method \"qqq\" (wbits or bits 4, group_size -1 or 128) and \
    \"compressed-tensors\" in the forms pack-quantized and int-quantized with symmetric weights, int4 (per channel, or groups \
    of 32, 64 or 128) or int8 (per channel), and input activations that are dynamic symmetric per-token int8 or not \
    quantized; qqq convert makes such checkpoints of other 4-bit weights alone (GPTQ, AWQ, AutoRound, compressed-tensors \
    W4A16 with zero points or act-order)";

impl QuantizationConfig {
    /// All linear layers alike, W4A8, but for the output head, which is float: what the quantizer writes by default.
    pub fn uniform(format: CheckpointFormat, group_size: Option<usize>) -> Self {
        Self::all_but(format, LayerScheme::w4a8(format, group_size), &[])
    }

    /// As [`uniform`](Self::uniform), but for the modules `float`, which are not quantized either.
    pub fn uniform_but(format: CheckpointFormat, group_size: Option<usize>, float: &[String]) -> Self {
        Self::all_but(format, LayerScheme::w4a8(format, group_size), float)
    }

    /// All linear layers alike, but for the output head and the modules `float`, which are not quantized.
    pub(crate) fn all_but(format: CheckpointFormat, scheme: LayerScheme, float: &[String]) -> Self {
        let float = float.iter().map(String::as_str).filter(|name| *name != HEAD);
        let mut rules: Vec<Rule> = [HEAD]
            .into_iter()
            .chain(float)
            .map(|name| Rule { pattern: ModulePattern::name(name), scheme: None })
            .collect();
        rules.push(Rule { pattern: ModulePattern::every_linear(), scheme: Some(scheme) });
        Self { format, rules, simulated: None }
    }

    /// 16-bit weights that stand for those of a method.
    pub fn of_simulated(simulated: Simulated) -> Self {
        let rules = vec![Rule { pattern: ModulePattern::every_linear(), scheme: None }];
        Self { format: CheckpointFormat::Simulated, rules, simulated: Some(simulated) }
    }

    /// What is simulated, in a simulated checkpoint.
    pub fn simulated(&self) -> Option<&Simulated> {
        self.simulated.as_ref()
    }

    /// Rules by module for compressed-tensors: each names a module (`model.layers.0.mlp.down_proj`), or after `re:` an
    /// expression that names of modules begin with (`re:.*down_proj`), and its scheme, `None` for float. All other
    /// linear layers have the scheme `others`; the output head is float where no rule names it.
    ///
    /// What counts for a module that several rules name is what readers of the format make of it, in whatever order they are
    /// given: float before all others, names before expressions, expressions in the order of their texts. Rules that are to
    /// mean something else have to name modules.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`]: an expression that is none; two schemes for one name or expression; a scheme that the
    /// format does not hold (QQQ tiles; 8 bits with groups).
    pub fn by_module<'a>(
        others: LayerScheme,
        rules: impl IntoIterator<Item = (&'a str, Option<LayerScheme>)>,
    ) -> Result<Self> {
        let mut all = vec![];
        for (text, scheme) in rules {
            let pattern = ModulePattern::entry(text).map_err(|e| {
                FormatError::Unsupported(format!("the rule for {text:?} is no expression: {e}"))
            })?;
            let pattern = if pattern.rank() == 2 { ModulePattern::name(text) } else { pattern };
            all.push(Rule { pattern, scheme });
        }
        if !all.iter().any(|rule| rule.pattern.text() == HEAD) {
            all.push(Rule { pattern: ModulePattern::name(HEAD), scheme: None });
        }
        all.push(Rule { pattern: ModulePattern::every_linear(), scheme: Some(others) });
        for scheme in all.iter().filter_map(|rule| rule.scheme) {
            scheme.check()?;
            if scheme.layout == CodeLayout::Tiles {
                return Err(FormatError::Unsupported(format!(
                    "{scheme} in QQQ's tiles among rules by module, which only the compressed-tensors format holds"
                )));
            }
        }
        all.sort_by_key(Rule::order);
        if let Some([a, b]) =
            all.array_windows().find(|[a, b]| a.pattern == b.pattern && a.scheme != b.scheme)
        {
            let shown = |rule: &Rule| rule.scheme.map_or("float".into(), |s| s.to_string());
            let (text, a, b) = (a.pattern.text(), shown(a), shown(b));
            return Err(FormatError::Unsupported(format!("{text:?} is to be both {a} and {b}")));
        }
        all.dedup();
        Ok(Self { format: CheckpointFormat::CompressedTensors, rules: all, simulated: None })
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
            Some(METHOD) => Simulated::read(map).map(Self::of_simulated),
            Some(other) => Err(unsupported(format_args!("quant_method is {other:?}"))),
            None => Err(unsupported(format_args!("it names no quant_method"))),
        }
    }

    /// The value of `quantization_config`, as other readers of the format expect it.
    pub fn to_value(&self) -> Value {
        match self.format {
            CheckpointFormat::Qqq => qqq::write(&self.rules),
            CheckpointFormat::CompressedTensors => compressed_tensors::write(&self.rules),
            CheckpointFormat::Simulated => {
                self.simulated.map_or_else(|| Value::Object(Map::new()), Simulated::to_value)
            }
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
        self.schemes_of(|_| true)
    }

    /// The same without what is said of the output head alone.
    pub fn block_schemes(&self) -> Vec<LayerScheme> {
        self.schemes_of(|rule| rule.pattern.text() != HEAD)
    }

    fn schemes_of(&self, counts: impl Fn(&Rule) -> bool) -> Vec<LayerScheme> {
        let mut schemes = Vec::new();
        for scheme in self.rules.iter().filter(|rule| counts(rule)).filter_map(|rule| rule.scheme) {
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
