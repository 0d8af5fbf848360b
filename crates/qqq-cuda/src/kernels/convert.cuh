// Conversions between float32 and the two 16-bit types; a word holds two values, the first in the low half.
#pragma once

#include "ptx_arithmetic.cuh"

template <bool Bfloat>
QQQ_DEVICE uint32 pack_floats(float first, float second) {
    return Bfloat ? ptx::floats_to_bfloat2(first, second) : ptx::floats_to_half2(first, second);
}

template <bool Bfloat>
QQQ_DEVICE void unpack_floats(uint32 packed, float& first, float& second) {
    if constexpr (Bfloat) {
        first = __uint_as_float(packed << 16);
        second = __uint_as_float(packed & 0xFFFF0000u);
    } else {
        first = ptx::half_to_float((uint16)packed);
        second = ptx::half_to_float((uint16)(packed >> 16));
    }
}
