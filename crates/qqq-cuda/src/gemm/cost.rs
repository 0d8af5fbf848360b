//! A model of the time that a plan takes, in clock cycles of an SM. It says which plan is faster, not how long it
//! takes.
//!
//! A product does two things at once, of which the longer hides most of the other: it brings its bytes from memory, and
//! multiplies the k-tiles that the busiest CTA has. Then come the parts that nothing hides: the launch, the end of a tile, and
//! sums of partial results.
//!
//! The constants were fitted to measurements of int8 activations on an H100: 23 shapes, 1 to 2,048 tokens, every plan that came
//! near the fastest, and weights per channel and in groups of 128, 526 products. What the plans chosen by them lose against the fastest ones is in
//! docs/benchmarks.md; `examples/choices.rs` says it of other measurements.

use super::{GemmSpec, Instance, Plan, Schedule, Sm80Config, Sm90Config, Tile, WeightKind, candidates};
use crate::{Arch, DType, KernelType};

/// Cycles that dequantizing a k-tile of 64 output channels takes a CTA at least, by kind of weights.
struct Dequantize {
    channel: f64,
    group_integer: f64,
    group_half: f64,
}

impl Dequantize {
    fn cycles(&self, weights: WeightKind) -> f64 {
        match weights {
            WeightKind::Channel4 | WeightKind::Channel8 => self.channel,
            WeightKind::GroupInteger4(_) => self.group_integer,
            WeightKind::GroupHalf4(_) => self.group_half,
        }
    }
}

/// `fixed + each * tokens` cycles for a tile of so many tokens.
struct PerTile {
    fixed: f64,
    each: f64,
}

impl PerTile {
    fn cycles(&self, tokens: f64) -> f64 {
        self.fixed + self.each * tokens
    }
}

/// What a launch costs.
struct Launch {
    /// Of single CTAs.
    single: f64,
    /// Of clusters: all CTAs of one need room at once, so the next launch begins later.
    clusters: f64,
}

/// The kernel for Hopper.
struct Sm90Costs {
    /// Bytes a cycle that memory gives all SMs.
    memory_bytes_per_cycle: f64,
    /// Bytes a cycle that an SM gets from L2.
    l2_bytes_per_cycle: f64,
    /// Part of the SMs, as (numerator, denominator), that clusters of more than two CTAs can fill: a cluster lies in
    /// one group of SMs, and groups are of different sizes.
    filled_by_clusters: (usize, usize),
    /// Fewest tokens that a wgmma instruction takes as long for: its cycles are half its tokens, at least these.
    least_multiply_cycles: f64,
    /// A CTA whose warpgroups lie side by side.
    dequantize: Dequantize,
    /// One whose warpgroups take the k-tiles in turn: they divide this among themselves.
    dequantize_split: Dequantize,
    /// A single warpgroup has the SM's instruction slots for itself: its part of the cycles to dequantize.
    alone: f64,
    /// Two CTAs on an SM dequantize this power of two slower.
    paired_exponent: f64,
    /// CTAs that share tokens by multicast wait for each other.
    multicast_factor: f64,
    /// Part of the shorter of multiplying and dequantizing that the longer does not hide.
    unhidden: f64,
    /// How well memory and multiplying hide each other: the exponent of a norm of both, between their sum (1) and the longer
    /// (infinity).
    hiding: f64,
    /// Where a CTA fills an SM.
    launch: Launch,
    /// Where there is room for two.
    launch_of_two: Launch,
    /// What is saved where a launch fills both places.
    paired_launch_saves: f64,
    /// The end of a tile.
    epilogue: PerTile,
    /// Adding partial sums through the shared memory of a cluster: for clusters of two, four and eight, and for each token.
    cluster_reduction: [f64; 3],
    cluster_reduction_of_token: f64,
    /// Adding partial sums through global memory.
    global_reduction: PerTile,
}

/// Int8 activations.
const SM90_INT8: Sm90Costs = Sm90Costs {
    memory_bytes_per_cycle: 2600.0,
    l2_bytes_per_cycle: 57.86,
    filled_by_clusters: (9, 10),
    least_multiply_cycles: 4.0,
    // Float16 scales take an eighth longer than integer ones, as in the fit before.
    dequantize: Dequantize { channel: 402.3, group_integer: 462.8, group_half: 521.0 },
    dequantize_split: Dequantize { channel: 472.2, group_integer: 531.9, group_half: 599.0 },
    alone: 0.77,
    paired_exponent: 0.555,
    multicast_factor: 1.07,
    unhidden: 0.432,
    hiding: 15.6,
    launch: Launch { single: 557.0, clusters: 1369.0 },
    launch_of_two: Launch { single: 2705.0, clusters: 4664.0 },
    paired_launch_saves: 1922.0,
    // Hidden behind the next tile or launch.
    epilogue: PerTile { fixed: 0.0, each: 0.0 },
    cluster_reduction: [2388.0, 2303.0, 1257.0],
    cluster_reduction_of_token: 17.84,
    global_reduction: PerTile { fixed: 10195.0, each: 79.4 },
};

/// 16-bit activations, for which nothing was fitted: an earlier fit to int8, with what dequantizing half the columns of a k-tile
/// is assumed to take.
const SM90_HALF: Sm90Costs = Sm90Costs {
    memory_bytes_per_cycle: 2820.0,
    l2_bytes_per_cycle: 53.6,
    filled_by_clusters: (9, 10),
    least_multiply_cycles: 8.0,
    // Integer scales become 16-bit ones.
    dequantize: Dequantize { channel: 350.0, group_integer: 400.0, group_half: 400.0 },
    dequantize_split: Dequantize { channel: 350.0, group_integer: 400.0, group_half: 400.0 },
    alone: 0.77,
    paired_exponent: 0.58,
    multicast_factor: 1.006,
    unhidden: 0.13,
    hiding: 5.2,
    launch: Launch { single: 5300.0, clusters: 5300.0 },
    launch_of_two: Launch { single: 5300.0, clusters: 5300.0 },
    paired_launch_saves: 0.0,
    epilogue: PerTile { fixed: 35.0, each: 3.56 },
    cluster_reduction: [1380.0; 3],
    cluster_reduction_of_token: 11.0,
    global_reduction: PerTile { fixed: 7900.0, each: 55.0 },
};

/// The kernel for every GPU since Ampere, measured as far as it runs on an H100. It has few instances: the tile that
/// wastes least, with split-K where that fills the device.
struct Sm80Costs {
    /// Bytes a cycle that memory gives all SMs.
    memory_bytes_per_cycle: f64,
    /// What a k-tile takes at least. That split-K inside a CTA, or two CTAs on an SM, hide a part of each other's
    /// latency is in these figures.
    k_tile: Dequantize,
    /// Adding partial sums through global memory.
    global_reduction: PerTile,
}

const SM80: Sm80Costs = Sm80Costs {
    memory_bytes_per_cycle: 1650.0,
    k_tile: Dequantize { channel: 400.0, group_integer: 550.0, group_half: 640.0 },
    global_reduction: PerTile { fixed: 5000.0, each: 50.0 },
};

/// Estimates plans on a device.
#[derive(Clone, Copy, Debug)]
pub struct CostModel {
    sms: usize,
}

impl CostModel {
    /// For a device with this many SMs.
    pub fn new(sms: usize) -> Self {
        Self { sms }
    }

    /// The cheapest plan for `m` tokens, by the kernels of an architecture.
    pub fn plan(&self, spec: &GemmSpec, arch: Arch, m: usize) -> Plan {
        self.estimates(spec, arch, m)
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .expect("there is always the smallest tile")
            .1
    }

    /// The plans that can be chosen for `m` tokens, with their estimated clock cycles.
    pub(super) fn estimates(
        &self,
        spec: &GemmSpec,
        arch: Arch,
        m: usize,
    ) -> impl Iterator<Item = (f64, Plan)> {
        let shape = (m, spec.n, spec.k);
        candidates(spec.types, arch, m, spec.order)
            .into_iter()
            .filter(move |p| p.instance.tile().takes(shape.2) && p.is_distinct(shape, self.sms))
            .map(move |p| (self.cycles(&p, shape), p))
    }

    /// Estimated clock cycles of a plan for `m x n x k`.
    pub fn cycles(&self, plan: &Plan, shape: (usize, usize, usize)) -> f64 {
        match &plan.instance {
            Instance::Sm90(c) => self.sm90(plan, c, shape),
            Instance::Sm80(c) => self.sm80(plan, c, shape),
        }
    }

    fn sm90(&self, plan: &Plan, c: &Sm90Config, (m, n, k): (usize, usize, usize)) -> f64 {
        let costs = if c.types.activation() == DType::I8 { &SM90_INT8 } else { &SM90_HALF };
        let tile = c.tile();
        let clusters = self.clusters_at_once(costs, tile.ctas_in_cluster(), plan.ctas_per_sm());
        let s = Schedule::new(&tile, (m, n, k), clusters, plan.stream_k);
        let work = Work::new(&s, clusters);
        let ctas = s.clusters(clusters) * tile.ctas_in_cluster();
        // Two CTAs share what an SM multiplies and gets from L2.
        let sharing = if ctas > self.sms { 2.0 } else { 1.0 };

        // A k-tile: multiplying, bringing the operands from L2, and dequantizing; with split-K, warpgroups take turns
        // in that.
        let tokens = c.tokens as f64;
        let row_blocks = c.row_blocks * c.warpgroups;
        let multiply =
            (row_blocks * 4) as f64 * (tokens / 2.0 + 0.5).max(costs.least_multiply_cycles) * sharing;
        let bytes = c.tokens * 128 / c.multicast + row_blocks * c.types.weight_tile_bytes();
        let dequantize = if c.cta_split_k == 1 { &costs.dequantize } else { &costs.dequantize_split };
        // They were measured with two warpgroups; more share the same instruction slots.
        let crowd = match c.warpgroups * c.cta_split_k {
            1 => costs.alone,
            warpgroups => warpgroups as f64 / 2.0,
        };
        let dequantize = dequantize.cycles(c.types.weights()) * crowd / c.cta_split_k as f64
            * f64::powf(sharing, costs.paired_exponent);
        let multicast = if c.multicast > 1 { costs.multicast_factor } else { 1.0 };
        let longest = multiply.max(bytes as f64 / costs.l2_bytes_per_cycle * sharing).max(dequantize);
        let k_tile = (longest + costs.unhidden * multiply.min(dequantize)) * multicast;
        let k_tiles = work.rounds * work.k_tiles.div_ceil(c.cluster_split_k) + work.shared;

        // Weights once, tokens and outputs once.
        let bytes = weight_bytes(&tile, n, k) + m * k * c.types.activation().bytes() + 2 * m * n;
        let memory = bytes as f64 / costs.memory_bytes_per_cycle;

        let tiles_each = (work.rounds + usize::from(work.shared > 0)) as f64;
        // SMs that are left over let the next launch begin.
        let busy = (ctas as f64 / self.sms as f64).min(1.0);
        let launch = if tile.fits_twice { &costs.launch_of_two } else { &costs.launch };
        let launch = if c.ctas_in_cluster() == 1 { launch.single } else { launch.clusters };
        let mut overhead = launch * busy;
        if plan.paired {
            overhead -= costs.paired_launch_saves;
        }
        overhead += tiles_each * c.row_blocks as f64 * costs.epilogue.cycles(tokens);
        if c.cluster_split_k > 1 {
            // Of two CTAs one multiplies while the other exchanges; only the last exchange is seen. Up to 16 tokens
            // there is too little to multiply for that.
            let seen = if plan.paired && c.tokens > 16 { 1 } else { work.rounds };
            let fixed = costs.cluster_reduction[c.cluster_split_k.ilog2() as usize - 1];
            overhead += seen as f64 * (fixed + costs.cluster_reduction_of_token * tokens);
        }
        if work.shared > 0 {
            overhead += costs.global_reduction.cycles(tokens);
        }
        let multiplying = k_tiles as f64 * k_tile;
        (memory.powf(costs.hiding) + multiplying.powf(costs.hiding)).powf(1.0 / costs.hiding) + overhead
    }

    fn sm80(&self, plan: &Plan, c: &Sm80Config, (m, n, k): (usize, usize, usize)) -> f64 {
        let tile = c.tile();
        let ctas = self.sms * tile.ctas_per_sm;
        let s = Schedule::new(&tile, (m, n, k), ctas, plan.stream_k);
        let work = Work::new(&s, ctas);
        let multiply = (c.shape.row_blocks * c.shape.warpgroups * 4 * c.tokens) as f64;
        let k_tile = (multiply * tile.ctas_per_sm as f64).max(SM80.k_tile.cycles(c.types.weights()));
        let memory = weight_bytes(&tile, n, k) as f64 / SM80.memory_bytes_per_cycle;
        let overhead = if work.shared > 0 { SM80.global_reduction.cycles(c.tokens as f64) } else { 0.0 };
        memory.max((work.rounds * work.k_tiles + work.shared) as f64 * k_tile) + overhead
    }

    /// Clusters that run at once.
    fn clusters_at_once(&self, costs: &Sm90Costs, ctas_in_cluster: usize, ctas_per_sm: usize) -> usize {
        let (numerator, denominator) = costs.filled_by_clusters;
        let filled = if ctas_in_cluster <= 2 { self.sms } else { self.sms * numerator / denominator };
        (filled * ctas_per_sm / ctas_in_cluster).max(1)
    }
}

/// What the busiest cluster has to do.
struct Work {
    /// k-tiles of a tile.
    k_tiles: usize,
    /// Tiles of its own.
    rounds: usize,
    /// k-tiles of tiles that it shares (stream-K).
    shared: usize,
}

impl Work {
    fn new(s: &Schedule, clusters: usize) -> Self {
        let (k_tiles, stream_k_tiles) = (s.k_tiles as usize, s.stream_k_tiles as usize);
        Self {
            k_tiles,
            rounds: (s.tiles() - stream_k_tiles).div_ceil(clusters),
            shared: (stream_k_tiles * k_tiles).div_ceil((s.stream_k_clusters as usize).max(1)),
        }
    }
}

/// Bytes of the prepacked weights.
fn weight_bytes(tile: &Tile, n: usize, k: usize) -> usize {
    n.div_ceil(64) * tile.k_tiles(k) * tile.types.weight_tile_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{GemmTypes, SumOrder, instances};

    fn model(sms: usize) -> CostModel {
        CostModel::new(sms)
    }

    fn types() -> Vec<GemmTypes> {
        let int8 = [
            WeightKind::Channel4,
            WeightKind::GroupInteger4(32),
            WeightKind::GroupHalf4(32),
            WeightKind::GroupHalf4(128),
            WeightKind::Channel8,
        ];
        let int8 = int8.iter().map(|w| GemmTypes::new(*w, DType::I8, DType::F16));
        let half = [WeightKind::Channel4, WeightKind::GroupHalf4(32), WeightKind::GroupHalf4(128)];
        let half = half.iter().map(|w| GemmTypes::new(*w, DType::BF16, DType::BF16));
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
                        let p = model(132).plan(&GemmSpec { types, order, n, k }, arch, m);
                        assert!(p.instance.tile().shared_bytes <= arch.shared_bytes(), "{arch} {p:?}");
                        assert!(order == SumOrder::Free || p.is_batch_invariant(), "{arch} {p:?}");
                        if let Instance::Sm90(c) = p.instance {
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
            let tiles: Vec<_> = instances(types, arch).iter().map(|i| i.tile().tokens).collect();
            assert!([8, 16, 32, 64, 128].iter().all(|t| tiles.contains(t)), "{arch} {types:?} {tiles:?}");
        }
    }

    #[test]
    fn plans_that_cut_sums_are_not_batch_invariant() {
        let half = GemmTypes::new(WeightKind::Channel4, DType::F16, DType::F16).unwrap();
        let int8 = GemmTypes::new(WeightKind::Channel4, DType::I8, DType::F16).unwrap();
        let p = model(132).plan(&GemmSpec::new(half, (8192, 21760)), Arch::Sm90a, 1);
        assert!((p.instance.tile().cluster_split_k > 1 || p.stream_k) && !p.is_batch_invariant(), "{p:?}");
        let p = model(108).plan(&GemmSpec::new(half, (8192, 21760)), Arch::Sm80, 1);
        assert!(p.instance.tile().cta_split_k > 1 && !p.is_batch_invariant(), "{p:?}");
        assert!(
            candidates(int8, Arch::Sm90a, 1, SumOrder::Fixed).iter().any(|p| p
                .instance
                .tile()
                .cluster_split_k
                > 1)
        );
    }

    #[test]
    fn known_shapes() {
        let types = GemmTypes::new(WeightKind::Channel4, DType::I8, DType::F16).unwrap();
        let p = |m| {
            let p = model(132).plan(&GemmSpec::new(types, (8192, 21760)), Arch::Sm90a, m);
            let tile = p.instance.tile();
            (tile.tokens, tile.cluster_split_k, p.stream_k)
        };
        assert_eq!(p(1), (8, 2, false));
        assert_eq!(p(16), (16, 2, false));
        assert_eq!(p(32), (32, 2, false));
        assert_eq!(p(48), (48, 2, false));
        // Within 1% of the fastest: with two warpgroups that take k-tiles in turn, and 128 tokens without split-K.
        assert_eq!(p(64), (64, 2, false));
        assert_eq!(p(128), (128, 2, false));
        assert_eq!(p(256), (256, 2, false));
        assert_eq!(p(512), (256, 1, false));
        assert_eq!(p(4096), (256, 1, false));
        // More tiles than SMs, all at once.
        let p = model(132).plan(&GemmSpec::new(types, (28672, 8192)), Arch::Sm90a, 1);
        assert!(p.paired && p.ctas_per_sm() == 2, "{p:?}");
    }
}
