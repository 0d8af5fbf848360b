/* The GPU kernels of qqq: W4A8, W8A8 and W4A16 matrix products, weight prepacking, and quantization of activations.
 *
 * Addresses are device memory of the GPU that was opened, aligned to 16 bytes; a stream is a CUstream (or cudaStream_t) of
 * its primary context, or NULL for the default stream. Functions that take a stream only enqueue work: they neither
 * allocate, nor compile, nor wait, and may be captured in a CUDA graph. What they read and write must stay valid until the
 * work has run. All functions may be called from any thread; a handle may be used by several at once, and must not be used
 * while or after it is destroyed.
 */
#ifndef QQQ_H
#define QQQ_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum qqq_status {
    QQQ_OK = 0,
    /* A null pointer, a value that no enumerator has, or types that no kernel takes together. */
    QQQ_ERROR_ARGUMENT = 1,
    /* A shape, alignment or size that the kernels do not take. */
    QQQ_ERROR_SHAPE = 2,
    /* No driver, no such GPU, or one without kernels. */
    QQQ_ERROR_DEVICE = 3,
    /* A kernel must be compiled and NVRTC is missing, or it failed. */
    QQQ_ERROR_COMPILER = 4,
    /* The CUDA driver refused something. */
    QQQ_ERROR_DRIVER = 5,
    /* A defect of the library. */
    QQQ_ERROR_INTERNAL = 6
} qqq_status;

typedef enum qqq_type { QQQ_FLOAT16 = 0, QQQ_BFLOAT16 = 1, QQQ_FLOAT32 = 2, QQQ_INT8 = 3 } qqq_type;

/* How weights are stored. With c the code, g the group's scale and s the channel's, a weight is s * q, where q is as below with
 * int8 activations. With 16-bit ones it is c, or c * g (|c * g| at most 127) rounded to the activations' type. */
typedef enum qqq_weights {
    /* c, 4 bits */
    QQQ_CHANNEL_INT4 = 0,
    /* c * g, 4 bits; g an integer of 0 to 16 (uint8) */
    QQQ_GROUP_INTEGER_INT4 = 1,
    /* c * g rounded to the nearest integer, ties to even, 4 bits; g float16 */
    QQQ_GROUP_HALF_INT4 = 2,
    /* c, 8 bits */
    QQQ_CHANNEL_INT8 = 3
} qqq_weights;

typedef struct qqq_device qqq_device;
typedef struct qqq_gemm qqq_gemm;
typedef struct qqq_quantize qqq_quantize;

/* The library's version; static. */
const char *qqq_version(void);

/* What went wrong in this thread's last call that failed; valid until its next call that fails. */
const char *qqq_last_error(void);

/* Opens GPU number `ordinal` (its primary context, as the CUDA runtime and PyTorch use it). */
qqq_status qqq_device_open(int ordinal, qqq_device **device);
/* Handles made from the device stay valid. NULL is ignored, here and in the other functions that destroy. */
void qqq_device_close(qqq_device *device);

/* --- products: y = x W^T + bias ---------------------------------------------------------------------------- */

typedef struct qqq_gemm_shape {
    qqq_weights weights;
    /* 32, 64 or 128; 0 for weights without groups. */
    int group_size;
    /* Of x: QQQ_INT8 (with a scale a token), or QQQ_FLOAT16 or QQQ_BFLOAT16, which go with QQQ_CHANNEL_INT4 and
     * QQQ_GROUP_HALF_INT4. */
    qqq_type activations;
    /* Of y: QQQ_FLOAT16 or QQQ_BFLOAT16; with 16-bit activations, theirs. */
    qqq_type output;
    /* Not 0: sums are added in one order, so that a token's outputs depend neither on the other tokens nor on their number.
     * It costs time where there are few tokens. Sums of int8 are exact, and need no such order. */
    int batch_invariant;
    /* Output and input channels: multiples of 16; k at most 65,536. */
    int64_t n, k;
    /* Most tokens of a launch, 1 to 65,536. */
    int64_t most_tokens;
} qqq_gemm_shape;

/* Measures on the device which kernels are fastest for 1 to most_tokens tokens, where that is not known yet, instead of
 * estimating it: for gemms that are created afterwards, and kept on disk. About a second and a few hundred
 * megabytes of the device's memory; where these are missing, the estimate stands. Does nothing for 16-bit activations, whose
 * results depend on the kernel, and for small shapes. Not while a stream is captured. */
qqq_status qqq_gemm_try_plans(const qqq_device *device, const qqq_gemm_shape *shape);
/* Compiles (or takes from the cache) and loads every kernel that 1 to most_tokens tokens need; takes a while. */
qqq_status qqq_gemm_create(const qqq_device *device, const qqq_gemm_shape *shape, qqq_gemm **gemm);
void qqq_gemm_destroy(qqq_gemm *gemm);

/* Bytes of the prepacked weights; 0 for types that no kernel takes together. most_tokens is of no concern. */
size_t qqq_gemm_weight_bytes(const qqq_gemm_shape *shape);
/* Elements of the prepacked channel scales. */
size_t qqq_gemm_scale_count(const qqq_gemm_shape *shape);
/* Bytes of the workspace. The caller sets it to zero once; every launch leaves it fit for the next. Products on the same
 * stream may share one that is large enough for each; launches that may run at the same time must not. */
size_t qqq_gemm_workspace_bytes(const qqq_gemm *gemm);

/* A layer's weights in the neutral form and prepacked; reads one and writes the other. */
typedef struct qqq_weight_operands {
    /* n x k int8, row-major: -8 to 7 for 4-bit weights. */
    void *codes;
    /* n x ceil(k / group_size): uint8 or float16; NULL without groups. */
    void *group_scales;
    /* n */
    float *channel_scales;
    /* qqq_gemm_weight_bytes() */
    void *packed;
    /* qqq_gemm_scale_count() */
    float *packed_scales;
} qqq_weight_operands;

/* On the GPU; for int8 activations. */
qqq_status qqq_gemm_prepack(const qqq_gemm *gemm, const qqq_weight_operands *operands, void *stream);
/* The way back: for weights that are sharded or stored again. */
qqq_status qqq_gemm_unpack(const qqq_gemm *gemm, const qqq_weight_operands *operands, void *stream);
/* On the host, for all activations; needs no GPU. The operands' addresses are host memory; reads the neutral form, of which
 * codes and scales are checked, and writes the other. */
qqq_status qqq_gemm_prepack_host(const qqq_gemm_shape *shape, const qqq_weight_operands *operands);

typedef struct qqq_gemm_operands {
    /* m x k of the activations' type, row-major. */
    const void *x;
    /* m; NULL for 16-bit activations. */
    const float *token_scales;
    const void *packed;
    const float *packed_scales;
    /* n, or NULL. */
    const float *bias;
    /* m x n of the output type, row-major. */
    void *y;
    int64_t m;
    void *workspace;
    size_t workspace_bytes;
    /* Not 0: the launch may begin while the one before it on the stream still runs (programmatic dependent launch). Until
     * that one has finished it reads packed, packed_scales and bias alone: whatever wrote these must have finished before. */
    int overlap;
} qqq_gemm_operands;

qqq_status qqq_gemm_launch(const qqq_gemm *gemm, const qqq_gemm_operands *operands, void *stream);

/* --- activations to int8, one scale a token ----------------------------------------------------------------- */

typedef enum qqq_operation {
    /* x */
    QQQ_PLAIN = 0,
    /* RMSNorm of x, or of x + residual */
    QQQ_NORM = 1,
    /* silu(gate) * up, x = [gate | up] */
    QQQ_GATED = 2
} qqq_operation;

typedef struct qqq_quantize_shape {
    qqq_operation operation;
    /* Of x: QQQ_FLOAT16 or QQQ_BFLOAT16. */
    qqq_type input;
    /* Not 0: every result between input and int8, and the scale, is rounded to the input's type, as a sequence of 16-bit
     * operations would do it; 0: float32. */
    int stepwise;
    /* Values of a token's result, a multiple of 16, at most 65,536. */
    int64_t k;
} qqq_quantize_shape;

qqq_status qqq_quantize_create(const qqq_device *device, const qqq_quantize_shape *shape, qqq_quantize **quantize);
void qqq_quantize_destroy(qqq_quantize *quantize);

typedef struct qqq_quantize_operands {
    /* m x k, for QQQ_GATED m x 2k. */
    const void *x;
    /* For QQQ_NORM: m x k of the input's type, or NULL. */
    const void *residual;
    /* With residual: m x k, receives x + residual; may be residual itself. */
    void *new_residual;
    /* For QQQ_NORM: k factors of type norm_type. */
    const void *norm;
    qqq_type norm_type;
    float epsilon;
    /* m x k int8 */
    void *q;
    /* m: max |row| / 127 */
    float *scales;
    /* m: the sum of a row of q; or NULL. */
    int32_t *sums;
    int64_t m;
    /* As for products; nothing is read or written until the launch before has finished. */
    int overlap;
} qqq_quantize_operands;

qqq_status qqq_quantize_launch(const qqq_quantize *quantize, const qqq_quantize_operands *operands, void *stream);

#ifdef __cplusplus
}
#endif

#endif
