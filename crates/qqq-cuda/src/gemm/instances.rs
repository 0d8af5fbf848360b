//! The instances of both kernels, and tables of those that can be chosen.

use super::{GemmTypes, Sm80Config, Sm90Config, SumOrder, Tile};
use crate::{Arch, DType, KernelType, Source};

/// An instance of one of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Instance {
    /// wgmma, for Hopper.
    Sm90(Sm90Config),
    /// mma.sync, for every GPU since Ampere.
    Sm80(Sm80Config),
}

impl Instance {
    /// What both kernels' instances have.
    pub fn tile(&self) -> Tile {
        match self {
            Instance::Sm90(c) => c.tile(),
            Instance::Sm80(c) => c.tile(),
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

/// CTAs that are launched as a cluster.
#[derive(Clone, Copy, Debug)]
struct Cluster {
    multicast: usize,
    split_k: usize,
}

/// A cluster of CTAs that share their tile, or a single one.
const fn split_k(split_k: usize) -> Cluster {
    Cluster { multicast: 1, split_k }
}

const SINGLE: Cluster = split_k(1);
/// Two CTAs side by side along the channels.
const PAIR: Cluster = Cluster { multicast: 2, split_k: 1 };

/// The tiles of one number of tokens, and in which clusters they come.
struct Tokens {
    tokens: usize,
    clusters: &'static [Cluster],
}

const fn tiles(tokens: usize, clusters: &'static [Cluster]) -> Tokens {
    Tokens { tokens, clusters }
}

/// How a CTA's warpgroups share its tile.
#[derive(Clone, Copy, Debug)]
struct Warpgroups {
    /// Side by side along the channels, 64 each.
    side_by_side: usize,
    split_k: usize,
}

/// Tiles of 128 channels.
const WIDE: Warpgroups = Warpgroups { side_by_side: 2, split_k: 1 };
/// Tiles of 192 channels.
const WIDEST: Warpgroups = Warpgroups { side_by_side: 3, split_k: 1 };
/// Tiles of 64 channels, whose k-tiles two warpgroups take in turn.
const SPLIT: Warpgroups = Warpgroups { side_by_side: 1, split_k: 2 };
/// Tiles of 64 channels.
const NARROW: Warpgroups = Warpgroups { side_by_side: 1, split_k: 1 };

/// Tiles of 128 channels for 16-bit activations.
const WIDE_TILES_16: [Tokens; 9] = [
    tiles(8, &[SINGLE, split_k(2), split_k(4), split_k(8)]),
    tiles(16, &[SINGLE, split_k(2), split_k(4), split_k(8)]),
    tiles(32, &[SINGLE, split_k(2), split_k(4), split_k(8)]),
    tiles(48, &[SINGLE, split_k(2), split_k(4)]),
    tiles(64, &[SINGLE, split_k(2), split_k(4)]),
    tiles(96, &[SINGLE, split_k(2), split_k(4)]),
    tiles(128, &[SINGLE, split_k(2), split_k(4)]),
    tiles(192, &[SINGLE, split_k(2)]),
    tiles(256, &[SINGLE, split_k(2), PAIR]),
];
/// The same for int8 activations: what is the fastest for some shape.
const WIDE_TILES_8: [Tokens; 11] = [
    tiles(8, &[split_k(2)]),
    tiles(16, &[split_k(2), split_k(8)]),
    tiles(48, &[split_k(2)]),
    tiles(64, &[SINGLE, split_k(2)]),
    tiles(96, &[SINGLE, split_k(2), split_k(4)]),
    tiles(112, &[SINGLE]),
    tiles(128, &[SINGLE, split_k(2), split_k(4)]),
    tiles(160, &[SINGLE]),
    tiles(176, &[SINGLE]),
    tiles(192, &[SINGLE, split_k(2)]),
    tiles(256, &[SINGLE, split_k(2), PAIR]),
];
/// Tiles of 192 channels, for int8 activations: they fill a round of all SMs where those of 128 begin a second one.
const WIDEST_TILES: [Tokens; 4] =
    [tiles(80, &[SINGLE]), tiles(96, &[SINGLE]), tiles(112, &[SINGLE]), tiles(128, &[SINGLE])];
/// Tiles of 64 channels with split-K inside the CTA, for int8 activations.
const SPLIT_TILES: [Tokens; 7] = [
    tiles(8, &[SINGLE, split_k(2), split_k(4), split_k(8)]),
    tiles(16, &[SINGLE, split_k(2), split_k(4), split_k(8)]),
    tiles(32, &[SINGLE, split_k(2), split_k(4)]),
    tiles(48, &[SINGLE, split_k(2), split_k(4)]),
    tiles(64, &[SINGLE, split_k(2), split_k(4)]),
    tiles(96, &[SINGLE, split_k(2), split_k(4)]),
    tiles(128, &[SINGLE, split_k(2), split_k(4)]),
];
/// Tiles of a single warpgroup, for products of few tokens in one order: tiles cannot be shared, so there should be
/// more of them. For 16-bit activations.
const NARROW_TILES: [Tokens; 4] =
    [tiles(8, &[SINGLE]), tiles(16, &[SINGLE]), tiles(32, &[SINGLE]), tiles(64, &[SINGLE])];
/// Tokens of the tiles of the kernel for every GPU since Ampere.
const SM80_TOKENS: [usize; 5] = [8, 16, 32, 64, 128];

/// Every instance that can be chosen for operands of these types on an architecture.
pub fn instances(types: GemmTypes, arch: Arch) -> Vec<Instance> {
    if arch != Arch::Sm90a {
        let mut found = Vec::new();
        for tokens in SM80_TOKENS {
            let config = |order| Sm80Config::new(types, tokens, arch, order);
            let free = config(SumOrder::Free);
            let fixed = config(SumOrder::Fixed).filter(|c| Some(*c) != free);
            found.extend(free.into_iter().chain(fixed).map(Instance::Sm80));
        }
        return found;
    }
    let tables: &[(&[Tokens], Warpgroups)] = if types.activation() == DType::I8 {
        &[(&WIDE_TILES_8, WIDE), (&WIDEST_TILES, WIDEST), (&SPLIT_TILES, SPLIT)]
    } else {
        &[(&WIDE_TILES_16, WIDE), (&NARROW_TILES, NARROW)]
    };
    let mut found = Vec::new();
    for (table, warpgroups) in tables {
        for Tokens { tokens, clusters } in *table {
            let configs = clusters.iter().filter_map(|c| with_most_stages(types, *tokens, *warpgroups, *c));
            found.extend(configs.map(Instance::Sm90));
        }
    }
    found
}

/// The deepest pipeline that fits, at least 3 stages; where 4 leave room to stage whole tiles, the deepest that does.
fn with_most_stages(
    types: GemmTypes,
    tokens: usize,
    warpgroups: Warpgroups,
    cluster: Cluster,
) -> Option<Sm90Config> {
    // Small stages: more of them.
    let deepest = if tokens <= 16 { 12 } else { 8 };
    // A stage of half as many channels, or of weights for 16-bit activations, is half as large: as many bytes under way
    // are twice as many stages.
    let depths = (3..=deepest * types.activation().bytes() * warpgroups.split_k).rev();
    let mut all = depths
        .map(|stages| Sm90Config {
            types,
            tokens,
            warpgroups: warpgroups.side_by_side,
            row_blocks: 1,
            cta_split_k: warpgroups.split_k,
            stages,
            multicast: cluster.multicast,
            cluster_split_k: cluster.split_k,
        })
        .filter(Sm90Config::is_valid);
    all.clone().find(|c| c.stages >= 4 && c.stages_whole_tiles()).or_else(|| all.next())
}
