// Thin wrappers of the PTX instructions for arithmetic on 16-bit numbers and on bytes. A word holds two 16-bit values,
// the first in the low half.
#pragma once

#include "ptx.cuh"

namespace ptx {

QQQ_DEVICE uint32 floats_to_half2(float first, float second) {
    uint32 packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
    return packed;
}

QQQ_DEVICE uint32 floats_to_bfloat2(float first, float second) {
    uint32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
    return packed;
}

QQQ_DEVICE float half_to_float(uint16 value) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(value));
    return f;
}

// The low half of a word in both, and the high one: part of the instruction that uses them.
QQQ_DEVICE uint32 half2_low(uint32 a) {
    uint32 d;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %1; mov.b32 %0, {l, l}; }" : "=r"(d) : "r"(a));
    return d;
}

QQQ_DEVICE uint32 half2_high(uint32 a) {
    uint32 d;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %1; mov.b32 %0, {h, h}; }" : "=r"(d) : "r"(a));
    return d;
}

QQQ_DEVICE uint32 half2_add(uint32 a, uint32 b) {
    uint32 d;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

QQQ_DEVICE uint32 half2_multiply(uint32 a, uint32 b) {
    uint32 d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

QQQ_DEVICE uint32 half2_fma(uint32 a, uint32 b, uint32 c) {
    uint32 d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

QQQ_DEVICE uint32 bfloat2_fma(uint32 a, uint32 b, uint32 c) {
    uint32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// (mask & x) | bits in one instruction.
template <uint32 Mask, uint32 Bits>
QQQ_DEVICE uint32 select_or(uint32 x) {
    uint32 d;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(x), "n"(Mask), "n"(Bits));
    return d;
}

// 2^x, with an error of 2 units in the last place; 0 for results below the normal range.
QQQ_DEVICE float exp2(float x) {
    float d;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}

// The sum of four products of int8 and c.
QQQ_DEVICE int dot4(uint32 a, uint32 b, int c) {
    int d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

}  // namespace ptx
