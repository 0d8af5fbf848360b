// The output head: the largest outputs without reading all of its 16-bit weights, and all outputs of int8 weights.
//
// Of 16-bit weights:
// An int8 copy of the weights gives every output up to a known error; the outputs that may be among the largest are
// computed again from the weights themselves. What comes out are the largest elements of one stated arithmetic (`product`
// below), whatever was left out on the way: where bounds do not hold, or too many outputs are left, all of a row's outputs
// are computed so. The device decides that; the host waits for nothing.
//
// With w = s c + d (codes c, rest d) and x = t q + e (two digits of int8 each, rest e), an output is s t (c q) + d x + (s c) e:
// its distance from the integer product is at most |d| |x| + |s c| |e| (Cauchy and Schwarz), and float32 sums of K products
// in any order are off by at most K 2^-24 |w| |x|.
#pragma once

#include "decoder_steps.cuh"
#include "draws.cuh"
#include "quantize_activations.cuh"

// Channels that a warp multiplies at a time: 16 bytes a lane of four.
constexpr int kHeadChunk = 64;
// Columns (outputs) of a CTA, whose warps share the channels.
constexpr int kHeadColumns = 32, kHeadWarps = 4, kHeadThreads = 32 * kHeadWarps;
// Chunks whose weights a warp has under way.
constexpr int kHeadUnroll = 2;
constexpr int kHeadInputThreads = 256;
// The low digit's weight is one, the high digit's this.
constexpr int kHeadDigit = 254;
// Outputs of a row that are computed again; with more, all are.
constexpr int kHeadCandidates = 4096;
// Products of norms beyond this may overflow in float32 sums.
constexpr float kLargestHeadProduct = 1e30f;

// What is known of a column of the head, which is a row of its weights.
struct alignas(16) HeadColumn {
    float scale;
    // An output's error is at most radius |x| + length |e|.
    float radius, length;
    // Of the weights.
    float norm;
};

// What is known of a row of the input.
struct alignas(16) HeadRow {
    float scale;
    // |x| and |e|.
    float norm, error;
    // Whether bounds do not hold.
    int whole;
};

// A float that is surely not below x.
QQQ_DEVICE float not_below(double x) { return (float)(x * (1.0 + 1e-6)) + 1.17549435e-38f; }

// --- the copy ------------------------------------------------------------------------------------

struct HeadCopyParameters {
    // n x k, in half or bfloat16.
    const uint16* weights;
    // n x pitch, a multiple of kHeadChunk; zeros beyond k.
    int8* codes;
    HeadColumn* columns;
    int n, k, pitch;
};

// A warp takes a column. A norm that is not finite says that a weight is not.
template <bool Bfloat>
QQQ_DEVICE void copy_head(const HeadCopyParameters& p) {
    __shared__ double sums[kHeadWarps][3][32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const long long column = (long long)blockIdx.x * kHeadWarps + warp;
    if (column >= p.n) return;
    const uint16* weights = p.weights + column * p.k;
    int8* codes = p.codes + column * p.pitch;
    float largest = 0.0f;
    for (int i = lane * 8; i < p.k; i += 256) {
        float v[8];
        unpack_vector<Bfloat>(ptx::load_global_128(weights + i), v);
#pragma unroll
        for (int e = 0; e < 8; ++e) largest = fmaxf(largest, fabsf(v[e]));
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, mask));
    // Weights so small that the inverse overflows are all rest.
    const bool encodes = largest >= 1e-30f;
    const float scale = encodes ? __fdiv_rn(largest, 127.0f) : 0.0f, inverse = encodes ? __fdiv_rn(127.0f, largest) : 0.0f;
    double of_rest = 0.0, of_codes = 0.0, of_weights = 0.0;
    for (int i = lane * 8; i < p.pitch; i += 256) {
        float v[8] = {};
        if (i < p.k) unpack_vector<Bfloat>(ptx::load_global_128(weights + i), v);
        uint32 words[2] = {0, 0};
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            const int code = (int)rintf(fminf(fmaxf(v[e] * inverse, -127.0f), 127.0f));
            words[e / 4] |= (uint32)(code & 0xFF) << e % 4 * 8;
            const double value = (double)scale * (double)code, rest = (double)v[e] - value;
            of_rest += rest * rest, of_codes += value * value, of_weights += (double)v[e] * (double)v[e];
        }
        *(uint2*)(codes + i) = uint2{words[0], words[1]};
    }
    sums[warp][0][lane] = of_rest, sums[warp][1][lane] = of_codes, sums[warp][2][lane] = of_weights;
    __syncwarp();
    if (lane != 0) return;
    for (int other = 1; other < 32; ++other) {
        of_rest += sums[warp][0][other], of_codes += sums[warp][1][other], of_weights += sums[warp][2][other];
    }
    of_codes = sqrt(of_codes), of_weights = sqrt(of_weights);
    // Some units more than the sums need: for the products and sums around them.
    const double unit = (double)(p.k + 32) / 16777216.0;
    HeadColumn known;
    known.scale = scale, known.length = not_below(of_codes), known.norm = not_below(of_weights);
    known.radius = not_below(sqrt(of_rest) + unit * (of_codes + of_weights));
    p.columns[column] = known;
}

// --- the largest outputs ---------------------------------------------------------------------------

// Of all kernels below, which run one after the other.
struct HeadParameters {
    // n x k.
    const uint16* weights;
    // Their copy: n x pitch, n.
    const int8* codes;
    const HeadColumn* columns;
    // The input, m x k, in the type of the weights.
    const uint16* x;
    // Its digits, with room for as many rows as the product's tiles have, whatever is there: rows x pitch each.
    int8 *high, *low;
    // m.
    HeadRow* rows;
    // m x n: upper bounds, then outputs where they were computed.
    float* outputs;
    // m x blocks: the largest lower and upper bound of each kHeadColumns columns.
    float *lows, *highs;
    // m x kHeadCandidates: columns. m: how many there are; negative where all are.
    int *candidates, *counts;
    // m x count: an element's bits in the high half of a word, its column in the low one.
    uint64* out;
    int m, n, k, pitch, blocks, count;
    // Largest norm of a column.
    float largest_norm;
};

// The input's digits. A CTA takes a row.
template <bool Bfloat>
QQQ_DEVICE void head_input(const HeadParameters& p) {
    __shared__ float scratch[32];
    __shared__ double norms[kHeadInputThreads], errors[kHeadInputThreads];
    const int row = blockIdx.x;
    const uint16* x = p.x + (long long)row * p.k;
    uint2 *high = (uint2*)(p.high + (long long)row * p.pitch), *low = (uint2*)(p.low + (long long)row * p.pitch);
    float largest = 0.0f;
    for (int i = threadIdx.x; i < p.k / 8; i += kHeadInputThreads) {
        float v[8];
        unpack_vector<Bfloat>(((const uint4*)x)[i], v);
#pragma unroll
        for (int e = 0; e < 8; ++e) largest = fmaxf(largest, fabsf(v[e]));
    }
    largest = reduce_row<kHeadInputThreads>(largest, scratch, [](float a, float b) { return fmaxf(a, b); });
    const bool encodes = largest >= 1e-30f;
    const float scale = encodes ? __fdiv_rn(largest, 127.0f * kHeadDigit) : 0.0f;
    const float inverse = encodes ? __fdiv_rn(127.0f * kHeadDigit, largest) : 0.0f;
    double of_x = 0.0, of_error = 0.0;
    for (int i = threadIdx.x; i < p.pitch / 8; i += kHeadInputThreads) {
        float v[8] = {};
        if (i < p.k / 8) unpack_vector<Bfloat>(((const uint4*)x)[i], v);
        uint32 highs[2] = {0, 0}, lows[2] = {0, 0};
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            const float whole = v[e] * inverse;
            const int first = (int)rintf(fminf(fmaxf(whole / kHeadDigit, -127.0f), 127.0f));
            const int second = (int)rintf(fminf(fmaxf(whole - (float)(first * kHeadDigit), -127.0f), 127.0f));
            highs[e / 4] |= (uint32)(first & 0xFF) << e % 4 * 8, lows[e / 4] |= (uint32)(second & 0xFF) << e % 4 * 8;
            const double error = (double)v[e] - (double)scale * (double)(first * kHeadDigit + second);
            of_x += (double)v[e] * (double)v[e], of_error += error * error;
        }
        high[i] = uint2{highs[0], highs[1]}, low[i] = uint2{lows[0], lows[1]};
    }
    norms[threadIdx.x] = of_x, errors[threadIdx.x] = of_error;
    __syncthreads();
    for (int half = kHeadInputThreads / 2; half > 0; half /= 2) {
        if ((int)threadIdx.x < half) {
            norms[threadIdx.x] += norms[threadIdx.x + half], errors[threadIdx.x] += errors[threadIdx.x + half];
        }
        __syncthreads();
    }
    if (threadIdx.x != 0) return;
    HeadRow known;
    known.scale = scale, known.norm = not_below(sqrt(norms[0])), known.error = not_below(sqrt(errors[0]));
    // A comparison that NaN fails.
    known.whole = known.norm * p.largest_norm < kLargestHeadProduct ? 0 : 1;
    p.rows[row] = known;
}

// Integer products of the columns from `first` on with 8 * Tiles rows of one or two digits, of which `load` gives 16 channels:
// each warp's part of them. The channels of 32 bytes that an mma multiplies are those of words of the same lanes' loads: their
// order does not matter to a sum, only that it is the same in both operands.
template <int Tiles, int Digits, class Load>
QQQ_DEVICE void head_products(const int8* codes, int n, int pitch, int first, Load load,
                              int (&sums)[kHeadWarps][2][Tiles][Digits][4][32]) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, c = lane % 4, chunks = pitch / kHeadChunk;
    const int8* weights[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) weights[i] = codes + (long long)min(first + i * 8 + r, n - 1) * pitch + c * 16;
    int sum[2][Tiles][Digits][4] = {};
    for (int at = warp * kHeadUnroll; at < chunks; at += kHeadWarps * kHeadUnroll) {
        uint4 a[kHeadUnroll][4];
#pragma unroll
        for (int u = 0; u < kHeadUnroll; ++u) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                a[u][i] = uint4{0, 0, 0, 0};
                if (at + u < chunks) a[u][i] = ptx::load_global_128_once(weights[i] + (at + u) * kHeadChunk);
            }
        }
#pragma unroll
        for (int u = 0; u < kHeadUnroll; ++u) {
            if (at + u >= chunks) break;
#pragma unroll
            for (int t = 0; t < Tiles; ++t) {
                uint4 digits[Digits];
#pragma unroll
                for (int digit = 0; digit < Digits; ++digit) {
                    digits[digit] = load(digit, t * 8 + r, (at + u) * kHeadChunk + c * 16);
                }
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const uint4 top = a[u][2 * i], bottom = a[u][2 * i + 1];
#pragma unroll
                    for (int digit = 0; digit < Digits; ++digit) {
                        const uint4 b = digits[digit];
                        ptx::mma_16x8x32(sum[i][t][digit], top.x, bottom.x, top.y, bottom.y, b.x, b.y);
                        ptx::mma_16x8x32(sum[i][t][digit], top.z, bottom.z, top.w, bottom.w, b.z, b.w);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2 * Tiles * Digits * 4; ++i) {
        (&sums[warp][0][0][0][0][0])[i * 32 + lane] =
            sum[i / (4 * Digits * Tiles)][i / (4 * Digits) % Tiles][i / 4 % Digits][i % 4];
    }
    __syncthreads();
}

// The whole product of a row with the column of this lane.
template <int Tiles, int Digits>
QQQ_DEVICE int head_sum(const int (&sums)[kHeadWarps][2][Tiles][Digits][4][32], int row, int digit) {
    const int lane = threadIdx.x % 32, from = lane % 8 * 4 + row % 8 / 2, j = lane / 8 % 2 * 2 + row % 2;
    int sum = 0;
#pragma unroll
    for (int w = 0; w < kHeadWarps; ++w) sum += sums[w][lane / 16][row / 8][digit][j][from];
    return sum;
}

// Bounds of all outputs, of 8 * Tiles rows.
template <int Tiles>
QQQ_DEVICE void head_bounds(const HeadParameters& p) {
    __shared__ int sums[kHeadWarps][2][Tiles][2][4][32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.x * kHeadColumns;
    auto load = [&](int digit, int row, int channel) {
        return *(const uint4*)((digit == 0 ? p.high : p.low) + (long long)row * p.pitch + channel);
    };
    head_products<Tiles, 2>(p.codes, p.n, p.pitch, first, load, sums);
    // A warp takes a row's columns.
    for (int row = warp; row < min(p.m, 8 * Tiles); row += kHeadWarps) {
        const int column = first + lane, high = head_sum<Tiles, 2>(sums, row, 0), low = head_sum<Tiles, 2>(sums, row, 1);
        float below = -3.4e38f, above = -3.4e38f;
        if (column < p.n) {
            const HeadColumn w = p.columns[column];
            const HeadRow x = p.rows[row];
            const float value = __fmul_rn(__fmul_rn(__fmaf_rn((float)kHeadDigit, (float)high, (float)low), w.scale), x.scale);
            const float bound = (w.radius * x.norm + w.length * x.error) * 1.00001f;
            below = value - bound, above = value + bound;
            p.outputs[(long long)row * p.n + column] = above;
        }
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) {
            below = fmaxf(below, __shfl_xor_sync(0xFFFFFFFFu, below, mask));
            above = fmaxf(above, __shfl_xor_sync(0xFFFFFFFFu, above, mask));
        }
        if (lane == 0) {
            p.lows[(long long)row * p.blocks + blockIdx.x] = below, p.highs[(long long)row * p.blocks + blockIdx.x] = above;
        }
    }
}

// Columns that may hold one of the `count` largest outputs. A CTA takes a row.
QQQ_DEVICE void head_candidates(const HeadParameters& p) {
    __shared__ uint32 found, blocks_found;
    __shared__ int blocks[kHeadCandidates];
    const int row = blockIdx.x;
    if (p.rows[row].whole) {
        if (threadIdx.x == 0) p.counts[row] = -1;
        return;
    }
    const float* lows = p.lows + (long long)row * p.blocks;
    const float* highs = p.highs + (long long)row * p.blocks;
    const float* bounds = p.outputs + (long long)row * p.n;
    // So many blocks have an output that is not below this.
    const uint32 threshold = reached_order([&](int i) { return float_order(lows[i]); }, p.blocks, p.count);
    if (threadIdx.x == 0) found = blocks_found = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < p.blocks; i += kTopThreads) {
        if (float_order(highs[i]) < threshold) continue;
        const uint32 at = atomicAdd(&blocks_found, 1);
        if (at < (uint32)kHeadCandidates) blocks[at] = i;
    }
    __syncthreads();
    // Each has a candidate.
    const int count = (int)blocks_found;
    if (count <= kHeadCandidates) {
        for (int i = threadIdx.x; i < count * kHeadColumns; i += kTopThreads) {
            const int column = blocks[i / kHeadColumns] * kHeadColumns + i % kHeadColumns;
            if (column >= p.n || float_order(bounds[column]) < threshold) continue;
            const uint32 at = atomicAdd(&found, 1);
            if (at < (uint32)kHeadCandidates) p.candidates[(long long)row * kHeadCandidates + at] = column;
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        p.counts[row] = count <= kHeadCandidates && found <= (uint32)kHeadCandidates ? (int)found : -1;
    }
}

// The arithmetic of an output: 16-bit numbers, whose products are exact in float32; lane l adds those of channels 8 l to 8 l + 7,
// then 256 further on, one after the other, each sum rounded; then lanes are added in pairs, 16, 8, 4, 2 and 1 apart.
template <bool Bfloat>
QQQ_DEVICE float head_product(const uint16* w, const uint16* x, int k) {
    float sum = 0.0f;
#pragma unroll 4
    for (int i = threadIdx.x % 32 * 8; i < k; i += 256) {
        float a[8], b[8];
        unpack_vector<Bfloat>(ptx::load_global_128(w + i), a);
        unpack_vector<Bfloat>(*(const uint4*)(x + i), b);
#pragma unroll
        for (int e = 0; e < 8; ++e) sum = __fmaf_rn(a[e], b[e], sum);
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, mask));
    return sum;
}

// Outputs of candidates, and of rows whose outputs are all computed. A warp takes an output.
template <bool Bfloat>
QQQ_DEVICE void head_outputs(const HeadParameters& p) {
    const int warps = gridDim.x * kHeadWarps, own = blockIdx.x * kHeadWarps + threadIdx.x / 32;
    auto compute = [&](int row, int column) {
        const uint16* x = p.x + (long long)row * p.k;
        const float value = head_product<Bfloat>(p.weights + (long long)column * p.k, x, p.k);
        if (threadIdx.x % 32 == 0) p.outputs[(long long)row * p.n + column] = value;
    };
    // Rows take turns to begin.
    int first = own;
    bool all = false;
    for (int row = 0; row < p.m; ++row) {
        const int count = p.counts[row];
        all = all || count < 0;
        int i = first;
        for (; i < count; i += warps) compute(row, p.candidates[(long long)row * kHeadCandidates + i]);
        // Without a candidate a row leaves the turn where it was.
        first = count > 0 ? i - count : first;
    }
    if (!all) return;
    for (int column = own; column < p.n; column += warps) {
        // Weights are read once for all rows.
        for (int row = 0; row < p.m; ++row) {
            if (p.counts[row] < 0) compute(row, column);
        }
    }
}

// The largest of these outputs. A CTA takes a row.
QQQ_DEVICE void head_largest(const HeadParameters& p) {
    const int row = blockIdx.x, count = p.counts[row];
    const float* outputs = p.outputs + (long long)row * p.n;
    const int* candidates = p.candidates + (long long)row * kHeadCandidates;
    uint64* out = p.out + (long long)row * p.count;
    if (count < 0) {
        largest_keys([&](int i) { return top_key(outputs[i], i); }, outputs, p.n, p.count, out);
    } else {
        largest_keys([&](int i) { return top_key(outputs[candidates[i]], candidates[i]); }, outputs, count, p.count, out);
    }
}

// --- int8 weights --------------------------------------------------------------------------------

struct HeadLogitsParameters {
    // n x pitch, a multiple of kHeadChunk; zeros beyond k. n.
    const int8* codes;
    const float* scales;
    // The input, m x k, k a multiple of 16. m.
    const int8* x;
    const float* x_scales;
    // m x n.
    float* outputs;
    int m, n, k, pitch;
};

// All outputs, (sum * column's scale) * row's scale in float32. A CTA takes kHeadColumns columns of 8 * Tiles rows; those that
// share their columns follow one another, so that weights are read from memory once.
template <int Tiles>
QQQ_DEVICE void head_logits(const HeadLogitsParameters& p) {
    __shared__ int sums[kHeadWarps][2][Tiles][1][4][32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, groups = (p.m + 8 * Tiles - 1) / (8 * Tiles);
    const int first = (int)blockIdx.x / groups * kHeadColumns, first_row = (int)blockIdx.x % groups * (8 * Tiles);
    auto load = [&](int, int row, int channel) {
        const bool valid = first_row + row < p.m && channel < p.k;
        return valid ? *(const uint4*)(p.x + (long long)(first_row + row) * p.k + channel) : uint4{0, 0, 0, 0};
    };
    head_products<Tiles, 1>(p.codes, p.n, p.pitch, first, load, sums);
    const int column = first + lane;
    const float scale = column < p.n ? p.scales[column] : 0.0f;
    for (int row = warp; row < min(p.m - first_row, 8 * Tiles); row += kHeadWarps) {
        const int sum = head_sum<Tiles, 1>(sums, row, 0);
        const float value = __fmul_rn(__fmul_rn((float)sum, scale), p.x_scales[first_row + row]);
        if (column < p.n) p.outputs[(long long)(first_row + row) * p.n + column] = value;
    }
}
