//! Names of modules in the `ignore` list of compressed-tensors: literal, or a regular expression after
//! `re:` that must match from the first character on (Python's `re.match`). Of regular expressions this knows
//! what such lists contain: literals, escaped punctuation, `.`, `.*`, a leading `^` and a trailing `$`.

/// A parsed entry.
#[derive(Debug, PartialEq)]
pub(crate) enum ModulePattern<'a> {
    Name(&'a str),
    Regex { tokens: Vec<Token>, to_end: bool },
}

/// A part of a regular expression.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Token {
    Literal(char),
    Any,
    /// `.*`
    AnyRun,
}

impl<'a> ModulePattern<'a> {
    /// `None` for regular expressions that are not understood.
    pub fn parse(entry: &'a str) -> Option<Self> {
        let Some(regex) = entry.strip_prefix("re:") else {
            return Some(Self::Name(entry));
        };
        let mut chars = regex.strip_prefix('^').unwrap_or(regex).chars().peekable();
        let mut tokens = Vec::new();
        let mut to_end = false;
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '.' if chars.next_if_eq(&'*').is_some() => Token::AnyRun,
                '.' => Token::Any,
                '\\' => match chars.next()? {
                    c if c.is_ascii_punctuation() => Token::Literal(c),
                    _ => return None,
                },
                '$' if chars.peek().is_none() => {
                    to_end = true;
                    break;
                }
                '*' | '+' | '?' | '[' | ']' | '(' | ')' | '{' | '}' | '|' | '^' | '$' => {
                    return None;
                }
                c => Token::Literal(c),
            });
        }
        // A quantifier after a literal ("a*") is refused above when it is met.
        Some(Self::Regex { tokens, to_end })
    }

    /// Whether a module's name matches.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Name(n) => *n == name,
            Self::Regex { tokens, to_end } => {
                // reached[i]: the tokens before i match the characters read so far.
                let mut reached = vec![false; tokens.len() + 1];
                reached[0] = true;
                spread(tokens, &mut reached);
                for c in name.chars() {
                    if !*to_end && reached[tokens.len()] {
                        return true;
                    }
                    let mut next = vec![false; tokens.len() + 1];
                    for (i, token) in tokens.iter().enumerate() {
                        match token {
                            Token::AnyRun => next[i] |= reached[i],
                            Token::Any => next[i + 1] |= reached[i],
                            Token::Literal(l) => next[i + 1] |= reached[i] && *l == c,
                        }
                    }
                    spread(tokens, &mut next);
                    reached = next;
                }
                reached[tokens.len()]
            }
        }
    }
}

/// A run may be empty: what lies behind it is reached as soon as it is.
fn spread(tokens: &[Token], reached: &mut [bool]) {
    for (i, token) in tokens.iter().enumerate() {
        if *token == Token::AnyRun && reached[i] {
            reached[i + 1] = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        ModulePattern::parse(pattern).unwrap().matches(name)
    }

    #[test]
    fn names_and_expressions() {
        assert!(matches("lm_head", "lm_head"));
        assert!(!matches("lm_head", "model.lm_head"));
        assert!(matches("re:.*lm_head", "lm_head"));
        assert!(matches("re:.*lm_head", "model.lm_head.x"));
        assert!(!matches("re:.*lm_head$", "model.lm_head.x"));
        assert!(matches("re:^model\\.layers\\.0\\..*", "model.layers.0.mlp.up_proj"));
        assert!(!matches("re:model\\.layers\\.0\\..*", "model.layers.10.mlp.up_proj"));
        assert!(!matches("re:model\\.layers", "modelxlayers"));
        assert!(matches("re:model.layers", "modelxlayers"));
        assert!(matches("re:", "anything"));
        assert!(!matches("re:$", "anything"));
    }

    #[test]
    fn what_is_not_understood_is_not_guessed() {
        for pattern in ["re:a+", "re:(a|b)", "re:[0-9]", "re:\\d", "re:a*", "re:a$b", "re:x\\"] {
            assert!(ModulePattern::parse(pattern).is_none(), "{pattern}");
        }
    }
}
