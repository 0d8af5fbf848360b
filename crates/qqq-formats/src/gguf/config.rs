//! The model's configuration from GGUF metadata.

use serde_json::{Value as Json, json};

use super::{GgufFile, Metadata, Value, architectures, family::Sizes, names, split};
use crate::config::Architecture;
use crate::{FormatError, ModelConfig, Result, TensorSource};

/// Original context and frequency factors of all published Llama 3.1 to 3.3 models;
/// llama.cpp's converter stores only the resulting divisors of the frequencies.
const LLAMA3: (f64, f64, f64) = (8192.0, 1.0, 4.0);

/// Query heads and key/value heads.
pub(super) fn heads(metadata: &Metadata, arch: &str) -> Result<(usize, usize)> {
    let q = per_layer(metadata, &format!("{arch}.attention.head_count"))?;
    let kv_key = format!("{arch}.attention.head_count_kv");
    let kv = if metadata.get(&kv_key).is_some() { per_layer(metadata, &kv_key)? } else { q };
    if q == 0 || kv == 0 || !q.is_multiple_of(kv) {
        return Err(metadata.malformed(format!(
            "{q} query heads and {kv} key/value heads: the first must be a multiple of the second"
        )));
    }
    Ok((q, kv))
}

/// A size that may be given once or once for each layer, the same for all.
fn per_layer(metadata: &Metadata, key: &str) -> Result<usize> {
    let Some(Value::Integers(values)) = metadata.get(key) else {
        return metadata.required(key, metadata.size(key)?);
    };
    match values.first() {
        Some(&first) if values.iter().all(|&v| v == first) => usize::try_from(first)
            .map_err(|_| metadata.malformed(format!("{key} is {first}, expected a size"))),
        _ => Err(FormatError::Unsupported(format!(
            "{}: {key} differs from layer to layer; such models are not supported",
            metadata.path().display()
        ))),
    }
}

impl GgufFile {
    /// The configuration; its `raw` is what transformers would have written as `config.json`.
    ///
    /// # Errors
    /// Missing or ill-typed keys, and whatever these decoders cannot do: other architectures, mixtures of experts.
    pub fn config(&self) -> Result<ModelConfig> {
        let m = self.metadata();
        let arch = architectures::of_model(m)?.name;
        let parts = split::count(m)?;
        if parts != self.parts.len() {
            return Err(self.unsupported(format!(
                "is one of {parts} parts of a split model, which have to be opened together, by the name of one of them"
            )));
        }
        let key = |name: &str| format!("{arch}.{name}");
        let size = |name: &str| per_layer(m, &key(name));

        if m.size(&key("expert_count"))?.unwrap_or(0) > 0 {
            return Err(self.unsupported("mixtures of experts are not supported".into()));
        }
        let (num_heads, num_kv_heads) = heads(m, arch)?;
        let hidden_size = size("embedding_length")?;
        let head_dim = match m.size(&key("attention.key_length"))? {
            Some(n) => n,
            None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
            None => {
                return Err(m.malformed(format!(
                    "embedding_length {hidden_size} is no multiple of {num_heads} heads"
                )));
            }
        };
        let rotary_dim = m.size(&key("rope.dimension_count"))?.unwrap_or(head_dim);
        // Phi-3 turns a part of a head.
        let others = ["attention.value_length", "rope.dimension_count"];
        for other in &others[..if arch == "phi3" { 1 } else { 2 }] {
            if let Some(n) = m.size(&key(other))?.filter(|&n| n != head_dim) {
                return Err(self.unsupported(format!(
                    "{} is {n}, but heads are {head_dim} wide; such models are not supported",
                    key(other)
                )));
            }
        }

        let vocab_size = match self.info("model.embed_tokens.weight") {
            Some(info) if info.shape.len() == 2 => info.shape[0],
            Some(info) => {
                return Err(m.malformed(format!(
                    "tensor \"token_embd.weight\" has shape {:?}, expected two dimensions",
                    info.shape
                )));
            }
            None => {
                return Err(FormatError::MissingTensor {
                    location: self.location(),
                    name: "token_embd.weight".into(),
                });
            }
        };
        let has = |name: &str| self.info(&format!("model.layers.0.{name}")).is_some();
        let qkv_bias = has("self_attn.q_proj.bias");
        let o_bias = has("self_attn.o_proj.bias");
        let mlp_bias = has("mlp.up_proj.bias");
        let sliding_window = m.size(&key("attention.sliding_window"))?.filter(|&n| n > 0);

        // Some Llama-shaped graphs have another name at Hugging Face.
        let family = match (arch, qkv_bias, o_bias, mlp_bias) {
            ("llama", true, false, false) => "qwen2",
            ("llama", false, false, false) if sliding_window.is_some() => "mistral",
            ("llama", q, o, _) if q == o => arch,
            ("qwen2", _, false, false) => arch,
            ("qwen3", q, o, false) if q == o => arch,
            ("mistral3", false, false, false) if m.get(&key("attention.temperature_scale")).is_some() => {
                "ministral3"
            }
            ("mistral3", false, false, false) => "mistral",
            ("smollm3" | "granite", q, o, _) if q == o => arch,
            ("phi3", false, false, false) => arch,
            ("gemma3", q, o, false) if q == o => "gemma3_text",
            _ => {
                return Err(self.unsupported(format!(
                    "{arch} with these biases (q, k, v: {qkv_bias}, o: {o_bias}, MLP: {mlp_bias}) is not supported"
                )));
            }
        };
        let Some(architecture) = Architecture::of_model_type(family) else {
            return Err(self.unsupported(format!("{family} is not a known family")));
        };

        let num_layers = size("block_count")?;
        if num_layers > self.names().len() {
            return Err(m.malformed(format!(
                "{} is {num_layers}, but the file has only {} tensors",
                key("block_count"),
                self.names().len()
            )));
        }
        let eps_key = key("attention.layer_norm_rms_epsilon");
        let eps = shortest(m.required(&eps_key, m.float(&eps_key)?)?);
        let rope_theta = m.float(&key("rope.freq_base"))?.map_or(10_000.0, shortest);
        // JSON has no way to say either, and would say null.
        if !eps.is_finite() || !rope_theta.is_finite() {
            return Err(m.malformed(format!("{eps_key} is {eps}, rope.freq_base is {rope_theta}")));
        }
        let context = size("context_length")?;
        let eos = match eos_token_ids(m)?.as_slice() {
            [] => Json::Null,
            [id] => json!(id),
            ids => json!(ids),
        };
        let mut raw = json!({
            "architectures": [architecture.class_name()],
            "model_type": architecture.model_type(),
            "hidden_size": hidden_size,
            "intermediate_size": size("feed_forward_length")?,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_kv_heads,
            "head_dim": head_dim,
            "hidden_act": "silu",
            "vocab_size": vocab_size,
            "max_position_embeddings": context,
            "rms_norm_eps": eps,
            "rope_theta": rope_theta,
            "rope_scaling": self.rope_scaling(arch, rope_theta, rotary_dim, context)?,
            "tie_word_embeddings": self.info("lm_head.weight").is_none(),
            "attention_dropout": 0.0,
            "bos_token_id": m.token_id("tokenizer.ggml.bos_token_id")?,
            "eos_token_id": eos,
            "torch_dtype": "float16",
            "use_cache": true,
        });
        let sizes = Sizes {
            hidden: hidden_size,
            heads: num_heads,
            head_dim,
            layers: num_layers,
            window: sliding_window,
            biases: (qkv_bias, mlp_bias),
        };
        self.add_family(&mut raw, family, arch, &sizes)?;
        if rotary_dim != head_dim {
            // What transformers rounds down to it.
            raw["partial_rotary_factor"] = json!((rotary_dim as f64 / head_dim as f64).next_up());
        }
        // One reader checks sizes and decides what is supported, for both kinds of files.
        ModelConfig::from_value(m.path(), raw)
    }

    /// `rope_scaling` of `config.json`.
    fn rope_scaling(&self, arch: &str, theta: f64, rotary_dim: usize, context: usize) -> Result<Json> {
        if let Some(scaling) = self.long_rope(arch, rotary_dim, context)? {
            return Ok(scaling);
        }
        let m = self.metadata();
        let linear = match m.float(&format!("{arch}.rope.scaling.factor"))? {
            Some(factor) => Some(factor),
            // The key's name before 2023-11.
            None => m.float(&format!("{arch}.rope.scale_linear"))?,
        }
        .map(shortest);
        let kind = m.string(&format!("{arch}.rope.scaling.type"))?;
        let scaling = match (kind, linear) {
            (Some("none"), _) | (None, None | Some(1.0)) => Json::Null,
            (Some("linear") | None, Some(factor)) => {
                json!({"rope_type": "linear", "factor": factor})
            }
            (Some("yarn"), Some(factor)) => self.yarn(arch, factor)?,
            (kind, factor) => {
                let factor = factor.map_or_else(|| "without a factor".into(), |f| format!("with factor {f}"));
                return Err(self.unsupported(format!(
                    "rope scaling of type {} {factor} is not supported (linear, yarn and Llama 3's are)",
                    kind.unwrap_or("linear")
                )));
            }
        };
        if self.info(names::ROPE_FREQS).is_none() {
            return Ok(scaling);
        }
        if !scaling.is_null() {
            return Err(self.unsupported(format!(
                "rope scaling by both {} and {scaling} is not supported",
                names::ROPE_FREQS
            )));
        }
        let factors = self.f32(names::ROPE_FREQS, &[rotary_dim / 2])?;
        Ok(llama3(theta, &factors).unwrap_or_else(|| {
            let factors: Vec<f64> = factors.iter().map(|&f| shortest(f.into())).collect();
            json!({
                "rope_type": "longrope",
                "short_factor": factors,
                "long_factor": factors,
                "attention_factor": 1.0,
                "original_max_position_embeddings": context,
            })
        }))
    }

    /// `rope_scaling` of a model that is scaled by YaRN, as transformers has it.
    ///
    /// llama.cpp computes the same but for one thing: it takes `0.1 ln(factor) + 1` for the length of queries and keys, whatever
    /// `yarn_attn_factor` says, where its converter puts the `attention_factor` of `config.json`. That one counts here, as in
    /// transformers; but 1 may also be the `attn_factor` of early configurations, without an effect in either, and counts as
    /// missing. A factor of llama.cpp's own, `attn_factor`, multiplies what there is. Ministral 3 has neither.
    fn yarn(&self, arch: &str, factor: f64) -> Result<Json> {
        let m = self.metadata();
        let number = |key: &str| -> Result<Option<f64>> {
            Ok(m.float(&format!("{arch}.rope.scaling.{key}"))?.map(shortest))
        };
        // A negative extrapolation counts as missing; less than all of it and DeepSeek's logarithm (but in Ministral 3) are
        // of other families.
        let (extrapolation, logarithm) = (number("yarn_ext_factor")?, number("yarn_log_multiplier")?);
        let given = [
            ("yarn_ext_factor", extrapolation.filter(|x| !(*x < 0.0 || *x == 1.0))),
            ("yarn_log_multiplier", logarithm.filter(|x| *x != 0.0 && arch != "mistral3")),
        ];
        if let Some((key, value)) = given.into_iter().find_map(|(key, value)| Some((key, value?))) {
            return Err(
                self.unsupported(format!("rope scaling of type yarn with {key} {value} is not supported"))
            );
        }
        let mut scaling = json!({ "rope_type": "yarn", "factor": factor });
        if let Some(original) = m.size(&format!("{arch}.rope.scaling.original_context_length"))? {
            scaling["original_max_position_embeddings"] = json!(original);
        }
        for (key, name) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
            if let Some(value) = number(key)? {
                scaling[name] = json!(value);
            }
        }
        if arch == "mistral3" {
            // llama.cpp takes back what the multiplier does to the length of queries and keys, as equal ones do here.
            let multiplier = logarithm.unwrap_or(1.0);
            scaling["mscale"] = json!(multiplier);
            scaling["mscale_all_dim"] = json!(multiplier);
            return Ok(scaling);
        }
        let attention = number("yarn_attn_factor")?.filter(|x| *x != 1.0);
        let more = number("attn_factor")?.unwrap_or(1.0);
        if attention.is_some() || more != 1.0 {
            let own = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
            scaling["attention_factor"] = json!(attention.unwrap_or(own) * more);
        }
        Ok(scaling)
    }

    fn unsupported(&self, reason: String) -> FormatError {
        FormatError::Unsupported(format!("{}: {reason}", self.location()))
    }
}

/// The Llama 3 parameters that give these divisors, if the usual ones do.
fn llama3(theta: f64, factors: &[f32]) -> Option<Json> {
    let (original, low, high) = LLAMA3;
    let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
    for (i, &found) in factors.iter().enumerate() {
        let wavelength = std::f64::consts::TAU * theta.powf(i as f64 / factors.len() as f64);
        let expected = if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        };
        // The converter computes in f32.
        if (f64::from(found) - expected).abs() > 1e-4 * expected {
            return None;
        }
    }
    (factor > 1.0).then(|| {
        json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original as u64,
        })
    })
}

/// The f64 of an f32's shortest decimal form (1e-5 rather than 9.999999747378752e-6).
pub(super) fn shortest(x: f64) -> f64 {
    let narrow = x as f32;
    if f64::from(narrow) == x { narrow.to_string().parse().unwrap_or(x) } else { x }
}

/// End of sequence, of turn and of message.
fn eos_token_ids(m: &Metadata) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for name in ["eos", "eot", "eom"] {
        if let Some(id) = m.token_id(&format!("tokenizer.ggml.{name}_token_id"))?
            && !ids.contains(&id)
        {
            ids.push(id);
        }
    }
    Ok(ids)
}
