// The factor of a damped Hessian that carries errors from column to column (GPTQ, arXiv 2210.17323). Matrices are K x K,
// column-major, in float64; products between their blocks are a library's.
#pragma once

#include "calibrate.cuh"

struct DampParameters {
    // K x K, and its diagonal.
    const float *hessian, *diagonal;
    // Original channel of each column, in the order in which they are solved.
    const int* order;
    // K x K, column-major: the Hessian in reversed order, damped, lower triangle.
    double* out;
    int k;
    // What stands for the diagonal of channels that are always zero, and what is added to all.
    double mean, added;
};

QQQ_DEVICE void damp(const DampParameters& p) {
    const long long count = (long long)p.k * p.k, step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        const int col = (int)(i / p.k), row = (int)(i % p.k);
        if (row < col) continue;
        const int c = p.order[p.k - 1 - col], r = p.order[p.k - 1 - row];
        const bool dead = !(p.diagonal[c] > 0.0f) || !(p.diagonal[r] > 0.0f);
        double value = dead ? 0.0 : (double)p.hessian[(long long)c * p.k + r];
        if (row == col) value = (dead ? p.mean : value) + p.added;
        p.out[i] = value;
    }
}

constexpr int kFactorBlock = 64, kFactorThreads = 256;

struct FactorParameters {
    // A block of columns of the matrix, from the diagonal on, column-major: what is left of it.
    const double* rest;
    // Where its factor goes, in the matrix, and the transpose of the factor's inverse, kFactorBlock apart.
    double *out, *inverse;
    // Set if the matrix is not positive definite.
    int* failed;
    // Between columns of rest, and of out.
    int rest_pitch, out_pitch;
    int width;
};

// The Cholesky factor of a square of up to kFactorBlock columns, and its inverse. One CTA.
QQQ_DEVICE void factor_square(const FactorParameters& p) {
    __shared__ double a[kFactorBlock][kFactorBlock + 1];
    __shared__ double pivot;
    const int w = p.width;
    for (int i = threadIdx.x; i < w * w; i += kFactorThreads) {
        const int col = i / w, row = i % w;
        if (row >= col) a[row][col] = p.rest[(long long)col * p.rest_pitch + row];
    }
    __syncthreads();
    for (int j = 0; j < w; ++j) {
        if (threadIdx.x == 0) {
            // Not `<=`, to which NaN is no failure.
            if (!(a[j][j] > 0.0)) *p.failed = 1;
            pivot = sqrt(a[j][j]);
        }
        __syncthreads();
        for (int row = j + threadIdx.x; row < w; row += kFactorThreads) a[row][j] = row == j ? pivot : a[row][j] / pivot;
        __syncthreads();
        for (int i = threadIdx.x; i < (w - j - 1) * (w - j - 1); i += kFactorThreads) {
            const int row = j + 1 + i / (w - j - 1), col = j + 1 + i % (w - j - 1);
            if (row >= col) a[row][col] -= a[row][j] * a[col][j];
        }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < w * w; i += kFactorThreads) {
        const int col = i / w, row = i % w;
        if (row >= col) p.out[(long long)col * p.out_pitch + row] = a[row][col];
    }
    // Column by column: x of L x = e. Its transpose, so that a product with it needs none.
    for (int col = threadIdx.x; col < w; col += kFactorThreads) {
        for (int row = 0; row < w; ++row) {
            double sum = row == col ? 1.0 : 0.0;
            for (int i = col; i < row; ++i) sum -= a[row][i] * p.inverse[i * kFactorBlock + col];
            p.inverse[row * kFactorBlock + col] = row < col ? 0.0 : sum / a[row][row];
        }
    }
}

struct FeedbackParameters {
    // The factor of the reversed Hessian, K x K column-major, lower triangle.
    const double* factor;
    // K x K: at [j, i], i < j, what an error of column i does to column j.
    float* feedback;
    // K: what a squared error of a column costs when later ones compensate for it.
    float* cost;
    int* failed;
    int k;
};

QQQ_DEVICE void feedback(const FeedbackParameters& p) {
    const long long count = (long long)p.k * p.k, step = (long long)gridDim.x * blockDim.x;
    for (long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += step) {
        const int j = (int)(at / p.k), i = (int)(at % p.k);
        if (i > j) continue;
        const double* column = p.factor + (long long)(p.k - 1 - j) * p.k;
        const double pivot = column[p.k - 1 - j];
        const float value = (float)(i == j ? pivot * pivot : column[p.k - 1 - i] / pivot);
        const bool finite = (__float_as_uint(value) & 0x7F800000u) != 0x7F800000u;
        if (!finite || (i == j && !(value > 0.0f))) *p.failed = 1;
        if (i == j) {
            p.cost[j] = value;
        } else {
            p.feedback[at] = value;
        }
    }
}
