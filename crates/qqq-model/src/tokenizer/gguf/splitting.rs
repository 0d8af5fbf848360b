//! How texts are split where a file does not say so: from the tokens that its vocabulary has learned.
//!
//! Training splits texts first and joins characters inside the pieces only, so that hardly a learned token is one that
//! the splitting would cut (some are a piece's beginning, as `'l` of `'ll`). The splittings of GPT-2, Llama 3, Qwen,
//! Tekken and SmolLM2 cut 0 to 4 of the tokens in ASCII of their own vocabularies (48,109 to 97,718 tokens), any other one
//! at least one in 1,050; except that what was made with SmolLM2's is in accord with GPT-2's as well, and Qwen's with
//! Llama 3's. These differ in that they keep digits together, and then the vocabulary would have such tokens.

use serde_json::Value;
use tokenizers::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, pre_tokenizers::PreTokenizerWrapper,
};

use super::pre;

/// Of those that cut the same number of tokens the first counts: of two that differ in what they keep together only, the
/// one that cuts more comes first.
const CANDIDATES: [&str; 5] = ["smollm", "gpt-2", "tekken", "qwen2", "llama-bpe"];
/// Tokens that are looked at, at most.
const SAMPLE: usize = 20_000;
/// With fewer tokens nothing can be said.
const FEW: usize = 32;
/// Beginnings of pieces that may be cut, and one in so many tokens besides: what was added by hand, and is not marked so.
const BEGINNINGS: usize = 2;
const STRAY: usize = 5_000;

/// Which splitting the learned tokens (byte-level, as a file spells them) were made with, `None` if that cannot be seen.
pub(super) fn of_vocabulary<'a>(
    architecture: Option<&str>,
    learned: impl Iterator<Item = &'a str>,
) -> Option<&'static str> {
    let texts = sample(learned);
    // All models of these architectures have the same splitting, unless the vocabulary says otherwise.
    if matches!(architecture, Some("qwen2" | "qwen3")) && cuts("qwen2", &texts).is_some() {
        return Some("qwen2");
    }
    let fitting = CANDIDATES.into_iter().filter_map(|name| Some((cuts(name, &texts)?, name)));
    fitting.min_by_key(|(cut, _)| *cut).map(|(_, name)| name)
}

/// Whether the vocabulary can have been made with the splitting of a name.
pub(super) fn allows<'a>(name: &str, learned: impl Iterator<Item = &'a str>) -> bool {
    cuts(name, &sample(learned)).is_some()
}

/// Texts of some tokens. Only those in ASCII: converters and Unicode versions differ in what a letter is.
fn sample<'a>(learned: impl Iterator<Item = &'a str>) -> Vec<String> {
    let texts: Vec<String> = learned.filter_map(ascii).filter(|t| t.len() > 1).collect();
    let step = texts.len().div_ceil(SAMPLE).max(1);
    texts.into_iter().step_by(step).collect()
}

/// The text of a byte-level token, if it is ASCII: bytes that cannot be printed are written as characters from U+0100.
fn ascii(token: &str) -> Option<String> {
    token
        .chars()
        .map(|c| match c {
            '!'..='~' => Some(c),
            '\u{100}'..='\u{120}' => char::from_u32(c as u32 - 0x100),
            '\u{121}' => Some('\u{7f}'),
            _ => None,
        })
        .collect()
}

/// How many of the texts a splitting cuts, `None` if they are too many for the vocabulary to be made with it.
fn cuts(name: &str, texts: &[String]) -> Option<usize> {
    let splitting = pre_tokenizer(pre::pre(name)?.pre_tokenizer)?;
    let cut = |text: &&String| {
        let mut pieces = PreTokenizedString::from(text.as_str());
        splitting.pre_tokenize(&mut pieces).is_ok()
            && pieces.get_splits(OffsetReferential::Original, OffsetType::Byte).len() > 1
    };
    let most = BEGINNINGS + texts.len() / STRAY;
    let count = texts.iter().filter(cut).take(most + 1).count();
    (texts.len() >= FEW && count <= most).then_some(count)
}

fn pre_tokenizer(json: Value) -> Option<PreTokenizerWrapper> {
    serde_json::from_value(json).ok()
}
