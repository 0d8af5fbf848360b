//! The places of a block's linear layers.

use std::ops::{Index, IndexMut};

use qqq_formats::{Checkpoint, FormatError, LayerReader, LinearWeight, ModelConfig};

use crate::{Result, names, reading};

/// A linear layer of a block and its input, in the order of computation. What takes the same input runs as one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Site {
    /// q, k and v.
    Qkv,
    /// Output projection of attention.
    O,
    /// gate and up.
    GateUp,
    /// Down projection of the MLP; its input is what the gate lets through.
    Down,
}

impl Site {
    /// All of them, in the order of computation.
    pub const ALL: [Self; 4] = [Self::Qkv, Self::O, Self::GateUp, Self::Down];

    /// Modules and their output channels in their order.
    pub fn modules(self, c: &ModelConfig) -> Vec<(&'static str, usize)> {
        let (hidden, wide) = (c.hidden_size, c.intermediate_size);
        let (q, kv) = (c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim);
        match self {
            Self::Qkv if c.graph.fused => vec![(names::QKV, q + 2 * kv)],
            Self::Qkv => vec![(names::Q, q), (names::K, kv), (names::V, kv)],
            Self::O => vec![(names::O, hidden)],
            Self::GateUp if c.graph.fused => vec![(names::GATE_UP, 2 * wide)],
            Self::GateUp => vec![(names::GATE, wide), (names::UP, wide)],
            Self::Down => vec![(names::DOWN, hidden)],
        }
    }

    /// Names of its modules.
    pub fn module_names(self, c: &ModelConfig) -> Vec<&'static str> {
        self.modules(c).into_iter().map(|(module, _)| module).collect()
    }

    /// Output channels of all modules together.
    pub fn out_features(self, c: &ModelConfig) -> usize {
        self.modules(c).iter().map(|(_, n)| n).sum()
    }

    /// Input channels of the site's layers in a model of this configuration.
    pub fn in_features(self, c: &ModelConfig) -> usize {
        match self {
            Self::Qkv | Self::GateUp => c.hidden_size,
            Self::O => c.num_heads * c.head_dim,
            Self::Down => c.intermediate_size,
        }
    }

    /// Whether its layers have biases in a model of this configuration.
    pub fn has_bias(self, c: &ModelConfig) -> bool {
        match self {
            Self::Qkv => c.graph.qkv_bias,
            Self::O => c.graph.o_bias,
            Self::GateUp | Self::Down => c.graph.mlp_bias,
        }
    }

    /// Reads the bias of one of its modules, `prefix` with `n` output channels: `None` where the configuration promises none.
    ///
    /// # Errors
    /// As [`Checkpoint::bias`]; a bias that the configuration promises and the file lacks, or that it does not promise and
    /// the file holds, unless that is zero.
    pub fn read_bias(self, checkpoint: &Checkpoint, prefix: &str, n: usize) -> Result<Option<Vec<f32>>> {
        read_bias(checkpoint, prefix, n, self.has_bias(&checkpoint.config))
    }

    /// The site that comes after it in a block.
    pub fn next(self) -> Option<Self> {
        Self::ALL.get(self as usize + 1).copied()
    }

    /// Reads its layer of block `index`.
    ///
    /// # Errors
    /// As [`BlockWeights::read`](crate::BlockWeights::read).
    pub fn read(self, checkpoint: &Checkpoint, index: usize) -> Result<LinearLayer> {
        let c = &checkpoint.config;
        let layer = read_joined(checkpoint, index, &self.modules(c), self.in_features(c), self.has_bias(c))?;
        // Every read has looked at its own file; the others may have been changed meanwhile.
        checkpoint.inputs.check()?;
        Ok(layer)
    }
}

/// Weight and bias of a linear layer in the neutral form.
#[derive(Clone, Debug)]
pub struct LinearLayer {
    /// Weight of shape `N x K`.
    pub weight: LinearWeight,
    /// Bias of length `N`, where the layer has one.
    pub bias: Option<Vec<f32>>,
}

/// Something for each site of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sites<T>([T; 4]);

impl<T> Sites<T> {
    /// For the sites in the order of computation.
    pub fn new(of: [T; 4]) -> Self {
        Self(of)
    }

    /// Makes it, site by site in the order of computation.
    ///
    /// # Errors
    /// The first error of `make`.
    pub fn try_new<E>(mut make: impl FnMut(Site) -> Result<T, E>) -> Result<Self, E> {
        let [qkv, o, gate_up, down] = Site::ALL;
        Ok(Self([make(qkv)?, make(o)?, make(gate_up)?, make(down)?]))
    }

    /// All of them at once, to be changed together.
    pub fn each_mut(&mut self) -> &mut [T; 4] {
        &mut self.0
    }

    /// The same sites with what `change` makes of each, in the order of computation.
    pub fn map<U>(self, change: impl FnMut(T) -> U) -> Sites<U> {
        Sites(self.0.map(change))
    }

    /// As [`map`](Self::map), site by site in the order of computation.
    ///
    /// # Errors
    /// The first error of `change`.
    pub fn try_map<U, E>(self, mut change: impl FnMut(T) -> Result<U, E>) -> Result<Sites<U>, E> {
        let [qkv, o, gate_up, down] = self.0;
        Ok(Sites([change(qkv)?, change(o)?, change(gate_up)?, change(down)?]))
    }
}

impl<T> Index<Site> for Sites<T> {
    type Output = T;

    fn index(&self, site: Site) -> &T {
        &self.0[site as usize]
    }
}

impl<T> IndexMut<Site> for Sites<T> {
    fn index_mut(&mut self, site: Site) -> &mut T {
        &mut self.0[site as usize]
    }
}

/// Linear layers of a block that take the same input, joined along their output channels.
fn read_joined(
    checkpoint: &Checkpoint,
    index: usize,
    modules: &[(&str, usize)],
    k: usize,
    promised: bool,
) -> Result<LinearLayer> {
    let mut parts = Vec::with_capacity(modules.len());
    let mut bias = Vec::new();
    for (module, n) in modules {
        let prefix = names::linear(index, module);
        parts.push(checkpoint.layer(&prefix, *n, k)?);
        bias.extend(read_bias(checkpoint, &prefix, *n, promised)?.into_iter().flatten());
    }
    let weight = reading::joined(&parts)?.ok_or_else(|| {
        let kind = |((module, _), part): (&(&str, usize), &LayerReader<'_>)| format!("{module}: {}", part.kind());
        let all: Vec<String> = modules.iter().zip(&parts).map(kind).collect();
        FormatError::Unsupported(format!(
            "{}: layers of block {index} run as one, but are not quantized alike ({}); give all of them one scheme, or \
             leave all in float",
            checkpoint.tensors.location(),
            all.join(", ")
        ))
    })?;
    Ok(LinearLayer { weight, bias: promised.then_some(bias) })
}

/// The bias of a linear layer, `None` where none is promised.
fn read_bias(checkpoint: &Checkpoint, prefix: &str, n: usize, promised: bool) -> Result<Option<Vec<f32>>> {
    match (promised, checkpoint.bias(prefix, n)?) {
        (true, Some(values)) => Ok(Some(values)),
        (true, None) => Err(FormatError::MissingTensor {
            location: checkpoint.tensors.location(),
            name: format!("{prefix}.bias"),
        }
        .into()),
        // Some tools write zeros for every layer; they change nothing.
        (false, Some(values)) if values.iter().any(|b| *b != 0.0) => Err(FormatError::Unsupported(format!(
            "{}: there is a tensor {prefix}.bias, but config.json promises no bias there (attention_bias, mlp_bias); one of \
             the two is wrong",
            checkpoint.tensors.location()
        ))
        .into()),
        (false, _) => Ok(None),
    }
}
