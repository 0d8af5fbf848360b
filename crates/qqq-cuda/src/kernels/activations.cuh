// What the tokens of a product are made of, and the sums that belong to it.
#pragma once

#include "ptx.cuh"

enum Activations {
    // int8 with a scale a token; sums are int32 and exact.
    kInt8 = 0,
    // 16-bit floating point without a scale; sums are float32, and their order counts.
    kFloat16 = 1,
    kBfloat16 = 2,
};

// A k-tile takes 128 bytes of every token's row, whatever they are made of.
template <Activations A>
struct Activation {
    static constexpr int kBytes = A == kInt8 ? 1 : 2;
    static constexpr int kTileColumns = 128 / kBytes;
};

// Sums are kept as words, float32 ones by their bits: with registers of type float between its instructions, the
// compiler serializes wgmma (C7514).

// Four sums, registers at.. to at + 3, as they travel between threads, warpgroups and CTAs.
template <int Count>
QQQ_DEVICE int4 pack_sums(const int (&d)[Count], int at) {
    return make_int4(d[at], d[at + 1], d[at + 2], d[at + 3]);
}

template <Activations A>
QQQ_DEVICE int add_sum(int a, int b) {
    return A == kInt8 ? a + b : __float_as_int(__fadd_rn(__int_as_float(a), __int_as_float(b)));
}

template <Activations A, int Count>
QQQ_DEVICE void add_sums(int (&d)[Count], int at, int4 v) {
    d[at] = add_sum<A>(d[at], v.x), d[at + 1] = add_sum<A>(d[at + 1], v.y);
    d[at + 2] = add_sum<A>(d[at + 2], v.z), d[at + 3] = add_sum<A>(d[at + 3], v.w);
}

// An output, before its bias: the sum, the channel's scale and the token's, rounded in this order.
template <Activations A>
QQQ_DEVICE float scale_sum(int sum, float channel, float token) {
    if constexpr (A == kInt8) return __fmul_rn(__fmul_rn(__int2float_rn(sum), channel), token);
    return __fmul_rn(__int_as_float(sum), channel);
}
