//! Products and their weights.

use std::ffi::{c_int, c_void};

use cudarc::driver::sys::CUstream;
use half::f16;
use qqq_cuda::DType;
use qqq_cuda::dtype::{ACTIVATIONS, HALVES};
use qqq_cuda::gemm::prepack::Direction;
use qqq_cuda::gemm::{
    GemmOperands, GemmPlans, GemmSpec, GemmTypes, PackedWeights, PrepackKernel, PrepackOperands, SumOrder,
    WeightKind, check_shape,
};
use qqq_formats::{CodeBits, QuantizedWeight, Scales};

use crate::device::qqq_device;
use crate::status::{Failure, Status, argument, call, element, enumerator, give, reference, size};

/// `qqq_gemm_shape` of `qqq.h`.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct qqq_gemm_shape {
    /// Form of the weights, a value of `qqq_weights`.
    pub weights: c_int,
    /// Input channels of a group, or 0.
    pub group_size: c_int,
    /// Type of the activations, a value of `qqq_type`.
    pub activations: c_int,
    /// Type of the output, a value of `qqq_type`.
    pub output: c_int,
    /// Whether a token's outputs depend on no other token.
    pub batch_invariant: c_int,
    /// Output channels: a row of the output has as many values.
    pub n: i64,
    /// Input channels: a token has as many activations.
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
    /// Scales of the `n` output channels.
    pub channel_scales: *mut f32,
    /// Prepacked weights, `qqq_gemm_weight_bytes` bytes.
    pub packed: *mut c_void,
    /// Prepacked channel scales.
    pub packed_scales: *mut f32,
}

/// `qqq_gemm_operands` of `qqq.h`.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct qqq_gemm_operands {
    /// `m x k`.
    pub x: *const c_void,
    /// `m`, or null.
    pub token_scales: *const f32,
    /// Prepacked weights, as `qqq_gemm_prepack` writes them.
    pub packed: *const c_void,
    /// Prepacked channel scales.
    pub packed_scales: *const f32,
    /// `n`, or null.
    pub bias: *const f32,
    /// `m x n`.
    pub y: *mut c_void,
    /// Tokens: rows of the activations and of the output.
    pub m: i64,
    /// Zero before the first launch.
    pub workspace: *mut c_void,
    /// Bytes of the workspace, at least what `qqq_gemm_workspace_bytes` gives.
    pub workspace_bytes: usize,
    /// Programmatic dependent launch.
    pub overlap: c_int,
}

/// A shape with its kernels.
#[allow(non_camel_case_types)]
pub struct qqq_gemm {
    plans: GemmPlans,
    /// For int8 activations.
    prepack: Option<Prepack>,
}

/// Both ways between the forms of a layer's weights.
struct Prepack {
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

/// What a shape asks for.
fn spec(shape: &qqq_gemm_shape) -> Result<GemmSpec, Failure> {
    let activations = element("activations", shape.activations, &ACTIVATIONS)?;
    let output = element("output", shape.output, &HALVES)?;
    let types = GemmTypes::new(weight_kind(shape)?, activations, output)?;
    let order = if shape.batch_invariant != 0 { SumOrder::Fixed } else { SumOrder::Free };
    Ok(GemmSpec::new(types, (size("n", shape.n)?, size("k", shape.k)?)).with_order(order))
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
        let spec = spec(shape)?;
        let kind = spec.types.weights();
        let load = |direction| PrepackKernel::new(device, kind, direction);
        let prepack = match spec.types.activation() {
            DType::I8 => Some(Prepack { pack: load(Direction::Pack)?, unpack: load(Direction::Unpack)? }),
            _ => None,
        };
        let plans = GemmPlans::new(planner, &spec, size("most_tokens", shape.most_tokens)?)?;
        Ok(qqq_gemm { plans, prepack })
    };
    // SAFETY: the caller's promise.
    unsafe { give(gemm, "gemm", make) }
}

/// See `qqq.h`.
///
/// # Safety
/// Pointers must be null, or to live values of their type.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qqq_gemm_try_plans(
    device: *const qqq_device,
    shape: *const qqq_gemm_shape,
) -> Status {
    call(|| {
        // SAFETY: the caller's promise, for both.
        let (planner, shape) = unsafe { (&reference(device, "device")?.0, reference(shape, "shape")?) };
        Ok(planner.try_plans(&spec(shape)?, size("most_tokens", shape.most_tokens)?)?)
    })
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

/// A number that a shape determines; 0 for none, and for one that no kernel takes.
///
/// # Safety
/// `shape` must be null, or to a live value.
unsafe fn number(shape: *const qqq_gemm_shape, number: impl FnOnce(&GemmSpec) -> usize) -> usize {
    // SAFETY: the caller's promise.
    let spec = unsafe { shape.as_ref() }.map(spec);
    spec.and_then(Result::ok).map_or(0, |spec| number(&spec))
}

/// See `qqq.h`.
///
/// # Safety
/// `shape` must be null, or to a live value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qqq_gemm_weight_bytes(shape: *const qqq_gemm_shape) -> usize {
    // SAFETY: the caller's promise.
    unsafe { number(shape, GemmSpec::weight_bytes) }
}

/// See `qqq.h`.
///
/// # Safety
/// `shape` must be null, or to a live value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qqq_gemm_scale_count(shape: *const qqq_gemm_shape) -> usize {
    // SAFETY: the caller's promise.
    unsafe { number(shape, GemmSpec::scale_count) }
}

/// See `qqq.h`.
///
/// # Safety
/// `gemm` must be null, or a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qqq_gemm_workspace_bytes(gemm: *const qqq_gemm) -> usize {
    // SAFETY: the caller's promise.
    unsafe { gemm.as_ref() }.map_or(0, |g| g.plans.workspace_bytes())
}

/// Either way between the forms of a layer's weights.
///
/// # Safety
/// As for [`qqq_gemm_prepack`].
unsafe fn repack(
    gemm: *const qqq_gemm,
    operands: *const qqq_weight_operands,
    stream: *mut c_void,
    kernel: impl FnOnce(&Prepack) -> &PrepackKernel,
) -> Status {
    call(|| {
        // SAFETY: the caller's promise, for both.
        let (gemm, o) = unsafe { (reference(gemm, "gemm")?, reference(operands, "operands")?) };
        let Some(prepack) = &gemm.prepack else {
            return Err(argument(
                "weights for 16-bit activations are prepacked on the host, by qqq_gemm_prepack_host",
            ));
        };
        let (n, k) = gemm.plans.shape();
        let operands = PrepackOperands {
            codes: o.codes as u64,
            scales: o.group_scales as u64,
            weight_tiles: o.packed as u64,
            channel_scale: o.channel_scales as u64,
            padded_scale: o.packed_scales as u64,
            n,
            k,
        };
        // SAFETY: the caller's promise.
        Ok(unsafe { kernel(prepack).launch(stream as CUstream, &operands) }?)
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
    unsafe { repack(gemm, operands, stream, |p| &p.pack) }
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
    unsafe { repack(gemm, operands, stream, |p| &p.unpack) }
}

/// A copy of what an operand in host memory holds.
///
/// # Safety
/// `pointer` must be null, or to `count` values.
unsafe fn host<T: Copy>(pointer: *const T, count: usize, name: &str) -> Result<Vec<T>, Failure> {
    if pointer.is_null() {
        return Err(argument(format!("{name} is NULL")));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) }.to_vec())
}

/// See `qqq.h`.
///
/// # Safety
/// Pointers must be null, or to live values of their type; those of `operands`, to host memory of the sizes that
/// `qqq.h` states.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qqq_gemm_prepack_host(
    shape: *const qqq_gemm_shape,
    operands: *const qqq_weight_operands,
) -> Status {
    call(|| {
        // SAFETY: the caller's promise, for both.
        let (shape, o) = unsafe { (reference(shape, "shape")?, reference(operands, "operands")?) };
        let spec = spec(shape)?;
        let (kind, n, k) = (spec.types.weights(), spec.n, spec.k);
        check_shape(n, k)?;
        if o.packed.is_null() || o.packed_scales.is_null() {
            return Err(argument("packed or packed_scales is NULL"));
        }
        // SAFETY: the caller's promise, for both.
        let (codes, channel) = unsafe {
            (host::<i8>(o.codes.cast(), n * k, "codes")?, host(o.channel_scales, n, "channel_scales")?)
        };
        let group = kind.group_size().map(|size| {
            let count = n * k.div_ceil(size);
            // SAFETY: the caller's promise, for both.
            unsafe {
                if matches!(kind, WeightKind::GroupInteger4(_)) {
                    let integers = host::<u8>(o.group_scales.cast(), count, "group_scales")?;
                    return Ok(integers.into_iter().map(|s| f16::from_f32(f32::from(s))).collect());
                }
                host::<f16>(o.group_scales.cast(), count, "group_scales")
            }
        });
        let packed = if kind == WeightKind::Channel8 {
            PackedWeights::from_int8(&codes, &channel, k)?
        } else {
            let scales = match (group.transpose()?, kind.group_size()) {
                (Some(group), Some(group_size)) => Scales::PerGroup { group_size, channel, group },
                _ => Scales::PerChannel(channel),
            };
            let weight =
                QuantizedWeight { bits: CodeBits::Four, out_features: n, in_features: k, codes, scales };
            PackedWeights::of_kind(&weight, kind, spec.types.activation())?
        };
        let (chunks, scales) = (&packed.weight_tiles, &packed.channel_scale);
        // SAFETY: the caller's promise: there is room for `qqq_gemm_weight_bytes` bytes, and `qqq_gemm_scale_count`
        // scales.
        unsafe {
            std::ptr::copy_nonoverlapping(chunks.as_ptr(), o.packed.cast(), chunks.len());
            std::ptr::copy_nonoverlapping(scales.as_ptr(), o.packed_scales, scales.len());
        }
        Ok(())
    })
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
