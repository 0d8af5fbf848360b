// What a Hopper GPU gives at most: reading memory and multiplying int8. Both do nothing else.
#pragma once

#include "wgmma.cuh"

// Shared memory of read_ceiling: the ring, and two barriers a stage.
template <int kChunk, int kStages>
constexpr int kReadSharedBytes = kStages * (kChunk + 16);

// That of multiply_ceiling: the second operand of its instructions, 256 x 128 bytes.
constexpr int kMultiplySharedBytes = 256 * 128;

// Reads `chunks` chunks of kChunk bytes through a ring of kStages in shared memory; each CTA takes a range. 64 threads.
template <int kChunk, int kStages>
QQQ_DEVICE void read_ceiling(const uint8* source, int chunks, uint32* sink) {
    uint8* const memory = ptx::dynamic_shared();
    const uint32 shared = ptx::shared_address(memory), full = shared + kChunk * kStages, empty = full + kStages * 8;
    if (threadIdx.x == 0) {
        for (int i = 0; i < kStages; ++i) {
            ptx::barrier_init(full + i * 8, 1);
            ptx::barrier_init(empty + i * 8, 1);
        }
        ptx::barrier_init_fence();
    }
    __syncthreads();
    const long long all = chunks;
    const int begin = (int)(all * blockIdx.x / gridDim.x), count = (int)(all * (blockIdx.x + 1) / gridDim.x) - begin;
    if (threadIdx.x == 0) {
        const uint64 policy = ptx::policy_evict_first();
        for (int i = 0; i < count; ++i) {
            const int stage = i % kStages;
            if (i >= kStages) ptx::barrier_wait(empty + stage * 8, (i / kStages & 1) ^ 1);
            ptx::barrier_expect(full + stage * 8, kChunk);
            ptx::bulk_load(shared + stage * kChunk, source + (long long)(begin + i) * kChunk, kChunk, full + stage * 8, policy);
        }
    } else if (threadIdx.x == 32) {
        uint32 sum = 0;
        for (int i = 0; i < count; ++i) {
            const int stage = i % kStages;
            ptx::barrier_wait(full + stage * 8, i / kStages & 1);
            sum += ptx::load_shared_32(shared + stage * kChunk);
            ptx::barrier_arrive(empty + stage * 8);
        }
        // Never true for the caller's data; keeps the loads.
        if (sum == 0x9E3779B9) *sink = sum;
    }
}

// `rounds` times eight 64x256x32 products in each of two warpgroups, on whatever `source` (64 KiB) holds. 256 threads.
QQQ_DEVICE void multiply_ceiling(const uint4* source, int rounds, int* sink) {
    uint8* const memory = ptx::dynamic_shared();
    uint4* tile = (uint4*)memory;
    for (int i = threadIdx.x; i < kMultiplySharedBytes / 16; i += blockDim.x) tile[i] = source[i];
    ptx::fence_async_shared();
    __syncthreads();
    const uint64 b = wgmma::descriptor(wgmma::descriptor_low(ptx::shared_address(memory)));
    const uint4 x = source[2048 + threadIdx.x], y = source[2304 + threadIdx.x];
    uint32 a[8] = {x.x, x.y, x.z, x.w, y.x, y.y, y.z, y.w};
    int acc[128];
#pragma unroll
    for (int i = 0; i < 128; ++i) acc[i] = 0;
    for (int i = 0; i < rounds; ++i) {
        wgmma::pin(a);
        wgmma::fence();
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const int o = j % 2 * 4;
            wgmma::mma<kInt8, 256>::run(acc, a[o], a[o + 1], a[o + 2], a[o + 3], b + 2 * (j % 4));
        }
        wgmma::commit();
        wgmma::wait<0>();
    }
    wgmma::pin(acc);
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 128; ++i) sum ^= acc[i];
    if (sum == 0x1E3779B9) *sink = sum;
}
