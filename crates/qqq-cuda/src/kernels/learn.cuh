// Learning how a block is quantized: what there is of it between products of matrices. All numbers are float32, matrices row-major.
// Here: elements, sums over rows, and the step down a gradient. Sums are made in an order that does not change.
#pragma once

#include "smooth.cuh"

constexpr int kLearnThreads = kSmoothThreads;

// Single elements, of which each thread takes several.
template <class Job>
QQQ_DEVICE void each_element(long long count, Job job) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) job(i);
}

QQQ_DEVICE float plus(float a, float b) { return a + b; }

// --- elements ------------------------------------------------------------------------------------------

struct DifferenceParameters {
    // b may be null for zeros.
    const float *a, *b;
    float* out;
    long long count;
    float factor;
};

// factor (a - b).
QQQ_DEVICE void difference(const DifferenceParameters& p) {
    each_element(p.count, [&](long long i) { p.out[i] = __fmul_rn(p.factor, p.b ? p.a[i] - p.b[i] : p.a[i]); });
}

struct QuotientParameters {
    // rows x pitch; columns of it from the first on are divided.
    float* x;
    // A divisor a column.
    const float* divisors;
    // Elements that are divided.
    long long count;
    int pitch, first, columns;
};

QQQ_DEVICE void divide_columns(const QuotientParameters& p) {
    each_element(p.count, [&](long long i) {
        const int column = (int)(i % p.columns);
        float& x = p.x[i / p.columns * p.pitch + p.first + column];
        x = __fdiv_rn(x, p.divisors[column]);
    });
}

struct RepeatParameters {
    const float* x;
    float* out;
    // Of the output.
    int columns;
    // Of a head, and the query heads that share one of the values.
    int width, each;
};

// What the channels of the values have, for those of attention's output.
QQQ_DEVICE void repeat_heads(const RepeatParameters& p) {
    each_element(p.columns, [&](long long i) { p.out[i] = p.x[i / (p.each * p.width) * p.width + i % p.width]; });
}

// The sum of what these have.
QQQ_DEVICE void sum_heads(const RepeatParameters& p) {
    each_element(p.columns, [&](long long i) {
        const float* x = p.x + i / p.width * p.each * p.width + i % p.width;
        float sum = 0.0f;
        for (int head = 0; head < p.each; ++head) sum += x[head * p.width];
        p.out[i] = sum;
    });
}

// --- sums over rows ------------------------------------------------------------------------------------

struct ColumnProductParameters {
    // rows x pitch each, of which columns from the first on count.
    const float *a, *b;
    // chunks x columns: sums over the rows of a chunk.
    float* out;
    int rows, pitch, first, columns;
};

constexpr int kProductColumns = 32, kProductRows = 128;

// Sums of a b over the rows of a chunk. A CTA takes some columns of one, and each of its warps every so many rows.
QQQ_DEVICE void column_products(const ColumnProductParameters& p) {
    constexpr int kSlices = kLearnThreads / kProductColumns;
    __shared__ float sums[kSlices][kProductColumns];
    const int parts = (p.columns + kProductColumns - 1) / kProductColumns;
    const int chunk = blockIdx.x / parts, lane = threadIdx.x % kProductColumns, slice = threadIdx.x / kProductColumns;
    const int column = blockIdx.x % parts * kProductColumns + lane, end = min(p.rows, (chunk + 1) * kProductRows);
    float sum = 0.0f;
    for (int row = chunk * kProductRows + slice; row < end && column < p.columns; row += kSlices) {
        const long long at = (long long)row * p.pitch + p.first + column;
        sum = __fmaf_rn(p.a[at], p.b[at], sum);
    }
    sums[slice][lane] = sum;
    __syncthreads();
    if (slice > 0 || column >= p.columns) return;
    for (int i = 1; i < kSlices; ++i) sum += sums[i][lane];
    p.out[(long long)chunk * p.columns + column] = sum;
}

struct ColumnTotalParameters {
    // chunks x columns.
    const float* parts;
    // A divisor a column, or null.
    const float* divisors;
    float* out;
    int chunks, columns;
};

// The sum of all chunks. With divisors it is divided, and taken from what is there.
QQQ_DEVICE void column_totals(const ColumnTotalParameters& p) {
    each_element(p.columns, [&](long long i) {
        float sum = 0.0f;
        for (int chunk = 0; chunk < p.chunks; ++chunk) sum += p.parts[(long long)chunk * p.columns + i];
        p.out[i] = p.divisors ? p.out[i] - __fdiv_rn(sum, p.divisors[i]) : sum;
    });
}

// --- the step ------------------------------------------------------------------------------------------

struct AdamParameters {
    float *value, *mean, *square;
    const float* gradient;
    long long count;
    // Of the running means, and what a new value counts.
    float decay, rest, square_decay, square_rest;
    // Corrected for the means' beginning at 0.
    float rate, correction;
    float epsilon;
    // No value is less.
    float least;
};

// As on the host, operation by operation.
QQQ_DEVICE void adam(const AdamParameters& p) {
    each_element(p.count, [&](long long i) {
        const float g = p.gradient[i];
        const float mean = __fadd_rn(__fmul_rn(p.decay, p.mean[i]), __fmul_rn(p.rest, g));
        const float square = __fadd_rn(__fmul_rn(p.square_decay, p.square[i]), __fmul_rn(__fmul_rn(p.square_rest, g), g));
        const float root = __fadd_rn(__fdiv_rn(__fsqrt_rn(square), p.correction), p.epsilon);
        const float value = __fadd_rn(p.value[i], -__fdiv_rn(__fmul_rn(p.rate, mean), root));
        p.mean[i] = mean, p.square[i] = square;
        p.value[i] = p.least > value ? p.least : value;
    });
}
