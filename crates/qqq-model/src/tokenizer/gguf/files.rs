//! The files beside tokenizer.json that a tokenizer made of metadata is saved with.

use serde_json::{Map, Value, json};

use super::{SpecialTokens, Vocabulary};
use crate::Result;

/// Metadata keys of chat templates beside the default one begin so; their name follows.
const NAMED_TEMPLATES: &str = "tokenizer.chat_template.";

impl<'a> Vocabulary<'a> {
    /// The default chat template.
    pub(super) fn template(&self) -> Result<Option<&'a str>> {
        Ok(self.metadata.string("tokenizer.chat_template")?)
    }

    /// Other chat templates (`tool_use`): name and text.
    pub(super) fn named_templates(&self) -> Result<Vec<(&'a str, &'a str)>> {
        let mut templates = Vec::new();
        for (key, _) in self.metadata.iter() {
            if let Some(name) = key.strip_prefix(NAMED_TEMPLATES)
                && let Some(text) = self.metadata.string(key)?
            {
                templates.push((name, text));
            }
        }
        Ok(templates)
    }

    /// Name and content of the files. `ends`: tokens that end a generation though the metadata do not name them.
    pub(super) fn files(&self, special: &SpecialTokens, ends: &[u32]) -> Result<Vec<(String, String)>> {
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
        let pad = id("padding")?.filter(|&id| (id as usize) < self.tokens.len());
        for (key, value) in [("bos_token_id", id("bos")?), ("pad_token_id", pad)] {
            if let Some(id) = value {
                generation.insert(key.into(), json!(id));
            }
        }
        let mut all: Vec<u32> = Vec::new();
        let declared = [id("eos")?, id("eot")?, id("eom")?].into_iter().flatten();
        for id in declared.chain(ends.iter().copied()) {
            if !all.contains(&id) {
                all.push(id);
            }
        }
        if !all.is_empty() {
            generation.insert("eos_token_id".into(), json!(all));
        }
        let mut files = Vec::new();
        if let Some(template) = self.template()? {
            // Older transformers look for it in the configuration, newer ones in its own file.
            config.insert("chat_template".into(), json!(template));
            files.push(("chat_template.jinja".to_owned(), template.to_owned()));
        }
        for (name, template) in self.named_templates()? {
            // The name becomes a file's.
            if name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') && !name.is_empty() {
                files.push((format!("additional_chat_templates/{name}.jinja"), template.to_owned()));
            }
        }
        for (name, object) in [
            ("tokenizer_config.json", config),
            ("special_tokens_map.json", map),
            ("generation_config.json", generation),
        ] {
            files.push((name.to_owned(), format!("{:#}\n", Value::Object(object))));
        }
        Ok(files)
    }
}
