// Y = (X W^T) scaled, on Hopper: int8 activations, 4- or 8-bit weights, int32 accumulation by wgmma.
//
// The operands are swapped: weights are A (64 rows of channels an instruction, from registers, where they are
// dequantized), tokens are B (from shared memory), so that few tokens waste nothing. One warp copies (weights as
// a contiguous stream, tokens through a tensor map), the warpgroups of the others dequantize and multiply;
// each keeps one batch of wgmma in flight while it prepares the operands of the next. Blocks of a cluster share
// their tokens by multicast.
#pragma once

#include "convert.cuh"
#include "dequantize.cuh"
#include "schedule.cuh"
#include "wgmma.cuh"

struct GemmParameters {
    // Tokens, M x K int8, box 128 x (kTokens / kCluster), 128-byte swizzle.
    TensorMap x;
    // Output, M x N, box 64 x kStagingTokens, 128-byte swizzle.
    TensorMap y;
    const uint8* weights;
    // ceil(N / 64) * 64 values.
    const float* channel_scale;
    // M values.
    const float* token_scale;
    // N values, or null.
    const float* bias;
    // Partial sums of split tiles: two tiles of int32 a block. Counters: one a split tile, block of a cluster and
    // warpgroup (of the first team); zero before and after a launch.
    int4* partials;
    uint32* counters;
    int m, n;
    Schedule schedule;
};

template <Weights W_, int Group_, int Tokens, int Warpgroups, int Rows, int Splits, int Stages, int Cluster, int Ranks,
          bool Bfloat>
struct Sm90Config {
    static constexpr Weights W = W_;
    static constexpr int Group = Group_;
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
    // Few tokens leave room for two blocks on a multiprocessor: the next launch can fill its pipeline already.
    static constexpr int kBlocks = Tokens * Rows <= 16 && Warpgroups * Splits <= 2 ? 2 : 1;
    // Registers move from the copying warpgroup to the others.
    static constexpr bool kTrade = (Warpgroups * Splits == 2 || Warpgroups * Splits == 4) && kBlocks == 1;
    static constexpr int kRegisters = Warpgroups * Splits == 2 ? 224 : 104;
    static constexpr int kConsumers = 128 * Warpgroups * Splits;
    static constexpr int kThreads = kConsumers + (kTrade ? 128 : 32);
    static constexpr int kStagingTokens = kOwnedTokens <= 64         ? kOwnedTokens
                                          : kOwnedTokens % 64 == 0 ? 64
                                          : kOwnedTokens % 56 == 0 ? 56
                                          : kOwnedTokens % 48 == 0 ? 48
                                          : kOwnedTokens % 40 == 0 ? 40
                                                                   : 16;
    // Shared memory.
    static constexpr int kTokenBytes = Tokens * 128;
    static constexpr int kChunkBytes = Chunk<W, Group>::kBytes;
    static constexpr int kWeightBytes = Rows * Warpgroups * kChunkBytes;
    static constexpr int kStagingBytes = kStagingTokens * 128;
    static constexpr int kStagingOffset = Stages * kTokenBytes;
    // A warpgroup's staging tiles; what comes from other ranks lies in the same place before.
    static constexpr int kWarpgroupBytes = 2 * kStagingBytes > kInboundBytes ? 2 * kStagingBytes : kInboundBytes;
    static constexpr int kWeightOffset = kStagingOffset + Warpgroups * kWarpgroupBytes;
    static constexpr int kTeamOffset = kWeightOffset + Stages * kWeightBytes;
    static constexpr int kBarrierOffset = kTeamOffset + (Splits - 1) * kChannels * Tokens * 4;
    static constexpr int kInboundOffset = kBarrierOffset + Stages * 16;
    static constexpr int kFlagOffset = kInboundOffset + Warpgroups * 16;
    static constexpr int kSharedBytes = kFlagOffset + Warpgroups * 8;
    static_assert(kTokenBytes % 1024 == 0 && kStagingBytes % 1024 == 0 && kChunkBytes % 16 == 0 && kBarrierOffset % 8 == 0);
    static_assert(kSharedBytes <= 227 * 1024);
    static_assert(Tokens / Cluster % 8 == 0 && Stages % Splits == 0);
};

// Where a block stands.
struct Place {
    int cluster, clusters;
    // Among the neighbours and the ranks of its cluster.
    int neighbour, rank;
};

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
        const int row = g.m_tile * C::kTokens;
        if constexpr (C::kCluster == 1) {
            ptx::tensor_load(target, &p.x, step * 128, row, barrier, token_policy);
        } else {
            constexpr int kPart = C::kTokens / C::kCluster;
            ptx::tensor_load_multicast(target + place.neighbour * kPart * 128, &p.x, step * 128, row + place.neighbour * kPart,
                                       barrier, ((1 << C::kCluster) - 1) << (place.rank * C::kCluster), token_policy);
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

// Adds the partial sums of the clusters that share a tile. True in the one that comes last and holds the sum.
// Integer sums are exact: the result does not depend on who comes last.
template <class C>
QQQ_DEVICE bool sm90_combine(const GemmParameters& p, const Segment& g, int (&acc)[C::kRows][C::kTokens / 2], uint32 shared,
                             const Place& place, int warpgroup, int thread) {
    const int begin = g.tile * p.schedule.k_blocks;
    const int first = Segments<1>::split_owner(p.schedule, begin);
    const int last = Segments<1>::split_owner(p.schedule, begin + p.schedule.k_blocks - 1);
    // A cluster has at most one stretch that begins inside a tile (slot 0) and one that only ends inside (slot 1).
    auto slot = [&](int owner, int which) {
        const long long index = ((long long)(owner * C::kCluster + place.neighbour) * 2 + which) * C::kWarpgroups + warpgroup;
        return p.partials + index * (C::kRows * C::kTokens / 8 * 128) + thread;
    };
    int4* own = slot(place.cluster, g.first == 0);
#pragma unroll
    for (int r = 0; r < C::kRows; ++r) {
#pragma unroll
        for (int j = 0; j < C::kTokens / 8; ++j) {
            ptx::store_global_l2(own + (r * C::kTokens / 8 + j) * 128,
                                 make_int4(acc[r][4 * j], acc[r][4 * j + 1], acc[r][4 * j + 2], acc[r][4 * j + 3]));
        }
    }
    ptx::fence_device();
    ptx::named_barrier(1 + warpgroup, 128);
    uint32* flag = (uint32*)__cvta_shared_to_generic(shared + C::kFlagOffset + warpgroup * 8);
    if (thread == 0) {
        uint32* counter = p.counters + (g.tile * C::kCluster + place.neighbour) * C::kWarpgroups + warpgroup;
        const uint32 before = ptx::atomic_add(counter, 1);
        if (before == (uint32)(last - first)) *counter = 0;
        *flag = before;
    }
    ptx::named_barrier(1 + warpgroup, 128);
    if (*flag != (uint32)(last - first)) return false;
    ptx::fence_device();
    for (int owner = first; owner <= last; ++owner) {
        if (owner == place.cluster) continue;
        const int4* other = slot(owner, Segments<1>::split_begin(p.schedule, owner) <= begin);
        // As many loads in flight as there are registers for.
        constexpr int kBatch = C::kTokens / 8 < 16 ? C::kTokens / 8 : C::kTokens / 8 % 16 == 0 ? 16 : C::kTokens / 8 / 2;
#pragma unroll
        for (int r = 0; r < C::kRows; ++r) {
#pragma unroll
            for (int batch = 0; batch < C::kTokens / 8; batch += kBatch) {
                int4 v[kBatch];
#pragma unroll
                for (int i = 0; i < kBatch; ++i) v[i] = ptx::load_global_l2(other + (r * C::kTokens / 8 + batch + i) * 128);
#pragma unroll
                for (int i = 0; i < kBatch; ++i) {
                    const int j = batch + i;
                    acc[r][4 * j] += v[i].x, acc[r][4 * j + 1] += v[i].y, acc[r][4 * j + 2] += v[i].z, acc[r][4 * j + 3] += v[i].w;
                }
            }
        }
    }
    return true;
}

// Sends the other ranks what they finish and adds what they send. True if this one has something to finish.
template <class C>
QQQ_DEVICE bool sm90_exchange(int (&acc)[C::kRows][C::kTokens / 2], uint32 shared, const Place& place, int warpgroup, int thread,
                              uint32 parity) {
    const int rank = place.rank;
    constexpr int kGroups = C::kOwnedTokens / 8;
    constexpr int kPart = C::kRows * kGroups * 128 * 16;
    const uint32 region = shared + C::kStagingOffset + warpgroup * C::kWarpgroupBytes;
    const uint32 arrived = shared + C::kInboundOffset + warpgroup * 16, free = arrived + 8;
    // The others' places are free once they have stored their last tile.
    if (C::kOwners > 1 || rank > 0) ptx::barrier_wait(free, parity ^ 1);
#pragma unroll
    for (int owner = 0; owner < C::kOwners; ++owner) {
        if (owner == rank) continue;
        const uint32 slot = (rank + C::kRanks - owner - 1) % C::kRanks;
        const uint32 target = ptx::remote_address(region + slot * kPart + thread * 16, owner * C::kCluster + place.neighbour);
        const uint32 barrier = ptx::remote_address(arrived, owner * C::kCluster + place.neighbour);
#pragma unroll
        for (int r = 0; r < C::kRows; ++r) {
#pragma unroll
            for (int i = 0; i < kGroups; ++i) {
                const int j = 4 * (owner * kGroups + i);
                ptx::store_remote_128(target + (r * kGroups + i) * 2048, acc[r][j], acc[r][j + 1], acc[r][j + 2], acc[r][j + 3],
                                      barrier);
            }
        }
    }
    if (rank >= C::kOwners) return false;
    if (thread == 0) ptx::barrier_expect(arrived, (C::kRanks - 1) * kPart);
    ptx::barrier_wait_cluster(arrived, parity);
#pragma unroll
    for (int owner = 0; owner < C::kOwners; ++owner) {
        if (owner != rank) continue;
#pragma unroll
        for (int slot = 0; slot < C::kRanks - 1; ++slot) {
#pragma unroll
            for (int r = 0; r < C::kRows; ++r) {
#pragma unroll
                for (int i = 0; i < kGroups; ++i) {
                    const int j = 4 * (owner * kGroups + i);
                    const uint4 v = ptx::load_shared_128(region + slot * kPart + thread * 16 + (r * kGroups + i) * 2048);
                    acc[r][j] += v.x, acc[r][j + 1] += v.y, acc[r][j + 2] += v.z, acc[r][j + 3] += v.w;
                }
            }
        }
    }
    return true;
}

// Scales, converts and stores a finished tile: through shared memory, where rows become tokens.
template <class C>
QQQ_DEVICE void sm90_store(const GemmParameters& p, const Segment& g, int (&acc)[C::kRows][C::kTokens / 2], uint32 shared,
                           const Place& place, int warpgroup, int thread) {
    const int warp = thread / 32, lane = thread % 32;
    const int token0 = g.m_tile * C::kTokens;
    const uint32 staging = shared + C::kStagingOffset + warpgroup * C::kWarpgroupBytes;
    constexpr int kPieces = C::kTokens / C::kStagingTokens;
    int buffer = 0;
#pragma unroll
    for (int r = 0; r < C::kRows; ++r) {
        const int block = (g.n_tile * C::kCluster + place.neighbour) * (C::kChannels / 64) + warpgroup * C::kRows + r;
        if (block * 64 >= p.n) break;
        const int channel = block * 64 + warp * 16 + lane / 4;
        const float scale0 = __ldg(p.channel_scale + channel), scale1 = __ldg(p.channel_scale + channel + 8);
        const bool biased = p.bias != nullptr;
        const float bias0 = biased && channel < p.n ? __ldg(p.bias + channel) : 0.0f;
        const float bias1 = biased && channel + 8 < p.n ? __ldg(p.bias + channel + 8) : 0.0f;
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece) {
            // Every rank finishes its own tokens.
            if (C::kRanks > 1 && piece * C::kStagingTokens / C::kOwnedTokens != place.rank) continue;
            const uint32 target = staging + buffer * C::kStagingBytes;
            buffer ^= 1;
            // The store before the last one read this buffer.
            if (thread == 0) ptx::store_wait_read<1>();
            ptx::named_barrier(1 + warpgroup, 128);
            auto packed = [&](int j, int half) {
                const int token = token0 + 8 * j + 2 * (lane % 4);
                const float t0 = __ldg(p.token_scale + min(token, p.m - 1)), t1 = __ldg(p.token_scale + min(token + 1, p.m - 1));
                const float scale = half ? scale1 : scale0, bias = half ? bias1 : bias0;
                float y0 = __fmul_rn(__fmul_rn(__int2float_rn(acc[r][4 * j + 2 * half]), scale), t0);
                float y1 = __fmul_rn(__fmul_rn(__int2float_rn(acc[r][4 * j + 2 * half + 1]), scale), t1);
                if (biased) y0 = __fadd_rn(y0, bias), y1 = __fadd_rn(y1, bias);
                return pack_floats<C::kBfloat>(y0, y1);
            };
            // Row `token` of the staging tile has 8 chunks of 8 channels, swizzled by the token.
            auto address = [&](int token, int half) { return target + token * 128 + (((2 * warp + half) ^ (token & 7)) << 4); };
            constexpr int kSteps = C::kStagingTokens / 8;
#pragma unroll
            for (int i = 0; i + 1 < kSteps; i += 2) {
                const int j = piece * kSteps + i;
                ptx::store_matrix_x4_transposed(address(8 * (i + lane / 16) + lane % 8, lane / 8 % 2), packed(j, 0), packed(j, 1),
                                                packed(j + 1, 0), packed(j + 1, 1));
            }
            if constexpr (kSteps % 2 == 1) {
                const int j = piece * kSteps + kSteps - 1;
                ptx::store_matrix_x2_transposed(address(8 * (kSteps - 1) + lane % 8, lane / 8 % 2), packed(j, 0), packed(j, 1));
            }
            ptx::fence_async_shared();
            ptx::named_barrier(1 + warpgroup, 128);
            if (thread == 0) {
                ptx::tensor_store(&p.y, block * 64, token0 + piece * C::kStagingTokens, target);
                ptx::store_commit();
            }
        }
    }
}

// Adds what the teams have of a stretch, in the first one. Called by all of them.
template <class C>
QQQ_DEVICE void sm90_join_teams(int (&acc)[C::kRows][C::kTokens / 2], uint32 shared, int warpgroup, int team, int thread) {
    int4* buffer = (int4*)__cvta_shared_to_generic(shared + C::kTeamOffset) + warpgroup * (C::kRows * C::kTokens / 8 * 128) + thread;
    constexpr int kTeam = C::kWarpgroups * C::kRows * C::kTokens / 8 * 128;
    const uint32 barrier = 1 + C::kWarpgroups + warpgroup;
    if (team > 0) {
#pragma unroll
        for (int r = 0; r < C::kRows; ++r) {
#pragma unroll
            for (int j = 0; j < C::kTokens / 8; ++j) {
                buffer[(team - 1) * kTeam + (r * C::kTokens / 8 + j) * 128] =
                    make_int4(acc[r][4 * j], acc[r][4 * j + 1], acc[r][4 * j + 2], acc[r][4 * j + 3]);
            }
        }
    }
    ptx::named_barrier(barrier, 128 * C::kSplits);
    if (team == 0) {
#pragma unroll
        for (int other = 0; other < C::kSplits - 1; ++other) {
#pragma unroll
            for (int r = 0; r < C::kRows; ++r) {
#pragma unroll
                for (int j = 0; j < C::kTokens / 8; ++j) {
                    const int4 v = buffer[other * kTeam + (r * C::kTokens / 8 + j) * 128];
                    acc[r][4 * j] += v.x, acc[r][4 * j + 1] += v.y, acc[r][4 * j + 2] += v.z, acc[r][4 * j + 3] += v.w;
                }
            }
        }
    }
    ptx::named_barrier(barrier, 128 * C::kSplits);
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
    int acc[C::kRows][C::kTokens / 2];
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
            Words<C::W, C::Group> words[C::kRows];
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
                        wgmma::mma<C::kTokens>::run(acc[r], a[half][r][4 * j], a[half][r][4 * j + 1], a[half][r][4 * j + 2],
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
#pragma unroll
            for (int r = 0; r < C::kRows; ++r) {
#pragma unroll
                for (int i = 0; i < C::kTokens / 2; ++i) acc[r][i] = 0;
            }
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
    extern __shared__ __align__(1024) uint8 memory[];
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
