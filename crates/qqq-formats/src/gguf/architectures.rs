//! What llama.cpp calls the families, and what its converter makes of their tensors (`conversion/` and `src/models/` of
//! llama.cpp; its package `gguf` has the names).

use super::Metadata;
use crate::{FormatError, Result};

/// An architecture of llama.cpp.
#[derive(Debug)]
pub(super) struct GgufArchitecture {
    /// `general.architecture`, and the beginning of the other keys.
    pub name: &'static str,
    /// Rows of q and k are interleaved ([`permutation`](super::permutation)).
    pub interleaved: bool,
    /// Added to the weights of all norms.
    pub norm_shift: f32,
    /// Modules of a block that have other names at Hugging Face than the usual ones.
    pub own_names: &'static [(&'static str, &'static str)],
}

/// All that are read.
static ALL: [GgufArchitecture; 8] = [
    GgufArchitecture { interleaved: true, ..plain("llama") },
    GgufArchitecture { interleaved: true, ..plain("mistral3") },
    plain("qwen2"),
    plain("qwen3"),
    GgufArchitecture { interleaved: true, ..plain("smollm3") },
    GgufArchitecture { interleaved: true, ..plain("granite") },
    GgufArchitecture {
        own_names: &[("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")],
        ..plain("phi3")
    },
    GgufArchitecture {
        norm_shift: 1.0,
        own_names: &[
            ("post_attention_norm", "post_attention_layernorm"),
            ("ffn_norm", "pre_feedforward_layernorm"),
            ("post_ffw_norm", "post_feedforward_layernorm"),
        ],
        ..plain("gemma3")
    },
];

const fn plain(name: &'static str) -> GgufArchitecture {
    GgufArchitecture { name, interleaved: false, norm_shift: 0.0, own_names: &[] }
}

/// That of a file; `None` if it has one that is not known.
///
/// # Errors
/// The key is of another type.
pub(super) fn find(metadata: &Metadata) -> Result<Option<&'static GgufArchitecture>> {
    let name = metadata.string("general.architecture")?;
    Ok(ALL.iter().find(|arch| name == Some(arch.name)))
}

/// That of a model's file.
///
/// # Errors
/// None, or one that is not known.
pub(super) fn of_model(metadata: &Metadata) -> Result<&'static GgufArchitecture> {
    let key = "general.architecture";
    let name = metadata.required(key, metadata.string(key)?)?;
    find(metadata)?.ok_or_else(|| {
        let known: Vec<&str> = ALL.iter().map(|arch| arch.name).collect();
        FormatError::Unsupported(format!(
            "{}: architecture {name:?} is not supported; supported are {}",
            metadata.path().display(),
            known.join(", ")
        ))
    })
}
