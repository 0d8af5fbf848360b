//! Weights in device memory from the neutral form to the weight tiles that the products read, and back; the host's side
//! of it is [`PackedWeights`](super::PackedWeights).

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys;

use super::WeightKind;
use super::weight_kind::{WEIGHT_TILE_ROWS, weight_tile_columns};
use super::weights::check_shape;
use crate::device::{Device, Kernel};
use crate::{CudaError, DType, Result, Source};

/// Threads of a CTA.
const THREADS: usize = 256;

/// Whether weights are brought into the kernels' order or back out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the neutral form to weight tiles.
    Pack,
    /// From weight tiles to the neutral form; what pads a weight tile is dropped.
    Unpack,
}

/// The kernel's source.
pub fn source(kind: WeightKind, direction: Direction) -> Source {
    let task = match direction {
        Direction::Pack => "prepack",
        Direction::Unpack => "unpack",
    };
    Source::new(format!("{task}_{}", kind.short_name()), |function| {
        format!(
            "#include \"prepack.cuh\"\n\
         static_assert(WeightTile<{kind}, {group}>::kBytes == {bytes});\n\
         extern \"C\" __global__ void __launch_bounds__({THREADS})\n\
         {function}(const __grid_constant__ PrepackParameters p) {{ {task}<{kind}, {group}>(p); }}\n",
            kind = kind.enumerator(),
            group = kind.group_size().unwrap_or(weight_tile_columns(DType::I8)),
            bytes = kind.weight_tile_bytes(DType::I8),
        )
    })
}

/// The device addresses of a layer's weights, 16-byte aligned, valid until the launch has run.
#[derive(Clone, Copy, Debug)]
pub struct PrepackOperands {
    /// Codes, `n x k` int8, row-major: -8 to 7; any int8 for [`WeightKind::Channel8`].
    pub codes: u64,
    /// Group scales, `n x ceil(k / group)`: uint8 for [`WeightKind::GroupInteger4`], float16 for
    /// [`WeightKind::GroupHalf4`]; 0 without groups.
    pub scales: u64,
    /// Weight tiles, `ceil(n / 64) x ceil(k / 128)` of [`WeightKind::weight_tile_bytes`] for int8 activations.
    pub weight_tiles: u64,
    /// Channel scales of the neutral form, `n` float32.
    pub channel_scale: u64,
    /// Channel scales as the products take them, `ceil(n / 64) * 64` float32.
    pub padded_scale: u64,
    /// Output channels: rows of the weights.
    pub n: usize,
    /// Input channels: columns of the weights.
    pub k: usize,
}

/// `PrepackParameters` of `prepack.cuh`: what the kernel takes.
#[repr(C)]
pub struct PrepackParameters {
    codes: u64,
    scales: u64,
    weight_tiles: u64,
    channel_scale: u64,
    padded_scale: u64,
    n: i32,
    k: i32,
}

impl PrepackOperands {
    /// What the kernel for these weights is given.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for a shape that the products do not take, or an address that is missing or not aligned.
    pub fn parameters(&self, kind: WeightKind) -> Result<PrepackParameters> {
        check_shape(self.n, self.k)?;
        let grouped = kind.group_size().is_some();
        for (name, address, needed) in [
            ("codes", self.codes, true),
            ("group scales", self.scales, grouped),
            ("weight tiles", self.weight_tiles, true),
            ("channel scales", self.channel_scale, true),
            ("padded scales", self.padded_scale, true),
        ] {
            if (address != 0) != needed || address % 16 != 0 {
                return Err(CudaError::Shape(format!(
                    "prepacking weights: the address of the {name} is {address:#x}; {}",
                    if needed { "it must be given, aligned to 16 bytes" } else { "this kind has none" }
                )));
            }
        }
        Ok(PrepackParameters {
            codes: self.codes,
            scales: self.scales,
            weight_tiles: self.weight_tiles,
            channel_scale: self.channel_scale,
            padded_scale: self.padded_scale,
            n: self.n as i32,
            k: self.k as i32,
        })
    }
}

/// A compiled and loaded kernel.
#[derive(Clone, Debug)]
pub struct PrepackKernel {
    kind: WeightKind,
    kernel: Arc<Kernel>,
}

impl PrepackKernel {
    /// Compiles (or takes from the cache) and loads the kernel.
    ///
    /// # Errors
    /// When NVRTC is needed and missing, or the driver refuses the kernel.
    pub fn new(device: &Device, kind: WeightKind, direction: Direction) -> Result<Self> {
        Ok(Self { kind, kernel: device.kernel(&source(kind, direction), 0)? })
    }

    /// Bytes of the weight tiles of an `n x k` layer.
    pub fn weight_bytes(kind: WeightKind, n: usize, k: usize) -> usize {
        n.div_ceil(WEIGHT_TILE_ROWS)
            * k.div_ceil(weight_tile_columns(DType::I8))
            * kind.weight_tile_bytes(DType::I8)
    }

    /// CTAs of a launch, and their threads.
    pub fn launch_shape(kind: WeightKind, n: usize, k: usize) -> (usize, usize) {
        ((Self::weight_bytes(kind, n, k) / 16).div_ceil(THREADS), THREADS)
    }

    /// Launches on `stream`.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for a shape that the products do not take, or an address that is missing or not aligned;
    /// [`CudaError::Driver`] when the driver refuses the launch.
    ///
    /// # Safety
    /// The operands must be device memory of the sizes given.
    pub unsafe fn launch(&self, stream: sys::CUstream, o: &PrepackOperands) -> Result<()> {
        let mut parameters = o.parameters(self.kind)?;
        let (ctas, threads) = Self::launch_shape(self.kind, o.n, o.k);
        let parameters: *mut c_void = (&raw mut parameters).cast();
        // SAFETY: the structure is the kernel's one parameter; the caller vouches for the memory.
        unsafe { self.kernel.launch(stream, (ctas, threads, 0), 1, false, &mut [parameters]) }
    }
}
