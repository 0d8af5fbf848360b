// Solving the rows of a layer: choice of scales, rounding to nearest, Hessian-based compensation (GPTQ, arXiv 2210.17323). The
// recurrence, and what each array holds, is told with the host's solver.
//
// N rows are output channels, K columns input channels. Matrices named "columns" are K x N in the order in which columns are
// solved: neighbouring threads have neighbouring rows.
#pragma once

#include "correct.cuh"

// --- scales --------------------------------------------------------------------------------------------

// How scales are chosen; shared by the kernels below.
struct ScaleRule {
    // Codes, and what the unclipped scale's largest weight is divided by.
    float low, high, reach;
    // Ratios in hundredths; stride 0: no search.
    int from, to, stride;
    // Whether errors count to the power of 2.4 rather than 2.
    int steep;
    // Type that scales are rounded to.
    ValueType type;
};

struct ScaleParameters {
    // N x K.
    const float* weights;
    // K: what a squared error of a channel costs, or 1; 0 for channels that are always zero.
    const float* importance;
    // N x groups.
    float* scales;
    int n, k, group;
    ScaleRule rule;
};

constexpr int kScaleThreads = 256;
constexpr float kLeastNormal = 1.17549435e-38f;

// Round half to even, for |x| < 2^22.
QQQ_DEVICE float round_even(float x) { return __fadd_rn(__fadd_rn(x, 12582912.0f), -12582912.0f); }

QQQ_DEVICE float clamp(float x, float low, float high) { return fminf(fmaxf(x, low), high); }

// To nearest, but never to zero or infinity.
QQQ_DEVICE float stored_scale(float scale, ValueType type) {
    if (type == kFloatValue) return scale;
    float a, b;
    if (type == kBfloatValue) {
        unpack_floats<true>(pack_floats<true>(scale, scale), a, b);
        return clamp(a, 9.18354962e-41f, 3.38953139e38f);
    }
    unpack_floats<false>(pack_floats<false>(scale, scale), a, b);
    return clamp(a, 5.96046448e-8f, 65504.0f);
}

// What one thread of `Threads` sums of importance * |w / scale - code|^p over a group.
template <int Threads>
QQQ_DEVICE float rounding_error(const float* w, const float* importance, int count, int lane, float scale, const ScaleRule& rule) {
    const float inverse = __fdiv_rn(1.0f, scale);
    float sum = 0.0f;
    for (int i = lane; i < count; i += Threads) {
        const float x = __fmul_rn(w[i], inverse), d = x - round_even(clamp(x, rule.low, rule.high));
        float power = d * d;
        // |d|^2.4.
        if (rule.steep) power = power > 0.0f ? ptx::exp2(1.2f * log2f(power)) : 0.0f;
        sum = __fmaf_rn(importance[i], power, sum);
    }
    return sum;
}

// The factor between such a sum and the error.
QQQ_DEVICE float error_unit(float scale, const ScaleRule& rule) {
    return rule.steep ? ptx::exp2(2.4f * log2f(scale)) : scale * scale;
}

// `Threads` threads take a group: a warp (then a CTA takes several), or the CTA. Groups without weights get 0.
template <int Threads>
QQQ_DEVICE void choose_scales(const ScaleParameters& p) {
    __shared__ float scratch[2][32];
    const int groups = p.k / p.group, lane = threadIdx.x % Threads;
    const long long unit = (long long)blockIdx.x * (kScaleThreads / Threads) + threadIdx.x / Threads;
    if (unit >= (long long)p.n * groups) return;
    const int first = (int)(unit % groups) * p.group;
    const float* w = p.weights + unit / groups * p.k + first;
    const float* importance = p.importance + first;
    int round = 0;
    auto sum = [&](float v) { return reduce_row<Threads>(v, scratch[++round % 2], [](float a, float b) { return a + b; }); };

    float largest = 0.0f;
    for (int i = lane; i < p.group; i += Threads) largest = fmaxf(largest, importance[i] > 0.0f ? fabsf(w[i]) : 0.0f);
    largest = reduce_row<Threads>(largest, scratch[0], [](float a, float b) { return fmaxf(a, b); });
    const float full = __fdiv_rn(largest, p.rule.reach);
    float best = 1.0f;
    if (full >= kLeastNormal && p.rule.stride > 0) {
        auto error = [&](float scale) {
            return sum(rounding_error<Threads>(w, importance, p.group, lane, scale, p.rule)) * error_unit(scale, p.rule);
        };
        float least = error(full);
        int centre = 100;
        auto consider = [&](int hundredths, bool moves) {
            const float ratio = __fdiv_rn((float)hundredths, 100.0f), e = error(__fmul_rn(full, ratio));
            if (e < least) {
                least = e, best = ratio;
                if (moves) centre = hundredths;
            }
        };
        for (int h = p.rule.from; h >= p.rule.to; h -= p.rule.stride) consider(h, true);
        const int around = centre;
        for (int h = around - p.rule.stride + 1; h < around + p.rule.stride; ++h) {
            if (h != around && h >= p.rule.to && h <= p.rule.from) consider(h, false);
        }
    }
    if (lane == 0) p.scales[unit] = full >= kLeastNormal ? stored_scale(__fmul_rn(full, best), p.rule.type) : 0.0f;
}

// Groups without weights get the least scale of their row, rows without weights 1.
QQQ_DEVICE void fill_scales(const ScaleParameters& p) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x, groups = p.k / p.group;
    if (row >= p.n) return;
    float* scales = p.scales + (long long)row * groups;
    float least = 3.4e38f;
    for (int g = 0; g < groups; ++g) {
        if (scales[g] > 0.0f) least = fminf(least, scales[g]);
    }
    if (least >= 3.4e38f) least = 1.0f;
    for (int g = 0; g < groups; ++g) {
        if (scales[g] == 0.0f) scales[g] = least;
    }
}

constexpr int kMostMultiple = 15, kRatios = 8;

// Ratios of the channel scale to the one at which the row's largest scale is kMostMultiple times it, in hundredths: 100, 103,
// 97, 106, 94, 110, 90, 86.
QQQ_DEVICE float channel_ratio(int i) { return (float)(int)(0x565A6E5E6A616764ull >> 8 * i & 0xFF); }

// A positive scale to the nearest of which every multiple up to 16 is exact in a type: with four bits less of precision.
QQQ_DEVICE float coarse_scale(float scale, ValueType type) {
    const int bits = type == kFloatValue ? 20 : type == kBfloatValue ? 4 : 7;
    const uint32 unit = 1u << (24 - bits);
    const float rounded = __uint_as_float((__float_as_uint(fmaxf(scale, kLeastNormal)) + unit / 2) & ~(unit - 1));
    if (type != kHalfValue) return rounded;
    const float step = 5.96046448e-8f;
    if (rounded >= 64.0f * step) return fminf(rounded, 4064.0f);
    return fmaxf(floorf(__fdiv_rn(rounded, step) + 0.5f), 1.0f) * step;
}

// Replaces the scales of a row by 1 to 15 times one scale of the row. A warp takes a row.
QQQ_DEVICE void integer_scales(const ScaleParameters& p) {
    const int row = blockIdx.x * (kScaleThreads / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= p.n) return;
    const int groups = p.k / p.group;
    const float* w = p.weights + (long long)row * p.k;
    float* scales = p.scales + (long long)row * groups;
    auto sum = [&](float v) { return reduce_row<32>(v, (float*)nullptr, [](float a, float b) { return a + b; }); };
    float top = 0.0f;
    for (int g = lane; g < groups; g += 32) top = fmaxf(top, scales[g]);
    top = __fdiv_rn(reduce_row<32>(top, (float*)nullptr, [](float a, float b) { return fmaxf(a, b); }), (float)kMostMultiple);
    auto channel_of = [&](int ratio) { return coarse_scale(__fdiv_rn(__fmul_rn(top, channel_ratio(ratio)), 100.0f), p.rule.type); };
    // The better of the two multiples beside a scale.
    auto multiple_of = [&](int g, float channel, float& error) {
        auto error_at = [&](int multiple) {
            const float scale = __fmul_rn((float)multiple, channel);
            const float own =
                rounding_error<32>(w + g * p.group, p.importance + g * p.group, p.group, lane, scale, p.rule);
            return sum(own) * error_unit(scale, p.rule);
        };
        const int below = (int)clamp(floorf(__fdiv_rn(scales[g], channel)), 1.0f, (float)kMostMultiple);
        const int above = min(below + 1, kMostMultiple);
        const float low = error_at(below), high = error_at(above);
        error = high < low ? high : low;
        return high < low ? above : below;
    };
    float least = 3.0e38f;
    int best = -1;
    for (int ratio = 0; ratio < kRatios; ++ratio) {
        const float channel = channel_of(ratio);
        float total = 0.0f, error;
        for (int g = 0; g < groups && total < least; ++g) {
            multiple_of(g, channel, error);
            total += error;
        }
        if (total < least) least = total, best = ratio;
    }
    // Errors that overflow compare with nothing: the plain choice is left.
    const float channel = channel_of(best < 0 ? 0 : best);
    for (int g = 0; g < groups; ++g) {
        float error;
        const int multiple = best < 0 ? (int)clamp(floorf(__fdiv_rn(scales[g], channel) + 0.5f), 1.0f, (float)kMostMultiple)
                                      : multiple_of(g, channel, error);
        __syncwarp();
        if (lane == 0) scales[g] = __fmul_rn((float)multiple, channel);
    }
}

// --- codes ---------------------------------------------------------------------------------------------

struct CodeParameters {
    // N x K.
    const float* weights;
    // N x groups.
    const float* scales;
    // N: of int8 weights; where there are no groups, the scales.
    float* channels;
    // N x K.
    int8* codes;
    // N x K.
    float* out;
    int n, k, group;
    float low, high;
};

// The codes nearest to w / scale.
QQQ_DEVICE void round_codes(const CodeParameters& p) {
    const long long count = (long long)p.n * p.k, step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        const float inverse = __fdiv_rn(1.0f, p.scales[i / p.group]);
        p.codes[i] = (int8)(int)round_even(clamp(__fmul_rn(p.weights[i], inverse), p.low, p.high));
    }
}

// Of the scales top / m, m = 1 to 16, those of which a group's scale is no small multiple: bit m - 1. `code` is the group's
// largest.
QQQ_DEVICE uint32 wrong_parts(float top, float scale, float code) {
    uint32 wrong = 0;
    for (int m = 1; code > 0.0f && m <= 16; ++m) {
        const float c = __fdiv_rn(top, (float)m), quotient = __fdiv_rn(scale, c), multiple = floorf(quotient + 0.5f);
        if (!(multiple >= 1.0f && __fmul_rn(multiple, c) == scale && multiple * code <= 127.0f)) wrong |= 1u << (m - 1);
    }
    return wrong;
}

// The scale of a row's int8 weights: the largest that is not wrong for any group; else that of which `weight`, the row's
// largest, is 127.
QQQ_DEVICE float channel_scale(float top, float weight, uint32 wrong) {
    float channel = weight > 0.0f ? fmaxf(__fdiv_rn(weight, 127.0f), kLeastNormal) : 1.0f;
    for (int m = 16; m >= 1 && weight > 0.0f; --m) {
        const float c = __fdiv_rn(top, (float)m);
        if (!(wrong >> (m - 1) & 1) && c >= kLeastNormal && c < 3.4e38f) channel = c;
    }
    return channel;
}

// The scale of a row's int8 weights, by its codes and the effective scales of its groups: the largest of which all are small
// multiples, if there is one; else that of which the largest weight is 127. A warp takes a row.
QQQ_DEVICE void channel_scales(const CodeParameters& p) {
    const int row = blockIdx.x * (kScaleThreads / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= p.n) return;
    const int groups = p.k / p.group;
    const int8* codes = p.codes + (long long)row * p.k;
    const float* scales = p.scales + (long long)row * groups;
    auto largest_code = [&](int g) {
        int largest = 0;
        for (int i = 0; i < p.group; ++i) {
            const int code = codes[g * p.group + i];
            largest = max(largest, code < 0 ? -code : code);
        }
        return (float)largest;
    };
    auto most = [&](float v) { return reduce_row<32>(v, (float*)nullptr, [](float a, float b) { return fmaxf(a, b); }); };
    float top = 0.0f, weight = 0.0f;
    for (int g = lane; g < groups; g += 32) {
        const float code = largest_code(g);
        if (code > 0.0f) top = fmaxf(top, scales[g]), weight = fmaxf(weight, __fmul_rn(code, scales[g]));
    }
    top = most(top), weight = most(weight);
    uint32 wrong = 0;
    for (int g = lane; g < groups; g += 32) wrong |= wrong_parts(top, scales[g], largest_code(g));
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) wrong |= __shfl_xor_sync(0xFFFFFFFFu, wrong, mask);
    const float channel = channel_scale(top, weight, wrong);
    if (lane == 0) p.channels[row] = channel;
}

// What int8 weights of a group are multiplied by before they are rounded.
QQQ_DEVICE float inner_scale(float scale, float channel) {
    float a, b;
    unpack_floats<false>(pack_floats<false>(__fdiv_rn(scale, channel), 0.0f), a, b);
    return a;
}

// Weights minus what the kernels multiply for them.
template <bool TwoLevel>
QQQ_DEVICE void differences(const CodeParameters& p) {
    const long long count = (long long)p.n * p.k, step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        const float scale = p.scales[i / p.group], code = (float)p.codes[i];
        float value;
        if constexpr (TwoLevel) {
            const float channel = p.channels[i / p.k];
            value = __fmul_rn(round_even(__fmul_rn(code, inner_scale(scale, channel))), channel);
        } else {
            value = __fmul_rn(code, scale);
        }
        p.out[i] = p.weights[i] - value;
    }
}

// Codes as numbers.
QQQ_DEVICE void code_values(const CodeParameters& p) {
    const long long count = (long long)p.n * p.k, step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) p.out[i] = (float)p.codes[i];
}

struct FormParameters {
    // N x K; the product with the Hessian, or null where that is the identity.
    const float *rows, *product;
    // N: added to the forms, or null.
    const double* added;
    // N.
    double* out;
    int k;
};

// What a CTA's threads have together.
QQQ_DEVICE double sum_of_cta(double value, double (&sums)[kScaleThreads]) {
    sums[threadIdx.x] = value;
    __syncthreads();
    for (int half = kScaleThreads / 2; half > 0; half /= 2) {
        if ((int)threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    return sums[0];
}

// v H v^T of each row. A CTA takes a row.
QQQ_DEVICE void forms(const FormParameters& p) {
    __shared__ double sums[kScaleThreads];
    const float* row = p.rows + (long long)blockIdx.x * p.k;
    const float* product = p.product ? p.product + (long long)blockIdx.x * p.k : row;
    double sum = 0.0;
    for (int i = threadIdx.x; i < p.k; i += kScaleThreads) sum += (double)row[i] * (double)product[i];
    sum = sum_of_cta(sum, sums);
    if (threadIdx.x > 0) return;
    if (p.added) sum += p.added[blockIdx.x];
    // Not a maximum, to which NaN is less than 0.
    p.out[blockIdx.x] = sum < 0.0 ? 0.0 : sum;
}

struct KeepParameters {
    // N x K codes of a try, and the best so far.
    const int8* codes;
    int8* best;
    // N each: their losses.
    const double* errors;
    double* least;
    int k;
};

// Replaces the codes of rows that have become better. A CTA takes a row.
QQQ_DEVICE void keep_better(const KeepParameters& p) {
    const long long row = blockIdx.x;
    const bool better = p.errors[row] < p.least[row];
    __syncthreads();
    if (!better) return;
    for (int i = threadIdx.x; i < p.k; i += kScaleThreads) p.best[row * p.k + i] = p.codes[row * p.k + i];
    if (threadIdx.x == 0) p.least[row] = p.errors[row];
}

// --- compensation ----------------------------------------------------------------------------------------

struct ColumnParameters {
    // N x K.
    const float* weights;
    int8* codes;
    // Original channel of each column.
    const int* order;
    // K x N: weights.
    float* columns;
    // K x N: codes.
    int8* column_codes;
    int n, k;
};

// Weights in the order in which columns are solved.
QQQ_DEVICE void to_columns(const ColumnParameters& p) {
    const long long count = (long long)p.n * p.k, step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        p.columns[i] = p.weights[i % p.n * p.k + p.order[i / p.n]];
    }
}

// Codes back to their channels.
QQQ_DEVICE void from_columns(const ColumnParameters& p) {
    const long long count = (long long)p.n * p.k, step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        p.codes[i % p.n * p.k + p.order[i / p.n]] = p.column_codes[i];
    }
}

constexpr int kSolveBlock = 64, kSolveHalf = 32, kSolveThreads = 128;

struct SolveParameters {
    // K x K feedback of the factor.
    const float* feedback;
    // Original channel of each column.
    const int* order;
    // N x groups, and N.
    const float *scales, *channels;
    // K x N: weights.
    const float* columns;
    // kSolveBlock x N: weights plus what columns before the block feed back.
    const float* targets;
    // K x N: errors, of which those of the block are written; its codes.
    float* errors;
    int8* codes;
    int n, k, group, groups, start, width;
    float low, high;
};

template <bool TwoLevel>
struct Column {
    float inverse, inner, outer;

    QQQ_DEVICE Column(const SolveParameters& p, int row, int j) {
        const float scale = p.scales[(long long)row * p.groups + p.order[j] / p.group];
        inverse = __fdiv_rn(1.0f, scale), outer = scale, inner = 1.0f;
        if constexpr (TwoLevel) outer = p.channels[row], inner = inner_scale(scale, outer);
    }

    QQQ_DEVICE float value(float code) const {
        return TwoLevel ? __fmul_rn(round_even(__fmul_rn(code, inner)), outer) : __fmul_rn(code, outer);
    }

    // The code whose value is nearest to the target. int8 weights of groups are not evenly spaced: the neighbours of the rounded
    // code are tried as well.
    QQQ_DEVICE float nearest(float target, float low, float high) const {
        float best = round_even(clamp(__fmul_rn(target, inverse), low, high));
        if constexpr (TwoLevel) {
            const float code = best;
            float distance = fabsf(value(best) - target);
#pragma unroll
            for (int step = -1; step <= 1; step += 2) {
                const float other = clamp(code + (float)step, low, high), d = fabsf(value(other) - target);
                if (d < distance) best = other, distance = d;
            }
        }
        return best;
    }
};

// A block of columns; a thread takes a row. Half a block at a time is in registers.
template <bool TwoLevel>
QQQ_DEVICE void solve_block(const SolveParameters& p) {
    // Of column i of the block to column j, at [i][j].
    __shared__ float factors[kSolveBlock][kSolveBlock];
    for (int i = threadIdx.x; i < kSolveBlock * kSolveBlock; i += kSolveThreads) {
        const int from = i % kSolveBlock, to = i / kSolveBlock;
        const bool inside = from < to && to < p.width;
        factors[from][to] = inside ? p.feedback[(long long)(p.start + to) * p.k + p.start + from] : 0.0f;
    }
    __syncthreads();
    const int row = blockIdx.x * kSolveThreads + threadIdx.x;
    if (row >= p.n) return;
    float errors[kSolveHalf], targets[kSolveHalf];
    for (int half = 0; half < kSolveBlock; half += kSolveHalf) {
        if (half >= p.width) break;
#pragma unroll
        for (int j = 0; j < kSolveHalf; ++j) targets[j] = half + j < p.width ? p.targets[(long long)(half + j) * p.n + row] : 0.0f;
        if (half > 0) {
#pragma unroll
            for (int i = 0; i < kSolveHalf; ++i) {
#pragma unroll
                for (int j = 0; j < kSolveHalf; ++j) targets[j] = __fmaf_rn(errors[i], factors[i][kSolveHalf + j], targets[j]);
            }
        }
#pragma unroll
        for (int i = 0; i < kSolveHalf; ++i) {
            errors[i] = 0.0f;
            if (half + i < p.width) {
                const int j = p.start + half + i;
                const Column<TwoLevel> column(p, row, j);
                const float code = column.nearest(targets[i], p.low, p.high);
                const long long at = (long long)j * p.n + row;
                errors[i] = p.columns[at] - column.value(code);
                p.errors[at] = errors[i];
                p.codes[at] = (int8)(int)code;
            }
#pragma unroll
            for (int j = i + 1; j < kSolveHalf; ++j) targets[j] = __fmaf_rn(errors[i], factors[half + i][half + j], targets[j]);
        }
    }
}
