// Which part of the output each CTA (or cluster of CTAs) computes.
//
// The output is cut into tiles; a tile has `k_tiles` k-tiles of 128 bytes of a token's row. Some tiles are given whole,
// one a cluster and wave; the rest, fewer than fill a wave, are cut along K as well so that all clusters end together
// (stream-K, arXiv 2301.03598): their k-tiles form one line, of which every cluster takes an equal range. The host sees
// to it that stream_k_tiles * k_tiles * stream_k_clusters fits in an int.
#pragma once

#include "ptx.cuh"

struct Schedule {
    // Output tiles along the channels and along the tokens.
    int n_tiles, m_tiles;
    // k-tiles of a tile.
    int k_tiles;
    // Tiles that are cut along K, and the number of clusters that share them; they come first.
    int stream_k_tiles, stream_k_clusters;
    // Channel tiles that are visited together, for the sake of the L2 cache.
    int raster;
    // k-tiles after which a CTA lets the next launch begin.
    int trigger;
    // k-tiles whose weights a CTA brings to the L2 cache while it waits for the launch before.
    int ahead;
};

// A work unit: a k-range of one tile.
struct WorkUnit {
    int tile, n_tile, m_tile;
    // k-tiles [first, last) of the tile.
    int first, last;
};

// The work units of a CTA. With split-K in the cluster, its CTAs share every tile, each an equal k-range of it.
template <int ClusterSplitK>
class WorkUnits {
   public:
    QQQ_DEVICE WorkUnits(const Schedule& schedule, int cluster, int clusters, int k_rank)
        : s(schedule), clusters(clusters), k_rank(k_rank), whole(schedule.stream_k_tiles + cluster) {
        position = stream_k_begin(s, cluster);
        end = cluster < s.stream_k_clusters ? stream_k_begin(s, cluster + 1) : position;
    }

    QQQ_DEVICE bool next(WorkUnit& g) {
        if (position < end) {
            g.tile = position / s.k_tiles;
            g.first = position - g.tile * s.k_tiles;
            const int unit = end - position;
            g.last = unit < s.k_tiles - g.first ? g.first + unit : s.k_tiles;
            position += g.last - g.first;
        } else {
            if (whole >= s.n_tiles * s.m_tiles) return false;
            g.tile = whole;
            g.first = ClusterSplitK == 1 ? 0 : s.k_tiles * k_rank / ClusterSplitK;
            g.last = ClusterSplitK == 1 ? s.k_tiles : s.k_tiles * (k_rank + 1) / ClusterSplitK;
            whole += clusters;
        }
        // Raster groups of channel tiles; inside a group, channels vary faster than tokens.
        const int per_raster = s.raster * s.m_tiles;
        const int start = g.tile / per_raster * s.raster;
        const int width = min(s.raster, s.n_tiles - start);
        const int inside = g.tile % per_raster;
        g.n_tile = start + inside % width;
        g.m_tile = inside / width;
        return true;
    }

    // First k-tile of a cluster's range.
    QQQ_DEVICE static int stream_k_begin(const Schedule& s, int cluster) {
        return s.stream_k_tiles * s.k_tiles * cluster / max(s.stream_k_clusters, 1);
    }

    // The cluster whose range holds a k-tile.
    QQQ_DEVICE static int stream_k_owner(const Schedule& s, int k_tile) {
        return (int)(((k_tile + 1) * s.stream_k_clusters - 1) / (s.stream_k_tiles * s.k_tiles));
    }

   private:
    const Schedule& s;
    int clusters, k_rank, whole;
    int position, end;
};

// Work unit number i of a cluster, by itself: for kernels that would rather compute it again than hold WorkUnits.
QQQ_DEVICE bool nth_work_unit(const Schedule& s, int cluster, int clusters, int i, WorkUnit& g) {
    const int begin = WorkUnits<1>::stream_k_begin(s, cluster);
    const int end = cluster < s.stream_k_clusters ? WorkUnits<1>::stream_k_begin(s, cluster + 1) : begin;
    const int first_tile = begin / s.k_tiles;
    const int parts = end > begin ? (end - 1) / s.k_tiles - first_tile + 1 : 0;
    if (i < parts) {
        g.tile = first_tile + i;
        g.first = max(begin - g.tile * s.k_tiles, 0);
        g.last = min(end - g.tile * s.k_tiles, s.k_tiles);
    } else {
        g.tile = s.stream_k_tiles + cluster + (i - parts) * clusters;
        if (g.tile >= s.n_tiles * s.m_tiles) return false;
        g.first = 0;
        g.last = s.k_tiles;
    }
    const int per_raster = s.raster * s.m_tiles;
    const int start = g.tile / per_raster * s.raster;
    const int width = min(s.raster, s.n_tiles - start);
    const int inside = g.tile % per_raster;
    g.n_tile = start + inside % width;
    g.m_tile = inside / width;
    return true;
}
