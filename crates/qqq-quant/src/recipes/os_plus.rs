//! Outlier Suppression+: Accurate quantization of large language models by equivalent and optimal shifting and scaling (Wei,
//! Zhang, Li, Zhang, Gong, Guo, Liu; [arXiv 2304.09145](https://arxiv.org/abs/2304.09145)).
//!
//! Outliers of a channel lie on one side. So channel `j` of a layer's input is shifted by `z_j = (max_j + min_j) / 2` (equation
//! 3), and then divided by `s_j = max(1, max|X_j - z_j| / t)` (equation 5): only channels beyond the outlier threshold `t` shrink.
//! The threshold is the one of the least squared error of the site's quantized output, attention's for q, k and v (section 4.3).
//! The paper walks a linear grid, here it is a logarithmic one that is refined ([`smooth::search`](crate::smooth::search)).
//! Weights are rounded to nearest, per channel; activations per token.
//!
//! # What can be absorbed in these models
//! A division goes into whatever makes the input: norms before q, k, v and before gate and up; v before o (its query heads share
//! scales where they share values); up before down. A shift has to be subtracted from the input and comes back as `W z` in the
//! layer's bias:
//! - before o it is exact: what attention gives is an average of values, with weights that sum to 1, so the subtraction goes into
//!   v's bias, and `W z` into o's. A model without these biases gets them (`attention_bias` in `config.json`) where its class has
//!   them at all ([`shifts`]).
//! - behind an RMS norm nothing can subtract: the norm has no bias, as the LayerNorms of the paper's models have.
//! - before down nothing can: its input is a product `gate(g) * u`, which a shift of neither factor shifts by a constant.

use qqq_backend::{Calibrate, HeadLayout, InputKind};
use qqq_formats::{CodeBits, ModelConfig};
use qqq_model::{Site, block::head_layout};

use super::{Entry, RecipeName, Setting, plain};
use crate::{
    Calibration, Recipe, Result, Transform,
    site_search::{Change, SiteSearch},
    smooth::SearchOptions,
    smooth_sites::{report_of, smoothed},
    windows::Workshop,
};

/// W8A8, or W4A8.
pub const ENTRY: Entry = Entry {
    name: RecipeName::OsPlus,
    word: "os+",
    source: "arXiv 2304.09145",
    what: "channels are shifted before o, and those beyond a searched threshold shrunk",
    gives: "W8A8 per channel, or W4A8 (--bits 4)",
    recipe,
    settings: &[Setting::Bits, Setting::Text, Setting::Seed],
};

fn recipe() -> Recipe {
    Recipe {
        name: RecipeName::OsPlus,
        transform: Transform::Suppress,
        bits: CodeBits::Eight,
        calibration: Calibration { windows: 128, window: 512, ..Recipe::DEFAULT.calibration },
        ..plain()
    }
}

/// Whether v and o of a model have biases, or get them.
pub fn shifts(config: &ModelConfig) -> bool {
    let has = |config: &ModelConfig| config.graph.qkv_bias && config.graph.o_bias;
    has(config) || with_bias(config).is_some_and(|config| has(&config))
}

/// Whether they get them.
pub fn adds_bias(config: &ModelConfig) -> bool {
    shifts(config) && !(config.graph.qkv_bias && config.graph.o_bias)
}

/// The key of `config.json` that promises biases of q, k, v and o.
pub(crate) const BIAS_KEY: &str = "attention_bias";

/// The model's configuration, with these biases promised.
fn with_bias(config: &ModelConfig) -> Option<ModelConfig> {
    let mut raw = config.raw.clone();
    raw.insert(BIAS_KEY.into(), true.into());
    ModelConfig::from_value(std::path::Path::new("config.json"), serde_json::Value::Object(raw)).ok()
}

/// `(max + min) / 2` of every channel.
pub fn shift((max, min): &(Vec<f32>, Vec<f32>)) -> Vec<f32> {
    max.iter().zip(min).map(|(max, min)| (max + min) / 2.0).collect()
}

/// Ranges of the input channels of o, widened to those of all channels that one of v feeds.
pub fn shared((max, min): (Vec<f32>, Vec<f32>), heads: HeadLayout) -> (Vec<f32>, Vec<f32>) {
    let (width, each) = (heads.head_dim, heads.num_heads / heads.num_kv_heads.max(1));
    let over = |values: &[f32], of: fn(f32, f32) -> f32| -> Vec<f32> {
        let at = |j: usize| {
            let first = j / (each * width) * each * width + j % width;
            (1..each).fold(values[first], |so_far, head| of(so_far, values[first + head * width]))
        };
        (0..values.len()).map(at).collect()
    };
    (over(&max, f32::max), over(&min, f32::min))
}

/// The shift and the scales of a site.
///
/// # Errors
/// As [`SiteSearch::search`].
pub(crate) fn choose<B: Calibrate>(site: &SiteSearch<'_, B>, workshop: &mut Workshop<B>) -> Result<Change> {
    let options = SearchOptions::default();
    let mut range = site.range()?;
    if site.site != Site::O {
        let choice = smoothed(site, workshop, &range, &options)?;
        return Ok(Change { report: report_of(site.name, &choice), scales: choice.scales, shift: None });
    }
    range = shared(range, head_layout(site.around.config));
    if !shifts(site.around.config) {
        let choice = smoothed(site, workshop, &range, &options)?;
        return Ok(Change { report: report_of(site.name, &choice), scales: choice.scales, shift: None });
    }
    let z = shift(&range);
    range.0.iter_mut().zip(&z).for_each(|(max, z)| *max -= z);
    range.1.iter_mut().zip(&z).for_each(|(min, z)| *min -= z);
    let inputs = shifted(site, &z)?;
    let choice = smoothed(&site.with_inputs(&inputs), workshop, &range, &options)?;
    Ok(Change { report: report_of(site.name, &choice), scales: choice.scales, shift: Some(z) })
}

/// The inputs of a site less `z`. What `W z` adds to outputs takes no part in their errors.
fn shifted<B: Calibrate>(site: &SiteSearch<'_, B>, z: &[f32]) -> Result<Vec<B::Input>> {
    let b = site.around.backend;
    let less = |x: &&B::Input| -> Result<B::Input> {
        let mut rows = b.read_input(x)?.into_owned();
        rows.chunks_exact_mut(z.len()).for_each(|row| row.iter_mut().zip(z).for_each(|(x, z)| *x -= z));
        let mut rows = b.upload(rows.len() / z.len(), z.len(), rows)?;
        let mut out = b.input(0, 0)?;
        b.to_input(&mut rows, InputKind::Float, &mut out)?;
        Ok(out)
    };
    site.inputs.iter().map(less).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes;

    #[test]
    fn channels_are_shifted_to_their_middle() {
        assert_eq!(shift(&(vec![5.0, -1.0], vec![1.0, -3.0])), [3.0, -2.0]);
    }

    #[test]
    fn heads_that_share_values_share_ranges() {
        let heads = HeadLayout { num_heads: 4, num_kv_heads: 2, head_dim: 2 };
        let max = vec![1.0, 2.0, 3.0, 0.0, 5.0, 5.0, 6.0, 4.0];
        let min: Vec<f32> = max.iter().map(|m| -m).collect();
        let (max, min) = shared((max, min), heads);
        assert_eq!(max, [3.0, 2.0, 3.0, 2.0, 6.0, 5.0, 6.0, 5.0]);
        assert_eq!(min, [-3.0, -2.0, -3.0, -2.0, -6.0, -5.0, -6.0, -5.0]);
        let own = HeadLayout { num_heads: 4, num_kv_heads: 4, head_dim: 2 };
        assert_eq!(shared((max.clone(), min.clone()), own), (max, min));
    }

    #[test]
    fn a_llama_gets_biases() {
        let config = shapes::llama_7b(1);
        assert!(adds_bias(&config) && shifts(&config));
    }
}
