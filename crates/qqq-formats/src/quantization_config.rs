//! `quantization_config` of `config.json`.

/// On-disk form of a W4A8 checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointFormat {
    /// The QQQ reference's tiles (`B`, `s_channel`, `s_group`).
    Qqq,
    /// compressed-tensors `pack-quantized` int4 weights with dynamic per-token int8 activations.
    CompressedTensors,
}

/// How the linear layers of the blocks are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizationConfig {
    /// On-disk form.
    pub format: CheckpointFormat,
    /// `None`: per channel.
    pub group_size: Option<usize>,
    /// Modules kept in float (`lm_head`).
    pub ignore: Vec<String>,
}
