//! What is looked for in logits, on the device that has made them.

use std::sync::{MutexGuard, PoisonError};

use qqq_backend::{Backend, BackendError, PairScore, Pick, Picked, Result};

use super::CudaBackend;
use super::head::{DrawParameters, Drawn, HeadKernel, MOST_DRAWN_COLUMNS};
use super::linear::CudaLinear;
use super::memory::{Buffer, CudaInput, CudaTensor, Elements};
use super::shortlist::{ShortlistScratch, serves};
use super::steps::{CompareParameters, Compared, LossParameters, StepKernel, TopParameters};
use crate::{DType, Device};

/// What was found in rows of logits, on a device.
#[derive(Debug)]
pub struct CudaPicks {
    /// `rows x count`: an element's bits in the high half of a word, its column in the low one; then `rows` [`Drawn`].
    words: Buffer,
    /// `rows` float64.
    chances: Buffer,
    set_chances: usize,
    /// Logits of 16 bits as float32.
    wide: Buffer,
    rows: usize,
    count: usize,
    draws: bool,
}

impl CudaPicks {
    pub(super) fn new(device: &Device) -> crate::Result<Self> {
        let empty = || Buffer::new(device, 0);
        Ok(Self {
            words: empty()?,
            chances: empty()?,
            set_chances: 0,
            wide: empty()?,
            rows: 0,
            count: 0,
            draws: false,
        })
    }

    pub(super) fn set_chances(&mut self, chances: &[f64]) -> crate::Result<()> {
        self.set_chances = chances.len();
        self.chances.write(bytemuck::cast_slice(chances))
    }

    /// Words of the largest elements.
    fn word_bytes(&self) -> usize {
        self.rows * self.count * 8
    }

    /// Waits, and gives what was found.
    pub(super) fn read(&self) -> crate::Result<Vec<Picked>> {
        let drawn = if self.draws { self.rows * size_of::<Drawn>() } else { 0 };
        let bytes = self.words.read(self.word_bytes() + drawn)?;
        let (words, drawn) = bytes.split_at(self.word_bytes().min(bytes.len()));
        let words: Vec<u64> = bytemuck::pod_collect_to_vec(words);
        let drawn: Vec<Drawn> = bytemuck::pod_collect_to_vec(drawn);
        let largest = |row: usize| {
            let words = &words[row * self.count..(row + 1) * self.count];
            let found: Vec<_> = words.iter().map(|w| (f32::from_bits((w >> 32) as u32), *w as u32)).collect();
            // What is not finite comes first.
            if found.first().is_none_or(|(value, _)| value.is_finite()) { found } else { found[..1].to_vec() }
        };
        let picked = |row: usize| Picked {
            largest: largest(row),
            drawn: drawn.get(row).map(|drawn| qqq_backend::Drawn {
                total: drawn.total,
                column: u32::try_from(drawn.column).ok(),
            }),
        };
        Ok((0..self.rows).map(picked).collect())
    }
}

impl CudaBackend {
    pub(super) fn shortlist_scratch(&self) -> MutexGuard<'_, ShortlistScratch> {
        self.shared.shortlist.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Backend::pick`].
    pub(super) fn pick_logits(
        &self,
        x: &CudaInput,
        weight: &CudaLinear,
        pick: Pick,
        out: &mut CudaTensor,
        picks: &mut CudaPicks,
    ) -> Result<()> {
        let (rows, columns, count) = (x.rows, weight.n, pick.largest.min(weight.n));
        (picks.rows, picks.count, picks.draws) = (rows, count, pick.temperature.is_some());
        if pick.temperature.is_none()
            && x.elements == Elements::Half
            && x.cols == weight.k
            && serves(rows, columns, count)
            && let Some((weights, shortlist)) = weight.shortlist(self)?
        {
            return shortlist.find(self, x, (weights, columns), count, (out, &mut picks.words));
        }
        self.linear(x, weight, out)?;
        let mut logits = out.address();
        if out.dtype != DType::F32 {
            picks.wide.reserve(rows * columns * 4)?;
            self.floats(logits, out.dtype, 0, &picks.wide, rows * columns, columns)?;
            logits = picks.wide.address();
        }
        let words = picks.word_bytes();
        picks.words.reserve(words + rows * size_of::<Drawn>())?;
        if count > 0 {
            let parameters = TopParameters {
                logits,
                out: picks.words.address(),
                rows: rows as i32,
                columns: columns as i32,
                count: count as i32,
            };
            // SAFETY: logits and output have these sizes.
            unsafe { self.launch_step(StepKernel::Top, rows, parameters) }?;
        }
        if let Some(temperature) = pick.temperature {
            if picks.set_chances != rows {
                return Err(BackendError::Shape(format!("{} chances of {rows} rows", picks.set_chances)));
            }
            if !(1..=MOST_DRAWN_COLUMNS).contains(&columns) || temperature.is_nan() || temperature <= 0.0 {
                return Err(BackendError::Shape(format!(
                    "a draw of {columns} columns at temperature {temperature}: at most {MOST_DRAWN_COLUMNS}, above 0"
                )));
            }
            let parameters = DrawParameters {
                logits,
                chances: picks.chances.address(),
                out: picks.words.address() + words as u64,
                rows: rows as i32,
                columns: columns as i32,
                temperature,
            };
            if rows > 0 {
                // SAFETY: logits, chances and output have these sizes.
                unsafe { self.launch_head(HeadKernel::Draw, (rows, columns), parameters) }?;
            }
        }
        Ok(())
    }

    /// See [`Backend::losses`].
    pub(super) fn losses_of(
        &self,
        x: &CudaInput,
        weight: &CudaLinear,
        columns: &[u32],
        out: &mut CudaTensor,
    ) -> Result<Option<Vec<f64>>> {
        check_columns(columns, x.rows, weight.n)?;
        if weight.output != DType::F32 {
            return Ok(None);
        }
        self.linear(x, weight, out)?;
        let (rows, device) = (out.rows, self.device());
        let (columns_of, losses) = (Buffer::of(device, columns)?, Buffer::new(device, 8 * rows)?);
        let parameters = LossParameters {
            logits: out.address(),
            columns_of: columns_of.address(),
            out: losses.address(),
            rows: rows as i32,
            columns: out.cols as i32,
        };
        // SAFETY: all have these sizes, and columns are in their rows.
        unsafe { self.launch_step(StepKernel::Losses, rows, parameters) }?;
        Ok(Some(bytemuck::pod_collect_to_vec(&losses.read(8 * rows)?)))
    }

    /// See [`Backend::compare`].
    pub(super) fn compare_on_device(
        &self,
        baseline: &CudaTensor,
        model: &CudaTensor,
        columns: &[u32],
    ) -> Result<Option<Vec<PairScore>>> {
        let (rows, width) = (model.rows, model.cols);
        if (baseline.rows, baseline.cols) != (rows, width) {
            return Err(BackendError::Shape(format!(
                "{} x {} logits beside {rows} x {width}",
                baseline.rows, baseline.cols
            )));
        }
        check_columns(columns, rows, width)?;
        if baseline.dtype != DType::F32 || model.dtype != DType::F32 {
            return Ok(None);
        }
        let (columns_of, found) =
            (Buffer::of(self.device(), columns)?, Buffer::new(self.device(), rows * size_of::<Compared>())?);
        let parameters = CompareParameters {
            baseline: baseline.address(),
            model: model.address(),
            columns_of: columns_of.address(),
            out: found.address(),
            rows: rows as i32,
            columns: width as i32,
        };
        // SAFETY: all have these sizes, columns are in their rows, and all backends of a device work on its one stream.
        unsafe { self.launch_step(StepKernel::Compare, rows, parameters) }?;
        let found: Vec<Compared> = bytemuck::pod_collect_to_vec(&found.read(rows * size_of::<Compared>())?);
        let pair = |c: Compared| PairScore {
            baseline_nll: c.baseline_nll,
            model_nll: c.model_nll,
            // Rounding may leave -1e-8 where the true value is 0 or just above it.
            kl: if c.kl < 0.0 { 0.0 } else { c.kl },
            agree: c.agree == 1,
        };
        Ok(Some(found.into_iter().map(pair).collect()))
    }
}

/// That there is a column for each row, which the row has.
fn check_columns(columns: &[u32], rows: usize, width: usize) -> Result<()> {
    if let Some(column) = columns.iter().find(|column| **column as usize >= width) {
        return Err(BackendError::Shape(format!("column {column} of rows of {width}")));
    }
    if columns.len() != rows {
        return Err(BackendError::Shape(format!("{} columns of {rows} rows", columns.len())));
    }
    Ok(())
}
