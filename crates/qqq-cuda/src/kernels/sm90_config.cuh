// What a GEMM by wgmma is given, how it is cut to size, and where a CTA stands in it.
#pragma once

#include "operands.cuh"
#include "schedule.cuh"

struct GemmParameters {
    // Tokens, M x K, box of 128 bytes x `box_tokens`, 128-byte swizzle.
    TensorMap x;
    // Output, M x N, box 64 x kStagingTokens, 128-byte swizzle.
    TensorMap y;
    const uint8* weights;
    // ceil(N / 64) * 64 values.
    const float* channel_scale;
    // M values; for int8 activations.
    const float* token_scale;
    // N values, or null.
    const float* bias;
    // Partial sums of tiles that clusters share (stream-K): two tiles a CTA. Counters: one a shared tile, CTA of a
    // cluster and warpgroup (of the first split-K group); zero before and after a launch.
    int4* partials;
    uint32* counters;
    int m, n;
    // Tokens that a CTA brings of a tile: kTokens / kMulticast, or fewer where there are none to fill a tile. The copy engine
    // takes longer for rows outside than for rows inside (up to 45% of a product).
    int box_tokens;
    // First token of the last tile at most: it begins so early that it is full, and gives some tokens' outputs again.
    int last_token;
    Schedule schedule;
};

template <Activations A_, Weights W_, int Group_, int Tokens, int Warpgroups, int RowBlocks, int CtaSplitK, int Stages, int Multicast,
          int ClusterSplitK, bool Bfloat>
struct Sm90Config {
    static constexpr Activations A = A_;
    static constexpr Weights W = W_;
    using WeightTile = typename Operand<A, W, Group_>::WeightTile;
    using Words = typename Operand<A, W, Group_>::Words;
    // Tile: kTokens x kChannels; a warpgroup has kRowBlocks blocks of 64 channels. kCtaSplitK groups of kWarpgroups
    // take the k-tiles in turn.
    static constexpr int kTokens = Tokens, kWarpgroups = Warpgroups, kRowBlocks = RowBlocks, kStages = Stages, kMulticast = Multicast;
    static constexpr int kCtaSplitK = CtaSplitK;
    // CTAs of a cluster: kMulticast peers along the channels that share tokens, times kClusterSplitK that share a tile
    // and cut it along K. CTA b of a cluster is peer b % kMulticast of part b / kMulticast.
    static constexpr int kClusterSplitK = ClusterSplitK, kCtasInCluster = Multicast * ClusterSplitK;
    // Each CTA that shares a tile finishes a part of its tokens; where they are too few, the first finishes all.
    static constexpr int kOwners = Tokens % (8 * ClusterSplitK) == 0 ? ClusterSplitK : 1;
    static constexpr int kOwnedTokens = Tokens / kOwners;
    // What a warpgroup gets from the other CTAs of its tile.
    static constexpr int kInboundBytes = (ClusterSplitK - 1) * RowBlocks * kOwnedTokens * 64 * 4;
    static constexpr int kChannels = 64 * RowBlocks * Warpgroups;
    static constexpr bool kBfloat = Bfloat;
    // Few tokens leave room for two CTAs on an SM: the next launch can fill its pipeline already. Tiles of 64 channels
    // do so up to 48 tokens, but not in large clusters, which start late then.
    static constexpr int kMostOfTwo = Warpgroups == 1 && CtaSplitK == 2 && ClusterSplitK <= 2 ? 48 : 16;
    static constexpr int kCtasPerSm = Tokens * RowBlocks <= kMostOfTwo && Warpgroups * CtaSplitK <= 2 ? 2 : 1;
    // Registers move from the producers' warpgroup to the math warpgroups.
    static constexpr bool kTrade = (Warpgroups * CtaSplitK == 2 || Warpgroups * CtaSplitK == 3) && kCtasPerSm == 1;
    static constexpr int kProducerRegisters = 56, kMathRegisters = Warpgroups * CtaSplitK == 2 ? 224 : 152;
    static constexpr int kMathThreads = 128 * Warpgroups * CtaSplitK;
    // Arrivals that empty a stage: of every thread that read it, or, where peers write it, of every warp of each of
    // them.
    static constexpr int kReleases = Warpgroups * (Multicast == 1 ? 128 : 4 * Multicast);
    static constexpr int kThreads = kMathThreads + (kTrade ? 128 : 64);
    static constexpr int kStagingTokens = kOwnedTokens <= 64         ? kOwnedTokens
                                          : kOwnedTokens % 64 == 0 ? 64
                                          : kOwnedTokens % 56 == 0 ? 56
                                          : kOwnedTokens % 48 == 0 ? 48
                                          : kOwnedTokens % 40 == 0 ? 40
                                                                   : 16;
    // Eight tokens' sums of a warpgroup's block of 64 channels, as they are exchanged: 16 bytes a thread. Split-K
    // groups of a CTA are added in rounds of kReduceGroups such groups, so that the pipeline keeps its memory.
    static constexpr int kGroups = RowBlocks * Tokens / 8, kGroupBytes = 128 * 16;
    static constexpr int kReduceGroups = kGroups < 8 ? kGroups : 8;
    static constexpr int kReduceBytes = (CtaSplitK - 1) * Warpgroups * kReduceGroups * kGroupBytes;
    // Shared memory.
    static constexpr int kTokenBytes = Tokens * 128;
    static constexpr int kWeightTileBytes = WeightTile::kBytes;
    static constexpr int kWeightBytes = RowBlocks * Warpgroups * kWeightTileBytes;
    static constexpr int kStagingBytes = kStagingTokens * 128;
    // What a warpgroup scales sums by: the tokens' scales, then the channels'.
    static constexpr int kFactorTokens = A == kInt8 ? kOwnedTokens : 0;
    static constexpr int kFactorBytes = (kFactorTokens + RowBlocks * 64) * 4;
    // Barriers, flags and factors.
    static constexpr int kSmallBytes = Stages * 16 + Warpgroups * (24 + kFactorBytes) + 8;
    // A warpgroup's staging tiles: as many as a tile fills, or as there is room for. What comes from other CTAs of the
    // tile lies in the same place before.
    static constexpr int kPieces = RowBlocks * kOwnedTokens / kStagingTokens;
    static constexpr int kRoom = (kCtasPerSm == 2 ? 113 : 227) * 1024 - Stages * (kTokenBytes + kWeightBytes) - kReduceBytes - kSmallBytes;
    static constexpr int kMostBuffers = kRoom / Warpgroups / kStagingBytes;
    static constexpr int kBuffers = kPieces < kMostBuffers ? kPieces : kMostBuffers;
    static constexpr int kWarpgroupBytes = kBuffers * kStagingBytes > kInboundBytes ? kBuffers * kStagingBytes : kInboundBytes;
    static constexpr int kStagingOffset = Stages * kTokenBytes;
    static constexpr int kWeightOffset = kStagingOffset + Warpgroups * kWarpgroupBytes;
    static constexpr int kReduceOffset = kWeightOffset + Stages * kWeightBytes;
    static constexpr int kBarrierOffset = kReduceOffset + kReduceBytes;
    static constexpr int kInboundOffset = kBarrierOffset + Stages * 16;
    static constexpr int kFlagOffset = kInboundOffset + Warpgroups * 16;
    // A barrier that nobody waits for.
    static constexpr int kNobodyOffset = kFlagOffset + Warpgroups * 8;
    static constexpr int kFactorOffset = kNobodyOffset + 8;
    static constexpr int kSharedBytes = kFactorOffset + Warpgroups * kFactorBytes;
    static_assert(kBuffers >= 1 && (kBuffers == kPieces || kBuffers >= 2));
    static_assert(kTokenBytes % 1024 == 0 && kStagingBytes % 1024 == 0 && kWeightTileBytes % 16 == 0 && kBarrierOffset % 8 == 0);
    static_assert(A == kInt8 || Bfloat == (A == kBfloat16), "16-bit activations give outputs of their own type");
    static_assert(kSharedBytes <= 227 * 1024);
    static_assert(Tokens / Multicast % 8 == 0 && Stages % CtaSplitK == 0);
};

// Where a CTA stands.
struct Place {
    int cluster, clusters;
    // Among the multicast peers, and the CTAs that share its tile.
    int peer, k_rank;
};

// The r-th block of 64 channels that a warpgroup has of a tile.
template <class C>
QQQ_DEVICE int channel_block(const WorkUnit& g, const Place& place, int warpgroup, int r) {
    return (g.n_tile * C::kMulticast + place.peer) * (C::kChannels / 64) + warpgroup * C::kRowBlocks + r;
}

// The first token of a work unit's tile.
template <class C>
QQQ_DEVICE int first_token(const GemmParameters& p, const WorkUnit& g) {
    return min(g.m_tile * C::kTokens, p.last_token);
}

// What a thread of a warpgroup holds of its tile: the registers of wgmma for each block of 64 channels.
template <class C>
using Accumulators = int[C::kRowBlocks][C::kTokens / 2];
