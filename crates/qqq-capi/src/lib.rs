//! The GPU kernels behind a C ABI, for programs that have their own tensors and streams. `include/qqq.h` is the
//! documentation; here is what stands behind it.
//!
//! Enumerations cross the border as `c_int` and are checked, pointers may be null and are checked, and a panic becomes
//! an error: nothing that a caller passes by mistake is undefined, save addresses that are no such memory.

mod device;
mod gemm;
mod quantize;
mod status;

pub use device::{qqq_device, qqq_device_close, qqq_device_open};
pub use gemm::{
    qqq_gemm, qqq_gemm_create, qqq_gemm_destroy, qqq_gemm_launch, qqq_gemm_operands, qqq_gemm_prepack,
    qqq_gemm_prepack_host, qqq_gemm_scale_count, qqq_gemm_shape, qqq_gemm_unpack, qqq_gemm_weight_bytes,
    qqq_gemm_workspace_bytes, qqq_weight_operands,
};
pub use quantize::{
    qqq_quantize, qqq_quantize_create, qqq_quantize_destroy, qqq_quantize_launch, qqq_quantize_operands,
    qqq_quantize_shape,
};
pub use status::{Status, qqq_last_error, qqq_version};
