//! The GPU kernels behind a C ABI, for programs that have their own tensors and streams. `include/qqq.h` is the
//! documentation; here is what stands behind it.
//!
//! Enumerations cross the border as `c_int` and are checked, pointers may be null and are checked, and a panic becomes
//! an error: nothing that a caller passes by mistake is undefined, save addresses that are no such memory. A launch never
//! allocates, compiles or waits, and no function keeps what it was given.
//!
//! # Example
//! Weights are prepacked on the host, which needs no GPU:
//!
//! ```
//! use qqq_capi::{Status, qqq_gemm_prepack_host, qqq_gemm_shape, qqq_gemm_weight_bytes, qqq_weight_operands};
//!
//! // QQQ_CHANNEL_INT4 weights, QQQ_FLOAT16 activations and output.
//! let (n, k) = (64, 128);
//! let shape = qqq_gemm_shape {
//!     weights: 0,
//!     group_size: 0,
//!     activations: 0,
//!     output: 0,
//!     batch_invariant: 1,
//!     n,
//!     k,
//!     most_tokens: 16,
//! };
//! let (mut codes, mut scales) = (vec![-3i8; (n * k) as usize], vec![0.01f32; 64]);
//! // SAFETY: the shape lives.
//! let mut packed = vec![0u8; unsafe { qqq_gemm_weight_bytes(&shape) }];
//! assert_eq!(packed.len(), (n * k / 2) as usize);
//! let mut packed_scales = vec![0.0f32; 64];
//! let operands = qqq_weight_operands {
//!     codes: codes.as_mut_ptr().cast(),
//!     group_scales: std::ptr::null_mut(),
//!     channel_scales: scales.as_mut_ptr(),
//!     packed: packed.as_mut_ptr().cast(),
//!     packed_scales: packed_scales.as_mut_ptr(),
//! };
//! // SAFETY: the operands are memory of these sizes.
//! let status = unsafe { qqq_gemm_prepack_host(&shape, &operands) };
//! assert_eq!(status, Status::Ok);
//! assert_eq!(packed_scales, scales);
//! // Codes are stored + 8.
//! assert!(packed.iter().all(|byte| *byte == 0x55));
//! ```

mod device;
mod gemm;
mod quantize;
mod status;

pub use device::{qqq_device, qqq_device_close, qqq_device_open};
pub use gemm::{
    qqq_gemm, qqq_gemm_create, qqq_gemm_destroy, qqq_gemm_launch, qqq_gemm_operands, qqq_gemm_prepack,
    qqq_gemm_prepack_host, qqq_gemm_scale_count, qqq_gemm_shape, qqq_gemm_try_plans, qqq_gemm_unpack,
    qqq_gemm_weight_bytes, qqq_gemm_workspace_bytes, qqq_weight_operands,
};
pub use quantize::{
    qqq_quantize, qqq_quantize_create, qqq_quantize_destroy, qqq_quantize_launch, qqq_quantize_operands,
    qqq_quantize_shape,
};
pub use status::{Status, qqq_last_error, qqq_version};
