//! The tokenizer of a GGUF file: its vocabulary, merges or scores, put into the form of
//! tokenizer.json.
//!
//! Converters leave much of the metadata out, or get it wrong. What can be recovered is ([`control`], [`splitting`]),
//! with a note.

mod control;
mod files;
mod pre;
mod splitting;

use std::collections::{HashMap, HashSet};

use qqq_formats::gguf::{GgufFile, Metadata};
use serde_json::{Map, Value, json};

use super::{END_TOKENS, Parts, Source, SpecialTokens, error};
use crate::{ModelError, Result};
use control::{Kind, Signs};
use pre::Pre;

/// SentencePiece's mark for a space.
const SPACE: &str = "\u{2581}";

/// What kinds of tokenizers are called here, where llama.cpp's name does not say it.
const UNSUPPORTED: [(&str, &str); 6] = [
    ("bert", "WordPiece, WPM"),
    ("t5", "Unigram, UGM"),
    ("rwkv", "RWKV's"),
    ("plamo2", "PLaMo 2's"),
    ("gemma4", "Gemma 4's BPE"),
    ("whitespace", "words"),
];

/// A file's tokenizer metadata.
struct Vocabulary<'a> {
    metadata: &'a Metadata,
    tokens: &'a [String],
    /// As many as tokens.
    kinds: Vec<Kind>,
    /// What a user should know, a sentence each.
    notes: Vec<String>,
}

/// What the two kinds of models find out.
struct Model {
    /// tokenizer.json without its post-processor.
    json: Value,
    add_bos: bool,
    add_eos: bool,
}

/// Makes the tokenizer of a GGUF file.
pub(super) fn load(file: &GgufFile) -> Result<Parts> {
    let m = file.metadata();
    let location = m.path().display().to_string();
    let mut v = Vocabulary { metadata: m, tokens: &[], kinds: Vec::new(), notes: Vec::new() };
    let model = v.required("tokenizer.ggml.model", Metadata::string)?;
    v.tokens = match model {
        "gpt2" | "llama" => v.required("tokenizer.ggml.tokens", Metadata::strings)?,
        "no_vocab" | "none" => return Err(v.error("has no tokenizer (tokenizer.ggml.model is \"none\")")),
        other => {
            let what = UNSUPPORTED.iter().find(|(name, _)| *name == other);
            let what = what.map_or(String::new(), |(_, what)| format!(" ({what})"));
            return Err(v.error(format!(
                "tokenizers of kind {other:?}{what} are not supported (gpt2, i.e. byte-level BPE, and llama, i.e. SentencePiece BPE, are)"
            )));
        }
    };
    let twins = v.twins();
    let Model { mut json, add_bos, add_eos } =
        if model == "gpt2" { v.byte_level()? } else { v.sentence_piece()? };
    let special = SpecialTokens {
        bos: v.named("bos")?,
        eos: v.named("eos")?,
        unk: v.named("unknown")?,
        pad: v.named("padding")?,
    };
    // These have no name in tokenizer.json, but their ids must be right as well.
    let ends = [v.named("eot")?, v.named("eom")?];
    json["post_processor"] =
        v.post_processor(add_bos.then_some(&special.bos), add_eos.then_some(&special.eos))?;
    let text = serde_json::to_vec(&json).map_err(|e| error(&location, e))?;
    let inner = tokenizers::Tokenizer::from_bytes(text)
        .map_err(|e| error(&location, format!("its vocabulary and merges make no tokenizer: {e}")))?;
    let files = v.files(&special, &v.control_ends(&ends))?;
    let notes = v.notes;
    Ok(Parts {
        inner,
        special,
        bos: None,
        eos: Vec::new(),
        source: Source::Made(files),
        location,
        twins,
        notes,
        generation: None,
    })
}

/// The first few of a list of tokens, on one line, as the code they are in Markdown.
fn some_of<'t>(tokens: impl IntoIterator<Item = &'t str>) -> String {
    const FEW: usize = 5;
    let all: Vec<String> = tokens.into_iter().map(|t| format!("`{}`", t.escape_debug())).collect();
    let some = all[..all.len().min(FEW)].join(", ");
    if all.len() > FEW { format!("{some} and {} more", all.len() - FEW) } else { some }
}

impl<'a> Vocabulary<'a> {
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

    /// Finds out the tokens' kinds. `made`: whether merging can make a token of two others.
    fn find_kinds(&mut self, byte_level: bool, made: impl Fn(&str) -> bool) -> Result<()> {
        let types = self.metadata.integers("tokenizer.ggml.token_type")?.unwrap_or(&[]);
        self.same_length("token_type", types.len())?;
        let mut named = HashSet::new();
        // llama.cpp spells the sixth as the seventh.
        for name in ["bos", "eos", "eot", "eom", "unknown", "separator", "seperator", "padding", "mask"] {
            named.extend(self.metadata.token_id(&format!("tokenizer.ggml.{name}_token_id"))?);
        }
        let mut templates: Vec<&str> = self.template()?.into_iter().collect();
        templates.extend(self.named_templates()?.into_iter().map(|(_, text)| text));
        let signs = Signs { tokens: self.tokens, types, named, templates, byte_level };
        let (kinds, note) = signs.kinds(made);
        self.kinds = kinds;
        self.notes.extend(note);
        Ok(())
    }

    fn kind(&self, id: usize) -> Kind {
        self.kinds.get(id).copied().unwrap_or(Kind::Normal)
    }

    /// Tokens whose text another one of a larger id has, and that one's id; with a note.
    fn twins(&mut self) -> HashMap<u32, u32> {
        let ids = self.ids();
        let mut twins = HashMap::new();
        let mut texts = Vec::new();
        for (id, token) in (0u32..).zip(self.tokens) {
            if let Some(&last) = ids.get(token.as_str()).filter(|&&last| last != id)
                && !token.is_empty()
            {
                twins.insert(id, last);
                texts.push(token.as_str());
            }
        }
        if !texts.is_empty() {
            self.notes.push(format!(
                "tokenizer.ggml.tokens: {} have the text of a later token, which then stands for it: {}",
                texts.len(),
                some_of(texts.iter().copied())
            ));
        }
        twins
    }

    /// The token whose id `tokenizer.ggml.{name}_token_id` gives.
    ///
    /// # Errors
    /// There is no such token, and it may be needed; for padding and unknown text, which are not, that is a note.
    fn named(&mut self, name: &str) -> Result<Option<String>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = self.metadata.token_id(&key)? else {
            return Ok(None);
        };
        match self.tokens.get(id as usize) {
            Some(token) => Ok(Some(token.clone()).filter(|t| !t.is_empty())),
            None if name == "padding" || name == "unknown" => {
                let note =
                    format!("{key} is {id}, but there are {} tokens: none is taken", self.tokens.len());
                if !self.notes.contains(&note) {
                    self.notes.push(note);
                }
                Ok(None)
            }
            None => Err(self.error(format!("{key} is {id}, but there are {} tokens", self.tokens.len()))),
        }
    }

    /// Ids of the control tokens that end a turn or text: by their text, and those that the metadata name (`named`).
    /// [`Tokenizer::eos`](crate::Tokenizer::eos) has them too; other readers of the files end at what these list.
    fn control_ends(&self, named: &[Option<String>]) -> Vec<u32> {
        let ids = self.ids();
        let texts = END_TOKENS.into_iter().chain(named.iter().flatten().map(String::as_str));
        let ends = texts.filter_map(|text| ids.get(text).copied());
        ends.filter(|&id| self.kind(id as usize) == Kind::Control).collect()
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
            .filter(|&id| self.kind(id).is_added())
            .filter(|&id| !self.tokens[id].is_empty())
            // Those with a twin of a larger id have lost their text to it.
            .filter(|&id| vocab.get(&self.tokens[id]) == Some(&json!(id)))
            .map(|id| {
                json!({
                    "id": id, "content": self.tokens[id], "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": self.kind(id) != Kind::UserDefined,
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

    /// Byte-level BPE.
    fn byte_level(&mut self) -> Result<Model> {
        let merges = self.merges()?;
        let made: HashSet<String> = merges.iter().map(|(a, b)| format!("{a}{b}")).collect();
        self.find_kinds(true, |token| made.contains(token))?;
        let learned: Vec<&str> =
            self.tokens.iter().map(String::as_str).filter(|t| made.contains(*t)).collect();
        let Pre { normalizer, pre_tokenizer, ignore_merges, add_bos } = self.pre(&learned)?;
        let decoder =
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": ignore_merges, "merges": merges,
        });
        let (add_bos, add_eos) = self.added_ends(add_bos)?;
        Ok(Model { json: self.json(normalizer, pre_tokenizer, decoder, model), add_bos, add_eos })
    }

    /// The pairs that are merged, in order. Those that can never be used, because a part or the whole is no token, are
    /// left out with a note.
    fn merges(&mut self) -> Result<Vec<(&'a str, &'a str)>> {
        let ids = self.ids();
        let mut merges = Vec::new();
        let mut left_out = Vec::new();
        for merge in self.required("tokenizer.ggml.merges", Metadata::strings)? {
            // The first part has at least one character, which may itself be a space.
            let first = merge.chars().next().map_or(0, char::len_utf8);
            let parts = merge[first..].find(' ').map(|at| (&merge[..first + at], &merge[first + at + 1..]));
            let known = parts.filter(|(a, b)| {
                ids.contains_key(a) && ids.contains_key(b) && ids.contains_key(format!("{a}{b}").as_str())
            });
            match known {
                Some(pair) => merges.push(pair),
                None => left_out.push(merge.as_str()),
            }
        }
        if !left_out.is_empty() {
            self.notes.push(format!(
                "tokenizer.ggml.merges: {} of {} merges are not of two tokens that form a third, and left out: {}",
                left_out.len(),
                left_out.len() + merges.len(),
                some_of(left_out.iter().copied())
            ));
        }
        Ok(merges)
    }

    /// How texts are split: as the file says, or as its vocabulary shows, with a note. `learned`: the tokens that
    /// merging makes.
    fn pre(&mut self, learned: &[&str]) -> Result<Pre> {
        let architecture = self.metadata.string("general.architecture")?;
        let fitting = || splitting::of_vocabulary(architecture, learned.iter().copied());
        let name = self.metadata.string("tokenizer.ggml.pre")?.unwrap_or_default();
        if name.is_empty() {
            let (name, reason) = match fitting() {
                Some(name) => (name, "the splitting that its vocabulary was made with, as the tokens show"),
                None => {
                    (pre::DEFAULT_NAME, "as in llama.cpp, because its vocabulary fits none of the others")
                }
            };
            self.notes.push(format!(
                "tokenizer.ggml.pre is missing: texts are split as {name:?}, {reason}; the model's own may be another \
                 (known are {})",
                pre::KNOWN
            ));
            let mut pre = self.known_pre(name)?;
            // A guess must not ask for what the file does not have.
            pre.add_bos &= self.metadata.token_id("tokenizer.ggml.bos_token_id")?.is_some();
            return Ok(pre);
        }
        let Some(pre) = pre::pre(name) else {
            let advice = fitting().map_or(String::new(), |fits| {
                format!(
                    "; its vocabulary fits {fits:?}: if that is the model's, write it into the file with \
                     gguf-new-metadata --pre-tokenizer {fits} FILE OUT, of the Python package gguf"
                )
            });
            return Err(self
                .error(format!("the pre-tokenizer {name:?} is not supported ({} are){advice}", pre::KNOWN)));
        };
        // What converters write that do not know the model's.
        if name == pre::DEFAULT_NAME
            && let Some(fits) = fitting()
            && !splitting::allows(name, learned.iter().copied())
        {
            self.notes.push(format!(
                "tokenizer.ggml.pre is {name:?}, but the vocabulary was made with another splitting, as {fits:?}: \
                 texts may be split otherwise than in training"
            ));
        }
        Ok(pre)
    }

    fn known_pre(&self, name: &str) -> Result<Pre> {
        pre::pre(name).ok_or_else(|| self.error(format!("the pre-tokenizer {name:?} is not supported")))
    }

    /// SentencePiece BPE, as transformers converts it: merges in the order of the pieces' scores,
    /// bytes for unknown characters.
    fn sentence_piece(&mut self) -> Result<Model> {
        let ids = self.ids();
        let split = |token: &str, at| ids.contains_key(&token[..at]) && ids.contains_key(&token[at..]);
        self.find_kinds(false, |token| token.char_indices().skip(1).any(|(at, _)| split(token, at)))?;
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
            None => (0..self.tokens.len())
                .find(|&id| self.kind(id) == Kind::Unknown)
                .map(|id| self.tokens[id].clone()),
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
        Ok(Model { json, add_bos, add_eos })
    }

    /// All ways to make a piece of two others, best score first; of equal scores longer parts first.
    fn merges_from_scores(&self, scores: &[f64]) -> Vec<(&'a str, &'a str)> {
        let ids: HashMap<&str, u32> =
            self.ids().into_iter().filter(|&(_, id)| self.kind(id as usize) == Kind::Normal).collect();
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
}
