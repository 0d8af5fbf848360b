//! Inverse frequencies of the rotary embedding (Su et al., arXiv 2104.09864) and their scalings for longer
//! contexts.

use std::f32::consts::TAU;

use qqq_backend::{Backend, QueryScale};
use qqq_formats::{ModelConfig, config::RopeScaling};

use crate::Result;

/// The rotary embeddings of a model, for so many positions: that of all layers, or of those without a window, and that of
/// layers with one, where it is another.
///
/// # Errors
/// Those of the backend.
pub fn embeddings<B: Backend>(backend: &B, config: &ModelConfig, positions: usize) -> Result<Vec<B::Rope>> {
    let query_scale =
        config.graph.query_scale.map(|scale| QueryScale { beta: scale.beta as f32, period: scale.period });
    let factor = config.rope_attention_factor as f32;
    let mut ropes = vec![backend.rope(&inv_freq(config), factor, query_scale, positions)?];
    if let Some(rope_theta) = config.local_rope_theta {
        let local = ModelConfig { rope_theta, rope_scaling: RopeScaling::None, ..config.clone() };
        ropes.push(backend.rope(&inv_freq(&local), 1.0, query_scale, positions)?);
    }
    Ok(ropes)
}

/// Which of the [`embeddings`] a layer has, if any.
pub(crate) fn index(config: &ModelConfig, layer: usize) -> Option<usize> {
    let graph = &config.graph;
    let slides = graph.windows.get(layer).is_some_and(Option::is_some);
    let own = usize::from(slides && config.local_rope_theta.is_some());
    graph.rotary.get(layer).is_none_or(|has| *has).then_some(own)
}

/// `rotary_dim / 2` inverse frequencies, `theta^(-2i / rotary_dim)`, scaled as the configuration says.
///
/// Every step is rounded to f32 in transformers' order (`modeling_rope_utils`), because an error in a frequency
/// grows with the position. The power alone is taken in f64 and rounded once, so that it does not depend on
/// the platform's `powf`.
pub fn inv_freq(config: &ModelConfig) -> Vec<f32> {
    let theta = f64::from(config.rope_theta as f32);
    let power = |i: usize| {
        let exponent = (2 * i) as f32 / config.rotary_dim as f32;
        theta.powf(f64::from(exponent)) as f32
    };
    let base = |i: usize| 1.0 / power(i);
    let half = 0..config.rotary_dim / 2;
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
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_position_embeddings, truncate } => {
            let scaling = Yarn {
                factor: *factor as f32,
                range: yarn_range(
                    config,
                    *original_max_position_embeddings,
                    *beta_fast,
                    *beta_slow,
                    *truncate,
                ),
            };
            half.map(|i| scaling.apply(i, power(i))).collect()
        }
        // The divisor goes into the denominator, as for transformers' long-context factors.
        RopeScaling::Factors(factors) => {
            half.zip(factors).map(|(i, factor)| 1.0 / (factor * power(i))).collect()
        }
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

/// YaRN's scaling: frequencies before the range stay, those behind it are divided by `factor`, and in it the two are
/// blended.
struct Yarn {
    factor: f32,
    range: (f64, f64),
}

impl Yarn {
    /// `power` is the reciprocal of frequency `i`.
    fn apply(&self, i: usize, power: f32) -> f32 {
        let (low, high) = self.range;
        let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let kept = 1.0 - ramp;
        1.0 / (self.factor * power) * (1.0 - kept) + 1.0 / power * kept
    }
}

/// The frequencies between which YaRN blends: those that turn `beta_fast` and `beta_slow` times within the original
/// context.
fn yarn_range(
    config: &ModelConfig,
    context: f64,
    beta_fast: f64,
    beta_slow: f64,
    truncate: bool,
) -> (f64, f64) {
    let width = config.rotary_dim as f64;
    let place = |turns: f64| {
        width * (context / (turns * std::f64::consts::TAU)).ln() / (2.0 * config.rope_theta.ln())
    };
    let (mut low, mut high) = (place(beta_fast), place(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(width - 1.0));
    // An empty range would divide by zero.
    if low == high { (low, high + 0.001) } else { (low, high) }
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

    /// Expected frequencies and attention factors from transformers 5.24 (`ROPE_INIT_FUNCTIONS`).
    #[test]
    fn scalings_of_long_contexts() {
        let cases: [(f64, Value, [f32; 8], f64); 6] = [
            (
                1e6,
                json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
                [
                    1.0,
                    0.177_827_94,
                    0.031_622_78,
                    0.004_217_56,
                    5e-4,
                    4.445_698_5e-5,
                    7.905_694e-6,
                    1.405_853_4e-6,
                ],
                1.138_629_436_111_989,
            ),
            (
                1e4,
                json!({
                    "type": "yarn", "factor": 8, "original_max_position_embeddings": 512, "beta_fast": 16,
                    "beta_slow": 2, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": false
                }),
                [
                    1.0,
                    0.316_227_76,
                    0.071_608_46,
                    0.007_324_998_3,
                    0.001_25,
                    3.952_847_3e-4,
                    1.25e-4,
                    3.952_847_3e-5,
                ],
                1.094_179_988_101_349,
            ),
            (
                1e4,
                json!({
                    "rope_type": "yarn", "factor": null, "original_max_position_embeddings": 1024,
                    "attention_factor": 1.25
                }),
                [1.0, 0.316_227_76, 0.081_25, 0.019_764_237, 0.004_375, 7.905_694_7e-4, 2.5e-4, 7.905_695e-5],
                1.25,
            ),
            (
                1e4,
                json!({"rope_type": "dynamic", "factor": 2.0}),
                [1.0, 0.316_227_76, 0.1, 0.031_622_78, 0.01, 0.003_162_277_9, 0.001, 3.162_278e-4],
                1.0,
            ),
            (
                1e4,
                json!({
                    "rope_type": "longrope", "original_max_position_embeddings": 1024,
                    "short_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5],
                    "long_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5]
                }),
                [
                    1.0,
                    0.210_818_5,
                    0.05,
                    0.012_649_111,
                    0.003_333_333_4,
                    9.035_079e-4,
                    2.5e-4,
                    7.027_283_6e-5,
                ],
                1.095_445_115_010_332_1,
            ),
            (
                1e4,
                json!({"rope_type": "proportional", "factor": 2.0}),
                [0.5, 0.158_113_88, 0.05, 0.015_811_39, 0.005, 0.001_581_138_9, 5e-4, 1.581_139e-4],
                1.0,
            ),
        ];
        for (theta, scaling, frequencies, attention_factor) in cases {
            let positions = if theta == 1e6 { 131_072 } else { 4096 };
            let value = json!({
                "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 64,
                "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8,
                "max_position_embeddings": positions, "rope_theta": theta, "rope_scaling": scaling,
            });
            let config = ModelConfig::from_value(Path::new("config.json"), value).unwrap();
            assert_close(&inv_freq(&config), &frequencies);
            assert!((config.rope_attention_factor - attention_factor).abs() < 1e-14, "{scaling}");
        }
    }

    #[test]
    fn factors_divide() {
        let mut config = config(8, 10_000.0, Value::Null);
        config.rope_scaling = RopeScaling::Factors(vec![1.0, 2.0, 4.0, 8.0]);
        assert_close(&inv_freq(&config), &[1.0, 0.05, 0.0025, 0.000125]);
    }
}
