//! OmniQuant: Omnidirectionally Calibrated Quantization for Large Language Models (Shao, Chen, Zhang, Xu, Zhao, Li, Zhang, Gao,
//! Qiao, Luo; [arXiv 2308.13137](https://arxiv.org/abs/2308.13137)).
//!
//! Blocks are quantized one after the other, and what rounding leaves open is learned by gradient descent on
//! `|F(X) - F_q(X_q)|^2` (equation 1): what the float block makes of the float model's states, against what the quantized block
//! makes of those that the quantized blocks before give.
//!
//! - Learnable weight clipping (section 3.2): the scale of a channel or group is that of its largest weight times
//!   `sigmoid(a)`, of its least times `sigmoid(b)`, whichever reaches further, as codes are symmetric here. `a` and `b` begin at 4.
//! - Learnable equivalent transformation (section 3.3), where activations are quantized too: channels of the inputs of q, k, v, of o
//!   and of gate, up are divided by `s`, which begins as SmoothQuant's at strength 0.5, and is absorbed as that is. The input of
//!   down is left alone, as in the paper.
//!
//! Adam without weight decay, a window a step, in their order, 20 epochs of 128 windows of 2048 tokens; learning rates 0.01 for
//! clipping, 0.005 for scales. Rounding passes gradients as if it were not there. Weights for 16-bit activations learn clipping
//! alone, as the paper has it for LLaMA.
//!
//! # Where it departs
//! - RMS norms have no bias that could take a shift: `s` alone is learned.
//! - Scales between queries and keys would change nothing here: they multiply output channels, whose scales follow, and queries and
//!   keys are not quantized (the paper's are).
//! - Query heads that share values share the scales of o's input; the authors' code leaves these out.
//! - The result is that of the epoch behind which all windows together lose least, or what learning began with: rounding is not
//!   smooth, steps are noisy, and the last one may be worse than the first. The paper takes the last.
//! - Losses are divided by that of the beginning. Adam feels of it only that gradients stay far above its guard against 0.
//! - In groups for int8 activations, learning does not see that weights become int8 of their channel.
//!
//! All that is computed is asked of a device ([`Learn`](qqq_backend::Learn)). `block` and `backward` are the differentiable block,
//! `learn` goes down its gradients, `absorb` takes a block of the model there and back.

mod absorb;
mod backward;
mod block;
mod learn;
#[cfg(test)]
mod tests;

use qqq_formats::ModelConfig;
use qqq_model::block::head_layout;

pub(crate) use self::absorb::BlockLearning;
pub(crate) use self::learn::passes;
use super::{Entry, RecipeName, Setting, plain};
use crate::{Calibration, Clip, Propagation, QuantError, Recipe, Result, Transform};

/// W4A8 per channel unless asked otherwise.
pub const ENTRY: Entry = Entry {
    name: RecipeName::OmniQuant,
    word: "omniquant",
    source: "arXiv 2308.13137",
    what: "clipping of weights and scales of channels are learned block by block",
    gives: "W4A8 per channel (--bits, --activations, --group-size)",
    recipe,
    settings: &[
        Setting::Epochs,
        Setting::Bits,
        Setting::Activations,
        Setting::GroupSize,
        Setting::Text,
        Setting::Seed,
    ],
};

fn recipe() -> Recipe {
    Recipe {
        name: RecipeName::OmniQuant,
        transform: Transform::Learn,
        clip: Clip::Learned,
        epochs: Some(20),
        propagation: Propagation::Quantized,
        calibration: Calibration { windows: 128, window: 2048, ..Recipe::DEFAULT.calibration },
        ..plain()
    }
}

/// Numbers that a token has in memory at once while a block is learned: what the forward pass leaves, the gradients of the widest
/// layer, and what is learned from.
pub(crate) fn rows_at_once(config: &ModelConfig) -> f64 {
    let heads = head_layout(config);
    let of_heads = 2 * heads.q_width() + 5 * heads.qkv_width();
    (14 * config.hidden_size + 10 * config.intermediate_size + of_heads) as f64
}

/// Refuses what cannot be learned.
///
/// # Errors
/// Parts of other recipes.
pub(crate) fn check(recipe: &Recipe) -> Result<()> {
    let goes_with = recipe.clip == Clip::Learned
        && recipe.propagation == Propagation::Quantized
        && !recipe.compensate
        && !recipe.corrects();
    match (goes_with, recipe.epochs) {
        (true, Some(_)) => Ok(()),
        (true, None) => Err(QuantError::Recipe("transform learn takes a number of epochs".into())),
        (false, _) => Err(QuantError::Recipe(
            "transform learn goes with clip learned, propagation quantized and rounding to nearest, as OmniQuant has it".into(),
        )),
    }
}

#[cfg(test)]
mod refusals {
    use super::*;

    #[test]
    fn it_goes_with_its_own_parts() {
        assert!(check(&recipe()).is_ok());
        let of = |recipe: Recipe| check(&recipe).unwrap_err().to_string();
        assert!(of(Recipe { epochs: None, ..recipe() }).contains("a number of epochs"));
        for other in [
            Recipe { clip: Clip::None, ..recipe() },
            Recipe { propagation: Propagation::Float, ..recipe() },
            Recipe { compensate: true, ..recipe() },
        ] {
            assert!(of(other).contains("as OmniQuant has it"));
        }
    }
}
