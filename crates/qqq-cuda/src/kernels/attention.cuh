// Attention over the pages of the KV cache (Dao, "FlashAttention-2", arXiv 2307.08691): scores and probabilities of a tile
// stay in registers, and a row's maximum and sum are carried along. Long sequences of few queries are cut along their keys
// ("flash decoding"), and a second kernel joins the parts.
//
// The query heads that share a key head are rows of the same tile, so that keys and values are read once for all of them.
#pragma once

#include "convert.cuh"

// Positions of a page, as qqq-backend's PAGE.
constexpr int kPage = 128;

// Queries of a sequence against a range of its keys.
struct AttentionTile {
    // Row of the batch, and position, of the first token.
    int first_row, position;
    int tokens;
    // The sequence's page table: an index into `pages`.
    int first_page;
    // Keys from first_key, a multiple of kPage, to end_key.
    int first_key, end_key;
    // Where the result goes: to `out`, or, as a part of it, to this place of `sums` and `stats`.
    int part;
};

constexpr int kWhole = -1;

// A tile's parts, which lie one after the other.
struct JoinedTile {
    int first_row, tokens;
    int first_part, parts;
};

struct AttentionParameters {
    // Rows of q, k and v heads, in half or bfloat16.
    const void* qkv;
    // Rows of query heads.
    void* out;
    // Of the layer: pages x key heads x kPage x head size.
    const void *keys, *values;
    const int* pages;
    const AttentionTile* tiles;
    const JoinedTile* joined;
    // Parts x key heads x rows of a tile x head size, not yet divided by the sum of probabilities.
    float* sums;
    // Parts x key heads x rows of a tile x 2: largest score, sum of probabilities.
    float* stats;
    int num_heads, num_kv_heads;
    // A query sees this many positions, its own among them; 0: all before it.
    int window;
    // Factor of scores, times log2(e).
    float scale;
};

// WarpsM warps share the rows, 16 each; WarpsN share the keys.
template <int HeadDim, int WarpsM, int WarpsN, bool Bfloat>
struct AttentionConfig {
    static constexpr int kHeadDim = HeadDim, kWarpsM = WarpsM, kWarpsN = WarpsN;
    static constexpr bool kBfloat = Bfloat;
    static constexpr int kRows = 16 * WarpsM, kThreads = 32 * WarpsM * WarpsN;
    // Keys of a step, which lie in one page; and of them a warp's.
    static constexpr int kKeys = HeadDim <= 128 ? 64 : 32, kWarpKeys = kKeys / WarpsN;
    // Rows in shared memory are whole lines of 128 bytes, whose 16-byte chunks are permuted by the row.
    static constexpr int kChunks = HeadDim / 8, kRowBytes = (2 * HeadDim + 127) / 128 * 128;
    template <int Rows>
    QQQ_DEVICE static int place(int row, int chunk) {
        return row * kRowBytes + (chunk ^ (row & 7)) * 16;
    }
    static constexpr int kQueryBytes = kRows * kRowBytes, kKeyBytes = kKeys * kRowBytes;
    static constexpr int kSharedBytes = kQueryBytes + 4 * kKeyBytes;
    static_assert(HeadDim % 16 == 0 && HeadDim <= 256 && kPage % kKeys == 0 && kWarpKeys % 16 == 0);
    // At the end the warps that share keys put their sums where keys and values were.
    static_assert(WarpsN == 1 || WarpsN * kRows * (HeadDim + 2) * 4 <= 4 * kKeyBytes);
};

// Of a chunk of 16 bytes in a tile.
template <class C>
QQQ_DEVICE uint32 chunk_address(uint32 memory, int row, int chunk) {
    return memory + C::template place<C::kKeys>(row, chunk);
}

// Starts the copy of a tile's queries. A row is a token's head; rows beyond the last are zeros.
template <class C>
QQQ_DEVICE void copy_queries(const AttentionParameters& p, const AttentionTile& tile, int kv_head, uint32 memory) {
    const int group = p.num_heads / p.num_kv_heads;
    const long long width = (long long)(p.num_heads + 2 * p.num_kv_heads) * C::kHeadDim;
    const uint16* first = (const uint16*)p.qkv + tile.first_row * width + kv_head * group * C::kHeadDim;
    for (int i = threadIdx.x; i < C::kRows * C::kChunks; i += C::kThreads) {
        const int row = i / C::kChunks, chunk = i % C::kChunks, token = row / group;
        const bool valid = token < tile.tokens;
        const uint16* source = first + (valid ? token * width + row % group * C::kHeadDim : 0) + chunk * 8;
        ptx::copy_async_16(memory + C::template place<C::kRows>(row, chunk), source, valid);
    }
}

// Starts the copy of the keys and values from position `key` on; those from end_key on are zeros.
template <class C>
QQQ_DEVICE void copy_keys(const AttentionParameters& p, const AttentionTile& tile, int kv_head, int key, uint32 memory) {
    const long long page = p.pages[tile.first_page + key / kPage];
    const long long first = ((page * p.num_kv_heads + kv_head) * kPage + key % kPage) * C::kHeadDim;
    for (int i = threadIdx.x; i < C::kKeys * C::kChunks; i += C::kThreads) {
        const int row = i / C::kChunks, chunk = i % C::kChunks;
        const bool valid = key + row < tile.end_key;
        const long long at = first + (valid ? row * C::kHeadDim : 0) + chunk * 8;
        const uint32 target = chunk_address<C>(memory, row, chunk);
        ptx::copy_async_16(target, (const uint16*)p.keys + at, valid);
        ptx::copy_async_16(target + C::kKeyBytes, (const uint16*)p.values + at, valid);
    }
}

// What a warp carries along: of two rows a thread (lane / 4 and 8 more), its columns.
template <class C>
struct AttentionState {
    float largest[2], total[2];
    int sums[C::kHeadDim / 8][4];

    QQQ_DEVICE AttentionState() {
        // Below every score.
        largest[0] = largest[1] = __uint_as_float(0xFF800000u);
        total[0] = total[1] = 0.0f;
#pragma unroll
        for (auto& four : sums) four[0] = four[1] = four[2] = four[3] = 0;
    }
};

// The largest, and the sum, of the four lanes that share a row.
QQQ_DEVICE float quad_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(0xFFFFFFFFu, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xFFFFFFFFu, v, 2));
}

QQQ_DEVICE float quad_sum(float v) {
    v += __shfl_xor_sync(0xFFFFFFFFu, v, 1);
    return v + __shfl_xor_sync(0xFFFFFFFFu, v, 2);
}

// Where no score was seen yet, any number will do that is one.
QQQ_DEVICE float finite_base(float largest) { return largest == __uint_as_float(0xFF800000u) ? 0.0f : largest; }

// Makes probabilities of a step's scores, tiles of 8 keys, and brings the sums so far to their common factor. `positions` are
// those of the thread's two rows, `key` that of the first key; `masked`: some row does not see some key.
template <class C, int Tiles>
QQQ_DEVICE void take_scores(int (&scores)[Tiles][4], const int (&positions)[2], int window, int key, bool masked, float scale,
                            AttentionState<C>& state, uint32 (&probabilities)[Tiles][2]) {
    const int lane = threadIdx.x % 32;
    float largest[2] = {__uint_as_float(0xFF800000u), __uint_as_float(0xFF800000u)};
#pragma unroll
    for (int j = 0; j < Tiles; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            if (masked) {
                const int distance = positions[e / 2] - (key + 8 * j + lane % 4 * 2 + e % 2);
                if (distance < 0 || distance >= window) scores[j][e] = (int)0xFF800000u;
            }
            largest[e / 2] = fmaxf(largest[e / 2], __int_as_float(scores[j][e]));
        }
    }
    float base[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float highest = fmaxf(state.largest[r], quad_max(largest[r]) * scale);
        base[r] = finite_base(highest);
        const float factor = ptx::exp2(state.largest[r] - base[r]);
        state.largest[r] = highest;
        state.total[r] *= factor;
#pragma unroll
        for (auto& four : state.sums) {
            four[2 * r] = __float_as_int(__int_as_float(four[2 * r]) * factor);
            four[2 * r + 1] = __float_as_int(__int_as_float(four[2 * r + 1]) * factor);
        }
    }
#pragma unroll
    for (int j = 0; j < Tiles; ++j) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float first = ptx::exp2(__fmaf_rn(__int_as_float(scores[j][2 * r]), scale, -base[r]));
            const float second = ptx::exp2(__fmaf_rn(__int_as_float(scores[j][2 * r + 1]), scale, -base[r]));
            state.total[r] += first + second;
            probabilities[j][r] = pack_floats<C::kBfloat>(first, second);
        }
    }
}

// Of a warp: its rows against its keys of a step; arguments as those of take_scores.
template <class C>
QQQ_DEVICE void attend_step(uint32 queries, uint32 keys, const int (&positions)[2], int window, int key, bool masked, float scale,
                            AttentionState<C>& state) {
    const int lane = threadIdx.x % 32;
    constexpr int kTiles = C::kWarpKeys / 8;
    int scores[kTiles][4];
#pragma unroll
    for (auto& four : scores) four[0] = four[1] = four[2] = four[3] = 0;
#pragma unroll
    for (int k = 0; k < C::kHeadDim / 16; ++k) {
        uint32 a[4];
        ptx::load_matrix_x4(chunk_address<C>(queries, lane % 16, 2 * k + lane / 16), a);
#pragma unroll
        for (int j = 0; j < kTiles; j += 2) {
            uint32 b[4];
            ptx::load_matrix_x4(chunk_address<C>(keys, 8 * j + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2), b);
            ptx::mma_16x8x16<C::kBfloat>(scores[j], a[0], a[1], a[2], a[3], b[0], b[1]);
            ptx::mma_16x8x16<C::kBfloat>(scores[j + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
        }
    }

    uint32 probabilities[kTiles][2];
    take_scores<C>(scores, positions, window, key, masked, scale, state, probabilities);
    // Two tiles of scores, as probabilities, are the operand of a product with 16 values.
#pragma unroll
    for (int j = 0; j < kTiles; j += 2) {
        const uint32* a = probabilities[j];
        const uint32* more = probabilities[j + 1];
#pragma unroll
        for (int n = 0; n < C::kHeadDim / 8; n += 2) {
            uint32 b[4];
            ptx::load_matrix_x4_transposed(chunk_address<C>(keys + C::kKeyBytes, 8 * j + lane % 16, n + lane / 16), b);
            ptx::mma_16x8x16<C::kBfloat>(state.sums[n], a[0], a[1], more[0], more[1], b[0], b[1]);
            ptx::mma_16x8x16<C::kBfloat>(state.sums[n + 1], a[0], a[1], more[0], more[1], b[2], b[3]);
        }
    }
}

// Where a row of a tile goes, two values at a time.
template <class C>
struct AttentionResult {
    const AttentionParameters& p;
    const AttentionTile& tile;
    int kv_head;

    QQQ_DEVICE void write(int row, int column, float first, float second, float total) const {
        const int group = p.num_heads / p.num_kv_heads, token = row / group;
        if (token >= tile.tokens) return;
        if (tile.part == kWhole) {
            const float inverse = __fdiv_rn(1.0f, total);
            const long long head = (long long)(tile.first_row + token) * p.num_heads + kv_head * group + row % group;
            *(uint32*)((uint16*)p.out + head * C::kHeadDim + column) = pack_floats<C::kBfloat>(first * inverse, second * inverse);
        } else {
            float* sums = p.sums + (part_row(row) * C::kHeadDim + column);
            sums[0] = first, sums[1] = second;
        }
    }

    // Of a part of a result.
    QQQ_DEVICE void write_stats(int row, float largest, float total) const {
        if (tile.part == kWhole) return;
        p.stats[2 * part_row(row)] = largest;
        p.stats[2 * part_row(row) + 1] = total;
    }

    QQQ_DEVICE long long part_row(int row) const {
        return ((long long)tile.part * p.num_kv_heads + kv_head) * C::kRows + row;
    }
};

// Puts the sums of the warps that share keys together, in their order.
template <class C>
QQQ_DEVICE void join_warps(const AttentionState<C>& state, const AttentionResult<C>& result, uint8* memory) {
    constexpr int kWidth = C::kHeadDim + 2;
    float* shared = (float*)memory;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = warp / C::kWarpsN * 16 + lane / 4, part = warp % C::kWarpsN;
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float* target = shared + (part * C::kRows + row + 8 * r) * kWidth;
#pragma unroll
        for (int n = 0; n < C::kHeadDim / 8; ++n) {
            target[8 * n + lane % 4 * 2] = __int_as_float(state.sums[n][2 * r]);
            target[8 * n + lane % 4 * 2 + 1] = __int_as_float(state.sums[n][2 * r + 1]);
        }
        if (lane % 4 == 0) target[C::kHeadDim] = state.largest[r], target[C::kHeadDim + 1] = state.total[r];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < C::kRows * (C::kHeadDim / 2); i += C::kThreads) {
        const int at = i / (C::kHeadDim / 2), column = i % (C::kHeadDim / 2) * 2;
        float largest = __uint_as_float(0xFF800000u), total = 0.0f, first = 0.0f, second = 0.0f;
#pragma unroll
        for (int w = 0; w < C::kWarpsN; ++w) largest = fmaxf(largest, shared[(w * C::kRows + at) * kWidth + C::kHeadDim]);
#pragma unroll
        for (int w = 0; w < C::kWarpsN; ++w) {
            const float* source = shared + (w * C::kRows + at) * kWidth;
            const float factor = ptx::exp2(source[C::kHeadDim] - finite_base(largest));
            total += source[C::kHeadDim + 1] * factor;
            first += source[column] * factor, second += source[column + 1] * factor;
        }
        result.write(at, column, first, second, total);
        if (column == 0) result.write_stats(at, largest, total);
    }
}

template <class C>
QQQ_DEVICE void attention(const AttentionParameters& p) {
    uint8* memory = ptx::dynamic_shared();
    const AttentionTile tile = p.tiles[blockIdx.x / p.num_kv_heads];
    const int kv_head = blockIdx.x % p.num_kv_heads;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = p.num_heads / p.num_kv_heads;
    const uint32 queries = ptx::shared_address(memory), keys = queries + C::kQueryBytes;
    const int window = p.window > 0 ? p.window : 0x7FFFFFFF;

    copy_queries<C>(p, tile, kv_head, queries);
    copy_keys<C>(p, tile, kv_head, tile.first_key, keys);
    ptx::copy_async_commit();
    const int first_row = warp / C::kWarpsN * 16, first_key = warp % C::kWarpsN * C::kWarpKeys;
    const int positions[2] = {tile.position + (first_row + lane / 4) / group, tile.position + (first_row + lane / 4 + 8) / group};
    const int last_position = tile.position + tile.tokens - 1;
    AttentionState<C> state;
    int stage = 0;
#pragma unroll 1
    for (int key = tile.first_key; key < tile.end_key; key += C::kKeys, stage ^= 1) {
        const int next = key + C::kKeys;
        if (next < tile.end_key) copy_keys<C>(p, tile, kv_head, next, keys + (stage ^ 1) * 2 * C::kKeyBytes);
        ptx::copy_async_commit();
        ptx::copy_async_wait<1>();
        __syncthreads();
        const bool masked = next - 1 > tile.position || last_position - key >= window;
        const uint32 own = keys + stage * 2 * C::kKeyBytes + first_key * C::kRowBytes;
        attend_step<C>(queries + first_row * C::kRowBytes, own, positions, window, key + first_key, masked, p.scale, state);
        __syncthreads();
    }
    ptx::copy_async_wait<0>();
    state.total[0] = quad_sum(state.total[0]), state.total[1] = quad_sum(state.total[1]);

    const AttentionResult<C> result{p, tile, kv_head};
    if constexpr (C::kWarpsN > 1) {
        join_warps<C>(state, result, memory + C::kQueryBytes);
    } else {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int row = first_row + lane / 4 + 8 * r;
#pragma unroll
            for (int n = 0; n < C::kHeadDim / 8; ++n) {
                result.write(row, 8 * n + lane % 4 * 2, __int_as_float(state.sums[n][2 * r]),
                             __int_as_float(state.sums[n][2 * r + 1]), state.total[r]);
            }
            if (lane % 4 == 0) result.write_stats(row, state.largest[r], state.total[r]);
        }
    }
}

// Joins the parts of a tile in their order; a CTA takes a query head.
template <class C>
QQQ_DEVICE void join_parts(const AttentionParameters& p) {
    const JoinedTile tile = p.joined[blockIdx.x / p.num_heads];
    const int head = blockIdx.x % p.num_heads, group = p.num_heads / p.num_kv_heads;
    for (int i = threadIdx.x; i < tile.tokens * (C::kHeadDim / 2); i += blockDim.x) {
        const int token = i / (C::kHeadDim / 2), column = i % (C::kHeadDim / 2) * 2;
        const long long stride = (long long)p.num_kv_heads * C::kRows;
        const long long first = tile.first_part * stride + head / group * C::kRows + token * group + head % group;
        float largest = __uint_as_float(0xFF800000u), total = 0.0f, a = 0.0f, b = 0.0f;
        for (int part = 0; part < tile.parts; ++part) largest = fmaxf(largest, p.stats[2 * (first + part * stride)]);
        for (int part = 0; part < tile.parts; ++part) {
            const long long row = first + part * stride;
            const float factor = ptx::exp2(p.stats[2 * row] - finite_base(largest));
            total += p.stats[2 * row + 1] * factor;
            a += p.sums[row * C::kHeadDim + column] * factor, b += p.sums[row * C::kHeadDim + column + 1] * factor;
        }
        const float inverse = __fdiv_rn(1.0f, total);
        const long long out = ((long long)(tile.first_row + token) * p.num_heads + head) * C::kHeadDim + column;
        *(uint32*)((uint16*)p.out + out) = pack_floats<C::kBfloat>(a * inverse, b * inverse);
    }
}
