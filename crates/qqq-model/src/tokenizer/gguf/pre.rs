//! How byte-level BPE tokenizers of GGUF files split a text before merging, by the name in
//! `tokenizer.ggml.pre`.
//!
//! The parts are those of the models' own tokenizer.json. Where llama.cpp approximates them (no NFC
//! for Qwen, other character classes for Tekken), the model's own definition is used.

use serde_json::{Value, json};

/// What a name in `tokenizer.ggml.pre` stands for, in the terms of tokenizer.json.
pub(super) struct Pre {
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    /// A piece that is a token as a whole is not built from merges.
    pub(super) ignore_merges: bool,
    /// Whether BOS is added where the file does not say.
    pub(super) add_bos: bool,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// llama.cpp's rules for files that name none, one after the other.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

/// The name of llama.cpp's rules for files that name none.
pub(super) const DEFAULT_NAME: &str = "default";

/// Names that [`pre`] knows, for messages.
pub(super) const KNOWN: &str = "default, gpt-2, phi-2, llama-bpe, llama3, llama-v3, smaug-bpe, dbrx, gpt-4o, smollm, refact, qwen2, \
     deepseek-r1-qwen, tekken";

fn split(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

/// Bytes to printable characters; with GPT-2's own splitting or without.
fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

fn sequence(parts: Vec<Value>) -> Value {
    json!({"type": "Sequence", "pretokenizers": parts})
}

/// The splitting of a name, `None` if it is not known.
pub(super) fn pre(name: &str) -> Option<Pre> {
    let plain =
        |pre_tokenizer| Pre { normalizer: Value::Null, pre_tokenizer, ignore_merges: false, add_bos: false };
    Some(match name {
        DEFAULT_NAME => {
            let mut parts: Vec<Value> = DEFAULT.into_iter().map(split).collect();
            parts.push(byte_level(false));
            plain(sequence(parts))
        }
        "gpt-2" | "phi-2" => plain(byte_level(true)),
        // Granite's is that of StarCoder, like SmolLM's.
        "smollm" | "refact" => {
            plain(sequence(vec![json!({"type": "Digits", "individual_digits": true}), byte_level(true)]))
        }
        "llama-bpe" | "llama3" | "llama-v3" => Pre {
            ignore_merges: true,
            add_bos: true,
            ..plain(sequence(vec![split(LLAMA3), byte_level(false)]))
        },
        // SmolLM3 has Llama 3's, but adds no BOS.
        "smaug-bpe" => Pre { ignore_merges: true, ..plain(sequence(vec![split(LLAMA3), byte_level(false)])) },
        // Phi-4's, and that of its smaller models.
        "dbrx" => plain(sequence(vec![split(LLAMA3), byte_level(false)])),
        "gpt-4o" => plain(sequence(vec![split(O200K), byte_level(false)])),
        "tekken" => Pre {
            ignore_merges: true,
            add_bos: true,
            ..plain(sequence(vec![split(TEKKEN), byte_level(false)]))
        },
        "qwen2" | "deepseek-r1-qwen" => Pre {
            normalizer: json!({"type": "NFC"}),
            ..plain(sequence(vec![split(QWEN2), byte_level(false)]))
        },
        _ => return None,
    })
}
