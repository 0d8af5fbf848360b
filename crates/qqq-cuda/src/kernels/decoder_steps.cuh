// The rest of a decoder's step: embedding, rotary embedding with the append to the KV cache, sums, and the largest logits.
#pragma once

#include "attention.cuh"

// --- embedding and sums --------------------------------------------------------------------------

enum ValueType { kHalfValue = 0, kBfloatValue = 1, kFloatValue = 2 };

QQQ_DEVICE float value_at(const void* values, ValueType type, long long i) {
    if (type == kFloatValue) return ((const float*)values)[i];
    const uint16 bits = ((const uint16*)values)[i];
    return type == kBfloatValue ? __uint_as_float((uint32)bits << 16) : ptx::half_to_float(bits);
}

struct EmbedParameters {
    // vocabulary x hidden.
    const void* table;
    const int* tokens;
    // rows x hidden.
    float* out;
    long long rows;
    int hidden;
    ValueType type;
    float scale;
};

// Rows of a table, times a factor.
QQQ_DEVICE void embed(const EmbedParameters& p) {
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < p.rows * p.hidden; i += (long long)gridDim.x * blockDim.x) {
        const long long token = p.tokens[i / p.hidden];
        p.out[i] = value_at(p.table, p.type, token * p.hidden + i % p.hidden) * p.scale;
    }
}

struct AddParameters {
    float* residual;
    const void* x;
    long long count;
    ValueType type;
    float factor;
};

// residual += factor * x.
QQQ_DEVICE void add(const AddParameters& p) {
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < p.count; i += (long long)gridDim.x * blockDim.x) {
        p.residual[i] = __fmaf_rn(p.factor, value_at(p.x, p.type, i), p.residual[i]);
    }
}

// --- rotary embedding, and the KV cache --------------------------------------------------------------

struct RopeParameters {
    // rows x (q, k and v heads), in half or bfloat16; q is rotated in place.
    void* qkv;
    // Of the layer: pages x key heads x kPage x head size.
    void *keys, *values;
    // Norms of the heads, head size each; or null.
    const float *q_norm, *k_norm;
    // Cosines, then sines, positions x pairs each; or null.
    const float *cosines, *sines;
    // Of each row: its position, and page * kPage + the place in it.
    const int *positions, *slots;
    int rows, num_heads, num_kv_heads, head_dim;
    // Components i and i + pairs turn together.
    int pairs;
    float q_epsilon, k_epsilon;
    // Queries grow by 1 + beta ln(1 + floor(position / period)); a beta of 0: they do not.
    float query_beta;
    int query_period;
};

constexpr int kRopeWarps = 4, kMostHeadDim = 256;

// A warp takes a head of a row, a lane four neighbours of it, and four that lie 128 further.
template <bool Bfloat>
QQQ_DEVICE void rope_append(const RopeParameters& p) {
    __shared__ float4 heads[kRopeWarps][kMostHeadDim / 4];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float* shared = (float*)heads[warp];
    const int all = p.num_heads + 2 * p.num_kv_heads;
    const long long unit = (long long)blockIdx.x * kRopeWarps + warp;
    const int row = (int)(unit / all), head = (int)(unit % all);
    if (row >= p.rows) return;
    uint16* x = (uint16*)p.qkv + unit * p.head_dim;
    const bool query = head < p.num_heads, value = head >= p.num_heads + p.num_kv_heads;
    uint16* out = x;
    if (!query) {
        const long long slot = p.slots[row], page = slot / kPage;
        const int kv_head = head - p.num_heads - (value ? p.num_kv_heads : 0);
        uint16* pool = (uint16*)(value ? p.values : p.keys);
        out = pool + ((page * p.num_kv_heads + kv_head) * kPage + slot % kPage) * p.head_dim;
    }
    const int position = p.positions[row];
    constexpr int kTimes = kMostHeadDim / 128;
    uint2 words[kTimes];
#pragma unroll
    for (int j = 0; j < kTimes; ++j) {
        const int i = 4 * lane + 128 * j;
        if (i < p.head_dim) words[j] = *(const uint2*)(x + i);
        if (value && i < p.head_dim) *(uint2*)(out + i) = words[j];
    }
    if (value) return;

    float v[kTimes][4], squares = 0.0f;
#pragma unroll
    for (int j = 0; j < kTimes; ++j) {
        if (4 * lane + 128 * j >= p.head_dim) break;
        unpack_floats<Bfloat>(words[j].x, v[j][0], v[j][1]);
        unpack_floats<Bfloat>(words[j].y, v[j][2], v[j][3]);
#pragma unroll
        for (float e : v[j]) squares = __fmaf_rn(e, e, squares);
    }
    const float* norm = query ? p.q_norm : p.k_norm;
    float factor = 1.0f;
    if (norm) {
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) squares += __shfl_xor_sync(0xFFFFFFFFu, squares, mask);
        const float epsilon = query ? p.q_epsilon : p.k_epsilon;
        factor = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(squares, (float)p.head_dim), epsilon)));
    }
#pragma unroll
    for (int j = 0; j < kTimes; ++j) {
        const int i = 4 * lane + 128 * j;
        if (i >= p.head_dim) break;
#pragma unroll
        for (int e = 0; norm && e < 4; ++e) v[j][e] = __fmul_rn(__fmul_rn(v[j][e], factor), norm[i + e]);
        *(float4*)(shared + i) = make_float4(v[j][0], v[j][1], v[j][2], v[j][3]);
    }
    __syncwarp();

    const bool grows = query && p.query_beta != 0.0f;
    const float growth = grows ? __fmaf_rn(p.query_beta, logf((float)(1 + position / p.query_period)), 1.0f) : 1.0f;
    // Then four neighbours are of one half, and so are their pairs.
    const bool aligned = p.pairs % 4 == 0;
    const long long turn = (long long)position * p.pairs;
#pragma unroll
    for (int j = 0; j < kTimes; ++j) {
        const int i = 4 * lane + 128 * j;
        if (i >= p.head_dim) break;
        auto rotated = [&](float own, float other, float cosine, float sine) {
            return __fmaf_rn(own, cosine, __fmul_rn(other, sine));
        };
        if (p.cosines && aligned && i < 2 * p.pairs) {
            const bool first = i < p.pairs;
            const int pair = first ? i : i - p.pairs;
            const float4 other = *(const float4*)(shared + (first ? i + p.pairs : pair));
            const float4 cosine = *(const float4*)(p.cosines + turn + pair), sine = *(const float4*)(p.sines + turn + pair);
            const float sign = first ? -1.0f : 1.0f;
            v[j][0] = rotated(v[j][0], sign * other.x, cosine.x, sine.x);
            v[j][1] = rotated(v[j][1], sign * other.y, cosine.y, sine.y);
            v[j][2] = rotated(v[j][2], sign * other.z, cosine.z, sine.z);
            v[j][3] = rotated(v[j][3], sign * other.w, cosine.w, sine.w);
        } else if (p.cosines && !aligned) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const bool first = i + e < p.pairs;
                const int pair = first ? i + e : i + e - p.pairs;
                if (pair >= p.pairs) continue;
                const float other = first ? -shared[pair + p.pairs] : shared[pair];
                v[j][e] = rotated(v[j][e], other, p.cosines[turn + pair], p.sines[turn + pair]);
            }
        }
#pragma unroll
        for (int e = 0; grows && e < 4; ++e) v[j][e] = __fmul_rn(v[j][e], growth);
        const uint2 packed = make_uint2(pack_floats<Bfloat>(v[j][0], v[j][1]), pack_floats<Bfloat>(v[j][2], v[j][3]));
        *(uint2*)(out + i) = packed;
        // Calibration looks at rotated keys where they came from.
        if (!query) *(uint2*)(x + i) = packed;
    }
}

// --- the largest logits ----------------------------------------------------------------------------

struct TopParameters {
    // rows x columns.
    const float* logits;
    // rows x count: the largest elements in order, each with its column in the low half.
    uint64* out;
    int rows, columns, count;
};

constexpr int kTopThreads = 1024;
// With more than so many, the least of them is searched for first; so many can be ranked then.
constexpr int kFewKeys = 32, kRankedKeys = 1024;

// Orders floats as unsigned numbers; what is not finite before all.
QQQ_DEVICE uint32 float_order(float value) {
    const uint32 bits = __float_as_uint(value);
    const bool finite = (bits & 0x7F800000u) != 0x7F800000u;
    // Below the largest of all, which stands for the place before the first.
    return finite ? (bits & 0x80000000u ? ~bits : bits | 0x80000000u) : 0xFFFFFFFEu;
}

// Orders elements as their keys: the larger the better, then the lower column; what is not finite before all.
QQQ_DEVICE uint64 top_key(float value, int column) {
    return (uint64)float_order(value) << 32 | (0xFFFFFFFFu - (uint32)column);
}

QQQ_DEVICE uint64 larger_key(uint64 a, uint64 b) { return a > b ? a : b; }

QQQ_DEVICE uint32 warp_total(uint32 value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, mask);
    return value;
}

// The largest number that at least `count` of n orders reach, to all threads of a CTA.
template <class Orders>
QQQ_DEVICE uint32 reached_order(const Orders& order_at, int n, int count) {
    __shared__ uint32 turns[2][kTopThreads / 32];
    uint32 least = 0;
    for (int bit = 31; bit >= 0; --bit) {
        const uint32 tried = least | 1u << bit;
        uint32 reached = 0;
        for (int i = threadIdx.x; i < n; i += kTopThreads) reached += order_at(i) >= tried ? 1 : 0;
        reached = warp_total(reached);
        // Threads may still read what was counted before.
        uint32* counts = turns[bit % 2];
        if (threadIdx.x % 32 == 0) counts[threadIdx.x / 32] = reached;
        __syncthreads();
        if (warp_total(counts[threadIdx.x % 32]) >= (uint32)count) least = tried;
    }
    return least;
}

// The `count` largest of n different keys of a row's elements, with their columns. A CTA does it, whose threads all come.
template <class Keys>
QQQ_DEVICE void largest_keys(const Keys& key_at, const float* row, int n, int count, uint64* out) {
    __shared__ uint64 warps[kTopThreads / 32], kept[kRankedKeys];
    __shared__ uint32 found;
    auto element = [&](uint64 key) {
        const uint32 column = 0xFFFFFFFFu - (uint32)key;
        return (uint64)__float_as_uint(row[column]) << 32 | column;
    };
    if (count > kFewKeys) {
        const uint32 least = reached_order([&](int i) { return (uint32)(key_at(i) >> 32); }, n, count);
        if (threadIdx.x == 0) found = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < n; i += kTopThreads) {
            const uint64 key = key_at(i);
            if ((uint32)(key >> 32) < least) continue;
            const uint32 at = atomicAdd(&found, 1);
            if (at < (uint32)kRankedKeys) kept[at] = key;
        }
        __syncthreads();
        if (found <= (uint32)kRankedKeys) {
            for (int i = threadIdx.x; i < (int)found; i += kTopThreads) {
                int rank = 0;
                for (int j = 0; j < (int)found; ++j) rank += kept[j] > kept[i] ? 1 : 0;
                if (rank < count) out[rank] = element(kept[i]);
            }
            return;
        }
    }
    // One after the other.
    uint64 before = ~(uint64)0;
    for (int place = 0; place < count; ++place) {
        uint64 best = 0;
        for (int i = threadIdx.x; i < n; i += kTopThreads) {
            const uint64 key = key_at(i);
            if (key < before) best = larger_key(best, key);
        }
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) {
            const uint32 low = __shfl_xor_sync(0xFFFFFFFFu, (uint32)best, mask);
            const uint32 high = __shfl_xor_sync(0xFFFFFFFFu, (uint32)(best >> 32), mask);
            best = larger_key(best, (uint64)high << 32 | low);
        }
        __syncthreads();
        if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
        __syncthreads();
        for (int w = 0; w < kTopThreads / 32; ++w) best = larger_key(best, warps[w]);
        before = best;
        if (threadIdx.x == 0) out[place] = element(best);
    }
}

// A CTA takes a row.
QQQ_DEVICE void top(const TopParameters& p) {
    const float* row = p.logits + (long long)blockIdx.x * p.columns;
    uint64* out = p.out + (long long)blockIdx.x * p.count;
    largest_keys([&](int i) { return top_key(row[i], i); }, row, p.columns, p.count, out);
}

struct LossParameters {
    // rows x columns.
    const float* logits;
    // A column of each row.
    const int* columns_of;
    // rows.
    double* out;
    int rows, columns;
};

constexpr int kLossThreads = 512;

// The largest element of a row with its first column, to all threads of a CTA; infinite where an element is not finite.
struct RowLargest {
    float value;
    int column;
};

QQQ_DEVICE RowLargest largest_of_row(const float* row, int columns) {
    __shared__ float values[kLossThreads];
    __shared__ int columns_of[kLossThreads];
    float largest = -3.4e38f;
    int column = columns;
    bool finite = true;
    for (int i = threadIdx.x; i < columns; i += kLossThreads) {
        if (row[i] > largest) {
            largest = row[i];
            column = i;
        }
        finite = finite && (__float_as_uint(row[i]) & 0x7F800000u) != 0x7F800000u;
    }
    // What is not finite becomes the largest of all.
    values[threadIdx.x] = finite ? largest : __uint_as_float(0x7F800000u);
    columns_of[threadIdx.x] = column;
    __syncthreads();
    for (int half = kLossThreads / 2; half > 0; half /= 2) {
        if ((int)threadIdx.x < half) {
            const float other = values[threadIdx.x + half];
            const int at = columns_of[threadIdx.x + half];
            if (other > values[threadIdx.x] || (other == values[threadIdx.x] && at < columns_of[threadIdx.x])) {
                values[threadIdx.x] = other;
                columns_of[threadIdx.x] = at;
            }
        }
        __syncthreads();
    }
    const RowLargest found = {values[0], columns_of[0]};
    __syncthreads();
    return found;
}

// A sum over the threads of a CTA, to all of them.
QQQ_DEVICE double sum_of_threads(double x) {
    __shared__ double sums[kLossThreads];
    sums[threadIdx.x] = x;
    __syncthreads();
    for (int half = kLossThreads / 2; half > 0; half /= 2) {
        if ((int)threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    const double sum = sums[0];
    __syncthreads();
    return sum;
}

// exp(x - largest).
QQQ_DEVICE double exp_below(float x, float largest) { return (double)ptx::exp2((x - largest) * 1.44269504f); }

// -log(exp(target) / sum(exp(row))), where the sum is of exp(row - largest); NaN where the row is not finite.
QQQ_DEVICE double loss_of(double log_sum, float largest, float target) {
    // Infinity minus infinity is NaN, as are its sums.
    return log_sum + ((double)largest - (double)target) + 0.0 * ((double)largest - (double)largest);
}

// What each row loses that predicts its column. A CTA takes a row.
QQQ_DEVICE void losses(const LossParameters& p) {
    const float* row = p.logits + (long long)blockIdx.x * p.columns;
    const float largest = largest_of_row(row, p.columns).value;
    double sum = 0.0;
    for (int i = threadIdx.x; i < p.columns; i += kLossThreads) sum += exp_below(row[i], largest);
    sum = sum_of_threads(sum);
    if (threadIdx.x == 0) p.out[blockIdx.x] = loss_of(log(sum), largest, row[p.columns_of[blockIdx.x]]);
}

// What a pair of rows says.
struct Compared {
    double baseline_nll, model_nll, kl;
    long long agree;
};

struct CompareParameters {
    // rows x columns each.
    const float* baseline;
    const float* model;
    // A column of each row.
    const int* columns_of;
    // rows.
    Compared* out;
    int rows, columns;
};

// Losses of the same column in two models' rows, and KL(baseline || model). A CTA takes a pair.
QQQ_DEVICE void compare(const CompareParameters& p) {
    const float* a = p.baseline + (long long)blockIdx.x * p.columns;
    const float* b = p.model + (long long)blockIdx.x * p.columns;
    const RowLargest most_a = largest_of_row(a, p.columns), most_b = largest_of_row(b, p.columns);
    double sum_a = 0.0, sum_b = 0.0, weighted = 0.0;
    for (int i = threadIdx.x; i < p.columns; i += kLossThreads) {
        const double e = exp_below(a[i], most_a.value);
        sum_a += e;
        sum_b += exp_below(b[i], most_b.value);
        weighted += e * (((double)a[i] - (double)most_a.value) - ((double)b[i] - (double)most_b.value));
    }
    sum_a = sum_of_threads(sum_a);
    sum_b = sum_of_threads(sum_b);
    weighted = sum_of_threads(weighted);
    if (threadIdx.x != 0) return;
    const int column = p.columns_of[blockIdx.x];
    const double log_a = log(sum_a), log_b = log(sum_b);
    Compared found;
    found.baseline_nll = loss_of(log_a, most_a.value, a[column]);
    found.model_nll = loss_of(log_b, most_b.value, b[column]);
    // sum p (ln p - ln q), with ln p = (a - largest) - log(sum). Equal rows give exactly 0.
    found.kl = weighted / sum_a - (log_a - log_b);
    found.agree = most_a.column == most_b.column;
    p.out[blockIdx.x] = found;
}
