//! Large arrays of which only a part is written: a triangle of a square matrix.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::MmapMut;

/// Zeros, in pages that take memory once something was written to them, and that the system has back when this is dropped.
///
/// A vector's memory may have been used before, and is then filled with zeros one by one; and an allocator may keep it.
pub(crate) struct Zeros<T> {
    /// `None`: no values.
    map: Option<MmapMut>,
    len: usize,
    kind: PhantomData<T>,
}

impl<T: Pod> Zeros<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// The system has not so much memory.
    pub fn new(len: usize) -> std::io::Result<Self> {
        let map = match len.checked_mul(size_of::<T>()) {
            Some(0) => None,
            Some(bytes) => Some(MmapMut::map_anon(bytes)?),
            None => return Err(std::io::ErrorKind::OutOfMemory.into()),
        };
        #[cfg(target_os = "linux")]
        if let Some(map) = &map {
            // Huge pages would hold the other triangle as well. Where there are none this is refused, and not needed.
            let _ = map.advise(memmap2::Advice::NoHugePage);
        }
        Ok(Self { map, len, kind: PhantomData })
    }
}

impl<T: Pod> Deref for Zeros<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        self.map.as_ref().map_or(&[], |map| &bytemuck::cast_slice(map)[..self.len])
    }
}

impl<T: Pod> DerefMut for Zeros<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let len = self.len;
        self.map.as_mut().map_or(&mut [], |map| &mut bytemuck::cast_slice_mut(map)[..len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_and_the_rest_is_zero() {
        let mut zeros = Zeros::<f64>::new(10_000).unwrap();
        zeros[9_999] = 2.5;
        assert_eq!((zeros.len(), zeros[0], zeros[9_999]), (10_000, 0.0, 2.5));
        assert!(Zeros::<f32>::new(0).unwrap().is_empty());
        assert!(Zeros::<f64>::new(usize::MAX).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_not_written_takes_no_memory() {
        let (rows, width) = (64, 1 << 20);
        let resident = || qqq_model::memory::used().unwrap().resident;
        let mut zeros = Zeros::<f64>::new(rows * width).unwrap();
        let before = resident();
        zeros.iter_mut().step_by(width).for_each(|first| *first = 1.0);
        assert_eq!(zeros.iter().sum::<f64>(), rows as f64);
        // Half a gigabyte, of which 64 pages were written to; other tests run beside this one.
        assert!(resident().saturating_sub(before) < 256 << 20);
    }
}
