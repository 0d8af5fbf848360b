//! What kind of token each is: as the file says, and where converters got that wrong, by the token's text.
//!
//! llama.cpp does so too (`llama_vocab::impl::load`), for the tokens that end a turn or a text. A second sign is used
//! here: training makes a token of two others, so one of several characters that no merge makes was added by hand.

use std::collections::HashSet;

use crate::tokenizer::END_TOKENS;

/// llama.cpp's `token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Learned from texts.
    Normal,
    /// Stands for what has no token.
    Unknown,
    /// Marks turns or ends; no text.
    Control,
    /// Added by hand, text nevertheless.
    UserDefined,
    /// Never to be used.
    Unused,
    /// One byte (`<0x0A>`) of a character that has no token.
    Byte,
}

impl Kind {
    /// The kind of a number in `tokenizer.ggml.token_type`; llama.cpp's `UNDEFINED` counts as normal.
    pub(super) fn from_number(number: i64) -> Self {
        match number {
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            _ => Kind::Normal,
        }
    }

    /// Whether a token is found in a text as it is, before all merging.
    pub(super) fn is_added(self) -> bool {
        matches!(self, Kind::Unknown | Kind::Control | Kind::UserDefined)
    }
}

/// Control tokens of the usual formats, besides [`END_TOKENS`].
const CONTROL: [&str; 13] = [
    "<s>",
    "<unk>",
    "<pad>",
    "<bos>",
    "<eos>",
    "<mask>",
    "<cls>",
    "<sep>",
    "<start_of_turn>",
    "<|turn>",
    "<｜begin▁of▁sentence｜>",
    "[INST]",
    "[/INST]",
];

/// What is known of a vocabulary.
pub(super) struct Signs<'a> {
    pub(super) tokens: &'a [String],
    /// `tokenizer.ggml.token_type`: as many as tokens, or none.
    pub(super) types: &'a [i64],
    /// Ids that the metadata name as beginning, end, padding and so on.
    pub(super) named: HashSet<u32>,
    /// The chat templates.
    pub(super) templates: Vec<&'a str>,
    /// Byte-level BPE, where merges are listed; else SentencePiece.
    pub(super) byte_level: bool,
}

impl Signs<'_> {
    /// The kind of every token, and a note if some are not what the file says. `made`: whether merging can make a
    /// token of two others.
    pub(super) fn kinds(&self, made: impl Fn(&str) -> bool) -> (Vec<Kind>, Option<String>) {
        // Types that are all the same say as little as none.
        let untyped = self.types.iter().all(|t| Some(t) == self.types.first());
        let (mut control, mut added) = (Vec::new(), Vec::new());
        let mut kinds = Vec::with_capacity(self.tokens.len());
        for (id, token) in (0u32..).zip(self.tokens) {
            let said = match self.types.get(id as usize) {
                Some(&number) if !untyped => Kind::from_number(number),
                _ => Kind::Normal,
            };
            let kind = self.kind(id, token, said, untyped, &made);
            if kind != said {
                match kind {
                    Kind::Control => control.push(token.as_str()),
                    Kind::UserDefined => added.push(token.as_str()),
                    _ => {}
                }
            }
            kinds.push(kind);
        }
        (kinds, self.note(untyped, &control, &added))
    }

    fn kind(&self, id: u32, token: &str, said: Kind, untyped: bool, made: &impl Fn(&str) -> bool) -> Kind {
        let ends = END_TOKENS.contains(&token);
        match said {
            Kind::UserDefined if ends => return Kind::Control,
            Kind::Normal | Kind::Unused => {}
            _ => return said,
        }
        if token.chars().nth(1).is_none() {
            return said;
        }
        if untyped && !self.byte_level {
            if is_byte(token) {
                return Kind::Byte;
            }
            if token == "<unk>" {
                return Kind::Unknown;
            }
        }
        let shape = Shape::of(token);
        if self.named.contains(&id) && shape != Shape::Word {
            return Kind::Control;
        }
        // Qwen's vocabulary has learned "</s>", which is text there.
        if made(token) {
            return said;
        }
        if ends || CONTROL.contains(&token) || (self.named.contains(&id) && self.byte_level) {
            return Kind::Control;
        }
        let in_template = || self.templates.iter().any(|t| t.contains(token));
        match shape {
            Shape::Bars if said == Kind::Normal || in_template() => Kind::Control,
            Shape::Square if in_template() => Kind::Control,
            // Thoughts and tool calls, which are shown.
            Shape::Angles if in_template() => Kind::UserDefined,
            _ if untyped && self.byte_level => Kind::UserDefined,
            _ => said,
        }
    }

    fn note(&self, untyped: bool, control: &[&str], added: &[&str]) -> Option<String> {
        if control.is_empty() && added.is_empty() {
            return None;
        }
        let fault = match (untyped, self.types.is_empty()) {
            (true, true) => "is missing",
            (true, false) => "is the same for all tokens",
            (false, _) => "does not mark all control tokens",
        };
        let taken = [("control tokens", control), ("added tokens", added)]
            .into_iter()
            .filter(|(_, tokens)| !tokens.is_empty())
            .map(|(what, tokens)| format!("{} as {what}", super::some_of(tokens.iter().copied())))
            .collect::<Vec<_>>()
            .join(", ");
        Some(format!("tokenizer.ggml.token_type {fault}; taken by their text: {taken}"))
    }
}

/// The form in which formats write tokens of their own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// `<|im_start|>`, `<｜User｜>`, `<turn|>`.
    Bars,
    /// `<think>`.
    Angles,
    /// In square brackets, as `[INST]`.
    Square,
    /// Without brackets that mark control tokens.
    Word,
}

impl Shape {
    fn of(token: &str) -> Self {
        let inside = |open: char, close: char| {
            token
                .strip_prefix(open)
                .and_then(|t| t.strip_suffix(close))
                .filter(|t| !t.is_empty() && !t.contains([open, close]) && !t.contains(char::is_whitespace))
        };
        if inside('[', ']').is_some() {
            return Shape::Square;
        }
        match inside('<', '>') {
            Some(name) if name.starts_with(['|', '｜']) || name.ends_with(['|', '｜']) => Shape::Bars,
            Some(_) => Shape::Angles,
            None => Shape::Word,
        }
    }
}

/// `<0x0A>`.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}
