//! A model of the time that a plan takes, in clock cycles of an SM. It says which plan is faster, not how long it takes.
//!
//! A product takes the longer of two things: to bring its bytes from memory, and the k-tiles that the busiest CTA has. Then
//! come the parts that nothing hides: the launch, the end of a tile, and sums of partial results.
//!
//! The constants were fitted to measurements of int8 activations on an H100: nine shapes, 1 to 8,192 tokens, every plan, and
//! weights per channel and in groups of 128. The plans chosen by them took 0.5% longer than the fastest ones on average, 11% at
//! most (docs/benchmarks.md).

use super::{Activation, Instance, Plan, Schedule, Sm80Config, Sm90Config, Tile, WeightKind};

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

/// The kernel for Hopper.
struct Sm90Costs {
    /// Bytes a cycle that memory gives all SMs.
    memory_bytes_per_cycle: f64,
    /// Bytes a cycle that an SM gets from L2.
    l2_bytes_per_cycle: f64,
    /// Part of the SMs, as (numerator, denominator), that clusters of more than two CTAs can fill: a cluster lies in one
    /// group of SMs, and groups are of different sizes.
    filled_by_clusters: (usize, usize),
    /// Fewest tokens that a wgmma instruction takes as long for: its cycles are half its tokens, at least these.
    least_multiply_cycles: f64,
    /// Int8 activations.
    dequantize8: Dequantize,
    /// 16-bit ones, whose k-tile has half the columns: what a step waits for is the same.
    dequantize16: Dequantize,
    /// A single warpgroup has the SM's instruction slots for itself: its part of the cycles to dequantize.
    alone: f64,
    /// Two CTAs on an SM dequantize this power of two slower.
    paired_exponent: f64,
    /// CTAs that share tokens by multicast wait for each other.
    multicast_factor: f64,
    /// Part of the shorter of multiplying and dequantizing that the longer does not hide.
    unhidden: f64,
    /// A launch, and one with two CTAs an SM.
    launch_cycles: f64,
    paired_launch_cycles: f64,
    /// The end of a tile, for each 64 channels of a warpgroup.
    epilogue: PerTile,
    /// Adding partial sums through the shared memory of a cluster.
    cluster_reduction: PerTile,
    /// Adding partial sums through global memory.
    global_reduction_cycles: f64,
}

const SM90: Sm90Costs = Sm90Costs {
    memory_bytes_per_cycle: 2650.0,
    l2_bytes_per_cycle: 58.0,
    filled_by_clusters: (9, 10),
    least_multiply_cycles: 16.0,
    dequantize8: Dequantize { channel: 420.0, group_integer: 496.0, group_half: 560.0 },
    // Integer scales become 16-bit ones.
    dequantize16: Dequantize { channel: 350.0, group_integer: 400.0, group_half: 400.0 },
    alone: 0.7,
    paired_exponent: 0.56,
    multicast_factor: 1.064,
    unhidden: 0.15,
    launch_cycles: 6060.0,
    paired_launch_cycles: 5860.0,
    epilogue: PerTile { fixed: 70.0, each: 4.6 },
    cluster_reduction: PerTile { fixed: 1710.0, each: 17.0 },
    global_reduction_cycles: 11500.0,
};

/// The kernel for every GPU since Ampere, measured as far as it runs on an H100. It has few instances: the tile that wastes
/// least, with split-K where that fills the device.
struct Sm80Costs {
    /// Bytes a cycle that memory gives all SMs.
    memory_bytes_per_cycle: f64,
    /// What a k-tile takes at least. That split-K inside a CTA, or two CTAs on an SM, hide a part of each other's latency is
    /// in these figures.
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

    /// Estimated clock cycles of a plan for `m x n x k`.
    pub fn cycles(&self, plan: &Plan, shape: (usize, usize, usize)) -> f64 {
        match &plan.instance {
            Instance::Sm90(c) => self.sm90(plan, c, shape),
            Instance::Sm80(c) => self.sm80(plan, c, shape),
        }
    }

    fn sm90(&self, plan: &Plan, c: &Sm90Config, (m, n, k): (usize, usize, usize)) -> f64 {
        let tile = c.tile();
        let clusters = self.clusters_at_once(tile.ctas_in_cluster(), plan.ctas_per_sm());
        let s = Schedule::new(&tile, (m, n, k), clusters, plan.stream_k);
        let work = Work::new(&s, clusters);
        let ctas = s.clusters(clusters) * tile.ctas_in_cluster();
        // Two CTAs share what an SM multiplies and gets from L2.
        let sharing = if ctas > self.sms { 2.0 } else { 1.0 };

        // A k-tile: multiplying, bringing the operands from L2, and dequantizing; with split-K, warpgroups take turns in that.
        let tokens = c.tokens as f64;
        let row_blocks = c.row_blocks * c.warpgroups;
        let multiply =
            (row_blocks * 4) as f64 * (tokens / 2.0 + 0.5).max(SM90.least_multiply_cycles) * sharing;
        let bytes = c.tokens * 128 / c.multicast + row_blocks * c.types.chunk_bytes();
        let int8 = c.types.activation() == Activation::Int8;
        let dequantize = if int8 { &SM90.dequantize8 } else { &SM90.dequantize16 };
        let alone = if c.warpgroups * c.cta_split_k == 1 { SM90.alone } else { 1.0 };
        let dequantize = dequantize.cycles(c.types.weights()) * alone / c.cta_split_k as f64
            * f64::powf(sharing, SM90.paired_exponent);
        let multicast = if c.multicast > 1 { SM90.multicast_factor } else { 1.0 };
        let longest = multiply.max(bytes as f64 / SM90.l2_bytes_per_cycle * sharing).max(dequantize);
        let k_tile = (longest + SM90.unhidden * multiply.min(dequantize)) * multicast;
        let k_tiles = work.rounds * work.k_tiles.div_ceil(c.cluster_split_k) + work.shared;

        // Weights once, tokens and outputs once.
        let bytes = weight_bytes(&tile, n, k) + m * k * c.types.activation().bytes() + 2 * m * n;
        let memory = bytes as f64 / SM90.memory_bytes_per_cycle;

        let tiles_each = (work.rounds + usize::from(work.shared > 0)) as f64;
        // SMs that are left over let the next launch begin.
        let busy = (ctas as f64 / self.sms as f64).min(1.0);
        let launch = if plan.paired { SM90.paired_launch_cycles } else { SM90.launch_cycles };
        let mut overhead = launch * busy;
        overhead += tiles_each * c.row_blocks as f64 * SM90.epilogue.cycles(tokens);
        if c.cluster_split_k > 1 {
            // Of two CTAs one multiplies while the other exchanges; only the last exchange is seen. Up to 16 tokens there is
            // too little to multiply for that.
            let seen = if plan.paired && c.tokens > 16 { 1 } else { work.rounds };
            overhead += seen as f64 * SM90.cluster_reduction.cycles(tokens);
        }
        if work.shared > 0 {
            overhead += SM90.global_reduction_cycles;
        }
        memory.max(k_tiles as f64 * k_tile) + overhead
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
    fn clusters_at_once(&self, ctas_in_cluster: usize, ctas_per_sm: usize) -> usize {
        let (numerator, denominator) = SM90.filled_by_clusters;
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
        let (k_tiles, split_tiles) = (s.k_blocks as usize, s.split_tiles as usize);
        Self {
            k_tiles,
            rounds: (s.tiles() - split_tiles).div_ceil(clusters),
            shared: (split_tiles * k_tiles).div_ceil((s.split_clusters as usize).max(1)),
        }
    }
}

/// Bytes of the prepacked weights.
fn weight_bytes(tile: &Tile, n: usize, k: usize) -> usize {
    n.div_ceil(64) * tile.k_tiles(k) * tile.types.chunk_bytes()
}
