// Learning: what is done to rows, to their heads, and to a head's scores, and what the gradients by that are.
#pragma once

#include "learn.cuh"

// --- norms ---------------------------------------------------------------------------------------------

struct LearnNormParameters {
    // rows x pitch.
    const float* x;
    // The same, for gradients.
    const float* dy;
    // Of a segment.
    const float* weight;
    // rows x pitch; may be x, or dy for gradients.
    float* out;
    // In all.
    long long count;
    // Of a row: where they begin, their number and width.
    int pitch, first, segments, width;
    float epsilon;
};

// x / rms(x) weight of segments of rows, each of which is a row, or a head in it. `Threads` threads take one: a CTA or a warp.
// Back: dx = (w dy - x mean(w dy x) / rms^2) / rms.
template <int Threads, bool Back>
QQQ_DEVICE void learn_norm(const LearnNormParameters& p) {
    __shared__ float scratch[2][32];
    const long long unit = (long long)blockIdx.x * (kLearnThreads / Threads) + threadIdx.x / Threads;
    if (unit >= p.count) return;
    const int lane = threadIdx.x % Threads;
    const long long at = unit / p.segments * p.pitch + p.first + unit % p.segments * p.width;
    float squares = 0.0f, products = 0.0f;
    for (int i = lane; i < p.width; i += Threads) {
        const float x = p.x[at + i];
        squares = __fmaf_rn(x, x, squares);
        if constexpr (Back) products = __fmaf_rn(__fmul_rn(p.dy[at + i], p.weight[i]), x, products);
    }
    squares = reduce_row<Threads>(squares, scratch[0], plus);
    const float inverse = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(squares, (float)p.width), p.epsilon)));
    if constexpr (Back) {
        products = reduce_row<Threads>(products, scratch[1], plus);
        const float factor = __fmul_rn(__fmul_rn(__fdiv_rn(products, (float)p.width), inverse), inverse);
        for (int i = lane; i < p.width; i += Threads) {
            const float dy = __fmul_rn(p.dy[at + i], p.weight[i]);
            p.out[at + i] = __fmul_rn(dy - __fmul_rn(p.x[at + i], factor), inverse);
        }
    } else {
        for (int i = lane; i < p.width; i += Threads) p.out[at + i] = __fmul_rn(p.weight[i], __fmul_rn(p.x[at + i], inverse));
    }
}

// --- rotary embedding ----------------------------------------------------------------------------------

struct TurnParameters {
    // rows x pitch: heads of queries, then of keys, then of values.
    float* qkv;
    // rows x half each.
    const float *cosines, *sines;
    // What queries of a row are multiplied by, or null.
    const float* factors;
    // rows * heads * (head_dim - half).
    long long count;
    // Heads that are turned, and how many of them are queries.
    int pitch, heads, queries, head_dim, half;
    // Of the sines: -1 turns back.
    float sign;
};

// Turns queries and keys of rows at the positions from 0 on. A thread takes a pair, or an element that has none.
QQQ_DEVICE void turn_heads(const TurnParameters& p) {
    const int rest = p.head_dim - p.half;
    each_element(p.count, [&](long long i) {
        const int j = (int)(i % rest), head = (int)(i / rest % p.heads);
        const long long row = i / rest / p.heads;
        float* x = p.qkv + row * p.pitch + head * p.head_dim + j;
        const float factor = p.factors && head < p.queries ? p.factors[row] : 1.0f;
        if (j < p.half) {
            const float cosine = p.cosines[row * p.half + j], sine = p.sign * p.sines[row * p.half + j];
            const float a = x[0], b = x[p.half];
            x[0] = __fmul_rn(__fadd_rn(__fmul_rn(a, cosine), -__fmul_rn(b, sine)), factor);
            x[p.half] = __fmul_rn(__fadd_rn(__fmul_rn(b, cosine), __fmul_rn(a, sine)), factor);
        } else {
            x[p.half] = __fmul_rn(x[p.half], factor);
        }
    });
}

// --- attention -----------------------------------------------------------------------------------------

struct SoftmaxParameters {
    // tokens x tokens: of a query to every key.
    float* scores;
    int tokens;
    // Keys that a query sees, its own included; 0: all before it.
    int window;
};

// Probabilities in the place of scores; 0 for keys that a query does not see. A CTA takes a query.
QQQ_DEVICE void softmax(const SoftmaxParameters& p) {
    __shared__ float scratch[2][32];
    const int query = blockIdx.x, begin = p.window > 0 && query >= p.window ? query + 1 - p.window : 0;
    float* row = p.scores + (long long)query * p.tokens;
    float largest = __uint_as_float(0xFF800000u), sum = 0.0f;
    for (int t = threadIdx.x; t < p.tokens; t += kLearnThreads) {
        if (t >= begin && t <= query) largest = fmaxf(largest, row[t]);
    }
    largest = reduce_row<kLearnThreads>(largest, scratch[0], larger);
    for (int t = threadIdx.x; t < p.tokens; t += kLearnThreads) {
        const float e = t >= begin && t <= query ? __expf(row[t] - largest) : 0.0f;
        row[t] = e, sum += e;
    }
    sum = reduce_row<kLearnThreads>(sum, scratch[1], plus);
    for (int t = threadIdx.x; t < p.tokens; t += kLearnThreads) row[t] = __fdiv_rn(row[t], sum);
}

struct ScoreGradientParameters {
    // tokens x tokens.
    const float* probabilities;
    // Gradients by them, which become those by the scores.
    float* gradients;
    // tokens x pitch: of attention's output that by it, and itself. The head's columns begin at the first.
    const float *dy, *y;
    int tokens, pitch, first, width;
};

// P (dP - sum dY Y). A CTA takes a query.
QQQ_DEVICE void score_gradients(const ScoreGradientParameters& p) {
    __shared__ float scratch[32];
    const long long query = blockIdx.x, at = query * p.pitch + p.first;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < p.width; i += kLearnThreads) sum = __fmaf_rn(p.dy[at + i], p.y[at + i], sum);
    sum = reduce_row<kLearnThreads>(sum, scratch, plus);
    for (int t = threadIdx.x; t < p.tokens; t += kLearnThreads) {
        float& gradient = p.gradients[query * p.tokens + t];
        gradient = __fmul_rn(p.probabilities[query * p.tokens + t], gradient - sum);
    }
}

// --- gates ---------------------------------------------------------------------------------------------

struct LearnGateParameters {
    // rows x 2 inner: [g | u].
    const float* gate_up;
    // rows x inner, for gradients.
    const float* dy;
    // rows x inner; gradients as gate_up.
    float* out;
    // rows * inner.
    long long count;
    int inner;
};

// Both gates are g sigmoid(t(g)). Of the approximated GELU t is 2 sqrt(2/pi) (g + 0.044715 g^3).
template <bool Gelu>
QQQ_DEVICE float gate_sigmoid(float g) {
    const float t = Gelu ? 1.5957691216f * (g + 0.044715f * g * g * g) : g;
    return __fdiv_rn(1.0f, 1.0f + __expf(-t));
}

// gate(g) u. Back: of g sigmoid(t) the slope is s + g s (1 - s) t'.
template <bool Gelu, bool Back>
QQQ_DEVICE void learn_gate(const LearnGateParameters& p) {
    each_element(p.count, [&](long long i) {
        const long long at = i / p.inner * 2 * p.inner + i % p.inner;
        const float g = p.gate_up[at], u = p.gate_up[at + p.inner], s = gate_sigmoid<Gelu>(g);
        if constexpr (Back) {
            const float slope = Gelu ? 1.5957691216f * (1.0f + 0.134145f * g * g) : 1.0f, dy = p.dy[i];
            p.out[at] = dy * u * (s + g * s * (1.0f - s) * slope);
            p.out[at + p.inner] = dy * g * s;
        } else {
            p.out[i] = g * s * u;
        }
    });
}

// --- int8 ----------------------------------------------------------------------------------------------

struct LearnInt8Parameters {
    // rows x columns.
    const float* x;
    // The same, for gradients.
    const float* dy;
    float* out;
    int columns;
};

// Rows to int8 and back, with the scale of their largest magnitude. Back: rounding passes dy, and the first of the largest
// magnitudes, which the scale follows, gets the sum of dy (code - x / scale). A CTA takes a row.
template <bool Back>
QQQ_DEVICE void learn_int8(const LearnInt8Parameters& p) {
    __shared__ float scratch[2][32];
    __shared__ int where[32];
    const long long first = (long long)blockIdx.x * p.columns;
    const float* x = p.x + first;
    float* out = p.out + first;
    float own = 0.0f;
    int at = 0x7FFFFFFF;
    for (int i = threadIdx.x; i < p.columns; i += kLearnThreads) {
        if (fabsf(x[i]) > own) own = fabsf(x[i]), at = i;
    }
    const float largest = reduce_row<kLearnThreads>(own, scratch[0], larger), scale = __fdiv_rn(largest, 127.0f);
    if constexpr (!Back) {
        for (int i = threadIdx.x; i < p.columns; i += kLearnThreads) {
            out[i] = scale > 0.0f ? __fmul_rn(round_even(__fdiv_rn(x[i], scale)), scale) : 0.0f;
        }
        return;
    }
    at = reduce_row<kLearnThreads>(own == largest ? at : 0x7FFFFFFF, where, [](int a, int b) { return min(a, b); });
    const float* dy = p.dy + first;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < p.columns && scale > 0.0f; i += kLearnThreads) {
        const float code = __fdiv_rn(x[i], scale);
        sum = __fmaf_rn(dy[i], round_even(code) - code, sum);
    }
    const float share = __fdiv_rn(reduce_row<kLearnThreads>(sum, scratch[1], plus), 127.0f);
    for (int i = threadIdx.x; i < p.columns; i += kLearnThreads) {
        out[i] = i == at && scale > 0.0f ? dy[i] + (x[i] < 0.0f ? -share : share) : dy[i];
    }
}
