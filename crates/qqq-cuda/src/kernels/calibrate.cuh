// Calibration beside a decoder's operations: inputs of layers as rows of one 16-bit type, inputs as attention averages them,
// and the completion of second moments.
#pragma once

#include "decoder_steps.cuh"
#include "quantize_activations.cuh"

// --- int8 rows at what they stand for ------------------------------------------------------------

struct WidenParameters {
    // rows x cols codes, four at a time.
    const uint32* codes;
    // A scale a row.
    const float* scales;
    // rows x cols bfloat16, two at a time.
    uint32* out;
    // Fours of codes in all, and of a row.
    long long count;
    int row_count;
};

QQQ_DEVICE void widen(const WidenParameters& p) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < p.count; i += step) {
        const uint32 codes = p.codes[i];
        const float scale = p.scales[i / p.row_count];
        float v[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) v[j] = __fmul_rn((float)(int8)(codes >> 8 * j), scale);
        p.out[2 * i] = pack_floats<true>(v[0], v[1]);
        p.out[2 * i + 1] = pack_floats<true>(v[2], v[3]);
    }
}

// --- probabilities of attention ------------------------------------------------------------------

struct ProbabilityParameters {
    // rows x (q, k and v heads) of one sequence from its start, in half or bfloat16, after the rotary embedding.
    const uint16* qkv;
    // (heads x queries) x pitch.
    uint16* out;
    int rows, num_heads, num_kv_heads, head_dim;
    // The queries of a head: at positions first, first + stride, and so on.
    int queries, first, stride;
    // Positions that a query sees, its own included; 0: all before it.
    int window;
    int pitch;
    // Of a score, times log2(e).
    float scale;
};

constexpr int kProbabilityThreads = 256;

// A CTA takes a query of a head. Bfloat: the type of queries and keys; OutBfloat: that of the probabilities.
template <bool Bfloat, bool OutBfloat>
QQQ_DEVICE void probabilities(const ProbabilityParameters& p) {
    __shared__ float query[kMostHeadDim], largest_scratch[32], sum_scratch[32];
    const int head = blockIdx.x / p.queries, position = p.first + blockIdx.x % p.queries * p.stride;
    const int width = (p.num_heads + 2 * p.num_kv_heads) * p.head_dim;
    const uint16* q = p.qkv + (long long)position * width + head * p.head_dim;
    for (int i = threadIdx.x; i < p.head_dim; i += kProbabilityThreads) {
        query[i] = value_at(q, Bfloat ? kBfloatValue : kHalfValue, i) * p.scale;
    }
    __syncthreads();
    const uint16* keys = p.qkv + (p.num_heads + head / (p.num_heads / p.num_kv_heads)) * p.head_dim;
    const int begin = p.window > 0 && position >= p.window ? position + 1 - p.window : 0;
    auto score = [&](int t) {
        const uint16* key = keys + (long long)t * width;
        float sum = 0.0f;
        for (int i = 0; i < p.head_dim; i += 8) {
            float v[8];
            unpack_vector<Bfloat>(ptx::load_global_128(key + i), v);
#pragma unroll
            for (int j = 0; j < 8; ++j) sum = __fmaf_rn(query[i + j], v[j], sum);
        }
        return sum;
    };
    float largest = -3.0e38f, sum = 0.0f;
    for (int t = begin + threadIdx.x; t <= position; t += kProbabilityThreads) {
        const float s = score(t), before = largest;
        largest = fmaxf(largest, s);
        sum = __fmaf_rn(sum, ptx::exp2(before - largest), ptx::exp2(s - largest));
    }
    const float all = reduce_row<kProbabilityThreads>(largest, largest_scratch, [](float a, float b) { return fmaxf(a, b); });
    sum = reduce_row<kProbabilityThreads>(sum * ptx::exp2(largest - all), sum_scratch, [](float a, float b) { return a + b; });
    const float inverse = __fdiv_rn(1.0f, sum);
    uint16* out = p.out + (long long)blockIdx.x * p.pitch;
    for (int t = threadIdx.x; t < p.pitch; t += kProbabilityThreads) {
        const float value = t >= begin && t <= position ? ptx::exp2(score(t) - all) * inverse : 0.0f;
        out[t] = (uint16)pack_floats<OutBfloat>(value, value);
    }
}

// --- matrices --------------------------------------------------------------------------------------

struct MirrorParameters {
    // width x width, lower triangle.
    float* matrix;
    int width;
    float factor;
};

constexpr int kMirrorTile = 32, kMirrorThreads = 256;

// The lower triangle times a factor, in both triangles. A CTA takes a tile.
QQQ_DEVICE void mirror(const MirrorParameters& p) {
    __shared__ float tile[kMirrorTile][kMirrorTile + 1];
    const int tiles = (p.width + kMirrorTile - 1) / kMirrorTile;
    const int row0 = blockIdx.x / tiles * kMirrorTile, col0 = blockIdx.x % tiles * kMirrorTile;
    if (col0 > row0) return;
    const int x = threadIdx.x % kMirrorTile;
    for (int y = threadIdx.x / kMirrorTile; y < kMirrorTile; y += kMirrorThreads / kMirrorTile) {
        const int row = row0 + y, col = col0 + x;
        if (row < p.width && col <= row) {
            const long long at = (long long)row * p.width + col;
            tile[y][x] = p.matrix[at] = __fmul_rn(p.matrix[at], p.factor);
        }
    }
    __syncthreads();
    for (int y = threadIdx.x / kMirrorTile; y < kMirrorTile; y += kMirrorThreads / kMirrorTile) {
        const int row = row0 + x, col = col0 + y;
        if (row < p.width && col < row) p.matrix[(long long)col * p.width + row] = tile[x][y];
    }
}

struct DiagonalParameters {
    const float* matrix;
    float* out;
    int width;
};

QQQ_DEVICE void diagonal(const DiagonalParameters& p) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.width) p.out[i] = p.matrix[(long long)i * p.width + i];
}

struct NotFiniteParameters {
    const void* values;
    long long count;
    // The index of the first value that is not finite, or what it was before.
    uint32* first;
    ValueType type;
};

QQQ_DEVICE void not_finite(const NotFiniteParameters& p) {
    uint32 first = 0xFFFFFFFFu;
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < p.count; i += step) {
        const uint32 bits = __float_as_uint(value_at(p.values, p.type, i));
        if ((bits & 0x7F800000u) == 0x7F800000u) {
            first = (uint32)i;
            break;
        }
    }
    if (first != 0xFFFFFFFFu) atomicMin(p.first, first);
}
