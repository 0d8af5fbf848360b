//! A layer's tensors as the checkpoint has them, and the neutral form of any part of it, made by all cores.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use half::f16;
use pyo3::prelude::*;
use qqq_backend::pool::parallel_for;
use qqq_formats::{Activations, CodeBits, QuantizedWeight, Result, Scales, compressed_tensors, qqq};

use crate::address::Span;
use crate::value_error;

/// Output channels that a task brings to the neutral form at once: a block of QQQ tiles.
const BLOCK: usize = 64;

/// Where the tensors lie, in host memory.
#[derive(Clone, Copy)]
enum Tensors {
    /// int32 tiles, float32 and float16 scales.
    Qqq { b: Span, s_channel: Span, s_group: Option<Span> },
    /// int32 words, float32 scales.
    Packed { words: Span, scale: Span },
    /// int8 codes, float32 scales.
    Codes { codes: Span, scale: Span },
}

/// A whole linear layer of a checkpoint. The Python side keeps its tensors alive.
#[pyclass(frozen, module = "qqq_vllm._native")]
pub struct Stored {
    name: String,
    n: usize,
    k: usize,
    bits: CodeBits,
    group_size: Option<usize>,
    tensors: Tensors,
}

#[pymethods]
impl Stored {
    /// In the QQQ layout: `B` (int32), `s_channel` (float32) and, per group, `s_group` (float16).
    #[staticmethod]
    #[pyo3(signature = (name, shape, group_size, b, s_channel, s_group))]
    fn qqq(
        name: String,
        shape: (usize, usize),
        group_size: Option<usize>,
        b: Span,
        s_channel: Span,
        s_group: Option<Span>,
    ) -> PyResult<Self> {
        let (n, k) = shape;
        qqq::fits(n, k, group_size).map_err(|e| value_error(format!("{name}: {e}")))?;
        let groups = group_size.map_or(0, |g| n * (k / g));
        let lens = (b.len(), s_channel.len(), s_group.map_or(0, |s| s.len()));
        let tensors = Tensors::Qqq { b, s_channel, s_group };
        Self { name, n, k, bits: CodeBits::Four, group_size, tensors }
            .check(lens == (k / 16 * 2 * n, n, groups))
    }

    /// In compressed-tensors' layout: `weight_packed` (int32) and `weight_scale` (widened to float32).
    #[staticmethod]
    #[pyo3(signature = (name, shape, bits, group_size, weight_packed, weight_scale))]
    fn compressed_tensors(
        name: String,
        shape: (usize, usize),
        bits: u64,
        group_size: Option<usize>,
        weight_packed: Span,
        weight_scale: Span,
    ) -> PyResult<Self> {
        let bits = code_bits(bits)?;
        let words = shape.0 * compressed_tensors::row_words(bits, shape.1);
        let tensors = Tensors::Packed { words: weight_packed, scale: weight_scale };
        Self::with_scale(name, shape, (bits, group_size), weight_scale, tensors)?
            .check(weight_packed.len() == words)
    }

    /// In compressed-tensors' layout that is not packed: `weight` (int8, codes of 4 or 8 bits) and `weight_scale` (widened to
    /// float32).
    #[staticmethod]
    #[pyo3(signature = (name, shape, bits, group_size, weight, weight_scale))]
    fn codes(
        name: String,
        shape: (usize, usize),
        bits: u64,
        group_size: Option<usize>,
        weight: Span,
        weight_scale: Span,
    ) -> PyResult<Self> {
        let tensors = Tensors::Codes { codes: weight, scale: weight_scale };
        Self::with_scale(name, shape, (code_bits(bits)?, group_size), weight_scale, tensors)?
            .check(weight.len() == shape.0 * shape.1)
    }

    /// (output channels, input channels)
    #[getter]
    fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }
}

/// One layer's share of a merged one: a layer, its output channels, its input channels.
pub type Part<'py> = (PyRef<'py, Stored>, (usize, usize), (usize, usize));

/// The parts, checked; they lie one below the other. Also their output and input channels together.
pub fn parts<'a>(given: &'a [Part<'_>]) -> PyResult<(Vec<Shard<'a>>, usize, usize)> {
    let mut shards = Vec::with_capacity(given.len());
    for (stored, rows, columns) in given {
        let (rows, columns) = (rows.0..rows.1, columns.0..columns.1);
        let group = stored.group_size.unwrap_or(1);
        if rows.is_empty() || rows.end > stored.n || columns.is_empty() || columns.end > stored.k {
            return Err(value_error(format!(
                "{}: output channels {rows:?} and input channels {columns:?} of {} x {}",
                stored.name, stored.n, stored.k
            )));
        }
        if !columns.start.is_multiple_of(group) || !columns.end.is_multiple_of(group) {
            return Err(value_error(format!("{}: input channels {columns:?} cut a group", stored.name)));
        }
        shards.push(Shard { stored, rows, columns });
    }
    let first = shards.first().ok_or_else(|| value_error("a layer without parts"))?;
    let kind = |s: &Shard<'_>| (s.columns.len(), s.stored.bits, s.stored.group_size);
    let k = first.columns.len();
    if shards.iter().any(|s| kind(s) != kind(first)) {
        return Err(value_error("weights of different inputs, bits or kinds of scales cannot be joined"));
    }
    let n = shards.iter().map(|s| s.rows.len()).sum();
    Ok((shards, n, k))
}

/// The part of a stored layer that a rank holds; see [`Part`].
pub struct Shard<'a> {
    stored: &'a Stored,
    rows: Range<usize>,
    columns: Range<usize>,
}

/// Where a task puts codes, if they are wanted, and what it has made.
type Slot<'a> = Mutex<(Option<&'a mut [i8]>, Option<Result<Scales>>)>;

impl Shard<'_> {
    /// Rows of the tasks: as the layer's blocks are cut, whatever the first row.
    fn blocks(&self) -> Vec<Range<usize>> {
        let (first, last) = (self.rows.start / BLOCK, self.rows.end.div_ceil(BLOCK));
        (first..last).map(|i| self.rows.start.max(i * BLOCK)..self.rows.end.min((i + 1) * BLOCK)).collect()
    }
}

/// The neutral form of parts, one below the other, without the codes if `with_codes` is false. Scales are those of whole
/// rows, so that all ranks multiply the int8 weights that one device would.
///
/// # Errors
/// What the formats refuse: values out of range. The message is that of reading the whole layer.
pub fn read(shards: &[Shard<'_>], n: usize, k: usize, with_codes: bool) -> PyResult<QuantizedWeight> {
    let mut codes = vec![0i8; if with_codes { n * k } else { 0 }];
    let mut rest = codes.as_mut_slice();
    let mut tasks: Vec<(&Shard<'_>, Range<usize>, Slot<'_>)> = Vec::new();
    for shard in shards {
        for rows in shard.blocks() {
            let place = with_codes.then(|| {
                let (place, behind) = std::mem::take(&mut rest).split_at_mut(rows.len() * k);
                rest = behind;
                place
            });
            tasks.push((shard, rows, Mutex::new((place, None))));
        }
    }
    parallel_for(tasks.len(), |i| {
        let (shard, rows, slot) = &tasks[i];
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let part = shard.stored.read_block(rows.clone(), &shard.columns, slot.0.is_some());
        slot.1 = Some(part.map(|part| {
            if let Some(place) = &mut slot.0 {
                place.copy_from_slice(&part.codes);
            }
            part.scales
        }));
    });
    let mut scales: Option<Scales> = None;
    for (shard, _, slot) in tasks {
        let made = slot.into_inner().unwrap_or_else(PoisonError::into_inner).1;
        let part = match made {
            Some(Ok(part)) => part,
            Some(Err(error)) => return Err(shard.stored.whole_error(&error)),
            None => return Err(value_error("a task was not run")),
        };
        match (&mut scales, part) {
            (None, part) => scales = Some(part),
            (Some(Scales::PerChannel(all)), Scales::PerChannel(part)) => all.extend(part),
            (
                Some(Scales::PerGroup { channel, group, .. }),
                Scales::PerGroup { channel: c, group: g, .. },
            ) => {
                channel.extend(c);
                group.extend(g);
            }
            _ => return Err(value_error("weights of different kinds of scales cannot be joined")),
        }
    }
    let scales = scales.ok_or_else(|| value_error("a layer without parts"))?;
    // They all have those of the first.
    let bits = shards.first().map_or(CodeBits::Four, |shard| shard.stored.bits);
    Ok(QuantizedWeight { bits, out_features: n, in_features: k, codes, scales })
}

/// 4 or 8 bits.
pub fn code_bits(bits: u64) -> PyResult<CodeBits> {
    CodeBits::of(bits).ok_or_else(|| value_error(format!("codes of {bits} bits")))
}

impl Stored {
    fn with_scale(
        name: String,
        (n, k): (usize, usize),
        (bits, group_size): (CodeBits, Option<usize>),
        scale: Span,
        tensors: Tensors,
    ) -> PyResult<Self> {
        if let Some(g) = group_size.filter(|g| *g == 0 || !k.is_multiple_of(*g)) {
            return Err(value_error(format!(
                "{name}: {k} input channels are not a multiple of the group size {g}"
            )));
        }
        let scales = n * group_size.map_or(1, |g| k / g);
        Self { name, n, k, bits, group_size, tensors }.check(scale.len() == scales)
    }

    fn check(self, right: bool) -> PyResult<Self> {
        if right && self.n > 0 && self.k > 0 {
            return Ok(self);
        }
        Err(value_error(format!(
            "{}: its tensors do not make {} output and {} input channels",
            self.name, self.n, self.k
        )))
    }

    /// Rows within one block, cut to `columns`.
    fn read_block(
        &self,
        rows: Range<usize>,
        columns: &Range<usize>,
        with_codes: bool,
    ) -> Result<QuantizedWeight> {
        if !with_codes
            && self.group_size.is_none()
            && let Some(scales) = self.channel_scales(&rows)
        {
            return Ok(QuantizedWeight {
                bits: self.bits,
                out_features: rows.len(),
                in_features: columns.len(),
                codes: Vec::new(),
                scales: Scales::PerChannel(scales),
            });
        }
        let whole = match self.tensors {
            Tensors::Qqq { .. } => {
                let first = rows.start / BLOCK * BLOCK;
                let block = self.neutral(first..first + BLOCK)?;
                let inside = rows.start - first..rows.end - first;
                if inside == (0..BLOCK) { Some(block) } else { block.rows(inside) }
            }
            _ => Some(self.neutral(rows)?),
        };
        let part =
            whole.and_then(|w| if *columns == (0..self.k) { Some(w) } else { w.columns(columns.clone()) });
        // `parts` has checked the ranges.
        part.ok_or_else(|| qqq_formats::FormatError::Layout(format!("{}: a part that it has not", self.name)))
    }

    /// The finite scales of rows that have no groups, where reading them needs no codes; `None` otherwise, also for those
    /// that are an error.
    fn channel_scales(&self, rows: &Range<usize>) -> Option<Vec<f32>> {
        // SAFETY: see `neutral`.
        let scales = unsafe {
            match self.tensors {
                Tensors::Packed { scale, .. } => scale.slice::<f32>().ok()?.get(rows.clone())?.to_vec(),
                Tensors::Qqq { s_channel, .. } => {
                    let first = rows.start / BLOCK * BLOCK;
                    let block = s_channel.slice::<f32>().ok()?.get(first..first + BLOCK)?;
                    qqq::channel_scales(block)[rows.start - first..rows.end - first].to_vec()
                }
                // Any int8 could be among codes that are not packed, and all are right of 8 bits.
                Tensors::Codes { scale, .. } if self.bits == CodeBits::Eight => {
                    scale.slice::<f32>().ok()?.get(rows.clone())?.to_vec()
                }
                Tensors::Codes { .. } => return None,
            }
        };
        scales.iter().all(|s| s.is_finite()).then_some(scales)
    }

    /// The neutral form of whole rows; whole blocks for QQQ tiles.
    fn neutral(&self, rows: Range<usize>) -> Result<QuantizedWeight> {
        let bad = |e: PyErr| qqq_formats::FormatError::Layout(format!("{}: {e}", self.name));
        let (n, k, groups) = (rows.len(), self.k, self.group_size.map_or(1, |g| self.k / g));
        // SAFETY: the Python side has checked the types and keeps the tensors alive; lengths were checked when they came.
        unsafe {
            match self.tensors {
                Tensors::Qqq { b, s_channel, s_group } => {
                    let (b, channel) = (b.slice().map_err(bad)?, s_channel.slice().map_err(bad)?);
                    let group: &[f16] =
                        s_group.map(|s| s.slice()).transpose().map_err(bad)?.unwrap_or_default();
                    let packed = qqq::Packed::of_rows(b, channel, group, self.n, rows).ok_or_else(|| {
                        qqq_formats::FormatError::Layout(format!("{}: no whole blocks of tiles", self.name))
                    })?;
                    qqq::unpack(&packed, n, k, self.group_size)
                }
                Tensors::Packed { words, scale } => {
                    let width = compressed_tensors::row_words(self.bits, k);
                    let words = &words.slice().map_err(bad)?[rows.start * width..rows.end * width];
                    let scale = &scale.slice::<f32>().map_err(bad)?[rows.start * groups..rows.end * groups];
                    let kind = (self.bits, Activations::Int8, self.group_size);
                    compressed_tensors::unpack(&self.name, words, scale.to_vec(), (n, k), kind)
                }
                Tensors::Codes { codes, scale } => {
                    let codes = codes.slice::<i8>().map_err(bad)?[rows.start * k..rows.end * k].to_vec();
                    let scale = scale.slice().map_err(bad)?[rows.start * groups..rows.end * groups].to_vec();
                    let kind = (self.bits, Activations::Int8, self.group_size);
                    compressed_tensors::from_codes(&self.name, codes, scale, (n, k), kind)
                }
            }
        }
    }

    /// What is wrong with the layer, in numbers of the whole of it: a block has its own.
    fn whole_error(&self, block: &qqq_formats::FormatError) -> PyErr {
        let error = self.neutral(0..self.n).err().map_or_else(|| block.to_string(), |e| e.to_string());
        value_error(if matches!(self.tensors, Tensors::Qqq { .. }) {
            format!("{}: {error}", self.name)
        } else {
            error
        })
    }
}
