// What the kernels' language has beyond C++, for the host's compiler.
#pragma once

#include <cmath>

#include "instructions.h"
#include "numbers.h"

#define __CUDA_ARCH__ 900
#define __device__
#define __global__
#define __forceinline__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
// Blocks of kernels with such arrays run one after the other, and so do launches.
#define __shared__ static

struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

struct Dimension {
    unsigned x;
};
#define threadIdx (Dimension{emulator::self->index})
#define blockIdx (Dimension{emulator::self->block->index})
#define blockDim (Dimension{(unsigned)emulator::machine->launch.threads})
#define gridDim (Dimension{(unsigned)emulator::machine->launch.blocks})

inline void __syncthreads() { emulator::named_barrier(0, (uint32_t)emulator::self->block->threads.size()); }
inline void __syncwarp() { emulator::warp_barrier(); }

template <class T>
inline T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulator::bits_as<T>(emulator::shuffle_xor(emulator::bits_as<uint32_t>(value), mask));
}

inline size_t __cvta_generic_to_shared(const void* p) { return emulator::shared_address(p); }
inline void* __cvta_shared_to_generic(size_t address) { return emulator::shared_at((uint32_t)address, 1, 1); }

template <class T>
inline T __ldg(const T* p) {
    emulator::check_global(p, sizeof(T), alignof(T));
    return *p;
}

// Threads take turns.
inline unsigned atomicMin(unsigned* p, unsigned value) {
    const unsigned before = *p;
    if (value < before) *p = value;
    return before;
}

inline unsigned atomicAdd(unsigned* p, unsigned value) {
    const unsigned before = *p;
    *p = before + value;
    return before;
}

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

inline float __uint_as_float(unsigned v) { return emulator::bits_as<float>(v); }
inline unsigned __float_as_uint(float v) { return emulator::bits_as<unsigned>(v); }
inline float __int_as_float(int v) { return emulator::bits_as<float>(v); }
inline int __float_as_int(float v) { return emulator::bits_as<int>(v); }
inline int __double2hiint(double v) { return (int)(emulator::bits_as<uint64_t>(v) >> 32); }
inline int __double2loint(double v) { return (int)emulator::bits_as<uint64_t>(v); }
inline double __hiloint2double(int high, int low) {
    return emulator::bits_as<double>((uint64_t)(uint32_t)high << 32 | (uint32_t)low);
}
inline float __int2float_rn(int v) { return (float)v; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
// The GPU's are approximations.
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return std::exp(a); }

// Byte i of the result is the one of (b, a) that nibble i of the selector names; a nibble's high bit repeats the sign.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = (uint64_t)b << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned byte = (unsigned)(bytes >> 8 * (selector >> 4 * i & 7)) & 0xFF;
        result |= (selector >> 4 * i & 8 ? (byte & 0x80 ? 0xFFu : 0u) : byte) << 8 * i;
    }
    return result;
}

// The test calls kernels by a pointer to their one parameter, whose size must be what the host believes.
template <class Parameters>
void call_kernel(void (*kernel)(Parameters), const void* parameters) {
    kernel(*(const Parameters*)parameters);
}

template <class Parameters>
size_t parameter_bytes(void (*)(Parameters)) {
    return sizeof(Parameters);
}
