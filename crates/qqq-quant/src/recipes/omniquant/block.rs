//! A block that is differentiated by what is learned: its forward pass with what the backward pass needs of it.
//!
//! It is the block of [`qqq_model::block`] over one sequence from its start, with each layer's weights rounded as its learned
//! clipping says, and its input rounded to int8 where the layer takes that. The learned scales stand where they will be absorbed:
//! norms and v's outputs are divided, the columns behind them multiplied.

use qqq_backend::{
    AttentionKind, Gate, Learn, Result,
    learn::{Rotary, Turn, WeightGrid},
};
use qqq_model::{Site, Sites};

/// A linear layer as it is in the float model.
pub(crate) struct Linear<A> {
    /// `n x k`.
    pub weights: A,
    /// `1 x n`.
    pub bias: Option<A>,
    /// How weights are rounded; `None`: the layer stays float.
    pub grid: Option<WeightGrid>,
    /// Whether its input is int8.
    pub is_int8: bool,
}

/// Weights of the norms, `1 x width` each, as they are multiplied with.
pub(crate) struct Norms<A> {
    /// Before attention.
    pub input: A,
    /// Before the MLP.
    pub post: A,
    /// Of the heads of q and of k.
    pub qk: Option<(A, A)>,
    /// Behind attention and behind the MLP.
    pub after: Option<(A, A)>,
    /// Added to the mean of the squares.
    pub eps: f64,
}

/// A block.
pub(crate) struct LearnedBlock<A> {
    /// Its norms.
    pub norms: Norms<A>,
    /// Its layers.
    pub layers: Sites<Linear<A>>,
    /// Heads, mask and scale of attention.
    pub attention: AttentionKind,
    /// Rotary embedding of the window's positions.
    pub rotary: Option<Rotary<A>>,
    /// Function of the gate.
    pub gate: Gate,
    /// Factor of what attention and MLP add to the residual stream.
    pub residual_scale: f64,
}

/// Learnable equivalent transformation: what channels are divided by.
pub(crate) struct Scales<T> {
    /// Of the input of q, k and v, `1 x hidden`.
    pub qkv: T,
    /// Of the channels of v, `1 x (kv heads * head_dim)`: of the input of o, where query heads share theirs.
    pub values: T,
    /// Of the input of gate and up, `1 x hidden`.
    pub gate_up: T,
}

/// What is learned, or something for each part of it.
pub(crate) struct Learned<T> {
    /// Clipping strengths of each layer that is quantized, before the sigmoid, `2 x (n groups)`: above, and below.
    pub clips: Sites<Option<T>>,
    /// Where activations are quantized as well.
    pub scales: Option<Scales<T>>,
}

impl<T> Learned<T> {
    /// Clipping strengths.
    pub fn clip(&self, site: Site) -> Option<&T> {
        self.clips[site].as_ref()
    }

    /// References to all of it.
    pub fn as_ref(&self) -> Learned<&T> {
        let [qkv, o, gate_up, down] = Site::ALL.map(|site| self.clips[site].as_ref());
        let scales = self.scales.as_ref();
        let scales = scales.map(|Scales { qkv, values, gate_up }| Scales { qkv, values, gate_up });
        Learned { clips: Sites::new([qkv, o, gate_up, down]), scales }
    }

    /// The same for what `change` makes of each.
    ///
    /// # Errors
    /// The first of `change`.
    pub fn try_map<U, E>(self, mut change: impl FnMut(T) -> Result<U, E>) -> Result<Learned<U>, E> {
        let clips = self.clips.try_map(|clip| clip.map(&mut change).transpose())?;
        let scales = match self.scales {
            Some(Scales { qkv, values, gate_up }) => {
                Some(Scales { qkv: change(qkv)?, values: change(values)?, gate_up: change(gate_up)? })
            }
            None => None,
        };
        Ok(Learned { clips, scales })
    }
}

/// What a forward pass leaves for the backward pass.
pub(super) struct Trace<A> {
    /// Inputs of layers before they are rounded, and as the layers take them where that is not the same.
    pub inputs: Sites<(A, Option<A>)>,
    /// Queries, keys and values as they are projected.
    pub projected: A,
    /// With values divided, queries and keys normed and rotated.
    pub qkv: A,
    /// What o gives.
    pub attended: A,
    /// Residual stream between attention and MLP.
    pub middle: A,
    /// Output of gate and up.
    pub gate_up: A,
    /// What down gives.
    pub down: A,
    /// Residual stream behind the block.
    pub out: A,
}

impl<A> Trace<A> {
    /// A site's input as its layer takes it.
    pub fn taken(&self, site: Site) -> &A {
        let (exact, rounded) = &self.inputs[site];
        rounded.as_ref().unwrap_or(exact)
    }
}

/// Columns of a row of queries, keys and values at which the values begin.
pub(super) fn first_value(kind: &AttentionKind) -> usize {
    kind.heads.q_width() + kind.heads.kv_width()
}

impl<A> LearnedBlock<A> {
    /// What the input channels of a site's layer are multiplied by.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn column_scales<O: Learn<Array = A>>(
        &self,
        ops: &O,
        learned: &Learned<A>,
        site: Site,
    ) -> Result<Option<A>> {
        let Some(scales) = &learned.scales else { return Ok(None) };
        Ok(match site {
            Site::Qkv => Some(ops.copy(&scales.qkv)?),
            Site::O => Some(ops.repeat_heads(&scales.values, self.attention.heads)?),
            Site::GateUp => Some(ops.copy(&scales.gate_up)?),
            Site::Down => None,
        })
    }

    /// A layer's weights as its kernel stands for them.
    ///
    /// # Errors
    /// Those of the device.
    pub fn weights<O: Learn<Array = A>>(&self, ops: &O, learned: &Learned<A>) -> Result<Sites<A>> {
        Sites::try_new(|site| {
            let layer = &self.layers[site];
            let scales = self.column_scales(ops, learned, site)?;
            ops.weight(&layer.weights, scales.as_ref(), learned.clip(site).zip(layer.grid))
        })
    }

    /// The input of a layer, and as the layer takes it.
    fn input<O: Learn<Array = A>>(&self, ops: &O, site: Site, x: A) -> Result<(A, Option<A>)> {
        let rounded = match self.layers[site].is_int8 {
            true => Some(ops.int8(&x)?),
            false => None,
        };
        Ok((x, rounded))
    }

    /// What a layer makes of its input.
    fn output<O: Learn<Array = A>>(
        &self,
        ops: &O,
        site: Site,
        (exact, rounded): &(A, Option<A>),
        weights: &Sites<A>,
    ) -> Result<A> {
        ops.product(rounded.as_ref().unwrap_or(exact), &weights[site], self.layers[site].bias.as_ref())
    }

    /// What is added to the residual stream: normed and scaled.
    fn residual<O: Learn<Array = A>>(&self, ops: &O, before: &A, x: &A, norm: Option<&A>) -> Result<A> {
        let mut sum = ops.copy(before)?;
        match norm {
            Some(norm) => ops.add(&mut sum, &ops.norm(x, norm, self.norms.eps)?, self.residual_scale)?,
            None => ops.add(&mut sum, x, self.residual_scale)?,
        }
        Ok(sum)
    }

    /// Takes the states of a window through the block, with [weights](Self::weights) as they are rounded.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn forward<O: Learn<Array = A>>(
        &self,
        ops: &O,
        x: &A,
        learned: &Learned<A>,
        weights: &Sites<A>,
    ) -> Result<Trace<A>> {
        let Norms { input, post, qk, after, eps } = &self.norms;
        let (kind, scales) = (&self.attention, learned.scales.as_ref());
        let normed = |x: &A, norm: &A, s: Option<&A>| -> Result<A> {
            let mut out = ops.norm(x, norm, *eps)?;
            s.map_or(Ok(()), |s| ops.divide_columns(&mut out, 0, s))?;
            Ok(out)
        };
        let of_qkv = self.input(ops, Site::Qkv, normed(x, input, scales.map(|s| &s.qkv))?)?;
        let projected = self.output(ops, Site::Qkv, &of_qkv, weights)?;
        let mut qkv = ops.copy(&projected)?;
        if let Some((q, k)) = qk {
            ops.norm_heads(&mut qkv, 0..kind.heads.q_width(), q, *eps)?;
            ops.norm_heads(&mut qkv, kind.heads.q_width()..first_value(kind), k, *eps)?;
        }
        if let Some(rotary) = &self.rotary {
            ops.rotate(&mut qkv, kind.heads, rotary, Turn::Forward)?;
        }
        if let Some(s) = scales {
            ops.divide_columns(&mut qkv, first_value(kind), &s.values)?;
        }
        let of_o = self.input(ops, Site::O, ops.attention(&qkv, kind)?)?;
        let attended = self.output(ops, Site::O, &of_o, weights)?;
        let middle = self.residual(ops, x, &attended, after.as_ref().map(|(norm, _)| norm))?;

        let of_gate_up = normed(&middle, post, scales.map(|s| &s.gate_up))?;
        let of_gate_up = self.input(ops, Site::GateUp, of_gate_up)?;
        let gate_up = self.output(ops, Site::GateUp, &of_gate_up, weights)?;
        let of_down = self.input(ops, Site::Down, ops.gated(&gate_up, self.gate)?)?;
        let down = self.output(ops, Site::Down, &of_down, weights)?;
        let out = self.residual(ops, &middle, &down, after.as_ref().map(|(_, norm)| norm))?;
        let inputs = Sites::new([of_qkv, of_o, of_gate_up, of_down]);
        Ok(Trace { inputs, projected, qkv, attended, middle, gate_up, down, out })
    }

    /// What the block makes of the states of a window.
    ///
    /// # Errors
    /// Those of the device.
    pub fn run<O: Learn<Array = A>>(
        &self,
        ops: &O,
        x: &A,
        learned: &Learned<A>,
        weights: &Sites<A>,
    ) -> Result<A> {
        Ok(self.forward(ops, x, learned, weights)?.out)
    }
}
