//! What a checkpoint of 4-bit weights holds, tensor by tensor: nothing is left out that a model needs, and nothing is there that
//! nobody knows.

use std::collections::BTreeSet;

use qqq_formats::{FormatError, Int4Checkpoint};
use qqq_model::{BlockNorms, Site, names};

use crate::{QuantError, Result};

/// Names of tensors and layers.
pub(super) struct Contents {
    /// Linear layers of the blocks that are not quantized.
    pub float: Vec<String>,
    /// Of every block, its norms' tensors.
    norms: Vec<Vec<String>>,
}

impl Contents {
    /// Looks at the names of all tensors.
    ///
    /// # Errors
    /// Tensors that are missing or not known; an output head that is quantized; layers of one input of which only some are
    /// quantized.
    pub fn of(source: &Int4Checkpoint) -> Result<Self> {
        let (config, tensors) = (&source.checkpoint.config, source.tensors());
        let location = tensors.location();
        if source.is_quantized(names::LM_HEAD_MODULE)? {
            return Err(FormatError::Unsupported(format!(
                "{location}: the output head is quantized, which is not converted; take a checkpoint whose lm_head is float"
            ))
            .into());
        }
        let mut known: BTreeSet<String> =
            [names::EMBEDDING, names::FINAL_NORM, names::LM_HEAD].map(String::from).into();
        let mut contents = Self { float: Vec::new(), norms: Vec::new() };
        for block in 0..config.num_layers {
            let norms = BlockNorms::modules(config);
            let norms = norms.iter().map(|(module, _)| format!("{}.weight", names::linear(block, module)));
            let norms: Vec<String> = norms.collect();
            known.extend(norms.iter().cloned());
            contents.norms.push(norms);
            for site in Site::ALL {
                let mut quantized = Vec::new();
                for module in site.module_names(config) {
                    let prefix = names::linear(block, module);
                    known.insert(format!("{prefix}.bias"));
                    let is_quantized = source.is_quantized(&prefix)?;
                    if is_quantized {
                        known
                            .extend(source.layer_tensors().iter().map(|tensor| format!("{prefix}.{tensor}")));
                    }
                    // Of `int-quantized`, the codes.
                    known.insert(format!("{prefix}.weight"));
                    if !is_quantized {
                        contents.float.push(prefix);
                    }
                    quantized.push(is_quantized);
                }
                if quantized.windows(2).any(|pair| pair[0] != pair[1]) {
                    return Err(QuantError::Recipe(format!(
                        "{location}: of {} in block {block} some are quantized and others are not; they run as one layer, \
                         which is one or the other",
                        site.module_names(config).join(", ")
                    )));
                }
            }
        }
        let names = tensors.names();
        for name in &known {
            let needed = contents.is_needed(name) && !(name == names::LM_HEAD && config.tie_word_embeddings);
            if needed && tensors.info(name).is_none() {
                return Err(FormatError::MissingTensor { location, name: name.clone() }.into());
            }
        }
        let is_model = |name: &str| name.starts_with("model.") || name.starts_with("lm_head.");
        let buffer = |name: &str| name.ends_with("rotary_emb.inv_freq");
        let unknown: Vec<&String> =
            names.iter().filter(|name| is_model(name) && !buffer(name) && !known.contains(*name)).collect();
        let Some(first) = unknown.first() else { return Ok(contents) };
        Err(FormatError::Unsupported(format!(
            "{location}: {} with {} blocks has no tensor {first}{}; config.json does not fit these weights, or they are \
             stored in a way that is not converted",
            config.architecture.class_name(),
            config.num_layers,
            if unknown.len() > 1 { format!(" (and {} more)", unknown.len() - 1) } else { String::new() },
        ))
        .into())
    }

    /// Whether a linear layer of a block is not quantized.
    pub fn is_float(&self, prefix: &str) -> bool {
        self.float.iter().any(|float| float == prefix)
    }

    /// The norms' tensors of a block.
    pub fn norms(&self, block: usize) -> &[String] {
        &self.norms[block]
    }

    /// Whether a model cannot do without a tensor that is copied as it is. Those of quantized layers are looked for when they
    /// are read.
    fn is_needed(&self, name: &str) -> bool {
        [names::EMBEDDING, names::FINAL_NORM, names::LM_HEAD].contains(&name)
            || self.norms.iter().flatten().any(|norm| norm == name)
            || name.strip_suffix(".weight").is_some_and(|prefix| self.is_float(prefix))
    }
}
