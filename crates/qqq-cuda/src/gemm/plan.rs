//! Plans, and which of them runs a product: the cheapest candidate by [`CostModel`].

use super::{Activation, CostModel, GemmSpec, GemmTypes, Instance, SumOrder, instances};
use crate::Arch;

/// An instance of a kernel, and how its CTAs share the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    /// The instance.
    pub instance: Instance,
    /// Stream-K: tiles that do not fill a round are cut along K.
    pub stream_k: bool,
    /// Two CTAs of the launch share an SM, where its memory is enough. Otherwise the other place is left for the next launch.
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

    /// Whether every output's columns are added from the first to the last, as in any other such plan. Sums of int8 are
    /// exact: their order does not matter.
    pub fn is_batch_invariant(&self) -> bool {
        let tile = self.instance.tile();
        tile.types.activation() == Activation::Int8
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

/// The plan for `m` tokens on a device with this many SMs, by the kernels of an architecture.
pub fn plan(spec: &GemmSpec, arch: Arch, sms: usize, m: usize) -> Plan {
    let model = CostModel::new(sms);
    candidates(spec.types, arch, m, spec.order)
        .into_iter()
        .filter(|p| p.instance.tile().takes(spec.k))
        .map(|p| (model.cycles(&p, (m, spec.n, spec.k)), p))
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .expect("there is always the smallest tile")
        .1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{OutputType, WeightKind};

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
                        let p = plan(&GemmSpec { types, order, n, k }, arch, 132, m);
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
        let half = GemmTypes::new(WeightKind::Channel4, Activation::Float16, OutputType::Float16).unwrap();
        let int8 = GemmTypes::new(WeightKind::Channel4, Activation::Int8, OutputType::Float16).unwrap();
        let p = plan(&GemmSpec::new(half, (8192, 21760)), Arch::Sm90a, 132, 1);
        assert!((p.instance.tile().cluster_split_k > 1 || p.stream_k) && !p.is_batch_invariant(), "{p:?}");
        let p = plan(&GemmSpec::new(half, (8192, 21760)), Arch::Sm80, 108, 1);
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
        let types = GemmTypes::new(WeightKind::Channel4, Activation::Int8, OutputType::Float16).unwrap();
        let p = |m| {
            let p = plan(&GemmSpec::new(types, (8192, 21760)), Arch::Sm90a, 132, m);
            let tile = p.instance.tile();
            (tile.tokens, tile.cluster_split_k, p.stream_k)
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
        // More tiles than SMs, all at once.
        let p = plan(&GemmSpec::new(types, (28672, 8192)), Arch::Sm90a, 132, 1);
        assert!(p.paired && p.ctas_per_sm() == 2, "{p:?}");
    }
}
