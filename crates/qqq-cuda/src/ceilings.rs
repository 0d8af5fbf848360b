//! Kernels that do one thing as fast as a Hopper GPU can: read memory, and multiply int8 numbers. A product takes no
//! less time than they need for its bytes and its operations.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys;

use crate::device::{Device, Kernel};
use crate::error::Result;
use crate::jit::{Arch, Source};

/// Bytes of a copy, and copies under way.
const CHUNK: usize = 16384;
const STAGES: usize = 12;
const READ_THREADS: usize = 64;
/// A barrier pair a stage.
const READ_SHARED_BYTES: usize = CHUNK * STAGES + STAGES * 16;
/// Two warpgroups, each with a tile of 64 x 256 x 32 an instruction.
const MULTIPLY_THREADS: usize = 256;
const MULTIPLY_SHARED_BYTES: usize = 256 * 128;
/// Multiplications in a loop, eight instructions a warpgroup each.
const ROUNDS: usize = 400;

/// Both kernels, loaded.
#[derive(Debug)]
pub struct CeilingKernels {
    read: Arc<Kernel>,
    multiply: Arc<Kernel>,
    /// CTAs of a launch: one on each SM.
    ctas: usize,
}

impl CeilingKernels {
    /// Compiles (or takes from the cache) and loads them; `None` on GPUs that are no Hopper, whose instructions they
    /// are made of.
    ///
    /// # Errors
    /// When NVRTC is needed and missing, or the driver refuses a kernel.
    pub fn new(device: &Device) -> Result<Option<Self>> {
        if device.arch()? != Arch::Sm90a {
            return Ok(None);
        }
        let load = |(source, shared): (Source, usize)| device.kernel(&source, shared);
        let (read, multiply) = (load(read_source())?, load(multiply_source())?);
        Ok(Some(Self { read, multiply, ctas: device.sms() }))
    }

    /// int8 operations of a [`launch_multiply`](Self::launch_multiply): a multiply-add is two.
    pub fn operations(&self) -> f64 {
        self.ctas as f64 * 2.0 * ROUNDS as f64 * 8.0 * (64 * 256 * 32 * 2) as f64
    }

    /// Reads `bytes` bytes at `memory` on `stream`, whole chunks of 16 KiB of them. `sink` is one 32-bit word that is
    /// hardly ever written: it keeps the reads from being left out.
    ///
    /// # Errors
    /// [`CudaError::Driver`](crate::CudaError::Driver).
    ///
    /// # Safety
    /// The addresses must be device memory of these sizes, valid until the launch has run.
    pub unsafe fn launch_read(
        &self,
        stream: sys::CUstream,
        mut memory: u64,
        bytes: usize,
        mut sink: u64,
    ) -> Result<()> {
        let mut chunks = (bytes / CHUNK) as i32;
        let parameters: &mut [*mut c_void] =
            &mut [(&raw mut memory).cast(), (&raw mut chunks).cast(), (&raw mut sink).cast()];
        let shape = (self.ctas, READ_THREADS, READ_SHARED_BYTES);
        // SAFETY: the parameters are the kernel's; the caller vouches for the memory.
        unsafe { self.read.launch(stream, shape, 1, false, parameters) }
    }

    /// Multiplies 64 KiB of numbers at `memory` on `stream`, again and again; `sink` as in
    /// [`launch_read`](Self::launch_read).
    ///
    /// # Errors
    /// [`CudaError::Driver`](crate::CudaError::Driver).
    ///
    /// # Safety
    /// The addresses must be device memory of these sizes, valid until the launch has run.
    pub unsafe fn launch_multiply(
        &self,
        stream: sys::CUstream,
        mut memory: u64,
        mut sink: u64,
    ) -> Result<()> {
        let mut rounds = ROUNDS as i32;
        let parameters: &mut [*mut c_void] =
            &mut [(&raw mut memory).cast(), (&raw mut rounds).cast(), (&raw mut sink).cast()];
        let shape = (self.ctas, MULTIPLY_THREADS, MULTIPLY_SHARED_BYTES);
        // SAFETY: the parameters are the kernel's; the caller vouches for the memory.
        unsafe { self.multiply.launch(stream, shape, 1, false, parameters) }
    }
}

/// The kernels' sources on an architecture, each with its shared memory in bytes.
pub fn sources(arch: Arch) -> Vec<(Source, usize)> {
    if arch == Arch::Sm90a { vec![read_source(), multiply_source()] } else { Vec::new() }
}

/// Reads memory; with its shared memory in bytes.
fn read_source() -> (Source, usize) {
    let source = Source::new("read_ceiling", |function| {
        format!(
            "#include \"ceilings.cuh\"\n\
             static_assert(kReadSharedBytes<{CHUNK}, {STAGES}> == {READ_SHARED_BYTES});\n\
             extern \"C\" __global__ void __launch_bounds__({READ_THREADS})\n\
             {function}(const uint8* source, int chunks, uint32* sink) \
         {{ read_ceiling<{CHUNK}, {STAGES}>(source, chunks, sink); }}\n"
        )
    });
    (source, READ_SHARED_BYTES)
}

/// Multiplies; with its shared memory in bytes.
fn multiply_source() -> (Source, usize) {
    let source = Source::new("multiply_ceiling", |function| {
        format!(
            "#include \"ceilings.cuh\"\n\
             static_assert(kMultiplySharedBytes == {MULTIPLY_SHARED_BYTES});\n\
             extern \"C\" __global__ void __launch_bounds__({MULTIPLY_THREADS}, 1)\n\
             {function}(const uint4* source, int rounds, int* sink) \
         {{ multiply_ceiling(source, rounds, sink); }}\n"
        )
    });
    (source, MULTIPLY_SHARED_BYTES)
}
