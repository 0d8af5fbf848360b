//! Layers whose inputs come in another order (act-order), resolved in the layer that makes these inputs.
//!
//! The input of `down_proj` is made channel by channel of the outputs of gate and up, so that these can be made in the order that
//! `down_proj` needs: their rows change places, and nothing that is computed changes. The inputs of q, k, v and of gate, up are
//! the residual stream, which all blocks share and whose channels have one order; the input of `o_proj` is bound to heads.

use qqq_formats::{FormatError, Int4Layer, ModelConfig};
use qqq_model::{Site, names};

use super::wrong;
use crate::Result;

/// The order in which gate and up make their channels.
pub(super) struct RowOrder(Vec<usize>);

impl RowOrder {
    /// That of the rows of layer `prefix`: where gate and up are one layer, each half's.
    pub fn of(&self, prefix: &str) -> Vec<usize> {
        let mut rows = self.0.clone();
        if prefix.ends_with(names::GATE_UP) {
            rows.extend(self.0.iter().map(|row| row + self.0.len()));
        }
        rows
    }
}

/// Resolves the orders of a block's quantized layers. Returns in which order gate and up make their channels, if it is
/// another one.
///
/// # Errors
/// An order that nothing before the layer can make.
pub(super) fn fold(
    layers: &mut [(Site, String, Int4Layer)],
    config: &ModelConfig,
) -> Result<Option<RowOrder>> {
    if let Some((site, prefix, _)) =
        layers.iter().find(|(site, _, layer)| *site != Site::Down && layer.order.is_some())
    {
        let why = match site {
            Site::O => "is the attention's output, whose channels are bound to heads",
            _ => "is the residual stream, whose channels all blocks share",
        };
        return Err(FormatError::Unsupported(format!(
            "{prefix}: its groups follow the order of activations (act-order: g_idx), and its input {why}, so no layer can \
             make it in that order; integer kernels need groups of neighbours. Take a checkpoint that was made with desc_act \
             false, or with static groups (static_groups, act_group_aware), or quantize the float model"
        ))
        .into());
    }
    let down = layers.iter_mut().find(|(site, ..)| *site == Site::Down);
    let Some(rows) = down.and_then(|(.., layer)| layer.order.take()) else { return Ok(None) };
    let rows = RowOrder(rows);
    let mut made = 0;
    for (_, prefix, layer) in layers.iter_mut().filter(|(site, ..)| *site == Site::GateUp) {
        layer.weight =
            layer.weight.with_rows(&rows.of(prefix)).map_err(|e| wrong(prefix, &e.to_string()))?;
        made += 1;
    }
    if made != Site::GateUp.modules(config).len() {
        return Err(FormatError::Unsupported(
            "mlp.down_proj: its groups follow the order of activations (act-order), and gate and up, which would have to make \
             their outputs in that order, are not quantized; quantize the float model"
                .into(),
        )
        .into());
    }
    Ok(Some(rows))
}
