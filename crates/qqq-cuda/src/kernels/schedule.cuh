// Which part of the output each block (or cluster of blocks) computes.
//
// The output is cut into tiles; a tile takes `k_blocks` steps of 128 bytes of a token's row. Some tiles are given whole, one a
// cluster and round; the rest, fewer than fill a round, are cut along K as well so that all clusters end together
// (stream-K, arXiv 2301.03598): their steps form one line, of which every cluster takes an equal stretch. The host sees
// to it that split_tiles * k_blocks * split_clusters fits in an int.
#pragma once

#include "ptx.cuh"

struct Schedule {
    // Output tiles along the channels and along the tokens.
    int n_tiles, m_tiles;
    // Steps of a tile.
    int k_blocks;
    // Tiles that are cut along K, and the number of clusters that share them; they come first.
    int split_tiles, split_clusters;
    // Channel tiles that are visited together, for the sake of the L2 cache.
    int band;
    // Steps after which a block lets the next launch begin.
    int trigger;
    // Steps whose weights a block brings to the L2 cache while it waits for the launch before.
    int ahead;
};

// A stretch of one tile.
struct Segment {
    int tile, n_tile, m_tile;
    // Steps [first, last) of the tile.
    int first, last;
};

// The stretches of a block. With several ranks, the blocks of a cluster share every tile, each an equal stretch of it.
template <int Ranks>
class Segments {
   public:
    QQQ_DEVICE Segments(const Schedule& schedule, int cluster, int clusters, int rank)
        : s(schedule), clusters(clusters), rank(rank), whole(schedule.split_tiles + cluster) {
        position = split_begin(s, cluster);
        end = cluster < s.split_clusters ? split_begin(s, cluster + 1) : position;
    }

    QQQ_DEVICE bool next(Segment& g) {
        if (position < end) {
            g.tile = position / s.k_blocks;
            g.first = position - g.tile * s.k_blocks;
            const int stretch = end - position;
            g.last = stretch < s.k_blocks - g.first ? g.first + stretch : s.k_blocks;
            position += g.last - g.first;
        } else {
            if (whole >= s.n_tiles * s.m_tiles) return false;
            g.tile = whole;
            g.first = Ranks == 1 ? 0 : s.k_blocks * rank / Ranks;
            g.last = Ranks == 1 ? s.k_blocks : s.k_blocks * (rank + 1) / Ranks;
            whole += clusters;
        }
        // Bands of channel tiles; inside a band, channels vary faster than tokens.
        const int per_band = s.band * s.m_tiles;
        const int start = g.tile / per_band * s.band;
        const int width = min(s.band, s.n_tiles - start);
        const int inside = g.tile % per_band;
        g.n_tile = start + inside % width;
        g.m_tile = inside / width;
        return true;
    }

    // First step of a cluster's stretch.
    QQQ_DEVICE static int split_begin(const Schedule& s, int cluster) {
        return s.split_tiles * s.k_blocks * cluster / max(s.split_clusters, 1);
    }

    // The cluster whose stretch holds a step.
    QQQ_DEVICE static int split_owner(const Schedule& s, int step) {
        return (int)(((step + 1) * s.split_clusters - 1) / (s.split_tiles * s.k_blocks));
    }

   private:
    const Schedule& s;
    int clusters, rank, whole;
    int position, end;
};

// Stretch number i of a cluster, by itself: for kernels that would rather compute it again than hold a Segments.
QQQ_DEVICE bool nth_segment(const Schedule& s, int cluster, int clusters, int i, Segment& g) {
    const int begin = Segments<1>::split_begin(s, cluster);
    const int end = cluster < s.split_clusters ? Segments<1>::split_begin(s, cluster + 1) : begin;
    const int first_tile = begin / s.k_blocks;
    const int parts = end > begin ? (end - 1) / s.k_blocks - first_tile + 1 : 0;
    if (i < parts) {
        g.tile = first_tile + i;
        g.first = max(begin - g.tile * s.k_blocks, 0);
        g.last = min(end - g.tile * s.k_blocks, s.k_blocks);
    } else {
        g.tile = s.split_tiles + cluster + (i - parts) * clusters;
        if (g.tile >= s.n_tiles * s.m_tiles) return false;
        g.first = 0;
        g.last = s.k_blocks;
    }
    const int per_band = s.band * s.m_tiles;
    const int start = g.tile / per_band * s.band;
    const int width = min(s.band, s.n_tiles - start);
    const int inside = g.tile % per_band;
    g.n_tile = start + inside % width;
    g.m_tile = inside / width;
    return true;
}
