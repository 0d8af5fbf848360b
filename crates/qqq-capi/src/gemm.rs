//! Products and their weights.

use std::ffi::{c_int, c_void};

use cudarc::driver::sys::CUstream;
use qqq_cuda::gemm::prepack::Direction;
use qqq_cuda::gemm::{
    GemmOperands, GemmPlans, GemmSpec, GemmTypes, OutputType, PrepackKernel, PrepackOperands, WeightKind,
};

use crate::device::qqq_device;
use crate::status::{Failure, Status, argument, call, enumerator, give, reference, size};

/// `qqq_gemm_shape` of `qqq.h`.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct qqq_gemm_shape {
    /// `qqq_weights`.
    pub weights: c_int,
    /// Input channels of a group, or 0.
    pub group_size: c_int,
    /// `qqq_type`.
    pub output: c_int,
    /// Output channels.
    pub n: i64,
    /// Input channels.
    pub k: i64,
    /// Most tokens of a launch.
    pub most_tokens: i64,
}

/// `qqq_weight_operands` of `qqq.h`.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct qqq_weight_operands {
    /// `n x k` int8.
    pub codes: *mut c_void,
    /// `n x ceil(k / group)`, or null.
    pub group_scales: *mut c_void,
    /// `n`.
    pub channel_scales: *mut f32,
    /// Prepacked weights.
    pub packed: *mut c_void,
    /// Prepacked channel scales.
    pub packed_scales: *mut f32,
}

/// `qqq_gemm_operands` of `qqq.h`.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct qqq_gemm_operands {
    /// `m x k` int8.
    pub x: *const c_void,
    /// `m`.
    pub token_scales: *const f32,
    /// Prepacked weights.
    pub packed: *const c_void,
    /// Prepacked channel scales.
    pub packed_scales: *const f32,
    /// `n`, or null.
    pub bias: *const f32,
    /// `m x n`.
    pub y: *mut c_void,
    /// Tokens.
    pub m: i64,
    /// Zero before the first launch.
    pub workspace: *mut c_void,
    /// Its size.
    pub workspace_bytes: usize,
    /// Programmatic dependent launch.
    pub overlap: c_int,
}

/// A shape with its kernels.
#[allow(non_camel_case_types)]
pub struct qqq_gemm {
    plans: GemmPlans,
    kind: WeightKind,
    pack: PrepackKernel,
    unpack: PrepackKernel,
}

fn weight_kind(shape: &qqq_gemm_shape) -> Result<WeightKind, Failure> {
    let grouped = |kind: fn(usize) -> WeightKind| match shape.group_size {
        32 | 64 | 128 => Ok(kind(shape.group_size as usize)),
        other => Err(argument(format!("group_size is {other}: the kernels take 32, 64 or 128"))),
    };
    let channel = |kind| match shape.group_size {
        0 => Ok(kind),
        other => Err(argument(format!("group_size is {other}, and these weights have no groups"))),
    };
    match enumerator("weights", shape.weights, &[0, 1, 2, 3])? {
        0 => channel(WeightKind::Channel4),
        1 => grouped(WeightKind::GroupInteger4),
        2 => grouped(WeightKind::GroupHalf4),
        _ => channel(WeightKind::Channel8),
    }
}

/// See `qqq.h`.
///
/// # Safety
/// Pointers must be null, or to live values of their type.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qqq_gemm_create(
    device: *const qqq_device,
    shape: *const qqq_gemm_shape,
    gemm: *mut *mut qqq_gemm,
) -> Status {
    let make = || {
        // SAFETY: the caller's promise, for both.
        let (planner, shape) = unsafe { (&reference(device, "device")?.0, reference(shape, "shape")?) };
        let device = planner.device();
        let kind = weight_kind(shape)?;
        let output = enumerator("output", shape.output, &[OutputType::Float16, OutputType::Bfloat16])?;
        let (n, k) = (size("n", shape.n)?, size("k", shape.k)?);
        let most_tokens = size("most_tokens", shape.most_tokens)?;
        Ok(qqq_gemm {
            plans: GemmPlans::new(
                planner,
                &GemmSpec::new(GemmTypes::int8(kind, output), (n, k)),
                most_tokens,
            )?,
            kind,
            pack: PrepackKernel::new(device, kind, Direction::Pack)?,
            unpack: PrepackKernel::new(device, kind, Direction::Unpack)?,
        })
    };
    // SAFETY: the caller's promise.
    unsafe { give(gemm, "gemm", make) }
}

/// See `qqq.h`.
///
/// # Safety
/// `gemm` must be null, or of [`qqq_gemm_create`] and not destroyed before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qqq_gemm_destroy(gemm: *mut qqq_gemm) {
    if !gemm.is_null() {
        // SAFETY: the caller's promise.
        drop(unsafe { Box::from_raw(gemm) });
    }
}

/// A number that a handle knows; 0 for no handle.
///
/// # Safety
/// `gemm` must be null, or a live handle.
unsafe fn number(gemm: *const qqq_gemm, number: impl FnOnce(&qqq_gemm) -> usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { gemm.as_ref() }.map_or(0, number)
}

/// See `qqq.h`.
///
/// # Safety
/// `gemm` must be null, or a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qqq_gemm_weight_bytes(gemm: *const qqq_gemm) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        number(gemm, |g| {
            let (n, k) = g.plans.shape();
            PrepackKernel::chunks_bytes(g.kind, n, k)
        })
    }
}

/// See `qqq.h`.
///
/// # Safety
/// `gemm` must be null, or a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qqq_gemm_scale_count(gemm: *const qqq_gemm) -> usize {
    // SAFETY: the caller's promise.
    unsafe { number(gemm, |g| g.plans.shape().0.next_multiple_of(64)) }
}

/// See `qqq.h`.
///
/// # Safety
/// `gemm` must be null, or a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qqq_gemm_workspace_bytes(gemm: *const qqq_gemm) -> usize {
    // SAFETY: the caller's promise.
    unsafe { number(gemm, |g| g.plans.workspace_bytes()) }
}

/// Either way between the forms of a layer's weights.
///
/// # Safety
/// As for [`qqq_gemm_prepack`].
unsafe fn repack(
    gemm: *const qqq_gemm,
    operands: *const qqq_weight_operands,
    stream: *mut c_void,
    kernel: impl FnOnce(&qqq_gemm) -> &PrepackKernel,
) -> Status {
    call(|| {
        // SAFETY: the caller's promise, for both.
        let (gemm, o) = unsafe { (reference(gemm, "gemm")?, reference(operands, "operands")?) };
        let (n, k) = gemm.plans.shape();
        let operands = PrepackOperands {
            codes: o.codes as u64,
            scales: o.group_scales as u64,
            chunks: o.packed as u64,
            channel_scale: o.channel_scales as u64,
            padded_scale: o.packed_scales as u64,
            n,
            k,
        };
        // SAFETY: the caller's promise.
        Ok(unsafe { kernel(gemm).launch(stream as CUstream, &operands) }?)
    })
}

/// See `qqq.h`.
///
/// # Safety
/// Handles must be null or live, addresses device memory of the sizes that `qqq.h` states, and the stream one of the
/// device's primary context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qqq_gemm_prepack(
    gemm: *const qqq_gemm,
    operands: *const qqq_weight_operands,
    stream: *mut c_void,
) -> Status {
    // SAFETY: the caller's promise.
    unsafe { repack(gemm, operands, stream, |g| &g.pack) }
}

/// See `qqq.h`.
///
/// # Safety
/// As for [`qqq_gemm_prepack`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qqq_gemm_unpack(
    gemm: *const qqq_gemm,
    operands: *const qqq_weight_operands,
    stream: *mut c_void,
) -> Status {
    // SAFETY: the caller's promise.
    unsafe { repack(gemm, operands, stream, |g| &g.unpack) }
}

/// See `qqq.h`.
///
/// # Safety
/// As for [`qqq_gemm_prepack`]; the workspace must not be in use by a launch that may run at the same time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qqq_gemm_launch(
    gemm: *const qqq_gemm,
    operands: *const qqq_gemm_operands,
    stream: *mut c_void,
) -> Status {
    call(|| {
        // SAFETY: the caller's promise, for both.
        let (gemm, o) = unsafe { (reference(gemm, "gemm")?, reference(operands, "operands")?) };
        let (n, k) = gemm.plans.shape();
        let operands = GemmOperands {
            x: o.x as u64,
            token_scale: o.token_scales as u64,
            y: o.y as u64,
            weights: o.packed as u64,
            channel_scale: o.packed_scales as u64,
            bias: o.bias as u64,
            m: size("m", o.m)?,
            n,
            k,
        };
        let workspace = (o.workspace as u64, o.workspace_bytes);
        // SAFETY: the caller's promise.
        Ok(unsafe { gemm.plans.launch(stream as CUstream, &operands, workspace, o.overlap != 0) }?)
    })
}
