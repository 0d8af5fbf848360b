// Columns drawn at random, each with the probability that a softmax gives it.
#pragma once

#include "convert.cuh"

// What was drawn of a row.
struct Drawn {
    // The sum of exp((y - largest) / temperature).
    double total;
    float largest;
    // -1 where an element is not finite.
    int column;
};

struct DrawParameters {
    // rows x columns.
    const float* logits;
    // rows, each in [0, 1).
    const double* chances;
    // rows.
    Drawn* out;
    int rows, columns;
    // Above 0.
    float temperature;
};

constexpr int kDrawThreads = 512, kDrawWarps = kDrawThreads / 32;
// A row in chunks, and chunks in groups; a chunk has as many columns as there are chunks, at most.
constexpr int kDrawGroups = 32, kDrawChunks = 32 * kDrawGroups;

QQQ_DEVICE double shuffle_double(double value, int mask) {
    const int high = __shfl_xor_sync(0xFFFFFFFFu, __double2hiint(value), mask);
    const int low = __shfl_xor_sync(0xFFFFFFFFu, __double2loint(value), mask);
    return __hiloint2double(high, low);
}

// The first of these numbers with which their sum exceeds `rest`, which becomes what is left of it before; the last one above 0
// where rounding leaves none.
template <class Number>
QQQ_DEVICE int descend(const Number* numbers, int count, double& rest) {
    int last = 0;
    double before = rest;
    for (int i = 0; i < count; ++i) {
        const double number = (double)numbers[i];
        if (number <= 0.0) continue;
        last = i, before = rest;
        if (rest < number) return i;
        rest -= number;
    }
    rest = before;
    return last;
}

// The inverse of the distribution function at a chance, columns in order: sums are float64, of columns 32 apart in a chunk, of
// lanes in pairs, of the chunks of a group in order, and of groups in order. A CTA takes a row.
QQQ_DEVICE void draw(const DrawParameters& p) {
    __shared__ float largest_of[kDrawWarps];
    __shared__ double sums[kDrawChunks], groups[kDrawGroups];
    __shared__ float weights[kDrawChunks];
    __shared__ int chosen;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const float* row = p.logits + (long long)blockIdx.x * p.columns;
    Drawn* out = p.out + blockIdx.x;
    const int width = (p.columns + 32 * kDrawChunks - 1) / (32 * kDrawChunks) * 32;

    float largest = -3.4e38f;
    for (int i = threadIdx.x; i < p.columns; i += kDrawThreads) {
        const bool finite = (__float_as_uint(row[i]) & 0x7F800000u) != 0x7F800000u;
        // What is not finite becomes the largest of all.
        largest = fmaxf(largest, finite ? row[i] : __uint_as_float(0x7F800000u));
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, mask));
    if (lane == 0) largest_of[warp] = largest;
    __syncthreads();
    for (int w = 0; w < kDrawWarps; ++w) largest = fmaxf(largest, largest_of[w]);
    if (largest == __uint_as_float(0x7F800000u)) {
        if (threadIdx.x == 0) out->total = 0.0, out->largest = largest, out->column = -1;
        return;
    }
    auto weight = [&](int i) { return ptx::exp2(__fdiv_rn(row[i] - largest, p.temperature) * 1.44269504f); };
    for (int chunk = warp; chunk < kDrawChunks; chunk += kDrawWarps) {
        double sum = 0.0;
        const int end = min(p.columns, (chunk + 1) * width);
        for (int i = chunk * width + lane; i < end; i += 32) sum += (double)weight(i);
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_double(sum, mask);
        if (lane == 0) sums[chunk] = sum;
    }
    __syncthreads();
    if (threadIdx.x < kDrawGroups) {
        double sum = 0.0;
        for (int i = 0; i < 32; ++i) sum += sums[threadIdx.x * 32 + i];
        groups[threadIdx.x] = sum;
    }
    __syncthreads();
    double rest = 0.0;
    if (threadIdx.x == 0) {
        double total = 0.0;
        for (int i = 0; i < kDrawGroups; ++i) total += groups[i];
        rest = p.chances[blockIdx.x] * total;
        const int group = descend(groups, kDrawGroups, rest);
        chosen = group * 32 + descend(sums + group * 32, 32, rest);
        out->total = total, out->largest = largest;
    }
    __syncthreads();
    const int first = chosen * width;
    for (int i = threadIdx.x; i < width; i += kDrawThreads) weights[i] = first + i < p.columns ? weight(first + i) : 0.0f;
    __syncthreads();
    if (threadIdx.x == 0) out->column = first + descend(weights, width, rest);
}
