//! The tokenizer of a GGUF file: its vocabulary, merges or scores, put into the form of
//! tokenizer.json.

use std::collections::HashMap;

use qqq_formats::gguf::{GgufFile, Metadata};
use serde_json::{Map, Value, json};

use super::pre::{self, Pre};
use super::{Parts, Source, SpecialTokens, error};
use crate::{ModelError, Result};

/// llama.cpp's `token_type`.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// SentencePiece's mark for a space.
const SPACE: &str = "\u{2581}";

/// A file's tokenizer metadata.
struct Vocabulary<'a> {
    metadata: &'a Metadata,
    tokens: &'a [String],
    /// As long as `tokens`, or empty.
    types: &'a [i64],
}

/// Makes the tokenizer of a GGUF file.
pub(super) fn load(file: &GgufFile) -> Result<Parts> {
    let m = file.metadata();
    let location = m.path().display().to_string();
    let v = Vocabulary::new(m)?;
    let (mut json, add_bos, add_eos) = match v.required("tokenizer.ggml.model", Metadata::string)? {
        "gpt2" => v.byte_level()?,
        "llama" => v.sentence_piece()?,
        other => {
            return Err(v.error(format!(
                "tokenizers of kind {other:?} are not supported (gpt2, i.e. byte-level BPE, and llama, i.e. SentencePiece BPE, are)"
            )));
        }
    };
    let special = SpecialTokens {
        bos: v.named("bos")?,
        eos: v.named("eos")?,
        unk: v.named("unknown")?,
        pad: v.named("padding")?,
    };
    json["post_processor"] =
        v.post_processor(add_bos.then_some(&special.bos), add_eos.then_some(&special.eos))?;
    let text = serde_json::to_vec(&json).map_err(|e| error(&location, e))?;
    let inner = tokenizers::Tokenizer::from_bytes(text)
        .map_err(|e| error(&location, format!("its vocabulary and merges make no tokenizer: {e}")))?;
    let files = v.files(&special, m.string("tokenizer.chat_template")?)?;
    Ok(Parts { inner, special, add: None, bos: None, eos: Vec::new(), source: Source::Made(files), location })
}

impl<'a> Vocabulary<'a> {
    fn new(metadata: &'a Metadata) -> Result<Self> {
        let mut v = Vocabulary { metadata, tokens: &[], types: &[] };
        v.tokens = v.required("tokenizer.ggml.tokens", Metadata::strings)?;
        v.types = metadata.integers("tokenizer.ggml.token_type")?.unwrap_or(&[]);
        v.same_length("token_type", v.types.len())?;
        Ok(v)
    }

    fn error(&self, reason: impl std::fmt::Display) -> ModelError {
        error(&self.metadata.path().display().to_string(), reason)
    }

    fn required<T>(
        &self,
        key: &str,
        get: impl Fn(&'a Metadata, &str) -> qqq_formats::Result<Option<T>>,
    ) -> Result<T> {
        get(self.metadata, key)?.ok_or_else(|| self.error(format!("metadata key {key} is missing")))
    }

    /// Checks a list that runs along the tokens.
    fn same_length(&self, name: &str, length: usize) -> Result<()> {
        if length == 0 || length == self.tokens.len() {
            return Ok(());
        }
        Err(self
            .error(format!("tokenizer.ggml.{name} has {length} elements for {} tokens", self.tokens.len())))
    }

    fn kind(&self, id: usize) -> i64 {
        self.types.get(id).copied().unwrap_or(NORMAL)
    }

    /// The token whose id `tokenizer.ggml.{name}_token_id` gives.
    fn named(&self, name: &str) -> Result<Option<String>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = self.metadata.token_id(&key)? else {
            return Ok(None);
        };
        match self.tokens.get(id as usize) {
            Some(token) => Ok(Some(token.clone())),
            None => Err(self.error(format!("{key} is {id}, but there are {} tokens", self.tokens.len()))),
        }
    }

    /// Ids by text. Of equal texts the last one counts, as in llama.cpp.
    fn ids(&self) -> HashMap<&'a str, u32> {
        self.tokens.iter().zip(0..).map(|(t, id)| (t.as_str(), id)).collect()
    }

    /// tokenizer.json without its post-processor.
    fn json(&self, normalizer: Value, pre_tokenizer: Value, decoder: Value, mut model: Value) -> Value {
        let vocab: Map<String, Value> =
            self.tokens.iter().zip(0u32..).map(|(t, id)| (t.clone(), id.into())).collect();
        let added: Vec<Value> = (0..self.tokens.len())
            .filter(|&id| matches!(self.kind(id), UNKNOWN | CONTROL | USER_DEFINED))
            .filter(|&id| !self.tokens[id].is_empty())
            // Those with a twin of a larger id have lost their text to it.
            .filter(|&id| vocab.get(&self.tokens[id]) == Some(&json!(id)))
            .map(|id| {
                json!({
                    "id": id, "content": self.tokens[id], "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": self.kind(id) != USER_DEFINED,
                })
            })
            .collect();
        model["vocab"] = Value::Object(vocab);
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": null,
            "decoder": decoder,
            "model": model,
        })
    }

    /// Byte-level BPE: tokenizer.json, and whether BOS and EOS are added.
    fn byte_level(&self) -> Result<(Value, bool, bool)> {
        let name = self.metadata.string("tokenizer.ggml.pre")?.unwrap_or("default");
        let Some(Pre { normalizer, pre_tokenizer, ignore_merges, add_bos }) = pre::pre(name) else {
            return Err(
                self.error(format!("the pre-tokenizer {name:?} is not supported ({} are)", pre::KNOWN))
            );
        };
        let ids = self.ids();
        let mut merges = Vec::new();
        for merge in self.required("tokenizer.ggml.merges", Metadata::strings)? {
            // The first part has at least one character, which may itself be a space.
            let first = merge.chars().next().map_or(0, char::len_utf8);
            let parts = merge[first..].find(' ').map(|at| (&merge[..first + at], &merge[first + at + 1..]));
            let known = parts.filter(|(a, b)| {
                ids.contains_key(a) && ids.contains_key(b) && ids.contains_key(format!("{a}{b}").as_str())
            });
            let Some((a, b)) = known else {
                return Err(self.error(format!(
                    "merge {} ({merge:?}) is not made of two tokens that form a third",
                    merges.len()
                )));
            };
            merges.push(json!([a, b]));
        }
        let decoder =
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": ignore_merges, "merges": merges,
        });
        let (add_bos, add_eos) = self.added_ends(add_bos)?;
        Ok((self.json(normalizer, pre_tokenizer, decoder, model), add_bos, add_eos))
    }

    /// SentencePiece BPE, as transformers converts it: merges in the order of the pieces' scores,
    /// bytes for unknown characters.
    fn sentence_piece(&self) -> Result<(Value, bool, bool)> {
        let scores = self.required("tokenizer.ggml.scores", Metadata::floats)?;
        self.same_length("scores", scores.len())?;
        let prefix = self.metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let replace =
            |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let mut normalizers = vec![replace(" ", SPACE)];
        let mut decoders =
            vec![replace(SPACE, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        if prefix {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = match self.named("unknown")? {
            Some(token) => Some(token),
            None => {
                (0..self.tokens.len()).find(|&id| self.kind(id) == UNKNOWN).map(|id| self.tokens[id].clone())
            }
        };
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "ignore_merges": false, "merges": self.merges_from_scores(scores),
        });
        let json = self.json(
            json!({"type": "Sequence", "normalizers": normalizers}),
            Value::Null,
            json!({"type": "Sequence", "decoders": decoders}),
            model,
        );
        let (add_bos, add_eos) = self.added_ends(true)?;
        Ok((json, add_bos, add_eos))
    }

    /// All ways to make a piece of two others, best score first; of equal scores longer parts first.
    fn merges_from_scores(&self, scores: &[f64]) -> Vec<(&'a str, &'a str)> {
        let ids: HashMap<&str, u32> =
            self.ids().into_iter().filter(|&(_, id)| self.kind(id as usize) == NORMAL).collect();
        let mut merges = Vec::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if ids.get(token.as_str()).is_none_or(|&i| i as usize != id) {
                continue;
            }
            let mut splits: Vec<_> = token
                .char_indices()
                .skip(1)
                .map(|(at, _)| token.split_at(at))
                .filter_map(|(a, b)| Some(((ids.get(a)?, ids.get(b)?), (a, b))))
                .collect();
            splits.sort_by_key(|(pair, _)| *pair);
            let length = |s: &str| s.chars().count();
            merges.extend(splits.into_iter().map(|(_, (a, b))| (scores[id], length(a), length(b), a, b)));
        }
        merges.sort_by(|x, y| y.0.total_cmp(&x.0).then((y.1, y.2).cmp(&(x.1, x.2))));
        merges.into_iter().map(|(.., a, b)| (a, b)).collect()
    }

    /// Whether BOS and EOS are added.
    fn added_ends(&self, bos: bool) -> Result<(bool, bool)> {
        let flag = |name: &str| self.metadata.bool(&format!("tokenizer.ggml.add_{name}_token"));
        Ok((flag("bos")?.unwrap_or(bos), flag("eos")?.unwrap_or(false)))
    }

    /// What adds BOS and EOS, where they are to be added.
    fn post_processor(&self, bos: Option<&Option<String>>, eos: Option<&Option<String>>) -> Result<Value> {
        let ids = self.ids();
        let mut table = Map::new();
        let mut ends = Vec::new();
        for (name, wanted) in [("bos", bos), ("eos", eos)] {
            ends.push(match wanted {
                None => None,
                Some(None) => {
                    return Err(self.error(format!(
                        "an added {name} token is asked for (tokenizer.ggml.add_{name}_token), but tokenizer.ggml.{name}_token_id is missing"
                    )));
                }
                Some(Some(token)) => {
                    let entry = json!({"id": token, "ids": [ids[token.as_str()]], "tokens": [token]});
                    table.insert(token.clone(), entry);
                    Some(token)
                }
            });
        }
        if table.is_empty() {
            return Ok(Value::Null);
        }
        let one = |sequence: &str, type_id: u32| {
            let special =
                |t: &Option<&String>| t.map(|t| json!({"SpecialToken": {"id": t, "type_id": type_id}}));
            let text = json!({"Sequence": {"id": sequence, "type_id": type_id}});
            [special(&ends[0]), Some(text), special(&ends[1])].into_iter().flatten().collect::<Vec<_>>()
        };
        let pair = [one("A", 0), one("B", 1)].concat();
        Ok(json!({
            "type": "TemplateProcessing",
            "single": one("A", 0),
            "pair": pair,
            "special_tokens": table,
        }))
    }

    /// The files beside tokenizer.json.
    fn files(&self, special: &SpecialTokens, template: Option<&str>) -> Result<Vec<(&'static str, String)>> {
        let named = [
            ("bos_token", &special.bos),
            ("eos_token", &special.eos),
            ("unk_token", &special.unk),
            ("pad_token", &special.pad),
        ];
        let map: Map<String, Value> = named
            .into_iter()
            .filter_map(|(name, token)| Some((name.to_owned(), json!(token.as_ref()?))))
            .collect();
        let mut config = map.clone();
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        config.insert("clean_up_tokenization_spaces".into(), json!(false));
        if let Some(arch) = self.metadata.string("general.architecture")?
            && let Some(length) = self.metadata.unsigned(&format!("{arch}.context_length"))?
        {
            config.insert("model_max_length".into(), json!(length));
        }
        let id = |name: &str| self.metadata.token_id(&format!("tokenizer.ggml.{name}_token_id"));
        let mut generation = Map::new();
        for (key, value) in [("bos_token_id", id("bos")?), ("pad_token_id", id("padding")?)] {
            if let Some(id) = value {
                generation.insert(key.into(), json!(id));
            }
        }
        let mut ends: Vec<u32> = [id("eos")?, id("eot")?, id("eom")?].into_iter().flatten().collect();
        ends.dedup();
        if !ends.is_empty() {
            generation.insert("eos_token_id".into(), json!(ends));
        }
        let mut files = Vec::new();
        if let Some(template) = template {
            // Older transformers look for it in the configuration, newer ones in its own file.
            config.insert("chat_template".into(), json!(template));
            files.push(("chat_template.jinja", template.to_owned()));
        }
        for (name, object) in [
            ("tokenizer_config.json", config),
            ("special_tokens_map.json", map),
            ("generation_config.json", generation),
        ] {
            files.push((name, format!("{:#}\n", Value::Object(object))));
        }
        Ok(files)
    }
}
