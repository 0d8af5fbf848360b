//! Activations for a product that is measured, and a check of what it gives.

use cudarc::driver::{CudaSlice, DevicePtr};
use qqq_backend::pool::parallel_chunks_mut;
use qqq_cuda::{CudaError, DType, Device, KernelType, Result, error::driver};
use qqq_formats::{QuantizedWeight, Scales};

use super::data;

/// Outputs that are compared with the host's.
const CHECKED: usize = 200;
/// A NaN that no conversion makes, in both output types.
const POISON: u16 = 0x7FAB;

/// Activations on the host: int8 with a scale a token, or the bits of 16-bit numbers of a type.
enum Host {
    Int8(Vec<i8>, Vec<f32>),
    Float(Vec<u16>, DType),
}

/// Activations, and room for the output.
pub(super) struct Problem {
    pub(super) m: usize,
    n: usize,
    k: usize,
    host: Host,
    x: CudaSlice<u8>,
    scale: Option<CudaSlice<f32>>,
    y: CudaSlice<u16>,
}

impl Problem {
    /// Random activations of `m` tokens.
    ///
    /// # Errors
    /// For want of memory.
    pub(super) fn new(device: &Device, activation: DType, m: usize, n: usize, k: usize) -> Result<Self> {
        let failed = || driver("allocating activations");
        let stream = device.stream();
        let (host, bytes) = match activation {
            DType::I8 => {
                let x = data::normal_integers(5, m * k, 127);
                let bytes = bytemuck::cast_slice(&x).to_vec();
                (Host::Int8(x, (0..m).map(|i| 0.001 + 0.05 * data::uniform(6, i)).collect()), bytes)
            }
            float => {
                let mut bits = vec![0u16; m * k];
                parallel_chunks_mut(&mut bits, k, |token, row| {
                    for (i, b) in row.iter_mut().enumerate() {
                        *b = float.encode(data::normal(5, token * k + i));
                    }
                });
                let bytes = bytemuck::cast_slice(&bits).to_vec();
                (Host::Float(bits, float), bytes)
            }
        };
        let scale = match &host {
            Host::Int8(_, scale) => Some(stream.clone_htod(scale).map_err(failed())?),
            Host::Float(..) => None,
        };
        Ok(Self {
            m,
            n,
            k,
            x: stream.clone_htod(&bytes).map_err(failed())?,
            scale,
            y: stream.alloc_zeros(m * n).map_err(failed())?,
            host,
        })
    }

    /// Activations, token scales and output.
    pub(super) fn addresses(&self, device: &Device) -> (u64, u64, u64) {
        let stream = device.stream();
        let scale = self.scale.as_ref().map_or(0, |s| s.device_ptr(stream).0);
        (self.x.device_ptr(stream).0, scale, self.y.device_ptr(stream).0)
    }

    /// Launches the product with the addresses of activations, token scales and output, compares some outputs with the
    /// host's, and looks that none is left unwritten. With int8 activations sums are exact and `int8` weights must give
    /// the same bits. With 16-bit ones the error must be within what any order of float32 sums can make.
    ///
    /// # Errors
    /// Where they differ.
    pub(super) fn check(
        &mut self,
        device: &Device,
        output: DType,
        weight: &QuantizedWeight,
        int8: &[i8],
        launch: impl FnOnce((u64, u64, u64)) -> Result<()>,
    ) -> Result<()> {
        let failed = || driver("checking a product");
        let stream = device.stream();
        let poison = vec![POISON; self.m * self.n];
        let addresses = self.addresses(device);
        // On the same stream: a copy that only the host waits for may land after the launch.
        stream.memcpy_htod(&poison, &mut self.y).map_err(failed())?;
        launch(addresses)?;
        let got = stream.clone_dtoh(&self.y).map_err(failed())?;
        stream.synchronize().map_err(failed())?;
        if let Some(i) = got.iter().position(|v| *v == POISON) {
            return Err(CudaError::Device(format!(
                "the kernel left the output of token {}, channel {} unwritten",
                i / self.n,
                i % self.n
            )));
        }
        let last = self.m * self.n - 1;
        for i in 0..CHECKED {
            let at = ((data::uniform(9, i) * self.m as f32 * self.n as f32) as usize).min(last);
            let (token, channel) = (at / self.n, at % self.n);
            match &self.host {
                Host::Int8(x, scale) => {
                    let sum = dot(&x[token * self.k..][..self.k], &int8[channel * self.k..][..self.k]);
                    let expected = sum as f32 * weight.channel_scales()[channel] * scale[token];
                    let bits = output.encode(expected);
                    if got[at] != bits {
                        return Err(CudaError::Device(format!(
                            "the kernel gives {:#06x} for token {token}, channel {channel}; exact sums give {bits:#06x}",
                            got[at]
                        )));
                    }
                }
                Host::Float(x, float) => {
                    let (expected, bound) =
                        self.bounded(&x[token * self.k..][..self.k], *float, weight, channel);
                    let y = f64::from(float.decode(got[at]));
                    let error = (y - expected).abs();
                    if error.is_nan() || error > bound {
                        return Err(CudaError::Device(format!(
                            "the kernel gives {y} for token {token}, channel {channel}; it should be {expected}, within {bound}"
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    /// An output and its largest error. Weights are rounded as the kernel rounds them and products are exact in
    /// float32. The tensor cores add them in some order and may truncate, so that each of the K additions is wrong by
    /// at most 2^-23 of the sum of magnitudes; the two factors behind are rounded as well, and so is the output, by
    /// 2^-11 or 2^-8 of it.
    fn bounded(&self, x: &[u16], float: DType, weight: &QuantizedWeight, channel: usize) -> (f64, f64) {
        let (mut sum, mut magnitude) = (0.0, 0.0);
        let rounded = |v: f32| float.decode(float.encode(v));
        for (i, x) in x.iter().enumerate() {
            let code = f32::from(weight.codes[channel * self.k + i]);
            let w = match &weight.scales {
                Scales::PerChannel(_) => code,
                Scales::PerGroup { group_size, group, .. } => {
                    let scale = group[channel * (self.k / group_size) + i / group_size].to_f32();
                    rounded(code * rounded(scale))
                }
            };
            let product = f64::from(float.decode(*x)) * f64::from(w);
            sum += product;
            magnitude += product.abs();
        }
        let scale = f64::from(weight.channel_scales()[channel]);
        let half_step = if float == DType::F16 { 0.5f64.powi(11) } else { 0.5f64.powi(8) };
        let y = sum * scale;
        let sums = (self.k + 2) as f64 * 0.5f64.powi(23) * magnitude * scale;
        // The last term is for subnormal float16.
        (y, sums + half_step * (y.abs() + sums) + 0.5f64.powi(25))
    }
}

fn dot(a: &[i8], b: &[i8]) -> i32 {
    a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
}
