#include "fiber.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdlib>

namespace emulator {

constexpr size_t kPage = 4096;
// Not a power of two, or all stacks would fall into the same sets of the caches.
constexpr size_t kStride = Stacks::kBytes + 2 * kPage;

Stacks::Stacks(size_t count) : count(count), available(count) {
    void* p = mmap(nullptr, count * kStride, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) std::abort();
    memory = (uint8_t*)p;
    free_stacks = new uint8_t*[count];
    for (size_t i = 0; i < count; ++i) {
        mprotect(memory + i * kStride, kPage, PROT_NONE);
        free_stacks[i] = memory + i * kStride + kPage;
    }
}

Stacks::~Stacks() {
    munmap(memory, count * kStride);
    delete[] free_stacks;
}

uint8_t* Stacks::take() {
    if (available == 0) std::abort();
    return free_stacks[--available];
}

void Stacks::give_back(uint8_t* stack) { free_stacks[available++] = stack; }

void Fiber::start(uint8_t* stack, void (*entry)(void*), void* argument) {
    this->stack = stack, this->entry = entry, this->argument = argument, started = false;
}

// What a new context begins with: makecontext passes integers alone.
static void begin(unsigned low, unsigned high, unsigned argument_low, unsigned argument_high) {
    const auto entry = (void (*)(void*))((uintptr_t)low | (uintptr_t)high << 32);
    entry((void*)((uintptr_t)argument_low | (uintptr_t)argument_high << 32));
    std::abort();
}

// A context is made once; later switches are jumps, which unlike swapcontext make no system call.
void Fiber::enter(std::jmp_buf& scheduler) {
    if (_setjmp(scheduler) != 0) return;
    if (started) _longjmp(state, 1);
    started = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = Stacks::kBytes;
    context.uc_link = nullptr;
    const uintptr_t e = (uintptr_t)entry, a = (uintptr_t)argument;
    makecontext(&context, (void (*)())begin, 4, (unsigned)e, (unsigned)(e >> 32), (unsigned)a, (unsigned)(a >> 32));
    setcontext(&context);
    std::abort();
}

void Fiber::leave(std::jmp_buf& scheduler) {
    if (_setjmp(state) == 0) _longjmp(scheduler, 1);
}

}  // namespace emulator
