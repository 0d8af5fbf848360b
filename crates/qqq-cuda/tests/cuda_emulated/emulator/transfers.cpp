// Asynchronous copies. From its issue on, what a copy will write is garbage; what it reads, it reads when it takes effect.
#include "instructions.h"

namespace emulator {

static Transfer start(Transfer::Kind kind, Block& block, uint32_t address, uint32_t bytes) {
    Transfer t{};
    t.kind = kind, t.block = &block, t.address = address, t.bytes = bytes;
    return t;
}

void copy_async(uint32_t target, const void* source, uint32_t bytes, bool valid) {
    if (valid) check_global(source, bytes, bytes);
    std::memset(shared_at(target, bytes, bytes), kPoison, bytes);
    Transfer t = start(Transfer::kCopyAsync, *self->block, target, bytes);
    t.source = source, t.valid = valid, t.thread = self, t.group = self->copies.open % Groups::kMost;
    ++self->copies.outstanding[t.group];
    machine->transfers.push_back(std::move(t));
}

void bulk_load(uint32_t target, const void* source, uint32_t bytes, uint32_t barrier) {
    if (bytes % 16 != 0) fail("a bulk copy of %u bytes", bytes);
    check_global(source, bytes, 16);
    std::memset(shared_at(target, bytes, 16), kPoison, bytes);
    Transfer t = start(Transfer::kBulk, *self->block, target, bytes);
    t.source = source, t.barrier = barrier;
    machine->transfers.push_back(std::move(t));
    pause();
}

static const Matrix& matrix(const void* map) {
    const Matrix& m = *(const Matrix*)map;
    if (m.mark != Matrix::kMark || (uintptr_t)map % 64 != 0) fail("no tensor map");
    if (m.box_columns * m.element_bytes != 128) fail("boxes whose rows are %llu bytes", (unsigned long long)(m.box_columns * m.element_bytes));
    return m;
}

void tensor_load(uint32_t target, const void* map, int column, int row, uint32_t barrier, uint32_t blocks) {
    const Matrix& m = matrix(map);
    const auto& cluster = self->block->cluster->blocks;
    const uint32_t bytes = (uint32_t)m.box_rows * 128;
    if (blocks >> cluster.size() != 0) fail("a multicast to blocks %#x of a cluster", blocks);
    for (Block* block : cluster) {
        if (!(blocks >> block->rank & 1)) continue;
        std::memset(shared_of(*block, target, bytes, 128), kPoison, bytes);
        Transfer t = start(Transfer::kTensorLoad, *block, target, bytes);
        t.matrix = m, t.column = column, t.row = row, t.barrier = barrier;
        machine->transfers.push_back(std::move(t));
    }
    pause();
}

void tensor_store(const void* map, int column, int row, uint32_t source) {
    const Matrix& m = matrix(map);
    const uint32_t bytes = (uint32_t)m.box_rows * 128;
    shared_at(source, bytes, 128);
    check_fenced(*self->block, source, bytes);
    Transfer t = start(Transfer::kTensorRead, *self->block, source, bytes);
    t.matrix = m, t.column = column, t.row = row, t.thread = self, t.group = self->stores.open % Groups::kMost;
    ++self->stores.outstanding[t.group];
    machine->transfers.push_back(std::move(t));
    pause();
}

void store_remote(uint32_t address, const void* data, uint32_t barrier) {
    Block& block = owner(address);
    if (&owner(barrier) != &block) fail("data for one block, a barrier in another");
    std::memset(shared_of(block, address, 16, 16), kPoison, 16);
    Transfer t = start(Transfer::kRemoteStore, block, address, 16);
    t.barrier = barrier;
    std::memcpy(t.data, data, 16);
    machine->transfers.push_back(std::move(t));
}

void close_group(Groups Thread::*groups) {
    Groups& g = self->*groups;
    ++g.open;
    if (g.outstanding[g.open % Groups::kMost] != 0) fail("more than %u groups of copies", Groups::kMost);
}

void wait_groups(Groups Thread::*groups, uint32_t newest, const char* what) {
    while (!(self->*groups).done(newest)) block_thread(what, newest);
}

void launch_wait() {
    wait_until(machine->launch_waiters, "the launch before", 0, 0, [] { return machine->launch_before_ended; });
}

// --- taking effect ------------------------------------------------------------------------------------

// The 16-byte pieces of a row are permuted by address bits 7 to 9.
static uint32_t swizzle(uint32_t address) { return address ^ (address >> 3 & 0x70); }

static void write_box(Transfer& t) {
    const Matrix& m = t.matrix;
    const int64_t row_bytes = (int64_t)(m.columns * m.element_bytes);
    for (uint32_t r = 0; r < m.box_rows; ++r) {
        for (uint32_t piece = 0; piece < 128; piece += 16) {
            uint8_t bytes[16] = {};
            const int64_t row = t.row + (int64_t)r, column = t.column * (int64_t)m.element_bytes + piece;
            if (row >= 0 && row < (int64_t)m.rows && column >= 0 && column < row_bytes) {
                const void* source = (const void*)(m.address + (uint64_t)(row * row_bytes + column));
                const size_t size = (size_t)(row_bytes - column < 16 ? row_bytes - column : 16);
                check_global(source, size, 1);
                std::memcpy(bytes, source, size);
            }
            std::memcpy(shared_of(*t.block, swizzle(t.address + r * 128 + piece), 16, 16), bytes, 16);
        }
    }
}

static void read_box(Transfer& t) {
    t.tile.resize(t.bytes);
    for (uint32_t at = 0; at < t.bytes; at += 16) {
        std::memcpy(&t.tile[at], shared_of(*t.block, swizzle(t.address + at), 16, 16), 16);
    }
}

static void store_box(const Transfer& t) {
    const Matrix& m = t.matrix;
    const int64_t row_bytes = (int64_t)(m.columns * m.element_bytes);
    for (uint32_t r = 0; r < m.box_rows; ++r) {
        const int64_t row = t.row + (int64_t)r, column = t.column * (int64_t)m.element_bytes;
        if (row < 0 || row >= (int64_t)m.rows || column < 0 || column >= row_bytes) continue;
        void* target = (void*)(m.address + (uint64_t)(row * row_bytes + column));
        const size_t size = (size_t)(row_bytes - column < 128 ? row_bytes - column : 128);
        check_global(target, size, 1);
        std::memcpy(target, &t.tile[r * 128], size);
    }
}

// The thread may wait for copies of its own.
static void end_in_group(const Transfer& t, Groups Thread::*member, const char* what) {
    Groups& groups = t.thread->*member;
    --groups.outstanding[t.group];
    if (t.thread->waiting.what == what && groups.done(t.thread->waiting.address)) make_ready(*t.thread);
}

void complete_transfer(Transfer& t) {
    switch (t.kind) {
        case Transfer::kCopyAsync: {
            uint8_t* target = shared_of(*t.block, t.address, t.bytes, t.bytes);
            if (t.valid) {
                std::memcpy(target, t.source, t.bytes);
            } else {
                std::memset(target, 0, t.bytes);
            }
            note_store(*t.thread, t.address, t.bytes);
            end_in_group(t, &Thread::copies, kCopiesWait);
            break;
        }
        case Transfer::kBulk:
            std::memcpy(shared_of(*t.block, t.address, t.bytes, 16), t.source, t.bytes);
            count_bytes(*t.block, t.barrier, t.bytes);
            break;
        case Transfer::kTensorLoad:
            write_box(t);
            count_bytes(*t.block, t.barrier, t.bytes);
            break;
        case Transfer::kRemoteStore:
            std::memcpy(shared_of(*t.block, t.address, 16, 16), t.data, 16);
            count_bytes(*t.block, t.barrier, 16);
            break;
        case Transfer::kTensorRead:
            read_box(t);
            end_in_group(t, &Thread::stores, kStoresWait);
            t.kind = Transfer::kTensorWrite;
            machine->transfers.push_back(std::move(t));
            break;
        case Transfer::kTensorWrite:
            store_box(t);
            break;
        case Transfer::kLaunchBefore:
            transfer_launch_before();
            break;
    }
}

}  // namespace emulator
