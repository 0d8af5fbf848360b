//! How far the inputs of layers reach, channel by channel: the outliers that a transform is for, before and after it.
//!
//! They are those of a held-out window, which walks through both models anyway. The float model's inputs are as they were; those
//! of the result are as its layers take them: smoothed or rotated, and int8 where they are.

use qqq_backend::Calibrate;
use serde::{Deserialize, Serialize};

use crate::{Result, windows::Window};

/// Numbers of a layer at most: neighbouring channels share one.
const BINS: usize = 256;

/// The inputs of a layer as it is fused at run time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActivationReport {
    /// Such as `model.layers.0.mlp.gate_up_proj`.
    pub name: String,
    /// Input channels.
    pub channels: usize,
    /// In the float model.
    pub float: Magnitudes,
    /// In the result.
    pub quantized: Magnitudes,
}

/// Largest magnitudes of channels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Magnitudes {
    /// Of all channels in order; of more than 256, the largest of as many neighbours as make that many. Three digits.
    pub largest: Vec<f32>,
    /// Half the channels are below.
    pub median: f32,
}

impl Magnitudes {
    /// Of the largest magnitude of each channel.
    pub fn of(channels: &[f32]) -> Self {
        let each = channels.len().div_ceil(BINS).max(1);
        let mut sorted = channels.to_vec();
        sorted.sort_by(f32::total_cmp);
        Self {
            largest: channels
                .chunks(each)
                .map(|bin| short(bin.iter().copied().fold(0.0, f32::max)))
                .collect(),
            median: short(sorted.get(channels.len() / 2).copied().unwrap_or(0.0)),
        }
    }

    /// The largest of all.
    pub fn peak(&self) -> f32 {
        self.largest.iter().copied().fold(0.0, f32::max)
    }

    /// How far the largest channel stands out: times the median of all; none where half of them are 0.
    pub fn outlier_ratio(&self) -> Option<f32> {
        (self.median > 0.0).then(|| self.peak() / self.median)
    }
}

/// Three digits, so that a file of many is short.
fn short(x: f32) -> f32 {
    format!("{x:.2e}").parse().unwrap_or(x)
}

/// The largest magnitude of each of the channels of the input at which a window stands, as it is taken; none where it stands at no
/// site.
///
/// # Errors
/// Those of the backend.
pub(crate) fn largest<B: Calibrate>(b: &B, window: &Window<B>, channels: usize) -> Result<Option<Vec<f32>>> {
    let Some(input) = window.flow.input() else { return Ok(None) };
    let mut largest = vec![0.0f32; channels];
    for row in b.read_input(input)?.chunks_exact(channels.max(1)) {
        largest.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(x.abs()));
    }
    Ok(Some(largest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_layers_are_told_in_few_numbers_and_keep_their_outliers() {
        let mut channels: Vec<f32> = (0..1000).map(|i| 1.0 + (i % 10) as f32 / 100.0).collect();
        channels[617] = 123.456;
        let found = Magnitudes::of(&channels);
        assert_eq!((found.largest.len(), found.peak(), found.median), (250, 123.0, 1.05));
        assert_eq!(found.largest.iter().position(|x| *x == 123.0), Some(617 / 4));
        assert!((found.outlier_ratio().unwrap() - 123.0 / 1.05).abs() < 1e-3);
        assert_eq!(Magnitudes::of(&[2.0, 0.5, 1.0]).largest, [2.0, 0.5, 1.0]);
        let zeros = Magnitudes::of(&[0.0; 4]);
        assert_eq!((zeros.peak(), zeros.outlier_ratio()), (0.0, None));
    }
}
