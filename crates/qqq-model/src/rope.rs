//! Inverse frequencies of the rotary embedding (Su et al., arXiv 2104.09864) and their scalings for longer
//! contexts.

use std::f32::consts::TAU;

use qqq_formats::{ModelConfig, config::RopeScaling};

/// `head_dim / 2` inverse frequencies, `theta^(-2i / head_dim)`, scaled as the configuration says.
///
/// Every step is rounded to f32 in transformers' order (`modeling_rope_utils`), because an error in a frequency
/// grows with the position. The power alone is taken in f64 and rounded once, so that it does not depend on
/// the platform's `powf`.
pub fn inv_freq(config: &ModelConfig) -> Vec<f32> {
    let theta = f64::from(config.rope_theta as f32);
    let base = |i: usize| {
        let exponent = (2 * i) as f32 / config.head_dim as f32;
        1.0 / theta.powf(f64::from(exponent)) as f32
    };
    let half = 0..config.head_dim / 2;
    match &config.rope_scaling {
        RopeScaling::None => half.map(base).collect(),
        RopeScaling::Linear { factor } => half.map(|i| base(i) / *factor as f32).collect(),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let scaling = Llama3 {
                factor: *factor as f32,
                low: *low_freq_factor as f32,
                high: *high_freq_factor as f32,
                context: *original_max_position_embeddings as f32,
            };
            half.map(|i| scaling.apply(base(i))).collect()
        }
        // The divisor goes into the denominator, as for transformers' long-context factors.
        RopeScaling::Factors(factors) => half
            .zip(factors)
            .map(|(i, factor)| {
                let exponent = (2 * i) as f32 / config.head_dim as f32;
                1.0 / (factor * theta.powf(f64::from(exponent)) as f32)
            })
            .collect(),
    }
}

/// Llama 3.1's scaling: wavelengths shorter than `context / high` stay, those longer than `context / low` are
/// stretched by `factor`, and in between the two are blended.
struct Llama3 {
    factor: f32,
    low: f32,
    high: f32,
    context: f32,
}

impl Llama3 {
    fn apply(&self, inv_freq: f32) -> f32 {
        let wavelength = TAU / inv_freq;
        if wavelength < self.context / self.high {
            inv_freq
        } else if wavelength > self.context / self.low {
            inv_freq / self.factor
        } else {
            let smooth = (self.context / wavelength - self.low) / (self.high - self.low);
            (1.0 - smooth) * inv_freq / self.factor + smooth * inv_freq
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    fn config(head_dim: usize, theta: f64, scaling: Value) -> ModelConfig {
        let value = json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 2 * head_dim, "intermediate_size": 64,
            "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8, "head_dim": head_dim,
            "rope_theta": theta, "rope_scaling": scaling,
        });
        ModelConfig::from_value(Path::new("config.json"), value).unwrap()
    }

    fn assert_close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= 2e-7 * e, "{found:?} vs {expected:?}");
        }
    }

    #[test]
    fn default_and_linear() {
        let plain = inv_freq(&config(8, 10_000.0, Value::Null));
        assert_close(&plain, &[1.0, 0.1, 0.01, 0.001]);
        let linear = inv_freq(&config(8, 10_000.0, json!({"rope_type": "linear", "factor": 4.0})));
        assert_close(&linear, &[0.25, 0.025, 0.0025, 0.00025]);
    }

    /// Meta-Llama-3.1's own settings; expected values from transformers (one of the blended band, and the last).
    #[test]
    fn llama3_bands() {
        let scaling = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192
        });
        let f = inv_freq(&config(128, 500_000.0, scaling));
        let plain = inv_freq(&config(128, 500_000.0, Value::Null));
        assert_eq!(f[..29], plain[..29], "short wavelengths stay");
        for i in 35..64 {
            assert_eq!(f[i], plain[i] / 8.0, "long wavelengths are stretched");
        }
        for i in 29..35 {
            assert!(plain[i] / 8.0 < f[i] && f[i] < plain[i], "index {i} is blended");
        }
        assert_close(&[f[30], f[63]], &[1.371_893_7e-3, 3.068_926e-7]);
    }

    #[test]
    fn factors_divide() {
        let mut config = config(8, 10_000.0, Value::Null);
        config.rope_scaling = RopeScaling::Factors(vec![1.0, 2.0, 4.0, 8.0]);
        assert_close(&inv_freq(&config), &[1.0, 0.05, 0.0025, 0.000125]);
    }
}
