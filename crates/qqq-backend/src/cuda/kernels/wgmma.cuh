// wgmma, and how it is told where tiles are.
#pragma once

#include "wgmma_ptx.cuh"

namespace wgmma {

// Descriptor of a tile whose rows are 128 bytes, in 8-row groups of 1,024 bytes, 128-byte swizzle; `address` is
// a multiple of 1,024. A step of 32 bytes adds 2.
QQQ_DEVICE uint64 descriptor(uint32 address) {
    return (uint64)((address & 0x3FFFF) >> 4) | (uint64)1 << 16 | (uint64)(1024 >> 4) << 32 | (uint64)1 << 62;
}

}  // namespace wgmma
