//! What a quantization did.

use serde::{Deserialize, Serialize};

use crate::Recipe;

/// The linear layers of a block as they are solved, in the order of computation: `qkv` is one layer, or `qk` and `v` are
/// two.
pub(crate) mod modules {
    pub const QKV: &str = "self_attn.qkv_proj";
    pub const QK: &str = "self_attn.qk_proj";
    pub const V: &str = "self_attn.v_proj";
    pub const O: &str = "self_attn.o_proj";
    pub const GATE_UP: &str = "mlp.gate_up_proj";
    pub const DOWN: &str = "mlp.down_proj";
    pub const ALL: [&str; 6] = [QKV, QK, V, O, GATE_UP, DOWN];
}

/// One linear layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayerReport {
    /// Module name.
    pub name: String,
    /// Output channels.
    pub out_features: usize,
    /// Input channels.
    pub in_features: usize,
    /// Relative output error of rounding to nearest.
    pub loss_nearest: f64,
    /// Relative output error of the result.
    pub loss: f64,
    /// Damping that was needed.
    pub damping: f64,
    /// Input channels that are always zero.
    pub dead_channels: usize,
    /// Smallest and largest channel scale.
    pub scale_range: (f32, f32),
}

/// One smoothing site.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SmoothReport {
    /// `model.layers.0.qkv`, ...
    pub site: String,
    /// Threshold found.
    pub sigma: f32,
    /// Channels with a scale above 1.
    pub smoothed_channels: usize,
    /// Relative loss without smoothing.
    pub loss_before: f64,
    /// Relative loss with it.
    pub loss_after: f64,
}

/// Seconds spent.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Timings {
    /// Smoothing search or rotation.
    pub transform: f64,
    /// Calibration forward passes and Hessians.
    pub calibrate: f64,
    /// Solving.
    pub solve: f64,
    /// Packing and writing.
    pub write: f64,
    /// All.
    pub total: f64,
}

/// The whole report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of qqq.
    pub version: String,
    /// Model as named by the user.
    pub model: String,
    /// Form written.
    pub format: String,
    /// Recipe.
    pub recipe: Recipe,
    /// Calibration data.
    pub calibration_data: String,
    /// Tokens of calibration.
    pub calibration_tokens: usize,
    /// Layers.
    pub layers: Vec<LayerReport>,
    /// Smoothing sites.
    pub smoothing: Vec<SmoothReport>,
    /// Things the user should know (damping raised, ...).
    pub warnings: Vec<String>,
    /// Timings.
    pub timings: Timings,
    /// Bytes of the source's and the result's linear layers.
    pub linear_bytes: (u64, u64),
}
