//! Reading the weights of a block, and checking that a checkpoint holds what its architecture knows.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use qqq_backend::pool::parallel_for;
use qqq_formats::{Checkpoint, FormatError, ModelConfig};

use crate::{
    Result, names,
    site::{LinearLayer, Site, Sites},
};

/// Bytes of two tensors that are compared at a time.
const COMPARED: usize = 1 << 20;

/// The weights of one block: layers as read from a checkpoint, or in another form `L`.
#[derive(Clone, Debug)]
pub struct BlockWeights<L = LinearLayer> {
    /// Weights of the block's norms.
    pub norms: BlockNorms,
    /// Linear layers by site; q, k and v are one, gate and up are one.
    pub layers: Sites<L>,
}

impl BlockWeights {
    /// Reads block `index` of a checkpoint, float or quantized.
    ///
    /// Joined layers whose parts are stored in different float types are widened to f32 (exact).
    ///
    /// # Errors
    /// Whatever [`Checkpoint::linear`] refuses; a bias that the configuration promises and the file lacks, or
    /// that it does not promise and the file holds; joined layers of which one part is quantized and another
    /// is not, or in another way; one of the model's files was changed since it was opened.
    pub fn read(checkpoint: &Checkpoint, index: usize) -> Result<Self> {
        Ok(Self {
            norms: BlockNorms::read(checkpoint, index)?,
            layers: Sites::try_new(|site| site.read(checkpoint, index))?,
        })
    }
}

/// The norms of one block, as they are stored.
#[derive(Clone, Debug, Default)]
pub struct BlockNorms {
    /// Weight of the norm before attention, length `hidden`.
    pub input: Vec<f32>,
    /// Weight of the norm before the MLP, length `hidden`.
    pub post: Vec<f32>,
    /// Head norms of q and k, length `head_dim` each.
    pub qk: Option<(Vec<f32>, Vec<f32>)>,
    /// Norms behind attention and behind the MLP, length `hidden` each.
    pub after: Option<(Vec<f32>, Vec<f32>)>,
    /// Added to all weights.
    pub offset: f32,
}

impl BlockNorms {
    /// Reads those of block `index`.
    ///
    /// # Errors
    /// Tensors that are missing, of another shape or not finite.
    pub fn read(checkpoint: &Checkpoint, index: usize) -> Result<Self> {
        let mut norms = Self { offset: checkpoint.config.graph.norm_offset, ..Self::default() };
        for (module, len) in Self::modules(&checkpoint.config) {
            let name = format!("{}.weight", names::linear(index, module));
            norms.put(module, checkpoint.tensors.f32(&name, &[len])?);
        }
        Ok(norms)
    }

    /// Modules of a block that are norms, with the lengths of their weights.
    pub fn modules(c: &ModelConfig) -> Vec<(&'static str, usize)> {
        let mut modules = vec![(names::INPUT_NORM, c.hidden_size), (names::POST_NORM, c.hidden_size)];
        if c.graph.norms_after {
            modules.extend([(names::PRE_MLP_NORM, c.hidden_size), (names::AFTER_MLP_NORM, c.hidden_size)]);
        }
        if c.graph.qk_norm {
            modules.extend([(names::Q_NORM, c.head_dim), (names::K_NORM, c.head_dim)]);
        }
        modules
    }

    /// In the order of [`modules`](Self::modules).
    fn put(&mut self, module: &str, weight: Vec<f32>) {
        match module {
            names::INPUT_NORM => self.input = weight,
            names::POST_NORM => self.post = weight,
            // The norm of that name is behind attention, then.
            names::PRE_MLP_NORM => {
                self.after = Some((std::mem::replace(&mut self.post, weight), Vec::new()));
            }
            names::AFTER_MLP_NORM => self.after.get_or_insert_default().1 = weight,
            names::Q_NORM => self.qk.get_or_insert_default().0 = weight,
            _ => self.qk.get_or_insert_default().1 = weight,
        }
    }

    /// Modules with their weights.
    pub fn named(&self) -> Vec<(&'static str, &[f32])> {
        let mut named = vec![(names::INPUT_NORM, self.input.as_slice())];
        match &self.after {
            None => named.push((names::POST_NORM, &self.post)),
            Some((attention, mlp)) => named.extend([
                (names::POST_NORM, attention.as_slice()),
                (names::PRE_MLP_NORM, &self.post),
                (names::AFTER_MLP_NORM, mlp),
            ]),
        }
        if let Some((q, k)) = &self.qk {
            named.extend([(names::Q_NORM, q.as_slice()), (names::K_NORM, k)]);
        }
        named
    }

    /// The weight of every norm that the block has, to be changed.
    pub fn each_mut(&mut self) -> impl Iterator<Item = &mut Vec<f32>> {
        let pairs = [&mut self.qk, &mut self.after].into_iter().flatten();
        [&mut self.input, &mut self.post].into_iter().chain(pairs.flat_map(|(a, b)| [a, b]))
    }
}

/// Checks that a checkpoint's tensors are those of its configuration, as far as that shows without reading the blocks.
///
/// # Errors
/// Tensors that the architecture does not know; an output head that differs from the embedding though
/// `tie_word_embeddings` is true.
pub fn check_tensors(checkpoint: &Checkpoint) -> Result<()> {
    check_names(checkpoint)?;
    check_tied(checkpoint)
}

/// Checks that the head of a tied model, which may come with one of its own, holds the embedding's values.
///
/// # Errors
/// An output head that differs from the embedding, or is quantized, though `tie_word_embeddings` is true.
pub fn check_tied(checkpoint: &Checkpoint) -> Result<()> {
    if !checkpoint.config.tie_word_embeddings {
        return Ok(());
    }
    let tensors = &checkpoint.tensors;
    let scales = format!("{}.weight_scale", names::LM_HEAD_MODULE);
    if tensors.info(&scales).is_some() {
        return Err(FormatError::Unsupported(format!(
            "{}: config.json says tie_word_embeddings, but {scales} is there: the output head is quantized, and so not the \
             embedding; set tie_word_embeddings to false",
            tensors.location()
        ))
        .into());
    }
    let Some(head) = tensors.info(names::LM_HEAD) else { return Ok(()) };
    let alike =
        tensors.info(names::EMBEDDING).is_some_and(|e| e.shape == head.shape && e.dtype == head.dtype);
    if alike && same_bytes(checkpoint, names::EMBEDDING, names::LM_HEAD, head.bytes as usize)? {
        return Ok(());
    }
    Err(FormatError::Unsupported(format!(
        "{}: config.json says tie_word_embeddings, but {} is there and differs from {}; set tie_word_embeddings to \
         false if the head is to be used, else remove the tensor",
        tensors.location(),
        names::LM_HEAD,
        names::EMBEDDING
    ))
    .into())
}

/// Whether two tensors of `bytes` bytes each hold the same.
fn same_bytes(checkpoint: &Checkpoint, a: &str, b: &str, bytes: usize) -> Result<bool> {
    let tensors = &checkpoint.tensors;
    let piece = |i: usize| i * COMPARED..((i + 1) * COMPARED).min(bytes);
    let (differ, unreadable) = (AtomicBool::new(false), AtomicBool::new(false));
    parallel_for(bytes.div_ceil(COMPARED), |i| {
        if !differ.load(Relaxed) {
            match (tensors.bytes_at(a, piece(i)), tensors.bytes_at(b, piece(i))) {
                (Ok(a), Ok(b)) => differ.fetch_or(a != b, Relaxed),
                _ => unreadable.fetch_or(true, Relaxed),
            };
        }
    });
    if unreadable.into_inner() {
        // With the error that it is.
        return Ok(tensors.bytes(a)? == tensors.bytes(b)?);
    }
    Ok(!differ.into_inner())
}

/// Refuses tensors that this architecture has no use for: they mean that the model computes something else than its
/// configuration says (a Qwen3 model called Llama, more blocks than `num_hidden_layers`).
///
/// Buffers that the rotary embedding is computed from, and whatever lies outside of `model.` and `lm_head.`
/// (heads for other tasks), are left alone.
///
/// # Errors
/// Names of unknown tensors, the first of them spelled out.
fn check_names(checkpoint: &Checkpoint) -> Result<()> {
    let unknown: Vec<String> =
        checkpoint.tensors.names().into_iter().filter(|name| !is_known(&checkpoint.config, name)).collect();
    let shown: Vec<&str> = unknown.iter().take(5).map(String::as_str).collect();
    if shown.is_empty() {
        return Ok(());
    }
    let more = match unknown.len() - shown.len() {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    Err(FormatError::Unsupported(format!(
        "{}: {} with {} blocks has no tensors {}{more}; config.json does not fit these weights, or they belong to a \
         variant of the model that is not supported",
        checkpoint.tensors.location(),
        checkpoint.config.architecture.class_name(),
        checkpoint.config.num_layers,
        shown.join(", "),
    ))
    .into())
}

fn is_known(config: &ModelConfig, name: &str) -> bool {
    if name.starts_with("blk.") {
        // A block's tensor in a GGUF file for which Hugging Face has no name.
        return false;
    }
    if name.ends_with("rotary_emb.inv_freq") || !(name.starts_with("model.") || name.starts_with("lm_head."))
    {
        return true;
    }
    if [names::EMBEDDING, names::FINAL_NORM].contains(&name) {
        return true;
    }
    let Some((module, tensor)) = name.rsplit_once('.') else { return false };
    if module == names::LM_HEAD_MODULE {
        return is_linear_tensor(config, tensor) && tensor != "bias";
    }
    let Some((block, module)) = module.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'))
    else {
        return false;
    };
    // The length keeps "+3" and "03" from passing as block 3.
    if !block.parse().is_ok_and(|i: usize| i < config.num_layers && i.to_string() == block) {
        return false;
    }
    if Site::ALL.iter().any(|site| site.module_names(config).contains(&module)) {
        return is_linear_tensor(config, tensor);
    }
    BlockNorms::modules(config).iter().any(|(norm, _)| *norm == module) && tensor == "weight"
}

/// Tensors of a linear layer, float or in one of the quantized forms. Which of them must be there, and which make a
/// quantized layer unreadable, is for [`Checkpoint::linear`] to say.
fn is_linear_tensor(config: &ModelConfig, tensor: &str) -> bool {
    const QUANTIZED: [&str; 10] = [
        "B",
        "s_channel",
        "s_group",
        "weight_packed",
        "weight_scale",
        "weight_shape",
        "weight_zero_point",
        "weight_g_idx",
        qqq_formats::simulated::OUTLIERS,
        qqq_formats::simulated::OUTLIER_SCALE,
    ];
    ["weight", "bias"].contains(&tensor) || config.quantization.is_some() && QUANTIZED.contains(&tensor)
}
