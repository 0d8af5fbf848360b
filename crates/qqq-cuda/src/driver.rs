//! What NVIDIA's driver says of itself and of its GPUs, of which none is opened.

use cudarc::driver::{DriverError, result, sys};

use crate::error::{CudaError, Result, driver};

/// A GPU as the driver lists it; `CUDA_VISIBLE_DEVICES` hides some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// As [`Device::new`](crate::Device::new) takes it.
    pub number: usize,
    /// The maker's name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Bytes of its memory, used or not.
    pub memory: usize,
}

/// The newest CUDA that the driver runs, major and minor.
///
/// # Errors
/// [`CudaError::NoDriver`]; [`CudaError::Driver`].
pub fn version() -> Result<(u32, u32)> {
    loaded()?;
    let mut version = 0;
    // SAFETY: the driver writes one integer, to a live one.
    let status = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    status.result().map_err(driver("asking for the driver's version"))?;
    // The driver's form: 1000 * major + 10 * minor.
    let version = version.unsigned_abs();
    Ok((version / 1000, version % 1000 / 10))
}

/// All GPUs; none where the driver finds none.
///
/// # Errors
/// [`CudaError::NoDriver`]; [`CudaError::Driver`] when the driver does not work.
pub fn gpus() -> Result<Vec<Gpu>> {
    loaded()?;
    match result::init() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(Vec::new()),
        other => other.map_err(driver("starting the driver"))?,
    }
    let count = result::device::get_count().map_err(driver("counting GPUs"))?;
    (0..count).map(gpu).collect()
}

fn gpu(number: i32) -> Result<Gpu> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let what = "reading the GPU's properties";
    let device = result::device::get(number).map_err(driver(what))?;
    // SAFETY: the handle is the driver's own.
    let attribute = |a| unsafe { result::device::get_attribute(device, a) }.map_err(driver(what));
    Ok(Gpu {
        number: number as usize,
        name: result::device::get_name(device).map_err(driver(what))?,
        capability: (attribute(MAJOR)? as u32, attribute(MINOR)? as u32),
        // SAFETY: as above.
        memory: unsafe { result::device::total_mem(device) }.map_err(driver(what))?,
    })
}

/// That there is a driver: the other functions of the library end the process without.
fn loaded() -> Result<()> {
    // SAFETY: this only tries to open the library.
    if unsafe { sys::is_culib_present() } { Ok(()) } else { Err(CudaError::NoDriver) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_has_a_version_or_is_not_there() {
        match version() {
            Ok((major, _)) => {
                assert!(major >= 11);
                gpus().unwrap().iter().for_each(|gpu| assert!(gpu.memory > 0 && !gpu.name.is_empty()));
            }
            Err(e) => {
                assert!(matches!(e, CudaError::NoDriver), "{e}");
                assert!(matches!(gpus(), Err(CudaError::NoDriver)));
            }
        }
    }
}
