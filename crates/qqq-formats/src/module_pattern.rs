//! Which modules an entry of a quantization configuration means: a module's full name, a regular expression, or
//! all linear layers.

use std::fmt;

use fancy_regex::Regex;

/// A parsed entry, or part of a name. Expressions are Python's `re.match`: they must match from the first character on, but not to the last.
#[derive(Clone)]
pub struct ModulePattern {
    text: String,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Name,
    /// Words of a name.
    Part,
    Regex(Regex),
    /// The class of all linear layers, or of all modules.
    EveryLinear,
}

impl ModulePattern {
    /// An entry of `targets` or `ignore` of compressed-tensors: a class, a name, or an expression after `re:`.
    ///
    /// # Errors
    /// Why an expression is none.
    pub fn entry(text: &str) -> Result<Self, String> {
        let kind = match text.strip_prefix("re:") {
            Some(regex) => Kind::Regex(compile(regex)?),
            None if ["Linear", "Module"].contains(&text) => Kind::EveryLinear,
            None => Kind::Name,
        };
        Ok(Self { text: text.into(), kind })
    }

    /// What a user names layers by: whole words of their names, which stand between dots (`down_proj`, `layers.0`,
    /// `layers.0.mlp.down_proj`), or an expression after `re:` for the whole of them.
    ///
    /// # Errors
    /// Why an expression is none.
    pub fn part(text: &str) -> Result<Self, String> {
        let kind =
            text.strip_prefix("re:").map_or(Ok(Kind::Part), |regex| compile(regex).map(Kind::Regex))?;
        Ok(Self { text: text.into(), kind })
    }

    /// A regular expression that stands as `text` in its configuration.
    ///
    /// # Errors
    /// Why it is none.
    pub fn regex(regex: &str, text: &str) -> Result<Self, String> {
        Ok(Self { text: text.into(), kind: Kind::Regex(compile(regex)?) })
    }

    /// The module of this name.
    pub fn name(text: &str) -> Self {
        Self { text: text.into(), kind: Kind::Name }
    }

    /// Every linear layer.
    pub fn every_linear() -> Self {
        Self { text: "Linear".into(), kind: Kind::EveryLinear }
    }

    /// As it stands in the configuration.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How specific the entry is: names come before expressions, those before classes.
    pub fn rank(&self) -> u8 {
        match self.kind {
            Kind::Name => 0,
            Kind::Part | Kind::Regex(_) => 1,
            Kind::EveryLinear => 2,
        }
    }

    /// Whether the linear layer `name` is meant.
    ///
    /// # Errors
    /// An expression that takes too long to match.
    pub fn matches(&self, name: &str) -> Result<bool, String> {
        match &self.kind {
            Kind::Name => Ok(self.text == name),
            Kind::Part => Ok(format!(".{name}.").contains(&format!(".{}.", self.text))),
            Kind::EveryLinear => Ok(true),
            Kind::Regex(regex) => regex
                .is_match(name)
                .map_err(|e| format!("{:?} cannot be matched with {name}: {e}", self.text)),
        }
    }
}

fn compile(regex: &str) -> Result<Regex, String> {
    Regex::new(&format!("^(?:{regex})")).map_err(|e| e.to_string())
}

impl PartialEq for ModulePattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.rank() == other.rank()
    }
}

impl Eq for ModulePattern {}

impl fmt::Debug for ModulePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ModulePattern").field(&self.text).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        ModulePattern::entry(pattern).unwrap().matches(name).unwrap()
    }

    /// Expected values from Python's `re.match`.
    #[test]
    fn names_classes_and_expressions() {
        let down = "model.layers.10.mlp.down_proj";
        for (pattern, name, expected) in [
            ("lm_head", "lm_head", true),
            ("lm_head", "model.lm_head", false),
            ("Linear", down, true),
            ("LlamaMLP", down, false),
            ("re:.*lm_head", "lm_head", true),
            ("re:.*lm_head", "model.lm_head.x", true),
            ("re:.*lm_head$", "model.lm_head.x", false),
            ("re:^model\\.layers\\.0\\..*", "model.layers.0.mlp.up_proj", true),
            ("re:model\\.layers\\.0\\..*", down, false),
            ("re:model\\.layers", "modelxlayers", false),
            ("re:model.layers", "modelxlayers", true),
            ("re:", "anything", true),
            ("re:$", "anything", false),
            ("re:layers", down, false),
            ("re:model.layers.(0|10).mlp.down_proj", down, true),
            ("re:lm_head|model.*down_proj", down, true),
            ("re:.*layers\\.1\\d\\.mlp", down, true),
            ("re:.*layers\\.[2-9]\\d?\\.", down, false),
            ("re:(?!.*down_proj).*", down, false),
            ("re:(?!.*up_proj).*mlp", down, true),
            ("re:(?i)MODEL\\.", down, true),
            ("re:.*\\b(up|gate)_proj\\Z", down, false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn parts_of_names() {
        let down = "model.layers.10.mlp.down_proj";
        for (part, expected) in [
            ("down_proj", true),
            ("mlp", true),
            ("layers.10", true),
            ("layers.1", false),
            ("layers", true),
            ("down", false),
            ("", false),
            ("model.layers.10.mlp.down_proj", true),
            ("layers.10.mlp.down_proj.x", false),
            ("re:.*down", true),
            ("re:down", false),
        ] {
            assert_eq!(ModulePattern::part(part).unwrap().matches(down), Ok(expected), "{part}");
        }
        assert!(ModulePattern::part("re:(").is_err());
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for pattern in ["re:(a", "re:[z-a]", "re:*", "re:x\\"] {
            assert!(ModulePattern::entry(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn an_expression_that_takes_for_ever_is_an_error() {
        let pattern = ModulePattern::entry("re:(?:(a|a)+)+\\1$").unwrap();
        assert!(pattern.matches(&("a".repeat(40) + "b")).is_err());
    }
}
