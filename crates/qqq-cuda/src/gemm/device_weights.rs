//! Prepacked weights in device memory.

use cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr};
use qqq_formats::{QuantizedWeight, Scales};

use super::prepack::{Direction, PrepackKernel, PrepackOperands};
use super::weight_kind::WEIGHT_TILE_ROWS;
use super::weights::check;
use super::{GemmOperands, PackedWeights, WeightKind};
use crate::error::driver;
use crate::{CudaError, Device, Result};

/// The weights of a linear layer on a GPU, as products read them.
#[derive(Debug)]
pub struct DeviceWeights {
    n: usize,
    k: usize,
    weight_tiles: CudaSlice<u8>,
    channel_scale: CudaSlice<f32>,
    bias: Option<CudaSlice<f32>>,
}

impl DeviceWeights {
    /// Copies weights, and a bias of `N` values, to the device.
    ///
    /// # Errors
    /// [`CudaError::Driver`], for want of memory for instance; [`CudaError::Shape`] for a bias of another length.
    pub fn new(device: &Device, weights: &PackedWeights, bias: Option<&[f32]>) -> Result<Self> {
        let (n, k) = (weights.out_features, weights.in_features);
        check_bias(n, bias)?;
        let stream = device.stream();
        let failed = || driver("copying weights to the GPU");
        let copied = Self {
            n,
            k,
            weight_tiles: stream.clone_htod(&weights.weight_tiles).map_err(failed())?,
            channel_scale: stream.clone_htod(&weights.channel_scale).map_err(failed())?,
            bias: bias.map(|b| stream.clone_htod(b)).transpose().map_err(failed())?,
        };
        // Launches on other streams may follow at once.
        stream.synchronize().map_err(failed())?;
        Ok(copied)
    }

    /// Copies a weight in the neutral form to the device, and prepacks it there for int8 activations, stored as
    /// [`WeightKind::of`] says.
    ///
    /// # Errors
    /// As [`PackedWeights::new`] and [`new`](Self::new).
    pub fn prepacked(device: &Device, weight: &QuantizedWeight, bias: Option<&[f32]>) -> Result<Self> {
        check(weight)?;
        let (n, k) = (weight.out_features, weight.in_features);
        let kind = WeightKind::of(weight);
        let kernel = PrepackKernel::new(device, kind, Direction::Pack)?;
        let codes = copied(device, &weight.codes)?;
        let scales = match &weight.scales {
            Scales::PerChannel(_) => None,
            Scales::PerGroup { group, .. } if matches!(kind, WeightKind::GroupInteger4(_)) => {
                Some(copied(device, &group.iter().map(|g| g.to_f32() as u8).collect::<Vec<_>>())?)
            }
            Scales::PerGroup { group, .. } => Some(copied(device, bytemuck::cast_slice(group))?),
        };
        let channels = copied(device, weight.channel_scales())?;
        let stream = device.stream();
        let made = Self::unfilled(device, kind, (n, k), bias)?;
        let neutral = (
            codes.device_ptr(stream).0,
            scales.as_ref().map_or(0, |s| s.device_ptr(stream).0),
            channels.device_ptr(stream).0,
        );
        // SAFETY: all were allocated above with these sizes.
        unsafe { made.prepack(device, &kernel, neutral) }?;
        stream.synchronize().map_err(driver("prepacking weights on the GPU"))?;
        Ok(made)
    }

    /// Room for 4-bit weights of a kind, which [`prepack`](Self::prepack) fills, and a bias.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn unfilled(
        device: &Device,
        kind: WeightKind,
        (n, k): (usize, usize),
        bias: Option<&[f32]>,
    ) -> Result<Self> {
        check_bias(n, bias)?;
        let stream = device.stream();
        let failed = || driver("allocating weights on the GPU");
        // SAFETY: what fills them writes all of both.
        let (weight_tiles, channel_scale) = unsafe {
            (
                stream.alloc(PrepackKernel::weight_bytes(kind, n, k)).map_err(failed())?,
                stream.alloc(n.next_multiple_of(WEIGHT_TILE_ROWS)).map_err(failed())?,
            )
        };
        let bias = bias.map(|b| copied(device, b)).transpose()?;
        Ok(Self { n, k, weight_tiles, channel_scale, bias })
    }

    /// Prepacks weights that lie in the neutral form on the device, at the addresses of codes, group scales (0 without
    /// groups) and channel scales, in the stream's order. The kernel is that of the kind that there is room for.
    ///
    /// # Errors
    /// As [`PrepackKernel::launch`].
    ///
    /// # Safety
    /// The addresses must be device memory of the sizes that [`PrepackOperands`] names.
    pub(crate) unsafe fn prepack(
        &self,
        device: &Device,
        kernel: &PrepackKernel,
        (codes, scales, channel_scale): (u64, u64, u64),
    ) -> Result<()> {
        let stream = device.stream();
        let operands = PrepackOperands {
            codes,
            scales,
            weight_tiles: self.weight_tiles.device_ptr(stream).0,
            channel_scale,
            padded_scale: self.channel_scale.device_ptr(stream).0,
            n: self.n,
            k: self.k,
        };
        // SAFETY: the caller's promise; tiles and padded scales were allocated for these weights.
        unsafe { kernel.launch(stream.cu_stream(), &operands) }
    }

    /// The operands of a product of `m` tokens: `x` is `m x K`, `token_scale` `m` float32 (0 where activations are no
    /// int8), `y` `m x N`.
    pub fn operands(&self, device: &Device, (x, token_scale, y): (u64, u64, u64), m: usize) -> GemmOperands {
        let stream = device.stream();
        GemmOperands {
            x,
            token_scale,
            y,
            weights: self.weight_tiles.device_ptr(stream).0,
            channel_scale: self.channel_scale.device_ptr(stream).0,
            bias: self.bias.as_ref().map_or(0, |b| b.device_ptr(stream).0),
            m,
            n: self.n,
            k: self.k,
        }
    }
}

/// Values of the host on the device.
fn copied<T: DeviceRepr>(device: &Device, values: &[T]) -> Result<CudaSlice<T>> {
    device.stream().clone_htod(values).map_err(driver("copying weights to the GPU"))
}

fn check_bias(n: usize, bias: Option<&[f32]>) -> Result<()> {
    match bias {
        Some(b) if b.len() != n => {
            Err(CudaError::Shape(format!("a bias of {} values for {n} output channels", b.len())))
        }
        _ => Ok(()),
    }
}
