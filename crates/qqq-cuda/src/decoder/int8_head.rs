//! An output head of int8 weights, whose products are float32: `head_logits` of `head.cuh`.
//!
//! The kernels of the layers between give 16 bits, in which large logits that differ are equal (in bfloat16 those from 16 to 32 are
//! multiples of an eighth). They also take multiples of 16 output channels alone; a vocabulary may have any number.

use qqq_formats::QuantizedWeight;

use super::CudaBackend;
use super::head::{CHUNK, HeadKernel, HeadLogitsParameters, TILES, tiles};
use super::memory::{Buffer, CudaInput, CudaTensor};
use crate::{CudaError, Device, Result};

/// Codes, with zeros up to a whole number of chunks, and the columns' scales.
#[derive(Debug)]
pub(super) struct Int8Head {
    codes: Buffer,
    scales: Buffer,
    n: usize,
    k: usize,
    pitch: usize,
}

impl Int8Head {
    /// # Errors
    /// Weights that are no int8 weights with a scale a channel; input channels that are no multiple of 16; what the device
    /// refuses.
    pub(super) fn new(device: &Device, weight: &QuantizedWeight) -> Result<Self> {
        weight.check("the output head").map_err(|e| CudaError::Shape(e.to_string()))?;
        let (n, k) = (weight.out_features, weight.in_features);
        if !k.is_multiple_of(16) || n > i32::MAX as usize {
            return Err(CudaError::Shape(format!(
                "an output head of {n} tokens and {k} input channels: the GPU takes multiples of 16 channels"
            )));
        }
        let pitch = k.next_multiple_of(CHUNK);
        let own = weight.int8_weights();
        let mut codes = vec![0i8; n * pitch];
        codes.chunks_exact_mut(pitch).zip(own.chunks_exact(k)).for_each(|(to, from)| {
            to[..k].copy_from_slice(from);
        });
        let head = Self {
            codes: Buffer::of(device, &codes)?,
            scales: Buffer::of(device, weight.channel_scales())?,
            n,
            k,
            pitch,
        };
        // The host's memory is freed next.
        device.stream().synchronize().map_err(crate::error::driver("copying an output head to the GPU"))?;
        Ok(head)
    }

    /// Products with int8 rows; `out` has the shape of the result, in float32.
    pub(super) fn multiply(&self, backend: &CudaBackend, x: &CudaInput, out: &CudaTensor) -> Result<()> {
        let rows = x.rows;
        if rows == 0 {
            return Ok(());
        }
        let parameters = HeadLogitsParameters {
            codes: self.codes.address(),
            scales: self.scales.address(),
            x: x.buffer.address(),
            x_scales: x.scales.address(),
            outputs: out.address(),
            m: rows as i32,
            n: self.n as i32,
            k: self.k as i32,
            pitch: self.pitch as i32,
        };
        let kernel = HeadKernel::Logits(tiles(rows).unwrap_or(TILES[TILES.len() - 1]));
        // SAFETY: all of it has these sizes.
        unsafe { backend.launch_head(kernel, (rows, self.n), parameters) }
    }
}
