//! Which instance of the kernel runs a shape: the cheapest of a few by a model of its time.

use super::{Activation, GemmTypes, Instance, Schedule, Sm80Config, Sm90Config, WeightKind};
use crate::Arch;

/// An instance of the kernel, and how its blocks share the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    /// The instance.
    pub config: Instance,
    /// Stream-K: tiles that do not fill a round are cut along K.
    pub split: bool,
    /// Two blocks of the launch share a multiprocessor, where its memory is enough. Otherwise the other place is left for the next
    /// launch.
    pub paired: bool,
}

impl Plan {
    /// Every way in which blocks of an instance can share the work.
    pub fn all(config: Instance) -> Vec<Self> {
        let ways = [(false, false), (false, true), (true, false), (true, true)];
        let ways = ways
            .into_iter()
            .filter(|(split, paired)| (!split || config.ranks() == 1) && (!paired || config.fits_twice()));
        ways.map(|(split, paired)| Self { config, split, paired }).collect()
    }

    /// Blocks of one launch on a multiprocessor.
    pub fn blocks_per_multiprocessor(&self) -> usize {
        match &self.config {
            Instance::Sm90(_) => 1 + usize::from(self.paired),
            Instance::Sm80(c) => c.blocks,
        }
    }

    /// Whether every output's columns are added from the first to the last, as in any other such plan. Sums of int8 are
    /// exact: their order does not matter.
    pub fn is_batch_invariant(&self) -> bool {
        let c = &self.config;
        c.types().activation() == Activation::Int8 || (c.ranks() == 1 && c.splits() == 1 && !self.split)
    }
}

/// In which order the columns of an output are added. It matters for 16-bit activations, whose sums are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SumOrder {
    /// As the plan cuts them: the same for the same shape, another for another number of tokens.
    #[default]
    Free,
    /// From the first to the last, whatever the number of tokens: a token's outputs do not depend on the others. Few tokens
    /// leave multiprocessors idle then.
    Fixed,
}

/// Tokens of the tiles of 128 channels, and for each how blocks are grouped: (neighbours that share tokens, ranks that share a
/// tile). For 16-bit activations.
const TILES: [(usize, &[(usize, usize)]); 9] = [
    (8, &[(1, 1), (1, 2), (1, 4), (1, 8)]),
    (16, &[(1, 1), (1, 2), (1, 4), (1, 8)]),
    (32, &[(1, 1), (1, 2), (1, 4), (1, 8)]),
    (48, &[(1, 1), (1, 2), (1, 4)]),
    (64, &[(1, 1), (1, 2), (1, 4)]),
    (96, &[(1, 1), (1, 2), (1, 4)]),
    (128, &[(1, 1), (1, 2), (1, 4)]),
    (192, &[(1, 1), (1, 2)]),
    (256, &[(1, 1), (1, 2), (2, 1)]),
];
/// The same for int8 activations: what is the fastest for some shape.
const INT8_TILES: [(usize, &[(usize, usize)]); 9] = [
    (8, &[(1, 2)]),
    (16, &[(1, 2), (1, 8)]),
    (48, &[(1, 2)]),
    (64, &[(1, 1), (1, 2)]),
    (96, &[(1, 1), (1, 2), (1, 4)]),
    (128, &[(1, 1), (1, 2), (1, 4)]),
    (160, &[(1, 1)]),
    (192, &[(1, 1), (1, 2)]),
    (256, &[(1, 1), (1, 2), (2, 1)]),
];
/// Tokens of tiles of 64 channels and two teams, with the ranks that share a tile. For int8 activations.
const TEAM_TILES: [(usize, &[usize]); 7] = [
    (8, &[1, 2, 4, 8]),
    (16, &[1, 2, 4, 8]),
    (32, &[1, 2, 4]),
    (48, &[1, 2, 4]),
    (64, &[1, 2, 4]),
    (96, &[1, 2, 4]),
    (128, &[1, 2, 4]),
];
/// Tokens of tiles of a single warpgroup, for products of few tokens in one order: tiles cannot be shared, so there should be
/// more of them.
const NARROW_TILES: [usize; 4] = [8, 16, 32, 64];

/// Every instance that can be chosen for operands of these types on an architecture.
pub fn instances(types: GemmTypes, arch: Arch) -> Vec<Instance> {
    let int8 = types.activation() == Activation::Int8;
    if arch != Arch::Sm90a {
        let mut found = Vec::new();
        for tokens in [8, 16, 32, 64, 128] {
            let config = |order| Sm80Config::new(types, tokens, arch, order);
            let free = config(SumOrder::Free);
            let fixed = config(SumOrder::Fixed).filter(|c| Some(*c) != free);
            found.extend(free.into_iter().chain(fixed).map(Instance::Sm80));
        }
        return found;
    }
    let wide: &[_] = if int8 { &INT8_TILES } else { &TILES };
    let wide = wide.iter().flat_map(|(tokens, groups)| groups.iter().map(move |g| (*tokens, (2, 1), *g)));
    let narrow = NARROW_TILES.iter().filter(|_| !int8).map(|tokens| (*tokens, (1, 1), (1, 1)));
    let teams = TEAM_TILES.iter().filter(|_| int8);
    let teams = teams.flat_map(|(tokens, ranks)| ranks.iter().map(move |r| (*tokens, (1, 2), (1, *r))));
    wide.chain(narrow)
        .chain(teams)
        .filter_map(|(tokens, warpgroups, group)| with_most_stages(types, tokens, warpgroups, group))
        .map(Instance::Sm90)
        .collect()
}

/// The plans that are worth considering for `m` tokens.
pub fn candidates(types: GemmTypes, arch: Arch, m: usize, order: SumOrder) -> Vec<Plan> {
    let mut plans = Vec::new();
    for config in instances(types, arch) {
        // Tiles much larger than the tokens waste work, much smaller ones read the weights too often.
        let tokens = config.tokens();
        let fewest = if matches!(config, Instance::Sm80(_)) { m.min(128) } else { m.min(256).div_ceil(4) };
        if (tokens >= 2 * m && tokens > 8) || tokens < fewest {
            continue;
        }
        plans.extend(Plan::all(config));
    }
    plans.retain(|p| order == SumOrder::Free || p.is_batch_invariant());
    plans
}

/// The deepest pipeline that fits, at least 3 stages; where 4 leave room to stage whole tiles, the deepest that does.
fn with_most_stages(
    types: GemmTypes,
    tokens: usize,
    (warpgroups, splits): (usize, usize),
    (cluster, ranks): (usize, usize),
) -> Option<Sm90Config> {
    // Small stages: more of them.
    let deepest = if tokens <= 16 { 12 } else { 8 };
    // A stage of half as many channels, or of weights for 16-bit activations, is half as large: as many bytes under way are
    // twice as many stages.
    let depths = (3..=deepest * types.activation().bytes() * splits).rev();
    let mut all = depths
        .map(|stages| Sm90Config { types, tokens, warpgroups, rows: 1, splits, stages, cluster, ranks })
        .filter(Sm90Config::is_valid);
    all.clone().find(|c| c.stages >= 4 && c.stages_whole_tiles()).or_else(|| all.next())
}

/// The plan for `m` tokens on a device with this many multiprocessors.
pub fn plan(
    types: GemmTypes,
    arch: Arch,
    (m, n, k): (usize, usize, usize),
    multiprocessors: usize,
    order: SumOrder,
) -> Plan {
    candidates(types, arch, m, order)
        .into_iter()
        .filter(|p| p.config.takes(k))
        .min_by(|a, b| {
            let cost = |p: &Plan| cycles(p, (m, n, k), multiprocessors);
            cost(a).total_cmp(&cost(b))
        })
        .expect("there is always the smallest tile")
}

/// Clusters that a device runs at once: larger ones do not fill its processor groups.
fn clusters_at_once(multiprocessors: usize, blocks_in_cluster: usize, blocks_each: usize) -> usize {
    let usable = if blocks_in_cluster <= 2 { multiprocessors } else { multiprocessors * 9 / 10 };
    (usable * blocks_each / blocks_in_cluster).max(1)
}

/// Estimated clock cycles. The constants were fitted to measurements of int8 activations on an H100 (nine shapes, 1 to 8,192 tokens, every
/// plan; weights per channel, and in groups of 128 for six of the shapes): its choices took 0.5% longer than the fastest plans on
/// average, 11% at most. (Since then the ends of tiles have become shorter, and tiles of 64 channels and up to 48 tokens have become two a
/// multiprocessor; for those, the choices for six shapes were compared with every plan.) They say which plan is faster, not how long it
/// takes.
/// 16-bit matrix instructions take as long for half the columns, so the same product has twice the steps; dequantizing half
/// the weights is assumed to take as long, because what a step waits for is the same.
fn cycles(p: &Plan, shape: (usize, usize, usize), multiprocessors: usize) -> f64 {
    match &p.config {
        Instance::Sm90(c) => cycles90(p, c, shape, multiprocessors),
        Instance::Sm80(c) => cycles80(p, c, shape, multiprocessors),
    }
}

/// Few instances: the tile that wastes least, cut along K where that fills the device.
fn cycles80(p: &Plan, c: &Sm80Config, (m, n, k): (usize, usize, usize), multiprocessors: usize) -> f64 {
    let blocks = multiprocessors * c.blocks;
    let s = Schedule::new(&p.config, m, n, k, blocks, p.split);
    let multiply = (c.rows * c.warpgroups * 4 * c.tokens) as f64;
    // Two teams, or two blocks of one, hide a part of each other's latency; that is in these figures.
    let latency: f64 = match c.types.weights() {
        WeightKind::Channel4 | WeightKind::Channel8 => 400.0,
        WeightKind::GroupInteger4(_) => 550.0,
        WeightKind::GroupHalf4(_) => 640.0,
    };
    let step = (multiply * c.blocks as f64).max(latency);
    let k_blocks = s.k_blocks as usize;
    let rounds = (s.tiles() - s.split_tiles as usize).div_ceil(blocks);
    let shared = (s.split_tiles as usize * k_blocks).div_ceil((s.split_clusters as usize).max(1));
    let memory = (n.div_ceil(64) * k_blocks * c.types.chunk_bytes()) as f64 / 1650.0;
    let overhead = if shared > 0 { 5000.0 + 50.0 * c.tokens as f64 } else { 0.0 };
    memory.max((rounds * k_blocks + shared) as f64 * step) + overhead
}

fn cycles90(p: &Plan, c: &Sm90Config, (m, n, k): (usize, usize, usize), multiprocessors: usize) -> f64 {
    let clusters = clusters_at_once(multiprocessors, c.blocks_in_cluster(), p.blocks_per_multiprocessor());
    let s = Schedule::new(&p.config, m, n, k, clusters, p.split);
    let k_blocks = s.k_blocks as usize;
    let blocks = s.clusters(clusters) * c.blocks_in_cluster();
    // Two blocks share what a multiprocessor multiplies and gets from L2.
    let sharing = if blocks > multiprocessors { 2.0 } else { 1.0 };

    // A step: multiplying, bringing the operands from L2, and what dequantizing takes at least; teams take turns in that.
    let tokens = c.tokens as f64;
    let multiply = (c.rows * c.warpgroups * 4) as f64 * (tokens / 2.0 + 0.5).max(16.0) * sharing;
    let bytes = c.tokens * 128 / c.cluster + c.rows * c.warpgroups * c.types.chunk_bytes();
    let dequantize = match (c.types.weights(), c.types.activation()) {
        (WeightKind::Channel4, Activation::Float16 | Activation::Bfloat16) => 350.0,
        (WeightKind::Channel4 | WeightKind::Channel8, _) => 420.0,
        (WeightKind::GroupInteger4(_), _) => 496.0,
        (WeightKind::GroupHalf4(_), Activation::Int8) => 560.0,
        (WeightKind::GroupHalf4(_), _) => 400.0,
    };
    // A single warpgroup does not share the multiprocessor's instruction slots.
    let alone = if c.warpgroups * c.splits == 1 { 0.7 } else { 1.0 };
    let dequantize = dequantize * alone / c.splits as f64 * f64::powf(sharing, 0.56);
    // Neighbours wait for each other.
    let neighbours = if c.cluster > 1 { 1.064 } else { 1.0 };
    let longest = multiply.max(bytes as f64 / 58.0 * sharing).max(dequantize);
    let step = (longest + 0.15 * multiply.min(dequantize)) * neighbours;

    let whole_tiles = s.tiles() - s.split_tiles as usize;
    let rounds = whole_tiles.div_ceil(clusters);
    let shared = if s.split_clusters > 0 {
        (s.split_tiles as usize * k_blocks).div_ceil(s.split_clusters as usize)
    } else {
        0
    };
    let steps = rounds * k_blocks.div_ceil(c.ranks) + shared;
    // Memory: weights once, tokens and outputs once.
    let weights = n.div_ceil(64) * k_blocks * c.types.chunk_bytes();
    let memory = (weights + m * k * c.types.activation().bytes() + 2 * m * n) as f64 / 2650.0;

    let tiles_each = (rounds + usize::from(shared > 0)) as f64;
    // Multiprocessors that are left over let the next launch begin.
    let busy = (blocks as f64 / multiprocessors as f64).min(1.0);
    let mut overhead = if p.paired { 5860.0 } else { 6060.0 } * busy;
    overhead += tiles_each * c.rows as f64 * (70.0 + 4.6 * tokens);
    if c.ranks > 1 {
        // Of two blocks one multiplies while the other exchanges; only the last exchange is seen. Up to 16 tokens there is too little to
        // multiply for that.
        let seen = if p.paired && c.tokens > 16 { 1 } else { rounds };
        overhead += seen as f64 * (1710.0 + 17.0 * tokens);
    }
    if shared > 0 {
        overhead += 11500.0;
    }
    memory.max(steps as f64 * step) + overhead
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::OutputType;

    fn types() -> Vec<GemmTypes> {
        let int8 = [
            WeightKind::Channel4,
            WeightKind::GroupInteger4(32),
            WeightKind::GroupHalf4(32),
            WeightKind::GroupHalf4(128),
            WeightKind::Channel8,
        ];
        let int8 = int8.iter().map(|w| GemmTypes::new(*w, Activation::Int8, OutputType::Float16));
        let half = [WeightKind::Channel4, WeightKind::GroupHalf4(32), WeightKind::GroupHalf4(128)];
        let half = half.iter().map(|w| GemmTypes::new(*w, Activation::Bfloat16, OutputType::Bfloat16));
        int8.chain(half).map(Result::unwrap).collect()
    }

    fn cases() -> impl Iterator<Item = (Arch, GemmTypes)> {
        Arch::ALL.into_iter().flat_map(|arch| types().into_iter().map(move |t| (arch, t)))
    }

    #[test]
    fn every_shape_has_a_plan_that_fits() {
        for (arch, types) in cases() {
            for m in [1, 2, 7, 8, 9, 16, 17, 33, 64, 65, 127, 128, 129, 255, 256, 257, 300, 1000, 4097, 65536]
            {
                for (n, k) in [(16, 16), (8192, 21760), (4096, 11008), (1280, 8192), (28672, 65536)] {
                    for order in [SumOrder::Free, SumOrder::Fixed] {
                        let p = plan(types, arch, (m, n, k), 132, order);
                        assert!(p.config.shared_bytes() <= arch.shared_bytes(), "{arch} {p:?}");
                        assert!(order == SumOrder::Free || p.is_batch_invariant(), "{arch} {p:?}");
                        if let Instance::Sm90(c) = p.config {
                            assert!(arch == Arch::Sm90a && c.is_valid(), "{p:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_architecture_has_all_tiles() {
        for (arch, types) in cases() {
            let tiles: Vec<_> = instances(types, arch).iter().map(Instance::tokens).collect();
            assert!([8, 16, 32, 64, 128].iter().all(|t| tiles.contains(t)), "{arch} {types:?} {tiles:?}");
        }
    }

    #[test]
    fn plans_that_cut_sums_are_not_batch_invariant() {
        let half = GemmTypes::new(WeightKind::Channel4, Activation::Float16, OutputType::Float16).unwrap();
        let int8 = GemmTypes::new(WeightKind::Channel4, Activation::Int8, OutputType::Float16).unwrap();
        let p = plan(half, Arch::Sm90a, (1, 8192, 21760), 132, SumOrder::Free);
        assert!((p.config.ranks() > 1 || p.split) && !p.is_batch_invariant(), "{p:?}");
        let p = plan(half, Arch::Sm80, (1, 8192, 21760), 108, SumOrder::Free);
        assert!(p.config.splits() > 1 && !p.is_batch_invariant(), "{p:?}");
        assert!(candidates(int8, Arch::Sm90a, 1, SumOrder::Fixed).iter().any(|p| p.config.ranks() > 1));
    }

    #[test]
    fn known_shapes() {
        let types = GemmTypes::new(WeightKind::Channel4, Activation::Int8, OutputType::Float16).unwrap();
        let p = |m| {
            let p = plan(types, Arch::Sm90a, (m, 8192, 21760), 132, SumOrder::Free);
            (p.config.tokens(), p.config.ranks(), p.split)
        };
        assert_eq!(p(1), (8, 2, false));
        assert_eq!(p(16), (16, 2, false));
        assert_eq!(p(32), (32, 2, false));
        assert_eq!(p(48), (48, 2, false));
        assert_eq!(p(64), (64, 1, false));
        assert_eq!(p(128), (128, 2, false));
        assert_eq!(p(256), (128, 1, false));
        assert_eq!(p(512), (256, 1, false));
        assert_eq!(p(4096), (256, 1, false));
        // More tiles than multiprocessors, all at once.
        let p = plan(types, Arch::Sm90a, (1, 28672, 8192), 132, SumOrder::Free);
        assert!(p.paired && p.blocks_per_multiprocessor() == 2, "{p:?}");
    }
}
