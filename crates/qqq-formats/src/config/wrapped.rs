//! Models that also see or hear: their `config.json` holds the text model's in `text_config`, and their tensors that
//! model's under a prefix. The text part computes for text what the whole does (transformers' `modeling_gemma3`,
//! `modeling_mistral3`, `modeling_llava`, `modeling_llava_next`, `modeling_llava_onevision`, `modeling_internvl`,
//! `modeling_idefics3`, `modeling_smolvlm`, `modeling_got_ocr2`, `modeling_lighton_ocr`, `modeling_voxtral`).

use std::{collections::BTreeMap, path::Path};

use serde_json::{Map, Value, json};

use super::{families, fields::Fields, model_keys};
use crate::{FormatError, Result};

/// Classes of such models, their `model_type`, and that of a text part that does not name its own.
const WRAPPERS: [(&str, &str, &str); 11] = [
    ("Gemma3ForConditionalGeneration", "gemma3", "gemma3_text"),
    ("Mistral3ForConditionalGeneration", "mistral3", "mistral"),
    ("LlavaForConditionalGeneration", "llava", "llama"),
    ("LlavaNextForConditionalGeneration", "llava_next", "llama"),
    ("LlavaOnevisionForConditionalGeneration", "llava_onevision", "qwen2"),
    ("InternVLForConditionalGeneration", "internvl", "qwen2"),
    ("Idefics3ForConditionalGeneration", "idefics3", "llama"),
    ("SmolVLMForConditionalGeneration", "smolvlm", "llama"),
    ("GotOcr2ForConditionalGeneration", "got_ocr2", "qwen2"),
    ("LightOnOcrForConditionalGeneration", "lighton_ocr", "qwen3"),
    ("VoxtralForConditionalGeneration", "voxtral", "llama"),
];

/// Keys of other parts than text, and of how they are put together.
const OTHER_PARTS: &[&str] = &[
    "text_config",
    "vision_config",
    "audio_config",
    "perceiver_config",
    "audio_token_id",
    "boi_token_id",
    "boi_token_index",
    "downsample_ratio",
    "eoi_token_id",
    "eoi_token_index",
    "ignore_index",
    "image_grid_pinpoints",
    "image_newline_id",
    "image_seq_len",
    "image_seq_length",
    "image_token_index",
    "mm_tokens_per_image",
    "multimodal_projector_bias",
    "projector_hidden_act",
    "scale_factor",
    "spatial_merge_size",
    "use_image_newline_parameter",
    "video_token_index",
    "vision_aspect_ratio",
    "vision_feature_layer",
    "vision_feature_select_strategy",
];

/// Sizes that a `text_config` leaves out where they are its class's own.
const SIZES: [&str; 5] =
    ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"];

/// What counts for the text part too, where that does not say it itself.
const SHARED: [&str; 9] = [
    "bos_token_id",
    "compression_config",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "quantization_config",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
];

/// The configuration of the text part, as that of a model of its own, with the class of the whole; `None` for models that
/// are text models.
///
/// Whether embedding and output head are one may be said by both or by neither: where they do not agree, the key
/// `tie_word_embeddings` is left out, and the tensors decide.
///
/// # Errors
/// No `text_config`, one of an unknown family, unknown keys beside it.
pub(super) fn text_part(
    path: &Path,
    whole: &Map<String, Value>,
) -> Result<Option<(&'static str, Map<String, Value>)>> {
    let f = Fields::new(path, "", whole);
    let classes = f.strings("architectures")?;
    let model_type = f.string("model_type")?;
    let Some((class, _, usual)) = WRAPPERS.iter().find(|(class, kind, _)| match &classes[..] {
        [] => model_type == Some(*kind),
        classes => classes.contains(class),
    }) else {
        return Ok(None);
    };
    f.check_known_but(
        OTHER_PARTS,
        &model_keys::KEYS,
        "a key that is not known here and may change what the model computes; if it does not, remove it from the file",
    )?;
    let text = match whole.get("text_config") {
        Some(Value::Object(text)) => text,
        _ => return Err(f.malformed(&format!("text_config is missing, or no object, in a {class}"))),
    };
    let kind = Fields::new(path, "text_config.", text).string("model_type")?.unwrap_or(usual);
    let Some(family) = families::ALL.iter().find(|family| family.model_type == kind) else {
        let known: Vec<&str> = families::ALL.iter().map(|family| family.model_type).collect();
        return Err(FormatError::Unsupported(format!(
            "{}: the text part of this {class} has model_type {kind:?}, which is not supported; supported are {}",
            path.display(),
            known.join(", ")
        )));
    };
    let mut text = text.clone();
    text.insert("architectures".into(), json!([family.class]));
    text.insert("model_type".into(), json!(family.model_type));
    for (key, size) in SIZES.iter().zip(family.defaults.sizes) {
        text.entry(*key).or_insert_with(|| json!(size));
    }
    if let (Some(a), Some(b)) = (whole.get("tie_word_embeddings"), text.get("tie_word_embeddings"))
        && a != b
    {
        text.remove("tie_word_embeddings");
    } else if let Some(tied) = whole.get("tie_word_embeddings") {
        text.insert("tie_word_embeddings".into(), tied.clone());
    }
    for key in SHARED.iter().filter(|key| **key != "tie_word_embeddings") {
        if let Some(value) = whole.get(*key)
            && text.get(*key).is_none_or(Value::is_null)
        {
            text.insert((*key).into(), value.clone());
        }
    }
    Ok(Some((class, text)))
}

/// Where the text part's tensors lie: prefixes, and what stands for them in a text model.
const PREFIXES: [(&str, &str); 5] = [
    ("model.language_model.", "model."),
    ("model.text_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("lm_head.", "lm_head."),
];
/// Names that belong to the text part by their beginning, wherever that lies.
const TEXT: [&str; 5] =
    ["language_model.", "text_model.", "model.layers.", "model.embed_tokens.", "model.norm."];

/// The names that the text part's tensors have in a text model, with those that they are stored under. Tensors of other
/// parts are left out.
///
/// # Errors
/// Two tensors of one name; tensors of the text part outside of where it lies; none at all.
pub(crate) fn text_tensors(location: &str, stored: Vec<String>) -> Result<BTreeMap<String, String>> {
    let unsupported = |what: String| Err(FormatError::Unsupported(format!("{location}: {what}")));
    let mut names = BTreeMap::new();
    for tensor in stored {
        let Some((prefix, instead)) = PREFIXES.iter().find(|(prefix, _)| tensor.starts_with(prefix)) else {
            if TEXT.iter().any(|start| tensor.starts_with(start)) {
                return unsupported(format!("tensor {tensor:?} lies outside of the model's text part"));
            }
            continue;
        };
        let name = format!("{instead}{}", &tensor[prefix.len()..]);
        if let Some(other) = names.insert(name, tensor.clone()) {
            return unsupported(format!(
                "tensors {other:?} and {tensor:?} both stand for one of the text part"
            ));
        }
    }
    if !names.keys().any(|name| name.starts_with("model.")) {
        let places: Vec<&str> = PREFIXES.iter().take(3).map(|(prefix, _)| *prefix).collect();
        return unsupported(format!(
            "the model's text part has no tensors; they are looked for under {}",
            places.join(", ")
        ));
    }
    Ok(names)
}

/// Classes of models whose text part can be loaded.
pub(super) fn classes() -> impl Iterator<Item = &'static str> {
    WRAPPERS.iter().map(|(class, ..)| *class)
}
