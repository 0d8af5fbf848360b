// The instructions of wgmma (sm_90a): D += A B, A is 64 x 32 bytes from registers, B is 32 bytes x N from shared memory
// (K-major, 128-byte swizzle), D is 64 x N. int8 gives int32; float16 and bfloat16 give float32.
//
// Fragments, for lane l of warp w in the warpgroup, with r = 16 w + l / 4 and c = l % 4: A: register 0 holds bytes
// 4c..4c+3 of row r (first in the low byte): four int8 columns, or two 16-bit ones; 1 the same of
//    row r + 8; 2 and 3 bytes 16 + 4c..; D: registers 4j..4j+3 hold (r, 8j+2c), (r, 8j+2c+1), and the same of row r + 8.
#pragma once

#include "activations.cuh"

namespace wgmma {

QQQ_DEVICE void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

QQQ_DEVICE void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `Pending` of this warpgroup's newest groups run.
template <int Pending>
QQQ_DEVICE void wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(Pending) : "memory"); }

// Keeps the compiler from moving an access of these registers across this point.
template <typename T, int Count>
QQQ_DEVICE void pin(T (&registers)[Count]) {
#pragma unroll
    for (int i = 0; i < Count; ++i) asm volatile("" : "+r"(registers[i]) :: "memory");
}

template <typename T, int Rows, int Count>
QQQ_DEVICE void pin(T (&registers)[Rows][Count]) {
#pragma unroll
    for (int i = 0; i < Rows; ++i) pin(registers[i]);
}

// mma<A, N>::run(d, a0, a1, a2, a3, b): d += a * b.
template <Activations A, int N>
struct mma;

// Accumulators by fours, with the numbers that they have in `mma`.
struct Fours {
    int (*four)[4];
    QQQ_DEVICE int& operator[](int i) const { return four[i / 4][i % 4]; }
};

// 16-bit products of attention. mma_shared<A, N>::run(sums, a, b, add): A from shared memory as well, K-major like B; without
// `add`, sums are overwritten. mma_across<A, N>::run(sums, a0, a1, a2, a3, b): B's rows are N long (MN-major), 16 of them.
template <Activations A, int N>
struct mma_shared;
template <Activations A, int N>
struct mma_across;

#define QQQ_NAMES_8 "%0,%1,%2,%3"
#define QQQ_NAMES_16 QQQ_NAMES_8 "," "%4,%5,%6,%7"
#define QQQ_NAMES_24 QQQ_NAMES_16 "," "%8,%9,%10,%11"
#define QQQ_NAMES_32 QQQ_NAMES_24 "," "%12,%13,%14,%15"
#define QQQ_NAMES_40 QQQ_NAMES_32 "," "%16,%17,%18,%19"
#define QQQ_NAMES_48 QQQ_NAMES_40 "," "%20,%21,%22,%23"
#define QQQ_NAMES_56 QQQ_NAMES_48 "," "%24,%25,%26,%27"
#define QQQ_NAMES_64 QQQ_NAMES_56 "," "%28,%29,%30,%31"
#define QQQ_NAMES_72 QQQ_NAMES_64 "," "%32,%33,%34,%35"
#define QQQ_NAMES_80 QQQ_NAMES_72 "," "%36,%37,%38,%39"
#define QQQ_NAMES_88 QQQ_NAMES_80 "," "%40,%41,%42,%43"
#define QQQ_NAMES_96 QQQ_NAMES_88 "," "%44,%45,%46,%47"
#define QQQ_NAMES_104 QQQ_NAMES_96 "," "%48,%49,%50,%51"
#define QQQ_NAMES_112 QQQ_NAMES_104 "," "%52,%53,%54,%55"
#define QQQ_NAMES_120 QQQ_NAMES_112 "," "%56,%57,%58,%59"
#define QQQ_NAMES_128 QQQ_NAMES_120 "," "%60,%61,%62,%63"
#define QQQ_NAMES_136 QQQ_NAMES_128 "," "%64,%65,%66,%67"
#define QQQ_NAMES_144 QQQ_NAMES_136 "," "%68,%69,%70,%71"
#define QQQ_NAMES_152 QQQ_NAMES_144 "," "%72,%73,%74,%75"
#define QQQ_NAMES_160 QQQ_NAMES_152 "," "%76,%77,%78,%79"
#define QQQ_NAMES_168 QQQ_NAMES_160 "," "%80,%81,%82,%83"
#define QQQ_NAMES_176 QQQ_NAMES_168 "," "%84,%85,%86,%87"
#define QQQ_NAMES_184 QQQ_NAMES_176 "," "%88,%89,%90,%91"
#define QQQ_NAMES_192 QQQ_NAMES_184 "," "%92,%93,%94,%95"
#define QQQ_NAMES_200 QQQ_NAMES_192 "," "%96,%97,%98,%99"
#define QQQ_NAMES_208 QQQ_NAMES_200 "," "%100,%101,%102,%103"
#define QQQ_NAMES_216 QQQ_NAMES_208 "," "%104,%105,%106,%107"
#define QQQ_NAMES_224 QQQ_NAMES_216 "," "%108,%109,%110,%111"
#define QQQ_NAMES_232 QQQ_NAMES_224 "," "%112,%113,%114,%115"
#define QQQ_NAMES_240 QQQ_NAMES_232 "," "%116,%117,%118,%119"
#define QQQ_NAMES_248 QQQ_NAMES_240 "," "%120,%121,%122,%123"
#define QQQ_NAMES_256 QQQ_NAMES_248 "," "%124,%125,%126,%127"
#define QQQ_FOUR(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define QQQ_VALUES_8 QQQ_FOUR(0)
#define QQQ_VALUES_16 QQQ_VALUES_8, QQQ_FOUR(4)
#define QQQ_VALUES_24 QQQ_VALUES_16, QQQ_FOUR(8)
#define QQQ_VALUES_32 QQQ_VALUES_24, QQQ_FOUR(12)
#define QQQ_VALUES_40 QQQ_VALUES_32, QQQ_FOUR(16)
#define QQQ_VALUES_48 QQQ_VALUES_40, QQQ_FOUR(20)
#define QQQ_VALUES_56 QQQ_VALUES_48, QQQ_FOUR(24)
#define QQQ_VALUES_64 QQQ_VALUES_56, QQQ_FOUR(28)
#define QQQ_VALUES_72 QQQ_VALUES_64, QQQ_FOUR(32)
#define QQQ_VALUES_80 QQQ_VALUES_72, QQQ_FOUR(36)
#define QQQ_VALUES_88 QQQ_VALUES_80, QQQ_FOUR(40)
#define QQQ_VALUES_96 QQQ_VALUES_88, QQQ_FOUR(44)
#define QQQ_VALUES_104 QQQ_VALUES_96, QQQ_FOUR(48)
#define QQQ_VALUES_112 QQQ_VALUES_104, QQQ_FOUR(52)
#define QQQ_VALUES_120 QQQ_VALUES_112, QQQ_FOUR(56)
#define QQQ_VALUES_128 QQQ_VALUES_120, QQQ_FOUR(60)
#define QQQ_VALUES_136 QQQ_VALUES_128, QQQ_FOUR(64)
#define QQQ_VALUES_144 QQQ_VALUES_136, QQQ_FOUR(68)
#define QQQ_VALUES_152 QQQ_VALUES_144, QQQ_FOUR(72)
#define QQQ_VALUES_160 QQQ_VALUES_152, QQQ_FOUR(76)
#define QQQ_VALUES_168 QQQ_VALUES_160, QQQ_FOUR(80)
#define QQQ_VALUES_176 QQQ_VALUES_168, QQQ_FOUR(84)
#define QQQ_VALUES_184 QQQ_VALUES_176, QQQ_FOUR(88)
#define QQQ_VALUES_192 QQQ_VALUES_184, QQQ_FOUR(92)
#define QQQ_VALUES_200 QQQ_VALUES_192, QQQ_FOUR(96)
#define QQQ_VALUES_208 QQQ_VALUES_200, QQQ_FOUR(100)
#define QQQ_VALUES_216 QQQ_VALUES_208, QQQ_FOUR(104)
#define QQQ_VALUES_224 QQQ_VALUES_216, QQQ_FOUR(108)
#define QQQ_VALUES_232 QQQ_VALUES_224, QQQ_FOUR(112)
#define QQQ_VALUES_240 QQQ_VALUES_232, QQQ_FOUR(116)
#define QQQ_VALUES_248 QQQ_VALUES_240, QQQ_FOUR(120)
#define QQQ_VALUES_256 QQQ_VALUES_248, QQQ_FOUR(124)

// The instruction's types and its immediates: signs of A and B, and whether B is transposed. The predicate says that it
// adds.
#define QQQ_WGMMA_OF(activations, types, immediates, n, i0, i1, i2, i3, i4)                                          \
    template <>                                                                                                      \
    struct mma<activations, n> {                                                                                     \
        QQQ_DEVICE static void run(int (&d)[n / 2], uint32 a0, uint32 a1, uint32 a2, uint32 a3, uint64 b) {          \
            asm volatile("{ .reg .pred p; setp.eq.b32 p, 0, 0;\n"                                                    \
                         "wgmma.mma_async.sync.aligned.m64n" #n types " {" QQQ_NAMES_##n "},"                        \
                         "{%" i0 ",%" i1 ",%" i2 ",%" i3 "}, %" i4 ", p" immediates "; }"                            \
                         : QQQ_VALUES_##n : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));                             \
        }                                                                                                            \
    };

#define QQQ_WGMMA(n, i0, i1, i2, i3, i4)                                                                             \
    QQQ_WGMMA_OF(kInt8, "k32.s32.s8.s8", "", n, i0, i1, i2, i3, i4)                                                  \
    QQQ_WGMMA_OF(kFloat16, "k16.f32.f16.f16", ", 1, 1, 0", n, i0, i1, i2, i3, i4)                                    \
    QQQ_WGMMA_OF(kBfloat16, "k16.f32.bf16.bf16", ", 1, 1, 0", n, i0, i1, i2, i3, i4)

#define QQQ_WGMMA_SHARED(activations, types, n, ia, ib, ip)                                                          \
    template <>                                                                                                      \
    struct mma_shared<activations, n> {                                                                              \
        QQQ_DEVICE static void run(int (&sums)[n / 8][4], uint64 a, uint64 b, bool add) {                            \
            const Fours d{sums};                                                                                     \
            asm volatile("{ .reg .pred p; setp.ne.b32 p, %" ip ", 0;\n"                                              \
                         "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32" types " {" QQQ_NAMES_##n "},"              \
                         "%" ia ", %" ib ", p, 1, 1, 0, 0; }"                                                        \
                         : QQQ_VALUES_##n : "l"(a), "l"(b), "r"((int)add));                                          \
        }                                                                                                            \
    };

#define QQQ_WGMMA_ACROSS_OF(activations, types, n, i0, i1, i2, i3, i4)                                               \
    template <>                                                                                                      \
    struct mma_across<activations, n> {                                                                              \
        QQQ_DEVICE static void run(int (&sums)[n / 8][4], uint32 a0, uint32 a1, uint32 a2, uint32 a3, uint64 b) {    \
            const Fours d{sums};                                                                                     \
            asm volatile("{ .reg .pred p; setp.eq.b32 p, 0, 0;\n"                                                    \
                         "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32" types " {" QQQ_NAMES_##n "},"              \
                         "{%" i0 ",%" i1 ",%" i2 ",%" i3 "}, %" i4 ", p, 1, 1, 1; }"                                 \
                         : QQQ_VALUES_##n : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));                             \
        }                                                                                                            \
    };

#define QQQ_WGMMA_ACROSS(n, i0, i1, i2, i3, i4)                                                                      \
    QQQ_WGMMA_ACROSS_OF(kFloat16, ".f16.f16", n, i0, i1, i2, i3, i4)                                                 \
    QQQ_WGMMA_ACROSS_OF(kBfloat16, ".bf16.bf16", n, i0, i1, i2, i3, i4)

QQQ_WGMMA_SHARED(kFloat16, ".f16.f16", 64, "32", "33", "34")
QQQ_WGMMA_SHARED(kBfloat16, ".bf16.bf16", 64, "32", "33", "34")
QQQ_WGMMA_ACROSS(64, "32", "33", "34", "35", "36")
QQQ_WGMMA_ACROSS(128, "64", "65", "66", "67", "68")
QQQ_WGMMA_ACROSS(256, "128", "129", "130", "131", "132")

QQQ_WGMMA(8, "4", "5", "6", "7", "8")
QQQ_WGMMA(16, "8", "9", "10", "11", "12")
QQQ_WGMMA(24, "12", "13", "14", "15", "16")
QQQ_WGMMA(32, "16", "17", "18", "19", "20")
QQQ_WGMMA(48, "24", "25", "26", "27", "28")
QQQ_WGMMA(64, "32", "33", "34", "35", "36")
QQQ_WGMMA(80, "40", "41", "42", "43", "44")
QQQ_WGMMA(96, "48", "49", "50", "51", "52")
QQQ_WGMMA(112, "56", "57", "58", "59", "60")
QQQ_WGMMA(128, "64", "65", "66", "67", "68")
QQQ_WGMMA(144, "72", "73", "74", "75", "76")
QQQ_WGMMA(160, "80", "81", "82", "83", "84")
QQQ_WGMMA(176, "88", "89", "90", "91", "92")
QQQ_WGMMA(192, "96", "97", "98", "99", "100")
QQQ_WGMMA(208, "104", "105", "106", "107", "108")
QQQ_WGMMA(224, "112", "113", "114", "115", "116")
QQQ_WGMMA(240, "120", "121", "122", "123", "124")
QQQ_WGMMA(256, "128", "129", "130", "131", "132")

}  // namespace wgmma
