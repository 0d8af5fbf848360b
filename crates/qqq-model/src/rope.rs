//! Inverse frequencies of the rotary embedding (Su et al., arXiv 2104.09864) and their scalings for longer
//! contexts.

use std::f32::consts::TAU;

use qqq_backend::{Backend, QueryScale};
use qqq_formats::{ModelConfig, config::RopeScaling};

use crate::Result;

/// Which rotary embedding a sequence has, in models where that depends on its length: LongRoPE with two lists, and dynamic
/// NTK.
///
/// transformers goes by the length of each forward pass, so keys in the cache may have been turned by another embedding than
/// the queries that meet them. Here it is chosen once, before the first token, by the length that the sequence can reach.
/// A forward pass over a whole sequence of that length computes the same in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeChoice {
    /// That of sequences within the original context, and of all sequences where the length does not count.
    Original,
    /// That of sequences that leave the original context.
    Extended {
        /// Tokens of the longest sequence that has it. The base of dynamic NTK follows from it.
        reach: usize,
    },
}

impl RopeChoice {
    /// For a sequence of up to `reach` tokens.
    pub fn new(config: &ModelConfig, reach: usize) -> Self {
        let context = config.max_position_embeddings;
        match config.rope_scaling {
            RopeScaling::LongRope { original, .. } if reach > original => Self::Extended { reach: context },
            RopeScaling::Dynamic { original, .. } if reach > original => {
                Self::Extended { reach: reach.min(context) }
            }
            _ => Self::Original,
        }
    }

    /// Tokens of the longest sequence that may have it.
    pub fn longest(self, config: &ModelConfig) -> usize {
        match self {
            Self::Original => {
                config.rope_scaling.original_context().unwrap_or(config.max_position_embeddings)
            }
            Self::Extended { reach } => reach,
        }
    }
}

/// A rotary embedding, as [`Backend::rope`] is given it.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeParameters {
    /// Inverse frequencies.
    pub inv_freq: Vec<f32>,
    /// Factor of cosines and sines.
    pub factor: f32,
    /// What whole queries are multiplied by.
    pub query_scale: Option<QueryScale>,
}

/// The rotary embeddings of a choice: that of all layers, or of those without a window, and that of layers with one, where it is
/// another.
pub fn parameters(config: &ModelConfig, choice: RopeChoice) -> Vec<RopeParameters> {
    let query_scale =
        config.graph.query_scale.map(|scale| QueryScale { beta: scale.beta as f32, period: scale.period });
    let factor = config.rope_attention_factor as f32;
    let mut ropes = vec![RopeParameters { inv_freq: inv_freq(config, choice), factor, query_scale }];
    if let Some(rope_theta) = config.local_rope_theta {
        let local = ModelConfig { rope_theta, rope_scaling: RopeScaling::None, ..config.clone() };
        ropes.push(RopeParameters { inv_freq: inv_freq(&local, choice), factor: 1.0, query_scale });
    }
    ropes
}

/// The [rotary embeddings](parameters) of a choice on a backend, for so many positions.
///
/// # Errors
/// Those of the backend.
pub fn embeddings<B: Backend>(
    backend: &B,
    config: &ModelConfig,
    choice: RopeChoice,
    positions: usize,
) -> Result<Vec<B::Rope>> {
    let of =
        |rope: RopeParameters| Ok(backend.rope(&rope.inv_freq, rope.factor, rope.query_scale, positions)?);
    parameters(config, choice).into_iter().map(of).collect()
}

/// Which of the [`embeddings`] a layer has, if any.
pub(crate) fn index(config: &ModelConfig, layer: usize) -> Option<usize> {
    let graph = &config.graph;
    let slides = graph.windows.get(layer).is_some_and(Option::is_some);
    let own = usize::from(slides && config.local_rope_theta.is_some());
    graph.rotary.get(layer).is_none_or(|has| *has).then_some(own)
}

/// `rotary_dim / 2` inverse frequencies, `theta^(-2i / rotary_dim)`, scaled as the configuration says for sequences of a
/// choice.
///
/// Every step is rounded to f32 in transformers' order (`modeling_rope_utils`), because an error in a frequency
/// grows with the position. The power alone is taken in f64 and rounded once, so that it does not depend on
/// the platform's `powf`.
pub fn inv_freq(config: &ModelConfig, choice: RopeChoice) -> Vec<f32> {
    let theta = match (&config.rope_scaling, choice) {
        (RopeScaling::Dynamic { factor, original }, RopeChoice::Extended { reach }) => {
            dynamic_base(config, *factor, *original, reach)
        }
        _ => config.rope_theta as f32,
    };
    let power = |i: usize| {
        let exponent = (2 * i) as f32 / config.rotary_dim as f32;
        f64::from(theta).powf(f64::from(exponent)) as f32
    };
    let base = |i: usize| 1.0 / power(i);
    let half = 0..config.rotary_dim / 2;
    // The divisor goes into the denominator, as for transformers' long-context factors.
    let divided =
        |factors: &[f32]| (0..factors.len()).map(|i| 1.0 / (factors[i] * power(i))).collect::<Vec<f32>>();
    match &config.rope_scaling {
        RopeScaling::None | RopeScaling::Dynamic { .. } => half.map(base).collect(),
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
        RopeScaling::Factors(factors) => divided(factors),
        RopeScaling::LongRope { short, long, .. } => match choice {
            RopeChoice::Original => divided(short),
            RopeChoice::Extended { .. } => divided(long),
        },
    }
}

/// The base of dynamic NTK for sequences of `reach` tokens:
/// `theta (factor reach / original - (factor - 1))^(dim / (dim - 2))`.
fn dynamic_base(config: &ModelConfig, factor: f64, original: usize, reach: usize) -> f32 {
    let dim = config.rotary_dim as f64;
    let growth = factor as f32 * reach as f32 / original as f32 - (factor - 1.0) as f32;
    let power = f64::from(growth).powf(f64::from((dim / (dim - 2.0)) as f32)) as f32;
    config.rope_theta as f32 * power
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

    fn original(config: &ModelConfig) -> Vec<f32> {
        inv_freq(config, RopeChoice::Original)
    }

    fn assert_close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= 2e-7 * e, "{found:?} vs {expected:?}");
        }
    }

    #[test]
    fn default_and_linear() {
        let plain = original(&config(8, 10_000.0, Value::Null));
        assert_close(&plain, &[1.0, 0.1, 0.01, 0.001]);
        let linear = original(&config(8, 10_000.0, json!({"rope_type": "linear", "factor": 4.0})));
        assert_close(&linear, &[0.25, 0.025, 0.0025, 0.00025]);
    }

    /// Meta-Llama-3.1's own settings; expected values from transformers (one of the blended band, and the last).
    #[test]
    fn llama3_bands() {
        let scaling = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192
        });
        let f = original(&config(128, 500_000.0, scaling));
        let plain = original(&config(128, 500_000.0, Value::Null));
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
            assert_close(&original(&config), &frequencies);
            assert!((config.rope_attention_factor - attention_factor).abs() < 1e-14, "{scaling}");
        }
    }

    #[test]
    fn factors_divide() {
        let mut config = config(8, 10_000.0, Value::Null);
        config.rope_scaling = RopeScaling::Factors(vec![1.0, 2.0, 4.0, 8.0]);
        assert_close(&original(&config), &[1.0, 0.05, 0.0025, 0.000125]);
    }
    /// Expected frequencies from transformers 5.24, for a sequence of 6000 tokens where the original context is of 4096.
    #[test]
    fn beyond_the_original_context() {
        let scaling = json!({"rope_type": "dynamic", "factor": 2.0});
        let value = json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8,
            "max_position_embeddings": 4096, "rope_theta": 1e4, "rope_scaling": scaling,
        });
        let mut config = ModelConfig::from_value(Path::new("config.json"), value).unwrap();
        assert_eq!(RopeChoice::new(&config, 4096), RopeChoice::Original);
        let choice = RopeChoice::new(&config, 6000);
        assert_eq!((choice, choice.longest(&config)), (RopeChoice::Extended { reach: 6000 }, 6000));
        assert_eq!(RopeChoice::new(&config, 9000), RopeChoice::Extended { reach: 8192 });
        assert_close(&inv_freq(&config, choice), &DYNAMIC);
        // Two lists: which of them counts, for whatever length.
        let (short, long) = (vec![1.0; 8], vec![2.0; 8]);
        config.rope_scaling = RopeScaling::LongRope { short, long, original: 4096 };
        assert_eq!(RopeChoice::new(&config, 4096).longest(&config), 4096);
        assert_eq!(RopeChoice::new(&config, 4097), RopeChoice::Extended { reach: 8192 });
        let plain = original(&config);
        let long = inv_freq(&config, RopeChoice::new(&config, 4097));
        assert!(plain.iter().zip(&long).all(|(a, b)| *a == 2.0 * b), "{plain:?} {long:?}");
    }

    const DYNAMIC: [f32; 8] = [
        1.0,
        0.287_883_07,
        0.082_876_67,
        0.023_858_791,
        0.006_868_542_6,
        0.001_977_337,
        5.692_419e-4,
        1.638_751_3e-4,
    ];
}
