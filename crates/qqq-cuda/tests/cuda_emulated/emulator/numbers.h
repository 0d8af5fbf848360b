// float16 and bfloat16 as the GPU's instructions compute with them: one rounding, to nearest, ties to even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace emulator {

template <class To, class From>
inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

inline float half_value(uint16_t half) {
#ifdef __F16C__
    return _cvtsh_ss(half);
#endif
    // Exponents are moved by a product, which is right for subnormal numbers as well.
    float value = bits_as<float>((uint32_t)(half & 0x7FFF) << 13) * 0x1p112f;
    if ((half & 0x7C00) == 0x7C00) value = bits_as<float>(0x7F800000u | (uint32_t)(half & 0x3FF) << 13);
    return half & 0x8000 ? -value : value;
}

inline float bfloat_value(uint16_t bfloat) { return bits_as<float>((uint32_t)bfloat << 16); }

// A double to a format with this many stored bits of mantissa; its smallest normal number is 2^MinExponent.
template <int Mantissa, int MinExponent>
inline uint16_t round_to_format(double value) {
    constexpr uint16_t kInfinity = (uint16_t)(((1u << (15 - Mantissa)) - 1) << Mantissa);
    const uint64_t bits = bits_as<uint64_t>(value);
    const uint16_t sign = (uint16_t)(bits >> 48 & 0x8000);
    const int field = (int)(bits >> 52 & 0x7FF);
    if (field == 0x7FF) return bits << 12 ? 0x7FFF : sign | kInfinity;
    // Subnormal doubles are far below half of any format's smallest number.
    if (field == 0) return sign;
    const int exponent = field - 1023, kept = exponent > MinExponent ? exponent : MinExponent;
    const uint64_t mantissa = (bits & 0xFFFFFFFFFFFFFull) | 1ull << 52;
    const int shift = 52 - Mantissa + kept - exponent;
    if (shift > 54) return sign;
    const uint64_t whole = mantissa >> shift, rest = mantissa & ((1ull << shift) - 1), half = 1ull << (shift - 1);
    const uint64_t rounded = whole + (rest > half || (rest == half && (whole & 1)));
    // A normal number's leading one counts as one more exponent; so does a carry.
    const uint64_t magnitude = ((uint64_t)(kept - MinExponent) << Mantissa) + rounded;
    return sign | (magnitude >= kInfinity ? kInfinity : (uint16_t)magnitude);
}

inline uint16_t to_half(double value) { return round_to_format<10, -14>(value); }
inline uint16_t to_bfloat(double value) { return round_to_format<7, -126>(value); }

// a + b rounded to odd: rounding once more to a format with far fewer bits gives what one rounding would.
inline double add_to_odd(double a, double b) {
    const double sum = a + b, from_b = sum - a;
    const double error = (a - (sum - from_b)) + (b - from_b);
    if (error == 0.0 || std::isnan(error)) return sum;
    const uint64_t bits = bits_as<uint64_t>(sum);
    if (bits & 1) return sum;
    // Away from zero if the exact sum is larger in magnitude.
    return bits_as<double>((error > 0) == (sum > 0) ? bits + 1 : bits - 1);
}

inline uint16_t half_fma(uint16_t a, uint16_t b, uint16_t c) {
    const float product = half_value(a) * half_value(b), addend = half_value(c);
#ifdef __F16C__
    // The product is exact. Mostly the sum is as well, and the host has an instruction for the rest.
    const float sum = product + addend, from_addend = sum - product;
    if ((product - (sum - from_addend)) + (addend - from_addend) == 0.0f) return _cvtss_sh(sum, 0);
#endif
    return to_half(add_to_odd(product, addend));
}

inline uint16_t bfloat_fma(uint16_t a, uint16_t b, uint16_t c) {
    return to_bfloat(add_to_odd((double)bfloat_value(a) * bfloat_value(b), bfloat_value(c)));
}

}  // namespace emulator
