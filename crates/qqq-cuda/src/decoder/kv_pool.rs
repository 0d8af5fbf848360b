//! Pages of keys and values on a device.

use qqq_backend::{BatchPlan, KvDType, KvLayout, PAGE};

use super::CudaBackend;
use super::memory::{Buffer, copy};
use crate::{CudaError, DType, KernelType, Result};

/// Pages of keys and values of all layers.
#[derive(Debug)]
pub struct CudaKvPool {
    layers: Vec<LayerPages>,
    layout: KvLayout,
    /// Of every layer, at least.
    pages: usize,
    half: DType,
}

/// Pages of a layer: its keys, then its values, each `pages x key heads x PAGE x head size` of the backend's 16-bit type.
#[derive(Debug)]
struct LayerPages {
    buffer: Buffer,
    pages: usize,
}

impl CudaKvPool {
    pub(super) fn new(backend: &CudaBackend, layout: KvLayout, pages: usize) -> Result<Self> {
        if layout.dtype != KvDType::F16 {
            return Err(CudaError::Types(String::from(
                "keys and values of 32 bits on a GPU: its KV cache has 16; use the CPU",
            )));
        }
        let empty = || Ok(LayerPages { buffer: Buffer::new(backend.device(), 0)?, pages: 0 });
        let layers = (0..layout.num_layers).map(|_| empty()).collect::<Result<_>>()?;
        let mut pool = Self { layers, layout, pages: 0, half: backend.half() };
        pool.grow(backend, pages)?;
        Ok(pool)
    }

    /// Room for as many pages, layer by layer: beside the pool there is never more than one layer twice. Where memory ends, the
    /// pool has the pages that it had.
    pub(super) fn grow(&mut self, backend: &CudaBackend, pages: usize) -> Result<()> {
        let half = self.half_bytes(pages).ok_or_else(|| {
            CudaError::Shape(format!("a KV cache of {pages} pages is more than a GPU's kernels can count"))
        })?;
        // Told before layers have grown in vain.
        let device = backend.device();
        let lacks = |layer: &LayerPages| 2 * half - 2 * self.half_bytes(layer.pages.min(pages)).unwrap_or(0);
        let more = self.layers.iter().map(lacks).fold(0, usize::saturating_add);
        let twice = self.layers.iter().map(|layer| layer.buffer.len()).max().unwrap_or(0);
        let available = device.available_memory()?;
        if more > 0 && more.saturating_add(twice) > available {
            return Err(self.too_large(pages, available));
        }
        for layer in 0..self.layers.len() {
            let had = self.layers[layer].pages;
            if had >= pages {
                continue;
            }
            let buffer = Buffer::new(device, 2 * half).map_err(|_| self.too_large(pages, available))?;
            let (old, old_half) = (&self.layers[layer].buffer, self.half_bytes(had).unwrap_or(0));
            copy(backend, old.address(), buffer.address(), old_half)?;
            copy(backend, old.address() + old_half as u64, buffer.address() + half as u64, old_half)?;
            // The one before is freed in the stream's order, behind the copies.
            self.layers[layer] = LayerPages { buffer, pages };
        }
        self.pages = self.pages.max(pages);
        Ok(())
    }

    fn too_large(&self, pages: usize, available: usize) -> CudaError {
        let bytes =
            |pages| self.half_bytes(pages).unwrap_or(usize::MAX).saturating_mul(2 * self.layers.len());
        let fit = self.pages + available / bytes(1).max(1);
        CudaError::Device(format!(
            "a KV cache of {} tokens takes {} MiB, but the GPU's memory has room for about {} tokens ({} MiB): ask for fewer \
             tokens, make the conversation shorter, or use the CPU",
            pages * PAGE,
            bytes(pages) >> 20,
            fit * PAGE,
            bytes(fit) >> 20,
        ))
    }

    /// Bytes of a layer's keys; `None` where they are too many.
    fn half_bytes(&self, pages: usize) -> Option<usize> {
        let elements = [pages, self.layout.num_kv_heads, PAGE, self.layout.head_dim];
        let bytes = elements.into_iter().try_fold(self.half.bytes(), usize::checked_mul);
        bytes.filter(|bytes| bytes.checked_mul(2).is_some() && pages * PAGE <= i32::MAX as usize)
    }

    /// Addresses of a layer's keys and values.
    pub(super) fn layer(&self, layer: usize) -> Result<(u64, u64)> {
        let Some(LayerPages { buffer, pages }) = self.layers.get(layer) else {
            return Err(CudaError::Shape(format!(
                "layer {layer} of {} in the KV cache",
                self.layout.num_layers
            )));
        };
        let keys = buffer.address();
        Ok((keys, keys + self.half_bytes(*pages).unwrap_or(0) as u64))
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
