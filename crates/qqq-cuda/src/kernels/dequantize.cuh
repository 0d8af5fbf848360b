// Prepacked weights to the int8 operand of the tensor cores. For 16-bit activations see dequantize16.cuh.
//
// Prepacked weights are a sequence of weight tiles, [N/64][K/128], so that the SM that works on some rows reads one
// contiguous stream. A weight tile holds 64 rows x 128 columns: first the codes, then the group scales. Codes come in
// pieces that a warpgroup loads with one conflict-free 16-byte load a thread, and that land where the tensor cores' A
// operand wants them (wgmma m64k32 and four mma.sync m16n8k32 share that fragment). For thread t, with r = 16 (t / 32)
// + (t % 32) / 4 and c = 4 (t % 4):
//   4 bits: a piece is 64 columns; words 2j and 2j+1 are columns 32j + c.. and 32j + 16 + c..; byte i of a word holds
//           column + i, row r in the high nibble and row r + 8 in the low one.
//   8 bits: a piece is 32 columns; words 0 to 3 are (r, c..), (r + 8, c..), (r, 16 + c..), (r + 8, 16 + c..).
// Group scales follow, [128 / group][32 pairs]: pair p holds those of rows r and r + 8 for p = t / 4; then zeros up to
// a multiple of 128 bytes.
#pragma once

#include "ptx_arithmetic.cuh"

// How the weights of a layer are stored.
enum Weights {
    // Two's complement codes, one scale a channel. The operand is 16 x code: the channel scale carries 1/16.
    kChannel4 = 0,
    // Codes + 8 and an integer scale of 1 to 16 a group; the operand is code x scale.
    kGroupInteger4 = 1,
    // Codes + 8 and a float16 scale a group; the operand is code x scale rounded to nearest, ties to even.
    kGroupHalf4 = 2,
    // int8 codes, one scale a channel.
    kChannel8 = 3,
};

template <Weights W, int Group>
struct WeightTile {
    static constexpr bool kGrouped = W == kGroupInteger4 || W == kGroupHalf4;
    static constexpr int kCodeBytes = W == kChannel8 ? 64 * 128 : 64 * 64;
    static constexpr int kScaleBytes = W == kGroupHalf4 ? 2 : 1;
    // Weight tiles are whole cache lines; with a multiple of 64 bytes, lines at both ends of a copy are read for two.
    static constexpr int kScalesBytes = kGrouped ? (128 / Group * 64 * kScaleBytes + 127) / 128 * 128 : 0;
    static constexpr int kBytes = kCodeBytes + kScalesBytes;
};

// What a thread needs of the scales of its two rows in a group.
struct GroupScale {
    uint32 scale[2];
    uint32 offset[2];
};

// What a thread reads of a weight tile, before it is dequantized.
template <Weights W, int Group>
struct Words {
    static constexpr int kPieces = W == kChannel8 ? 4 : 2;
    static constexpr int kGroups = WeightTile<W, Group>::kGrouped ? 128 / Group : 1;
    uint4 codes[kPieces];
    // The scales of rows r and r + 8 for each group.
    uint32 scales[kGroups];
};

template <Weights W, int Group>
QQQ_DEVICE void load_words(uint32 weight_tile, int thread, Words<W, Group>& words) {
    using C = WeightTile<W, Group>;
#pragma unroll
    for (int i = 0; i < Words<W, Group>::kPieces; ++i) words.codes[i] = ptx::load_shared_128(weight_tile + i * 2048 + thread * 16);
    if constexpr (C::kGrouped) {
#pragma unroll
        for (int i = 0; i < Words<W, Group>::kGroups; ++i) {
            const uint32 address = weight_tile + C::kCodeBytes + (i * 64 + thread / 4 * 2) * C::kScaleBytes;
            words.scales[i] = W == kGroupInteger4 ? ptx::load_shared_16(address) : ptx::load_shared_32(address);
        }
    }
}

// The same for one half of a weight tile, 64 columns. Scales that both halves share are read with the first.
template <Weights W, int Group>
QQQ_DEVICE void load_half_words(uint32 weight_tile, int thread, int half, Words<W, Group>& words) {
    using C = WeightTile<W, Group>;
    constexpr int kPieces = Words<W, Group>::kPieces / 2;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
        words.codes[half * kPieces + i] = ptx::load_shared_128(weight_tile + (half * kPieces + i) * 2048 + thread * 16);
    }
    if constexpr (C::kGrouped) {
#pragma unroll
        for (int i = 0; i < Words<W, Group>::kGroups; ++i) {
            if (i * Group / 64 != half) continue;
            const uint32 address = weight_tile + C::kCodeBytes + (i * 64 + thread / 4 * 2) * C::kScaleBytes;
            words.scales[i] = W == kGroupInteger4 ? ptx::load_shared_16(address) : ptx::load_shared_32(address);
        }
    }
}

template <Weights W>
QQQ_DEVICE GroupScale group_scale(uint32 pair) {
    GroupScale s{};
    if constexpr (W == kGroupInteger4) {
        s.scale[0] = pair & 0xFF;
        s.scale[1] = pair >> 8;
#pragma unroll
        for (int i = 0; i < 2; ++i) s.offset[i] = 0x80808080u - s.scale[i] * 0x08080808u;
    } else if constexpr (W == kGroupHalf4) {
        s.scale[0] = ptx::half2_low(pair);
        s.scale[1] = ptx::half2_high(pair);
    }
    return s;
}

// One word of 4-bit codes to the operands of rows r (`high`) and r + 8 (`low`).
template <Weights W>
QQQ_DEVICE void dequantize_word(uint32 word, const GroupScale& s, uint32& high, uint32& low) {
    if constexpr (W == kChannel4) {
        high = word & 0xF0F0F0F0u;
        low = (word << 4) & 0xF0F0F0F0u;
    } else if constexpr (W == kGroupInteger4) {
        // u scale + 128 - 8 scale lies in [0, 255]: four bytes in one multiply-add, nothing carries.
        high = (((word >> 4) & 0x0F0F0F0Fu) * s.scale[0] + s.offset[0]) ^ 0x80808080u;
        low = ((word & 0x0F0F0F0Fu) * s.scale[1] + s.offset[1]) ^ 0x80808080u;
    } else {
        static_assert(W == kGroupHalf4);
        // 0x6400 | u is 1024 + u, 0x6400 | 16 u is 1024 + 16 u; both differences below are exact. Adding 1536 = 1024 +
        // 512 rounds to an integer, to even, whose low byte is the result in two's complement.
        const uint32 shifted = word >> 8;
        constexpr uint32 kMinus1032 = 0xE408E408u, kSixteenth = 0x2C002C00u, kMinus72 = 0xD480D480u, k1536 = 0x66006600u;
        const uint32 low02 = ptx::half2_add(ptx::select_or<0x000F000Fu, 0x64006400u>(word), kMinus1032);
        const uint32 low13 = ptx::half2_add(ptx::select_or<0x000F000Fu, 0x64006400u>(shifted), kMinus1032);
        const uint32 high02 = ptx::half2_fma(ptx::select_or<0x00F000F0u, 0x64006400u>(word), kSixteenth, kMinus72);
        const uint32 high13 = ptx::half2_fma(ptx::select_or<0x00F000F0u, 0x64006400u>(shifted), kSixteenth, kMinus72);
        high = __byte_perm(ptx::half2_fma(high02, s.scale[0], k1536), ptx::half2_fma(high13, s.scale[0], k1536), 0x6240);
        low = __byte_perm(ptx::half2_fma(low02, s.scale[1], k1536), ptx::half2_fma(low13, s.scale[1], k1536), 0x6240);
    }
}

// The A fragments of columns 64 half.. of a weight tile for one thread of a warpgroup: a[4j..4j+3] for columns 64 half
// + 32 j...
template <Weights W, int Group>
QQQ_DEVICE void dequantize(const Words<W, Group>& words, int half, uint32 (&a)[8]) {
    if constexpr (W == kChannel8) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const uint4 v = words.codes[2 * half + j];
            a[4 * j] = v.x, a[4 * j + 1] = v.y, a[4 * j + 2] = v.z, a[4 * j + 3] = v.w;
        }
    } else {
        const uint4 v = words.codes[half];
        const uint32 codes[4] = {v.x, v.y, v.z, v.w};
        GroupScale s{};
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            if (j == 0 || Group == 32) s = group_scale<W>(words.scales[WeightTile<W, Group>::kGrouped ? (64 * half + 32 * j) / Group : 0]);
            dequantize_word<W>(codes[2 * j], s, a[4 * j], a[4 * j + 1]);
            dequantize_word<W>(codes[2 * j + 1], s, a[4 * j + 2], a[4 * j + 3]);
        }
    }
}
