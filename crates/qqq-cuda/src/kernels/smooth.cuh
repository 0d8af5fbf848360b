// The smoothing search: weights whose columns are multiplied by the candidate's factors, rounded to nearest; inputs divided by
// them, in int8; and what the outputs lose. Beside it, what becomes of float weights when a candidate is chosen.
//
// N rows are output channels, K columns input channels; K is a multiple of 16.
#pragma once

#include "solve.cuh"

constexpr int kSmoothThreads = kScaleThreads;

// Four float32 that lie side by side.
QQQ_DEVICE void load_floats(const float* from, float (&v)[4]) {
    const uint4 words = ptx::load_global_128(from);
    v[0] = __uint_as_float(words.x), v[1] = __uint_as_float(words.y);
    v[2] = __uint_as_float(words.z), v[3] = __uint_as_float(words.w);
}

QQQ_DEVICE float larger(float a, float b) { return fmaxf(a, b); }

// --- weights of a candidate ----------------------------------------------------------------------------

struct RoundParameters {
    // N x K.
    const float* weights;
    // K: what columns are multiplied by.
    const float* factors;
    // N x K.
    int8* codes;
    // N: scales of the output channels.
    float* channels;
    // N x groups, in half: multiples of the channel's scale. Without groups there are none.
    uint16* multiples;
    int k, group;
    float low, high, reach;
};

// Groups of a row at most: of 32 columns.
constexpr int kMostGroups = 2048;

// Codes and scales as the neutral form has them, rounded to nearest, where the largest weight fits. A CTA takes a row, and of
// rows with groups a warp takes a group.
template <bool Grouped>
QQQ_DEVICE void round_scaled(const RoundParameters& p) {
    constexpr int kThreads = Grouped ? 32 : kSmoothThreads;
    __shared__ float scales[Grouped ? kMostGroups : 1], scratch[2][32];
    __shared__ uint8 largest_codes[Grouped ? kMostGroups : 1];
    __shared__ uint32 wrong_scratch[32];
    const long long row = blockIdx.x;
    const int groups = p.k / p.group, lane = threadIdx.x % kThreads;
    for (int g = threadIdx.x / kThreads; g < groups; g += kSmoothThreads / kThreads) {
        const long long at = row * p.k + g * p.group;
        const float *w = p.weights + at, *factors = p.factors + g * p.group;
        auto scaled = [&](int i, float(&v)[4]) {
            float factor[4];
            load_floats(w + i, v), load_floats(factors + i, factor);
#pragma unroll
            for (int j = 0; j < 4; ++j) v[j] = __fmul_rn(v[j], factor[j]);
        };
        float largest = 0.0f;
        for (int i = lane * 4; i < p.group; i += kThreads * 4) {
            float v[4];
            scaled(i, v);
#pragma unroll
            for (int j = 0; j < 4; ++j) largest = fmaxf(largest, fabsf(v[j]));
        }
        largest = reduce_row<kThreads>(largest, scratch[0], larger);
        const float step = __fdiv_rn(largest, p.reach), scale = step > kLeastNormal ? step : 1.0f;
        const float inverse = __fdiv_rn(1.0f, scale);
        float most = 0.0f;
        for (int i = lane * 4; i < p.group; i += kThreads * 4) {
            float v[4];
            scaled(i, v);
            uint32 word = 0;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float code = clamp(round_even(__fmul_rn(v[j], inverse)), p.low, p.high);
                most = fmaxf(most, fabsf(code));
                word |= ((uint32)(int)code & 0xFF) << 8 * j;
            }
            *(uint32*)(p.codes + at + i) = word;
        }
        if constexpr (Grouped) {
            most = reduce_row<32>(most, (float*)nullptr, larger);
            if (lane == 0) scales[g] = scale, largest_codes[g] = (uint8)(int)most;
        } else if (lane == 0) {
            p.channels[row] = scale;
        }
    }
    if constexpr (Grouped) {
        __syncthreads();
        float top = 0.0f, weight = 0.0f;
        for (int g = threadIdx.x; g < groups; g += kSmoothThreads) {
            const float code = (float)largest_codes[g];
            if (code > 0.0f) top = fmaxf(top, scales[g]), weight = fmaxf(weight, __fmul_rn(code, scales[g]));
        }
        top = reduce_row<kSmoothThreads>(top, scratch[0], larger);
        weight = reduce_row<kSmoothThreads>(weight, scratch[1], larger);
        uint32 wrong = 0;
        for (int g = threadIdx.x; g < groups; g += kSmoothThreads) wrong |= wrong_parts(top, scales[g], (float)largest_codes[g]);
        wrong = reduce_row<kSmoothThreads>(wrong, wrong_scratch, [](uint32 a, uint32 b) { return a | b; });
        const float channel = channel_scale(top, weight, wrong);
        for (int g = threadIdx.x; g < groups; g += kSmoothThreads) {
            const float multiple = largest_codes[g] > 0 ? __fdiv_rn(scales[g], channel) : 0.0f;
            p.multiples[row * groups + g] = (uint16)pack_floats<false>(multiple, 0.0f);
        }
        if (threadIdx.x == 0) p.channels[row] = channel;
    }
}

// --- inputs of a candidate -----------------------------------------------------------------------------

struct SmoothParameters {
    // rows x K, in half or bfloat16.
    const uint16* x;
    // K: what columns are multiplied by.
    const float* factors;
    // rows x K.
    int8* out;
    // A scale a row.
    float* scales;
    int k;
};

// Rows times the factors, in int8. A CTA takes a row.
template <bool Bfloat>
QQQ_DEVICE void smooth_rows(const SmoothParameters& p) {
    __shared__ float scratch[32];
    const long long first = (long long)blockIdx.x * p.k;
    auto scaled = [&](int i, float(&v)[8]) {
        float low[4], high[4];
        unpack_vector<Bfloat>(ptx::load_global_128(p.x + first + i), v);
        load_floats(p.factors + i, low), load_floats(p.factors + i + 4, high);
#pragma unroll
        for (int j = 0; j < 4; ++j) v[j] = __fmul_rn(v[j], low[j]), v[j + 4] = __fmul_rn(v[j + 4], high[j]);
    };
    float largest = 0.0f;
    for (int i = threadIdx.x * 8; i < p.k; i += kSmoothThreads * 8) {
        float v[8];
        scaled(i, v);
#pragma unroll
        for (int j = 0; j < 8; ++j) largest = fmaxf(largest, fabsf(v[j]));
    }
    largest = reduce_row<kSmoothThreads>(largest, scratch, larger);
    // As where activations alone are quantized.
    largest = largest >= 1e-30f ? fminf(largest, 3.4e38f) : 1.0f;
    const float scale = __fdiv_rn(largest, 127.0f), inverse = __fdiv_rn(1.0f, scale);
    for (int i = threadIdx.x * 8; i < p.k; i += kSmoothThreads * 8) {
        float v[8];
        scaled(i, v);
        uint2 out;
        out.x = quantize_four(v, scale, inverse), out.y = quantize_four(v + 4, scale, inverse);
        *(uint2*)(p.out + first + i) = out;
    }
    if (threadIdx.x == 0) p.scales[blockIdx.x] = scale;
}

struct RangeParameters {
    // rows x K.
    const void* x;
    // K each: the largest and the least value of a column.
    float *most, *least;
    int rows, k;
    ValueType type;
};

constexpr int kRangeColumns = 32;

// A CTA takes some columns, and each of its warps every so many rows.
QQQ_DEVICE void channel_range(const RangeParameters& p) {
    constexpr int kSlices = kSmoothThreads / kRangeColumns;
    __shared__ float most[kSlices][kRangeColumns], least[kSlices][kRangeColumns];
    const int lane = threadIdx.x % kRangeColumns, slice = threadIdx.x / kRangeColumns, column = blockIdx.x * kRangeColumns + lane;
    float high = __uint_as_float(0xFF800000u), low = __uint_as_float(0x7F800000u);
    for (int row = slice; row < p.rows && column < p.k; row += kSlices) {
        const float value = value_at(p.x, p.type, (long long)row * p.k + column);
        high = fmaxf(high, value), low = fminf(low, value);
    }
    most[slice][lane] = high, least[slice][lane] = low;
    __syncthreads();
    if (slice > 0 || column >= p.k) return;
    for (int i = 1; i < kSlices; ++i) high = fmaxf(high, most[i][lane]), low = fminf(low, least[i][lane]);
    p.most[column] = high, p.least[column] = low;
}

// --- losses --------------------------------------------------------------------------------------------

struct DistanceParameters {
    // rows x columns each; b may be null for zeros.
    const void *a, *b;
    // Of each row.
    double* out;
    int columns;
    ValueType type;
};

// Squared distances of rows. A CTA takes a row.
QQQ_DEVICE void distances(const DistanceParameters& p) {
    __shared__ double sums[kSmoothThreads];
    const long long first = (long long)blockIdx.x * p.columns;
    double sum = 0.0;
    for (int i = threadIdx.x; i < p.columns; i += kSmoothThreads) {
        const float other = p.b ? value_at(p.b, p.type, first + i) : 0.0f, d = value_at(p.a, p.type, first + i) - other;
        sum += (double)d * (double)d;
    }
    sum = sum_of_cta(sum, sums);
    if (threadIdx.x == 0) p.out[blockIdx.x] = sum;
}

// --- float weights -------------------------------------------------------------------------------------

struct HalvesParameters {
    // Two at a time.
    const float* x;
    uint32* out;
    // Twos.
    long long count;
};

// In half or bfloat16.
template <bool Bfloat>
QQQ_DEVICE void halves(const HalvesParameters& p) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < p.count; i += step) {
        p.out[i] = pack_floats<Bfloat>(p.x[2 * i], p.x[2 * i + 1]);
    }
}

struct DivideParameters {
    // rows x K.
    float* weights;
    // A divisor a row.
    const float* divisors;
    long long count;
    int k;
};

// Rows by their divisors.
QQQ_DEVICE void divide_rows(const DivideParameters& p) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < p.count; i += step) {
        p.weights[i] = __fdiv_rn(p.weights[i], p.divisors[i / p.k]);
    }
}
