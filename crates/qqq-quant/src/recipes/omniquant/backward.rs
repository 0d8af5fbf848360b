//! The backward pass of a block: from the gradient by what leaves it to those by what is learned.
//!
//! It goes back the way of [`LearnedBlock::forward`]. The residual stream carries the gradient past attention and MLP; each half adds
//! what comes through it. Nothing before q, k and v is learned but the scales of their input.

use qqq_backend::{
    Learn, Result,
    learn::{Turn, WeightGradients},
};
use qqq_model::{Site, Sites};

use super::block::{Learned, LearnedBlock, Norms, Scales, Trace, first_value};

impl<A> LearnedBlock<A> {
    /// The gradient by what a half adds to the residual stream, as the half's last layer gives it.
    fn residual_back<O: Learn<Array = A>>(&self, ops: &O, dy: &A, x: &A, norm: Option<&A>) -> Result<A> {
        let scaled = ops.scaled(dy, self.residual_scale)?;
        match norm {
            Some(norm) => ops.norm_back(&scaled, x, norm, self.norms.eps),
            None => Ok(scaled),
        }
    }

    /// Gradients by what a layer's rounded weights are made of.
    fn weights_back<O: Learn<Array = A>>(
        &self,
        ops: &O,
        site: Site,
        dy: &A,
        learned: &Learned<A>,
        trace: &Trace<A>,
    ) -> Result<WeightGradients<A>> {
        let layer = &self.layers[site];
        let scales = self.column_scales(ops, learned, site)?;
        let dw = ops.product_back_w(dy, trace.taken(site))?;
        ops.weight_back(&dw, &layer.weights, scales.as_ref(), learned.clip(site).zip(layer.grid))
    }

    /// The gradient by a layer's input before it is rounded.
    fn input_back<O: Learn<Array = A>>(
        &self,
        ops: &O,
        site: Site,
        dy: &A,
        weights: &Sites<A>,
        trace: &Trace<A>,
    ) -> Result<A> {
        let dx = ops.product_back_x(dy, &weights[site])?;
        match self.layers[site].is_int8 {
            true => ops.int8_back(&dx, &trace.inputs[site].0),
            false => Ok(dx),
        }
    }

    /// Gradients by all that is learned, from that by the states that leave the block.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn backward<O: Learn<Array = A>>(
        &self,
        ops: &O,
        dout: &A,
        learned: &Learned<A>,
        weights: &Sites<A>,
        trace: &Trace<A>,
    ) -> Result<Learned<A>> {
        let Norms { post, qk, after, eps, .. } = &self.norms;
        let (kind, scales) = (&self.attention, learned.scales.as_ref());

        // The MLP.
        let dy = self.residual_back(ops, dout, &trace.down, after.as_ref().map(|(_, norm)| norm))?;
        let of_down = self.weights_back(ops, Site::Down, &dy, learned, trace)?;
        let dx = self.input_back(ops, Site::Down, &dy, weights, trace)?;
        let dy = ops.gated_back(&dx, &trace.gate_up, self.gate)?;
        let mut of_gate_up = self.weights_back(ops, Site::GateUp, &dy, learned, trace)?;
        let mut dx = self.input_back(ops, Site::GateUp, &dy, weights, trace)?;
        if let (Some(s), Some(ds)) = (scales.map(|s| &s.gate_up), &mut of_gate_up.scales) {
            ops.divide_columns_back(ds, &dx, &trace.inputs[Site::GateUp].0, 0, s)?;
            ops.divide_columns(&mut dx, 0, s)?;
        }
        let mut dmiddle = ops.norm_back(&dx, &trace.middle, post, *eps)?;
        ops.add(&mut dmiddle, dout, 1.0)?;

        // Attention.
        let dy = self.residual_back(ops, &dmiddle, &trace.attended, after.as_ref().map(|(norm, _)| norm))?;
        let of_o = self.weights_back(ops, Site::O, &dy, learned, trace)?;
        let dx = self.input_back(ops, Site::O, &dy, weights, trace)?;
        let mut dqkv = ops.attention_back(&dx, &trace.inputs[Site::O].0, &trace.qkv, kind)?;
        let of_values = match (scales, &of_o.scales) {
            (Some(s), Some(by_columns)) => {
                let mut ds = ops.repeat_heads_back(by_columns, kind.heads)?;
                ops.divide_columns_back(&mut ds, &dqkv, &trace.qkv, first_value(kind), &s.values)?;
                ops.divide_columns(&mut dqkv, first_value(kind), &s.values)?;
                Some(ds)
            }
            _ => None,
        };
        if let Some(rotary) = &self.rotary {
            ops.rotate(&mut dqkv, kind.heads, rotary, Turn::Back)?;
        }
        if let Some((q, k)) = qk {
            let queries = 0..kind.heads.q_width();
            let keys = queries.end..first_value(kind);
            ops.norm_heads_back(&mut dqkv, &trace.projected, queries, q, *eps)?;
            ops.norm_heads_back(&mut dqkv, &trace.projected, keys, k, *eps)?;
        }
        let mut of_qkv = self.weights_back(ops, Site::Qkv, &dqkv, learned, trace)?;
        if let (Some(s), Some(ds)) = (scales.map(|s| &s.qkv), &mut of_qkv.scales) {
            let dx = self.input_back(ops, Site::Qkv, &dqkv, weights, trace)?;
            ops.divide_columns_back(ds, &dx, &trace.inputs[Site::Qkv].0, 0, s)?;
        }
        let scales = match (of_qkv.scales, of_values, of_gate_up.scales) {
            (Some(qkv), Some(values), Some(gate_up)) => Some(Scales { qkv, values, gate_up }),
            _ => None,
        };
        let clips = Sites::new([of_qkv.clip, of_o.clip, of_gate_up.clip, of_down.clip]);
        Ok(Learned { clips, scales })
    }
}
