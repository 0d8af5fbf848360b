//! What the device gives at most.

use std::sync::Arc;

use cudarc::driver::DevicePtr;
use qqq_cuda::{Device, Result, ceilings::CeilingKernels, error::driver};

use super::{data, timing};

/// Bytes that are read: several times the L2 cache.
const READ: usize = 512 << 20;

/// Measured ceilings of a device.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Reading memory, in GB/s.
    pub read_gb_per_second: f64,
    /// int8 multiply-adds (two operations each) of the tensor cores, in 10^12/s, in a burst on random data.
    pub int8_tops: f64,
}

impl Ceilings {
    /// Measures both; `None` where there are no kernels for that.
    ///
    /// # Errors
    /// See [`CudaError`](qqq_cuda::CudaError).
    pub fn measure(device: &Arc<Device>) -> Result<Option<Self>> {
        let Some(kernels) = CeilingKernels::new(device)? else { return Ok(None) };
        let failed = || driver("measuring the device's ceilings");
        let stream = device.stream();
        let values = data::normal_integers(11, 1 << 20, 127);
        let bytes: Vec<u8> = values.iter().map(|v| *v as u8).cycle().take(READ).collect();
        let memory = stream.clone_htod(&bytes).map_err(failed())?;
        let sink = stream.alloc_zeros::<u32>(1).map_err(failed())?;
        let (memory, sink) = (memory.device_ptr(stream), sink.device_ptr(stream));
        let read = timing::microseconds(stream, 1, |_| {
            // SAFETY: both are kept until the launches have run, and as large as said.
            unsafe { kernels.launch_read(stream.cu_stream(), memory.0, READ, sink.0) }
        })?;
        let multiply = timing::microseconds(stream, 1, |_| {
            // SAFETY: as above.
            unsafe { kernels.launch_multiply(stream.cu_stream(), memory.0, sink.0) }
        })?;
        Ok(Some(Self {
            read_gb_per_second: READ as f64 / read / 1e3,
            int8_tops: kernels.operations() / multiply / 1e6,
        }))
    }

    /// The least microseconds of `operations` int8 operations and `bytes` read.
    pub fn floor_microseconds(&self, operations: f64, bytes: f64) -> f64 {
        (operations / self.int8_tops / 1e6).max(bytes / self.read_gb_per_second / 1e3)
    }
}
