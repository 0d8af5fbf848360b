/* A program that uses the library as any other would: with the header alone, and the CUDA driver found at run time.
 * Checks mistakes and layouts; with the argument `gpu`, products bit by bit on a GPU, or ends with NO_GPU. */
#include "qqq.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CHECK(condition)                                                                          \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            fprintf(stderr, "line %d: %s (%s)\n", __LINE__, #condition, qqq_last_error());        \
            exit(1);                                                                              \
        }                                                                                         \
    } while (0)

/* The status that test programs end with when they were not run. */
enum { NO_GPU = 77 };

static void mistakes(void) {
    CHECK(strlen(qqq_version()) > 0);
    CHECK(qqq_device_open(0, NULL) == QQQ_ERROR_ARGUMENT && strstr(qqq_last_error(), "device is NULL"));
    qqq_gemm *gemm = NULL;
    qqq_gemm_shape shape = {QQQ_CHANNEL_INT4, 0, QQQ_INT8, QQQ_FLOAT16, 0, 64, 64, 1};
    CHECK(qqq_gemm_create(NULL, &shape, &gemm) == QQQ_ERROR_ARGUMENT && gemm == NULL);
    CHECK(qqq_gemm_try_plans(NULL, &shape) == QQQ_ERROR_ARGUMENT);
    CHECK(qqq_gemm_launch(NULL, NULL, NULL) == QQQ_ERROR_ARGUMENT);
    CHECK(qqq_gemm_prepack(NULL, NULL, NULL) == QQQ_ERROR_ARGUMENT);
    CHECK(qqq_quantize_launch(NULL, NULL, NULL) == QQQ_ERROR_ARGUMENT);
    CHECK(qqq_gemm_workspace_bytes(NULL) == 0);
    CHECK(qqq_gemm_weight_bytes(NULL) == 0 && qqq_gemm_scale_count(NULL) == 0);
    CHECK(qqq_gemm_weight_bytes(&shape) == 64 * 64 && qqq_gemm_scale_count(&shape) == 64);
    qqq_weight_operands operands = {0};
    CHECK(qqq_gemm_prepack_host(&shape, &operands) == QQQ_ERROR_ARGUMENT && strstr(qqq_last_error(), "NULL"));
    shape.activations = QQQ_BFLOAT16;
    CHECK(qqq_gemm_prepack_host(&shape, &operands) == QQQ_ERROR_ARGUMENT && strstr(qqq_last_error(), "own type"));
    CHECK(qqq_gemm_weight_bytes(&shape) == 0);
    shape.activations = QQQ_FLOAT32;
    CHECK(qqq_gemm_prepack_host(&shape, &operands) == QQQ_ERROR_ARGUMENT && strstr(qqq_last_error(), "F32"));
    shape.activations = QQQ_FLOAT16, shape.weights = QQQ_CHANNEL_INT8;
    CHECK(qqq_gemm_prepack_host(&shape, &operands) == QQQ_ERROR_ARGUMENT && strstr(qqq_last_error(), "4-bit weights"));
    shape.weights = QQQ_CHANNEL_INT4, shape.k = 40;
    CHECK(qqq_gemm_prepack_host(&shape, &operands) == QQQ_ERROR_SHAPE && strstr(qqq_last_error(), "multiples of 16"));
    qqq_device_close(NULL);
    qqq_gemm_destroy(NULL);
    qqq_quantize_destroy(NULL);
}

/* The library's idea of the structures must be the header's. */
static void layouts(void) {
    printf("layouts %zu %zu %zu %zu %zu %zu %zu %zu %zu\n", sizeof(qqq_gemm_shape), offsetof(qqq_gemm_shape, n),
           sizeof(qqq_weight_operands), sizeof(qqq_gemm_operands), offsetof(qqq_gemm_operands, overlap),
           sizeof(qqq_quantize_shape), offsetof(qqq_quantize_shape, k), sizeof(qqq_quantize_operands),
           offsetof(qqq_quantize_operands, overlap));
}

/* --- the driver ---------------------------------------------------------------------------------------------- */

typedef unsigned long long address;
static int (*mem_alloc)(address *, size_t);
static int (*copy_in)(address, const void *, size_t);
static int (*copy_out)(void *, address, size_t);
static int (*set_bytes)(address, unsigned char, size_t);
static int (*synchronize)(void);

static void *symbol(void *library, const char *name) {
    void *found = dlsym(library, name);
    CHECK(found != NULL);
    return found;
}

static void open_driver(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    CHECK(library != NULL);
    int (*retain)(void **, int) = (int (*)(void **, int))symbol(library, "cuDevicePrimaryCtxRetain");
    int (*make_current)(void *) = (int (*)(void *))symbol(library, "cuCtxSetCurrent");
    mem_alloc = (int (*)(address *, size_t))symbol(library, "cuMemAlloc_v2");
    copy_in = (int (*)(address, const void *, size_t))symbol(library, "cuMemcpyHtoD_v2");
    copy_out = (int (*)(void *, address, size_t))symbol(library, "cuMemcpyDtoH_v2");
    set_bytes = (int (*)(address, unsigned char, size_t))symbol(library, "cuMemsetD8_v2");
    synchronize = (int (*)(void))symbol(library, "cuCtxSynchronize");
    void *context = NULL;
    CHECK(retain(&context, 0) == 0 && make_current(context) == 0);
}

static void *device_memory(size_t bytes, const void *content) {
    address at = 0;
    CHECK(mem_alloc(&at, bytes) == 0);
    CHECK((content ? copy_in(at, content, bytes) : set_bytes(at, 0xA5, bytes)) == 0);
    return (void *)at;
}

static void *host_copy(const void *device, size_t bytes) {
    void *host = malloc(bytes);
    CHECK(host != NULL && synchronize() == 0 && copy_out(host, (address)device, bytes) == 0);
    return host;
}

/* --- a layer ------------------------------------------------------------------------------------------------- */

static uint32_t state = 1;

static int random_int(int low, int high) {
    state = state * 1664525u + 1013904223u;
    return low + (int)((state >> 8) % (uint32_t)(high - low + 1));
}

static float from_half(uint16_t h) {
    int exponent = h >> 10 & 31, fraction = h & 1023;
    float value = exponent ? ldexpf((float)(1024 + fraction), exponent - 25) : ldexpf((float)fraction, -24);
    return h & 0x8000 ? -value : value;
}

static uint16_t small_integer_to_half(int value) {
    int magnitude = abs(value), exponent = 0;
    if (magnitude == 0) return 0;
    while (magnitude >> (exponent + 1)) ++exponent;
    return (uint16_t)((value < 0) << 15 | (exponent + 15) << 10 | ((magnitude << (10 - exponent)) & 1023));
}

enum { N = 208, K = 384, M = 300, GROUP = 128, GROUPS = K / GROUP };

static void layer(const qqq_device *device, qqq_weights weights) {
    const int grouped = weights == QQQ_GROUP_INTEGER_INT4;
    qqq_gemm_shape shape = {weights, grouped ? GROUP : 0, QQQ_INT8, QQQ_FLOAT16, 0, N, K, M};
    qqq_gemm *gemm = NULL;
    CHECK(qqq_gemm_try_plans(device, &shape) == QQQ_OK);
    CHECK(qqq_gemm_create(device, &shape, &gemm) == QQQ_OK);

    static int8_t codes[N * K], x_host[M * K];
    static uint8_t groups[N * GROUPS];
    static uint16_t input[M * K];
    float channel[N];
    const int limit = weights == QQQ_CHANNEL_INT8 ? 127 : 7;
    for (int i = 0; i < N * K; ++i) codes[i] = (int8_t)random_int(-limit, limit);
    for (int i = 0; i < N * GROUPS; ++i) groups[i] = (uint8_t)random_int(0, 16);
    for (int i = 0; i < N; ++i) channel[i] = (float)random_int(1, 1000) / 1e5f;
    for (int i = 0; i < M * K; ++i) input[i] = small_integer_to_half(random_int(-100, 100));

    qqq_weight_operands neutral = {
        device_memory(sizeof codes, codes), grouped ? device_memory(sizeof groups, groups) : NULL,
        (float *)device_memory(sizeof channel, channel), device_memory(qqq_gemm_weight_bytes(&shape), NULL),
        (float *)device_memory(4 * qqq_gemm_scale_count(&shape), NULL)};
    CHECK(qqq_gemm_prepack(gemm, &neutral, NULL) == QQQ_OK);
    qqq_weight_operands back = neutral;
    back.codes = device_memory(sizeof codes, NULL);
    back.group_scales = grouped ? device_memory(sizeof groups, NULL) : NULL;
    back.channel_scales = (float *)device_memory(sizeof channel, NULL);
    CHECK(qqq_gemm_unpack(gemm, &back, NULL) == QQQ_OK);
    /* The host packs to the same bytes. */
    qqq_weight_operands host = {codes, grouped ? groups : NULL, channel, malloc(qqq_gemm_weight_bytes(&shape)),
                                malloc(4 * qqq_gemm_scale_count(&shape))};
    CHECK(host.packed && host.packed_scales && qqq_gemm_prepack_host(&shape, &host) == QQQ_OK);
    CHECK(memcmp(host_copy(neutral.packed, qqq_gemm_weight_bytes(&shape)), host.packed, qqq_gemm_weight_bytes(&shape)) == 0);
    CHECK(memcmp(host_copy(back.codes, sizeof codes), codes, sizeof codes) == 0);
    CHECK(memcmp(host_copy(back.channel_scales, sizeof channel), channel, sizeof channel) == 0);
    if (grouped) CHECK(memcmp(host_copy(back.group_scales, sizeof groups), groups, sizeof groups) == 0);

    qqq_quantize_shape plain = {QQQ_PLAIN, QQQ_FLOAT16, 0, K};
    qqq_quantize *quantize = NULL;
    CHECK(qqq_quantize_create(device, &plain, &quantize) == QQQ_OK);
    qqq_quantize_operands q = {0};
    q.x = device_memory(sizeof input, input);
    q.q = device_memory(sizeof x_host, NULL);
    q.scales = (float *)device_memory(4 * M, NULL);
    q.m = M;
    CHECK(qqq_quantize_launch(quantize, &q, NULL) == QQQ_OK);

    qqq_gemm_operands o = {0};
    o.x = q.q, o.token_scales = q.scales, o.packed = neutral.packed, o.packed_scales = neutral.packed_scales;
    o.workspace_bytes = qqq_gemm_workspace_bytes(gemm);
    o.workspace = device_memory(o.workspace_bytes, NULL);
    CHECK(set_bytes((address)o.workspace, 0, o.workspace_bytes) == 0);
    o.m = M + 1;
    CHECK(qqq_gemm_launch(gemm, &o, NULL) == QQQ_ERROR_SHAPE && strstr(qqq_last_error(), "300"));
    static const int tokens[] = {1, 7, 64, 300};
    for (int t = 0; t < 4; ++t) {
        o.m = tokens[t], o.y = device_memory(2 * (size_t)M * N, NULL), o.overlap = t % 2;
        CHECK(qqq_gemm_launch(gemm, &o, NULL) == QQQ_OK);
        const uint16_t *y = host_copy(o.y, 2 * (size_t)M * N);
        const int8_t *x = host_copy(q.q, sizeof x_host);
        const float *scales = host_copy(q.scales, 4 * M);
        for (int i = 0; i < tokens[t]; ++i) {
            for (int j = 0; j < N; ++j) {
                int sum = 0;
                for (int k = 0; k < K; ++k) {
                    int w = codes[j * K + k] * (grouped ? groups[j * GROUPS + k / GROUP] : 1);
                    sum += x[i * K + k] * w;
                }
                const float expected = (float)sum * channel[j] * scales[i], got = from_half(y[i * N + j]);
                if (!(fabsf(got - expected) <= fabsf(expected) / 2048.0f + 1e-7f)) {
                    fprintf(stderr, "token %d of %d, channel %d: %g for %g\n", i, tokens[t], j, got, expected);
                    exit(1);
                }
            }
        }
        CHECK(y[tokens[t] * N] == 0xA5A5 || tokens[t] == M);
    }

    struct timespec begin, end;
    CHECK(synchronize() == 0);
    o.m = 1, o.overlap = 1;
    enum { LAUNCHES = 500 };
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (int i = 0; i < LAUNCHES; ++i) (void)qqq_gemm_launch(gemm, &o, NULL);
    clock_gettime(CLOCK_MONOTONIC, &end);
    const double us = (double)(end.tv_sec - begin.tv_sec) * 1e6 + (double)(end.tv_nsec - begin.tv_nsec) / 1e3;
    printf("weights %d: products equal; a launch takes the host %.2f us\n", weights, us / LAUNCHES);
    CHECK(synchronize() == 0);
    qqq_quantize_destroy(quantize);
    qqq_gemm_destroy(gemm);
}

/* Weights of every kind for 16-bit activations and for int8, packed on the host: a line of sums of the bytes, which the
 * library's own packing must have as well. */
static void packed(void) {
    static int8_t codes[N * K];
    static uint16_t halves[N * GROUPS];
    static uint8_t integers[N * GROUPS];
    float channel[N];
    for (int i = 0; i < N * K; ++i) codes[i] = (int8_t)((i * 7 + i / 5) % 15 - 7);
    for (int i = 0; i < N * GROUPS; ++i) integers[i] = (uint8_t)(i % 17), halves[i] = small_integer_to_half(i % 17);
    for (int i = 0; i < N; ++i) channel[i] = (float)(i + 1) / 1024.0f;
    static const struct {
        qqq_weights weights;
        qqq_type activations, output;
    } kinds[] = {{QQQ_CHANNEL_INT4, QQQ_FLOAT16, QQQ_FLOAT16},     {QQQ_CHANNEL_INT4, QQQ_BFLOAT16, QQQ_BFLOAT16},
                 {QQQ_GROUP_HALF_INT4, QQQ_FLOAT16, QQQ_FLOAT16},  {QQQ_GROUP_HALF_INT4, QQQ_BFLOAT16, QQQ_BFLOAT16},
                 {QQQ_CHANNEL_INT4, QQQ_INT8, QQQ_FLOAT16},        {QQQ_GROUP_INTEGER_INT4, QQQ_INT8, QQQ_BFLOAT16},
                 {QQQ_GROUP_HALF_INT4, QQQ_INT8, QQQ_FLOAT16},     {QQQ_CHANNEL_INT8, QQQ_INT8, QQQ_FLOAT16}};
    printf("packed");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; ++i) {
        const qqq_weights weights = kinds[i].weights;
        const int grouped = weights == QQQ_GROUP_INTEGER_INT4 || weights == QQQ_GROUP_HALF_INT4;
        qqq_gemm_shape shape = {weights, grouped ? GROUP : 0, kinds[i].activations, kinds[i].output, 0, N, K, 1};
        const size_t bytes = qqq_gemm_weight_bytes(&shape), scales = qqq_gemm_scale_count(&shape);
        uint8_t *out = malloc(bytes);
        float *out_scales = malloc(4 * scales);
        CHECK(bytes > 0 && scales == 256 && out && out_scales);
        void *group = weights == QQQ_GROUP_INTEGER_INT4 ? (void *)integers : grouped ? (void *)halves : NULL;
        qqq_weight_operands operands = {codes, group, channel, out, out_scales};
        CHECK(qqq_gemm_prepack_host(&shape, &operands) == QQQ_OK);
        uint32_t sum = 0;
        for (size_t at = 0; at < bytes; ++at) sum = sum * 31u + out[at];
        uint32_t scale_sum = 0;
        for (size_t at = 0; at < scales; ++at) scale_sum = scale_sum * 31u + (uint32_t)(out_scales[at] * 16384.0f);
        printf(" %zu:%u:%u", bytes, sum, scale_sum);
        free(out);
        free(out_scales);
    }
    printf("\n");
}

/* W4A16: float16 activations, whose sums are exact here. */
static void half_layer(const qqq_device *device, int batch_invariant) {
    qqq_gemm_shape shape = {QQQ_CHANNEL_INT4, 0, QQQ_FLOAT16, QQQ_FLOAT16, batch_invariant, N, K, M};
    qqq_gemm *gemm = NULL;
    CHECK(qqq_gemm_try_plans(device, &shape) == QQQ_OK);
    CHECK(qqq_gemm_create(device, &shape, &gemm) == QQQ_OK);
    static int8_t codes[N * K];
    static int values[M * K];
    static uint16_t x[M * K];
    float channel[N];
    for (int i = 0; i < N * K; ++i) codes[i] = (int8_t)random_int(-8, 7);
    for (int i = 0; i < M * K; ++i) values[i] = random_int(-100, 100), x[i] = small_integer_to_half(values[i]);
    for (int i = 0; i < N; ++i) channel[i] = (float)random_int(1, 1000) / 1e5f;
    const size_t bytes = qqq_gemm_weight_bytes(&shape), scales = 4 * qqq_gemm_scale_count(&shape);
    qqq_weight_operands host = {codes, NULL, channel, malloc(bytes), malloc(scales)};
    CHECK(host.packed && host.packed_scales && qqq_gemm_prepack_host(&shape, &host) == QQQ_OK);
    CHECK(qqq_gemm_prepack(gemm, &host, NULL) == QQQ_ERROR_ARGUMENT && strstr(qqq_last_error(), "on the host"));

    qqq_gemm_operands o = {0};
    o.x = device_memory(sizeof x, x), o.packed = device_memory(bytes, host.packed);
    o.packed_scales = (float *)device_memory(scales, host.packed_scales);
    o.workspace_bytes = qqq_gemm_workspace_bytes(gemm);
    o.workspace = device_memory(o.workspace_bytes, NULL);
    CHECK(set_bytes((address)o.workspace, 0, o.workspace_bytes) == 0);
    static const int tokens[] = {1, 7, 64, 300};
    for (int t = 0; t < 4; ++t) {
        o.m = tokens[t], o.y = device_memory(2 * (size_t)M * N, NULL), o.overlap = t % 2;
        CHECK(qqq_gemm_launch(gemm, &o, NULL) == QQQ_OK);
        const uint16_t *y = host_copy(o.y, 2 * (size_t)M * N);
        for (int i = 0; i < tokens[t]; ++i) {
            for (int j = 0; j < N; ++j) {
                int sum = 0;
                for (int k = 0; k < K; ++k) sum += values[i * K + k] * codes[j * K + k];
                const float expected = (float)sum * channel[j], got = from_half(y[i * N + j]);
                CHECK(fabsf(got - expected) <= fabsf(expected) / 2048.0f + 1e-7f);
            }
        }
        CHECK(y[tokens[t] * N] == 0xA5A5 || tokens[t] == M);
    }
    printf("16-bit activations%s: products equal\n", batch_invariant ? ", batch-invariant" : "");
    qqq_gemm_destroy(gemm);
}

static int products(void) {
    qqq_device *device = NULL;
    const qqq_status status = qqq_device_open(0, &device);
    if (status == QQQ_ERROR_DEVICE) {
        CHECK(device == NULL && strlen(qqq_last_error()) > 0);
        printf("%s\n", qqq_last_error());
        return NO_GPU;
    }
    CHECK(status == QQQ_OK);
    open_driver();
    qqq_gemm *gemm = NULL;
    qqq_gemm_shape shape = {QQQ_GROUP_HALF_INT4, 48, QQQ_INT8, QQQ_FLOAT16, 0, 64, 128, 1};
    CHECK(qqq_gemm_create(device, &shape, &gemm) == QQQ_ERROR_ARGUMENT && strstr(qqq_last_error(), "48"));
    shape.group_size = 128, shape.n = 60;
    CHECK(qqq_gemm_create(device, &shape, &gemm) == QQQ_ERROR_SHAPE && strstr(qqq_last_error(), "multiples of 16"));
    layer(device, QQQ_CHANNEL_INT4);
    layer(device, QQQ_GROUP_INTEGER_INT4);
    layer(device, QQQ_CHANNEL_INT8);
    half_layer(device, 0);
    half_layer(device, 1);
    qqq_device_close(device);
    return 0;
}

int main(int count, char **arguments) {
    if (count == 2 && strcmp(arguments[1], "gpu") == 0) return products();
    mistakes();
    layouts();
    packed();
    return 0;
}
