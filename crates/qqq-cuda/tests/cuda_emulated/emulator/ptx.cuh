// In place of the kernels' file of this name: the same functions, on the emulated GPU.
#pragma once

#include "cuda.h"

typedef unsigned char uint8;
typedef signed char int8;
typedef unsigned short uint16;
typedef unsigned int uint32;
typedef unsigned long long uint64;

#define QQQ_DEVICE inline

struct alignas(64) TensorMap {
    uint64 opaque[16];
};

namespace ptx {

QQQ_DEVICE uint32 shared_address(const void* p) { return emulator::shared_address(p); }

// --- shared memory -----------------------------------------------------------------------------

QQQ_DEVICE uint8* dynamic_shared() { return emulator::self->block->shared; }

template <class T>
QQQ_DEVICE T load_shared(uint32 address) {
    T v;
    std::memcpy(&v, emulator::shared_at(address, sizeof(T), sizeof(T)), sizeof(T));
    return v;
}

QQQ_DEVICE uint4 load_shared_128(uint32 address) { return load_shared<uint4>(address); }
QQQ_DEVICE uint2 load_shared_64(uint32 address) { return load_shared<uint2>(address); }
QQQ_DEVICE uint32 load_shared_32(uint32 address) { return load_shared<uint32>(address); }
QQQ_DEVICE uint32 load_shared_16(uint32 address) { return load_shared<uint16>(address); }

QQQ_DEVICE void store_matrix_x4_transposed(uint32 address, uint32 a, uint32 b, uint32 c, uint32 d) {
    const uint32 registers[4] = {a, b, c, d};
    emulator::store_matrices(address, registers, 4);
}

QQQ_DEVICE void store_matrix_x2_transposed(uint32 address, uint32 a, uint32 b) {
    const uint32 registers[2] = {a, b};
    emulator::store_matrices(address, registers, 2);
}

// --- mbarrier ----------------------------------------------------------------------------------

QQQ_DEVICE void barrier_init(uint32 barrier, uint32 arrivals) { emulator::barrier_init(barrier, arrivals); }
QQQ_DEVICE void barrier_init_fence() {}
QQQ_DEVICE void barrier_expect(uint32 barrier, uint32 bytes) { emulator::barrier_arrive(barrier, bytes); }
QQQ_DEVICE void barrier_arrive(uint32 barrier) { emulator::barrier_arrive(barrier, 0); }
QQQ_DEVICE uint32 remote_address(uint32 address, uint32 rank) { return emulator::remote_address(address, rank); }
QQQ_DEVICE void barrier_arrive_remote(uint32 barrier, uint32 rank) {
    emulator::barrier_arrive(emulator::remote_address(barrier, rank), 0);
}
QQQ_DEVICE void barrier_wait(uint32 barrier, uint32 parity) { emulator::barrier_wait(barrier, parity); }
QQQ_DEVICE void barrier_wait_cluster(uint32 barrier, uint32 parity) { emulator::barrier_wait(barrier, parity); }
QQQ_DEVICE void store_remote_128(uint32 address, int4 v, uint32 barrier) { emulator::store_remote(address, &v, barrier); }

// --- copies ------------------------------------------------------------------------------------

QQQ_DEVICE uint64 policy_evict_first() { return 0; }
QQQ_DEVICE uint64 policy_evict_last() { return 0; }
QQQ_DEVICE uint64 policy_evict_normal() { return 0; }

QQQ_DEVICE void bulk_load(uint32 target, const void* source, uint32 bytes, uint32 barrier, uint64) {
    emulator::bulk_load(target, source, bytes, barrier);
}
QQQ_DEVICE void bulk_prefetch(const void* source, uint32 bytes) {
    if (bytes % 16 != 0) emulator::fail("a prefetch of %u bytes", bytes);
    emulator::check_global(source, bytes, 16);
}
QQQ_DEVICE void tensor_load(uint32 target, const TensorMap* map, int column, int row, uint32 barrier, uint64) {
    emulator::tensor_load(target, map, column, row, barrier, 1u << emulator::self->block->rank);
}
QQQ_DEVICE void tensor_load_multicast(uint32 target, const TensorMap* map, int column, int row, uint32 barrier, uint16 blocks,
                                      uint64) {
    emulator::tensor_load(target, map, column, row, barrier, blocks);
}
QQQ_DEVICE void tensor_store(const TensorMap* map, int column, int row, uint32 source) {
    emulator::tensor_store(map, column, row, source);
}
QQQ_DEVICE void store_commit() { emulator::close_group(&emulator::Thread::stores); }
template <int Pending>
QQQ_DEVICE void store_wait_read() {
    emulator::wait_groups(&emulator::Thread::stores, Pending, emulator::kStoresWait);
}
QQQ_DEVICE void prefetch_tensor_map(const TensorMap*) {}
QQQ_DEVICE void fence_async_shared() { ++emulator::self->proxy_fences; }

// --- warps, blocks, clusters, grids --------------------------------------------------------------

template <int Registers>
QQQ_DEVICE void registers_raise() {}
template <int Registers>
QQQ_DEVICE void registers_lower() {}

QQQ_DEVICE void named_barrier(uint32 id, uint32 threads) { emulator::named_barrier(id, threads); }
QQQ_DEVICE bool elect_one() { return emulator::elect_one(); }
QQQ_DEVICE int uniform(int value) { return (int)emulator::first_lane((uint32)value); }
QQQ_DEVICE uint32 thread_index() { return emulator::self->index; }
QQQ_DEVICE int opaque(int value) { return value; }
QQQ_DEVICE uint32 cluster_rank() { return emulator::self->block->rank; }
QQQ_DEVICE void cluster_sync() { emulator::cluster_barrier(); }
QQQ_DEVICE void grid_dependency_wait() { emulator::launch_wait(); }
QQQ_DEVICE void grid_launch_dependents() {}

// --- instructions of sm_80 ------------------------------------------------------------------------

QQQ_DEVICE void copy_async_4(uint32 target, const void* source) { emulator::copy_async(target, source, 4, true); }
QQQ_DEVICE void copy_async_16(uint32 target, const void* source, bool valid) { emulator::copy_async(target, source, 16, valid); }
QQQ_DEVICE void copy_async_commit() { emulator::close_group(&emulator::Thread::copies); }
template <int Pending>
QQQ_DEVICE void copy_async_wait() {
    emulator::wait_groups(&emulator::Thread::copies, Pending, emulator::kCopiesWait);
}
QQQ_DEVICE void prefetch_l2(const void* p) { emulator::check_global(p, 1, 1); }

QQQ_DEVICE void load_matrix_x4(uint32 address, uint32 (&d)[4]) { emulator::load_matrices(address, d); }
QQQ_DEVICE void load_matrix_x4_transposed(uint32 address, uint32 (&d)[4]) {
    emulator::load_matrices(address, d);
    for (uint32& matrix : d) matrix = emulator::transpose_matrix(matrix);
}
QQQ_DEVICE uint32 transpose_matrix(uint32 a) { return emulator::transpose_matrix(a); }
QQQ_DEVICE uint32 shuffle_xor(uint32 value, int mask) { return emulator::shuffle_xor(value, mask); }

QQQ_DEVICE void mma_16x8x32(int (&d)[4], uint32 a0, uint32 a1, uint32 a2, uint32 a3, uint32 b0, uint32 b1) {
    const uint32 a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
    emulator::multiply_16x8(emulator::kInt8Operand, d, a, b);
}
template <bool Bfloat>
QQQ_DEVICE void mma_16x8x16(int (&d)[4], uint32 a0, uint32 a1, uint32 a2, uint32 a3, uint32 b0, uint32 b1) {
    const uint32 a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
    emulator::multiply_16x8(Bfloat ? emulator::kBfloatOperand : emulator::kHalfOperand, d, a, b);
}

// --- global memory -----------------------------------------------------------------------------

QQQ_DEVICE void fence_device() { emulator::pause(); }

QQQ_DEVICE uint32 atomic_add(uint32* p, uint32 value) {
    emulator::pause();
    emulator::check_global(p, 4, 4);
    const uint32 old = *p;
    *p = old + value;
    return old;
}

QQQ_DEVICE int4 load_global_l2(const int4* p) {
    emulator::check_global(p, 16, 16);
    return *p;
}
QQQ_DEVICE void store_global_l2(int4* p, int4 v) {
    emulator::check_global(p, 16, 16);
    *p = v;
}
QQQ_DEVICE void store_global_128(void* p, uint32 a, uint32 b, uint32 c, uint32 d) {
    emulator::check_global(p, 16, 16);
    const uint4 v = {a, b, c, d};
    std::memcpy(p, &v, 16);
}
QQQ_DEVICE uint4 load_global_128(const void* p) {
    emulator::check_global(p, 16, 16);
    uint4 v;
    std::memcpy(&v, p, 16);
    return v;
}
QQQ_DEVICE uint4 load_global_128_once(const void* p) { return load_global_128(p); }

}  // namespace ptx
