// What a GEMM by mma.sync is given, how it is cut to size, and where a thread stands in it.
#pragma once

#include "operands.cuh"
#include "schedule.cuh"

struct Sm80Parameters {
    // Tokens, M x K; K is a multiple of 16.
    const uint8* x;
    // Output, M x N half or bfloat16; N is a multiple of 16.
    void* y;
    const uint8* weights;
    // N values.
    const float* channel_scale;
    // M values; for int8 activations.
    const float* token_scale;
    // N values, or null.
    const float* bias;
    // Partial sums of tiles that CTAs share (stream-K): two tiles a CTA. Counters: one a shared tile and warpgroup (of
    // the first split-K group); zero before and after a launch.
    int4* partials;
    uint32* counters;
    int m, n, k;
    Schedule schedule;
};

template <Activations A_, Weights W_, int Group_, int Tokens, int Warpgroups, int RowBlocks, int TokenWarps, int CtaSplitK, int Stages,
          int CtasPerSm, bool Bfloat>
struct Sm80Config {
    static constexpr Activations A = A_;
    static constexpr Weights W = W_;
    using WeightTile = typename Operand<A, W, Group_>::WeightTile;
    using Words = typename Operand<A, W, Group_>::Words;
    static constexpr int kTokens = Tokens, kWarpgroups = Warpgroups, kRowBlocks = RowBlocks, kTokenWarps = TokenWarps;
    static constexpr int kCtaSplitK = CtaSplitK, kStages = Stages;
    static constexpr bool kBfloat = Bfloat;
    static constexpr int kChannels = 64 * RowBlocks * Warpgroups;
    // CTAs on an SM, at least.
    static constexpr int kCtasPerSm = CtasPerSm;
    static constexpr int kGroupThreads = 128 * Warpgroups;
    static constexpr int kThreads = kGroupThreads * CtaSplitK;
    // A warp's tile: kSets times 16 rows, kGroups times 8 tokens.
    static constexpr int kSets = RowBlocks * TokenWarps, kGroups = Tokens / TokenWarps / 8;
    // Shared memory: the stages of each split-K group (tokens, then weights), sums of groups, flags. Rows of tokens are
    // swizzled by their address: those of a stage begin at a multiple of 1,024 bytes.
    static constexpr int kTokenBytes = Tokens * 128;
    static constexpr int kWeightTileBytes = WeightTile::kBytes;
    static constexpr int kGroupBytes = RowBlocks * kWeightTileBytes;
    static constexpr int kWeightBytes = Warpgroups * kGroupBytes;
    static constexpr int kWeightOffset = Stages * kTokenBytes;
    static constexpr int kPipelineAlignment = CtaSplitK > 1 ? 1024 : 16;
    static constexpr int kPipelineBytes = (kWeightOffset + Stages * kWeightBytes + kPipelineAlignment - 1) & -kPipelineAlignment;
    static constexpr int kSumOffset = CtaSplitK * kPipelineBytes;
    static constexpr int kFlagOffset = kSumOffset + (CtaSplitK - 1) * kChannels * Tokens * 4;
    static constexpr int kSharedBytes = kFlagOffset + 16 * Warpgroups;
    static_assert(kSharedBytes <= 227 * 1024 && kThreads <= 1024);
    static_assert(TokenWarps == 1 || TokenWarps == 2 || TokenWarps == 4);
    static_assert(Tokens % (8 * TokenWarps) == 0 && Stages >= 2);
    static_assert(A == kInt8 || Bfloat == (A == kBfloat16), "16-bit activations give outputs of their own type");
    // Named barriers: the split-K groups', then two of each warpgroup.
    static_assert(1 + CtaSplitK + 2 * Warpgroups <= 16);
};

// Where a thread stands: in a split-K group, a warpgroup of it, and a warp of that, which takes part of the rows and of
// the tokens.
template <class C>
struct Sm80Place {
    int k_group, member, warpgroup, thread, lane, row_warp, token_warp;

    QQQ_DEVICE Sm80Place() {
        const int index = ptx::thread_index();
        k_group = C::kCtaSplitK == 1 ? 0 : index / C::kGroupThreads;
        member = index - k_group * C::kGroupThreads;
        warpgroup = member / 128;
        thread = member % 128;
        lane = thread % 32;
        row_warp = thread / 32 / C::kTokenWarps;
        token_warp = thread / 32 % C::kTokenWarps;
    }
};

// What a thread holds of its tile: the four registers of mma.sync for every 16 rows and 8 tokens of its warp's.
template <class C>
using Accumulators = int[C::kSets][C::kGroups][4];
