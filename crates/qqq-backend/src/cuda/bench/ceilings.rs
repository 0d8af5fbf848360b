//! What the device gives at most.

use std::sync::Arc;

use super::{data, timing};
use crate::cuda::device::{Device, driver};
use crate::cuda::{Arch, Result, Source};

const CHUNK: usize = 16384;
const STAGES: usize = 12;
/// Bytes that are read: several times the L2 cache.
const READ: usize = 512 << 20;
const ROUNDS: i32 = 400;

/// Measured ceilings of a device.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Reading memory, in GB/s.
    pub read_gb_per_second: f64,
    /// int8 multiply-adds (two operations each) of the tensor cores, in 10^12/s, in a burst on random data.
    pub int8_tops: f64,
}

impl Ceilings {
    /// Measures both; `None` on GPUs that are no Hopper, whose instructions the measurement is made of.
    ///
    /// # Errors
    /// See [`CudaError`](crate::cuda::CudaError).
    pub fn measure(device: &Arc<Device>) -> Result<Option<Self>> {
        if device.arch()? != Arch::Sm90a {
            return Ok(None);
        }
        let failed = || driver("measuring the device's ceilings");
        let stream = device.stream();
        let values = data::normal_integers(11, 1 << 20, 127);
        let bytes: Vec<u8> = values.iter().map(|v| *v as u8).cycle().take(READ).collect();
        let memory = stream.clone_htod(&bytes).map_err(failed())?;
        let sink = stream.alloc_zeros::<u32>(1).map_err(failed())?;
        let (memory, sink) = (address(&memory, stream), address(&sink, stream));
        let keep = (memory.1, sink.1);
        let (mut memory, mut sink) = (memory.0, sink.0);

        let (read, shared) = read_source();
        let kernel = device.kernel(&read, shared)?;
        let blocks = device.multiprocessors();
        let mut chunks = (READ / CHUNK) as i32;
        let microseconds = timing::microseconds(stream, 1, |_| {
            let parameters =
                &mut [(&raw mut memory).cast(), (&raw mut chunks).cast(), (&raw mut sink).cast()];
            // SAFETY: the parameters are the kernel's; the memory holds that many chunks.
            unsafe { kernel.launch(stream.cu_stream(), (blocks, 64, shared), 1, false, parameters) }
        })?;
        let read_gb_per_second = READ as f64 / microseconds / 1e3;

        let (multiply, shared) = multiply_source();
        let kernel = device.kernel(&multiply, shared)?;
        let mut rounds = ROUNDS;
        let microseconds = timing::microseconds(stream, 1, |_| {
            let parameters =
                &mut [(&raw mut memory).cast(), (&raw mut rounds).cast(), (&raw mut sink).cast()];
            // SAFETY: the parameters are the kernel's; the memory holds more than 64 KiB.
            unsafe { kernel.launch(stream.cu_stream(), (blocks, 256, shared), 1, false, parameters) }
        })?;
        let operations = blocks as f64 * 2.0 * f64::from(ROUNDS) * 8.0 * (64 * 256 * 32 * 2) as f64;
        drop(keep);
        Ok(Some(Self { read_gb_per_second, int8_tops: operations / microseconds / 1e6 }))
    }

    /// The kernels of the measurement on an architecture, each with its shared memory in bytes.
    pub fn sources(arch: Arch) -> Vec<(Source, usize)> {
        if arch == Arch::Sm90a { vec![read_source(), multiply_source()] } else { Vec::new() }
    }

    /// The least microseconds of `operations` int8 operations and `bytes` read.
    pub fn floor_microseconds(&self, operations: f64, bytes: f64) -> f64 {
        (operations / self.int8_tops / 1e6).max(bytes / self.read_gb_per_second / 1e3)
    }
}

/// Reads memory; with its shared memory in bytes.
fn read_source() -> (Source, usize) {
    let source = Source::new("read_ceiling", |function| {
        format!(
            "#include \"ceilings.cuh\"\nextern \"C\" __global__ void __launch_bounds__(64)\n\
         {function}(const uint8* source, int chunks, uint32* sink) \
         {{ read_ceiling<{CHUNK}, {STAGES}>(source, chunks, sink); }}\n"
        )
    });
    (source, CHUNK * STAGES + STAGES * 16)
}

/// Multiplies; with its shared memory in bytes.
fn multiply_source() -> (Source, usize) {
    let source = Source::new("multiply_ceiling", |function| {
        format!(
            "#include \"ceilings.cuh\"\nextern \"C\" __global__ void __launch_bounds__(256, 1)\n\
         {function}(const uint4* source, int rounds, int* sink) \
         {{ multiply_ceiling(source, rounds, sink); }}\n"
        )
    });
    (source, 256 * 128)
}

/// Address of device memory, and what keeps it in use.
fn address<'a, T>(
    slice: &'a cudarc::driver::CudaSlice<T>,
    stream: &'a cudarc::driver::CudaStream,
) -> (u64, cudarc::driver::SyncOnDrop<'a>) {
    use cudarc::driver::DevicePtr;
    slice.device_ptr(stream)
}
