// Attention of many tokens on sm_90a: the tiles of attention.cuh, whose products are wgmma's. A warpgroup takes 64 rows.
#pragma once

#include "attention.cuh"
#include "wgmma.cuh"

template <int HeadDim, bool Bfloat>
struct WgmmaAttentionConfig {
    static constexpr int kHeadDim = HeadDim;
    static constexpr bool kBfloat = Bfloat;
    static constexpr Activations kOperands = Bfloat ? kBfloat16 : kFloat16;
    static constexpr int kRows = 128, kThreads = 2 * kRows, kKeys = 64;
    // Two CTAs on an SM, of which one makes probabilities while the other multiplies, where registers suffice.
    static constexpr int kCtas = HeadDim <= 128 ? 2 : 1;
    // Tiles lie in blocks of 64 columns, whose rows are 128 bytes, with the chunks permuted as wgmma has them.
    static constexpr int kChunks = HeadDim / 8;
    template <int Rows>
    QQQ_DEVICE static int place(int row, int chunk) {
        return chunk / 8 * (Rows * 128) + row * 128 + ((chunk ^ row) & 7) * 16;
    }
    static constexpr int kQueryBytes = kRows * HeadDim * 2, kKeyBytes = kKeys * HeadDim * 2;
    static constexpr int kSharedBytes = kQueryBytes + 4 * kKeyBytes;
    static_assert(HeadDim % 64 == 0 && HeadDim <= 256 && kPage % kKeys == 0);
};

// Of a warpgroup: its rows against the keys of a step. `queries` are its first row's. Arguments otherwise as take_scores'.
template <class C>
QQQ_DEVICE void wgmma_attend_step(uint32 queries, uint32 keys, const int (&positions)[2], int window, int key, bool masked,
                                  float scale, int (&scores)[C::kKeys / 8][4], AttentionState<C>& state) {
    const uint32 a = wgmma::descriptor_low(queries), b = wgmma::descriptor_low(keys);
    wgmma::pin(scores);
    wgmma::fence();
#pragma unroll
    for (int k = 0; k < C::kHeadDim / 16; ++k) {
        const uint32 more = k % 4 * 2, block = k / 4 * 128 >> 4;
        wgmma::mma_shared<C::kOperands, C::kKeys>::run(scores, wgmma::descriptor(a + block * C::kRows + more),
                                                       wgmma::descriptor(b + block * C::kKeys + more), k > 0);
    }
    wgmma::commit();
    wgmma::wait<0>();
    wgmma::pin(scores);

    uint32 p[C::kKeys / 8][2];
    take_scores<C>(scores, positions, window, key, masked, scale, state, p);
    wgmma::pin(state.sums);
    wgmma::pin(p);
    wgmma::fence();
#pragma unroll
    for (int j = 0; j < C::kKeys / 8; j += 2) {
        const uint64 values = wgmma::descriptor_across(keys + C::kKeyBytes + j * 1024, C::kKeys * 128);
        wgmma::mma_across<C::kOperands, C::kHeadDim>::run(state.sums, p[j][0], p[j][1], p[j + 1][0], p[j + 1][1], values);
    }
    wgmma::commit();
    wgmma::wait<0>();
    wgmma::pin(state.sums);
}

template <class C>
QQQ_DEVICE void wgmma_attention(const AttentionParameters& p) {
    uint8* memory = ptx::dynamic_shared();
    const AttentionTile tile = p.tiles[blockIdx.x / p.num_kv_heads];
    const int kv_head = blockIdx.x % p.num_kv_heads, group = p.num_heads / p.num_kv_heads;
    const int warpgroup = ptx::uniform(threadIdx.x / 128), lane = threadIdx.x % 32;
    const uint32 queries = ptx::shared_address(memory), keys = queries + C::kQueryBytes;
    const int window = p.window > 0 ? p.window : 0x7FFFFFFF;

    copy_queries<C>(p, tile, kv_head, queries);
    copy_keys<C>(p, tile, kv_head, tile.first_key, keys);
    ptx::copy_async_commit();
    const int row = threadIdx.x / 32 * 16 + lane / 4;
    const int positions[2] = {tile.position + row / group, tile.position + (row + 8) / group};
    // Of the warpgroup's tokens; it may have none.
    const int first_token = warpgroup * 64 / group, last_token = min((warpgroup * 64 + 63) / group, tile.tokens - 1);
    const int first_position = tile.position + first_token;
    const int last_position = first_token <= last_token ? tile.position + last_token : -1;
    AttentionState<C> state;
    int scores[C::kKeys / 8][4] = {};
#pragma unroll 1
    for (int key = tile.first_key; key < tile.end_key; key += C::kKeys) {
        const int next = key + C::kKeys, stage = key / C::kKeys % 2;
        ptx::copy_async_wait<0>();
        // wgmma reads shared memory as the copy engine does.
        ptx::fence_async_shared();
        // Also: what the step before has read may be overwritten.
        __syncthreads();
        if (next < tile.end_key) copy_keys<C>(p, tile, kv_head, next, keys + (stage ^ 1) * 2 * C::kKeyBytes);
        ptx::copy_async_commit();
        const bool seen = key <= last_position && first_position - (next - 1) < window;
        if (!seen) continue;
        const bool masked = next - 1 > first_position || last_position - key >= window;
        wgmma_attend_step<C>(queries + warpgroup * 64 * 128, keys + stage * 2 * C::kKeyBytes, positions, window, key, masked,
                             p.scale, scores, state);
    }
    // Read again: registers are scarce in the loop.
    const AttentionTile same = p.tiles[blockIdx.x / p.num_kv_heads];
    const AttentionResult<C> result{p, same, (int)blockIdx.x % p.num_kv_heads};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float total = quad_sum(state.total[r]);
#pragma unroll
        for (int n = 0; n < C::kHeadDim / 8; ++n) {
            result.write(row + 8 * r, 8 * n + lane % 4 * 2, __int_as_float(state.sums[n][2 * r]),
                         __int_as_float(state.sums[n][2 * r + 1]), total);
        }
    }
}
