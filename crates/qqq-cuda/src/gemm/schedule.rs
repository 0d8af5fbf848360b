//! Which part of the output each cluster of CTAs computes; `schedule.cuh` walks it.

use super::Tile;

/// The kernel's `Schedule`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Schedule {
    /// Tiles along the output channels (of all CTAs of a cluster together).
    pub n_tiles: i32,
    /// Tiles along the tokens.
    pub m_tiles: i32,
    /// k-tiles: 128 bytes of each token's row.
    pub k_tiles: i32,
    /// Tiles that are cut along K; they come first.
    pub stream_k_tiles: i32,
    /// Clusters that share them.
    pub stream_k_clusters: i32,
    /// Channel tiles that are visited together.
    pub raster: i32,
    /// k-tiles after which a CTA lets the next launch begin.
    pub trigger: i32,
    /// k-tiles whose weights a CTA brings to the L2 cache while it waits for the launch before.
    pub ahead: i32,
}

/// Output channels that are visited together, about: of the rectangles that all SMs work on at once, tiles of 128
/// channels x 256 tokens, the one of about this width reads least (half a byte a channel, one a token).
const RASTER_CHANNELS: usize = 3072;
/// Input channels to bring to the L2 cache ahead, where two launches share an SM.
const AHEAD: usize = 2048;

impl Schedule {
    /// The schedule of `m x n x k` on `clusters` clusters; with `stream_k`, tiles are cut along K so that all clusters
    /// end together. Where there are more tiles than clusters this is done for few tokens only: CTAs at different
    /// places along K read different tokens at the same time, which costs more than an idle part of a round.
    pub fn new(tile: &Tile, (m, n, k): (usize, usize, usize), clusters: usize, stream_k: bool) -> Self {
        let n_tiles = n.div_ceil(tile.channels);
        let m_tiles = m.div_ceil(tile.tokens);
        let k_tiles = tile.k_tiles(k);
        let tiles = n_tiles * m_tiles;
        let (mut stream_k_tiles, mut stream_k_clusters) = (0, 0);
        // The kernel counts in 32 bits.
        let countable = tiles * k_tiles * (clusters + 1) <= i32::MAX as usize;
        if stream_k
            && countable
            && tile.cluster_split_k == 1
            && (tiles < clusters || (m_tiles == 1 && tile.tokens <= 64))
        {
            stream_k_tiles = tiles;
            // At least four steps for each.
            stream_k_clusters = clusters.min(tiles * k_tiles / 4);
            // Equal parts of a tile for everybody save a CTA an exchange; worth up to a tenth of the clusters.
            let even = stream_k_clusters / tiles * tiles;
            if even * 10 >= stream_k_clusters * 9 {
                stream_k_clusters = even;
            }
            if tiles.is_multiple_of(stream_k_clusters.max(1)) {
                (stream_k_tiles, stream_k_clusters) = (0, 0);
            }
        }
        let steps =
            (tiles * k_tiles).div_ceil(clusters.min(tiles.max(stream_k_clusters)) * tile.cluster_split_k);
        let groups = n_tiles.div_ceil((RASTER_CHANNELS / tile.channels).max(1));
        // Two launches fit on an SM where tiles are small: the next begins late enough to fill the pause at this
        // one's end. Otherwise it waits for the SM anyway.
        let overlap = tile.fits_twice;
        Self {
            n_tiles: n_tiles as i32,
            m_tiles: m_tiles as i32,
            k_tiles: k_tiles as i32,
            stream_k_tiles: stream_k_tiles as i32,
            stream_k_clusters: stream_k_clusters as i32,
            raster: n_tiles.div_ceil(groups) as i32,
            trigger: if overlap { (steps * 7 / 10).max(1) as i32 } else { 1 },
            ahead: if overlap { tile.k_tiles(AHEAD) as i32 } else { 0 },
        }
    }

    /// Tiles of the output.
    pub fn tiles(&self) -> usize {
        (self.n_tiles * self.m_tiles) as usize
    }

    /// Clusters that have work.
    pub fn clusters(&self, available: usize) -> usize {
        let whole = self.tiles() - self.stream_k_tiles as usize;
        whole.max(self.stream_k_clusters as usize).min(available)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::gemm::{GemmTypes, Sm90Config, WeightKind};

    fn tile(tokens: usize, cluster_split_k: usize) -> Tile {
        let config = Sm90Config {
            types: GemmTypes::new(WeightKind::Channel4, DType::I8, DType::F16).unwrap(),
            tokens,
            warpgroups: 2,
            row_blocks: 1,
            cta_split_k: 1,
            stages: 4,
            multicast: 1,
            cluster_split_k,
        };
        config.tile()
    }

    /// What `Segments` in `schedule.cuh` gives a cluster: (tile, first step, last step).
    fn segments(s: &Schedule, cluster: i32, clusters: i32) -> Vec<(i32, i32, i32)> {
        let begin = |c: i32| s.stream_k_tiles * s.k_tiles * c / s.stream_k_clusters.max(1);
        let mut out = Vec::new();
        if cluster < s.stream_k_clusters {
            let (mut at, end) = (begin(cluster), begin(cluster + 1));
            while at < end {
                let (tile, first) = (at / s.k_tiles, at % s.k_tiles);
                let last = s.k_tiles.min(first + end - at);
                out.push((tile, first, last));
                at += last - first;
            }
        }
        let mut whole = s.stream_k_tiles + cluster;
        while whole < s.n_tiles * s.m_tiles {
            out.push((whole, 0, s.k_tiles));
            whole += clusters;
        }
        out
    }

    #[test]
    fn every_step_of_every_tile_is_done_once() {
        for (m, n, k) in
            [(1, 8192, 21760), (300, 4096, 11008), (4097, 1280, 8192), (65536, 6144, 4096), (7, 16, 16)]
        {
            for tokens in [8, 128, 256] {
                for split in [false, true] {
                    let tile = tile(tokens, 1);
                    let s = Schedule::new(&tile, (m, n, k), 132, split);
                    let clusters = s.clusters(132);
                    assert!(s.stream_k_clusters as usize <= clusters && clusters >= 1, "{s:?}");
                    assert!(
                        i64::from(s.stream_k_tiles) * i64::from(s.k_tiles) * 133 < i64::from(i32::MAX),
                        "{s:?}"
                    );
                    let mut steps = vec![0; s.tiles() * s.k_tiles as usize];
                    for cluster in 0..clusters as i32 {
                        let mut partial = 0;
                        for (tile, first, last) in segments(&s, cluster, clusters as i32) {
                            assert!(first < last, "an empty work unit: {s:?}");
                            partial += i32::from(first > 0 || last < s.k_tiles);
                            for step in first..last {
                                steps[(tile * s.k_tiles + step) as usize] += 1;
                            }
                        }
                        assert!(partial <= 2, "more partial sums than places: {s:?}");
                    }
                    assert!(steps.iter().all(|n| *n == 1), "{m} {n} {k} {tokens} {split} {s:?}");
                }
            }
        }
    }

    #[test]
    fn a_tile_is_cut_into_equal_parts_where_that_is_nearly_all_clusters() {
        let s = Schedule::new(&tile(128, 1), (128, 8192, 21760), 132, true);
        assert_eq!((s.stream_k_tiles, s.stream_k_clusters), (64, 128));
        let s = Schedule::new(&tile(256, 1), (4096, 8192, 21760), 132, false);
        assert_eq!((s.stream_k_tiles, s.tiles()), (0, 1024));
    }
}
