//! The GPU of this machine.

use qqq_cuda::{CudaBackend, DType, Device};
use qqq_testing::Missing;

/// What computes on the first GPU, if there are kernels for it.
pub fn backend(half: DType) -> Result<CudaBackend, Missing> {
    let device = Device::new(0).and_then(|d| d.arch().map(|_| d));
    device.and_then(|d| CudaBackend::new(&d, half)).map_err(|e| Missing::Machine(e.to_string()))
}
