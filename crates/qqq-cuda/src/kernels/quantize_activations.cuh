// Activations to int8, one scale a token: what feeds the GEMM, alone or after the operation that makes them.
//
// A row is read once, kept in registers as float32, and written as int8; a CTA takes a row, or a warp where rows are
// narrow. Rows longer than the registers hold (kVectors == 0) are read again from the caches instead.
#pragma once

#include "convert.cuh"

enum Operation {
    // The input itself.
    kPlain = 0,
    // RMSNorm of the input, or of input + residual.
    kRmsNorm = 1,
    // silu(gate) * up of input rows [gate | up].
    kSiluMul = 2,
};

enum NormWeight { kHalfWeight = 0, kBfloatWeight = 1, kFloatWeight = 2 };

struct QuantizeParameters {
    // M x K, for kSiluMul M x 2K, in half or bfloat16.
    const void* x;
    // For kRmsNorm: M x K, or null.
    const void* residual;
    // Where there is a residual, M x K: input + residual, rounded to the input's type. May be `residual` itself.
    void* new_residual;
    // For kRmsNorm: K values.
    const void* weight;
    int8* q;
    float* scale;
    // The sum of a row of q, or null.
    int* sum;
    int m, k;
    float epsilon;
    NormWeight weight_type;
};

// kStepwise: as a sequence of 16-bit operations would do it, every intermediate result and the scale are rounded to
// the input's type. Otherwise everything between input and int8 is float32.
template <Operation Operation_, bool Bfloat, int RowThreads, int Vectors, bool Stepwise>
struct QuantizeConfig {
    static constexpr Operation kOperation = Operation_;
    static constexpr bool kBfloat = Bfloat, kStepwise = Stepwise;
    // Threads of a row: a warp, or the CTA. Each holds `Vectors` times 8 values.
    static constexpr int kRowThreads = RowThreads, kVectors = Vectors;
    static constexpr int kRows = RowThreads == 32 ? 4 : 1, kThreads = kRows * RowThreads;
    static constexpr int kCapacity = RowThreads * 8 * Vectors;
    static_assert((RowThreads & (RowThreads - 1)) == 0 && RowThreads >= 32 && RowThreads <= 1024);
};

template <int RowThreads, class T, class Operation>
QQQ_DEVICE T reduce_row(T value, T* scratch, Operation operation) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value = operation(value, __shfl_xor_sync(0xFFFFFFFFu, value, mask));
    if constexpr (RowThreads > 32) {
        constexpr int kWarps = RowThreads / 32;
        if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
        __syncthreads();
        value = scratch[threadIdx.x % kWarps];
#pragma unroll
        for (int mask = kWarps / 2; mask > 0; mask /= 2) value = operation(value, __shfl_xor_sync(0xFFFFFFFFu, value, mask));
    }
    return value;
}

template <bool Bfloat>
QQQ_DEVICE float round_to(float value) {
    float rounded, other;
    unpack_floats<Bfloat>(pack_floats<Bfloat>(value, value), rounded, other);
    return rounded;
}

template <bool Bfloat>
QQQ_DEVICE void unpack_vector(const uint4& packed, float (&v)[8]) {
    unpack_floats<Bfloat>(packed.x, v[0], v[1]);
    unpack_floats<Bfloat>(packed.y, v[2], v[3]);
    unpack_floats<Bfloat>(packed.z, v[4], v[5]);
    unpack_floats<Bfloat>(packed.w, v[6], v[7]);
}

template <bool Bfloat>
QQQ_DEVICE uint4 pack_vector(const float (&v)[8]) {
    uint4 packed;
    packed.x = pack_floats<Bfloat>(v[0], v[1]), packed.y = pack_floats<Bfloat>(v[2], v[3]);
    packed.z = pack_floats<Bfloat>(v[4], v[5]), packed.w = pack_floats<Bfloat>(v[6], v[7]);
    return packed;
}

template <class C, class Body>
QQQ_DEVICE void for_vectors(int thread, int count, Body body) {
    if constexpr (C::kVectors == 0) {
#pragma unroll 1
        for (int i = thread; i < count; i += C::kRowThreads) body(i, 0);
    } else {
#pragma unroll
        for (int j = 0; j < C::kVectors; ++j) {
            const int i = thread + j * C::kRowThreads;
            if (i < count) body(i, j);
        }
    }
}

// One row of the input.
template <class C>
struct QuantizeRow {
    const uint16 *x, *residual;
    uint16* new_residual;

    QQQ_DEVICE QuantizeRow(const QuantizeParameters& p, int row)
        : x((const uint16*)p.x + (long long)row * p.k * (C::kOperation == kSiluMul ? 2 : 1)),
          residual(p.residual ? (const uint16*)p.residual + (long long)row * p.k : nullptr),
          new_residual((uint16*)p.new_residual + (long long)row * p.k) {}

    // What is read for eight values: all of a thread's reads are started before the first is needed.
    struct Words {
        uint4 first, second;
    };

    // The first time, the residual is added to the input; `again` reads the sum.
    QQQ_DEVICE Words fetch(const QuantizeParameters& p, int i, bool again) const {
        Words words{};
        if (C::kOperation == kRmsNorm && residual) words.second = ((const uint4*)(again ? new_residual : residual))[i];
        if (C::kOperation == kRmsNorm && residual && again) return words;
        words.first = ptx::load_global_128(x + i * 8);
        if constexpr (C::kOperation == kSiluMul) words.second = ptx::load_global_128(x + p.k + i * 8);
        return words;
    }

    // Eight values, before the norm's factors.
    QQQ_DEVICE void decode(const Words& words, int i, bool again, float (&v)[8]) const {
        if (C::kOperation == kRmsNorm && residual && again) {
            unpack_vector<C::kBfloat>(words.second, v);
            return;
        }
        unpack_vector<C::kBfloat>(words.first, v);
        if constexpr (C::kOperation == kSiluMul) {
            float up[8];
            unpack_vector<C::kBfloat>(words.second, up);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                float gate = __fdividef(v[j], 1.0f + __expf(-v[j]));
                if (C::kStepwise) gate = round_to<C::kBfloat>(gate);
                v[j] = gate * up[j];
                if (C::kStepwise) v[j] = round_to<C::kBfloat>(v[j]);
            }
        }
        if (C::kOperation == kRmsNorm && residual) {
            float other[8];
            unpack_vector<C::kBfloat>(words.second, other);
#pragma unroll
            for (int j = 0; j < 8; ++j) v[j] += other[j];
            const uint4 sum = pack_vector<C::kBfloat>(v);
            ((uint4*)new_residual)[i] = sum;
            // The norm is that of what the next layer will read.
            unpack_vector<C::kBfloat>(sum, v);
        }
    }

    QQQ_DEVICE void normalize(const QuantizeParameters& p, int i, float factor, float (&v)[8]) const {
        float weight[8];
        if (p.weight_type == kFloatWeight) {
            const float* source = (const float*)p.weight + i * 8;
            const uint4 a = ptx::load_global_128(source), b = ptx::load_global_128(source + 4);
            const uint32 bits[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
            for (int j = 0; j < 8; ++j) weight[j] = __uint_as_float(bits[j]);
        } else {
            const uint4 packed = ptx::load_global_128((const uint16*)p.weight + i * 8);
            if (p.weight_type == kBfloatWeight) {
                unpack_vector<true>(packed, weight);
            } else {
                unpack_vector<false>(packed, weight);
            }
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            v[j] = __fmul_rn(v[j], factor);
            if (C::kStepwise) v[j] = round_to<C::kBfloat>(v[j]);
            v[j] = __fmul_rn(v[j], weight[j]);
            if (C::kStepwise) v[j] = round_to<C::kBfloat>(v[j]);
        }
    }
};

// Four values to int8.
QQQ_DEVICE uint32 quantize_four(const float* v, float scale, float inverse) {
    uint32 bits[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        // The quotient to the nearest float32: one correction of the product with the rounded inverse gives it.
        float quotient = __fmul_rn(v[i], inverse);
        quotient = __fmaf_rn(__fmaf_rn(-quotient, scale, v[i]), inverse, quotient);
        // Adding 1.5 * 2^23 rounds to an integer, to even, whose low byte is the result.
        bits[i] = __float_as_uint(__fadd_rn(fmaxf(fminf(quotient, 127.0f), -128.0f), 12582912.0f));
    }
    return __byte_perm(__byte_perm(bits[0], bits[1], 0x0040), __byte_perm(bits[2], bits[3], 0x0040), 0x5410);
}

template <class C>
QQQ_DEVICE void quantize_activations(const QuantizeParameters& p) {
    __shared__ float squares_scratch[32], largest_scratch[32];
    __shared__ int sum_scratch[32];
    const int thread = threadIdx.x % C::kRowThreads;
    const int row = blockIdx.x * C::kRows + threadIdx.x / C::kRowThreads;
    // The product after this may begin to load its weights; for the rest it waits until this kernel has ended.
    overlap_launches();
    if (row >= p.m) return;
    const QuantizeRow<C> source(p, row);
    const int count = p.k / 8;
    constexpr bool kKept = C::kVectors > 0;
    float kept[kKept ? C::kVectors : 1][8];
    auto add = [](auto a, auto b) { return a + b; };

    float squares = 0.0f, largest = 0.0f;
    [[maybe_unused]] typename QuantizeRow<C>::Words words[kKept ? C::kVectors : 1];
    if (kKept) for_vectors<C>(thread, count, [&](int i, int j) { words[j] = source.fetch(p, i, false); });
    for_vectors<C>(thread, count, [&](int i, int j) {
        float(&v)[8] = kept[j];
        source.decode(kKept ? words[j] : source.fetch(p, i, false), i, false, v);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            if (C::kOperation == kRmsNorm) {
                squares = __fmaf_rn(v[e], v[e], squares);
            } else {
                largest = fmaxf(largest, fabsf(v[e]));
            }
        }
    });
    [[maybe_unused]] float factor = 1.0f;
    if constexpr (C::kOperation == kRmsNorm) {
        squares = reduce_row<C::kRowThreads>(squares, squares_scratch, add);
        factor = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(squares, (float)p.k), p.epsilon)));
        for_vectors<C>(thread, count, [&](int i, int j) {
            float(&v)[8] = kept[j];
            if (!kKept) source.decode(source.fetch(p, i, true), i, true, v);
            source.normalize(p, i, factor, v);
#pragma unroll
            for (int e = 0; e < 8; ++e) largest = fmaxf(largest, fabsf(v[e]));
        });
    }
    largest = reduce_row<C::kRowThreads>(largest, largest_scratch, [](float a, float b) { return fmaxf(a, b); });
    // Rows of zeros, and of values so small that their inverse overflows, become zeros; infinity becomes the largest
    // value.
    largest = largest >= 1e-30f ? fminf(largest, 3.4e38f) : 1.0f;
    float scale = __fdiv_rn(largest, 127.0f);
    if constexpr (C::kStepwise) {
        // Where the type has no scale so small or so large, its smallest or largest positive value.
        scale = round_to<C::kBfloat>(scale);
        if (!C::kBfloat) scale = fminf(fmaxf(scale, 5.9604645e-8f), 65504.0f);
    }
    const float inverse = __fdiv_rn(1.0f, scale);

    int sum = 0;
    for_vectors<C>(thread, count, [&](int i, int j) {
        float(&v)[8] = kept[j];
        if (!kKept) {
            source.decode(source.fetch(p, i, true), i, true, v);
            if (C::kOperation == kRmsNorm) source.normalize(p, i, factor, v);
        }
        uint2 out;
        out.x = quantize_four(v, scale, inverse), out.y = quantize_four(v + 4, scale, inverse);
        ((uint2*)(p.q + (long long)row * p.k))[i] = out;
        sum = ptx::dot4(out.x, 0x01010101u, ptx::dot4(out.y, 0x01010101u, sum));
    });
    if (p.sum != nullptr) sum = reduce_row<C::kRowThreads>(sum, sum_scratch, add);
    if (thread == 0) {
        p.scale[row] = scale;
        if (p.sum != nullptr) p.sum[row] = sum;
    }
}
