// The end of a tile of the GEMM by wgmma: split-K reductions in the CTA, the cluster and across clusters, scales,
// stores.
#pragma once

#include "convert.cuh"
#include "sm90_config.cuh"

template <class C>
QQQ_DEVICE void sm90_clear(Accumulators<C>& acc) {
#pragma unroll
    for (int r = 0; r < C::kRowBlocks; ++r) {
#pragma unroll
        for (int i = 0; i < C::kTokens / 2; ++i) acc[r][i] = 0;
    }
}

// Adds the partial sums of the clusters that share a tile. True in the one that comes last and holds the sum.
// Integer sums are exact: the result does not depend on who comes last. Floating-point ones are added by the clusters'
// numbers.
template <class C>
QQQ_DEVICE bool sm90_reduce_global(const GemmParameters& p, const WorkUnit& g, Accumulators<C>& acc, uint32 shared, const Place& place,
                             int warpgroup, int thread) {
    const int begin = g.tile * p.schedule.k_tiles;
    const int first = WorkUnits<1>::stream_k_owner(p.schedule, begin);
    const int last = WorkUnits<1>::stream_k_owner(p.schedule, begin + p.schedule.k_tiles - 1);
    // A cluster has at most one work unit that begins inside a tile (slot 0) and one that only ends inside (slot 1).
    auto slot = [&](int owner, int which) {
        const long long index = ((long long)(owner * C::kMulticast + place.peer) * 2 + which) * C::kWarpgroups + warpgroup;
        return p.partials + index * (C::kRowBlocks * C::kTokens / 8 * 128) + thread;
    };
    int4* own = slot(place.cluster, g.first == 0);
#pragma unroll
    for (int r = 0; r < C::kRowBlocks; ++r) {
#pragma unroll
        for (int j = 0; j < C::kTokens / 8; ++j) {
            ptx::store_global_l2(own + (r * C::kTokens / 8 + j) * 128, pack_sums(acc[r], 4 * j));
        }
    }
    ptx::fence_device();
    ptx::named_barrier(1 + warpgroup, 128);
    uint32* flag = (uint32*)__cvta_shared_to_generic(shared + C::kFlagOffset + warpgroup * 8);
    if (thread == 0) {
        uint32* counter = p.counters + (g.tile * C::kMulticast + place.peer) * C::kWarpgroups + warpgroup;
        const uint32 before = ptx::atomic_add(counter, 1);
        if (before == (uint32)(last - first)) *counter = 0;
        *flag = before;
    }
    ptx::named_barrier(1 + warpgroup, 128);
    if (*flag != (uint32)(last - first)) return false;
    ptx::fence_device();
    constexpr bool kOrdered = C::A != kInt8;
    if constexpr (kOrdered) sm90_clear<C>(acc);
    for (int owner = first; owner <= last; ++owner) {
        if (!kOrdered && owner == place.cluster) continue;
        const int4* other = slot(owner, WorkUnits<1>::stream_k_begin(p.schedule, owner) <= begin);
        // As many loads in flight as there are registers for.
        constexpr int kBatch = C::kTokens / 8 < 16 ? C::kTokens / 8 : C::kTokens / 8 % 16 == 0 ? 16 : C::kTokens / 8 / 2;
#pragma unroll
        for (int r = 0; r < C::kRowBlocks; ++r) {
#pragma unroll
            for (int batch = 0; batch < C::kTokens / 8; batch += kBatch) {
                int4 v[kBatch];
#pragma unroll
                for (int i = 0; i < kBatch; ++i) v[i] = ptx::load_global_l2(other + (r * C::kTokens / 8 + batch + i) * 128);
#pragma unroll
                for (int i = 0; i < kBatch; ++i) add_sums<C::A>(acc[r], 4 * (batch + i), v[i]);
            }
        }
    }
    return true;
}

// Sends the other CTAs of the tile what they finish and adds what they send. True if this one has something to finish.
template <class C>
QQQ_DEVICE bool sm90_reduce_cluster(Accumulators<C>& acc, uint32 shared, const Place& place, int warpgroup, int thread, uint32 parity) {
    const int k_rank = place.k_rank;
    constexpr int kGroups = C::kOwnedTokens / 8;
    constexpr int kPart = C::kRowBlocks * kGroups * 128 * 16;
    const uint32 region = shared + C::kStagingOffset + warpgroup * C::kWarpgroupBytes;
    const uint32 arrived = shared + C::kInboundOffset + warpgroup * 16, free = arrived + 8;
    // The others' places are free once they have stored their last tile.
    if (C::kOwners > 1 || k_rank > 0) ptx::barrier_wait(free, parity ^ 1);
#pragma unroll
    for (int owner = 0; owner < C::kOwners; ++owner) {
        if (owner == k_rank) continue;
        const uint32 slot = (k_rank + C::kClusterSplitK - owner - 1) % C::kClusterSplitK;
        const uint32 target = ptx::remote_address(region + slot * kPart + thread * 16, owner * C::kMulticast + place.peer);
        const uint32 barrier = ptx::remote_address(arrived, owner * C::kMulticast + place.peer);
#pragma unroll
        for (int r = 0; r < C::kRowBlocks; ++r) {
#pragma unroll
            for (int i = 0; i < kGroups; ++i) {
                ptx::store_remote_128(target + (r * kGroups + i) * 2048, pack_sums(acc[r], 4 * (owner * kGroups + i)), barrier);
            }
        }
    }
    if (k_rank >= C::kOwners) return false;
    if (thread == 0) ptx::barrier_expect(arrived, (C::kClusterSplitK - 1) * kPart);
    ptx::barrier_wait_cluster(arrived, parity);
#pragma unroll
    for (int owner = 0; owner < C::kOwners; ++owner) {
        if (owner != k_rank) continue;
        auto sent = [&](int slot, int r, int i) {
            const uint4 v = ptx::load_shared_128(region + slot * kPart + thread * 16 + (r * kGroups + i) * 2048);
            return make_int4(v.x, v.y, v.z, v.w);
        };
        if constexpr (C::A == kInt8) {
#pragma unroll
            for (int slot = 0; slot < C::kClusterSplitK - 1; ++slot) {
#pragma unroll
                for (int r = 0; r < C::kRowBlocks; ++r) {
#pragma unroll
                    for (int i = 0; i < kGroups; ++i) add_sums<C::A>(acc[r], 4 * (owner * kGroups + i), sent(slot, r, i));
                }
            }
        } else {
            // By the CTAs' numbers, whoever finishes: a token's place in the tile must not change its sums.
#pragma unroll
            for (int r = 0; r < C::kRowBlocks; ++r) {
#pragma unroll
                for (int i = 0; i < kGroups; ++i) {
                    const int j = 4 * (owner * kGroups + i);
                    const int4 own = pack_sums(acc[r], j);
#pragma unroll
                    for (int sender = 0; sender < C::kClusterSplitK; ++sender) {
                        const int4 v = sender == owner ? own : sent((sender + C::kClusterSplitK - owner - 1) % C::kClusterSplitK, r, i);
                        if (sender == 0) {
                            acc[r][j] = v.x, acc[r][j + 1] = v.y, acc[r][j + 2] = v.z, acc[r][j + 3] = v.w;
                        } else {
                            add_sums<C::A>(acc[r], j, v);
                        }
                    }
                }
            }
        }
    }
    return true;
}

// Has the scales of a tile brought to shared memory, while it is multiplied: from L2 or memory they take as long as a
// k-tile or two.
template <class C>
QQQ_DEVICE void sm90_load_factors(const GemmParameters& p, const WorkUnit& g, uint32 shared, const Place& place, int warpgroup,
                                  int thread) {
    const uint32 factors = shared + C::kFactorOffset + warpgroup * C::kFactorBytes;
    // Those of a work unit before, whose tile another cluster finished, must not come after these.
    ptx::copy_async_wait<0>();
#pragma unroll
    for (int i = 0; i < C::kFactorTokens; i += 128) {
        if (i + thread >= C::kFactorTokens) break;
        // Every CTA of the tile finishes its own tokens.
        const int token = first_token<C>(p, g) + (C::kOwners > 1 ? place.k_rank * C::kOwnedTokens : 0) + i + thread;
        ptx::copy_async_4(factors + (i + thread) * 4, p.token_scale + min(token, p.m - 1));
    }
#pragma unroll
    for (int r = 0; r < C::kRowBlocks; ++r) {
        const int block = channel_block<C>(g, place, warpgroup, r);
        // Past the last channels nothing is stored.
        if (thread >= 64 || block * 64 >= p.n) break;
        ptx::copy_async_4(factors + (C::kFactorTokens + r * 64 + thread) * 4, p.channel_scale + block * 64 + thread);
    }
    ptx::copy_async_commit();
}

// Scales, converts and stores a finished tile: through shared memory, where rows become tokens.
template <class C>
QQQ_DEVICE void sm90_store(const GemmParameters& p, const WorkUnit& g, Accumulators<C>& acc, uint32 shared, const Place& place,
                           int warpgroup, int thread) {
    const int warp = thread / 32, lane = thread % 32;
    const int token0 = first_token<C>(p, g);
    const uint32 staging = shared + C::kStagingOffset + warpgroup * C::kWarpgroupBytes;
    const uint32 factors = shared + C::kFactorOffset + warpgroup * C::kFactorBytes;
    ptx::copy_async_wait<0>();
    // The tile before is no longer in the buffers, and everybody's part of the factors is there.
    if (thread == 0) ptx::store_wait_read<0>();
    ptx::named_barrier(1 + warpgroup, 128);
#pragma unroll
    for (int r = 0; r < C::kRowBlocks; ++r) {
        const int block = channel_block<C>(g, place, warpgroup, r);
        if (block * 64 >= p.n) break;
        const int row = warp * 16 + lane / 4, channel = block * 64 + row;
        const bool biased = p.bias != nullptr;
        const float bias0 = biased && channel < p.n ? __ldg(p.bias + channel) : 0.0f;
        const float bias1 = biased && channel + 8 < p.n ? __ldg(p.bias + channel + 8) : 0.0f;
        auto factor = [&](int at) { return __uint_as_float(ptx::load_shared_32(factors + at * 4)); };
        const float scale0 = factor(C::kFactorTokens + r * 64 + row), scale1 = factor(C::kFactorTokens + r * 64 + row + 8);
#pragma unroll
        for (int piece = 0; piece < C::kTokens / C::kStagingTokens; ++piece) {
            constexpr int kSteps = C::kStagingTokens / 8, kOwnPieces = C::kOwnedTokens / C::kStagingTokens;
            if (C::kClusterSplitK > 1 && piece / kOwnPieces != place.k_rank) continue;
            const int own = piece % kOwnPieces, index = r * kOwnPieces + own;
            const uint32 target = staging + index % C::kBuffers * C::kStagingBytes;
            uint2 token_scales[kSteps]{};
            if constexpr (C::A == kInt8) {
#pragma unroll
                for (int i = 0; i < kSteps; ++i) {
                    token_scales[i] = ptx::load_shared_64(factors + (own * C::kStagingTokens + 8 * i + 2 * (lane % 4)) * 4);
                }
            }
            if (index >= C::kBuffers) {
                if (thread == 0) ptx::store_wait_read<C::kBuffers - 1>();
                ptx::named_barrier(1 + warpgroup, 128);
            }
            // Sums become outputs, in place. A bias is added apart: as a part of the same, it would take its
            // instructions without one too.
#pragma unroll
            for (int i = 0; i < kSteps; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    int& sum = acc[r][4 * (piece * kSteps + i) + j];
                    const uint32 token_scale = j % 2 == 0 ? token_scales[i].x : token_scales[i].y;
                    sum = __float_as_int(scale_sum<C::A>(sum, j < 2 ? scale0 : scale1, __uint_as_float(token_scale)));
                }
            }
            if (biased) {
#pragma unroll
                for (int i = 0; i < kSteps * 4; ++i) {
                    int& sum = acc[r][4 * piece * kSteps + i];
                    sum = __float_as_int(__fadd_rn(__int_as_float(sum), i % 4 < 2 ? bias0 : bias1));
                }
            }
            // Those of tokens 8i.. of the piece, for the thread's first channel or its second.
            auto outputs = [&](int i, int half) {
                const int at = 4 * (piece * kSteps + i) + 2 * half;
                return pack_floats<C::kBfloat>(__int_as_float(acc[r][at]), __int_as_float(acc[r][at + 1]));
            };
            // Row `token` of the staging tile has 8 pieces of 8 channels, swizzled by the token.
            auto address = [&](int token, int half) { return target + token * 128 + (((2 * warp + half) ^ (token & 7)) << 4); };
#pragma unroll
            for (int i = 0; i + 1 < kSteps; i += 2) {
                ptx::store_matrix_x4_transposed(address(8 * (i + lane / 16) + lane % 8, lane / 8 % 2), outputs(i, 0), outputs(i, 1),
                                                outputs(i + 1, 0), outputs(i + 1, 1));
            }
            if constexpr (kSteps % 2 == 1) {
                ptx::store_matrix_x2_transposed(address(8 * (kSteps - 1) + lane % 8, lane / 8 % 2), outputs(kSteps - 1, 0),
                                                outputs(kSteps - 1, 1));
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

// Adds what the split-K groups have of a work unit, by their numbers, in the first one. Called by all of them.
template <class C>
QQQ_DEVICE void sm90_reduce_cta(Accumulators<C>& acc, uint32 shared, int warpgroup, int k_group, int thread) {
    int4* buffer = (int4*)__cvta_shared_to_generic(shared + C::kReduceOffset + warpgroup * C::kReduceGroups * C::kGroupBytes) + thread;
    constexpr int kEach = C::kWarpgroups * C::kReduceGroups * 128, kInBlock = C::kTokens / 8;
    const uint32 written = 1 + C::kWarpgroups + warpgroup, read = written + C::kWarpgroups;
#pragma unroll
    for (int first = 0; first < C::kGroups; first += C::kReduceGroups) {
        const int last = first + C::kReduceGroups < C::kGroups ? first + C::kReduceGroups : C::kGroups;
        if (k_group > 0) {
#pragma unroll
            for (int i = first; i < last; ++i) {
                buffer[(k_group - 1) * kEach + (i - first) * 128] = pack_sums(acc[i / kInBlock], 4 * (i % kInBlock));
            }
        }
        ptx::named_barrier(written, 128 * C::kCtaSplitK);
        if (k_group == 0) {
#pragma unroll
            for (int other = 0; other < C::kCtaSplitK - 1; ++other) {
#pragma unroll
                for (int i = first; i < last; ++i) {
                    add_sums<C::A>(acc[i / kInBlock], 4 * (i % kInBlock), buffer[other * kEach + (i - first) * 128]);
                }
            }
        }
        ptx::named_barrier(read, 128 * C::kCtaSplitK);
    }
}
