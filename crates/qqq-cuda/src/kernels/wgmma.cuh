// wgmma, and how it is told where tiles are.
#pragma once

#include "wgmma_ptx.cuh"

namespace wgmma {

// Descriptor of a tile whose rows are 128 bytes, in 8-row groups of 1,024 bytes, 128-byte swizzle. Only its low word
// has the address, a multiple of 1,024; a step of 32 bytes adds 2 to it.
QQQ_DEVICE uint32 descriptor_low(uint32 address) { return (address & 0x3FFFF) >> 4 | 1 << 16; }

QQQ_DEVICE uint64 descriptor(uint32 low) { return (uint64)(1024 >> 4 | 1 << 30) << 32 | low; }

// Descriptor of a tile of 64 columns (of 16 bits), or several side by side, `block_bytes` from one to the next, whose rows are
// what is summed over (`mma_across`); otherwise as above. A step of 16 rows adds 128.
QQQ_DEVICE uint64 descriptor_across(uint32 address, uint32 block_bytes) {
    return (uint64)(1024 >> 4 | 1 << 30) << 32 | block_bytes >> 4 << 16 | (address & 0x3FFFF) >> 4;
}

}  // namespace wgmma
