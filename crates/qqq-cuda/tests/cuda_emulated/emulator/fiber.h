// Stacks of their own for the GPU's threads, all on one thread of the host.
#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>

namespace emulator {

// Memory for the stacks of a launch. Beyond the end of each lies a page that faults.
class Stacks {
   public:
    explicit Stacks(size_t count);
    ~Stacks();
    Stacks(const Stacks&) = delete;
    Stacks& operator=(const Stacks&) = delete;

    uint8_t* take();
    void give_back(uint8_t* stack);
    static constexpr size_t kBytes = 64 << 10;

   private:
    uint8_t* memory;
    size_t count;
    uint8_t** free_stacks;
    size_t available;
};

class Fiber {
   public:
    // Prepares a call of entry(argument); it must not return.
    void start(uint8_t* stack, void (*entry)(void*), void* argument);

    // From the scheduler: runs the fiber until it calls leave().
    void enter(std::jmp_buf& scheduler);

    // From the fiber.
    void leave(std::jmp_buf& scheduler);

   private:
    std::jmp_buf state;
    uint8_t* stack;
    void (*entry)(void*);
    void* argument;
    bool started;
};

}  // namespace emulator
