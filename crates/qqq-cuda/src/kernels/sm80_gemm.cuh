// Y = (X W^T) scaled, on every GPU since Ampere, by mma.sync: int8 activations with 4- or 8-bit weights and int32 sums,
// or 16-bit activations with 4-bit weights and float32 sums.
//
// As on Hopper the operands are swapped: weights are A (dequantized in registers), tokens are B (from shared memory by
// ldmatrix), so that few tokens waste nothing. Every warp copies and multiplies; cp.async keeps several k-tiles under
// way.
//
// A warpgroup holds kRowBlocks blocks of 64 channels. Its four warps either each take 16 rows of every block and all
// tokens (kTokenWarps == 1: a weight is dequantized once, tokens are read from shared memory four times), or share rows
// and divide the tokens (kTokenWarps == 4: a weight is dequantized four times, tokens are read once), or two and two.
// Shared memory gives 128 bytes a clock and int8 mma.sync eats 2,048 products on A100, so a warp of r rows and t tokens
// keeps the tensor cores busy if r t > 16 (r / 2 + t): 64 x 64 and 32 x 128 do, 16 x 128 does not.
//
// With few tokens the warpgroups form kCtaSplitK groups that take the k-tiles of a tile in turn, each with its own
// stages and barrier, and add up at the end: more bytes under way, and no barrier of the whole CTA.
#pragma once

#include "sm80_epilogue.cuh"

// The k-tiles of a split-K group, in order.
template <class C>
struct Sm80KTiles {
    int unit, k_tile, last, n_tile, m_tile;
    bool more;

    QQQ_DEVICE Sm80KTiles(const Schedule& schedule, int k_group) : unit(-1), k_tile(0), last(0), n_tile(0), m_tile(0), more(true) {
        settle(schedule, k_group);
    }

    QQQ_DEVICE void advance(const Schedule& schedule, int k_group) {
        k_tile += C::kCtaSplitK;
        settle(schedule, k_group);
    }

   private:
    // Moves on to the next work unit that has a k-tile for this group.
    QQQ_DEVICE void settle(const Schedule& schedule, int k_group) {
        while (more && k_tile >= last) {
            WorkUnit g{};
            more = nth_work_unit(schedule, blockIdx.x, gridDim.x, ++unit, g);
            k_tile = g.first + k_group, last = g.last, n_tile = g.n_tile, m_tile = g.m_tile;
        }
    }
};

// Starts the copies of a k-tile to the group's stage number `stage`.
template <class C>
QQQ_DEVICE void sm80_copy(const Sm80Parameters& p, const Sm80Place<C>& place, const Sm80KTiles<C>& at, uint32 memory,
                          uint32 stage) {
    const int last_block = (p.n + 63) / 64 - 1;
    const int first_block = at.n_tile * (C::kChannels / 64) + place.warpgroup * C::kRowBlocks;
    const uint32 weights =
        memory + C::kWeightOffset + stage * C::kWeightBytes + place.warpgroup * C::kGroupBytes + place.thread * 16;
#pragma unroll
    for (int r = 0; r < C::kRowBlocks; ++r) {
        // Past the last channels the last weight tile is read again; nothing of it is stored.
        const long long index = (long long)min(first_block + r, last_block) * p.schedule.k_tiles + at.k_tile;
        const uint8* weight_tile = p.weights + index * C::kWeightTileBytes + place.thread * 16;
#pragma unroll
        for (int i = 0; i < C::kWeightTileBytes; i += 2048) {
            if (i + 2048 <= C::kWeightTileBytes || place.thread * 16 < C::kWeightTileBytes - i) {
                const uint32 target = weights + r * C::kWeightTileBytes + i;
                ptx::copy_async_16(target, weight_tile + i, true);
            }
        }
    }

    constexpr int kPieces = C::kTokens * 8, kPass = C::kGroupThreads / 8;
    const int row = place.member / 8, piece = place.member % 8;
    // Columns are counted in bytes.
    constexpr int kBytes = Activation<C::A>::kBytes;
    const int token = at.m_tile * C::kTokens + row, column = at.k_tile * 128 + piece * 16;
    const uint8* source = p.x + (long long)token * (p.k * kBytes) + column;
    const uint32 target = memory + stage * C::kTokenBytes + row * 128 + ((piece ^ (row & 7)) << 4);
#pragma unroll
    for (int i = 0; i * kPass < C::kTokens; ++i) {
        if ((i + 1) * C::kGroupThreads <= kPieces || place.member + i * C::kGroupThreads < kPieces) {
            const bool valid = token + i * kPass < p.m && column < p.k * kBytes;
            ptx::copy_async_16(target + i * kPass * 128, valid ? source + (long long)(i * kPass) * (p.k * kBytes) : p.x, valid);
        }
    }
}

// A matrix instruction: 32 bytes of rows and tokens.
template <class C>
QQQ_DEVICE void sm80_mma(int (&d)[4], const uint32* a, uint32 b0, uint32 b1) {
    if constexpr (C::A == kInt8) {
        ptx::mma_16x8x32(d, a[0], a[1], a[2], a[3], b0, b1);
    } else {
        ptx::mma_16x8x16<C::A == kBfloat16>(d, a[0], a[1], a[2], a[3], b0, b1);
    }
}

// Multiplies a k-tile: 128 bytes of every token. `weights` are the warpgroup's weight tiles, `thread` that of this lane
// in the first set of rows, and `tokens` the 16 bytes that this lane addresses in the warp's first group of tokens.
template <class C>
QQQ_DEVICE void sm80_multiply(uint32 weights, int thread, uint32 tokens, Accumulators<C>& acc) {
    typename C::Words words[C::kSets];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        uint32 a[C::kSets][8];
#pragma unroll
        for (int s = 0; s < C::kSets; ++s) {
            const uint32 weight_tile = weights + s / C::kTokenWarps * C::kWeightTileBytes;
            load_half_words(weight_tile, thread + s % C::kTokenWarps * 32, half, words[s]);
            dequantize(words[s], half, a[s]);
        }
        const uint32 column = tokens ^ (half * 64);
#pragma unroll
        for (int i = 0; i < C::kGroups; ++i) {
            uint32 b[4];
            ptx::load_matrix_x4(column + i * 1024, b);
#pragma unroll
            for (int j = 0; j < 2; ++j) {
#pragma unroll
                for (int s = 0; s < C::kSets; ++s) sm80_mma<C>(acc[s][i], a[s] + 4 * j, b[2 * j], b[2 * j + 1]);
            }
        }
    }
}

// Brings the first weights to the L2 cache while the launch before this one ends: they do not depend on it.
template <class C>
QQQ_DEVICE void sm80_prefetch(const Sm80Parameters& p, const Sm80Place<C>& place, Sm80KTiles<C> at) {
    const int blocks = (p.n + 63) / 64;
    constexpr int kLines = (C::kWeightTileBytes + 127) / 128, kRowBlocks = C::kWarpgroups * C::kRowBlocks;
    for (int i = 0; i < C::kStages - 1 + p.schedule.ahead / C::kCtaSplitK && at.more; ++i, at.advance(p.schedule, place.k_group)) {
        for (int line = place.member; line < kRowBlocks * kLines; line += C::kGroupThreads) {
            const int block = at.n_tile * kRowBlocks + line / kLines;
            if (block >= blocks) continue;
            const uint8* weight_tile = p.weights + ((long long)block * p.schedule.k_tiles + at.k_tile) * C::kWeightTileBytes;
            ptx::prefetch_l2(weight_tile + min(line % kLines * 128, C::kWeightTileBytes - 16));
        }
    }
}

template <class C>
QQQ_DEVICE void sm80_gemm(const Sm80Parameters& p) {
    uint8* const memory = ptx::dynamic_shared();
    const Sm80Place<C> place;
    const uint32 stages = ptx::shared_address(memory) + place.k_group * C::kPipelineBytes;
    Sm80KTiles<C> ahead(p.schedule, place.k_group);
#if __CUDA_ARCH__ >= 900
    sm80_prefetch<C>(p, place, ahead);
    ptx::grid_dependency_wait();
#endif
    // Every call makes a group, empty or not, so that the groups under way can be counted.
    auto copy = [&](uint32 filling) {
        if (ahead.more) {
            sm80_copy<C>(p, place, ahead, stages, filling);
            ahead.advance(p.schedule, place.k_group);
        }
        ptx::copy_async_commit();
    };
#pragma unroll 1
    for (int i = 0; i < C::kStages - 1; ++i) copy(i);

    // ldmatrix: lanes 8i.. address bytes 16i.. to 16i + 15 of 8 tokens.
    const int first_thread = place.row_warp * C::kTokenWarps * 32 + place.lane;
    const uint32 row = place.token_warp * C::kGroups * 8 + place.lane % 8;
    const uint32 tokens = stages + row * 128 + ((place.lane / 8 ^ place.lane % 8) << 4);
    const uint32 weights = stages + C::kWeightOffset + place.warpgroup * C::kGroupBytes;
    uint32 reading = 0;
    [[maybe_unused]] int k_tiles = 0;
#pragma unroll 1
    for (int unit = 0;; ++unit) {
        int k_tile, last;
        {
            WorkUnit g{};
            if (!nth_work_unit(p.schedule, blockIdx.x, gridDim.x, unit, g)) break;
            k_tile = g.first + place.k_group, last = g.last;
        }
        Accumulators<C> acc;
        sm80_clear<C>(acc);
#pragma unroll 1
        for (; k_tile < last; k_tile += C::kCtaSplitK) {
            ptx::copy_async_wait<C::kStages - 2>();
            // Everyone's copies of this stage have come, and everyone has read the stage that is filled next.
            ptx::named_barrier(1 + place.k_group, C::kGroupThreads);
            copy(reading == 0 ? C::kStages - 1 : reading - 1);
            sm80_multiply<C>(weights + reading * C::kWeightBytes, first_thread, tokens + reading * C::kTokenBytes, acc);
            reading = reading + 1 == C::kStages ? 0 : reading + 1;
#if __CUDA_ARCH__ >= 900
            if (++k_tiles == max(1, p.schedule.trigger / C::kCtaSplitK)) ptx::grid_launch_dependents();
#endif
        }
        // Where the thread and the tile are is computed again: the registers were better used.
        const Sm80Place<C> here;
        if constexpr (C::kCtaSplitK > 1) {
            sm80_reduce_cta<C>(here, acc, memory);
            if (here.k_group > 0) continue;
        }
        WorkUnit g{};
        nth_work_unit(p.schedule, blockIdx.x, gridDim.x, ptx::opaque(unit), g);
        const bool whole = g.first == 0 && g.last == p.schedule.k_tiles;
        if (whole || sm80_reduce_global<C>(p, here, g, acc, memory)) sm80_store<C>(p, here, g, acc);
    }
    ptx::copy_async_wait<0>();
}
