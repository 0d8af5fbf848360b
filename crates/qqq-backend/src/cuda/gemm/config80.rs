//! The instances of the kernel for every GPU since Ampere.

use super::{OutputType, WeightKind};
use crate::cuda::{Arch, Source};

/// Template arguments of `Sm80Config` in `sm80_config.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sm80Config {
    /// How the weights are stored.
    pub weights: WeightKind,
    /// Tokens of a tile.
    pub tokens: usize,
    /// Warpgroups of a team, side by side along the channels.
    pub warpgroups: usize,
    /// Blocks of 64 channels that a warpgroup has.
    pub rows: usize,
    /// Warps of a warpgroup that divide the tokens; the others divide the channels.
    pub token_warps: usize,
    /// Teams that take the steps of a tile in turn.
    pub splits: usize,
    /// Stages of the pipeline, 128 input channels each.
    pub stages: usize,
    /// Blocks on a multiprocessor.
    pub blocks: usize,
    /// Type of the output.
    pub output: OutputType,
}

impl Sm80Config {
    /// Output channels of a block's tile.
    pub fn channels(&self) -> usize {
        64 * self.rows * self.warpgroups
    }

    /// Threads of a block.
    pub fn threads(&self) -> usize {
        128 * self.warpgroups * self.splits
    }

    /// Dynamic shared memory of a block, in bytes.
    pub fn shared_bytes(&self) -> usize {
        let stage = self.tokens * 128 + self.warpgroups * self.rows * self.weights.chunk_bytes();
        let team = (self.stages * stage).next_multiple_of(if self.splits > 1 { 1024 } else { 16 });
        let sums = (self.splits - 1) * self.channels() * self.tokens * 4;
        self.splits * team + sums + 16 * self.warpgroups
    }

    /// The instance for a number of tokens on an architecture: the fastest of those measured on an H100 that fits the
    /// shared memory and does not spill there.
    pub fn new(weights: WeightKind, output: OutputType, tokens: usize, arch: Arch) -> Option<Self> {
        // Warpgroups, rows, token warps, splits, stages, blocks; best first.
        let grouped = weights.group_size().is_some();
        let shapes: &[[usize; 6]] = match tokens {
            8 | 16 => &[[1, 2, 1, 2, 4, 2], [1, 2, 1, 2, 3, 1], [1, 2, 1, 1, 4, 1]],
            32 => &[[1, 2, 1, 2, 3, 2], [1, 2, 1, 2, 2, 1]],
            64 => &[[1, 2, 1, 2, 4, 1], [2, 2, 1, 1, 3, 1], [1, 2, 1, 1, 3, 1]],
            128 if grouped => &[[1, 2, 2, 1, 3, 2]],
            128 => &[[2, 2, 2, 1, 3, 1], [1, 2, 2, 1, 3, 1]],
            _ => return None,
        };
        shapes
            .iter()
            .map(|&[warpgroups, rows, token_warps, splits, stages, blocks]| Self {
                weights,
                tokens,
                warpgroups,
                rows,
                token_warps,
                splits,
                stages,
                blocks,
                output,
            })
            .find(|c| c.shared_bytes() <= arch.shared_bytes())
    }

    /// The kernel's source: a function `gemm`.
    pub fn source(&self) -> Source {
        let arguments = format!(
            "{}, {}, {}, {}, {}, {}, {}, {}, {}, {}",
            self.weights.enumerator(),
            self.weights.group_size().unwrap_or(128),
            self.tokens,
            self.warpgroups,
            self.rows,
            self.token_warps,
            self.splits,
            self.stages,
            self.blocks,
            self.output == OutputType::Bfloat16,
        );
        let name = format!(
            "sm80_gemm_{}_{}x{}x{}x{}x{}_{}stages_{}_{}",
            self.weights.short_name(),
            self.tokens,
            self.warpgroups,
            self.rows,
            self.token_warps,
            self.splits,
            self.stages,
            self.blocks,
            self.output.short_name(),
        );
        let text = format!(
            "#include \"sm80_gemm.cuh\"\n\
             using C = Sm80Config<{arguments}>;\n\
             // What the host believes.\n\
             static_assert(C::kSharedBytes == {} && C::kThreads == {});\n\
             extern \"C\" __global__ void __launch_bounds__(C::kThreads, C::kBlocks)\n\
             gemm(const __grid_constant__ Sm80Parameters p) {{ sm80_gemm<C>(p); }}\n",
            self.shared_bytes(),
            self.threads(),
        );
        Source { name, text }
    }
}
