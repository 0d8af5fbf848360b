//! Memory of Python's tensors.

use pyo3::prelude::*;

use crate::value_error;

/// The address of a tensor's first element and the number of elements.
#[derive(Clone, Copy, FromPyObject)]
pub struct Span(usize, usize);

impl Span {
    fn check<T>(&self) -> PyResult<*mut T> {
        let Span(address, len) = *self;
        if len > 0 && address == 0 {
            return Err(value_error("a tensor without memory"));
        }
        if !address.is_multiple_of(align_of::<T>()) {
            return Err(value_error(format!("a tensor at {address:#x}, which is not aligned")));
        }
        Ok(if len == 0 { std::ptr::dangling_mut() } else { address as *mut T })
    }

    /// The number of elements.
    pub fn len(self) -> usize {
        self.1
    }

    /// The elements.
    ///
    /// # Safety
    /// The tensor has so many elements of type `T` in host memory, and nobody writes them while the slice is used.
    pub unsafe fn slice<'a, T: bytemuck::AnyBitPattern>(self) -> PyResult<&'a [T]> {
        // SAFETY: the caller's promise; the pointer is aligned and not null.
        Ok(unsafe { std::slice::from_raw_parts(self.check()?, self.1) })
    }

    /// The elements, to be written.
    ///
    /// # Safety
    /// As [`slice`](Self::slice), and nobody else reads them either.
    pub unsafe fn slice_mut<'a, T: bytemuck::AnyBitPattern>(self) -> PyResult<&'a mut [T]> {
        // SAFETY: the caller's promise; the pointer is aligned and not null.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.check()?, self.1) })
    }
}
