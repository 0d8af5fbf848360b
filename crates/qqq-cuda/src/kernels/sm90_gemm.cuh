// Y = (X W^T) scaled, on Hopper, by wgmma: int8 activations with 4- or 8-bit weights and int32 sums, or 16-bit
// activations with 4-bit weights and float32 sums.
//
// The operands are swapped: weights are A (64 rows of channels an instruction, from registers, where they are
// dequantized), tokens are B (from shared memory), so that few tokens waste nothing. Two producer warps copy (one
// weights, as a contiguous stream, one tokens, through a tensor map), the math warpgroups dequantize and multiply; each
// keeps one batch of wgmma in flight while it prepares the operands of the next. CTAs of a cluster share their tokens
// by multicast.
#pragma once

#include "sm90_epilogue.cuh"
#include "wgmma.cuh"

// Two producer warps copy, each its own operand, one k-tile after the other in the order in which they are multiplied.
// All lanes walk, so that the compiler knows addresses to be the same in all of them; one issues. Each arrives at a
// stage's full barrier with its bytes.

// Where a producer warp stands in the pipeline.
template <class C>
struct ProducerStage {
    int stage = 0;
    uint32 phase = 1;
    uint32 full, empty;

    QQQ_DEVICE explicit ProducerStage(uint32 shared)
        : full(shared + C::kBarrierOffset), empty(shared + C::kBarrierOffset + C::kStages * 8) {}
    // The full barrier of the stage.
    QQQ_DEVICE uint32 barrier() const { return full + stage * 8; }
    // Until the stage is empty. All lanes know before one issues: a late one might miss the barrier's next phase, and
    // wait for ever.
    QQQ_DEVICE void wait() const {
        ptx::barrier_wait(empty + stage * 8, phase);
        __syncwarp();
    }
    QQQ_DEVICE void next() {
        if (++stage == C::kStages) stage = 0, phase ^= 1;
    }
};

template <class C>
QQQ_DEVICE void sm90_produce_weights(const GemmParameters& p, uint32 shared, const Place& place) {
    constexpr int kWeightTiles = C::kWarpgroups * C::kRowBlocks;
    const int blocks = (p.n + 63) / 64;
    // Weights are read once unless several token tiles need them.
    const uint64 policy = p.schedule.m_tiles == 1 ? ptx::policy_evict_first() : ptx::policy_evict_normal();
    const bool leader = ptx::elect_one();
    WorkUnits<C::kClusterSplitK> units(p.schedule, place.cluster, place.clusters, place.k_rank);
    WorkUnit g{};
    ProducerStage<C> at(shared);
    int issued = 0;
    while (units.next(g)) {
        const uint8* weight_tiles[kWeightTiles];
#pragma unroll
        for (int i = 0; i < kWeightTiles; ++i) {
            // Past the last channels the last weight tile is read again; nothing of it is stored.
            const int block = min((g.n_tile * C::kMulticast + place.peer) * kWeightTiles + i, blocks - 1);
            weight_tiles[i] = p.weights + ((long long)block * p.schedule.k_tiles + g.first) * C::kWeightTileBytes;
        }
        for (int k_tile = g.first; k_tile < g.last; ++k_tile) {
            at.wait();
            if (leader) {
                ptx::barrier_expect(at.barrier(), C::kWeightBytes);
#pragma unroll
                for (int i = 0; i < kWeightTiles; ++i) {
                    ptx::bulk_load(shared + C::kWeightOffset + at.stage * C::kWeightBytes + i * C::kWeightTileBytes, weight_tiles[i],
                                   C::kWeightTileBytes, at.barrier(), policy);
                }
            }
            at.next();
#pragma unroll
            for (int i = 0; i < kWeightTiles; ++i) weight_tiles[i] += C::kWeightTileBytes;
            // Weights do not depend on the kernel before this one, for which all else waits: meanwhile more of them
            // come to L2.
            if (++issued == C::kStages && leader) {
                for (int i = 0; i < min(g.last - k_tile - 1, p.schedule.ahead); ++i) {
#pragma unroll
                    for (int j = 0; j < kWeightTiles; ++j) ptx::bulk_prefetch(weight_tiles[j] + i * C::kWeightTileBytes, C::kWeightTileBytes);
                }
            }
        }
    }
}

template <class C>
QQQ_DEVICE void sm90_produce_tokens(const GemmParameters& p, uint32 shared, const Place& place) {
    const uint64 policy = ptx::policy_evict_last();
    const bool leader = ptx::elect_one();
    WorkUnits<C::kClusterSplitK> units(p.schedule, place.cluster, place.clusters, place.k_rank);
    WorkUnit g{};
    ProducerStage<C> at(shared);
    const uint32 bytes = p.box_tokens * C::kMulticast * 128;
    int issued = 0;
    ptx::grid_dependency_wait();
    while (units.next(g)) {
        const int row = first_token<C>(p, g);
        for (int k_tile = g.first; k_tile < g.last; ++k_tile) {
            const int column = k_tile * Activation<C::A>::kTileColumns;
            at.wait();
            if (leader) {
                const uint32 target = shared + at.stage * C::kTokenBytes;
                // Rows that are not brought keep what lay there: their sums are nobody's.
                ptx::barrier_expect(at.barrier(), bytes);
                if constexpr (C::kMulticast == 1) {
                    ptx::tensor_load(target, &p.x, column, row, at.barrier(), policy);
                } else {
                    ptx::tensor_load_multicast(target + place.peer * p.box_tokens * 128, &p.x, column,
                                               row + place.peer * p.box_tokens, at.barrier(), ((1 << C::kMulticast) - 1) << (place.k_rank * C::kMulticast), policy);
                }
            }
            at.next();
            if (++issued == p.schedule.trigger) ptx::grid_launch_dependents();
        }
    }
}

// Dequantizes and multiplies: a math warpgroup of a split-K group.
template <class C>
QQQ_DEVICE void sm90_math(const GemmParameters& p, uint32 shared, const Place& place, int warpgroup, int k_group, int thread) {
    const uint32 full = shared + C::kBarrierOffset;
    WorkUnits<C::kClusterSplitK> units(p.schedule, place.cluster, place.clusters, place.k_rank);
    // k-tiles are numbered through all work units; a split-K group takes every kCtaSplitK-th of them, so it sees the
    // same stages again. Everything that depends on the stage is counted along: the loop is bound by its instructions
    // where tiles are small.
    int count = 0, stage = k_group;
    uint32 phase = 0, parity = 0;
    uint32 ready = full + k_group * 8;
    uint32 weight_tiles = shared + C::kWeightOffset + k_group * C::kWeightBytes + warpgroup * C::kRowBlocks * C::kWeightTileBytes;
    uint32 tokens = wgmma::descriptor_low(shared + k_group * C::kTokenBytes);
    constexpr int kPasses = C::kStages / C::kCtaSplitK;
    Accumulators<C> acc;
    uint32 a[C::kCtaSplitK == 1 ? 2 : 1][C::kRowBlocks][8];

    // Every thread by itself: that one has read its weights does not say that the others have. Where peers wait too, a
    // warp has one message for each.
    auto release = [&](uint32 at) {
        if constexpr (C::kMulticast == 1) {
            ptx::barrier_arrive(at);
        } else {
            __syncwarp();
            const int lane = thread % 32;
            if (lane < C::kMulticast) ptx::barrier_arrive_remote(at, place.k_rank * C::kMulticast + lane);
        }
    };

    WorkUnit g{}, next{};
    int more = units.next(g);
    ptx::grid_dependency_wait();
    for (; more; g = next) {
        const int begin = C::kCtaSplitK == 1 ? 0 : (k_group + C::kCtaSplitK - count % C::kCtaSplitK) % C::kCtaSplitK;
        const int k_tiles = g.last - g.first;
        if (k_group == 0) sm90_load_factors<C>(p, g, shared, place, warpgroup, thread);
        sm90_clear<C>(acc);
#pragma unroll
        for (int r = 0; r < C::kRowBlocks; ++r) wgmma::pin(acc[r]);
        // Whose stage is released next; at first nobody's.
        uint32 previous = shared + C::kNobodyOffset;
        for (int k_tile = begin; k_tile < k_tiles; k_tile += C::kCtaSplitK) {
            ptx::barrier_wait(ready, phase);
            typename C::Words words[C::kRowBlocks];
            if constexpr (C::kCtaSplitK == 1) {
#pragma unroll
                for (int r = 0; r < C::kRowBlocks; ++r) load_words(weight_tiles + r * C::kWeightTileBytes, thread, words[r]);
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                // One group alone prepares operands while the batch before is multiplied. Several groups do that for
                // each other, and save the registers.
                const int at = C::kCtaSplitK == 1 ? half : 0;
                if constexpr (C::kCtaSplitK > 1) {
#pragma unroll
                    for (int r = 0; r < C::kRowBlocks; ++r) load_half_words(weight_tiles + r * C::kWeightTileBytes, thread, half, words[r]);
                    wgmma::wait<0>();
                    if (half == 0) release(previous);
                }
#pragma unroll
                for (int r = 0; r < C::kRowBlocks; ++r) {
                    dequantize(words[r], half, a[at][r]);
                    // Operands are written before the fence, or the compiler makes its own, and serializes.
                    wgmma::pin(a[at][r]);
                }
                wgmma::fence();
#pragma unroll
                for (int j = 0; j < 2; ++j) {
#pragma unroll
                    for (int r = 0; r < C::kRowBlocks; ++r) {
                        wgmma::mma<C::A, C::kTokens>::run(acc[r], a[at][r][4 * j], a[at][r][4 * j + 1], a[at][r][4 * j + 2],
                                                          a[at][r][4 * j + 3], wgmma::descriptor(tokens + 4 * half + 2 * j));
                    }
                }
                wgmma::commit();
                if constexpr (C::kCtaSplitK == 1) {
                    // The batch before this one is done: its operands may be overwritten.
                    wgmma::wait<1>();
                    if (half == 0) release(previous);
                }
            }
            previous = ready + C::kStages * 8;
            const bool wrap = (stage += C::kCtaSplitK) >= C::kStages;
            stage = wrap ? k_group : stage;
            phase ^= wrap;
            ready += wrap ? -8 * C::kCtaSplitK * (kPasses - 1) : 8 * C::kCtaSplitK;
            weight_tiles += wrap ? -C::kWeightBytes * C::kCtaSplitK * (kPasses - 1) : C::kWeightBytes * C::kCtaSplitK;
            tokens += wrap ? -(C::kTokenBytes >> 4) * C::kCtaSplitK * (kPasses - 1) : (C::kTokenBytes >> 4) * C::kCtaSplitK;
        }
        // The next work unit is found out while this one's last batches are multiplied: it takes a hundred
        // instructions.
        more = units.next(next);
        int found[] = {more, next.tile, next.n_tile, next.m_tile, next.first, next.last};
        wgmma::pin(found);
        more = found[0], next = {found[1], found[2], found[3], found[4], found[5]};
        wgmma::wait<0>();
#pragma unroll
        for (int r = 0; r < C::kRowBlocks; ++r) wgmma::pin(acc[r]);
        if (C::kCtaSplitK == 1 || begin < k_tiles) release(previous);
        count += k_tiles;
        if constexpr (C::kCtaSplitK > 1) sm90_reduce_cta<C>(acc, shared, warpgroup, k_group, thread);
        if (k_group > 0) continue;
        if constexpr (C::kClusterSplitK > 1) {
            if (sm90_reduce_cluster<C>(acc, shared, place, warpgroup, thread, parity)) {
                sm90_store<C>(p, g, acc, shared, place, warpgroup, thread);
                // The staging tiles have been read: the others may write here again.
                if (thread == 0) {
                    ptx::store_wait_read<0>();
                    for (int other = 0; other < C::kClusterSplitK; ++other) {
                        if (other == place.k_rank) continue;
                        ptx::barrier_arrive_remote(shared + C::kInboundOffset + warpgroup * 16 + 8,
                                                   other * C::kMulticast + place.peer);
                    }
                }
            }
            parity ^= 1;
            continue;
        }
        const bool whole = g.first == 0 && g.last == p.schedule.k_tiles;
        if (whole || sm90_reduce_global<C>(p, g, acc, shared, place, warpgroup, thread)) {
            sm90_store<C>(p, g, acc, shared, place, warpgroup, thread);
        }
    }
    // Nothing may come to this CTA's memory, or be read from it, after its end.
    if (k_group == 0) ptx::copy_async_wait<0>();
    if (k_group == 0 && thread == 0) ptx::store_wait_read<0>();
}

template <class C>
QQQ_DEVICE void sm90_gemm(const GemmParameters& p) {
    uint8* const memory = ptx::dynamic_shared();
    const uint32 shared = ptx::shared_address(memory);
    const int inside = C::kCtasInCluster == 1 ? 0 : (int)ptx::cluster_rank();
    const Place place{(int)blockIdx.x / C::kCtasInCluster, (int)gridDim.x / C::kCtasInCluster, inside % C::kMulticast,
                      inside / C::kMulticast};
    if (threadIdx.x == 0) {
        for (int i = 0; i < C::kStages; ++i) {
            ptx::barrier_init(shared + C::kBarrierOffset + i * 8, 2);
            ptx::barrier_init(shared + C::kBarrierOffset + (C::kStages + i) * 8, C::kReleases);
        }
        if constexpr (C::kClusterSplitK > 1) {
            for (int i = 0; i < C::kWarpgroups; ++i) {
                ptx::barrier_init(shared + C::kInboundOffset + i * 16, 1);
                // One arrival from every other CTA of the tile that finishes something.
                ptx::barrier_init(shared + C::kInboundOffset + i * 16 + 8, place.k_rank < C::kOwners ? max(C::kOwners - 1, 1) : C::kOwners);
            }
        }
        // A warp arrives with all its lanes at once: more of them than a barrier still waits for are an error.
        ptx::barrier_init(shared + C::kNobodyOffset, C::kMathThreads);
        ptx::barrier_init_fence();
        ptx::prefetch_tensor_map(&p.x);
        ptx::prefetch_tensor_map(&p.y);
    }
    if constexpr (C::kCtasInCluster == 1) {
        __syncthreads();
    } else {
        ptx::cluster_sync();
    }

    if (threadIdx.x >= C::kMathThreads) {
        if constexpr (C::kTrade) ptx::registers_lower<C::kProducerRegisters>();
        const int warp = ptx::uniform((threadIdx.x - C::kMathThreads) / 32);
        if (warp == 0) sm90_produce_weights<C>(p, shared, place);
        if (warp == 1) sm90_produce_tokens<C>(p, shared, place);
    } else {
        if constexpr (C::kTrade) ptx::registers_raise<C::kMathRegisters>();
        const int warpgroup = threadIdx.x / 128;
        sm90_math<C>(p, shared, place, warpgroup % C::kWarpgroups, C::kCtaSplitK == 1 ? 0 : warpgroup / C::kWarpgroups, threadIdx.x % 128);
    }
    // A CTA's shared memory must outlive what others of its cluster send there.
    if constexpr (C::kCtasInCluster > 1) ptx::cluster_sync();
}
