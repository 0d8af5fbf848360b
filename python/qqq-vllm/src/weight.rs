//! Weights in the neutral form: read from a checkpoint's tensors, cut into shards, joined, prepacked.

use half::f16;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use qqq_backend::cpu::pool::parallel_chunks_mut;
use qqq_backend::cuda::gemm::PackedWeights;
use qqq_formats::{QuantizedWeight, Scales, compressed_tensors, qqq};

use crate::address::Span;
use crate::value_error;

/// A 4-bit weight: codes `N x K` and their scales.
#[pyclass(frozen, module = "qqq_vllm._native")]
pub struct Weight(pub QuantizedWeight);

#[pymethods]
impl Weight {
    /// From the tensors of the QQQ layout: `B` (int32), `s_channel` (float32) and, per group, `s_group` (float16).
    #[staticmethod]
    #[pyo3(signature = (name, shape, group_size, b, s_channel, s_group))]
    fn from_qqq(
        py: Python<'_>,
        name: &str,
        shape: (usize, usize),
        group_size: Option<usize>,
        b: Span,
        s_channel: Span,
        s_group: Option<Span>,
    ) -> PyResult<Self> {
        let (n, k) = shape;
        let at = |reason: String| value_error(format!("{name}: {reason}"));
        qqq::fits(n, k, group_size).map_err(at)?;
        // SAFETY: the Python side has checked the types and keeps the tensors alive; the GIL may go, they do not.
        let packed = unsafe {
            qqq::Packed {
                b: b.slice::<i32>()?.to_vec(),
                s_channel: s_channel.slice::<f32>()?.to_vec(),
                s_group: s_group.map(|s| s.slice::<f16>()).transpose()?.unwrap_or_default().to_vec(),
            }
        };
        let weight = py.detach(|| qqq::unpack(&packed, n, k, group_size));
        weight.map(Self).map_err(|e| at(e.to_string()))
    }

    /// From the tensors of compressed-tensors: `weight_packed` (int32) and `weight_scale` (widened to float32).
    #[staticmethod]
    fn from_compressed_tensors(
        py: Python<'_>,
        name: &str,
        shape: (usize, usize),
        group_size: Option<usize>,
        weight_packed: Span,
        weight_scale: Span,
    ) -> PyResult<Self> {
        let (n, k) = shape;
        if let Some(g) = group_size.filter(|g| !k.is_multiple_of(*g)) {
            return Err(value_error(format!(
                "{name}: {k} input channels are not a multiple of the group size {g}"
            )));
        }
        // SAFETY: as above.
        let (words, scales) =
            unsafe { (weight_packed.slice::<i32>()?, weight_scale.slice::<f32>()?.to_vec()) };
        let weight = py.detach(|| compressed_tensors::unpack(name, words, scales, n, k, group_size));
        weight.map(Self).map_err(value_error)
    }

    /// Random weights, for measurements without a checkpoint: about normally distributed, outputs as large as inputs.
    #[staticmethod]
    fn random(py: Python<'_>, seed: u64, shape: (usize, usize), group_size: Option<usize>) -> PyResult<Self> {
        let (n, k) = shape;
        if n == 0 || k == 0 || group_size.is_some_and(|g| g == 0 || !k.is_multiple_of(g)) {
            let groups = group_size.map_or_else(String::new, |g| format!(" in groups of {g}"));
            return Err(value_error(format!("there are no weights of shape {n} x {k}{groups}")));
        }
        Ok(Self(py.detach(|| random(seed, n, k, group_size))))
    }

    /// (output channels, input channels)
    #[getter]
    fn shape(&self) -> (usize, usize) {
        (self.0.out_features, self.0.in_features)
    }

    /// The shard of output channels `start` to `end`.
    fn rows(&self, start: usize, end: usize) -> PyResult<Self> {
        self.0.rows(start..end).map(Self).ok_or_else(|| {
            value_error(format!("output channels {start} to {end} of {}", self.0.out_features))
        })
    }

    /// The shard of input channels `start` to `end`, with the scales of the whole rows.
    fn columns(&self, start: usize, end: usize) -> PyResult<Self> {
        self.0.columns(start..end).map(Self).ok_or_else(|| {
            value_error(format!(
                "input channels {start} to {end} of {}, which cut a group",
                self.0.in_features
            ))
        })
    }

    /// Weights one below the other, as one.
    #[staticmethod]
    fn concat(parts: Vec<PyRef<'_, Weight>>) -> PyResult<Self> {
        let parts: Vec<_> = parts.iter().map(|p| &p.0).collect();
        QuantizedWeight::concat(&parts)
            .map(Self)
            .ok_or_else(|| value_error("weights of different inputs or kinds of scales cannot be joined"))
    }

    /// Bytes of the weights as the kernels see them: float32, `N x K`.
    fn dequantize<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let values = py.detach(|| self.0.dequantize());
        PyBytes::new(py, bytemuck::cast_slice(&values))
    }

    /// For the GPU: how they are stored, the chunks, and the channel scales (float32).
    fn prepack<'py>(&self, py: Python<'py>) -> PyResult<(String, Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
        let packed = py.detach(|| PackedWeights::new(&self.0)).map_err(value_error)?;
        let scales = PyBytes::new(py, bytemuck::cast_slice(&packed.channel_scale));
        Ok((packed.kind.to_string(), PyBytes::new(py, &packed.chunks), scales))
    }
}

/// Random numbers by their index: splitmix64.
fn number(seed: u64, index: usize) -> u64 {
    let mut z = seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn random(seed: u64, n: usize, k: usize, group_size: Option<usize>) -> QuantizedWeight {
    // The sum of four digits of 0 to 3 and a bit: -6 to 7, with a standard deviation of 2.3. A number has seven.
    let code =
        |bits: u64| (0..4).map(|i| (bits >> (2 * i) & 3) as i8).sum::<i8>() + (bits >> 8 & 1) as i8 - 6;
    let numbers = k.div_ceil(7);
    let mut codes = vec![0i8; n * k];
    parallel_chunks_mut(&mut codes, k, |row, codes| {
        for (j, codes) in codes.chunks_mut(7).enumerate() {
            let bits = number(seed, row * numbers + j);
            codes.iter_mut().enumerate().for_each(|(i, c)| *c = code(bits >> (9 * i)));
        }
    });
    let scale = 1.0 / (2.3 * (k as f32).sqrt());
    let scales = match group_size {
        None => Scales::PerChannel(vec![scale; n]),
        Some(g) => {
            let size = |i| f16::from_f32((number(seed, n * numbers + i) % 9 + 4) as f32);
            let group = (0..n * (k / g)).map(size).collect();
            Scales::PerGroup { group_size: g, channel: vec![scale / 8.0; n], group }
        }
    };
    QuantizedWeight { out_features: n, in_features: k, codes, scales }
}
