// Conversions between float32 and the two 16-bit types; a word holds two values, the first in the low half.
#pragma once

#include "ptx.cuh"

template <bool Bfloat>
QQQ_DEVICE uint32 pack_floats(float first, float second) {
    uint32 packed;
    if constexpr (Bfloat) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
    } else {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
    }
    return packed;
}

QQQ_DEVICE float half_to_float(uint16 value) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(value));
    return f;
}

QQQ_DEVICE uint16 float_to_half(float value) {
    uint16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(value));
    return h;
}

template <bool Bfloat>
QQQ_DEVICE void unpack_floats(uint32 packed, float& first, float& second) {
    if constexpr (Bfloat) {
        first = __uint_as_float(packed << 16);
        second = __uint_as_float(packed & 0xFFFF0000u);
    } else {
        first = half_to_float((uint16)packed);
        second = half_to_float((uint16)(packed >> 16));
    }
}
