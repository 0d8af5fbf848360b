// The end of a tile of the GEMM by wgmma: sums of teams, ranks and clusters, scales, stores.
#pragma once

#include "convert.cuh"
#include "sm90_config.cuh"

template <class C>
QQQ_DEVICE void sm90_clear(Sums<C>& acc) {
#pragma unroll
    for (int r = 0; r < C::kRows; ++r) {
#pragma unroll
        for (int i = 0; i < C::kTokens / 2; ++i) acc[r][i] = 0;
    }
}

// Adds the partial sums of the clusters that share a tile. True in the one that comes last and holds the sum.
// Integer sums are exact: the result does not depend on who comes last. Floating-point ones are added by the clusters'
// numbers.
template <class C>
QQQ_DEVICE bool sm90_combine(const GemmParameters& p, const Segment& g, Sums<C>& acc, uint32 shared, const Place& place,
                             int warpgroup, int thread) {
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
            ptx::store_global_l2(own + (r * C::kTokens / 8 + j) * 128, pack_sums(acc[r], 4 * j));
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
    constexpr bool kOrdered = C::A != kInt8;
    if constexpr (kOrdered) sm90_clear<C>(acc);
    for (int owner = first; owner <= last; ++owner) {
        if (!kOrdered && owner == place.cluster) continue;
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
                for (int i = 0; i < kBatch; ++i) add_sums<C::A>(acc[r], 4 * (batch + i), v[i]);
            }
        }
    }
    return true;
}

// Sends the other ranks what they finish and adds what they send. True if this one has something to finish.
template <class C>
QQQ_DEVICE bool sm90_exchange(Sums<C>& acc, uint32 shared, const Place& place, int warpgroup, int thread, uint32 parity) {
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
                ptx::store_remote_128(target + (r * kGroups + i) * 2048, pack_sums(acc[r], 4 * (owner * kGroups + i)), barrier);
            }
        }
    }
    if (rank >= C::kOwners) return false;
    if (thread == 0) ptx::barrier_expect(arrived, (C::kRanks - 1) * kPart);
    ptx::barrier_wait_cluster(arrived, parity);
#pragma unroll
    for (int owner = 0; owner < C::kOwners; ++owner) {
        if (owner != rank) continue;
        auto sent = [&](int slot, int r, int i) {
            const uint4 v = ptx::load_shared_128(region + slot * kPart + thread * 16 + (r * kGroups + i) * 2048);
            return make_int4(v.x, v.y, v.z, v.w);
        };
        if constexpr (C::A == kInt8) {
#pragma unroll
            for (int slot = 0; slot < C::kRanks - 1; ++slot) {
#pragma unroll
                for (int r = 0; r < C::kRows; ++r) {
#pragma unroll
                    for (int i = 0; i < kGroups; ++i) add_sums<C::A>(acc[r], 4 * (owner * kGroups + i), sent(slot, r, i));
                }
            }
        } else {
            // By the ranks' numbers, whoever finishes: a token's place in the tile must not change its sums.
#pragma unroll
            for (int r = 0; r < C::kRows; ++r) {
#pragma unroll
                for (int i = 0; i < kGroups; ++i) {
                    const int j = 4 * (owner * kGroups + i);
                    const int4 own = pack_sums(acc[r], j);
#pragma unroll
                    for (int sender = 0; sender < C::kRanks; ++sender) {
                        const int4 v = sender == owner ? own : sent((sender + C::kRanks - owner - 1) % C::kRanks, r, i);
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

// Scales, converts and stores a finished tile: through shared memory, where rows become tokens.
template <class C>
QQQ_DEVICE void sm90_store(const GemmParameters& p, const Segment& g, Sums<C>& acc, uint32 shared, const Place& place,
                           int warpgroup, int thread) {
    const int warp = thread / 32, lane = thread % 32;
    const int token0 = g.m_tile * C::kTokens;
    const uint32 staging = shared + C::kStagingOffset + warpgroup * C::kWarpgroupBytes;
    constexpr int kPieces = C::kTokens / C::kStagingTokens;
    // The scales of a thread's tokens of a piece. Where there are registers for two pieces, those of the next one are under way
    // while this one is stored.
    constexpr bool kAhead = C::kRanks == 1 && C::kSplits == 1;
    constexpr int kOwn = C::kStagingTokens / 4;
    float token_scales[2][kOwn];
    auto token_scale = [&](int piece, int i) {
        const int token = token0 + piece * C::kStagingTokens + 8 * (i / 2) + 2 * (lane % 4) + i % 2;
        return C::A == kInt8 ? __ldg(p.token_scale + min(token, p.m - 1)) : 1.0f;
    };
    auto load_scales = [&](int piece) {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) token_scales[piece % 2][i] = token_scale(piece, i);
    };
    int buffer = 0;
#pragma unroll
    for (int r = 0; r < C::kRows; ++r) {
        const int block = (g.n_tile * C::kCluster + place.neighbour) * (C::kChannels / 64) + warpgroup * C::kRows + r;
        if (block * 64 >= p.n) break;
        const int channel = block * 64 + warp * 16 + lane / 4;
        const float scale0 = __ldg(p.channel_scale + channel), scale1 = __ldg(p.channel_scale + channel + 8);
        const bool biased = p.bias != nullptr;
        if (kAhead) load_scales(0);
        const float bias0 = biased && channel < p.n ? __ldg(p.bias + channel) : 0.0f;
        const float bias1 = biased && channel + 8 < p.n ? __ldg(p.bias + channel + 8) : 0.0f;
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece) {
            // Every rank finishes its own tokens.
            if (C::kRanks > 1 && piece * C::kStagingTokens / C::kOwnedTokens != place.rank) continue;
            const uint32 target = staging + buffer * C::kStagingBytes;
            buffer ^= 1;
            if (kAhead && piece + 1 < kPieces) load_scales(piece + 1);
            // The store before the last one read this buffer. With an odd number of pieces, the last one of the tile before did.
            if (thread == 0) {
                if (r == 0 && piece == 0) {
                    ptx::store_wait_read<0>();
                } else {
                    ptx::store_wait_read<1>();
                }
            }
            ptx::named_barrier(1 + warpgroup, 128);
            auto packed = [&](int j, int half) {
                const int i = 2 * (j - piece * (C::kStagingTokens / 8));
                const float t0 = kAhead ? token_scales[piece % 2][i] : token_scale(piece, i);
                const float t1 = kAhead ? token_scales[piece % 2][i + 1] : token_scale(piece, i + 1);
                const float scale = half ? scale1 : scale0, bias = half ? bias1 : bias0;
                float y0 = scale_sum<C::A>(acc[r][4 * j + 2 * half], scale, t0);
                float y1 = scale_sum<C::A>(acc[r][4 * j + 2 * half + 1], scale, t1);
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

// Adds what the teams have of a stretch, by their numbers, in the first one. Called by all of them.
template <class C>
QQQ_DEVICE void sm90_join_teams(Sums<C>& acc, uint32 shared, int warpgroup, int team, int thread) {
    int4* buffer = (int4*)__cvta_shared_to_generic(shared + C::kTeamOffset + warpgroup * C::kJoinGroups * C::kGroupBytes) + thread;
    constexpr int kTeam = C::kWarpgroups * C::kJoinGroups * 128, kInBlock = C::kTokens / 8;
    const uint32 written = 1 + C::kWarpgroups + warpgroup, read = written + C::kWarpgroups;
#pragma unroll
    for (int first = 0; first < C::kGroups; first += C::kJoinGroups) {
        const int last = first + C::kJoinGroups < C::kGroups ? first + C::kJoinGroups : C::kGroups;
        if (team > 0) {
#pragma unroll
            for (int i = first; i < last; ++i) {
                buffer[(team - 1) * kTeam + (i - first) * 128] = pack_sums(acc[i / kInBlock], 4 * (i % kInBlock));
            }
        }
        ptx::named_barrier(written, 128 * C::kSplits);
        if (team == 0) {
#pragma unroll
            for (int other = 0; other < C::kSplits - 1; ++other) {
#pragma unroll
                for (int i = first; i < last; ++i) {
                    add_sums<C::A>(acc[i / kInBlock], 4 * (i % kInBlock), buffer[other * kTeam + (i - first) * 128]);
                }
            }
        }
        ptx::named_barrier(read, 128 * C::kSplits);
    }
}
