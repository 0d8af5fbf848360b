//! GPUs.

use std::ffi::c_int;

use qqq_cuda::Device;
use qqq_cuda::gemm::Planner;

use crate::status::{Status, argument, give};

/// An open GPU, and what is chosen on it.
#[allow(non_camel_case_types)]
pub struct qqq_device(pub(crate) Planner);

/// See `qqq.h`.
///
/// # Safety
/// `device` must be null, or to memory that holds a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qqq_device_open(ordinal: c_int, device: *mut *mut qqq_device) -> Status {
    let make = || {
        let ordinal = usize::try_from(ordinal).map_err(|_| argument(format!("GPU number {ordinal}")))?;
        Ok(qqq_device(Planner::new(&Device::new(ordinal)?)?))
    };
    // SAFETY: the caller's promise.
    unsafe { give(device, "device", make) }
}

/// See `qqq.h`.
///
/// # Safety
/// `device` must be null, or of [`qqq_device_open`] and not closed before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qqq_device_close(device: *mut qqq_device) {
    if !device.is_null() {
        // SAFETY: the caller's promise.
        drop(unsafe { Box::from_raw(device) });
    }
}
