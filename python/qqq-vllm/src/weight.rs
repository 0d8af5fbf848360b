//! Weights in the neutral form: read from a checkpoint's tensors, made of codes and scales, prepacked.

use half::f16;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use qqq_backend::pool::parallel_chunks_mut;
use qqq_cuda::gemm::{PackedWeights, WeightKind};
use qqq_formats::{QuantizedWeight, Scales};

use crate::address::Span;
use crate::stored::{Part, code_bits, parts, read};
use crate::value_error;

/// A weight of 4 or 8 bits: codes `N x K` and their scales.
#[pyclass(frozen, module = "qqq_vllm._native")]
pub struct Weight(pub QuantizedWeight);

#[pymethods]
impl Weight {
    /// From parts of stored layers, one below the other: (layer, output channels, input channels).
    #[staticmethod]
    fn read(py: Python<'_>, given: Vec<Part<'_>>) -> PyResult<Self> {
        let (shards, n, k) = parts(&given)?;
        py.detach(|| read(&shards, n, k, true)).map(Self)
    }

    /// From codes (int8, `N x K`), channel scales (float32) and, per group, group scales (float16).
    #[staticmethod]
    #[pyo3(signature = (shape, group_size, codes, channel, group, bits = 4))]
    fn from_codes(
        shape: (usize, usize),
        group_size: Option<usize>,
        codes: Span,
        channel: Span,
        group: Option<Span>,
        bits: u64,
    ) -> PyResult<Self> {
        // SAFETY: the Python side has checked the types and keeps the tensors alive meanwhile.
        let (codes, channel, group) = unsafe {
            let group = group.map(|g| g.slice::<f16>()).transpose()?.unwrap_or_default();
            (codes.slice::<i8>()?.to_vec(), channel.slice::<f32>()?.to_vec(), group.to_vec())
        };
        let scales = match group_size {
            None => Scales::PerChannel(channel),
            Some(group_size) => Scales::PerGroup { group_size, channel, group },
        };
        let weight = QuantizedWeight {
            bits: code_bits(bits)?,
            out_features: shape.0,
            in_features: shape.1,
            codes,
            scales,
        };
        weight.check("weight").map_err(value_error)?;
        Ok(Self(weight))
    }

    /// (output channels, input channels)
    #[getter]
    fn shape(&self) -> (usize, usize) {
        (self.0.out_features, self.0.in_features)
    }

    /// For the GPU: how they are stored, the chunks, and the channel scales (float32).
    fn prepack<'py>(&self, py: Python<'py>) -> PyResult<(String, Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
        let packed = py.detach(|| PackedWeights::new(&self.0)).map_err(value_error)?;
        let scales = PyBytes::new(py, bytemuck::cast_slice(&packed.channel_scale));
        Ok((packed.kind.to_string(), PyBytes::new(py, &packed.weight_tiles), scales))
    }
}

/// Writes the scales of parts of stored layers, one below the other: `channel` (float32, `N`) and, per group, `group`
/// (float16, `N x K / group`). Gives the way in which a GPU stores such weights.
#[pyfunction]
#[pyo3(signature = (given, channel, group))]
pub fn read_scales(
    py: Python<'_>,
    given: Vec<Part<'_>>,
    channel: Span,
    group: Option<Span>,
) -> PyResult<String> {
    let (shards, n, k) = parts(&given)?;
    let weight = py.detach(|| read(&shards, n, k, false))?;
    // SAFETY: tensors that the Python side has just made, of these types.
    let (channel, group) = unsafe {
        (channel.slice_mut::<f32>()?, group.map(|g| g.slice_mut::<f16>()).transpose()?.unwrap_or_default())
    };
    let (channels, groups) = match &weight.scales {
        Scales::PerChannel(channels) => (channels, [].as_slice()),
        Scales::PerGroup { channel, group, .. } => (channel, group.as_slice()),
    };
    if channel.len() != channels.len() || group.len() != groups.len() {
        return Err(value_error(format!("{} channel and {} group scales", channels.len(), groups.len())));
    }
    channel.copy_from_slice(channels);
    group.copy_from_slice(groups);
    Ok(WeightKind::of(&weight).to_string())
}

/// Fills a tensor (int32) with packed codes for measurements without a checkpoint: about normally distributed, with a
/// standard deviation of 2.3.
#[pyfunction]
pub fn random_words(py: Python<'_>, seed: u64, words: Span) -> PyResult<()> {
    // SAFETY: a tensor that the Python side has just made.
    let words = unsafe { words.slice_mut::<i32>()? };
    // The sum of four digits of 0 to 3 and a bit, from 2 to 15: a code + 8.
    let nibble =
        |bits: u64| (0..4).map(|i| (bits >> (2 * i) & 3) as u32).sum::<u32>() + (bits >> 8 & 1) as u32 + 2;
    py.detach(|| {
        parallel_chunks_mut(words, 1 << 14, |chunk, words| {
            for (i, word) in words.iter_mut().enumerate() {
                let bits = number(seed, 2 * (chunk << 14 | i));
                let more = number(seed, 2 * (chunk << 14 | i) + 1);
                let all = (0..7).fold(nibble(more), |all, j| all << 4 | nibble(bits >> (9 * j)));
                *word = all.cast_signed();
            }
        });
    });
    Ok(())
}

/// Copies bytes of host memory by all cores: pages of a file that is mapped are read meanwhile.
#[pyfunction]
pub fn copy_bytes(py: Python<'_>, source: Span, to: Span) -> PyResult<()> {
    const CHUNK: usize = 1 << 20;
    // SAFETY: tensors of bytes that the Python side keeps alive; `to` is its own.
    let (from, to) = unsafe { (source.slice::<u8>()?, to.slice_mut::<u8>()?) };
    if from.len() != to.len() {
        return Err(value_error(format!("{} bytes to where there are {}", from.len(), to.len())));
    }
    py.detach(|| {
        parallel_chunks_mut(to, CHUNK, |i, to| to.copy_from_slice(&from[i * CHUNK..][..to.len()]));
    });
    Ok(())
}

/// Random numbers by their index: splitmix64.
fn number(seed: u64, index: usize) -> u64 {
    let mut z = seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
