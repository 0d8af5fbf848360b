// What a GEMM by wgmma is given, how it is cut to size, and where a block stands in it.
#pragma once

#include "operands.cuh"
#include "schedule.cuh"

struct GemmParameters {
    // Tokens, M x K, box of 128 bytes x (kTokens / kCluster), 128-byte swizzle.
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
    // Partial sums of split tiles: two tiles a block. Counters: one a split tile, block of a cluster and warpgroup
    // (of the first team); zero before and after a launch.
    int4* partials;
    uint32* counters;
    int m, n;
    Schedule schedule;
};

template <Activations A_, Weights W_, int Group_, int Tokens, int Warpgroups, int Rows, int Splits, int Stages, int Cluster,
          int Ranks, bool Bfloat>
struct Sm90Config {
    static constexpr Activations A = A_;
    static constexpr Weights W = W_;
    using Chunk = typename Operand<A, W, Group_>::Chunk;
    using Words = typename Operand<A, W, Group_>::Words;
    // Tile: kTokens x kChannels; a warpgroup has kRows blocks of 64 channels. kSplits teams of kWarpgroups take the
    // steps in turn.
    static constexpr int kTokens = Tokens, kWarpgroups = Warpgroups, kRows = Rows, kStages = Stages, kCluster = Cluster;
    static constexpr int kSplits = Splits;
    // Blocks of a cluster: kCluster neighbours along the channels that share tokens, times kRanks that share a tile and
    // cut it along K. Block b of a cluster is neighbour b % kCluster of rank b / kCluster.
    static constexpr int kRanks = Ranks, kBlocksInCluster = Cluster * Ranks;
    // Each rank finishes a part of the tile's tokens; where they are too few, the first finishes all.
    static constexpr int kOwners = Tokens % (8 * Ranks) == 0 ? Ranks : 1;
    static constexpr int kOwnedTokens = Tokens / kOwners;
    // What a warpgroup gets from the other ranks.
    static constexpr int kInboundBytes = (Ranks - 1) * Rows * kOwnedTokens * 64 * 4;
    static constexpr int kChannels = 64 * Rows * Warpgroups;
    static constexpr bool kBfloat = Bfloat;
    // Few tokens leave room for two blocks on a multiprocessor: the next launch can fill its pipeline already. Tiles of 64 channels do
    // so up to 48 tokens, but not in large clusters, which start late then.
    static constexpr int kMostOfTwo = Warpgroups == 1 && Splits == 2 && Ranks <= 2 ? 48 : 16;
    static constexpr int kBlocks = Tokens * Rows <= kMostOfTwo && Warpgroups * Splits <= 2 ? 2 : 1;
    // Registers move from the copying warpgroup to the others.
    static constexpr bool kTrade = Warpgroups * Splits == 2 && kBlocks == 1;
    static constexpr int kCopyRegisters = 56, kRegisters = 224;
    static constexpr int kConsumers = 128 * Warpgroups * Splits;
    // Arrivals that empty a stage: of every thread that read it, or, where neighbours write it, of every warp of each of them.
    static constexpr int kReleases = Warpgroups * (Cluster == 1 ? 128 : 4 * Cluster);
    static constexpr int kThreads = kConsumers + (kTrade ? 128 : 64);
    static constexpr int kStagingTokens = kOwnedTokens <= 64         ? kOwnedTokens
                                          : kOwnedTokens % 64 == 0 ? 64
                                          : kOwnedTokens % 56 == 0 ? 56
                                          : kOwnedTokens % 48 == 0 ? 48
                                          : kOwnedTokens % 40 == 0 ? 40
                                                                   : 16;
    // Eight tokens' sums of a warpgroup's block of 64 channels, as they are exchanged: 16 bytes a thread. Teams are joined in rounds of
    // kJoinGroups such groups, so that the pipeline keeps its memory.
    static constexpr int kGroups = Rows * Tokens / 8, kGroupBytes = 128 * 16;
    static constexpr int kJoinGroups = kGroups < 8 ? kGroups : 8;
    static constexpr int kTeamBytes = (Splits - 1) * Warpgroups * kJoinGroups * kGroupBytes;
    // Shared memory.
    static constexpr int kTokenBytes = Tokens * 128;
    static constexpr int kChunkBytes = Chunk::kBytes;
    static constexpr int kWeightBytes = Rows * Warpgroups * kChunkBytes;
    static constexpr int kStagingBytes = kStagingTokens * 128;
    // What a warpgroup scales sums by: the tokens' scales, then the channels'.
    static constexpr int kFactorTokens = A == kInt8 ? kOwnedTokens : 0;
    static constexpr int kFactorBytes = (kFactorTokens + Rows * 64) * 4;
    // Barriers, flags and factors.
    static constexpr int kSmallBytes = Stages * 16 + Warpgroups * (24 + kFactorBytes) + 8;
    // A warpgroup's staging tiles: as many as a tile fills, or as there is room for. What comes from other ranks lies in the same
    // place before.
    static constexpr int kPieces = Rows * kOwnedTokens / kStagingTokens;
    static constexpr int kRoom = (kBlocks == 2 ? 113 : 227) * 1024 - Stages * (kTokenBytes + kWeightBytes) - kTeamBytes - kSmallBytes;
    static constexpr int kMostBuffers = kRoom / Warpgroups / kStagingBytes;
    static constexpr int kBuffers = kPieces < kMostBuffers ? kPieces : kMostBuffers;
    static constexpr int kWarpgroupBytes = kBuffers * kStagingBytes > kInboundBytes ? kBuffers * kStagingBytes : kInboundBytes;
    static constexpr int kStagingOffset = Stages * kTokenBytes;
    static constexpr int kWeightOffset = kStagingOffset + Warpgroups * kWarpgroupBytes;
    static constexpr int kTeamOffset = kWeightOffset + Stages * kWeightBytes;
    static constexpr int kBarrierOffset = kTeamOffset + kTeamBytes;
    static constexpr int kInboundOffset = kBarrierOffset + Stages * 16;
    static constexpr int kFlagOffset = kInboundOffset + Warpgroups * 16;
    // A barrier that nobody waits for.
    static constexpr int kNobodyOffset = kFlagOffset + Warpgroups * 8;
    static constexpr int kFactorOffset = kNobodyOffset + 8;
    static constexpr int kSharedBytes = kFactorOffset + Warpgroups * kFactorBytes;
    static_assert(kBuffers >= 1 && (kBuffers == kPieces || kBuffers >= 2));
    static_assert(kTokenBytes % 1024 == 0 && kStagingBytes % 1024 == 0 && kChunkBytes % 16 == 0 && kBarrierOffset % 8 == 0);
    static_assert(A == kInt8 || Bfloat == (A == kBfloat16), "16-bit activations give outputs of their own type");
    static_assert(kSharedBytes <= 227 * 1024);
    static_assert(Tokens / Cluster % 8 == 0 && Stages % Splits == 0);
};

// Where a block stands.
struct Place {
    int cluster, clusters;
    // Among the neighbours and the ranks of its cluster.
    int neighbour, rank;
};

// The r-th block of 64 channels that a warpgroup has of a tile.
template <class C>
QQQ_DEVICE int channel_block(const Segment& g, const Place& place, int warpgroup, int r) {
    return (g.n_tile * C::kCluster + place.neighbour) * (C::kChannels / 64) + warpgroup * C::kRows + r;
}

// What a thread of a warpgroup holds of its tile: the registers of wgmma for each block of 64 channels.
template <class C>
using Sums = int[C::kRows][C::kTokens / 2];
