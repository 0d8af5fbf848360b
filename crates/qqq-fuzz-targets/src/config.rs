//! `config.json`: any bytes are either refused or give sizes that can be multiplied, and the quantization that was read is
//! written and read again unchanged.

use std::path::Path;

use qqq_formats::{ModelConfig, QuantizationConfig};

use crate::{Outcome, text};

/// Reads a configuration.
///
/// # Errors
/// It is none, or one that is not supported.
pub fn config(bytes: &[u8]) -> Outcome {
    let value = serde_json::from_slice(bytes).map_err(text)?;
    let config = ModelConfig::from_value(Path::new("config.json"), value).map_err(text)?;
    let sizes = [config.hidden_size, config.intermediate_size, config.vocab_size, config.num_layers];
    assert!(sizes.iter().all(|n| *n > 0));
    assert!(config.num_heads.is_multiple_of(config.num_kv_heads) && config.head_dim.is_multiple_of(2));
    let widest = config.hidden_size.max(config.intermediate_size).max(config.num_heads * config.head_dim);
    let parameters = widest * widest * 16 * config.num_layers + 8 * config.vocab_size * config.hidden_size;
    assert!(parameters > 0);
    if let Some(quantization) = &config.quantization {
        quantization.ignores("model.layers.11.self_attn.q_proj");
        let again = QuantizationConfig::from_value(&quantization.to_value());
        assert_eq!(&again.expect("what we wrote"), quantization);
    }
    Ok(())
}
