//! Prepacked weights in device memory.

use cudarc::driver::{CudaSlice, DevicePtr};

use super::{GemmOperands, PackedWeights};
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
        if let Some(b) = bias.filter(|b| b.len() != n) {
            return Err(CudaError::Shape(format!("a bias of {} values for {n} output channels", b.len())));
        }
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
