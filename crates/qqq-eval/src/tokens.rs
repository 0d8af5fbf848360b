//! A text's tokens, as many as are asked for.
//!
//! The first tokens of a text hardly depend on what comes much later, but tokenizers differ in how far they look ahead:
//! byte-level BPE looks at one word (a run of letters, or of white space), SentencePiece's BPE has no words, so that in
//! principle a merge can depend on all that follows. So a prefix with a margin is tokenized, then a longer one; if what
//! is asked for is the same in both, the margin was wide enough. If not, or in doubt, the prefix grows, up to the whole.

use std::cell::RefCell;

use qqq_model::{TextReader, Tokenizer, memory};

use crate::{EvalError, Result};

/// What is read for a token at first: few texts have more bytes a token.
const BYTES_PER_TOKEN: usize = 6;
/// By how much the longer prefix is longer, and tokens that the shorter one has to have beyond those that are needed.
const MARGIN_BYTES: usize = 16 << 10;
const MARGIN_TOKENS: usize = 256;
/// Memory that tokenizing takes for a byte of text, as measured.
const MEMORY_PER_BYTE: u64 = 120;

/// The first `needed` tokens of a text, or all if it has fewer: exactly as when it is tokenized as a whole, special
/// tokens that the tokenizer adds included (unless a chat template has spelled them out). `usize::MAX` for all of them.
///
/// # Errors
/// Those of reading and tokenizing; a text that takes more memory than there is.
pub fn first_tokens(reader: &mut TextReader<'_>, tokenizer: &Tokenizer, needed: usize) -> Result<Vec<u32>> {
    let reader = RefCell::new(reader);
    prefix(
        &mut || Ok(reader.borrow_mut().next_piece()?),
        &mut |text| Ok(tokenizer.encode(text, !reader.borrow().is_templated())?),
        needed,
    )
}

/// A text for several tokenizers: it is read once, as far as one of them needs it, so that it can come through a pipe, and
/// is the same for all.
pub struct Text<'a> {
    reader: TextReader<'a>,
    /// What was read until now.
    pieces: Vec<String>,
}

impl<'a> Text<'a> {
    /// Of a reader from which nothing was read yet.
    pub fn new(reader: TextReader<'a>) -> Self {
        Self { reader, pieces: Vec::new() }
    }

    /// What gives the texts, to ask for its notes.
    pub fn reader(&mut self) -> &mut TextReader<'a> {
        &mut self.reader
    }

    /// As [`first_tokens`], from the text's beginning each time.
    ///
    /// # Errors
    /// As [`first_tokens`].
    pub fn first_tokens(&mut self, tokenizer: &Tokenizer, needed: usize) -> Result<Vec<u32>> {
        let mut at = 0;
        let text = RefCell::new(self);
        let mut next = || {
            let Self { reader, pieces } = &mut **text.borrow_mut();
            if at == pieces.len() {
                let Some(piece) = reader.next_piece()? else { return Ok(None) };
                pieces.push(piece);
            }
            at += 1;
            Ok(Some(pieces[at - 1].clone()))
        };
        let encode = |text_: &str| Ok(tokenizer.encode(text_, !text.borrow().reader.is_templated())?);
        prefix(&mut next, &mut { encode }, needed)
    }
}

/// `next` gives the text's pieces, `encode` makes tokens of a text.
fn prefix(
    next: &mut dyn FnMut() -> Result<Option<String>>,
    encode: &mut dyn FnMut(&str) -> Result<Vec<u32>>,
    needed: usize,
) -> Result<Vec<u32>> {
    let most = memory::available().map_or(u64::MAX, |bytes| bytes / MEMORY_PER_BYTE);
    let mut text = String::new();
    let mut goal = needed.saturating_mul(BYTES_PER_TOKEN).saturating_add(2 * MARGIN_BYTES);
    loop {
        while text.len() < goal {
            match next()? {
                Some(piece) => text += &piece,
                None => return encode(&text),
            }
            if text.len() as u64 > most {
                return Err(EvalError::Windows(format!(
                    "the text has more than {}, which take more memory to tokenize than is free; \
                     score fewer windows of it (--limit)",
                    qqq_formats::size::bytes(most)
                )));
            }
        }
        let end = text.floor_char_boundary(text.len() - MARGIN_BYTES);
        let shorter = encode(&text[..end])?;
        if shorter.len() >= needed + MARGIN_TOKENS {
            let mut longer = encode(&text)?;
            // White space alone tells nothing: a token that comes after it may take it all.
            let tells = !text[end..].trim().is_empty();
            if tells && longer.get(..needed) == Some(&shorter[..needed]) {
                longer.truncate(needed);
                return Ok(longer);
            }
        }
        goal = text.len().saturating_mul(2);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokenizers::Tokenizer;

    use super::*;

    /// Words, numbers, punctuation, other scripts, runs of white space and letters; `bytes` at least.
    fn text(seed: u64, bytes: usize) -> String {
        let mut state = seed;
        let mut random = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        let mut text = String::new();
        while text.len() < bytes {
            match random(12) {
                0 => text += &" ".repeat(random(40) as usize),
                1 => text += &"\n".repeat(1 + random(4) as usize),
                2 => text += &"a".repeat(random(300) as usize),
                3 => text += ["été", "日本語テキスト", "naïve", "e\u{301}", "🙂🙂", "…"][random(6) as usize],
                4 => text += &format!("{}", random(1_000_000)),
                5 => text += ["<s>", "</s>", "<|mark|>", "'ll", "don't", "?!"][random(6) as usize],
                _ => {
                    for _ in 0..1 + random(9) {
                        text.push((b'a' + random(6) as u8) as char);
                    }
                    text.push(' ');
                }
            }
        }
        text
    }

    /// Merges of all pairs of the first tokens, so that merging has much to choose from.
    fn merges(vocab: &mut serde_json::Map<String, Value>, letters: &[&str], rounds: usize) -> Vec<Value> {
        let mut merges = Vec::new();
        let mut parts: Vec<String> = letters.iter().map(|l| (*l).to_owned()).collect();
        for _ in 0..rounds {
            let mut made = Vec::new();
            for a in &parts {
                for b in letters {
                    let joined = format!("{a}{b}");
                    if !vocab.contains_key(&joined) {
                        vocab.insert(joined.clone(), json!(vocab.len()));
                        merges.push(json!([a, b]));
                        made.push(joined);
                    }
                }
            }
            parts = made;
        }
        merges
    }

    fn special(names: &[&str], vocab: &mut serde_json::Map<String, Value>, lstrip: bool) -> Vec<Value> {
        names
            .iter()
            .map(|name| {
                let id = vocab.len();
                vocab.insert((*name).into(), json!(id));
                json!({"id": id, "content": name, "single_word": false, "lstrip": lstrip, "rstrip": false,
                       "normalized": false, "special": true})
            })
            .collect()
    }

    /// Byte-level BPE, split by GPT-2's rule, with BOS and an added token that takes white space before it.
    fn byte_level(use_regex: bool) -> Tokenizer {
        let mut vocab = serde_json::Map::new();
        for c in tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet() {
            vocab.insert(c.to_string(), json!(vocab.len()));
        }
        let merges = merges(&mut vocab, &["a", "b", "c", "Ġ", "Ċ"], 3);
        let mut added = special(&["<s>", "</s>"], &mut vocab, false);
        added.extend(special(&["<|mark|>"], &mut vocab, true));
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                           "use_regex": use_regex});
        make(json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": {"type": "NFC"}, "pre_tokenizer": level, "decoder": level,
            "post_processor": bos(&vocab),
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                      "vocab": vocab, "merges": merges},
        }))
    }

    /// As Llama 2's: no splitting at all, spaces are marks, bytes for what is unknown.
    fn sentence_piece() -> Tokenizer {
        let mut vocab = serde_json::Map::new();
        vocab.insert("<unk>".into(), json!(0));
        for byte in 0..256 {
            vocab.insert(format!("<0x{byte:02X}>"), json!(vocab.len()));
        }
        for c in "▁abcdefghijklmnopqrstuvwxyz0123456789é".chars() {
            vocab.insert(c.to_string(), json!(vocab.len()));
        }
        let merges = merges(&mut vocab, &["▁", "a", "b", "c", "d"], 3);
        let added = special(&["<s>", "</s>"], &mut vocab, false);
        make(json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null, "decoder": null, "post_processor": bos(&vocab),
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
                      "vocab": vocab, "merges": merges},
        }))
    }

    fn unigram() -> Tokenizer {
        let mut vocab = vec![json!(["<unk>", 0.0])];
        let letters: Vec<String> = "▁abcdef0123456789.".chars().map(String::from).collect();
        for (i, a) in letters.iter().enumerate() {
            vocab.push(json!([a, -5.0 - i as f64 * 0.1]));
            for (j, b) in letters.iter().enumerate() {
                vocab.push(json!([format!("{a}{b}"), -8.0 - (i * 7 + j * 3) as f64 * 0.01]));
            }
        }
        make(json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false},
            "decoder": null, "post_processor": null,
            "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false},
        }))
    }

    fn bos(vocab: &serde_json::Map<String, Value>) -> Value {
        let bos = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
        let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        json!({"type": "TemplateProcessing", "single": [bos, text("A")], "pair": [bos, text("A"), text("B")],
               "special_tokens": {"<s>": {"id": "<s>", "ids": [vocab["<s>"]], "tokens": ["<s>"]}}})
    }

    fn make(json: Value) -> Tokenizer {
        Tokenizer::from_bytes(json.to_string()).unwrap()
    }

    fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        tokenizer.encode_fast(text, true).unwrap().get_ids().to_vec()
    }

    /// The first tokens of a text in pieces, and the bytes that were read for them.
    fn read(tokenizer: &Tokenizer, text: &str, needed: usize) -> (Vec<u32>, usize) {
        let (mut at, read) = (0, RefCell::new(0));
        let mut next = || {
            let end = text.ceil_char_boundary((at + 5_000).min(text.len()));
            let piece = text[at..end].to_owned();
            at = end;
            *read.borrow_mut() = end;
            Ok((!piece.is_empty()).then_some(piece))
        };
        let tokens = prefix(&mut next, &mut |t| Ok(encode(tokenizer, t)), needed).unwrap();
        let read = *read.borrow();
        (tokens, read)
    }

    #[test]
    fn prefixes_have_the_tokens_of_the_whole() {
        let tokenizers = [byte_level(true), byte_level(false), sentence_piece(), unigram()];
        for (i, tokenizer) in tokenizers.iter().enumerate() {
            for seed in 0..2 {
                let text = text(seed, 300_000);
                let whole = encode(tokenizer, &text);
                for needed in [1, 2, 100, 4096, 20_000] {
                    let (tokens, bytes) = read(tokenizer, &text, needed);
                    assert_eq!(tokens, whole[..needed], "tokenizer {i}, text {seed}, {needed} tokens");
                    assert!(
                        needed > 4096 || bytes < 150_000,
                        "{i}, {seed}: {bytes} bytes for {needed} tokens"
                    );
                }
                assert_eq!(read(tokenizer, &text, usize::MAX), (whole.clone(), text.len()));
                assert_eq!(read(tokenizer, &text, whole.len() + 1).0, whole);
            }
        }
    }

    #[test]
    fn what_a_later_token_takes_away_is_seen() {
        // The added token removes all white space before it, which is longer than the margin.
        let tokenizer = byte_level(true);
        let text = format!("abc{}<|mark|>{}", " ".repeat(100_000), "def ".repeat(50_000));
        let whole = encode(&tokenizer, &text);
        assert_eq!(read(&tokenizer, &text, 50).0, whole[..50]);
    }
}
