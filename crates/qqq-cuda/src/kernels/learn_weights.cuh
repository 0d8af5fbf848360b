// Learning: weights with learned clipping, rounded to their grid, and gradients through that. What the step of a group is, and what
// follows it, is told with the host's.
#pragma once

#include "learn_rows.cuh"

struct LearnWeightParameters {
    // n x k.
    const float* weights;
    // k: what input channels are multiplied by; or null.
    const float* scales;
    // 2 x groups: strengths above and below, before the sigmoid.
    const float* clip;
    // n x k, for gradients: by rounded weights.
    const float* dw;
    // n x k: rounded weights, or gradients by the weights times their scales; or null.
    float* out;
    // Steps of the groups, 0 for those of zeros; or null. For gradients 2 x groups, by the strengths.
    float* by_group;
    // Of all rows.
    long long groups;
    int k, group;
    float low, high, reach;
    ValueType type;
};

// The sigmoid, in float64 as on the host: steps are the same to the last bit.
QQQ_DEVICE float strength(float x) { return (float)(1.0 / (1.0 + exp(-(double)x))); }

// `Threads` threads take a group: a CTA, where it is a row, or a warp.
template <int Threads, bool Back>
QQQ_DEVICE void learn_weights(const LearnWeightParameters& p) {
    __shared__ float scratch[3][32];
    __shared__ int where[32];
    const long long unit = (long long)blockIdx.x * (kLearnThreads / Threads) + threadIdx.x / Threads;
    if (unit >= p.groups) return;
    const int lane = threadIdx.x % Threads;
    const long long first = unit * p.group;
    const float *w = p.weights + first, *scales = p.scales ? p.scales + first % p.k : nullptr;
    auto weight = [&](int i) { return scales ? __fmul_rn(w[i], scales[i]) : w[i]; };
    float high = __uint_as_float(0xFF800000u), low = __uint_as_float(0x7F800000u);
    int high_at = 0x7FFFFFFF, low_at = 0x7FFFFFFF;
    for (int i = lane; i < p.group; i += Threads) {
        const float v = weight(i);
        if (v > high) high = v, high_at = i;
        if (v < low) low = v, low_at = i;
    }
    const float most = reduce_row<Threads>(high, scratch[0], larger);
    const float least = reduce_row<Threads>(low, scratch[1], [](float a, float b) { return fminf(a, b); });
    const float upper = strength(p.clip[unit]), lower = strength(p.clip[p.groups + unit]);
    // Of both sides the one that reaches further, clipped.
    const bool is_upper = __fmul_rn(upper, most) >= __fmul_rn(lower, -least);
    const float full = is_upper ? most : -least, share = is_upper ? upper : lower;
    const float exact = __fdiv_rn(__fmul_rn(share, full), p.reach);
    const bool is_zero = !(exact >= kLeastNormal);
    const float step = is_zero ? 1.0f : stored_scale(exact, p.type);
    auto wide_code = [&](float v) { return round_even(clamp(__fdiv_rn(v, step), p.low - 1.0f, p.high + 1.0f)); };
    if constexpr (!Back) {
        for (int i = lane; i < p.group && p.out; i += Threads) {
            p.out[first + i] = is_zero ? 0.0f : __fmul_rn(clamp(wide_code(weight(i)), p.low, p.high), step);
        }
        if (lane == 0 && p.by_group) p.by_group[unit] = is_zero ? 0.0f : step;
        return;
    }
    const int own = is_upper ? (high == most ? high_at : 0x7FFFFFFF) : (low == least ? low_at : 0x7FFFFFFF);
    const int at = reduce_row<Threads>(own, where, [](int a, int b) { return min(a, b); });
    // Where the code is at the grid's end, the rounded weight follows the step alone; else the weight, and the step by what
    // rounding has left.
    float by_step = 0.0f;
    for (int i = lane; i < p.group && !is_zero; i += Threads) {
        const float v = weight(i), code = wide_code(v), ended = clamp(code, p.low, p.high);
        by_step = __fmaf_rn(p.dw[first + i], code == ended ? code - __fdiv_rn(v, step) : ended, by_step);
    }
    const float by_reach = __fdiv_rn(reduce_row<Threads>(by_step, scratch[2], plus), p.reach);
    const float by_extreme = is_upper ? by_reach * share : -by_reach * share;
    for (int i = lane; i < p.group && p.out; i += Threads) {
        const float code = wide_code(weight(i));
        const float passed = !is_zero && code == clamp(code, p.low, p.high) ? p.dw[first + i] : 0.0f;
        p.out[first + i] = i == at && !is_zero ? passed + by_extreme : passed;
    }
    if (lane == 0) {
        const float by_strength = is_zero ? 0.0f : by_reach * full * share * (1.0f - share);
        p.by_group[unit] = is_upper ? by_strength : 0.0f;
        p.by_group[p.groups + unit] = is_upper ? 0.0f : by_strength;
    }
}
