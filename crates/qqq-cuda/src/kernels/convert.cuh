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

// Programmatic dependent launch: lets the next launch begin, and waits for the one before, whose results are there then. Every
// kernel that is launched so must wait, or one further on would wait for it alone.
QQQ_DEVICE void overlap_launches() {
#if __CUDA_ARCH__ >= 900
    ptx::grid_launch_dependents();
    ptx::grid_dependency_wait();
#endif
}
