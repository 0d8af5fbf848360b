//! What learning needs of a device: memory, kernels and products.

use super::kernels::LearnKernel;
use super::products::Multiplication;
use super::{CudaBackend, cached};
use crate::decoder::memory::{Buffer, copy};
use crate::{CudaError, Result};

/// A device on which kernels of learning run, in the order of the calls: a GPU, or one that is emulated.
///
/// # Errors
/// What the device refuses.
pub trait LearnDevice: Sync {
    /// Its memory, which is given back when dropped.
    type Memory: Send + Sync;

    /// Room for as many bytes, with its address.
    fn room(&self, bytes: usize) -> Result<(Self::Memory, u64)>;
    /// Room with values of the host.
    fn upload(&self, values: &[f32]) -> Result<(Self::Memory, u64)>;
    /// Waits, and gives the first bytes.
    fn read(&self, memory: &Self::Memory, bytes: usize) -> Result<Vec<u8>>;
    /// Copies bytes from one address to another.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;
    /// Launches a kernel for so many [units](LearnKernel::ctas).
    ///
    /// # Safety
    /// The parameters must be those of the kernel, and what they point to the device's memory, of the sizes given.
    unsafe fn launch<T>(&self, kernel: LearnKernel, units: usize, parameters: T) -> Result<()>;
    /// Multiplies matrices.
    ///
    /// # Safety
    /// They must be the device's memory, of these sizes.
    unsafe fn multiply(&self, of: &Multiplication) -> Result<()>;
}

/// Memory of a GPU.
#[derive(Debug)]
pub struct CudaMemory(pub(super) Buffer);

impl LearnDevice for CudaBackend {
    type Memory = CudaMemory;

    fn room(&self, bytes: usize) -> Result<(CudaMemory, u64)> {
        let buffer = Buffer::new(self.device(), bytes)?;
        let address = buffer.address();
        Ok((CudaMemory(buffer), address))
    }

    fn upload(&self, values: &[f32]) -> Result<(CudaMemory, u64)> {
        let buffer = Buffer::of(self.device(), values)?;
        let address = buffer.address();
        Ok((CudaMemory(buffer), address))
    }

    fn read(&self, memory: &CudaMemory, bytes: usize) -> Result<Vec<u8>> {
        memory.0.read(bytes)
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        copy(self, from, to, bytes)
    }

    unsafe fn launch<T>(&self, kernel: LearnKernel, units: usize, mut parameters: T) -> Result<()> {
        if units == 0 {
            return Ok(());
        }
        let loaded = cached(&self.shared.learning, kernel, || self.device().kernel(&kernel.source(), 0))?;
        let ctas = kernel.ctas(units);
        if ctas > i32::MAX as usize {
            return Err(CudaError::Shape(format!("{units} parts of a matrix: too many for a launch")));
        }
        // SAFETY: the caller's promise.
        unsafe { self.launch_with(&loaded, (ctas, kernel.threads(), 0), false, &mut parameters) }
    }

    unsafe fn multiply(&self, of: &Multiplication) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.product(&of.product(), &of.operands()) }
    }
}
