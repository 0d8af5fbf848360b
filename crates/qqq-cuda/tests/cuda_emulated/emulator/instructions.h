// What the emulated instructions of ptx.cuh and wgmma_ptx.cuh do. Shared addresses are those of the kernels: 32 bits, of a
// block's own memory as they are, of another block of the cluster with its rank + 1 in the high byte.
#pragma once

#include <cstring>

#include "machine.h"

namespace emulator {

// Memory that nobody has written, or that a copy under way will write: a NaN in float16, large numbers in the other types.
constexpr uint8_t kPoison = 0x7E;

// --- memory.cpp -------------------------------------------------------------------------------------

uint32_t shared_address(const void* p);
// The bytes at an address of this thread's block; fails if they are outside or not aligned.
uint8_t* shared_at(uint32_t address, uint32_t bytes, uint32_t alignment);
uint8_t* shared_of(Block& block, uint32_t address, uint32_t bytes, uint32_t alignment);
// The block that an address belongs to, whose own address it becomes.
Block& owner(uint32_t& address);
uint32_t remote_address(uint32_t address, uint32_t rank);
// Fails unless global memory is what the kernel may use, and aligned.
void check_global(const void* p, uint64_t bytes, uint64_t alignment);
// Ordinary stores to shared memory, which the copy engine and wgmma see after a fence of the thread that wrote.
void note_store(Thread& thread, uint32_t address, uint32_t bytes);
void check_fenced(Block& block, uint32_t address, uint32_t bytes);

// --- barriers.cpp -----------------------------------------------------------------------------------

MemoryBarrier* find_barrier(Block& block, uint32_t address);
void barrier_init(uint32_t address, uint32_t arrivals);
void barrier_arrive(uint32_t address, uint32_t expected_bytes);
// Of a transfer to the block.
void count_bytes(Block& block, uint32_t address, uint32_t bytes);
void barrier_wait(uint32_t address, uint32_t parity);
void named_barrier(uint32_t id, uint32_t threads);
// True in one lane of a warp.
bool elect_one();
uint32_t first_lane(uint32_t value);
void cluster_barrier();
void warp_barrier();
uint32_t shuffle_xor(uint32_t value, int mask);

// --- transfers.cpp ----------------------------------------------------------------------------------

void copy_async(uint32_t target, const void* source, uint32_t bytes, bool valid);
void bulk_load(uint32_t target, const void* source, uint32_t bytes, uint32_t barrier);
void tensor_load(uint32_t target, const void* map, int column, int row, uint32_t barrier, uint32_t blocks);
void tensor_store(const void* map, int column, int row, uint32_t source);
void store_remote(uint32_t address, const void* data, uint32_t barrier);
// What a thread waits for, told apart by address.
inline constexpr char kCopiesWait[] = "its copies to shared memory", kStoresWait[] = "its stores in bulk to be read";
void close_group(Groups Thread::*groups);
void wait_groups(Groups Thread::*groups, uint32_t newest, const char* what);
void launch_wait();
void complete_transfer(Transfer& transfer);
void transfer_launch_before();

// --- matrices.cpp -----------------------------------------------------------------------------------

void load_matrices(uint32_t address, uint32_t* registers);
void store_matrices(uint32_t address, const uint32_t* registers, uint32_t count);
uint32_t transpose_matrix(uint32_t a);
enum OperandType { kInt8Operand, kHalfOperand, kBfloatOperand };
void multiply_16x8(int type, int* d, const uint32_t (&a)[4], const uint32_t (&b)[2]);
void wgmma_issue(const WarpgroupProduct& product, int* d, const uint32_t* const (&a)[4]);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(uint32_t pending);
void complete_multiplication(uint32_t index);

}  // namespace emulator
