// Y = (X W^T) scaled, on Hopper, by wgmma: int8 activations with 4- or 8-bit weights and int32 sums, or 16-bit
// activations with 4-bit weights and float32 sums.
//
// The operands are swapped: weights are A (64 rows of channels an instruction, from registers, where they are
// dequantized), tokens are B (from shared memory), so that few tokens waste nothing. Two warps copy (one weights, as
// a contiguous stream, one tokens, through a tensor map), the warpgroups of the others dequantize and multiply;
// each keeps one batch of wgmma in flight while it prepares the operands of the next. Blocks of a cluster share
// their tokens by multicast.
#pragma once

#include "sm90_epilogue.cuh"
#include "wgmma.cuh"

// Two warps copy, each its own operand, step by step in the order in which they are multiplied. All lanes walk, so that the compiler
// knows addresses to be the same in all of them; one issues. Each arrives at a stage's full barrier with its bytes.

// Where a copying warp stands in the pipeline.
template <class C>
struct CopyStage {
    int stage = 0;
    uint32 phase = 1;
    uint32 full, empty;

    QQQ_DEVICE explicit CopyStage(uint32 shared)
        : full(shared + C::kBarrierOffset), empty(shared + C::kBarrierOffset + C::kStages * 8) {}
    // The full barrier of the stage.
    QQQ_DEVICE uint32 barrier() const { return full + stage * 8; }
    // Until the stage is empty. All lanes know before one issues: a late one might miss the barrier's next phase, and wait for ever.
    QQQ_DEVICE void wait() const {
        ptx::barrier_wait(empty + stage * 8, phase);
        __syncwarp();
    }
    QQQ_DEVICE void next() {
        if (++stage == C::kStages) stage = 0, phase ^= 1;
    }
};

template <class C>
QQQ_DEVICE void sm90_copy_weights(const GemmParameters& p, uint32 shared, const Place& place) {
    constexpr int kChunks = C::kWarpgroups * C::kRows;
    const int blocks = (p.n + 63) / 64;
    // Weights are read once unless several token tiles need them.
    const uint64 policy = p.schedule.m_tiles == 1 ? ptx::policy_evict_first() : ptx::policy_evict_normal();
    const bool leader = ptx::elect_one();
    Segments<C::kRanks> segments(p.schedule, place.cluster, place.clusters, place.rank);
    Segment g{};
    CopyStage<C> at(shared);
    int issued = 0;
    while (segments.next(g)) {
        const uint8* chunks[kChunks];
#pragma unroll
        for (int i = 0; i < kChunks; ++i) {
            // Past the last channels the last block is read again; nothing of it is stored.
            const int block = min((g.n_tile * C::kCluster + place.neighbour) * kChunks + i, blocks - 1);
            chunks[i] = p.weights + ((long long)block * p.schedule.k_blocks + g.first) * C::kChunkBytes;
        }
        for (int step = g.first; step < g.last; ++step) {
            at.wait();
            if (leader) {
                ptx::barrier_expect(at.barrier(), C::kWeightBytes);
#pragma unroll
                for (int i = 0; i < kChunks; ++i) {
                    ptx::bulk_load(shared + C::kWeightOffset + at.stage * C::kWeightBytes + i * C::kChunkBytes, chunks[i],
                                   C::kChunkBytes, at.barrier(), policy);
                }
            }
            at.next();
#pragma unroll
            for (int i = 0; i < kChunks; ++i) chunks[i] += C::kChunkBytes;
            // Weights do not depend on the kernel before this one, for which all else waits: meanwhile more of them come to L2.
            if (++issued == C::kStages && leader) {
                for (int i = 0; i < min(g.last - step - 1, p.schedule.ahead); ++i) {
#pragma unroll
                    for (int j = 0; j < kChunks; ++j) ptx::bulk_prefetch(chunks[j] + i * C::kChunkBytes, C::kChunkBytes);
                }
            }
        }
    }
}

template <class C>
QQQ_DEVICE void sm90_copy_tokens(const GemmParameters& p, uint32 shared, const Place& place) {
    const uint64 policy = ptx::policy_evict_last();
    const bool leader = ptx::elect_one();
    Segments<C::kRanks> segments(p.schedule, place.cluster, place.clusters, place.rank);
    Segment g{};
    CopyStage<C> at(shared);
    int issued = 0;
    ptx::grid_dependency_wait();
    while (segments.next(g)) {
        const int row = g.m_tile * C::kTokens;
        for (int step = g.first; step < g.last; ++step) {
            const int column = step * Activation<C::A>::kStepColumns;
            at.wait();
            if (leader) {
                const uint32 target = shared + at.stage * C::kTokenBytes;
                ptx::barrier_expect(at.barrier(), C::kTokenBytes);
                if constexpr (C::kCluster == 1) {
                    ptx::tensor_load(target, &p.x, column, row, at.barrier(), policy);
                } else {
                    constexpr int kPart = C::kTokens / C::kCluster;
                    ptx::tensor_load_multicast(target + place.neighbour * kPart * 128, &p.x, column, row + place.neighbour * kPart,
                                               at.barrier(), ((1 << C::kCluster) - 1) << (place.rank * C::kCluster), policy);
                }
            }
            at.next();
            if (++issued == p.schedule.trigger) ptx::grid_launch_dependents();
        }
    }
}

// Dequantizes and multiplies: a warpgroup of a team.
template <class C>
QQQ_DEVICE void sm90_consume(const GemmParameters& p, uint32 shared, const Place& place, int warpgroup, int team, int thread) {
    const uint32 full = shared + C::kBarrierOffset;
    Segments<C::kRanks> segments(p.schedule, place.cluster, place.clusters, place.rank);
    // Steps are numbered through all stretches; a team takes every kSplits-th of them, so it sees the same stages again. Everything that
    // depends on the stage is counted along: the loop is bound by its instructions where tiles are small.
    int count = 0, stage = team;
    uint32 phase = 0, parity = 0;
    uint32 ready = full + team * 8;
    uint32 chunks = shared + C::kWeightOffset + team * C::kWeightBytes + warpgroup * C::kRows * C::kChunkBytes;
    uint32 tokens = wgmma::descriptor_low(shared + team * C::kTokenBytes);
    constexpr int kPasses = C::kStages / C::kSplits;
    Sums<C> acc;
    uint32 a[C::kSplits == 1 ? 2 : 1][C::kRows][8];

    // Every thread by itself: that one has read its weights does not say that the others have. Where neighbours wait too, a warp
    // has one message for each.
    auto release = [&](uint32 at) {
        if constexpr (C::kCluster == 1) {
            ptx::barrier_arrive(at);
        } else {
            __syncwarp();
            const int lane = thread % 32;
            if (lane < C::kCluster) ptx::barrier_arrive_remote(at, place.rank * C::kCluster + lane);
        }
    };

    Segment g{}, next{};
    int more = segments.next(g);
    ptx::grid_dependency_wait();
    for (; more; g = next) {
        const int begin = C::kSplits == 1 ? 0 : (team + C::kSplits - count % C::kSplits) % C::kSplits;
        const int steps = g.last - g.first;
        if (team == 0) sm90_load_factors<C>(p, g, shared, place, warpgroup, thread);
        sm90_clear<C>(acc);
#pragma unroll
        for (int r = 0; r < C::kRows; ++r) wgmma::pin(acc[r]);
        // Whose stage is released next; at first nobody's.
        uint32 previous = shared + C::kNobodyOffset;
        for (int step = begin; step < steps; step += C::kSplits) {
            ptx::barrier_wait(ready, phase);
            typename C::Words words[C::kRows];
            if constexpr (C::kSplits == 1) {
#pragma unroll
                for (int r = 0; r < C::kRows; ++r) load_words(chunks + r * C::kChunkBytes, thread, words[r]);
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                // A team alone prepares operands while the batch before is multiplied. Several teams do that for each other,
                // and save the registers.
                const int at = C::kSplits == 1 ? half : 0;
                if constexpr (C::kSplits > 1) {
#pragma unroll
                    for (int r = 0; r < C::kRows; ++r) load_half_words(chunks + r * C::kChunkBytes, thread, half, words[r]);
                    wgmma::wait<0>();
                    if (half == 0) release(previous);
                }
#pragma unroll
                for (int r = 0; r < C::kRows; ++r) {
                    dequantize(words[r], half, a[at][r]);
                    // Operands are written before the fence, or the compiler makes its own, and serializes.
                    wgmma::pin(a[at][r]);
                }
                wgmma::fence();
#pragma unroll
                for (int j = 0; j < 2; ++j) {
#pragma unroll
                    for (int r = 0; r < C::kRows; ++r) {
                        wgmma::mma<C::A, C::kTokens>::run(acc[r], a[at][r][4 * j], a[at][r][4 * j + 1], a[at][r][4 * j + 2],
                                                          a[at][r][4 * j + 3], wgmma::descriptor(tokens + 4 * half + 2 * j));
                    }
                }
                wgmma::commit();
                if constexpr (C::kSplits == 1) {
                    // The batch before this one is done: its operands may be overwritten.
                    wgmma::wait<1>();
                    if (half == 0) release(previous);
                }
            }
            previous = ready + C::kStages * 8;
            const bool wrap = (stage += C::kSplits) >= C::kStages;
            stage = wrap ? team : stage;
            phase ^= wrap;
            ready += wrap ? -8 * C::kSplits * (kPasses - 1) : 8 * C::kSplits;
            chunks += wrap ? -C::kWeightBytes * C::kSplits * (kPasses - 1) : C::kWeightBytes * C::kSplits;
            tokens += wrap ? -(C::kTokenBytes >> 4) * C::kSplits * (kPasses - 1) : (C::kTokenBytes >> 4) * C::kSplits;
        }
        // The next stretch is found out while this one's last batches are multiplied: it takes a hundred instructions.
        more = segments.next(next);
        int found[] = {more, next.tile, next.n_tile, next.m_tile, next.first, next.last};
        wgmma::pin(found);
        more = found[0], next = {found[1], found[2], found[3], found[4], found[5]};
        wgmma::wait<0>();
#pragma unroll
        for (int r = 0; r < C::kRows; ++r) wgmma::pin(acc[r]);
        if (C::kSplits == 1 || begin < steps) release(previous);
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
    // Nothing may come to this block's memory, or be read from it, after its end.
    if (team == 0) ptx::copy_async_wait<0>();
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
            ptx::barrier_init(shared + C::kBarrierOffset + i * 8, 2);
            ptx::barrier_init(shared + C::kBarrierOffset + (C::kStages + i) * 8, C::kReleases);
        }
        if constexpr (C::kRanks > 1) {
            for (int i = 0; i < C::kWarpgroups; ++i) {
                ptx::barrier_init(shared + C::kInboundOffset + i * 16, 1);
                // One arrival from every other rank that finishes something.
                ptx::barrier_init(shared + C::kInboundOffset + i * 16 + 8, place.rank < C::kOwners ? max(C::kOwners - 1, 1) : C::kOwners);
            }
        }
        // A warp arrives with all its lanes at once: more of them than a barrier still waits for are an error.
        ptx::barrier_init(shared + C::kNobodyOffset, C::kConsumers);
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
        if constexpr (C::kTrade) ptx::registers_lower<C::kCopyRegisters>();
        const int warp = ptx::uniform((threadIdx.x - C::kConsumers) / 32);
        if (warp == 0) sm90_copy_weights<C>(p, shared, place);
        if (warp == 1) sm90_copy_tokens<C>(p, shared, place);
    } else {
        if constexpr (C::kTrade) ptx::registers_raise<C::kRegisters>();
        const int warpgroup = threadIdx.x / 128;
        sm90_consume<C>(p, shared, place, warpgroup % C::kWarpgroups, C::kSplits == 1 ? 0 : warpgroup / C::kWarpgroups, threadIdx.x % 128);
    }
    // A block's shared memory must outlive what others of its cluster send there.
    if constexpr (C::kBlocksInCluster > 1) ptx::cluster_sync();
}
