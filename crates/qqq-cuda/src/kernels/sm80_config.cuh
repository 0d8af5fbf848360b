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
    // Partial sums of split tiles: two tiles a block. Counters: one a split tile and warpgroup (of the first
    // team); zero before and after a launch.
    int4* partials;
    uint32* counters;
    int m, n, k;
    Schedule schedule;
};

template <Activations A_, Weights W_, int Group_, int Tokens, int Warpgroups, int Rows, int TokenWarps, int Splits, int Stages,
          int Blocks, bool Bfloat>
struct Sm80Config {
    static constexpr Activations A = A_;
    static constexpr Weights W = W_;
    using Chunk = typename Operand<A, W, Group_>::Chunk;
    using Words = typename Operand<A, W, Group_>::Words;
    static constexpr int kTokens = Tokens, kWarpgroups = Warpgroups, kRows = Rows, kTokenWarps = TokenWarps;
    static constexpr int kSplits = Splits, kStages = Stages;
    static constexpr bool kBfloat = Bfloat;
    static constexpr int kChannels = 64 * Rows * Warpgroups;
    // Blocks on a multiprocessor, at least.
    static constexpr int kBlocks = Blocks;
    static constexpr int kTeamThreads = 128 * Warpgroups;
    static constexpr int kThreads = kTeamThreads * Splits;
    // A warp's tile: kSets times 16 rows, kGroups times 8 tokens.
    static constexpr int kSets = Rows * TokenWarps, kGroups = Tokens / TokenWarps / 8;
    // Shared memory: the stages of each team (tokens, then weights), sums of teams, flags. Rows of tokens are swizzled by
    // their address: those of a stage begin at a multiple of 1,024 bytes.
    static constexpr int kTokenBytes = Tokens * 128;
    static constexpr int kChunkBytes = Chunk::kBytes;
    static constexpr int kGroupBytes = Rows * kChunkBytes;
    static constexpr int kWeightBytes = Warpgroups * kGroupBytes;
    static constexpr int kWeightOffset = Stages * kTokenBytes;
    static constexpr int kTeamAlignment = Splits > 1 ? 1024 : 16;
    static constexpr int kTeamBytes = (kWeightOffset + Stages * kWeightBytes + kTeamAlignment - 1) & -kTeamAlignment;
    static constexpr int kSumOffset = Splits * kTeamBytes;
    static constexpr int kFlagOffset = kSumOffset + (Splits - 1) * kChannels * Tokens * 4;
    static constexpr int kSharedBytes = kFlagOffset + 16 * Warpgroups;
    static_assert(kSharedBytes <= 227 * 1024 && kThreads <= 1024);
    static_assert(TokenWarps == 1 || TokenWarps == 2 || TokenWarps == 4);
    static_assert(Tokens % (8 * TokenWarps) == 0 && Stages >= 2);
    static_assert(A == kInt8 || Bfloat == (A == kBfloat16), "16-bit activations give outputs of their own type");
    // Named barriers: the teams', then two of each warpgroup.
    static_assert(1 + Splits + 2 * Warpgroups <= 16);
};

// Where a thread stands: in a team, a warpgroup of it, and a warp of that, which takes part of the rows and of the tokens.
template <class C>
struct Sm80Place {
    int team, member, warpgroup, thread, lane, row_warp, token_warp;

    QQQ_DEVICE Sm80Place() {
        const int index = ptx::thread_index();
        team = C::kSplits == 1 ? 0 : index / C::kTeamThreads;
        member = index - team * C::kTeamThreads;
        warpgroup = member / 128;
        thread = member % 128;
        lane = thread % 32;
        row_warp = thread / 32 / C::kTokenWarps;
        token_warp = thread / 32 % C::kTokenWarps;
    }
};

// What a thread holds of its tile: the four registers of mma.sync for every 16 rows and 8 tokens of its warp's.
template <class C>
using Sums = int[C::kSets][C::kGroups][4];
