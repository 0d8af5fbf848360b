// The emulated GPU: threads in warps, blocks and clusters, and what is under way between them. The scheduler picks at random,
// from a seed, which warp runs next and when an asynchronous operation takes effect.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"

#define EXPORTED __attribute__((visibility("default")))

namespace emulator {

struct Block;
struct Warp;

// What a thread waits for, for the report of a deadlock.
struct Waiting {
    const char* what;
    uint32_t address, value;
};

// Groups of asynchronous copies of a thread (cp.async, or stores in bulk): those that are closed are numbered below `open`.
struct Groups {
    static constexpr uint32_t kMost = 64;
    uint32_t open = 0;
    uint32_t outstanding[kMost] = {};

    // Whether all groups but the `newest` closed ones are done.
    bool done(uint32_t newest) const {
        for (uint32_t age = newest + 1; age < kMost && age <= open; ++age) {
            if (outstanding[(open - age) % kMost] != 0) return false;
        }
        return true;
    }
};

struct Thread {
    Fiber fiber;
    uint8_t* stack;
    Block* block;
    Warp* warp;
    unsigned index, lane;
    bool finished;
    Waiting waiting;
    Groups copies, stores;
    // How often its writes to shared memory were made visible to the copy engine.
    uint64_t proxy_fences;
    // wgmma: instructions issued, the ends of the groups of them that were closed last, and whether registers are fenced.
    uint64_t issued, group_ends[8], groups;
    bool fenced;
};

// What all warps of a warpgroup say of a wgmma. `across`: B's rows are what is summed over; `a`: 0 if A is in registers.
struct WarpgroupProduct {
    int type, columns;
    bool across;
    uint64_t a, b;
    bool operator==(const WarpgroupProduct& o) const {
        return type == o.type && columns == o.columns && across == o.across && a == o.a && b == o.b;
    }
};

// A wgmma of a warp. Operands in registers are held by address: they are read when the instruction takes effect.
struct WarpMultiplication {
    WarpgroupProduct product;
    unsigned lanes;
    int* sums[32];
    const uint32_t* a[32][4];
};

struct Warp {
    Block* block;
    unsigned index;
    Thread* lanes[32];
    // Lanes that can run.
    uint32_t ready;
    // The collective instruction that lanes have come to.
    const char* collective;
    void* arguments[32];
    unsigned arrived;
    // wgmma: those that have not taken effect, of which the first has number `retired`; and who waits for them.
    std::deque<WarpMultiplication> multiplications;
    uint64_t retired;
    bool multiplying;
    std::vector<Thread*> waiters;
};

struct MemoryBarrier {
    uint32_t address;
    int expected, pending;
    int64_t bytes;
    uint32_t phase;
    std::vector<Thread*> waiters;
    // Who arrived in this phase: of each warp the first lane.
    std::vector<const Thread*> arrived;
};

// bar.sync, or the barrier of a cluster.
struct CountedBarrier {
    unsigned arrived = 0, threads = 0;
    std::vector<Thread*> waiters;
};

struct Cluster {
    unsigned index;
    std::vector<Block*> blocks;
    CountedBarrier barrier;
    unsigned running;
};

struct Block {
    unsigned index, rank, running;
    Cluster* cluster;
    std::unique_ptr<uint8_t[]> storage;
    // Aligned to 1,024 bytes.
    uint8_t* shared;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<MemoryBarrier> barriers;
    // For each 8 bytes of shared memory, 1 + the barrier that is there.
    std::vector<uint8_t> barrier_at;
    CountedBarrier named[16];
    // For each 16 bytes of shared memory: who wrote them by ordinary stores, and its count of fences then.
    struct Writer {
        Thread* thread;
        uint64_t fences;
    };
    std::vector<Writer> writers;
    // What the warps of each warpgroup multiplied: they must agree.
    struct Issue {
        uint64_t number;
        WarpgroupProduct product;
    };
    std::vector<std::vector<Issue>> issues;
};

// What the test puts into the 128 bytes of a tensor map.
struct Matrix {
    static constexpr uint64_t kMark = 0x7870616D;
    uint64_t mark, address, rows, columns, element_bytes, box_rows, box_columns;
};

// An asynchronous operation under way.
struct Transfer {
    enum Kind : uint8_t { kCopyAsync, kBulk, kTensorLoad, kRemoteStore, kTensorRead, kTensorWrite, kLaunchBefore };
    Kind kind;
    // cp.async: whether there is anything to read.
    bool valid;
    // Whose shared memory, and where in it.
    Block* block;
    uint32_t address, bytes;
    // Where the bytes are counted, in the same block.
    uint32_t barrier;
    const void* source;
    Matrix matrix;
    int column, row;
    // Whose group it belongs to.
    Thread* thread;
    uint32_t group;
    uint8_t data[16];
    std::vector<uint8_t> tile;
};

// Global memory that a kernel may use.
struct Region {
    uint64_t address, bytes;
};

// A launch, as the test describes it.
struct Launch {
    uint64_t blocks, threads, cluster, shared_bytes;
    // How many clusters are there at once; 0: all of them.
    uint64_t resident;
    uint64_t seed;
    const Region* memory;
    uint64_t memory_count;
    // What the launch before this one still writes: garbage until it ends, at some time.
    const Region* late;
    uint64_t late_count;
};

using Kernel = void (*)(const void* parameters);

// Operands of a matrix instruction: 32 bytes of 16 rows and of up to 256 columns; and their products, without what the
// accumulator holds.
struct alignas(64) Products {
    uint32_t a[16][8], b[256][8];
    int32_t sums[16][256];
};

class Random {
   public:
    explicit Random(uint64_t seed) : state(seed) {}
    uint64_t next() {
        uint64_t z = state += 0x9E3779B97F4A7C15ull;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ z >> 27) * 0x94D049BB133111EBull;
        return z ^ z >> 31;
    }
    // Below `limit`.
    uint32_t below(uint32_t limit) { return (uint32_t)((next() >> 32) * limit >> 32); }

   private:
    uint64_t state;
};

class Machine {
   public:
    Machine(const Launch& launch, Kernel kernel, const void* parameters);
    ~Machine();
    // False, and `error` says why, if the launch went wrong.
    bool run();

    const Launch& launch;
    Kernel kernel;
    const void* parameters;
    Random random;
    std::string error;
    std::vector<Transfer> transfers;
    // Warps whose next wgmma may take effect.
    std::vector<Warp*> multiplying;
    // Whether all warps of a warpgroup must have come to a wgmma before it takes effect for one.
    bool coupled;
    bool launch_before_ended;
    std::vector<Thread*> launch_waiters;
    std::jmp_buf scheduler;
    Products products;

   private:
    void start_cluster();
    void run_warp(uint32_t at);
    bool complete_something(bool slow_ones);
    void finish(Thread& thread);
    void end_cluster(Cluster& cluster);
    void report_deadlock();

    Stacks stacks;
    std::vector<unsigned> unstarted;
    std::vector<std::unique_ptr<Cluster>> clusters;
    std::vector<std::unique_ptr<Block>> blocks;
    std::vector<std::vector<uint8_t>> saved;
    // Some run only when nobody else can: for a while, for how many steps of the scheduler.
    bool is_slow(const Warp& warp) const;
    bool is_slow(Transfer::Kind kind) const;
    uint64_t chance(uint64_t a, uint64_t b) const;
    uint64_t steps;
    enum Slowness : uint32_t { kNobody, kWarps, kWarpgroups, kBlocks } slowness;
    uint32_t slow_steps;
    // One of so many steps completes something that is under way; 0: nothing is completed before all wait.
    uint32_t patience;

    friend void make_ready(Thread& thread);
    friend void transfer_launch_before();
    std::vector<Warp*> ready;
};

// Every emulated instruction looks at these: the model makes that a load instead of a call.
extern thread_local Machine* machine __attribute__((tls_model("initial-exec")));
extern thread_local Thread* self __attribute__((tls_model("initial-exec")));

// --- for the emulated instructions -----------------------------------------------------------------

// Ends the launch with a message; does not return.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

void make_ready(Thread& thread);
void wake(std::vector<Thread*>& waiters);

// Lets others run until somebody makes this thread ready.
void block_thread(const char* what, uint32_t address = 0, uint32_t value = 0);

// Lets others run now and then.
void pause();

template <class Condition>
void wait_until(std::vector<Thread*>& waiters, const char* what, uint32_t address, uint32_t value, Condition condition) {
    while (!condition()) {
        waiters.push_back(self);
        block_thread(what, address, value);
    }
}

// The last of a warp's lanes to come executes the instruction for all.
void collective(const char* what, void* argument, void (*execute)(void* const (&arguments)[32]));

}  // namespace emulator
