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
        emulator::wgmma_issue({kTypes[A], N, false, 0, b}, d, {&a0, &a1, &a2, &a3});
    }
};

template <Activations A, int N>
struct mma_shared {
    QQQ_DEVICE static void run(int (&sums)[N / 8][4], uint64 a, uint64 b, bool add) {
        static_assert(A == 1 || A == 2);
        if (!add) std::memset(sums, 0, sizeof sums);
        emulator::wgmma_issue({A == 1 ? emulator::kHalfOperand : emulator::kBfloatOperand, N, false, a, b}, sums[0], {});
    }
};

template <Activations A, int N>
struct mma_across {
    QQQ_DEVICE static void run(int (&sums)[N / 8][4], const uint32& a0, const uint32& a1, const uint32& a2, const uint32& a3, uint64 b) {
        static_assert(A == 1 || A == 2);
        emulator::wgmma_issue({A == 1 ? emulator::kHalfOperand : emulator::kBfloatOperand, N, true, 0, b}, sums[0], {&a0, &a1, &a2, &a3});
    }
};

}  // namespace wgmma
