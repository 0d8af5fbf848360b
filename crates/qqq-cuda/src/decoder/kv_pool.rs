//! Pages of keys and values on a device.

use qqq_backend::{BatchPlan, KvDType, KvLayout, PAGE};

use super::memory::Buffer;
use crate::{CudaError, DType, Device, KernelType, Result};

/// Pages of keys and values of all layers: for each layer its keys, then its values, each
/// `pages x key heads x PAGE x head size` of the backend's 16-bit type.
#[derive(Debug)]
pub struct CudaKvPool {
    buffer: Buffer,
    layout: KvLayout,
    pages: usize,
    half: DType,
}

impl CudaKvPool {
    pub(super) fn new(device: &Device, half: DType, layout: KvLayout, pages: usize) -> Result<Self> {
        if layout.dtype != KvDType::F16 {
            return Err(CudaError::Types(String::from(
                "keys and values of 32 bits on a GPU: its KV cache has 16; use the CPU",
            )));
        }
        let elements = [2, layout.num_layers, pages, layout.num_kv_heads, PAGE, layout.head_dim];
        let bytes = elements.into_iter().try_fold(half.bytes(), usize::checked_mul);
        let bytes = bytes.filter(|_| pages * PAGE <= i32::MAX as usize).ok_or_else(|| {
            CudaError::Shape(format!("a KV cache of {pages} pages is more than a GPU's kernels can count"))
        })?;
        Ok(Self { buffer: Buffer::new(device, bytes)?, layout, pages, half })
    }

    /// Addresses of a layer's keys and values.
    pub(super) fn layer(&self, layer: usize) -> Result<(u64, u64)> {
        if layer >= self.layout.num_layers {
            return Err(CudaError::Shape(format!(
                "layer {layer} of {} in the KV cache",
                self.layout.num_layers
            )));
        }
        let half = self.pages * self.layout.num_kv_heads * PAGE * self.layout.head_dim * self.half.bytes();
        let keys = self.buffer.address() + (2 * layer * half) as u64;
        Ok((keys, keys + half as u64))
    }

    /// That a step's pages are there, and heads are the pool's.
    pub(super) fn check(&self, plan: &BatchPlan, (kv_heads, head_dim): (usize, usize)) -> Result<()> {
        if (kv_heads, head_dim) != (self.layout.num_kv_heads, self.layout.head_dim) {
            return Err(CudaError::Shape(format!(
                "{kv_heads} key heads of width {head_dim} in a KV cache of {} of width {}",
                self.layout.num_kv_heads, self.layout.head_dim
            )));
        }
        match plan.pages.iter().find(|p| **p as usize >= self.pages) {
            Some(page) => Err(CudaError::Shape(format!("page {page} of {}", self.pages))),
            None => Ok(()),
        }
    }
}
