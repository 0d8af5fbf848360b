//! Quantization of activations.

use std::ffi::{c_int, c_void};

use cudarc::driver::sys::CUstream;
use qqq_cuda::DType;
use qqq_cuda::dtype::HALVES;
use qqq_cuda::quantize::{Operation, Precision, QuantizeKernel, QuantizeOperands};

use crate::device::qqq_device;
use crate::status::{Status, call, element, enumerator, give, reference, size};

/// `qqq_quantize_shape` of `qqq.h`.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct qqq_quantize_shape {
    /// What is computed before int8, a value of `qqq_operation`.
    pub operation: c_int,
    /// Type of `x`, a value of `qqq_type`.
    pub input: c_int,
    /// Whether results between are rounded to the input's type.
    pub stepwise: c_int,
    /// Values of a token's result.
    pub k: i64,
}

/// `qqq_quantize_operands` of `qqq.h`.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct qqq_quantize_operands {
    /// `m x k`, gated `m x 2k`.
    pub x: *const c_void,
    /// `m x k`, or null.
    pub residual: *const c_void,
    /// `m x k`, null without `residual`.
    pub new_residual: *mut c_void,
    /// `k`, or null.
    pub norm: *const c_void,
    /// Type of the norm's weights, a value of `qqq_type`.
    pub norm_type: c_int,
    /// What RMSNorm adds to the mean square; other operations do not look at it.
    pub epsilon: f32,
    /// `m x k` int8.
    pub q: *mut c_void,
    /// What one int8 step of each of the `m` rows stands for.
    pub scales: *mut f32,
    /// `m`, or null.
    pub sums: *mut i32,
    /// Tokens: rows of input and output.
    pub m: i64,
    /// Programmatic dependent launch.
    pub overlap: c_int,
}

/// An operation with its kernel.
#[allow(non_camel_case_types)]
pub struct qqq_quantize(QuantizeKernel);

/// See `qqq.h`.
///
/// # Safety
/// Pointers must be null, or to live values of their type.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qqq_quantize_create(
    device: *const qqq_device,
    shape: *const qqq_quantize_shape,
    quantize: *mut *mut qqq_quantize,
) -> Status {
    let make = || {
        // SAFETY: the caller's promise, for both.
        let (device, shape) =
            unsafe { (reference(device, "device")?.0.device(), reference(shape, "shape")?) };
        let operation = enumerator("operation", shape.operation, &Operation::ALL)?;
        let input = element("input", shape.input, &HALVES)?;
        let precision = if shape.stepwise != 0 { Precision::Stepwise } else { Precision::Float32 };
        Ok(qqq_quantize(QuantizeKernel::new(device, operation, input, precision, size("k", shape.k)?)?))
    };
    // SAFETY: the caller's promise.
    unsafe { give(quantize, "quantize", make) }
}

/// See `qqq.h`.
///
/// # Safety
/// `quantize` must be null, or of [`qqq_quantize_create`] and not destroyed before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qqq_quantize_destroy(quantize: *mut qqq_quantize) {
    if !quantize.is_null() {
        // SAFETY: the caller's promise.
        drop(unsafe { Box::from_raw(quantize) });
    }
}

/// See `qqq.h`.
///
/// # Safety
/// The handle must be null or live, addresses device memory of the sizes that `qqq.h` states, and the stream one of the
/// device's primary context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qqq_quantize_launch(
    quantize: *const qqq_quantize,
    operands: *const qqq_quantize_operands,
    stream: *mut c_void,
) -> Status {
    call(|| {
        // SAFETY: the caller's promise, for both.
        let (kernel, o) = unsafe { (&reference(quantize, "quantize")?.0, reference(operands, "operands")?) };
        let operands = QuantizeOperands {
            x: o.x as u64,
            residual: o.residual as u64,
            new_residual: o.new_residual as u64,
            norm: o.norm as u64,
            norm_type: element("norm_type", o.norm_type, &[DType::F16, DType::BF16, DType::F32])?,
            epsilon: o.epsilon,
            q: o.q as u64,
            scale: o.scales as u64,
            sum: o.sums as u64,
            m: size("m", o.m)?,
        };
        // SAFETY: the caller's promise.
        Ok(unsafe { kernel.launch(stream as CUstream, &operands, o.overlap != 0) }?)
    })
}
