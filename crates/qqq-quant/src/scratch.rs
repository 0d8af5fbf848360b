//! Large arrays of which only a part is written: a triangle of a square matrix.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};

use bytemuck::Pod;
use memmap2::MmapMut;

/// A multiple of the size of a page, on all systems.
#[cfg(target_os = "linux")]
const PAGE: usize = 64 << 10;

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

    /// Gives the memory of the values from `range` back; they are zeros again, or keep their values (where the system knows no
    /// such thing, and those that share a page with others). Small ranges keep it.
    pub fn forget(&mut self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Some(map) = &self.map {
            let bytes = range.start.min(self.len) * size_of::<T>()..range.end.min(self.len) * size_of::<T>();
            // Whole pages, of any size that there is.
            let pages = bytes.start.next_multiple_of(PAGE)..bytes.end / PAGE * PAGE;
            if pages.start < pages.end {
                // SAFETY: the pages are this map's own, which nobody borrows during the call; they are replaced by zeros,
                // which are values of every `Pod` type.
                let _ = unsafe {
                    map.unchecked_advise_range(
                        memmap2::UncheckedAdvice::DontNeed,
                        pages.start,
                        pages.end - pages.start,
                    )
                };
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = range;
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

    #[test]
    fn what_is_forgotten_is_zero_or_as_it_was() {
        let mut values = Zeros::<f32>::new(1 << 20).unwrap();
        values.fill(3.0);
        values.forget(1000..900_000);
        values.forget(5..6);
        values.forget((1 << 20) - 3..2 << 20);
        assert!(values[..1000].iter().chain(&values[900_000..]).all(|v| *v == 3.0));
        assert!(values.iter().all(|v| [0.0, 3.0].contains(v)));
        #[cfg(target_os = "linux")]
        assert_eq!(values[500_000], 0.0);
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
