//! Plans: an instance of a kernel, and how its CTAs share the work.

use super::{GemmTypes, Instance, Schedule, SumOrder, instances};
use crate::{Arch, DType};

/// An instance of a kernel, and how its CTAs share the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    /// The kernel: types, tile and pipeline.
    pub instance: Instance,
    /// Stream-K: tiles that do not fill a round are cut along K.
    pub stream_k: bool,
    /// Two CTAs of the launch share an SM, where its memory is enough. Otherwise the other place is left for the next
    /// launch.
    pub paired: bool,
}

impl Plan {
    /// Every way in which CTAs of an instance can share the work.
    pub fn all(instance: Instance) -> Vec<Self> {
        let tile = instance.tile();
        let ways = [(false, false), (false, true), (true, false), (true, true)];
        let ways = ways.into_iter().filter(|(stream_k, paired)| {
            (!stream_k || tile.cluster_split_k == 1) && (!paired || tile.fits_twice)
        });
        ways.map(|(stream_k, paired)| Self { instance, stream_k, paired }).collect()
    }

    /// CTAs of one launch on an SM.
    pub fn ctas_per_sm(&self) -> usize {
        self.instance.tile().ctas_per_sm + usize::from(self.paired)
    }

    /// Whether the plan is one of its own for a shape, `m x n x k`, on a GPU of so many SMs: where stream-K has nothing left to cut
    /// along K, it is the plan without.
    pub fn is_distinct(&self, (m, n, k): (usize, usize, usize), sms: usize) -> bool {
        let tile = self.instance.tile();
        let clusters = (sms * self.ctas_per_sm() / tile.ctas_in_cluster()).max(1);
        !self.stream_k || Schedule::new(&tile, (m, n, k), clusters, true).stream_k_tiles > 0
    }

    /// Whether every output's columns are added from the first to the last, as in any other such plan. Sums of int8 are
    /// exact: their order does not matter.
    pub fn is_batch_invariant(&self) -> bool {
        let tile = self.instance.tile();
        tile.types.activation() == DType::I8
            || (tile.cluster_split_k == 1 && tile.cta_split_k == 1 && !self.stream_k)
    }
}

/// The plans that are worth considering for `m` tokens.
pub fn candidates(types: GemmTypes, arch: Arch, m: usize, order: SumOrder) -> Vec<Plan> {
    let mut plans = Vec::new();
    for instance in instances(types, arch) {
        // Tiles much larger than the tokens waste work, much smaller ones read the weights too often.
        let tokens = instance.tile().tokens;
        let fewest = if matches!(instance, Instance::Sm80(_)) { m.min(128) } else { m.min(256).div_ceil(4) };
        if (tokens >= 2 * m && tokens > 8) || tokens < fewest {
            continue;
        }
        plans.extend(Plan::all(instance));
    }
    plans.retain(|p| order == SumOrder::Free || p.is_batch_invariant());
    plans
}
