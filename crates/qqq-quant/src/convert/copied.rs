//! The tensors that a conversion copies as they are, looked at before anything is written: what is wrong with them would
//! otherwise show when the result is run.

use qqq_formats::{Int4Checkpoint, TensorSource};
use qqq_model::{BlockNorms, Site, check_tied, names};

use super::{PIECE, source::Contents};
use crate::Result;

/// Checks embedding, output head, norms, biases and float layers as loading the model would.
///
/// # Errors
/// Tensors that are missing, of another shape, not float or not finite; a bias that the configuration promises and the
/// checkpoint lacks, or the reverse; an output head that differs from the embedding though both are one.
pub(super) fn check(source: &Int4Checkpoint, contents: &Contents) -> Result<()> {
    let (checkpoint, tensors) = (&source.checkpoint, source.tensors());
    let c = &checkpoint.config;
    matrix(tensors, names::EMBEDDING, [c.vocab_size, c.hidden_size])?;
    tensors.float(names::FINAL_NORM, &[c.hidden_size])?;
    check_tied(checkpoint)?;
    if !c.tie_word_embeddings {
        matrix(tensors, names::LM_HEAD, [c.vocab_size, c.hidden_size])?;
    }
    for block in 0..c.num_layers {
        BlockNorms::read(checkpoint, block)?;
        for site in Site::ALL {
            for (module, n) in site.modules(c) {
                let prefix = names::linear(block, module);
                site.read_bias(checkpoint, &prefix, n)?;
                if contents.is_float(&prefix) {
                    matrix(tensors, &format!("{prefix}.weight"), [n, site.in_features(c)])?;
                }
            }
        }
    }
    Ok(())
}

/// Reads a float matrix, some rows at a time.
fn matrix(tensors: &dyn TensorSource, name: &str, shape: [usize; 2]) -> Result<()> {
    let [rows, width] = shape;
    let step = (PIECE / (4 * width.max(1))).max(1);
    for start in (0..rows).step_by(step) {
        tensors.float_rows(name, &shape, start..rows.min(start + step))?;
    }
    Ok(())
}
