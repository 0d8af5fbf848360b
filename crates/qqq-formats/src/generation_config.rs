//! generation_config.json, as transformers' `generate` reads it. What is recommended of sampling is for the user to say;
//! what forbids, forces or weighs tokens changes what a model answers, and is not done here.

use serde_json::{Map, Value};

use crate::keys::{KnownKeys, Neutral, shown};

const KEYS: KnownKeys = KnownKeys {
    read: &[&["bos_token_id", "eos_token_id", "pad_token_id"]],
    harmless: &[
        // Options of a command say these.
        &[
            "do_sample",
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "repetition_penalty",
            "max_length",
            "max_new_tokens",
            "max_time",
            "num_return_sequences",
        ],
        // Of beam search alone, and of models that have an encoder.
        &["early_stopping", "length_penalty", "decoder_start_token_id", "low_memory"],
        // How it is computed, not what.
        &[
            "use_cache",
            "use_mtp",
            "cache_implementation",
            "cache_config",
            "max_cache_len",
            "compile_config",
            "disable_compile",
            "continuous_batching_config",
            "prefill_chunk_size",
            "is_assistant",
            "assistant_confidence_threshold",
            "assistant_early_exit",
            "assistant_ensemble_weight",
            "assistant_lookbehind",
            "max_matching_ngram_size",
            "num_assistant_tokens",
            "num_assistant_tokens_schedule",
            "prompt_lookup_num_tokens",
            "speculation_type",
            "target_lookbehind",
        ],
        // What is returned.
        &[
            "output_attentions",
            "output_hidden_states",
            "output_logits",
            "output_scores",
            "return_dict_in_generate",
        ],
        // Where the file comes from, and what models of before transformers' own support have.
        &[
            "_from_model_config",
            "transformers_version",
            "chat_format",
            "max_window_size",
            "user_token_id",
            "assistant_token_id",
        ],
        // Nothing of it is wrong where logits are finite, and they must be.
        &["remove_invalid_values", "renormalize_logits"],
    ],
    neutral: &[
        ("num_beams", Neutral::One),
        ("num_beam_groups", Neutral::One),
        ("diversity_penalty", Neutral::Zero),
        ("encoder_repetition_penalty", Neutral::One),
        ("guidance_scale", Neutral::One),
        ("typical_p", Neutral::One),
        ("penalty_alpha", Neutral::Zero),
        ("epsilon_cutoff", Neutral::Zero),
        ("eta_cutoff", Neutral::Zero),
        ("no_repeat_ngram_size", Neutral::Zero),
        ("encoder_no_repeat_ngram_size", Neutral::Zero),
        ("min_length", Neutral::Zero),
        ("min_new_tokens", Neutral::Zero),
    ],
};

/// The setting that would make transformers generate something else than this project does, as a sentence.
pub fn not_supported(config: &Map<String, Value>) -> Option<String> {
    let (key, value) = KEYS.first_unknown(config, &[])?;
    Some(format!(
        "{key} is {}, which generation here does not do; remove it from the file to generate without it",
        shown(value)
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn problem(config: Value) -> Option<String> {
        not_supported(config.as_object().unwrap())
    }

    #[test]
    fn ordinary_files_are_fine() {
        // Of Llama 3.2, Qwen2.5, SmolLM2; then all that transformers 5 writes when nothing was set.
        for config in [
            json!({"bos_token_id": 128000, "do_sample": true, "eos_token_id": [128001, 128008], "temperature": 0.6, "top_p": 0.9,
                   "transformers_version": "4.45.0.dev0"}),
            json!({"bos_token_id": 151643, "pad_token_id": 151643, "repetition_penalty": 1.05, "top_k": 20}),
            json!({"_from_model_config": true, "bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.42.3"}),
            json!({"num_beams": 1, "no_repeat_ngram_size": 0, "typical_p": 1.0, "guidance_scale": null, "suppress_tokens": []}),
        ] {
            assert_eq!(problem(config.clone()), None, "{config}");
        }
    }

    #[test]
    fn what_changes_the_tokens_is_named() {
        for (config, says) in [
            (json!({"suppress_tokens": [3, 4]}), "suppress_tokens is [3,4]"),
            (json!({"top_k": 5, "bad_words_ids": [[7]]}), "bad_words_ids is [[7]]"),
            (json!({"no_repeat_ngram_size": 3}), "no_repeat_ngram_size is 3"),
            (json!({"num_beams": 4}), "num_beams is 4"),
            (json!({"forced_eos_token_id": 2}), "forced_eos_token_id is 2"),
            (json!({"stop_strings": "###"}), "stop_strings is \"###\""),
            (json!({"logit_bias_of_tomorrow": 0.5}), "logit_bias_of_tomorrow is 0.5"),
        ] {
            let problem = problem(config).unwrap();
            assert!(problem.starts_with(says), "{problem}");
        }
    }
}
