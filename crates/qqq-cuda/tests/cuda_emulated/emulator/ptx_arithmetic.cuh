// In place of the kernels' file of this name: every result has the bits that the instruction gives.
#pragma once

#include "ptx.cuh"

namespace ptx {

QQQ_DEVICE uint32 floats_to_half2(float first, float second) {
    return emulator::to_half(first) | (uint32)emulator::to_half(second) << 16;
}
QQQ_DEVICE uint32 floats_to_bfloat2(float first, float second) {
    return emulator::to_bfloat(first) | (uint32)emulator::to_bfloat(second) << 16;
}
QQQ_DEVICE float half_to_float(uint16 value) { return emulator::half_value(value); }

QQQ_DEVICE uint32 half2_fma(uint32 a, uint32 b, uint32 c) {
    const uint32 first = emulator::half_fma((uint16)a, (uint16)b, (uint16)c);
    return first | (uint32)emulator::half_fma((uint16)(a >> 16), (uint16)(b >> 16), (uint16)(c >> 16)) << 16;
}
QQQ_DEVICE uint32 half2_low(uint32 a) { return (a & 0xFFFF) * 0x10001u; }
QQQ_DEVICE uint32 half2_high(uint32 a) { return (a >> 16) * 0x10001u; }
QQQ_DEVICE uint32 half2_add(uint32 a, uint32 b) { return half2_fma(a, 0x3C003C00u, b); }
// -0 changes nothing.
QQQ_DEVICE uint32 half2_multiply(uint32 a, uint32 b) { return half2_fma(a, b, 0x80008000u); }

QQQ_DEVICE uint32 bfloat2_fma(uint32 a, uint32 b, uint32 c) {
    const uint32 first = emulator::bfloat_fma((uint16)a, (uint16)b, (uint16)c);
    return first | (uint32)emulator::bfloat_fma((uint16)(a >> 16), (uint16)(b >> 16), (uint16)(c >> 16)) << 16;
}

template <uint32 Mask, uint32 Bits>
QQQ_DEVICE uint32 select_or(uint32 x) {
    return (x & Mask) | Bits;
}

// The GPU's is an approximation.
QQQ_DEVICE float exp2(float x) { return std::exp2(x); }

QQQ_DEVICE int dot4(uint32 a, uint32 b, int c) {
    for (int shift = 0; shift < 32; shift += 8) c += (int8)(a >> shift) * (int8)(b >> shift);
    return c;
}

}  // namespace ptx
