//! The instances of the kernels; here those for Hopper.

use super::{Activation, GemmTypes, Sm80Config};
use crate::Source;

/// Shared memory of a block on a Hopper GPU, in bytes.
const MAX_SHARED_BYTES: usize = 227 * 1024;
/// The same where a multiprocessor holds two.
const MAX_SHARED_BYTES_OF_TWO: usize = 113 * 1024;

/// Template arguments of `Sm90Config` in `sm90_config.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sm90Config {
    /// What the operands are made of.
    pub types: GemmTypes,
    /// Tokens of a tile: 8, 16, 32, then multiples of 16 up to 256.
    pub tokens: usize,
    /// Warpgroups of a team, side by side along the channels.
    pub warpgroups: usize,
    /// Blocks of 64 channels that a warpgroup has.
    pub rows: usize,
    /// Teams that take the steps of a tile in turn.
    pub splits: usize,
    /// Stages of the pipeline, 128 bytes of each token's row.
    pub stages: usize,
    /// Neighbouring blocks along the channels that share their tokens by multicast.
    pub cluster: usize,
    /// Blocks that share a tile and cut it along K.
    pub ranks: usize,
}

impl Sm90Config {
    /// Output channels of a block's tile.
    pub fn channels(&self) -> usize {
        64 * self.rows * self.warpgroups
    }

    /// Blocks that are launched as a cluster.
    pub fn blocks_in_cluster(&self) -> usize {
        self.cluster * self.ranks
    }

    /// Blocks that a multiprocessor holds at once.
    pub fn blocks_per_multiprocessor(&self) -> usize {
        let most_of_two = if (self.warpgroups, self.splits) == (1, 2) && self.ranks <= 2 { 48 } else { 16 };
        if self.tokens * self.rows <= most_of_two && self.warpgroups * self.splits <= 2 { 2 } else { 1 }
    }

    /// Threads of a block.
    pub fn threads(&self) -> usize {
        let warpgroups = self.warpgroups * self.splits;
        // Two warps copy; where registers move from them, they are of a whole warpgroup.
        let trade = warpgroups == 2 && self.blocks_per_multiprocessor() == 1;
        128 * warpgroups + if trade { 128 } else { 64 }
    }

    /// Tokens that each rank finishes.
    fn owned_tokens(&self) -> usize {
        if self.tokens.is_multiple_of(8 * self.ranks) { self.tokens / self.ranks } else { self.tokens }
    }

    /// Tokens of a staging tile of the output: the box of the output's tensor map.
    pub fn staging_tokens(&self) -> usize {
        let owned = self.owned_tokens();
        if owned <= 64 {
            return owned;
        }
        [64, 56, 48, 40].into_iter().find(|t| owned.is_multiple_of(*t)).unwrap_or(16)
    }

    /// Staging tiles that a warpgroup fills for a tile.
    fn staging_pieces(&self) -> usize {
        self.rows * self.owned_tokens() / self.staging_tokens()
    }

    /// Shared memory but for the staging tiles.
    fn other_bytes(&self) -> usize {
        let scaled_tokens = if self.types.activation() == Activation::Int8 { self.owned_tokens() } else { 0 };
        let factors = scaled_tokens + self.rows * 64;
        let stage = self.tokens * 128 + self.rows * self.warpgroups * self.types.chunk_bytes() + 16;
        let team = (self.splits - 1) * self.warpgroups * (self.rows * self.tokens / 8).min(8) * 2048;
        self.stages * stage + self.warpgroups * (24 + factors * 4) + 8 + team
    }

    /// Shared memory that a block may take.
    fn room(&self) -> usize {
        if self.blocks_per_multiprocessor() == 2 { MAX_SHARED_BYTES_OF_TWO } else { MAX_SHARED_BYTES }
    }

    /// Staging tiles that a warpgroup has: as many as it fills, or as there is room for.
    fn staging_buffers(&self) -> usize {
        let room = self.room().saturating_sub(self.other_bytes());
        self.staging_pieces().min(room / self.warpgroups / (self.staging_tokens() * 128))
    }

    /// Whether a tile's outputs leave for memory without waiting for each other.
    pub fn stages_whole_tiles(&self) -> bool {
        self.staging_buffers() == self.staging_pieces()
    }

    /// Dynamic shared memory of a block, in bytes.
    pub fn shared_bytes(&self) -> usize {
        let staging = self.staging_buffers() * self.staging_tokens() * 128;
        let inbound = (self.ranks - 1) * self.rows * self.owned_tokens() * 64 * 4;
        self.other_bytes() + self.warpgroups * staging.max(inbound)
    }

    /// Whether the kernel can be compiled.
    pub fn is_valid(&self) -> bool {
        self.shared_bytes() <= self.room()
            && self.staging_buffers() >= self.staging_pieces().min(2)
            && self.stages.is_multiple_of(self.splits)
            && (self.tokens / self.cluster).is_multiple_of(8)
            && self.rows * self.tokens <= 256
            && self.blocks_in_cluster() <= 8
    }

    /// The kernel's source.
    pub fn source(&self) -> Source {
        let (operands, output) = self.types.short_names();
        let name = format!(
            "sm90_gemm_{operands}_{}x{}x{}x{}_{}stages_{}x{}_{output}",
            self.tokens, self.warpgroups, self.rows, self.splits, self.stages, self.cluster, self.ranks,
        );
        Source::new(name, |function| {
            format!(
                "#include \"sm90_gemm.cuh\"\n\
             using C = Sm90Config<{}, {}, {}, {}, {}, {}, {}, {}, {}>;\n\
             // What the host believes.\n\
             static_assert(C::kSharedBytes == {} && C::kThreads == {} && C::kStagingTokens == {});\n\
             extern \"C\" __global__ void __launch_bounds__(C::kThreads, C::kBlocks)\n\
             {function}(const __grid_constant__ GemmParameters p) {{ sm90_gemm<C>(p); }}\n",
                self.types.template_arguments(),
                self.tokens,
                self.warpgroups,
                self.rows,
                self.splits,
                self.stages,
                self.cluster,
                self.ranks,
                self.types.bfloat(),
                self.shared_bytes(),
                self.threads(),
                self.staging_tokens(),
            )
        })
    }
}

/// An instance of one of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Instance {
    /// wgmma, for Hopper.
    Sm90(Sm90Config),
    /// mma.sync, for every GPU since Ampere.
    Sm80(Sm80Config),
}

impl Instance {
    /// What the operands are made of.
    pub fn types(&self) -> &GemmTypes {
        match self {
            Instance::Sm90(c) => &c.types,
            Instance::Sm80(c) => &c.types,
        }
    }

    /// Tokens of a tile.
    pub fn tokens(&self) -> usize {
        match self {
            Instance::Sm90(c) => c.tokens,
            Instance::Sm80(c) => c.tokens,
        }
    }

    /// Output channels of a cluster's tile.
    pub fn channels(&self) -> usize {
        match self {
            Instance::Sm90(c) => c.channels() * c.cluster,
            Instance::Sm80(c) => c.channels(),
        }
    }

    /// Blocks that share a tile and cut it along K.
    pub fn ranks(&self) -> usize {
        match self {
            Instance::Sm90(c) => c.ranks,
            Instance::Sm80(_) => 1,
        }
    }

    /// Teams of a block that take the steps of a tile in turn.
    pub fn splits(&self) -> usize {
        match self {
            Instance::Sm90(c) => c.splits,
            Instance::Sm80(c) => c.splits,
        }
    }

    /// Steps of `k` input channels.
    pub fn steps(&self, k: usize) -> usize {
        k.div_ceil(self.types().activation().step_columns())
    }

    /// Whether `k` input channels are enough to be cut among the ranks.
    pub fn takes(&self, k: usize) -> bool {
        self.ranks() <= self.steps(k)
    }

    /// Blocks of a cluster that are neighbours along the channels and share tokens.
    pub fn neighbours(&self) -> usize {
        match self {
            Instance::Sm90(c) => c.cluster,
            Instance::Sm80(_) => 1,
        }
    }

    /// Blocks that are launched as a cluster.
    pub fn blocks_in_cluster(&self) -> usize {
        match self {
            Instance::Sm90(c) => c.blocks_in_cluster(),
            Instance::Sm80(_) => 1,
        }
    }

    /// Whether a multiprocessor has room for two blocks: of this launch, or the second one of the next.
    pub fn fits_twice(&self) -> bool {
        match self {
            Instance::Sm90(c) => c.blocks_per_multiprocessor() == 2,
            Instance::Sm80(_) => false,
        }
    }

    /// Warpgroups that have output channels of their own.
    pub(super) fn warpgroups(&self) -> usize {
        match self {
            Instance::Sm90(c) => c.warpgroups,
            Instance::Sm80(c) => c.warpgroups,
        }
    }

    /// Threads of a block.
    pub fn threads(&self) -> usize {
        match self {
            Instance::Sm90(c) => c.threads(),
            Instance::Sm80(c) => c.threads(),
        }
    }

    /// Dynamic shared memory of a block, in bytes.
    pub fn shared_bytes(&self) -> usize {
        match self {
            Instance::Sm90(c) => c.shared_bytes(),
            Instance::Sm80(c) => c.shared_bytes(),
        }
    }

    /// The kernel's source.
    pub fn source(&self) -> Source {
        match self {
            Instance::Sm90(c) => c.source(),
            Instance::Sm80(c) => c.source(),
        }
    }
}
