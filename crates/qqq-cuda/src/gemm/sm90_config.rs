//! The instances of the kernel for Hopper (`sm90_gemm.cuh`).

use super::{GemmTypes, Tile};
use crate::{DType, Source};

/// Shared memory of a CTA on a Hopper GPU, in bytes.
const MAX_SHARED_BYTES: usize = 227 * 1024;
/// The same where an SM holds two.
const MAX_SHARED_BYTES_OF_TWO: usize = 113 * 1024;

/// Template arguments of `Sm90Config` in `sm90_config.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sm90Config {
    /// What the operands are made of.
    pub types: GemmTypes,
    /// Tokens of a tile: 8, 16, 32, then multiples of 16 up to 256.
    pub tokens: usize,
    /// Math warpgroups side by side along the channels.
    pub warpgroups: usize,
    /// Blocks of 64 channels that a warpgroup has.
    pub row_blocks: usize,
    /// Split-K inside a CTA: groups of `warpgroups` that take the k-tiles in turn.
    pub cta_split_k: usize,
    /// Stages of the pipeline, a k-tile each: 128 bytes of each token's row.
    pub stages: usize,
    /// CTAs of a cluster, side by side along the channels, that share their tokens by multicast.
    pub multicast: usize,
    /// Split-K inside a cluster: CTAs that share a tile.
    pub cluster_split_k: usize,
}

impl Sm90Config {
    /// Output channels of a CTA's tile.
    pub fn channels(&self) -> usize {
        64 * self.row_blocks * self.warpgroups
    }

    /// CTAs that are launched as a cluster.
    pub fn ctas_in_cluster(&self) -> usize {
        self.multicast * self.cluster_split_k
    }

    /// CTAs that an SM holds at once.
    pub fn most_ctas_per_sm(&self) -> usize {
        let most_of_two =
            if (self.warpgroups, self.cta_split_k) == (1, 2) && self.cluster_split_k <= 2 { 48 } else { 16 };
        if self.tokens * self.row_blocks <= most_of_two && self.warpgroups * self.cta_split_k <= 2 {
            2
        } else {
            1
        }
    }

    /// Threads of a CTA.
    pub fn threads(&self) -> usize {
        let warpgroups = self.warpgroups * self.cta_split_k;
        // Two warps copy; where registers move from them, they are of a whole warpgroup.
        let trade = (2..=3).contains(&warpgroups) && self.most_ctas_per_sm() == 1;
        128 * warpgroups + if trade { 128 } else { 64 }
    }

    /// Tokens that each CTA of those that share a tile finishes.
    fn owned_tokens(&self) -> usize {
        if self.tokens.is_multiple_of(8 * self.cluster_split_k) {
            self.tokens / self.cluster_split_k
        } else {
            self.tokens
        }
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
    fn staging_tiles(&self) -> usize {
        self.row_blocks * self.owned_tokens() / self.staging_tokens()
    }

    /// Shared memory but for the staging tiles.
    fn other_bytes(&self) -> usize {
        let scaled_tokens = if self.types.activation() == DType::I8 { self.owned_tokens() } else { 0 };
        let factors = scaled_tokens + self.row_blocks * 64;
        let stage =
            self.tokens * 128 + self.row_blocks * self.warpgroups * self.types.weight_tile_bytes() + 16;
        let team =
            (self.cta_split_k - 1) * self.warpgroups * (self.row_blocks * self.tokens / 8).min(8) * 2048;
        self.stages * stage + self.warpgroups * (24 + factors * 4) + 8 + team
    }

    /// Shared memory that a CTA may take.
    fn room(&self) -> usize {
        if self.most_ctas_per_sm() == 2 { MAX_SHARED_BYTES_OF_TWO } else { MAX_SHARED_BYTES }
    }

    /// Staging tiles that a warpgroup has: as many as it fills, or as there is room for.
    fn staging_buffers(&self) -> usize {
        let room = self.room().saturating_sub(self.other_bytes());
        self.staging_tiles().min(room / self.warpgroups / (self.staging_tokens() * 128))
    }

    /// Whether a tile's outputs leave for memory without waiting for each other.
    pub fn stages_whole_tiles(&self) -> bool {
        self.staging_buffers() == self.staging_tiles()
    }

    /// Dynamic shared memory of a CTA, in bytes.
    pub fn shared_bytes(&self) -> usize {
        let staging = self.staging_buffers() * self.staging_tokens() * 128;
        let inbound = (self.cluster_split_k - 1) * self.row_blocks * self.owned_tokens() * 64 * 4;
        self.other_bytes() + self.warpgroups * staging.max(inbound)
    }

    /// Whether the kernel can be compiled.
    pub fn is_valid(&self) -> bool {
        self.shared_bytes() <= self.room()
            && self.staging_buffers() >= self.staging_tiles().min(2)
            && self.stages.is_multiple_of(self.cta_split_k)
            && (self.tokens / self.multicast).is_multiple_of(8)
            && self.row_blocks * self.tokens <= 256
            && self.ctas_in_cluster() <= 8
    }

    /// What the schedule and the launch need to know of it.
    pub fn tile(&self) -> Tile {
        Tile {
            types: self.types,
            tokens: self.tokens,
            channels: self.channels() * self.multicast,
            warpgroups: self.warpgroups,
            cta_split_k: self.cta_split_k,
            multicast: self.multicast,
            cluster_split_k: self.cluster_split_k,
            threads: self.threads(),
            shared_bytes: self.shared_bytes(),
            ctas_per_sm: 1,
            fits_twice: self.most_ctas_per_sm() == 2,
        }
    }

    /// The kernel's source.
    pub fn source(&self) -> Source {
        let (operands, output) = self.types.short_names();
        let name = format!(
            "sm90_gemm_{operands}_{}x{}x{}x{}_{}stages_{}x{}_{output}",
            self.tokens,
            self.warpgroups,
            self.row_blocks,
            self.cta_split_k,
            self.stages,
            self.multicast,
            self.cluster_split_k,
        );
        Source::new(name, |function| {
            format!(
                "#include \"sm90_gemm.cuh\"\n\
             using C = Sm90Config<{}, {}, {}, {}, {}, {}, {}, {}, {}>;\n\
             // What the host believes.\n\
             static_assert(C::kSharedBytes == {} && C::kThreads == {} && C::kStagingTokens == {});\n\
             extern \"C\" __global__ void __launch_bounds__(C::kThreads, C::kCtasPerSm)\n\
             {function}(const __grid_constant__ GemmParameters p) {{ sm90_gemm<C>(p); }}\n",
                self.types.template_arguments(),
                self.tokens,
                self.warpgroups,
                self.row_blocks,
                self.cta_split_k,
                self.stages,
                self.multicast,
                self.cluster_split_k,
                self.types.bfloat(),
                self.shared_bytes(),
                self.threads(),
                self.staging_tokens(),
            )
        })
    }
}
