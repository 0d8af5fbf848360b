//! The instances of the kernel for every GPU since Ampere.

use super::{Activation, GemmTypes, SumOrder};
use crate::{Arch, Source};

/// Template arguments of `Sm80Config` in `sm80_config.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sm80Config {
    /// What the operands are made of.
    pub types: GemmTypes,
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
    /// Stages of the pipeline, 128 bytes of each token's row.
    pub stages: usize,
    /// Blocks on a multiprocessor.
    pub blocks: usize,
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
        let stage = self.tokens * 128 + self.warpgroups * self.rows * self.types.chunk_bytes();
        let team = (self.stages * stage).next_multiple_of(if self.splits > 1 { 1024 } else { 16 });
        let sums = (self.splits - 1) * self.channels() * self.tokens * 4;
        self.splits * team + sums + 16 * self.warpgroups
    }

    /// The instance for a number of tokens on an architecture: the first whose blocks fit a multiprocessor's shared memory
    /// together, of those that were fastest on an H100 (int8 activations), or that have as many bytes under way as these
    /// (16-bit ones), and do not spill.
    pub fn new(types: GemmTypes, tokens: usize, arch: Arch, order: SumOrder) -> Option<Self> {
        let grouped = types.weights().group_size().is_some();
        let int8 = types.activation() == Activation::Int8;
        let shapes = match order {
            _ if int8 => Self::shapes(tokens, grouped)?,
            SumOrder::Free => Self::shapes16(tokens)?,
            SumOrder::Fixed => Self::ordered_shapes16(tokens)?,
        };
        shapes
            .iter()
            .map(|&[warpgroups, rows, token_warps, splits, stages, blocks]| Self {
                types,
                tokens,
                warpgroups,
                rows,
                token_warps,
                splits,
                stages,
                blocks,
            })
            .find(|c| c.fits(arch))
    }

    /// Warpgroups, rows, token warps, splits, stages, blocks, best first, for int8 activations.
    fn shapes(tokens: usize, grouped: bool) -> Option<&'static [[usize; 6]]> {
        Some(match tokens {
            8 | 16 => &[[1, 2, 1, 2, 4, 2], [1, 2, 1, 2, 4, 1], [1, 2, 1, 1, 4, 1]],
            32 => &[[1, 2, 1, 2, 3, 2], [1, 2, 1, 2, 3, 1], [1, 2, 1, 2, 2, 1]],
            64 => &[[1, 2, 1, 2, 4, 1], [2, 2, 1, 1, 3, 1], [1, 2, 1, 1, 3, 1]],
            128 if grouped => &[[1, 2, 2, 1, 3, 2], [1, 2, 2, 1, 3, 1]],
            128 => &[[2, 2, 2, 1, 3, 1], [1, 2, 2, 1, 3, 1]],
            _ => return None,
        })
    }

    /// The same for 16-bit activations, whose chunks of weights are half as large.
    fn shapes16(tokens: usize) -> Option<&'static [[usize; 6]]> {
        Some(match tokens {
            8 | 16 => &[[1, 2, 1, 2, 5, 2], [1, 2, 1, 2, 6, 1]],
            32 => &[[1, 2, 1, 2, 3, 2], [1, 2, 1, 2, 4, 1]],
            64 => &[[1, 2, 1, 2, 4, 1], [2, 2, 1, 1, 4, 1]],
            _ => return Self::ordered_shapes16(tokens),
        })
    }

    /// Those without teams, which add the columns in one order. Few tokens get small tiles: a tile is not shared.
    fn ordered_shapes16(tokens: usize) -> Option<&'static [[usize; 6]]> {
        Some(match tokens {
            8 | 16 => &[[1, 1, 1, 1, 8, 2]],
            32 => &[[1, 2, 1, 1, 4, 2]],
            64 => &[[2, 2, 1, 1, 4, 1]],
            128 => &[[1, 2, 2, 1, 3, 2], [2, 2, 2, 1, 3, 1]],
            _ => return None,
        })
    }

    /// Whether a multiprocessor holds all the blocks that it should; each takes 1 KiB more than it asks for.
    fn fits(&self, arch: Arch) -> bool {
        self.blocks * (self.shared_bytes() + 1024) <= arch.shared_bytes() + 1024
    }

    /// The kernel's source.
    pub fn source(&self) -> Source {
        let arguments = format!(
            "{}, {}, {}, {}, {}, {}, {}, {}, {}",
            self.types.template_arguments(),
            self.tokens,
            self.warpgroups,
            self.rows,
            self.token_warps,
            self.splits,
            self.stages,
            self.blocks,
            self.types.bfloat(),
        );
        let (operands, output) = self.types.short_names();
        let name = format!(
            "sm80_gemm_{operands}_{}x{}x{}x{}x{}_{}stages_{}_{output}",
            self.tokens, self.warpgroups, self.rows, self.token_warps, self.splits, self.stages, self.blocks,
        );
        Source::new(name, |function| {
            format!(
                "#include \"sm80_gemm.cuh\"\n\
             using C = Sm80Config<{arguments}>;\n\
             // What the host believes.\n\
             static_assert(C::kSharedBytes == {} && C::kThreads == {});\n\
             extern \"C\" __global__ void __launch_bounds__(C::kThreads, C::kBlocks)\n\
             {function}(const __grid_constant__ Sm80Parameters p) {{ sm80_gemm<C>(p); }}\n",
                self.shared_bytes(),
                self.threads(),
            )
        })
    }
}
