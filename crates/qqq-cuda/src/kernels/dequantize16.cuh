// Prepacked weights to the float16 or bfloat16 operand of the tensor cores.
//
// As in dequantize.cuh weights are a sequence of weight tiles, here [N/64][K/64] of 64 rows x 64 columns: the codes in
// two pieces of 32 columns, of which each thread of a warpgroup loads 8 bytes, then the group scales. Codes are stored
// + 8. For thread t, with r = 16 (t / 32) + (t % 32) / 4 and c = 2 (t % 4), word j of a piece holds its columns 16j to
// 16j + 15, the four registers of a k16 step (wgmma m64k16 and four mma.sync m16n8k16 share that fragment): nibble i of
// its low half the first value of register i, nibble i of its high half the second. Registers 0 to 3 are (r, c..), (r +
// 8, c..), (r, 8 + c..), (r + 8, 8 + c..). Group scales, in the activations' type, are [groups][32 pairs]: pair p holds
// those of rows r and r + 8 for p = t / 4. A group of 128 columns has its scales in both its weight tiles.
//
// Without groups the operand is the code, and exact. With groups it is code x scale, rounded to the activations' type.
#pragma once

#include "activations.cuh"
#include "dequantize.cuh"

template <Weights W, int Group>
struct WeightTile16 {
    static_assert(W == kChannel4 || W == kGroupHalf4);
    static constexpr int kCodeBytes = 64 * 32;
    static constexpr int kGroups = W == kChannel4 ? 0 : Group < 64 ? 64 / Group : 1;
    static constexpr int kBytes = kCodeBytes + kGroups * 64 * 2;
};

// What a thread reads of a weight tile, before it is dequantized.
template <Activations A, Weights W, int Group>
struct Words16 {
    static constexpr int kGroups = WeightTile16<W, Group>::kGroups;
    uint2 codes[2];
    // The scales of rows r and r + 8 for each group.
    uint32 scales[kGroups > 0 ? kGroups : 1];
};

// What a thread needs for one half of a weight tile, 32 columns. Scales that both halves share are read with the first.
template <Activations A, Weights W, int Group>
QQQ_DEVICE void load_half_words(uint32 weight_tile, int thread, int half, Words16<A, W, Group>& words) {
    using C = WeightTile16<W, Group>;
    words.codes[half] = ptx::load_shared_64(weight_tile + half * 1024 + thread * 8);
    if (half < C::kGroups) words.scales[half] = ptx::load_shared_32(weight_tile + C::kCodeBytes + (half * 64 + thread / 4 * 2) * 2);
}

template <Activations A, Weights W, int Group>
QQQ_DEVICE void load_words(uint32 weight_tile, int thread, Words16<A, W, Group>& words) {
#pragma unroll
    for (int half = 0; half < 2; ++half) load_half_words(weight_tile, thread, half, words);
}

// Eight codes to four registers of pairs; exact.
template <Activations A>
QQQ_DEVICE void dequantize_word16(uint32 word, uint32 (&a)[4]) {
    if constexpr (A == kFloat16) {
        // 0x6400 | u is 1024 + u, 0x6400 | 16 u is 1024 + 16 u.
        const uint32 shifted = word >> 8;
        constexpr uint32 kMinus1032 = 0xE408E408u, kSixteenth = 0x2C002C00u, kMinus72 = 0xD480D480u;
        a[0] = ptx::half2_add(ptx::select_or<0x000F000Fu, 0x64006400u>(word), kMinus1032);
        a[1] = ptx::half2_fma(ptx::select_or<0x00F000F0u, 0x64006400u>(word), kSixteenth, kMinus72);
        a[2] = ptx::half2_add(ptx::select_or<0x000F000Fu, 0x64006400u>(shifted), kMinus1032);
        a[3] = ptx::half2_fma(ptx::select_or<0x00F000F0u, 0x64006400u>(shifted), kSixteenth, kMinus72);
    } else {
        static_assert(A == kBfloat16);
        // 0x4300 | u is 128 + u; there is no room for 16 u.
        constexpr uint32 kOne = 0x3F803F80u, kMinus136 = 0xC308C308u;
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = ptx::bfloat2_fma(ptx::select_or<0x000F000Fu, 0x43004300u>(word >> (4 * i)), kOne, kMinus136);
    }
}

// Products of pairs, rounded to nearest.
template <Activations A>
QQQ_DEVICE uint32 pair_multiply(uint32 a, uint32 b) {
    // sm_80 has no product of bfloat16 alone; adding -0 changes nothing.
    return A == kFloat16 ? ptx::half2_multiply(a, b) : ptx::bfloat2_fma(a, b, 0x80008000u);
}

// The A fragments of columns 32 half.. of a weight tile for one thread of a warpgroup: a[4j..4j+3] for columns 32 half
// + 16 j...
template <Activations A, Weights W, int Group>
QQQ_DEVICE void dequantize(const Words16<A, W, Group>& words, int half, uint32 (&a)[8]) {
    const uint32 codes[2] = {words.codes[half].x, words.codes[half].y};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        uint32 values[4];
        dequantize_word16<A>(codes[j], values);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            a[4 * j + i] = values[i];
            if constexpr (W == kGroupHalf4) {
                const uint32 pair = words.scales[WeightTile16<W, Group>::kGroups == 2 ? half : 0];
                a[4 * j + i] = pair_multiply<A>(values[i], i % 2 == 0 ? ptx::half2_low(pair) : ptx::half2_high(pair));
            }
        }
    }
}
