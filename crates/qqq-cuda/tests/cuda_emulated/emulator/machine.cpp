#include "machine.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "instructions.h"

namespace emulator {

thread_local Machine* machine;
thread_local Thread* self;

// The scheduler's own way out; a thread's is the jump to the scheduler.
struct Failed {};

void fail(const char* format, ...) {
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message, sizeof(message), format, arguments);
    va_end(arguments);
    machine->error = message;
    if (self != nullptr) {
        char place[64];
        std::snprintf(place, sizeof(place), " (block %u, thread %u)", self->block->index, self->index);
        machine->error += place;
    }
    // The launch is over: nobody returns to where this happened.
    if (self == nullptr) throw Failed{};
    _longjmp(machine->scheduler, 1);
}

void make_ready(Thread& thread) {
    if (thread.warp->ready == 0) machine->ready.push_back(thread.warp);
    thread.warp->ready |= 1u << thread.lane;
}

void wake(std::vector<Thread*>& waiters) {
    for (Thread* t : waiters) make_ready(*t);
    waiters.clear();
}

void block_thread(const char* what, uint32_t address, uint32_t value) {
    self->waiting = {what, address, value};
    self->fiber.leave(machine->scheduler);
    self->waiting = {};
}

void pause() {
    if (machine->random.below(16) != 0) return;
    make_ready(*self);
    block_thread("its turn");
}

void collective(const char* what, void* argument, void (*execute)(void* const (&arguments)[32])) {
    Warp& warp = *self->warp;
    if (warp.arrived == 0) {
        warp.collective = what;
    } else if (std::strcmp(warp.collective, what) != 0) {
        fail("lanes of a warp diverge: %s and %s", warp.collective, what);
    }
    warp.arguments[self->lane] = argument;
    if (++warp.arrived < 32) {
        block_thread(what);
        return;
    }
    warp.arrived = 0;
    execute(warp.arguments);
    for (Thread* lane : warp.lanes) {
        if (lane != self) make_ready(*lane);
    }
}

// --- the launch ---------------------------------------------------------------------------------------

static unsigned resident_clusters(const Launch& launch) {
    const unsigned all = (unsigned)(launch.blocks / launch.cluster);
    return launch.resident == 0 ? all : std::min(all, (unsigned)launch.resident);
}

Machine::Machine(const Launch& launch, Kernel kernel, const void* parameters)
    : launch(launch), kernel(kernel), parameters(parameters), random(launch.seed), coupled(false), launch_before_ended(true),
      stacks(resident_clusters(launch) * launch.cluster * launch.threads) {
    // Everything as late as possible, as early as possible, and between.
    constexpr uint32_t kPatience[] = {0, 1, 8}, kSlowSteps[] = {200, ~0u};
    patience = kPatience[random.below(3)];
    coupled = random.below(2);
    steps = 0;
    slowness = (Slowness)random.below(4);
    slow_steps = kSlowSteps[random.below(2)];
    for (unsigned i = 0; i < launch.blocks / launch.cluster; ++i) unstarted.push_back(i);
}

Machine::~Machine() = default;

static void run_thread(void*) {
    machine->kernel(machine->parameters);
    self->finished = true;
    self->fiber.leave(machine->scheduler);
}

void Machine::start_cluster() {
    const unsigned at = random.below((uint32_t)unstarted.size());
    const unsigned index = unstarted[at];
    unstarted[at] = unstarted.back();
    unstarted.pop_back();
    clusters.push_back(std::make_unique<Cluster>());
    Cluster& cluster = *clusters.back();
    cluster.index = index;
    cluster.running = (unsigned)launch.cluster;
    for (unsigned rank = 0; rank < launch.cluster; ++rank) {
        blocks.push_back(std::make_unique<Block>());
        Block& b = *blocks.back();
        cluster.blocks.push_back(&b);
        b.index = index * (unsigned)launch.cluster + rank, b.rank = rank, b.cluster = &cluster;
        b.running = (unsigned)launch.threads;
        const size_t bytes = (launch.shared_bytes + 1023) / 1024 * 1024;
        b.storage.reset(new uint8_t[bytes + 1024]);
        b.shared = (uint8_t*)(((uintptr_t)b.storage.get() + 1023) & ~(uintptr_t)1023);
        std::memset(b.shared, kPoison, bytes);
        b.barrier_at.assign(bytes / 8 + 1, 0);
        b.writers.assign(bytes / 16 + 1, {});
        b.threads.resize(launch.threads);
        b.warps.resize(launch.threads / 32);
        b.issues.resize((launch.threads + 127) / 128);
        for (unsigned i = 0; i < b.warps.size(); ++i) b.warps[i].block = &b, b.warps[i].index = i;
        for (unsigned i = 0; i < launch.threads; ++i) {
            Thread& t = b.threads[i];
            t.block = &b, t.index = i, t.lane = i % 32, t.warp = &b.warps[i / 32];
            t.warp->lanes[t.lane] = &t;
            t.stack = stacks.take();
            t.fiber.start(t.stack, run_thread, nullptr);
            make_ready(t);
        }
    }
}

uint64_t Machine::chance(uint64_t a, uint64_t b) const {
    return Random(launch.seed ^ steps / slow_steps << 40 ^ a << 20 ^ b << 2).next();
}

bool Machine::is_slow(const Warp& warp) const {
    switch (slowness) {
        case kNobody:
            return false;
        case kWarps:
            return chance(warp.block->index + 1, warp.index) % 4 == 0;
        case kWarpgroups:
            return chance(warp.block->index + 1, warp.index / 4) % 3 == 0;
        case kBlocks:
            return chance(warp.block->index + 1, 0) % 2 == 0;
    }
    return false;
}

bool Machine::is_slow(Transfer::Kind kind) const { return chance(0, kind) % 3 == 0; }

// Runs the lanes of a warp that can run, one after the other, in a random order: first to last or the reverse, from somewhere.
void Machine::run_warp(uint32_t at) {
    Warp& warp = *ready[at];
    ready[at] = ready.back();
    ready.pop_back();
    const uint32_t lanes = warp.ready, order = random.below(64);
    warp.ready = 0;
    for (uint32_t i = 0; i < 32; ++i) {
        const uint32_t lane = ((order & 32 ? 31 - i : i) + order) % 32;
        if (!(lanes >> lane & 1)) continue;
        self = warp.lanes[lane];
        self->fiber.enter(scheduler);
        Thread& thread = *self;
        self = nullptr;
        if (!error.empty()) return;
        if (thread.finished) finish(thread);
    }
}

void Machine::finish(Thread& thread) {
    stacks.give_back(thread.stack);
    Block& block = *thread.block;
    if (--block.running > 0) return;
    for (Warp& warp : block.warps) {
        if (!warp.multiplications.empty()) fail("block %u ends while a wgmma runs", block.index);
    }
    if (--block.cluster->running == 0) end_cluster(*block.cluster);
}

void Machine::end_cluster(Cluster& cluster) {
    for (Block* b : cluster.blocks) b->storage.reset();
    if (!unstarted.empty()) start_cluster();
}

// One asynchronous operation takes effect. False if there is none, or only slow ones that are not meant.
bool Machine::complete_something(bool slow_ones) {
    const bool multiplies = !multiplying.empty();
    uint32_t at = 0;
    bool found = false;
    for (int attempts = 0; attempts < 8 && !found && !transfers.empty(); ++attempts) {
        at = random.below((uint32_t)transfers.size());
        found = !is_slow(transfers[at].kind);
    }
    if (multiplies && (!found || random.below(2))) {
        complete_multiplication(random.below((uint32_t)multiplying.size()));
        return true;
    }
    if (!found && (!slow_ones || transfers.empty())) return false;
    Transfer transfer = std::move(transfers[at]);
    transfers[at] = std::move(transfers.back());
    transfers.pop_back();
    complete_transfer(transfer);
    return true;
}

bool Machine::run() {
    machine = this;
    self = nullptr;
    if (launch.late_count > 0) {
        launch_before_ended = false;
        for (uint64_t i = 0; i < launch.late_count; ++i) {
            uint8_t* p = (uint8_t*)launch.late[i].address;
            saved.emplace_back(p, p + launch.late[i].bytes);
            std::memset(p, kPoison, launch.late[i].bytes);
        }
        Transfer before{};
        before.kind = Transfer::kLaunchBefore;
        transfers.push_back(std::move(before));
    }
    try {
        for (unsigned i = resident_clusters(launch); i > 0; --i) start_cluster();
        while (error.empty() && (!ready.empty() || complete_something(true))) {
            if (patience != 0 && random.below(patience) == 0) {
                // Several, or copies of 16 bytes would always be late.
                const uint32_t most = (uint32_t)(transfers.size() + multiplying.size()) / 2 + 1;
                for (uint32_t i = random.below(most) + 1; i > 0 && complete_something(false);) --i;
            }
            if (ready.empty()) continue;
            ++steps;
            uint32_t warp = random.below((uint32_t)ready.size());
            for (int attempts = 0; attempts < 8 && is_slow(*ready[warp]); ++attempts) warp = random.below((uint32_t)ready.size());
            if (!is_slow(*ready[warp]) || !complete_something(false)) run_warp(warp);
        }
    } catch (const Failed&) {
    }
    bool running = false;
    for (const auto& b : blocks) running |= b->running > 0;
    if (error.empty() && running) report_deadlock();
    machine = nullptr;
    return error.empty();
}

void Machine::report_deadlock() {
    error = "deadlock:";
    int lines = 0;
    for (const auto& b : blocks) {
        for (size_t i = 0; i < b->threads.size();) {
            const Thread& t = b->threads[i];
            size_t end = i;
            auto same = [&](const Thread& o) {
                return !o.finished && o.waiting.what == t.waiting.what && o.waiting.address == t.waiting.address &&
                       o.waiting.value == t.waiting.value;
            };
            while (end < b->threads.size() && same(b->threads[end])) ++end;
            if (t.finished) {
                ++i;
                continue;
            }
            char line[256];
            std::snprintf(line, sizeof(line), "\n  block %u, threads %zu to %zu wait for %s (%#x, %u)", b->index, i, end - 1,
                          t.waiting.what, t.waiting.address, t.waiting.value);
            error += line;
            if (const MemoryBarrier* barrier = find_barrier(*b, t.waiting.address)) {
                std::snprintf(line, sizeof(line), ": in phase %u, lacks %d of %d arrivals and %lld bytes", barrier->phase,
                              barrier->pending, barrier->expected, (long long)barrier->bytes);
                error += line;
            }
            if (++lines == 40) {
                error += "\n  ...";
                return;
            }
            i = end;
        }
    }
}

void transfer_launch_before() {
    for (uint64_t i = 0; i < machine->launch.late_count; ++i) {
        std::memcpy((void*)machine->launch.late[i].address, machine->saved[i].data(), machine->saved[i].size());
    }
    machine->launch_before_ended = true;
    wake(machine->launch_waiters);
}

}  // namespace emulator

// Runs a launch. Writes what went wrong to `message`, or nothing.
extern "C" EXPORTED void emulate(emulator::Kernel kernel, const void* parameters, const emulator::Launch* launch, char* message,
                        uint64_t size) {
    emulator::Machine m(*launch, kernel, parameters);
    m.run();
    std::snprintf(message, size, "%s", m.error.c_str());
}
