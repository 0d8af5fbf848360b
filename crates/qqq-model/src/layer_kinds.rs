//! Which layers a loaded decoder has, which kernels run them, and what they take of the memory.

use std::fmt;

use qqq_backend::{Describe, describe::Held};

use crate::{Decoder, Site, block::Layer, names};

/// Layers of one name, shape, form and kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerKind {
    /// Modules that run as one: `self_attn.q_proj+k_proj+v_proj`.
    pub name: String,
    /// Output channels; rows of the embedding.
    pub out_features: usize,
    /// Input channels; width of the embedding.
    pub in_features: usize,
    /// How many there are.
    pub count: usize,
    /// What is multiplied: `W4A8`, `W8A8`, `F32`, `F16`, `BF16`.
    pub arithmetic: &'static str,
    /// Input channels that share a scale, of W4A8 in groups.
    pub group_size: Option<usize>,
    /// Name of the kernel, as `QQQ_ISA` takes it for integers.
    pub kernel: &'static str,
    /// Bytes of all of them in memory; 0 where they share those of the embedding.
    pub bytes: usize,
}

impl fmt::Display for LayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, out_features, in_features, count, arithmetic, kernel, .. } = self;
        let scales = match self.group_size {
            Some(size) => format!(" in groups of {size}"),
            None if ["W4A8", "W8A8"].contains(arithmetic) => " per channel".into(),
            None => String::new(),
        };
        let times = if *count == 1 { String::new() } else { format!("{count} x ") };
        write!(f, "{name}: {times}{out_features} x {in_features}, {arithmetic}{scales}, kernel {kernel}")
    }
}

impl<B: Describe> Decoder<B> {
    /// The kinds of layers, in the model's order: embedding, linear layers of the blocks, output head.
    pub fn layer_kinds(&self) -> Vec<LayerKind> {
        let table = self.backend.describe_embedding(&self.embedding);
        let mut kinds = vec![LayerKind::of("embed_tokens".into(), table)];
        for block in &self.blocks {
            for site in Site::ALL {
                let Layer::Ready(layer) = block.layer(site) else { continue };
                let held = self.backend.describe_linear(layer);
                let kind = LayerKind::of(joined_name(&site.module_names(&self.config)), held);
                let is_alike =
                    |k: &&mut LayerKind| LayerKind { count: 1, bytes: kind.bytes, ..(**k).clone() } == kind;
                match kinds.iter_mut().find(is_alike) {
                    Some(known) => {
                        known.count += 1;
                        known.bytes += kind.bytes;
                    }
                    None => kinds.push(kind),
                }
            }
        }
        let mut head = LayerKind::of(names::LM_HEAD_MODULE.into(), self.backend.describe_linear(&self.head));
        if self.config.tie_word_embeddings {
            head.bytes = 0;
        }
        kinds.push(head);
        kinds
    }
}

impl LayerKind {
    /// A kind of which there is one layer.
    fn of(name: String, held: Held) -> Self {
        let Held { out_features, in_features, arithmetic, group_size, kernel, bytes } = held;
        Self { name, out_features, in_features, count: 1, arithmetic, group_size, kernel, bytes }
    }
}

/// `self_attn.q_proj+k_proj+v_proj`.
fn joined_name(modules: &[&str]) -> String {
    let mut name = modules.first().copied().unwrap_or_default().to_owned();
    for module in modules.iter().skip(1) {
        name.push('+');
        name += module.rsplit_once('.').map_or(*module, |(_, last)| last);
    }
    name
}
