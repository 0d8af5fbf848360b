//! What the two kernels' instances have in common: a tile of the output, and how a CTA or a cluster shares it.

use super::GemmTypes;

/// An instance as the schedule, the launch and the choice of plans see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// What the operands are made of.
    pub types: GemmTypes,
    /// Tokens of a tile.
    pub tokens: usize,
    /// Output channels of a cluster's tile.
    pub channels: usize,
    /// Warpgroups of a CTA that have output channels of their own.
    pub warpgroups: usize,
    /// Split-K inside a CTA: groups of warpgroups that take the k-tiles in turn.
    pub cta_split_k: usize,
    /// CTAs of a cluster, side by side along the channels, that share tokens by multicast.
    pub multicast: usize,
    /// Split-K inside a cluster: CTAs that share a tile.
    pub cluster_split_k: usize,
    /// Threads of a CTA.
    pub threads: usize,
    /// Dynamic shared memory of a CTA, in bytes.
    pub shared_bytes: usize,
    /// CTAs of a launch on an SM, unless the plan pairs them.
    pub ctas_per_sm: usize,
    /// Whether an SM has room for two CTAs: of one launch, or the second one of the next.
    pub fits_twice: bool,
}

impl Tile {
    /// CTAs that are launched as a cluster.
    pub fn ctas_in_cluster(&self) -> usize {
        self.multicast * self.cluster_split_k
    }

    /// k-tiles of `k` input channels.
    pub fn k_tiles(&self, k: usize) -> usize {
        k.div_ceil(self.types.k_tile())
    }

    /// Whether `k` input channels are enough for each CTA that shares a tile to have a k-tile.
    pub fn takes(&self, k: usize) -> bool {
        self.cluster_split_k <= self.k_tiles(k)
    }
}
