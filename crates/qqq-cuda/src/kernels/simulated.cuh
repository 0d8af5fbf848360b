// Layers whose arithmetic is simulated: which columns of an input are outliers, the input as the arithmetic multiplies it, and
// the sum of what is multiplied.
//
// Inputs and weights of a product are integer codes, held in the 16-bit type, which has all integers up to 256; or they are the
// 16-bit numbers themselves. Sums are float32. The scales come afterwards.
#pragma once

#include "quantize_activations.cuh"

constexpr int kMarkedColumns = 32, kMarkedRows = 8, kCodeThreads = 256, kSumThreads = 256;

template <bool Bfloat>
QQQ_DEVICE float half_at(const uint16* values, long long i) {
    return Bfloat ? __uint_as_float((uint32)values[i] << 16) : ptx::half_to_float(values[i]);
}

template <bool Bfloat>
QQQ_DEVICE uint16 to_half_type(float value) {
    return (uint16)pack_floats<Bfloat>(value, value);
}

struct MarkParameters {
    // M x K.
    const uint16* x;
    // K: 1 where any magnitude of the column reaches the threshold or is no number, else 0.
    uint8* outlier;
    int m, k;
    float threshold;
};

// A CTA takes some columns, all rows of them.
template <bool Bfloat>
QQQ_DEVICE void mark_columns(const MarkParameters& p) {
    __shared__ int found[kMarkedRows][kMarkedColumns];
    const int lane = threadIdx.x % kMarkedColumns, first = threadIdx.x / kMarkedColumns;
    const int column = blockIdx.x * kMarkedColumns + lane;
    int large = 0;
    if (column < p.k) {
        for (int row = first; row < p.m; row += kMarkedRows) {
            large |= !(fabsf(half_at<Bfloat>(p.x, (long long)row * p.k + column)) < p.threshold);
        }
    }
    found[first][lane] = large;
    __syncthreads();
    if (first > 0 || column >= p.k) return;
    for (int i = 1; i < kMarkedRows; ++i) large |= found[i][lane];
    p.outlier[column] = large;
}

enum Coding {
    // As they are.
    kAsTheyAre = 0,
    // int8 by the largest magnitude of the row.
    kSymmetric = 1,
    // From the least value of the row to its largest, less half the range of the codes.
    kAsymmetric = 2,
};

struct CodeParameters {
    // M x K.
    const uint16* x;
    // K, 1 or 0.
    const uint8* outlier;
    // M x K: codes, or values, of the columns that are meant, and 0 elsewhere.
    uint16* codes;
    // M each, where there are codes: a value is code * scale + zero.
    float *scale, *zero;
    int m, k;
    Coding coding;
    int bits;
    // Whether outlier columns are meant, or all others.
    int of_outliers;
};

// A CTA takes a row. Rows with a value that is not finite have codes of 0, and a scale or a zero that is no number.
template <bool Bfloat>
QQQ_DEVICE void code_rows(const CodeParameters& p) {
    __shared__ float least_scratch[32], most_scratch[32];
    const long long begin = (long long)blockIdx.x * p.k;
    const float infinity = __uint_as_float(0x7F800000u);
    auto meant = [&](int column) { return (p.outlier[column] != 0) == (p.of_outliers != 0); };
    float scale = 1.0f, zero = 0.0f;
    bool finite = true;
    if (p.coding != kAsTheyAre) {
        // In one pass: where a value is not finite, both ends are infinite.
        float least = infinity, most = -infinity;
        for (int i = threadIdx.x; i < p.k; i += kCodeThreads) {
            if (!meant(i)) continue;
            const float value = half_at<Bfloat>(p.x, begin + i);
            const bool is_number = fabsf(value) < infinity;
            least = fminf(least, is_number ? value : -infinity), most = fmaxf(most, is_number ? value : infinity);
        }
        least = reduce_row<kCodeThreads>(least, least_scratch, [](float a, float b) { return fminf(a, b); });
        most = reduce_row<kCodeThreads>(most, most_scratch, [](float a, float b) { return fmaxf(a, b); });
        // Without any column that is meant they are apart the other way.
        finite = !(most == infinity);
        const bool empty = most == -infinity;
        if (p.coding == kSymmetric) {
            const float largest = empty ? 0.0f : fmaxf(fabsf(least), fabsf(most));
            const float step = __fdiv_rn(largest, 127.0f);
            scale = finite ? (step > 0.0f ? step : 1.0f) : __uint_as_float(0x7FC00000u);
        } else if (finite && !empty) {
            // Halves of both, whose difference is always finite.
            const float levels = (float)((1 << p.bits) - 1);
            const float range = __fadd_rn(__fmul_rn(most, 0.5f), -__fmul_rn(least, 0.5f));
            const float step = __fmul_rn(2.0f, __fdiv_rn(range, levels));
            scale = step > 0.0f && step < infinity ? step : 1.0f;
            zero = __fadd_rn(least, __fmul_rn((float)(1 << (p.bits - 1)), scale));
        } else if (!finite) {
            zero = __uint_as_float(0x7FC00000u);
        } else {
            zero = (float)(1 << (p.bits - 1));
        }
        for (int i = threadIdx.x; i < p.k; i += kCodeThreads) {
            float code = 0.0f;
            if (finite && meant(i)) {
                const float value = half_at<Bfloat>(p.x, begin + i);
                const bool symmetric = p.coding == kSymmetric;
                const float levels = (float)((1 << p.bits) - 1), half = (float)(1 << (p.bits - 1));
                const float place = __fdiv_rn(symmetric ? value : __fadd_rn(value, -least), scale);
                // Adding 1.5 * 2^23 rounds to an integer, to even.
                const float nearest = __fadd_rn(__fadd_rn(place, 12582912.0f), -12582912.0f);
                code = symmetric ? fmaxf(fminf(nearest, 127.0f), -128.0f) : fmaxf(fminf(nearest, levels), 0.0f) - half;
            }
            p.codes[begin + i] = to_half_type<Bfloat>(code);
        }
        if (threadIdx.x == 0) {
            p.scale[blockIdx.x] = scale;
            if (p.coding == kAsymmetric) p.zero[blockIdx.x] = zero;
        }
        return;
    }
    for (int i = threadIdx.x; i < p.k; i += kCodeThreads) p.codes[begin + i] = meant(i) ? p.x[begin + i] : (uint16)0;
}

// A product of rows with weights, before its scales.
struct Summand {
    // M x N.
    const float* sums;
    // M: scales and zeros of the rows' codes; null: 1, and 0.
    const float *scale, *zero;
    // N: scales of the weights' codes, and their sums times these; null: 1, and none.
    const float *channel_scale, *channel_sum;
};

struct SumParameters {
    // The second has no sums where there is only one.
    Summand summands[2];
    // N, or null.
    const float* bias;
    // M x N.
    uint16* out;
    int m, n;
};

// y = sum (sums * channel_scale * scale + zero * channel_sum) + bias, rounded once.
template <bool Bfloat>
QQQ_DEVICE void sum_products(const SumParameters& p) {
    const long long count = (long long)p.m * p.n;
    for (long long i = (long long)blockIdx.x * kSumThreads + threadIdx.x; i < count; i += (long long)gridDim.x * kSumThreads) {
        const int row = (int)(i / p.n), column = (int)(i % p.n);
        float y = 0.0f;
#pragma unroll
        for (int s = 0; s < 2; ++s) {
            const Summand& summand = p.summands[s];
            if (!summand.sums) continue;
            float part = summand.sums[i];
            if (summand.channel_scale) part = __fmul_rn(__fmul_rn(part, summand.channel_scale[column]), summand.scale[row]);
            y = __fadd_rn(y, part);
            if (summand.zero) y = __fadd_rn(y, __fmul_rn(summand.zero[row], summand.channel_sum[column]));
        }
        if (p.bias) y = __fadd_rn(y, p.bias[column]);
        p.out[i] = to_half_type<Bfloat>(y);
    }
}
