//! What is looked for in logits, on the device that has made them.

use std::sync::PoisonError;

use qqq_backend::{Backend, BackendError, Result};

use super::CudaBackend;
use super::linear::CudaLinear;
use super::memory::{Buffer, CudaInput, CudaTensor};
use super::steps::{LossParameters, StepKernel, TopParameters};
use crate::DType;

impl CudaBackend {
    /// See [`Backend::top`].
    pub(super) fn largest_logits(
        &self,
        x: &CudaInput,
        weight: &CudaLinear,
        count: usize,
        out: &mut CudaTensor,
    ) -> Result<Vec<Vec<(f32, u32)>>> {
        self.linear(x, weight, out)?;
        let (rows, columns) = (out.rows, out.cols);
        let count = count.min(columns);
        if rows == 0 || count == 0 {
            return Ok(vec![Vec::new(); rows]);
        }
        if out.dtype != DType::F32 {
            return Ok(out.read()?.chunks(columns).map(|row| qqq_backend::largest(row, count)).collect());
        }
        let mut top = self.shared.top.lock().unwrap_or_else(PoisonError::into_inner);
        top.reserve(rows * count * 8)?;
        let parameters = TopParameters {
            logits: out.address(),
            out: top.address(),
            rows: rows as i32,
            columns: columns as i32,
            count: count as i32,
        };
        // SAFETY: logits and output have these sizes.
        unsafe { self.launch_step(StepKernel::Top, rows, parameters) }?;
        let bytes = top.read(rows * count * 8)?;
        let words: Vec<u64> = bytemuck::pod_collect_to_vec(&bytes);
        Ok(words
            .chunks(count)
            .map(|row| {
                let row: Vec<_> = row.iter().map(|w| (f32::from_bits((w >> 32) as u32), *w as u32)).collect();
                // What is not finite comes first.
                if row[0].0.is_finite() { row } else { row[..1].to_vec() }
            })
            .collect())
    }

    /// See [`Backend::losses`].
    pub(super) fn losses_of(
        &self,
        x: &CudaInput,
        weight: &CudaLinear,
        columns: &[u32],
        out: &mut CudaTensor,
    ) -> Result<Option<Vec<f64>>> {
        if let Some(column) = columns.iter().find(|column| **column as usize >= weight.n) {
            return Err(BackendError::Shape(format!("column {column} of rows of {}", weight.n)));
        }
        if columns.len() != x.rows {
            return Err(BackendError::Shape(format!("{} columns of {} rows", columns.len(), x.rows)));
        }
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
}
