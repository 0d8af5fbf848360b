// Addresses: which memory they are of, and whether a kernel may use it.
#include "instructions.h"

namespace emulator {

// Dynamic shared memory begins behind what the system keeps for itself.
constexpr uint32_t kSharedBase = 1024;
constexpr int kRankBit = 24;

uint32_t shared_address(const void* p) {
    const ptrdiff_t offset = (const uint8_t*)p - self->block->shared;
    if (offset < 0 || (uint64_t)offset > machine->launch.shared_bytes) fail("a shared address of other memory");
    return kSharedBase + (uint32_t)offset;
}

uint8_t* shared_of(Block& block, uint32_t address, uint32_t bytes, uint32_t alignment) {
    if (block.running == 0) fail("shared memory of block %u is used after the block has ended", block.index);
    if (address < kSharedBase || address - kSharedBase + (uint64_t)bytes > machine->launch.shared_bytes) {
        fail("%u bytes at the shared address %#x, of %llu bytes from %#x", bytes, address,
             (unsigned long long)machine->launch.shared_bytes, kSharedBase);
    }
    if (address % alignment != 0) fail("the shared address %#x is not aligned to %u bytes", address, alignment);
    return block.shared + (address - kSharedBase);
}

uint8_t* shared_at(uint32_t address, uint32_t bytes, uint32_t alignment) {
    return shared_of(*self->block, address, bytes, alignment);
}

Block& owner(uint32_t& address) {
    const uint32_t rank = address >> kRankBit;
    address &= (1u << kRankBit) - 1;
    if (rank == 0) return *self->block;
    return *self->block->cluster->blocks[rank - 1];
}

uint32_t remote_address(uint32_t address, uint32_t rank) {
    if (rank >= self->block->cluster->blocks.size()) fail("the address of block %u of a cluster", rank);
    return address | (rank + 1) << kRankBit;
}

void check_global(const void* p, uint64_t bytes, uint64_t alignment) {
    const uint64_t address = (uint64_t)p;
    if (address % alignment != 0) fail("a global address is not aligned to %llu bytes", (unsigned long long)alignment);
    for (uint64_t i = 0; i < machine->launch.memory_count; ++i) {
        const Region& r = machine->launch.memory[i];
        if (address >= r.address && address + bytes <= r.address + r.bytes) return;
    }
    for (uint64_t i = 0; i < machine->launch.memory_count; ++i) {
        const Region& r = machine->launch.memory[i];
        if (address + bytes + 4096 > r.address && address < r.address + r.bytes + 4096) {
            fail("%llu bytes of global memory at %lld of operand %llu, which has %llu", (unsigned long long)bytes,
                 (long long)(address - r.address), (unsigned long long)i, (unsigned long long)r.bytes);
        }
    }
    fail("%llu bytes of global memory that is no operand", (unsigned long long)bytes);
}

void note_store(Thread& thread, uint32_t address, uint32_t bytes) {
    for (uint32_t at = address - kSharedBase; at < address - kSharedBase + bytes; at += 16) {
        thread.block->writers[at / 16] = {&thread, thread.proxy_fences};
    }
}

void check_fenced(Block& block, uint32_t address, uint32_t bytes) {
    for (uint32_t at = address - kSharedBase; at < address - kSharedBase + bytes; at += 16) {
        const Block::Writer& w = block.writers[at / 16];
        if (w.thread != nullptr && w.thread->proxy_fences == w.fences) {
            fail("the copy engine or wgmma reads what thread %u wrote to shared memory and did not fence", w.thread->index);
        }
    }
}

}  // namespace emulator
