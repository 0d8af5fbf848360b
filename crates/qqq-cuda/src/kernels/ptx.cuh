// Thin wrappers of the PTX instructions that the kernels use. Nothing of the CUDA headers is
// needed: kernels are compiled by NVRTC on machines without a toolkit.
#pragma once

typedef unsigned char uint8;
typedef signed char int8;
typedef unsigned short uint16;
typedef unsigned int uint32;
typedef unsigned long long uint64;

#define QQQ_DEVICE __device__ __forceinline__

// A tensor map is 128 opaque bytes that the host's driver encodes.
struct alignas(64) TensorMap {
    uint64 opaque[16];
};

namespace ptx {

QQQ_DEVICE uint32 shared_address(const void* p) { return (uint32)__cvta_generic_to_shared(p); }

// --- shared memory -----------------------------------------------------------------------------

// The CTA's dynamic shared memory.
QQQ_DEVICE uint8* dynamic_shared() {
    extern __shared__ __align__(1024) uint8 memory[];
    return memory;
}

QQQ_DEVICE uint4 load_shared_128(uint32 address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
    return v;
}

QQQ_DEVICE uint2 load_shared_64(uint32 address) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
    return v;
}

QQQ_DEVICE uint32 load_shared_32(uint32 address) {
    uint32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
    return v;
}

QQQ_DEVICE uint32 load_shared_16(uint32 address) {
    uint16 v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(address));
    return v;
}

// Four 8x8 matrices of 16-bit elements, each stored transposed: lane 8i+r gives the address of row r
// of matrix i, and a register of lane l holds columns l/4 of rows 2*(l%4) and the next.
QQQ_DEVICE void store_matrix_x4_transposed(uint32 address, uint32 a, uint32 b, uint32 c, uint32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};"
                 :: "r"(address), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

QQQ_DEVICE void store_matrix_x2_transposed(uint32 address, uint32 a, uint32 b) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};" :: "r"(address), "r"(a), "r"(b) : "memory");
}

// --- mbarrier ----------------------------------------------------------------------------------

QQQ_DEVICE void barrier_init(uint32 barrier, uint32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(arrivals) : "memory");
}

QQQ_DEVICE void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

QQQ_DEVICE void barrier_expect(uint32 barrier, uint32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(barrier), "r"(bytes) : "memory");
}

QQQ_DEVICE void barrier_arrive(uint32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory");
}

// Arrives at the barrier at the same shared address in another CTA of the cluster. It tells that shared memory was
// read, so it needs no fence of the cluster's scope, which would take a microsecond.
QQQ_DEVICE void barrier_arrive_remote(uint32 barrier, uint32 rank) {
    asm volatile(
        "{ .reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [remote]; }"
        :: "r"(barrier), "r"(rank) : "memory");
}

// What is waited for was written by the copy engine: no wider scope than the CTA's is needed (a cluster's would
// invalidate the L1 cache each time).
QQQ_DEVICE void barrier_wait(uint32 barrier, uint32 parity) {
    asm volatile(
        "{ .reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again; }"
        :: "r"(barrier), "r"(parity) : "memory");
}

// The same, and makes visible what other CTAs of the cluster wrote before the barrier completed.
QQQ_DEVICE void barrier_wait_cluster(uint32 barrier, uint32 parity) {
    asm volatile(
        "{ .reg .pred done;\n"
        "again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again; }"
        :: "r"(barrier), "r"(parity) : "memory");
}

// The address of the same place in the shared memory of another CTA of the cluster.
QQQ_DEVICE uint32 remote_address(uint32 address, uint32 rank) {
    uint32 remote;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
    return remote;
}

// Stores 16 bytes to another CTA's shared memory and counts them at its barrier (both addresses remote).
QQQ_DEVICE void store_remote_128(uint32 address, int4 v, uint32 barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.s32 [%0], {%1,%2,%3,%4}, [%5];"
                 :: "r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier) : "memory");
}

// --- copies ------------------------------------------------------------------------------------

QQQ_DEVICE uint64 policy_evict_first() {
    uint64 policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

QQQ_DEVICE uint64 policy_evict_last() {
    uint64 policy;
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

QQQ_DEVICE uint64 policy_evict_normal() {
    uint64 policy;
    asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// `bytes` (a multiple of 16) from global to shared memory; completion counts at `barrier`.
QQQ_DEVICE void bulk_load(uint32 target, const void* source, uint32 bytes, uint32 barrier, uint64 policy) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
        :: "r"(target), "l"(source), "r"(bytes), "r"(barrier), "l"(policy) : "memory");
}

// Brings `bytes` (a multiple of 16) to the L2 cache.
QQQ_DEVICE void bulk_prefetch(const void* source, uint32 bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" :: "l"(source), "r"(bytes) : "memory");
}

QQQ_DEVICE void tensor_load(uint32 target, const TensorMap* map, int column, int row, uint32 barrier, uint64 policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%2, %3}], [%4], %5;"
        :: "r"(target), "l"(map), "r"(column), "r"(row), "r"(barrier), "l"(policy) : "memory");
}

// The same to the same shared address of every CTA in `ctas` (a bit a rank); each one's barrier counts.
QQQ_DEVICE void tensor_load_multicast(uint32 target, const TensorMap* map, int column, int row, uint32 barrier,
                                      uint16 ctas, uint64 policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint"
        " [%0], [%1, {%2, %3}], [%4], %5, %6;"
        :: "r"(target), "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(ctas), "l"(policy) : "memory");
}

QQQ_DEVICE void tensor_store(const TensorMap* map, int column, int row, uint32 source) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];"
                 :: "l"(map), "r"(column), "r"(row), "r"(source) : "memory");
}

QQQ_DEVICE void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until the sources of all but the newest `Pending` committed stores may be overwritten.
template <int Pending>
QQQ_DEVICE void store_wait_read() { asm volatile("cp.async.bulk.wait_group.read %0;" :: "n"(Pending) : "memory"); }

QQQ_DEVICE void prefetch_tensor_map(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" :: "l"(map) : "memory");
}

// Makes this thread's ordinary writes to shared memory visible to the copy engine and the tensor cores.
QQQ_DEVICE void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// --- warps, CTAs, clusters, grids --------------------------------------------------------------

template <int Registers>
QQQ_DEVICE void registers_raise() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(Registers)); }

template <int Registers>
QQQ_DEVICE void registers_lower() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(Registers)); }

QQQ_DEVICE void named_barrier(uint32 id, uint32 threads) {
    asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory");
}

// True in one lane of a warp, all of which must be there.
QQQ_DEVICE bool elect_one() {
    uint32 elected;
    asm volatile("{ .reg .pred p; elect.sync _|p, 0xFFFFFFFF; selp.u32 %0, 1, 0, p; }" : "=r"(elected));
    return elected != 0;
}

// The same value, of which the compiler knows that it is the first lane's in all lanes.
QQQ_DEVICE int uniform(int value) { return __shfl_sync(0xFFFFFFFFu, value, 0); }

// threadIdx.x, read anew each time, so that what is derived from it need not stay in registers.
QQQ_DEVICE uint32 thread_index() {
    uint32 index;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
    return index;
}

// The same value, of which the compiler no longer knows where it comes from.
QQQ_DEVICE int opaque(int value) {
    asm volatile("" : "+r"(value));
    return value;
}

QQQ_DEVICE uint32 cluster_rank() {
    uint32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

QQQ_DEVICE void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Programmatic dependent launch: waits until the grids that this one depends on have finished and their
// writes are visible; no effect in an ordinary launch.
QQQ_DEVICE void grid_dependency_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

QQQ_DEVICE void grid_launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// --- instructions of sm_80 ------------------------------------------------------------------------

// 4 bytes from global to shared memory.
QQQ_DEVICE void copy_async_4(uint32 target, const void* source) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(target), "l"(source) : "memory");
}

// 16 bytes from global to shared memory, or zeros if not `valid` (then nothing is read). Without a cache hint: with
// one, NVRTC 13.0 makes an instruction that the GPU refuses (an odd pair of uniform registers).
QQQ_DEVICE void copy_async_16(uint32 target, const void* source, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(target), "l"(source), "r"(valid ? 16 : 0) : "memory");
}

QQQ_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `Pending` of this thread's newest groups are under way.
template <int Pending>
QQQ_DEVICE void copy_async_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(Pending) : "memory"); }

// Brings a line to the L2 cache.
QQQ_DEVICE void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" :: "l"(p)); }

// Four 8x8 matrices of 16-bit elements: lane 8i+r gives the address of row r of matrix i, and register i of lane l
// gets columns 2*(l%4) and the next of row l/4.
QQQ_DEVICE void load_matrix_x4(uint32 address, uint32 (&d)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(address));
}

// The same four matrices, each transposed: register i of lane l gets rows 2*(l%4) and the next of column l/4.
QQQ_DEVICE void load_matrix_x4_transposed(uint32 address, uint32 (&d)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(address));
}

// The transpose of an 8x8 matrix of 16-bit elements spread over a warp as above.
QQQ_DEVICE uint32 transpose_matrix(uint32 a) {
    uint32 d;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(a));
    return d;
}

QQQ_DEVICE uint32 shuffle_xor(uint32 value, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, value, mask); }

// D += A B of int8, D 16 x 8: with r = lane / 4 and c = lane % 4, A's registers hold columns 4c..4c+3 of rows r and r +
// 8, then columns 16 + 4c.. of the same; B's hold rows 4c..4c+3 and 16 + 4c.. of column r; D's hold columns 2c and 2c +
// 1 of row r, then of row r + 8.
QQQ_DEVICE void mma_16x8x32(int (&d)[4], uint32 a0, uint32 a1, uint32 a2, uint32 a3, uint32 b0, uint32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same of float16 or bfloat16: two columns take the place of four, and D holds float32.
template <bool Bfloat>
QQQ_DEVICE void mma_16x8x16(int (&d)[4], uint32 a0, uint32 a1, uint32 a2, uint32 a3, uint32 b0, uint32 b1) {
    if constexpr (Bfloat) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    }
}

// --- global memory -----------------------------------------------------------------------------

QQQ_DEVICE void fence_device() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

QQQ_DEVICE uint32 atomic_add(uint32* p, uint32 value) {
    uint32 old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(value) : "memory");
    return old;
}

// Loads that other SMs may have written meanwhile: from L2.
QQQ_DEVICE int4 load_global_l2(const int4* p) {
    int4 v;
    asm volatile("ld.global.cg.v4.s32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}

QQQ_DEVICE void store_global_l2(int4* p, int4 v) {
    asm volatile("st.global.cg.v4.s32 [%0], {%1,%2,%3,%4};" :: "l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

QQQ_DEVICE void store_global_128(void* p, uint32 a, uint32 b, uint32 c, uint32 d) {
    asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" :: "l"(p), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

// Read-only data that is read once: what is read again keeps its place in the L1 cache.
QQQ_DEVICE uint4 load_global_128_once(const void* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

// Read-only data.
QQQ_DEVICE uint4 load_global_128(const void* p) {
    uint4 v;
    asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

}  // namespace ptx
