// The end of a tile of the GEMM by mma.sync: split-K reductions in the CTA and across CTAs, scales, stores.
//
// acc[s][i] are the four registers of mma.sync for 16 rows (set s of the warp) and 8 tokens (group i).
#pragma once

#include "convert.cuh"
#include "sm80_config.cuh"

// Adds a batch of partial sums.
template <class C, class Load>
QQQ_DEVICE void sm80_add(Accumulators<C>& acc, Load load) {
    // As many loads in flight as there are registers for.
    constexpr int kBatch = C::kGroups < 8 ? C::kGroups : C::kGroups % 8 == 0 ? 8 : C::kGroups % 4 == 0 ? 4 : 2;
#pragma unroll
    for (int s = 0; s < C::kSets; ++s) {
#pragma unroll
        for (int begin = 0; begin < C::kGroups; begin += kBatch) {
            int4 v[kBatch];
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                if (begin + i < C::kGroups) v[i] = load((s * C::kGroups + begin + i) * 128);
            }
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                if (begin + i >= C::kGroups) continue;
                add_sums<C::A>(acc[s][begin + i], 0, v[i]);
            }
        }
    }
}

template <class C, class Store>
QQQ_DEVICE void sm80_put(const Accumulators<C>& acc, Store store) {
#pragma unroll
    for (int s = 0; s < C::kSets; ++s) {
#pragma unroll
        for (int i = 0; i < C::kGroups; ++i) store((s * C::kGroups + i) * 128, pack_sums(acc[s][i], 0));
    }
}

template <class C>
QQQ_DEVICE void sm80_clear(Accumulators<C>& acc) {
#pragma unroll
    for (int s = 0; s < C::kSets; ++s) {
#pragma unroll
        for (int i = 0; i < C::kGroups; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) acc[s][i][j] = 0;
        }
    }
}

// The first split-K group of a warpgroup's rows gets the sum of all, added by the groups' numbers.
template <class C>
QQQ_DEVICE void sm80_reduce_cta(const Sm80Place<C>& place, Accumulators<C>& acc, uint8* memory) {
    constexpr int kGroup = C::kSets * C::kGroups * 128, kEach = C::kWarpgroups * kGroup;
    int4* sums = (int4*)(memory + C::kSumOffset) + place.warpgroup * kGroup + place.thread;
    const uint32 written = 1 + C::kCtaSplitK + place.warpgroup, read = written + C::kWarpgroups;
    if (place.k_group > 0) sm80_put<C>(acc, [&](int i, int4 v) { sums[(place.k_group - 1) * kEach + i] = v; });
    ptx::named_barrier(written, 128 * C::kCtaSplitK);
    if (place.k_group == 0) {
#pragma unroll 1
        for (int other = 0; other < C::kCtaSplitK - 1; ++other) {
            sm80_add<C>(acc, [&](int i) { return sums[other * kEach + i]; });
        }
    }
    ptx::named_barrier(read, 128 * C::kCtaSplitK);
}

// Adds the partial sums of the CTAs that share a tile. True in the one that comes last and holds the sum. Integer sums
// are exact: the result does not depend on who comes last. Floating-point ones are added by the CTAs' numbers.
template <class C>
QQQ_DEVICE bool sm80_reduce_global(const Sm80Parameters& p, const Sm80Place<C>& place, const WorkUnit& g, Accumulators<C>& acc,
                             uint8* memory) {
    const int begin = g.tile * p.schedule.k_tiles;
    const int first = WorkUnits<1>::stream_k_owner(p.schedule, begin);
    const int last = WorkUnits<1>::stream_k_owner(p.schedule, begin + p.schedule.k_tiles - 1);
    // A CTA has at most one work unit that begins inside a tile (slot 0) and one that only ends inside (slot 1).
    auto slot = [&](int owner, int which) {
        const long long index = ((long long)owner * 2 + which) * C::kWarpgroups + place.warpgroup;
        return p.partials + index * (C::kSets * C::kGroups * 128) + place.thread;
    };
    int4* own = slot(blockIdx.x, g.first == 0);
    sm80_put<C>(acc, [&](int i, int4 v) { ptx::store_global_l2(own + i, v); });
    ptx::fence_device();
    const uint32 barrier = 1 + C::kCtaSplitK + 2 * C::kWarpgroups + place.warpgroup;
    ptx::named_barrier(barrier, 128);
    volatile uint32* flag = (uint32*)(memory + C::kFlagOffset) + place.warpgroup * 4;
    if (place.thread == 0) {
        uint32* counter = p.counters + g.tile * C::kWarpgroups + place.warpgroup;
        const uint32 before = ptx::atomic_add(counter, 1);
        if (before == (uint32)(last - first)) *counter = 0;
        *flag = before;
    }
    ptx::named_barrier(barrier, 128);
    if (*flag != (uint32)(last - first)) return false;
    ptx::fence_device();
    constexpr bool kOrdered = C::A != kInt8;
    if constexpr (kOrdered) sm80_clear<C>(acc);
#pragma unroll 1
    for (int owner = first; owner <= last; ++owner) {
        if (!kOrdered && owner == (int)blockIdx.x) continue;
        const int4* other = slot(owner, WorkUnits<1>::stream_k_begin(p.schedule, owner) <= begin);
        sm80_add<C>(acc, [&](int i) { return ptx::load_global_l2(other + i); });
    }
    return true;
}

// Lane 4a + i of the result holds word 4a + q of matrix i in w[q]: quads transpose their four words.
QQQ_DEVICE void transpose_quads(uint32 (&w)[4], int lane) {
    const bool odd = lane & 1, upper = lane & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32 received = ptx::shuffle_xor(odd ? w[i] : w[i + 1], 1);
        if (odd) {
            w[i] = received;
        } else {
            w[i + 1] = received;
        }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint32 received = ptx::shuffle_xor(upper ? w[i] : w[i + 2], 2);
        if (upper) {
            w[i] = received;
        } else {
            w[i + 2] = received;
        }
    }
}

// Scales, converts and stores a finished tile. Registers hold pairs of tokens of a channel: 8 x 8 pieces are transposed
// inside the warp, then quads gather 8 channels of a token, so that a store writes whole sectors.
template <class C>
QQQ_DEVICE void sm80_store(const Sm80Parameters& p, const Sm80Place<C>& place, const WorkUnit& g, const Accumulators<C>& acc) {
    const int lane = place.lane, quad = lane % 4;
    const int token0 = g.m_tile * C::kTokens + place.token_warp * (C::kGroups * 8);
    const int channel0 = g.n_tile * C::kChannels + place.warpgroup * (C::kRowBlocks * 64) + place.row_warp * (C::kTokenWarps * 16);
    auto channel_of = [&](int s) { return channel0 + s / C::kTokenWarps * 64 + s % C::kTokenWarps * 16; };
    const bool biased = p.bias != nullptr;
    // Two 16-row sets of a group of tokens, or two groups of one set.
    constexpr int kSetStep = C::kTokenWarps > 1 ? 2 : 1, kGroupStep = C::kTokenWarps > 1 || C::kGroups == 1 ? 1 : 2;
#pragma unroll
    for (int s = 0; s < C::kSets; s += kSetStep) {
        float scale[kSetStep][2], bias[kSetStep][2];
#pragma unroll
        for (int i = 0; i < kSetStep; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                // Channels come in sixteens: a set is inside or outside.
                const int channel = channel_of(s + i) + half * 8 + lane / 4;
                const bool inside = channel < p.n;
                scale[i][half] = inside ? __ldg(p.channel_scale + channel) : 0.0f;
                bias[i][half] = inside && biased ? __ldg(p.bias + channel) : 0.0f;
            }
        }
#pragma unroll
        for (int group = 0; group < C::kGroups; group += kGroupStep) {
            uint32 w[4] = {0, 0, 0, 0};
#pragma unroll
            for (int i = 0; i < kSetStep * kGroupStep; ++i) {
                const int set = kSetStep == 2 ? i : 0, at = group + (kGroupStep == 2 ? i : 0);
                if (at >= C::kGroups) continue;
                const int token = token0 + at * 8 + 2 * quad;
                float t0 = 1.0f, t1 = 1.0f;
                if constexpr (C::A == kInt8) {
                    t0 = __ldg(p.token_scale + min(token, p.m - 1)), t1 = __ldg(p.token_scale + min(token + 1, p.m - 1));
                }
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    float y0 = scale_sum<C::A>(acc[s + set][at][2 * half], scale[set][half], t0);
                    float y1 = scale_sum<C::A>(acc[s + set][at][2 * half + 1], scale[set][half], t1);
                    if (biased) y0 = __fadd_rn(y0, bias[set][half]), y1 = __fadd_rn(y1, bias[set][half]);
                    w[2 * i + half] = ptx::transpose_matrix(pack_floats<C::kBfloat>(y0, y1));
                }
            }
            transpose_quads(w, lane);
            // This lane now has 8 channels of the piece that its place in the quad says.
            const int at = group + (kGroupStep == 2 ? quad / 2 : 0);
            const int channel = channel_of(s) + (kSetStep == 2 ? quad / 2 * 16 : 0) + quad % 2 * 8;
            const int token = token0 + at * 8 + lane / 4;
            const bool present = kSetStep * kGroupStep == 2 ? at < C::kGroups : quad < 2;
            if (present && token < p.m && channel < p.n) {
                ptx::store_global_128((uint16*)p.y + (long long)token * p.n + channel, w[0], w[1], w[2], w[3]);
            }
        }
    }
}
