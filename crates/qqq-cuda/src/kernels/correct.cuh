// Moving weights towards the float model's output before they are rounded: what inputs deviate by, and the step. What is
// minimized is told with the host's solver; sums over tokens and triangular systems are a library's products.
#pragma once

#include "factor.cuh"

// --- what the float model's inputs deviate by --------------------------------------------------------

struct DeviateParameters {
    // rows x cols of the quantized model, four at a time: codes where there are scales, else values.
    const void* x;
    // A scale a row, or null.
    const float* scales;
    // rows x cols of the float model.
    const void* y;
    // rows x cols of a 16-bit type, two at a time: y - x.
    uint32* out;
    // Fours of values in all, and of a row.
    long long count;
    int row_count;
    ValueType x_type, y_type;
};

// Bfloat: the type of the output. Differences are made in float32, and are 0 where both models agree.
template <bool Bfloat>
QQQ_DEVICE void deviate(const DeviateParameters& p) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < p.count; i += step) {
        float d[4];
        if (p.scales) {
            const uint32 codes = ((const uint32*)p.x)[i];
            const float scale = p.scales[i / p.row_count];
#pragma unroll
            for (int j = 0; j < 4; ++j) d[j] = __fmul_rn((float)(int8)(codes >> 8 * j), scale);
        } else {
#pragma unroll
            for (int j = 0; j < 4; ++j) d[j] = value_at(p.x, p.x_type, 4 * i + j);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) d[j] = value_at(p.y, p.y_type, 4 * i + j) - d[j];
        p.out[2 * i] = pack_floats<Bfloat>(d[0], d[1]);
        p.out[2 * i + 1] = pack_floats<Bfloat>(d[2], d[3]);
    }
}

// --- the step ----------------------------------------------------------------------------------------

struct DoublesParameters {
    const float* x;
    double* out;
    long long count;
};

QQQ_DEVICE void doubles(const DoublesParameters& p) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < p.count; i += step) p.out[i] = (double)p.x[i];
}

struct MoveParameters {
    // N x K, and what they are moved by at strength 1.
    const float* weights;
    const double* steps;
    // K: that of the Hessian.
    const float* diagonal;
    // N x K.
    float* out;
    long long count;
    int k;
    double strength;
};

// Weights of inputs that are always zero stay: rounding alone would move them.
QQQ_DEVICE void move_weights(const MoveParameters& p) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < p.count; i += step) {
        const float w = p.weights[i];
        p.out[i] = p.diagonal[i % p.k] > 0.0f ? (float)((double)w + p.strength * p.steps[i]) : w;
    }
}
