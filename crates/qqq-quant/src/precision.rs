//! What becomes of each layer: what the recipe says of all, or the last of its rules that names the layer.

use std::{fmt, str::FromStr};

use qqq_backend::{InputKind, solve::Scheme};
use qqq_formats::{CheckpointFormat, CodeBits, LayerScheme, ModelConfig, ModulePattern, SimulatedMethod};
use qqq_model::{Site, Sites, names};
use serde::{Deserialize, Serialize};

use crate::{QuantError, Recipe, RecipeName, Result};

/// What a rule makes of the layers that it names. In words: `int4`, `int4:g32`, `int4:g64`, `int4:g128`, `int4:channel`, `int8`,
/// `float`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Precision {
    /// 4-bit codes.
    Int4(Groups),
    /// 8-bit codes, one scale an output channel.
    Int8,
    /// 16 bits, as they are.
    Float,
}

/// Input channels that share a scale of 4-bit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Groups {
    /// As many as the recipe says.
    Recipe,
    /// All of an output channel.
    Channel,
    /// So many.
    Of(usize),
}

impl Precision {
    /// That of a scheme; `None` is float.
    pub fn of(scheme: Option<Scheme>) -> Self {
        match scheme {
            None => Self::Float,
            Some(Scheme { bits: CodeBits::Eight, .. }) => Self::Int8,
            Some(Scheme { group_size, .. }) => Self::Int4(group_size.map_or(Groups::Channel, Groups::Of)),
        }
    }

    /// In the field's terms: `W4A8 g64`, `W8A8`, `16 bits`.
    pub fn arithmetic(self, recipe: &Recipe) -> String {
        let of = |Scheme { bits, activations, group_size }| {
            let layout = CheckpointFormat::CompressedTensors.layout(bits, activations);
            LayerScheme { bits, activations, group_size, layout }.to_string()
        };
        self.scheme(recipe).map_or_else(|| "16 bits".into(), of)
    }

    /// What layers of this precision become; `None`: they stay float.
    fn scheme(self, recipe: &Recipe) -> Option<Scheme> {
        let of = |bits, group_size| Some(Scheme { bits, activations: recipe.activations, group_size });
        match self {
            Self::Int4(Groups::Recipe) => of(CodeBits::Four, recipe.group_size),
            Self::Int4(Groups::Channel) => of(CodeBits::Four, None),
            Self::Int4(Groups::Of(size)) => of(CodeBits::Four, Some(size)),
            Self::Int8 => of(CodeBits::Eight, None),
            Self::Float => None,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int4(Groups::Recipe) => f.write_str("int4"),
            Self::Int4(Groups::Channel) => f.write_str("int4:channel"),
            Self::Int4(Groups::Of(size)) => write!(f, "int4:g{size}"),
            Self::Int8 => f.write_str("int8"),
            Self::Float => f.write_str("float"),
        }
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "int4" => Ok(Self::Int4(Groups::Recipe)),
            "int4:channel" => Ok(Self::Int4(Groups::Channel)),
            "int4:g32" => Ok(Self::Int4(Groups::Of(32))),
            "int4:g64" => Ok(Self::Int4(Groups::Of(64))),
            "int4:g128" => Ok(Self::Int4(Groups::Of(128))),
            "int8" => Ok(Self::Int8),
            "float" => Ok(Self::Float),
            other => Err(format!(
                "{other:?} is no precision: int4 (in the groups of the run), int4:g32, int4:g64, int4:g128, int4:channel, int8 or \
                 float"
            )),
        }
    }
}

impl From<Precision> for String {
    fn from(precision: Precision) -> String {
        precision.to_string()
    }
}

impl TryFrom<String> for Precision {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

/// A precision for some layers. In words: `down_proj=int8`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Names of modules, as [`ModulePattern::part`] has them: `down_proj`, `layers.0`, `layers.0.mlp.down_proj`,
    /// `re:.*\.[qkv]_proj$`.
    pub pattern: String,
    /// What becomes of them.
    pub precision: Precision,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.pattern, self.precision)
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        // The last: an expression may have others.
        let Some((pattern, precision)) = text.rsplit_once('=') else {
            return Err(format!("{text:?} has no precision: MODULE=PRECISION, such as down_proj=int8"));
        };
        if pattern.is_empty() {
            return Err(format!("{text:?} names no module: MODULE=PRECISION, such as down_proj=int8"));
        }
        ModulePattern::part(pattern).map_err(|e| format!("{pattern:?} is no expression: {e}"))?;
        Ok(Self { pattern: pattern.into(), precision: precision.parse()? })
    }
}

/// What becomes of the layers of a model, site by site.
#[derive(Clone, Debug, PartialEq)]
pub struct Schemes {
    /// Of each block; `None`: the layer stays float.
    blocks: Vec<Sites<Option<Scheme>>>,
    /// Of all layers, which have no schemes then.
    simulated: Option<SimulatedMethod>,
    /// Of the output head.
    head: Option<Scheme>,
}

impl Schemes {
    /// By a recipe's rules for a model.
    ///
    /// # Errors
    /// A rule that names no layer of it, rules that split a site, 8 bits with groups.
    pub fn of(config: &ModelConfig, recipe: &Recipe) -> Result<Self> {
        let simulated = recipe.simulated;
        let head = recipe.head.scheme();
        if recipe.name == RecipeName::Fp16 || simulated.is_some() {
            return Ok(Self { blocks: vec![Sites::new([None; 4]); config.num_layers], simulated, head });
        }
        if let (CodeBits::Eight, Some(size)) = (recipe.bits, recipe.group_size) {
            return Err(QuantError::Recipe(format!(
                "8-bit weights have one scale an output channel, no groups of {size}; quantize them per channel, or use 4 bits"
            )));
        }
        let patterns: Vec<ModulePattern> = recipe.rules.iter().map(pattern).collect::<Result<_>>()?;
        let uniform =
            Scheme { bits: recipe.bits, activations: recipe.activations, group_size: recipe.group_size };
        let mut named = vec![false; recipe.rules.len()];
        let mut blocks = Vec::with_capacity(config.num_layers);
        for index in 0..config.num_layers {
            blocks.push(Sites::try_new(|site| {
                let modules = site.module_names(config);
                let mut decided = Vec::with_capacity(modules.len());
                for module in &modules {
                    let name = names::linear(index, module);
                    let mut last = None;
                    for (i, pattern) in patterns.iter().enumerate() {
                        if pattern.matches(&name).map_err(QuantError::Recipe)? {
                            named[i] = true;
                            last = Some(i);
                        }
                    }
                    decided.push(last);
                }
                let of = |last: &Option<usize>| match last {
                    Some(i) => recipe.rules[*i].precision.scheme(recipe),
                    None => Some(uniform),
                };
                let schemes: Vec<Option<Scheme>> = decided.iter().map(of).collect();
                match schemes.iter().all(|scheme| *scheme == schemes[0]) {
                    true => Ok(schemes[0]),
                    false => {
                        let last = decided.iter().flatten().max().copied().unwrap_or_default();
                        // One that names layers of one block alone says which.
                        let elsewhere = (0..config.num_layers).filter(|other| *other != index).any(|other| {
                            let mut modules = modules.iter().map(|module| names::linear(other, module));
                            modules.any(|name| patterns[last].matches(&name) == Ok(true))
                        });
                        Err(split(index, &modules, &schemes, &recipe.rules[last], elsewhere))
                    }
                }
            })?);
        }
        if let Some(unused) = named.iter().position(|named| !named) {
            let rule = &recipe.rules[unused];
            let names_head = patterns[unused].matches(names::LM_HEAD_MODULE) == Ok(true);
            let what = if names_head { NO_HEAD_RULE.to_owned() } else { no_match(config) };
            return Err(wrong(rule, &what));
        }
        let schemes = Self { blocks, simulated, head };
        match schemes.most() {
            Some(_) => Ok(schemes),
            None => Err(QuantError::Recipe(
                "the rules leave every layer in 16 bits: there is nothing to quantize".into(),
            )),
        }
    }

    /// The method whose arithmetic is simulated in all layers; each is then one of 16 bits with a record.
    pub fn simulated(&self) -> Option<&SimulatedMethod> {
        self.simulated.as_ref()
    }

    /// What becomes of the output head; `None`: it stays float.
    pub fn head(&self) -> Option<Scheme> {
        self.head
    }

    /// Whether a site's layer becomes another than it is.
    pub(crate) fn is_solved(&self, block: usize, site: Site) -> bool {
        self.simulated.is_some() || self.at(block, site).is_some()
    }

    /// Which sites a recipe's rules decide on, block by block.
    ///
    /// # Errors
    /// A rule that is no expression.
    pub(crate) fn ruled(config: &ModelConfig, recipe: &Recipe) -> Result<Vec<Sites<bool>>> {
        let patterns: Vec<ModulePattern> = recipe.rules.iter().map(pattern).collect::<Result<_>>()?;
        let named = |name: &str| -> Result<bool> {
            for pattern in &patterns {
                if pattern.matches(name).map_err(QuantError::Recipe)? {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let of_site = |index: usize, site: Site| -> Result<bool> {
            for module in site.module_names(config) {
                if named(&names::linear(index, module))? {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        (0..config.num_layers).map(|index| Sites::try_new(|site| of_site(index, site))).collect()
    }

    /// What becomes of a site's layer; `None`: it stays float, or is [simulated](Self::simulated).
    pub fn at(&self, block: usize, site: Site) -> Option<Scheme> {
        self.blocks.get(block).and_then(|sites| sites[site])
    }

    /// The inputs that a site's layer takes.
    pub(crate) fn input_kind(&self, block: usize, site: Site) -> InputKind {
        self.at(block, site).map_or(InputKind::Float, Scheme::input_kind)
    }

    /// The sites of a block.
    pub fn block(&self, block: usize) -> Sites<Option<Scheme>> {
        self.blocks.get(block).copied().unwrap_or(Sites::new([None; 4]))
    }

    /// All blocks' sites, in their order.
    pub fn all(&self) -> impl Iterator<Item = (usize, Site, Option<Scheme>)> + '_ {
        let of_block = |(block, sites): (usize, &Sites<Option<Scheme>>)| {
            let sites = *sites;
            Site::ALL.map(|site| (block, site, sites[site]))
        };
        self.blocks.iter().enumerate().flat_map(of_block)
    }

    /// What all layers become, if that is one thing.
    pub fn one(&self) -> Option<Scheme> {
        let first = self.at(0, Site::Qkv)?;
        self.all().all(|(.., scheme)| scheme == Some(first)).then_some(first)
    }

    /// The largest of what `of` says of a site's layers, over the blocks.
    pub(crate) fn largest(&self, site: Site, of: impl Fn(Option<Scheme>) -> f64) -> f64 {
        self.blocks.iter().map(|sites| of(sites[site])).fold(0.0, f64::max)
    }

    /// The mean of it.
    pub(crate) fn mean(&self, site: Site, of: impl Fn(Option<Scheme>) -> f64) -> f64 {
        self.blocks.iter().map(|sites| of(sites[site])).sum::<f64>() / self.blocks.len().max(1) as f64
    }

    /// The scheme that most layers have; `None` where all are float.
    pub fn most(&self) -> Option<Scheme> {
        let mut counts: Vec<(Scheme, usize)> = Vec::new();
        for scheme in self.all().filter_map(|(.., scheme)| scheme) {
            match counts.iter_mut().find(|(other, _)| *other == scheme) {
                Some((_, count)) => *count += 1,
                None => counts.push((scheme, 1)),
            }
        }
        // The first of those that are as many.
        counts.into_iter().rev().max_by_key(|(_, count)| *count).map(|(scheme, _)| scheme)
    }
}

fn pattern(rule: &Rule) -> Result<ModulePattern> {
    ModulePattern::part(&rule.pattern).map_err(|e| wrong(rule, &format!("is no expression: {e}")))
}

fn wrong(rule: &Rule, what: &str) -> QuantError {
    QuantError::Recipe(format!("rule {rule}: {:?} {what}", rule.pattern))
}

/// What is said of a rule for the output head.
const NO_HEAD_RULE: &str = "names the output head, which no layer of the blocks runs beside: say --head int8 or --head float instead";

fn no_match(config: &ModelConfig) -> String {
    let modules: Vec<&str> = Site::ALL.iter().flat_map(|site| site.module_names(config)).collect();
    format!(
        "names no linear layer of the blocks of this model, of which there are {} with {}; a name is whole words between dots, \
         such as down_proj or layers.0.mlp.down_proj, or an expression after re: that begins with the first character of \
         model.layers.0...",
        config.num_layers,
        modules.join(", ")
    )
}

/// The error of a site whose modules would become different things, by the rule that decides on some of them.
fn split(
    index: usize,
    modules: &[&str],
    schemes: &[Option<Scheme>],
    rule: &Rule,
    everywhere: bool,
) -> QuantError {
    let short = |module: &str| module.rsplit('.').next().unwrap_or(module).to_owned();
    let each: Vec<String> = modules
        .iter()
        .zip(schemes)
        .map(|(module, scheme)| format!("{} {}", short(module), Precision::of(*scheme)))
        .collect();
    let names: Vec<String> = modules.iter().map(|module| short(module)).collect();
    let block = if everywhere { String::new() } else { format!("layers\\.{index}\\..*") };
    QuantError::Recipe(format!(
        "rule {rule} splits layers of block {index} that share their input and run as one: {}. These take one precision: name all \
         of them, as in --rule 're:.*{block}\\.({})={}'",
        each.join(", "),
        names.join("|"),
        rule.precision
    ))
}

/// [`CodeBits`] in a report: their number.
pub(crate) mod bits {
    use qqq_formats::CodeBits;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bits: &CodeBits, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(bits.get() as u64)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<CodeBits, D::Error> {
        let bits = u64::deserialize(from)?;
        CodeBits::of(bits)
            .ok_or_else(|| D::Error::custom(format!("weights of {bits} bits: there are 4 and 8")))
    }

    /// Of reports of before there was a choice.
    pub fn four() -> CodeBits {
        CodeBits::Four
    }
}

/// [`Activations`] in a report: `int8` or `half`.
pub(crate) mod activations {
    use qqq_formats::Activations;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(activations: &Activations, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(match activations {
            Activations::Int8 => "int8",
            Activations::Half => "half",
        })
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Activations, D::Error> {
        match String::deserialize(from)?.as_str() {
            "int8" => Ok(Activations::Int8),
            "half" => Ok(Activations::Half),
            other => Err(D::Error::custom(format!("activations {other:?}: there are int8 and half"))),
        }
    }

    /// Of reports of before there was a choice.
    pub fn int8() -> Activations {
        Activations::Int8
    }
}

#[cfg(test)]
mod tests {
    use qqq_formats::Activations;

    use super::*;
    use crate::shapes;

    fn schemes(rules: &[&str], recipe: &Recipe) -> std::result::Result<Schemes, String> {
        let rules = rules.iter().map(|rule| rule.parse()).collect::<std::result::Result<_, String>>()?;
        Schemes::of(&shapes::wide(), &Recipe { rules, ..recipe.clone() }).map_err(|e| e.to_string())
    }

    #[test]
    fn precisions_and_rules_are_words() {
        for words in ["int4", "int4:g32", "int4:g64", "int4:g128", "int4:channel", "int8", "float"] {
            let precision: Precision = words.parse().unwrap();
            assert_eq!(precision.to_string(), words);
            let json = serde_json::to_value(precision).unwrap();
            assert_eq!(json, words);
            assert_eq!(serde_json::from_value::<Precision>(json).unwrap(), precision);
        }
        let rule: Rule = "re:.*(?=x)=int4:g64".parse().unwrap();
        assert_eq!((rule.pattern.as_str(), rule.precision), ("re:.*(?=x)", Precision::Int4(Groups::Of(64))));
        for (rule, says) in [
            ("down_proj", "has no precision"),
            ("=int8", "names no module"),
            ("down_proj=int5", "int4:channel"),
            ("down_proj=int4:g48", "int4:g32"),
            ("re:(=int8", "is no expression"),
        ] {
            let error = rule.parse::<Rule>().unwrap_err();
            assert!(error.contains(says), "{rule}: {error}");
        }
    }

    #[test]
    fn the_last_rule_that_names_a_layer_counts() {
        let (four, eight) = (Scheme::w4a8(Some(64)), Scheme { bits: CodeBits::Eight, ..Scheme::w4a8(None) });
        let recipe = Recipe::DEFAULT;
        let all = schemes(&[], &recipe).unwrap();
        assert_eq!(all.one(), Some(four));
        let down = schemes(&["down_proj=int8"], &recipe).unwrap();
        assert!(down.one().is_none() && down.most() == Some(four));
        for (_, site, scheme) in down.all() {
            assert_eq!(scheme, Some(if site == Site::Down { eight } else { four }));
        }
        let both = ["layers.1=float", "layers.1.mlp.down_proj=int8", "re:model.layers.0.mlp=int4:channel"];
        let both = schemes(&both, &recipe).unwrap();
        let found: Vec<String> = both.all().map(|(.., s)| Precision::of(s).to_string()).collect();
        let (g64, channel) = ("int4:g64", "int4:channel");
        assert_eq!(found, [g64, g64, channel, channel, "float", "float", "float", "int8"]);
        assert_eq!(both.most(), Some(four));
        // What comes later takes back what came before.
        let none = schemes(&["down_proj=int8", "mlp=int4"], &recipe).unwrap();
        assert_eq!(none, all);
        let half = Recipe { activations: Activations::Half, ..recipe.clone() };
        let half = schemes(&["down_proj=int8"], &half).unwrap();
        assert!(half.all().all(|(.., s)| s.unwrap().activations == Activations::Half));
        let all = Recipe { bits: CodeBits::Eight, group_size: None, ..recipe };
        assert_eq!(schemes(&[], &all).unwrap().one(), Some(eight));
    }

    #[test]
    fn rules_that_cannot_be_are_refused() {
        let recipe = Recipe::DEFAULT;
        for (rules, parts) in [
            (
                &["v_proj=int8"][..],
                &["q_proj int4:g64, k_proj int4:g64, v_proj int8", "re:.*\\.(q_proj|k_proj|v_proj)=int8"][..],
            ),
            (
                &["mlp=int8", "layers.1.mlp.up_proj=float"],
                &["block 1", "layers\\.1\\..*\\.(gate_proj|up_proj)=float"],
            ),
            (&["down_proj=int8", "lm_head=int8"], &["lm_head=int8", "names the output head", "--head int8"]),
            (&["down_proj=int8", "embed_tokens=int8"], &["names no linear layer", "down_proj"]),
            (&["down=int8"], &["whole words between dots"]),
            (&["layers.2=int8"], &["of which there are 2"]),
        ] {
            let error = schemes(rules, &recipe).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{rules:?}: {error}");
        }
        // What the message of a split says to write is taken.
        for (rules, all) in [
            (["re:.*\\.(q_proj|k_proj|v_proj)=int8"], [0, 1].as_slice()),
            (["re:.*layers\\.1\\..*\\.(q_proj|k_proj|v_proj)=int8"], &[1]),
        ] {
            let schemes = schemes(&rules, &recipe).unwrap();
            for (block, site, scheme) in schemes.all() {
                let want = site == Site::Qkv && all.contains(&block);
                assert_eq!(Precision::of(scheme) == Precision::Int8, want, "{rules:?} {block} {site:?}");
            }
        }
        let eight = Recipe { bits: CodeBits::Eight, ..recipe };
        assert!(schemes(&[], &eight).unwrap_err().contains("no groups of 64"));
    }
}
