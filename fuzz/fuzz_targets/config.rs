//! `config.json`: any bytes are either refused or give sizes that can be multiplied, and the
//! quantization that was read is written and read again unchanged.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use qqq_formats::{ModelConfig, QuantizationConfig};

fuzz_target!(|data: &[u8]| {
    let Ok(value) = serde_json::from_slice(data) else { return };
    let Ok(config) = ModelConfig::from_value(Path::new("config.json"), value) else { return };
    let sizes = [config.hidden_size, config.intermediate_size, config.vocab_size, config.num_layers];
    assert!(sizes.iter().all(|n| *n > 0));
    assert!(config.num_heads.is_multiple_of(config.num_kv_heads) && config.head_dim.is_multiple_of(2));
    let widest = config.hidden_size.max(config.intermediate_size).max(config.num_heads * config.head_dim);
    let parameters = widest * widest * 16 * config.num_layers + 8 * config.vocab_size * config.hidden_size;
    assert!(parameters > 0);
    if let Some(quantization) = &config.quantization {
        quantization.ignores("model.layers.11.self_attn.q_proj");
        assert_eq!(&QuantizationConfig::from_value(&quantization.to_value()).unwrap(), quantization);
    }
});
