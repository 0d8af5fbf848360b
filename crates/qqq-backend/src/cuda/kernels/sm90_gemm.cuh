// Y = (X W^T) scaled, on Hopper, by wgmma: int8 activations with 4- or 8-bit weights and int32 sums, or 16-bit
// activations with 4-bit weights and float32 sums.
//
// The operands are swapped: weights are A (64 rows of channels an instruction, from registers, where they are
// dequantized), tokens are B (from shared memory), so that few tokens waste nothing. One warp copies (weights as
// a contiguous stream, tokens through a tensor map), the warpgroups of the others dequantize and multiply;
// each keeps one batch of wgmma in flight while it prepares the operands of the next. Blocks of a cluster share
// their tokens by multicast.
#pragma once

#include "sm90_epilogue.cuh"
#include "wgmma.cuh"

// Copies: one thread of the block.
template <class C>
QQQ_DEVICE void sm90_produce(const GemmParameters& p, uint32 shared, Place place) {
    const uint32 full = shared + C::kBarrierOffset, empty = full + C::kStages * 8;
    const int blocks = (p.n + 63) / 64;
    // Weights are read once unless several token tiles need them.
    const uint64 weight_policy = p.schedule.m_tiles == 1 ? ptx::policy_evict_first() : ptx::policy_evict_normal();
    const uint64 token_policy = ptx::policy_evict_last();
    Segments<C::kRanks> segments(p.schedule, place.cluster, place.clusters, place.rank);
    Segment g{};
    int stage = 0;
    uint32 phase = 0;
    bool waited = false;
    int issued = 0;

    auto chunk = [&](int step, int i) {
        // Past the last channels the last block is read again; nothing of it is stored.
        const int block = min((g.n_tile * C::kCluster + place.neighbour) * (C::kChannels / 64) + i, blocks - 1);
        return p.weights + ((long long)block * p.schedule.k_blocks + step) * C::kChunkBytes;
    };
    auto weights = [&](int step, int at) {
        const uint32 barrier = full + at * 8;
        ptx::barrier_expect(barrier, C::kWeightBytes + C::kTokenBytes);
#pragma unroll
        for (int i = 0; i < C::kWarpgroups * C::kRows; ++i) {
            ptx::bulk_load(shared + C::kWeightOffset + at * C::kWeightBytes + i * C::kChunkBytes, chunk(step, i), C::kChunkBytes,
                           barrier, weight_policy);
        }
    };
    auto tokens = [&](int step, int at) {
        const uint32 barrier = full + at * 8, target = shared + at * C::kTokenBytes;
        const int row = g.m_tile * C::kTokens, column = step * Activation<C::A>::kStepColumns;
        if constexpr (C::kCluster == 1) {
            ptx::tensor_load(target, &p.x, column, row, barrier, token_policy);
        } else {
            constexpr int kPart = C::kTokens / C::kCluster;
            ptx::tensor_load_multicast(target + place.neighbour * kPart * 128, &p.x, column, row + place.neighbour * kPart, barrier,
                                       ((1 << C::kCluster) - 1) << (place.rank * C::kCluster), token_policy);
        }
    };

    while (segments.next(g)) {
        int step = g.first;
        if (!waited) {
            // Weights do not depend on the kernel before this one; everything else may.
            const int ahead = min(C::kStages, g.last - g.first);
            for (int i = 0; i < ahead; ++i) weights(step + i, i);
            for (int i = step + ahead; i < min(g.last, step + ahead + p.schedule.ahead); ++i) {
#pragma unroll
                for (int j = 0; j < C::kWarpgroups * C::kRows; ++j) ptx::bulk_prefetch(chunk(i, j), C::kChunkBytes);
            }
            ptx::grid_dependency_wait();
            for (int i = 0; i < ahead; ++i) tokens(step + i, i);
            step += ahead;
            stage = ahead % C::kStages;
            phase = ahead == C::kStages;
            waited = true;
            issued = ahead;
            if (issued >= p.schedule.trigger) ptx::grid_launch_dependents();
        }
        for (; step < g.last; ++step) {
            ptx::barrier_wait(empty + stage * 8, phase ^ 1);
            weights(step, stage);
            tokens(step, stage);
            if (++stage == C::kStages) stage = 0, phase ^= 1;
            if (++issued == p.schedule.trigger) ptx::grid_launch_dependents();
        }
    }
}

// Dequantizes and multiplies: a warpgroup of a team.
template <class C>
QQQ_DEVICE void sm90_consume(const GemmParameters& p, uint32 shared, const Place& place, int warpgroup, int team, int thread) {
    const uint32 full = shared + C::kBarrierOffset, empty = full + C::kStages * 8;
    Segments<C::kRanks> segments(p.schedule, place.cluster, place.clusters, place.rank);
    Segment g{};
    // Steps are numbered through all stretches; a team takes every kSplits-th of them, so it sees the same stages again.
    int count = 0, stage = team;
    uint32 phase = 0, parity = 0;
    Sums<C> acc;
    uint32 a[2][C::kRows][8];

    // Each warp by itself: that one has read its weights does not say that the others have.
    auto release = [&](int at) {
        __syncwarp();
        const int lane = thread % 32;
        if constexpr (C::kCluster == 1) {
            if (lane == 0) ptx::barrier_arrive(empty + at * 8);
        } else {
            if (lane < C::kCluster) ptx::barrier_arrive_remote(empty + at * 8, place.rank * C::kCluster + lane);
        }
    };

    ptx::grid_dependency_wait();
    while (segments.next(g)) {
        const int begin = C::kSplits == 1 ? 0 : (team + C::kSplits - count % C::kSplits) % C::kSplits;
        const int steps = g.last - g.first;
        int previous = 0;
        for (int step = begin; step < steps; step += C::kSplits) {
            ptx::barrier_wait(full + stage * 8, phase);
            const uint64 tokens = wgmma::descriptor(shared + stage * C::kTokenBytes);
            const uint32 chunks = shared + C::kWeightOffset + stage * C::kWeightBytes + warpgroup * C::kRows * C::kChunkBytes;
            typename C::Words words[C::kRows];
#pragma unroll
            for (int r = 0; r < C::kRows; ++r) load_words(chunks + r * C::kChunkBytes, thread, words[r]);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int r = 0; r < C::kRows; ++r) {
                    dequantize(words[r], half, a[half][r]);
                    // Operands are written before the fence, or the compiler makes its own, and serializes.
                    wgmma::pin(a[half][r]);
                }
                wgmma::fence();
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const int accumulate = j != 0 || half != 0 || step != begin;
#pragma unroll
                    for (int r = 0; r < C::kRows; ++r) {
                        wgmma::mma<C::A, C::kTokens>::run(acc[r], a[half][r][4 * j], a[half][r][4 * j + 1], a[half][r][4 * j + 2],
                                                          a[half][r][4 * j + 3], tokens + 4 * half + 2 * j, accumulate);
                    }
                }
                wgmma::commit();
                // The batch before this one is done: its operands may be overwritten.
                wgmma::wait<1>();
                if (half == 0 && step != begin) release(previous);
            }
            previous = stage;
            stage += C::kSplits;
            if (stage >= C::kStages) stage = team, phase ^= 1;
        }
        wgmma::wait<0>();
#pragma unroll
        for (int r = 0; r < C::kRows; ++r) wgmma::pin(acc[r]);
        if (C::kSplits == 1 || begin < steps) {
            release(previous);
        } else {
            sm90_clear<C>(acc);
        }
        count += steps;
        if constexpr (C::kSplits > 1) sm90_join_teams<C>(acc, shared, warpgroup, team, thread);
        if (team > 0) continue;
        if constexpr (C::kRanks > 1) {
            if (sm90_exchange<C>(acc, shared, place, warpgroup, thread, parity)) {
                sm90_store<C>(p, g, acc, shared, place, warpgroup, thread);
                // The staging tiles have been read: the others may write here again.
                if (thread == 0) {
                    ptx::store_wait_read<0>();
                    for (int other = 0; other < C::kRanks; ++other) {
                        if (other == place.rank) continue;
                        ptx::barrier_arrive_remote(shared + C::kInboundOffset + warpgroup * 16 + 8,
                                                   other * C::kCluster + place.neighbour);
                    }
                }
            }
            parity ^= 1;
            continue;
        }
        const bool whole = g.first == 0 && g.last == p.schedule.k_blocks;
        if (whole || sm90_combine<C>(p, g, acc, shared, place, warpgroup, thread)) {
            sm90_store<C>(p, g, acc, shared, place, warpgroup, thread);
        }
    }
    if (team == 0 && thread == 0) ptx::store_wait_read<0>();
}

template <class C>
QQQ_DEVICE void sm90_gemm(const GemmParameters& p) {
    uint8* const memory = ptx::dynamic_shared();
    const uint32 shared = ptx::shared_address(memory);
    const int inside = C::kBlocksInCluster == 1 ? 0 : (int)ptx::cluster_rank();
    const Place place{(int)blockIdx.x / C::kBlocksInCluster, (int)gridDim.x / C::kBlocksInCluster, inside % C::kCluster,
                      inside / C::kCluster};
    if (threadIdx.x == 0) {
        for (int i = 0; i < C::kStages; ++i) {
            ptx::barrier_init(shared + C::kBarrierOffset + i * 8, 1);
            ptx::barrier_init(shared + C::kBarrierOffset + (C::kStages + i) * 8, C::kWarpgroups * 4 * C::kCluster);
        }
        if constexpr (C::kRanks > 1) {
            for (int i = 0; i < C::kWarpgroups; ++i) {
                ptx::barrier_init(shared + C::kInboundOffset + i * 16, 1);
                // One arrival from every other rank that finishes something.
                ptx::barrier_init(shared + C::kInboundOffset + i * 16 + 8, place.rank < C::kOwners ? max(C::kOwners - 1, 1) : C::kOwners);
            }
        }
        ptx::barrier_init_fence();
        ptx::prefetch_tensor_map(&p.x);
        ptx::prefetch_tensor_map(&p.y);
    }
    if constexpr (C::kBlocksInCluster == 1) {
        __syncthreads();
    } else {
        ptx::cluster_sync();
    }

    if (threadIdx.x >= C::kConsumers) {
        if constexpr (C::kTrade) ptx::registers_lower<56>();
        if (threadIdx.x == C::kConsumers) sm90_produce<C>(p, shared, place);
    } else {
        if constexpr (C::kTrade) ptx::registers_raise<C::kRegisters>();
        const int warpgroup = threadIdx.x / 128;
        sm90_consume<C>(p, shared, place, warpgroup % C::kWarpgroups, warpgroup / C::kWarpgroups, threadIdx.x % 128);
    }
    // A block's shared memory must outlive what others of its cluster send there.
    if constexpr (C::kBlocksInCluster > 1) ptx::cluster_sync();
}
