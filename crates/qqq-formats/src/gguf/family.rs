//! What the architectures of llama.cpp have in `config.json` beside what all have.

use serde_json::{Value as Json, json};

use super::{GgufFile, Value, config::shortest};
use crate::{Result, TensorSource};

/// Layers of the model of Gemma 3 whose scores are not scaled by the width of a head, and of which nothing in the file says
/// so (llama.cpp knows it by them as well).
const GEMMA3_27B: usize = 62;

/// Sizes that keys of the families follow from.
pub(super) struct Sizes {
    pub hidden: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub layers: usize,
    /// Window of attention, if there is one.
    pub window: Option<usize>,
    /// Biases on q, k, v and o, and in the MLP.
    pub biases: (bool, bool),
}

impl GgufFile {
    /// Adds the keys of family `model_type`, of architecture `arch`.
    ///
    /// # Errors
    /// Keys of other types than they should have.
    pub(super) fn add_family(
        &self,
        raw: &mut Json,
        model_type: &str,
        arch: &str,
        sizes: &Sizes,
    ) -> Result<()> {
        let m = self.metadata();
        let number = |key: &str| Ok(m.float(&format!("{arch}.{key}"))?.map(shortest).filter(|x| *x != 0.0));
        let (attention_bias, mlp_bias) = sizes.biases;
        let own = match model_type {
            "llama" => json!({ "attention_bias": attention_bias, "mlp_bias": mlp_bias }),
            "mistral" => json!({ "sliding_window": sizes.window }),
            "qwen2" => json!({ "use_sliding_window": false }),
            "qwen3" => json!({ "attention_bias": attention_bias, "use_sliding_window": false }),
            // llama.cpp has no key for the layers without a rotary embedding.
            "smollm3" => json!({
                "attention_bias": attention_bias,
                "mlp_bias": mlp_bias,
                "no_rope_layer_interval": 4,
                "use_sliding_window": false,
            }),
            // A missing factor is one, but that of the scores, which has llama.cpp's usual value.
            "granite" => {
                let usual = (sizes.head_dim as f64).powf(-0.5);
                let or_one = |x: Result<Option<f64>>| x.map(|x| x.unwrap_or(1.0));
                json!({
                    "attention_bias": attention_bias,
                    "mlp_bias": mlp_bias,
                    "attention_multiplier": number("attention.scale")?.unwrap_or(usual),
                    "embedding_multiplier": or_one(number("embedding_scale"))?,
                    "residual_multiplier": or_one(number("residual_scale"))?,
                    "logits_scaling": or_one(number("logit_scale"))?,
                })
            }
            "phi3" => json!({ "sliding_window": sizes.window }),
            "ministral3" => {
                let mut beside =
                    |key: &str| raw.as_object_mut().and_then(|raw| raw.remove(key)).unwrap_or_default();
                let mut rope = beside("rope_scaling");
                rope["rope_theta"] = beside("rope_theta");
                rope["llama_4_scaling_beta"] = json!(number("attention.temperature_scale")?);
                json!({ "sliding_window": sizes.window, "rope_parameters": rope })
            }
            "gemma3_text" => {
                let scalar =
                    if sizes.layers == GEMMA3_27B { sizes.hidden / sizes.heads } else { sizes.head_dim };
                json!({
                    "attention_bias": attention_bias,
                    "hidden_activation": "gelu_pytorch_tanh",
                    "query_pre_attn_scalar": scalar,
                    "final_logit_softcapping": number("final_logit_softcapping")?,
                    "rope_local_base_freq": number("rope.freq_base_swa")?.unwrap_or(10_000.0),
                    "sliding_window": sizes.window,
                    "layer_types": self.gemma3_layers(arch, sizes)?,
                })
            }
            _ => json!({}),
        };
        let (Json::Object(raw), Json::Object(own)) = (raw, own) else { return Ok(()) };
        if model_type == "gemma3_text" {
            raw.remove("hidden_act");
        }
        // Classes of these have a default that may lie outside of the vocabulary.
        if ["smollm3", "phi3", "gemma3_text"].contains(&model_type) {
            raw.insert("pad_token_id".into(), json!(m.token_id("tokenizer.ggml.padding_token_id")?));
        }
        raw.extend(own);
        Ok(())
    }

    /// Which layers slide: as the file says, or, as in all published models, five of six; none without a window.
    fn gemma3_layers(&self, arch: &str, sizes: &Sizes) -> Result<Vec<&'static str>> {
        let m = self.metadata();
        let key = format!("{arch}.attention.sliding_window_pattern");
        let slides: Vec<bool> = match m.get(&key) {
            Some(Value::Integers(flags)) if flags.len() == sizes.layers => {
                flags.iter().map(|f| *f != 0).collect()
            }
            Some(Value::Bools(flags)) if flags.len() == sizes.layers => flags.clone(),
            _ => {
                let pattern = m.size(&key)?.unwrap_or(6).max(1);
                (1..=sizes.layers).map(|n| !n.is_multiple_of(pattern)).collect()
            }
        };
        let kind = |slides: bool| if slides { "sliding_attention" } else { "full_attention" };
        Ok(slides.into_iter().map(|slides| kind(slides && sizes.window.is_some())).collect())
    }

    /// `rope_scaling` of a model with a divisor for each frequency, in short and in long texts (Phi-3).
    pub(super) fn long_rope(&self, arch: &str, rotary_dim: usize, context: usize) -> Result<Option<Json>> {
        let [short, long] = ["short", "long"].map(|name| format!("rope_factors_{name}.weight"));
        if self.info(&short).is_none() && self.info(&long).is_none() {
            return Ok(None);
        }
        let m = self.metadata();
        let factors = |name: &str| -> Result<Vec<f64>> {
            Ok(self.f32(name, &[rotary_dim / 2])?.iter().map(|&f| shortest(f.into())).collect())
        };
        let original = m.size(&format!("{arch}.rope.scaling.original_context_length"))?.unwrap_or(context);
        let mut scaling = json!({
            "rope_type": "longrope",
            "short_factor": factors(&short)?,
            "long_factor": factors(&long)?,
            "original_max_position_embeddings": original,
        });
        if let Some(attention) = m.float(&format!("{arch}.rope.scaling.attn_factor"))? {
            scaling["attention_factor"] = json!(shortest(attention));
        }
        Ok(Some(scaling))
    }
}
