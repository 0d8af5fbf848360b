// Matrix instructions: of a warp, and of a warpgroup (wgmma).
#include "instructions.h"
#include "numbers.h"

namespace emulator {

// --- 8x8 matrices of 16-bit elements ------------------------------------------------------------------

namespace {
struct Matrices {
    uint32_t address, count;
    uint32_t* loaded;
    const uint32_t* stored;
};
struct Transposition {
    uint32_t value, result;
};
}  // namespace

void load_matrices(uint32_t address, uint32_t* registers) {
    Matrices own{address, 4, registers, nullptr};
    collective("ldmatrix.x4", &own, [](void* const (&arguments)[32]) {
        for (int i = 0; i < 4; ++i) {
            for (int row = 0; row < 8; ++row) {
                const uint8_t* bytes = shared_at(((Matrices*)arguments[8 * i + row])->address, 16, 16);
                for (int j = 0; j < 4; ++j) std::memcpy(&((Matrices*)arguments[4 * row + j])->loaded[i], bytes + 4 * j, 4);
            }
        }
    });
}

// Transposed.
void store_matrices(uint32_t address, const uint32_t* registers, uint32_t count) {
    Matrices own{address, count, nullptr, registers};
    if (self->lane < 8 * count) {
        shared_at(address, 16, 16);
        note_store(*self, address, 16);
    }
    collective(count == 4 ? "stmatrix.x4" : "stmatrix.x2", &own, [](void* const (&arguments)[32]) {
        for (uint32_t i = 0; i < ((Matrices*)arguments[0])->count; ++i) {
            for (int row = 0; row < 8; ++row) {
                uint8_t* bytes = shared_at(((Matrices*)arguments[8 * i + row])->address, 16, 16);
                for (int column = 0; column < 8; ++column) {
                    const uint32_t value = ((Matrices*)arguments[4 * column + row / 2])->stored[i];
                    const uint16_t element = (uint16_t)(value >> 16 * (row % 2));
                    std::memcpy(bytes + 2 * column, &element, 2);
                }
            }
        }
    });
}

uint32_t transpose_matrix(uint32_t a) {
    Transposition own{a, 0};
    collective("movmatrix", &own, [](void* const (&arguments)[32]) {
        for (int lane = 0; lane < 32; ++lane) {
            auto element = [&](int row, int column) {
                return ((Transposition*)arguments[4 * row + column / 2])->value >> 16 * (column % 2) & 0xFFFF;
            };
            const int row = lane / 4, column = lane % 4 * 2;
            ((Transposition*)arguments[lane])->result = element(column, row) | element(column + 1, row) << 16;
        }
    });
    return own.result;
}

// --- products -------------------------------------------------------------------------------------------

static void multiply_integers(Products& products, int columns) {
    alignas(64) int16_t a[16][32], b[256][32];
    for (int r = 0; r < 16; ++r) {
        for (int k = 0; k < 32; ++k) a[r][k] = ((const int8_t*)products.a[r])[k];
    }
    for (int n = 0; n < columns; ++n) {
        for (int k = 0; k < 32; ++k) b[n][k] = ((const int8_t*)products.b[n])[k];
    }
    for (int r = 0; r < 16; ++r) {
        for (int n = 0; n < columns; ++n) {
            int32_t sum = 0;
            for (int k = 0; k < 32; ++k) sum += a[r][k] * b[n][k];
            products.sums[r][n] = sum;
        }
    }
}

// The order of the tensor cores' sums is not known. These are added in the order of the columns, rounded each time.
static void multiply_floats(Products& products, int columns, bool bfloat) {
    alignas(64) float a[16][16], b[16][256], sums[256];
    auto value = [&](uint32_t word, int k) {
        const uint16_t bits = (uint16_t)(word >> 16 * (k % 2));
        return bfloat ? bfloat_value(bits) : half_value(bits);
    };
    for (int k = 0; k < 16; ++k) {
        for (int r = 0; r < 16; ++r) a[r][k] = value(products.a[r][k / 2], k);
        for (int n = 0; n < columns; ++n) b[k][n] = value(products.b[n][k / 2], k);
    }
    for (int r = 0; r < 16; ++r) {
        for (int n = 0; n < columns; ++n) sums[n] = 0.0f;
        for (int k = 0; k < 16; ++k) {
            for (int n = 0; n < columns; ++n) sums[n] += a[r][k] * b[k][n];
        }
        std::memcpy(products.sums[r], sums, sizeof(float) * (size_t)columns);
    }
}

static void multiply(int type, int columns) {
    if (type == kInt8Operand) {
        multiply_integers(machine->products, columns);
    } else {
        multiply_floats(machine->products, columns, type == kBfloatOperand);
    }
}

static int add(int type, int sum, int product) {
    if (type == kInt8Operand) return (int)((uint32_t)sum + (uint32_t)product);
    return bits_as<int>(bits_as<float>(sum) + bits_as<float>(product));
}

// Lane l has columns c..c+3 (bytes, c = 4 (l % 4)) of rows l / 4 and l / 4 + 8, then columns 16 + c.. of the same.
static void gather_a(int lane, const uint32_t (&a)[4]) {
    for (int i = 0; i < 4; ++i) machine->products.a[lane / 4 + i % 2 * 8][lane % 4 + i / 2 * 4] = a[i];
}

// Lane l has columns 8j + 2 (l % 4) and the next of rows l / 4 and l / 4 + 8.
static void add_products(int type, int lane, int columns, int* d) {
    for (int j = 0; j < columns / 8; ++j) {
        for (int i = 0; i < 4; ++i) {
            const int product = machine->products.sums[lane / 4 + i / 2 * 8][8 * j + lane % 4 * 2 + i % 2];
            d[4 * j + i] = add(type, d[4 * j + i], product);
        }
    }
}

namespace {
struct Multiplication {
    int type;
    int* d;
    const uint32_t (&a)[4];
    const uint32_t (&b)[2];
};
}  // namespace

void multiply_16x8(int type, int* d, const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    Multiplication own{type, d, a, b};
    collective("mma.sync", &own, [](void* const (&arguments)[32]) {
        for (int lane = 0; lane < 32; ++lane) {
            const Multiplication& m = *(Multiplication*)arguments[lane];
            gather_a(lane, m.a);
            for (int i = 0; i < 2; ++i) machine->products.b[lane / 4][lane % 4 + i * 4] = m.b[i];
        }
        const int type = ((Multiplication*)arguments[0])->type;
        multiply(type, 8);
        for (int lane = 0; lane < 32; ++lane) add_products(type, lane, 8, ((Multiplication*)arguments[lane])->d);
    });
}

// --- wgmma ----------------------------------------------------------------------------------------------

// 16 bytes of a tile in shared memory, whose chunks of 16 bytes are permuted by the row, for an instruction.
static const uint8_t* swizzled(Block& block, uint32_t address) {
    const uint32_t place = address ^ (address >> 3 & 0x70);
    const uint8_t* bytes = shared_of(block, place, 16, 16);
    check_fenced(block, place, 16);
    return bytes;
}

static void check_layout(uint64_t descriptor) {
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) fail("a descriptor of another layout: %#llx", (unsigned long long)descriptor);
}

// 32 bytes of each of `count` rows (K-major) from row `first` of a tile on.
static void gather_rows(Block& block, uint64_t descriptor, int first, int count, uint32_t (*rows)[8]) {
    const uint32_t start = (descriptor & 0x3FFF) << 4, stride = (descriptor >> 32 & 0x3FFF) << 4;
    check_layout(descriptor);
    for (int n = first; n < first + count; ++n) {
        for (uint32_t piece = 0; piece < 2; ++piece) {
            const uint32_t address = start + (uint32_t)(n / 8) * stride + (uint32_t)(n % 8) * 128 + piece * 16;
            std::memcpy(&rows[n - first][piece * 4], swizzled(block, address), 16);
        }
    }
}

// 16 rows of 16-bit elements, as columns.
static void gather_columns(Block& block, uint64_t descriptor, int columns) {
    const uint32_t start = (descriptor & 0x3FFF) << 4, across = (descriptor >> 16 & 0x3FFF) << 4, down = (descriptor >> 32 & 0x3FFF) << 4;
    check_layout(descriptor);
    for (uint32_t k = 0; k < 16; ++k) {
        for (uint32_t n = 0; n < (uint32_t)columns; n += 8) {
            const uint32_t address = start + n / 64 * across + k / 8 * down + k % 8 * 128 + n % 64 * 2;
            const uint8_t* bytes = swizzled(block, address);
            for (uint32_t i = 0; i < 8; ++i) std::memcpy((uint8_t*)machine->products.b[n + i] + 2 * k, bytes + 2 * i, 2);
        }
    }
}

static bool is_complete(const Warp& warp, uint64_t number) {
    return number < warp.retired + warp.multiplications.size() && warp.multiplications[number - warp.retired].lanes == 32;
}

// Whether the first wgmma of the warp that has not taken effect may do so.
static bool may_run(const Warp& warp) {
    if (!is_complete(warp, warp.retired)) return false;
    if (!machine->coupled) return true;
    for (unsigned i = warp.index / 4 * 4; i < warp.index / 4 * 4 + 4; ++i) {
        const Warp& other = warp.block->warps[i];
        if (other.retired <= warp.retired && !is_complete(other, warp.retired)) return false;
    }
    return true;
}

static void offer(Warp& warp) {
    if (warp.multiplying || !may_run(warp)) return;
    warp.multiplying = true;
    machine->multiplying.push_back(&warp);
}

// The warps of a warpgroup must multiply by the same tile.
static void check_agreement(Block& block, uint32_t warpgroup, uint64_t number, const WarpgroupProduct& product) {
    constexpr size_t kKept = 1024;
    std::vector<Block::Issue>& issues = block.issues[warpgroup];
    if (issues.empty()) issues.assign(kKept, {~0ull, {}});
    Block::Issue& issue = issues[number % kKept];
    if (issue.number == number && !(issue.product == product)) fail("warps of a warpgroup multiply different tiles");
    issue = {number, product};
}

// Accumulators mean nothing while instructions that write them run: all their bits are changed then, and those of the sums
// come back with the last of them.
static void scramble(int* d, int columns) {
    for (int i = 0; i < columns / 2; ++i) d[i] ^= 0x5A5A5A5A;
}

// Whether one of the warp's instructions writes a lane's registers.
static bool is_written(const Warp& warp, unsigned lane, const int* d) {
    for (const WarpMultiplication& m : warp.multiplications) {
        if (m.sums[lane] == d) return true;
    }
    return false;
}

void wgmma_issue(const WarpgroupProduct& product, int* d, const uint32_t* const (&a)[4]) {
    if (!self->fenced) fail("wgmma without a fence after the last group");
    Warp& warp = *self->warp;
    const uint64_t number = self->issued++, at = number - warp.retired;
    if (at == warp.multiplications.size()) {
        check_agreement(*self->block, self->index / 128, number, product);
        warp.multiplications.push_back({product, 0, {}, {}});
    }
    WarpMultiplication& m = warp.multiplications[at];
    if (!(m.product == product)) fail("lanes of a warp disagree in wgmma");
    if (!is_written(warp, self->lane, d)) scramble(d, product.columns);
    m.sums[self->lane] = d;
    for (int i = 0; i < 4; ++i) m.a[self->lane][i] = a[i];
    if (++m.lanes < 32) return;
    if (!machine->coupled) return offer(warp);
    for (unsigned i = warp.index / 4 * 4; i < warp.index / 4 * 4 + 4; ++i) offer(self->block->warps[i]);
}

void wgmma_fence() { self->fenced = true; }

void wgmma_commit() {
    self->group_ends[self->groups++ % 8] = self->issued;
    self->fenced = false;
}

void wgmma_wait(uint32_t pending) {
    if (pending >= 7) fail("a wait for all but %u groups of wgmma", pending);
    if (self->groups <= pending) return;
    const uint64_t end = self->group_ends[(self->groups - pending - 1) % 8];
    Warp& warp = *self->warp;
    wait_until(warp.waiters, "wgmma", pending, 0, [&] { return warp.retired >= end; });
}

void complete_multiplication(uint32_t index) {
    Warp& warp = *machine->multiplying[index];
    machine->multiplying[index] = machine->multiplying.back();
    machine->multiplying.pop_back();
    warp.multiplying = false;
    const WarpMultiplication m = warp.multiplications.front();
    warp.multiplications.pop_front();
    const auto& [type, columns, across, a_descriptor, descriptor] = m.product;
    if (across) {
        gather_columns(*warp.block, descriptor, columns);
    } else {
        gather_rows(*warp.block, descriptor, 0, columns, machine->products.b);
    }
    if (a_descriptor != 0) gather_rows(*warp.block, a_descriptor, (int)(warp.index % 4 * 16), 16, machine->products.a);
    for (int lane = 0; a_descriptor == 0 && lane < 32; ++lane) {
        const uint32_t a[4] = {*m.a[lane][0], *m.a[lane][1], *m.a[lane][2], *m.a[lane][3]};
        gather_a(lane, a);
    }
    multiply(type, columns);
    for (int lane = 0; lane < 32; ++lane) {
        int* d = m.sums[lane];
        scramble(d, columns);
        add_products(type, lane, columns, d);
        if (is_written(warp, (unsigned)lane, d)) scramble(d, columns);
    }
    ++warp.retired;
    wake(warp.waiters);
    offer(warp);
}

}  // namespace emulator
