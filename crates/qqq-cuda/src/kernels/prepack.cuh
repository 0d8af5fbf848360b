// Weights from the neutral form to the weight tiles that the GEMM reads (dequantize.cuh), and back.
//
// Neutral form: codes, N x K int8 by rows (-8..7, for kChannel8 any int8); group scales, N x ceil(K / Group) uint8 or
// half. K is a multiple of 16. Weight tiles are padded to 64 rows and 128 columns with zeros.
#pragma once

#include "dequantize.cuh"

struct PrepackParameters {
    int8* codes;
    // uint8 or half; null without groups.
    void* scales;
    // [ceil(N / 64)][ceil(K / 128)] weight tiles.
    uint8* weight_tiles;
    // Channel scales: N of the neutral form, and ceil(N / 64) * 64 of the GEMM, which also has the power of two by
    // which its operand is too large.
    float* channel_scale;
    float* padded_scale;
    int n, k;
};

// 1 / 16 where the operand is 16 x code.
template <Weights W>
constexpr float kChannelFactor = W == kChannel4 ? 0.0625f : 1.0f;

// 16 bytes of a weight tile: which rows and columns, or which scales, they hold. One thread handles them.
template <Weights W, int Group>
struct PrepackPlace {
    static constexpr int kCodeWords = WeightTile<W, Group>::kCodeBytes / 16, kWords = WeightTile<W, Group>::kBytes / 16;
    long long index;
    // In the weight tile.
    int word;
    int block, k_tile;
    bool inside;

    QQQ_DEVICE explicit PrepackPlace(const PrepackParameters& p) {
        const int k_tiles = (p.k + 127) / 128;
        index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
        word = (int)(index % kWords);
        const int weight_tile = (int)(index / kWords);
        block = weight_tile / k_tiles;
        k_tile = weight_tile % k_tiles;
        inside = block < (p.n + 63) / 64;
    }

    QQQ_DEVICE bool is_codes() const { return word < kCodeWords; }

    // Row of the first of the thread's two rows; the other is 8 below.
    QQQ_DEVICE int row() const { return block * 64 + word % 128 / 32 * 16 + word % 32 / 4; }

    // First of the four columns of 32-bit word i.
    QQQ_DEVICE int column(int i) const {
        const int inside = W == kChannel8 ? word / 128 * 32 + i / 2 * 16 : word / 128 * 64 + i * 16;
        return k_tile * 128 + inside + word % 4 * 4;
    }

    // Calls `f` for each of the thread's scales that lie in the matrix: which of them it is, and where the neutral form
    // has it.
    template <class F>
    QQQ_DEVICE void each_scale(const PrepackParameters& p, F f) const {
        constexpr int kSize = WeightTile<W, Group>::kScaleBytes;
        // Behind the weight tile's groups there is padding.
        const int groups = (p.k + Group - 1) / Group, last = min(groups, (k_tile + 1) * (128 / Group));
        const int first = (word - kCodeWords) * (16 / kSize);
#pragma unroll
        for (int i = 0; i < 16 / kSize; ++i) {
            const int at = first + i;
            const int row = block * 64 + at % 64 / 16 * 16 + at % 16 / 2 + at % 2 * 8, group = k_tile * (128 / Group) + at / 64;
            if (row < p.n && group < last) f(i, (long long)row * groups + group);
        }
    }
};

// Codes of four columns of a row, zeros outside the matrix.
QQQ_DEVICE uint32 prepack_read(const PrepackParameters& p, int row, int column) {
    return row < p.n && column < p.k ? *(const uint32*)(p.codes + (long long)row * p.k + column) : 0;
}

QQQ_DEVICE void prepack_write(const PrepackParameters& p, int row, int column, uint32 codes) {
    if (row < p.n && column < p.k) *(uint32*)(p.codes + (long long)row * p.k + column) = codes;
}

template <Weights W, int Group>
QQQ_DEVICE void prepack(const PrepackParameters& p) {
    const PrepackPlace<W, Group> place(p);
    if (!place.inside) return;
    // There are more threads than channels.
    if (place.index < (p.n + 63) / 64 * 64) {
        p.padded_scale[place.index] = place.index < p.n ? p.channel_scale[place.index] * kChannelFactor<W> : 0.0f;
    }
    uint32 out[4] = {0, 0, 0, 0};
    if (place.is_codes()) {
        const int row = place.row();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int column = place.column(i);
            if constexpr (W == kChannel8) {
                out[i] = prepack_read(p, row + i % 2 * 8, column);
            } else {
                // Codes + 8 modulo 16 is a flip of bit 3.
                constexpr uint32 kFlip = W == kChannel4 ? 0 : 0x08080808u;
                const uint32 high = (prepack_read(p, row, column) ^ kFlip) & 0x0F0F0F0Fu;
                const uint32 low = (prepack_read(p, row + 8, column) ^ kFlip) & 0x0F0F0F0Fu;
                out[i] = high << 4 | low;
            }
        }
    } else {
        constexpr int kSize = WeightTile<W, Group>::kScaleBytes, kEach = 4 / kSize;
        place.each_scale(p, [&](int i, long long at) {
            const uint32 scale = kSize == 1 ? ((const uint8*)p.scales)[at] : ((const uint16*)p.scales)[at];
            out[i / kEach] |= scale << (i % kEach * 8 * kSize);
        });
    }
    ptx::store_global_128(p.weight_tiles + place.index * 16, out[0], out[1], out[2], out[3]);
}

// The inverse; padding is dropped.
template <Weights W, int Group>
QQQ_DEVICE void unpack(const PrepackParameters& p) {
    const PrepackPlace<W, Group> place(p);
    if (!place.inside) return;
    if (place.index < p.n) p.channel_scale[place.index] = p.padded_scale[place.index] / kChannelFactor<W>;
    const uint4 v = ptx::load_global_128(p.weight_tiles + place.index * 16);
    const uint32 in[4] = {v.x, v.y, v.z, v.w};
    if (place.is_codes()) {
        const int row = place.row();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int column = place.column(i);
            if constexpr (W == kChannel8) {
                prepack_write(p, row + i % 2 * 8, column, in[i]);
            } else {
                // Two's complement nibbles to bytes: with bit 3 flipped a nibble is the code + 8, no byte borrows from
                // 0x80 up.
                constexpr uint32 kFlip = W == kChannel4 ? 0x08080808u : 0;
                const uint32 high = in[i] >> 4 & 0x0F0F0F0Fu ^ kFlip, low = in[i] & 0x0F0F0F0Fu ^ kFlip;
                prepack_write(p, row, column, ((high | 0x80808080u) - 0x08080808u) ^ 0x80808080u);
                prepack_write(p, row + 8, column, ((low | 0x80808080u) - 0x08080808u) ^ 0x80808080u);
            }
        }
    } else {
        constexpr int kSize = WeightTile<W, Group>::kScaleBytes, kEach = 4 / kSize;
        place.each_scale(p, [&](int i, long long at) {
            const uint32 scale = in[i / kEach] >> (i % kEach * 8 * kSize);
            if constexpr (kSize == 1) {
                ((uint8*)p.scales)[at] = (uint8)scale;
            } else {
                ((uint16*)p.scales)[at] = (uint16)scale;
            }
        });
    }
}
