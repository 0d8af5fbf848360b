// What a decoder does to whole rows between its products: norms of the residual stream, gates, and the input of the next
// product, in int8 with a scale a token or in 16 bits.
//
// The residual stream is float32. A row is kept in registers as float32; a CTA takes a row, or a warp where rows are narrow.
// Rows longer than the registers hold (kVectors == 0) are read again from the caches instead.
#pragma once

#include "quantize_activations.cuh"

enum RowSource {
    // RMSNorm of the residual stream, after factor * x was added to it, if there is an x.
    kResidualNorm = 0,
    // RMSNorm of x.
    kInputNorm = 1,
    // gate(g) * u of rows [g | u] of x.
    kSilu = 2,
    kGeluTanh = 3,
    // x.
    kInput = 4,
};

enum RowTarget { kToInt8 = 0, kToHalf = 1 };

struct RowParameters {
    // M x K, for gates M x 2K, in half or bfloat16.
    const void* x;
    // M x K.
    float* residual;
    // K factors of the norm.
    const float* weight;
    // M x K; may be x unless that has gates.
    void* out;
    // M, for int8.
    float* scale;
    int m, k;
    float epsilon, factor;
};

template <RowSource Source, RowTarget Target, bool Bfloat, int RowThreads, int Vectors>
struct RowConfig {
    static constexpr RowSource kSource = Source;
    static constexpr RowTarget kTarget = Target;
    static constexpr bool kBfloat = Bfloat, kGate = Source == kSilu || Source == kGeluTanh;
    static constexpr bool kNorm = Source == kResidualNorm || Source == kInputNorm;
    // Threads of a row: a warp, or the CTA. Each holds `Vectors` times 8 values.
    static constexpr int kRowThreads = RowThreads, kVectors = Vectors;
    static constexpr int kRows = RowThreads == 32 ? 4 : 1, kThreads = kRows * RowThreads;
    static_assert((RowThreads & (RowThreads - 1)) == 0 && RowThreads >= 32 && RowThreads <= 1024);
};

template <class C>
QQQ_DEVICE float gate_of(float x) {
    if constexpr (C::kSource == kSilu) return __fdividef(x, 1.0f + __expf(-x));
    // x/2 (1 + tanh(u)) is x / (1 + e^-2u).
    const float u = 0.7978845608f * (x + 0.044715f * x * x * x);
    return __fdividef(x, 1.0f + __expf(-2.0f * u));
}

// One row.
template <class C>
struct DecoderRow {
    const uint16* x;
    float* residual;
    int k;
    float factor;

    struct Words {
        uint4 first, second, third;
    };

    QQQ_DEVICE DecoderRow(const RowParameters& p, int row)
        : x(p.x ? (const uint16*)p.x + (long long)row * p.k * (C::kGate ? 2 : 1) : nullptr),
          residual(p.residual + (long long)row * p.k),
          k(p.k),
          factor(p.factor) {}

    // What is read for eight values: all of a thread's reads are started before the first is needed. `again`: the residual
    // stream holds the sum already.
    QQQ_DEVICE Words fetch(int i, bool again) const {
        Words words{};
        if constexpr (C::kSource == kResidualNorm) {
            words.first = ((const uint4*)residual)[2 * i], words.second = ((const uint4*)residual)[2 * i + 1];
            if (x && !again) words.third = ptx::load_global_128(x + i * 8);
        } else {
            words.first = ((const uint4*)x)[i];
            if constexpr (C::kGate) words.second = ((const uint4*)(x + k))[i];
        }
        return words;
    }

    // Eight values, before the norm's factors.
    QQQ_DEVICE void decode(const Words& words, int i, bool again, float (&v)[8]) const {
        if constexpr (C::kSource == kResidualNorm) {
            const uint32 bits[8] = {words.first.x,  words.first.y,  words.first.z,  words.first.w,
                                    words.second.x, words.second.y, words.second.z, words.second.w};
#pragma unroll
            for (int j = 0; j < 8; ++j) v[j] = __uint_as_float(bits[j]);
            if (!x || again) return;
            float more[8];
            unpack_vector<C::kBfloat>(words.third, more);
#pragma unroll
            for (int j = 0; j < 8; ++j) v[j] = __fmaf_rn(factor, more[j], v[j]);
            float* target = residual + i * 8;
            ptx::store_global_128(target, __float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
            ptx::store_global_128(target + 4, __float_as_uint(v[4]), __float_as_uint(v[5]), __float_as_uint(v[6]),
                                  __float_as_uint(v[7]));
            return;
        }
        unpack_vector<C::kBfloat>(words.first, v);
        if constexpr (C::kGate) {
            float up[8];
            unpack_vector<C::kBfloat>(words.second, up);
#pragma unroll
            for (int j = 0; j < 8; ++j) v[j] = gate_of<C>(v[j]) * up[j];
        }
    }

    QQQ_DEVICE static void normalize(const float* weight, int i, float inverse, float (&v)[8]) {
        const uint4 a = ptx::load_global_128(weight + i * 8), b = ptx::load_global_128(weight + i * 8 + 4);
        const uint32 bits[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
        for (int j = 0; j < 8; ++j) v[j] = __fmul_rn(__fmul_rn(v[j], inverse), __uint_as_float(bits[j]));
    }
};

template <class C>
QQQ_DEVICE void decoder_rows(const RowParameters& p) {
    __shared__ float squares_scratch[32], largest_scratch[32];
    const int thread = threadIdx.x % C::kRowThreads;
    const int row = blockIdx.x * C::kRows + threadIdx.x / C::kRowThreads;
    overlap_launches();
    if (row >= p.m) return;
    const DecoderRow<C> source(p, row);
    const int count = p.k / 8;
    constexpr bool kKept = C::kVectors > 0;
    float kept[kKept ? C::kVectors : 1][8];

    float squares = 0.0f, largest = 0.0f;
    [[maybe_unused]] typename DecoderRow<C>::Words words[kKept ? C::kVectors : 1];
    if (kKept) for_vectors<C>(thread, count, [&](int i, int j) { words[j] = source.fetch(i, false); });
    for_vectors<C>(thread, count, [&](int i, int j) {
        float(&v)[8] = kept[j];
        source.decode(kKept ? words[j] : source.fetch(i, false), i, false, v);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            if (C::kNorm) {
                squares = __fmaf_rn(v[e], v[e], squares);
            } else {
                largest = fmaxf(largest, fabsf(v[e]));
            }
        }
    });
    [[maybe_unused]] float inverse_root = 1.0f;
    if constexpr (C::kNorm) {
        squares = reduce_row<C::kRowThreads>(squares, squares_scratch, [](float a, float b) { return a + b; });
        inverse_root = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(squares, (float)p.k), p.epsilon)));
        if (kKept || C::kTarget == kToInt8) {
            for_vectors<C>(thread, count, [&](int i, int j) {
                float(&v)[8] = kept[j];
                if (!kKept) source.decode(source.fetch(i, true), i, true, v);
                source.normalize(p.weight, i, inverse_root, v);
#pragma unroll
                for (int e = 0; e < 8; ++e) largest = fmaxf(largest, fabsf(v[e]));
            });
        }
    }
    // The values again, where they were not kept.
    auto again = [&](int i, float(&v)[8]) {
        if (kKept) return;
        source.decode(source.fetch(i, true), i, true, v);
        if (C::kNorm) source.normalize(p.weight, i, inverse_root, v);
    };
    if constexpr (C::kTarget == kToHalf) {
        for_vectors<C>(thread, count, [&](int i, int j) {
            again(i, kept[j]);
            ((uint4*)p.out)[(long long)row * count + i] = pack_vector<C::kBfloat>(kept[j]);
        });
    } else {
        largest = reduce_row<C::kRowThreads>(largest, largest_scratch, [](float a, float b) { return fmaxf(a, b); });
        // As where activations alone are quantized.
        largest = largest >= 1e-30f ? fminf(largest, 3.4e38f) : 1.0f;
        const float scale = __fdiv_rn(largest, 127.0f), inverse = __fdiv_rn(1.0f, scale);
        for_vectors<C>(thread, count, [&](int i, int j) {
            again(i, kept[j]);
            uint2 out;
            out.x = quantize_four(kept[j], scale, inverse), out.y = quantize_four(kept[j] + 4, scale, inverse);
            ((uint2*)p.out)[(long long)row * count + i] = out;
        });
        if (thread == 0) p.scale[row] = scale;
    }
}
