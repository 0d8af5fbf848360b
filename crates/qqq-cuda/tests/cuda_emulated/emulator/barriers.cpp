// What threads meet at: mbarriers, numbered barriers, clusters, warps.
#include "instructions.h"

namespace emulator {

// What a barrier's 8 bytes hold: who writes there destroys it.
constexpr uint64_t kBarrierMark = 0x7265697272616271ull;

MemoryBarrier* find_barrier(Block& block, uint32_t address) {
    if (address % 8 != 0 || address < 1024 || (address - 1024) / 8 >= block.barrier_at.size()) return nullptr;
    const uint8_t at = block.barrier_at[(address - 1024) / 8];
    return at == 0 ? nullptr : &block.barriers[at - 1];
}

static MemoryBarrier& barrier_of(Block& block, uint32_t address) {
    MemoryBarrier* b = find_barrier(block, address);
    if (b == nullptr) fail("no barrier at %#x of block %u", address, block.index);
    uint64_t mark;
    std::memcpy(&mark, shared_of(block, address, 8, 8), 8);
    if (mark != kBarrierMark) fail("the barrier at %#x of block %u was overwritten", address, block.index);
    return *b;
}

void barrier_init(uint32_t address, uint32_t arrivals) {
    Block& block = *self->block;
    std::memcpy(shared_at(address, 8, 8), &kBarrierMark, 8);
    if (find_barrier(block, address) != nullptr) fail("a second barrier at %#x", address);
    block.barriers.push_back({address, (int)arrivals, (int)arrivals, 0, 0, {}, {}});
    block.barrier_at[(address - 1024) / 8] = (uint8_t)block.barriers.size();
}

static void settle(MemoryBarrier& b) {
    if (b.pending > 0 || b.bytes != 0) return;
    b.pending = b.expected;
    b.arrived.clear();
    ++b.phase;
    wake(b.waiters);
}

// Lanes of a warp that arrive are one arrival for all of them on the hardware, and it is an error if the barrier waits for
// fewer. Here they come one by one, so a barrier where they do must count whole warps.
static void note_arrival(MemoryBarrier& b, const Block& block) {
    for (const Thread* first : b.arrived) {
        if (first->warp != self->warp) continue;
        if (first != self && b.expected % 32 != 0) {
            fail("lanes of a warp arrive at the barrier %#x of block %u, which counts %d", b.address, block.index, b.expected);
        }
        return;
    }
    b.arrived.push_back(self);
}

void barrier_arrive(uint32_t address, uint32_t expected_bytes) {
    pause();
    Block& block = owner(address);
    MemoryBarrier& b = barrier_of(block, address);
    if (b.pending == 0) fail("one arrival too many at the barrier %#x of block %u", address, block.index);
    note_arrival(b, block);
    b.bytes += expected_bytes;
    --b.pending;
    settle(b);
    pause();
}

void count_bytes(Block& block, uint32_t address, uint32_t bytes) {
    MemoryBarrier& b = barrier_of(block, address);
    b.bytes -= bytes;
    settle(b);
}

void barrier_wait(uint32_t address, uint32_t parity) {
    // Barriers may move in memory while threads wait.
    Block& block = *self->block;
    while ((barrier_of(block, address).phase & 1) == parity) {
        barrier_of(block, address).waiters.push_back(self);
        block_thread("the barrier's parity", address, parity);
    }
}

static void arrive_and_wait(CountedBarrier& b, unsigned threads, const char* what, uint32_t id) {
    if (b.arrived == 0) {
        b.threads = threads;
    } else if (b.threads != threads) {
        fail("%s %u: %u threads are expected, and %u", what, id, b.threads, threads);
    }
    if (++b.arrived == threads) {
        b.arrived = 0;
        wake(b.waiters);
        pause();
        return;
    }
    b.waiters.push_back(self);
    block_thread(what, id, threads);
}

void named_barrier(uint32_t id, uint32_t threads) {
    if (id >= 16 || threads % 32 != 0 || threads > self->block->threads.size()) fail("barrier %u of %u threads", id, threads);
    arrive_and_wait(self->block->named[id], threads, "the others at barrier", id);
}

void cluster_barrier() {
    Cluster& c = *self->block->cluster;
    arrive_and_wait(c.barrier, (unsigned)(c.blocks.size() * self->block->threads.size()), "the others of its cluster", 0);
}

void warp_barrier() {
    collective("__syncwarp", nullptr, [](void* const (&)[32]) {});
}

namespace {
struct Shuffle {
    uint32_t value, result;
    int mask;
};
}  // namespace

uint32_t shuffle_xor(uint32_t value, int mask) {
    Shuffle own{value, 0, mask};
    collective("shfl.xor", &own, [](void* const (&arguments)[32]) {
        for (int lane = 0; lane < 32; ++lane) {
            Shuffle& s = *(Shuffle*)arguments[lane];
            s.result = ((Shuffle*)arguments[lane ^ s.mask])->value;
        }
    });
    return own.result;
}

// The hardware may elect any lane.
bool elect_one() {
    int elected = -1;
    collective("elect", &elected, [](void* const (&arguments)[32]) {
        const int lane = (int)(self->lane);
        for (void* argument : arguments) *(int*)argument = lane;
    });
    return elected == (int)(self->lane);
}

uint32_t first_lane(uint32_t value) {
    uint32_t own = value;
    collective("shfl.idx", &own, [](void* const (&arguments)[32]) {
        for (void* argument : arguments) *(uint32_t*)argument = *(uint32_t*)arguments[0];
    });
    return own;
}

}  // namespace emulator
