// In place of the kernels' file of this name.
#pragma once

#include "activations.cuh"

namespace wgmma {

QQQ_DEVICE void fence() { emulator::wgmma_fence(); }
QQQ_DEVICE void commit() { emulator::wgmma_commit(); }
template <int Pending>
QQQ_DEVICE void wait() {
    emulator::wgmma_wait(Pending);
}
template <typename T, int Count>
QQQ_DEVICE void pin(T (&)[Count]) {}

template <Activations A, int N>
struct mma {
    // Operands come by reference: they are read when the instruction takes effect, not when it is issued.
    QQQ_DEVICE static void run(int (&d)[N / 2], const uint32& a0, const uint32& a1, const uint32& a2, const uint32& a3, uint64 b) {
        static_assert(A == 0 || A == 1 || A == 2);
        constexpr int kTypes[] = {emulator::kInt8Operand, emulator::kHalfOperand, emulator::kBfloatOperand};
        emulator::wgmma_issue(kTypes[A], N, d, {&a0, &a1, &a2, &a3}, b);
    }
};

}  // namespace wgmma
