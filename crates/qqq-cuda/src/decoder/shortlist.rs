//! The largest outputs of an output head without reading all of its 16-bit weights: `head.cuh` says how.

use qqq_backend::Result as BackendResult;

use super::CudaBackend;
use super::head::{
    BLOCK_COLUMNS, CANDIDATES, CHUNK, HEAD_ROW_BYTES, HeadColumn, HeadCopyParameters, HeadKernel,
    HeadParameters, TILE_ROWS, tiles,
};
use super::memory::{Buffer, CudaInput, CudaTensor};
use crate::{DType, Device, KernelType, Result};

/// Bytes of 16-bit weights from which on a copy pays: half of them are not read, but a few more kernels run.
const LEAST_BYTES: usize = 128 << 20;
/// Bytes of the device's memory that a copy must leave free.
const SPARE_BYTES: usize = 2 << 30;
/// Most of the largest outputs that are found so: with more, nearly all bounds overlap.
const MOST: usize = 256;

/// An int8 copy of an output head's weights, with what bounds the error of each output.
#[derive(Debug)]
pub(super) struct Shortlist {
    codes: Buffer,
    columns: Buffer,
    largest_norm: f32,
}

/// Memory of a search: used in the stream's order.
#[derive(Debug)]
pub(super) struct ShortlistScratch {
    /// High digits, then low ones.
    digits: Buffer,
    rows: Buffer,
    /// Largest lower bounds of blocks, then upper ones.
    bounds: Buffer,
    candidates: Buffer,
    counts: Buffer,
}

/// Whether a search for so many of the largest outputs of so many rows saves time.
pub(super) fn serves(rows: usize, n: usize, count: usize) -> bool {
    rows > 0 && count > 0 && count <= MOST.min(n / BLOCK_COLUMNS / 8) && tiles(rows).is_some()
}

impl ShortlistScratch {
    pub(super) fn new(device: &Device) -> Result<Self> {
        let empty = || Buffer::new(device, 0);
        Ok(Self {
            digits: empty()?,
            rows: empty()?,
            bounds: empty()?,
            candidates: empty()?,
            counts: empty()?,
        })
    }
}

impl Shortlist {
    /// The copy of `n x k` weights at an address, if they are so many that it saves time, and there is room for it.
    pub(super) fn where_it_pays(
        backend: &CudaBackend,
        weights: u64,
        (n, k): (usize, usize),
    ) -> Result<Option<Self>> {
        let bytes = n * k.next_multiple_of(CHUNK);
        if n * k * backend.half().bytes() < LEAST_BYTES {
            return Ok(None);
        }
        let free = backend.device().available_memory()?;
        if free < bytes + SPARE_BYTES {
            tracing::info!(
                "the output head is read in 16 bits: an int8 copy of it takes {} MiB, and {} MiB are free",
                bytes >> 20,
                free >> 20
            );
            return Ok(None);
        }
        let made = Self::new(backend, weights, (n, k))?;
        match &made {
            Some(_) => tracing::info!("an int8 copy of the output head takes {} MiB", bytes >> 20),
            None => tracing::info!("the output head is read in 16 bits: not all of its weights are finite"),
        }
        Ok(made)
    }

    /// `None` where a weight is not finite.
    fn new(backend: &CudaBackend, weights: u64, (n, k): (usize, usize)) -> Result<Option<Self>> {
        let device = backend.device();
        let pitch = k.next_multiple_of(CHUNK);
        let (codes, columns) =
            (Buffer::new(device, n * pitch)?, Buffer::new(device, n * size_of::<HeadColumn>())?);
        let parameters = HeadCopyParameters {
            weights,
            codes: codes.address(),
            columns: columns.address(),
            n: n as i32,
            k: k as i32,
            pitch: pitch as i32,
        };
        // SAFETY: weights and outputs have these sizes.
        unsafe { backend.launch_head(HeadKernel::Copy(backend.half()), (0, n), parameters) }?;
        let known: Vec<HeadColumn> =
            bytemuck::pod_collect_to_vec(&columns.read(n * size_of::<HeadColumn>())?);
        // A comparison that NaN fails.
        if !known.iter().all(|column| column.norm < f32::MAX) {
            return Ok(None);
        }
        let largest_norm = known.iter().fold(0.0f32, |largest, column| largest.max(column.norm));
        Ok(Some(Self { codes, columns, largest_norm }))
    }

    /// The `count` largest outputs of each row, to `words`: each with its column in the low half. `out` is memory for all of
    /// them; `n` the columns, and `weights` the address of what the copy was made of.
    pub(super) fn find(
        &self,
        backend: &CudaBackend,
        x: &CudaInput,
        (weights, n): (u64, usize),
        count: usize,
        (out, words): (&mut CudaTensor, &mut Buffer),
    ) -> BackendResult<()> {
        let (m, k) = (x.rows, x.cols);
        let (pitch, blocks) = (k.next_multiple_of(CHUNK), n.div_ceil(BLOCK_COLUMNS));
        let tiles = tiles(m).unwrap_or(1);
        let padded = TILE_ROWS * tiles;
        out.reshape(m, n, DType::F32)?;
        words.reserve(m * count * 8)?;
        let mut scratch = backend.shortlist_scratch();
        let ShortlistScratch { digits, rows, bounds, candidates, counts } = &mut *scratch;
        digits.reserve(2 * padded * pitch)?;
        rows.reserve(padded * HEAD_ROW_BYTES)?;
        bounds.reserve(2 * padded * blocks * 4)?;
        candidates.reserve(padded * CANDIDATES * 4)?;
        counts.reserve(padded * 4)?;
        let parameters = HeadParameters {
            weights,
            codes: self.codes.address(),
            columns: self.columns.address(),
            x: x.buffer.address(),
            high: digits.address(),
            low: digits.address() + (padded * pitch) as u64,
            rows: rows.address(),
            outputs: out.address(),
            lows: bounds.address(),
            highs: bounds.address() + (m * blocks * 4) as u64,
            candidates: candidates.address(),
            counts: counts.address(),
            out: words.address(),
            m: m as i32,
            n: n as i32,
            k: k as i32,
            pitch: pitch as i32,
            blocks: blocks as i32,
            count: count as i32,
            largest_norm: self.largest_norm,
        };
        let half = backend.half();
        for kernel in [
            HeadKernel::Input(half),
            HeadKernel::Bounds(tiles),
            HeadKernel::Candidates,
            HeadKernel::Outputs(half),
            HeadKernel::Largest,
        ] {
            // SAFETY: all of it has these sizes.
            unsafe { backend.launch_head(kernel, (m, n), parameters) }?;
        }
        Ok(())
    }
}
