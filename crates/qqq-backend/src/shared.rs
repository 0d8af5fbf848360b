//! Memory that the jobs of one `parallel_for` write together, and scratch memory of a thread.

use std::{cell::RefCell, marker::PhantomData, ops::Range};

use crate::pool;

/// A buffer of which every job writes its own part, for kernels whose parts are not contiguous. What can be cut into
/// chunks goes through [`pool::parallel_chunks_mut`] or [`pool::parallel_each_mut`], which are safe.
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: the methods that give access are unsafe and ask that jobs use disjoint parts.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Shares a slice.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// Pointer to element `index`.
    ///
    /// # Panics
    /// If the buffer is shorter.
    ///
    /// # Safety
    /// No other job may access the elements reached through it in the meantime.
    #[inline]
    pub(crate) unsafe fn at(&self, index: usize) -> *mut T {
        assert!(index <= self.len);
        // SAFETY: within the buffer.
        unsafe { self.start.add(index) }
    }

    /// A part as a slice.
    ///
    /// # Panics
    /// If it is not within the buffer.
    ///
    /// # Safety
    /// No other job may access it in the meantime.
    #[inline]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: within the buffer; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// Runs `job` on ranges of rows that cover `0..rows`: in parallel where the work (`row_cost`
/// elements a row) is worth it.
pub(crate) fn for_row_ranges(rows: usize, row_cost: usize, job: impl Fn(Range<usize>) + Sync) {
    const ELEMENTS_PER_JOB: usize = 16 * 1024;
    let step = ELEMENTS_PER_JOB.div_ceil(row_cost.max(1)).max(1);
    if rows <= step {
        return job(0..rows);
    }
    pool::parallel_for(rows.div_ceil(step), |i| job(i * step..((i + 1) * step).min(rows)));
}

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Scratch memory aligned to cache lines; its content is whatever the last use has left.
#[derive(Default)]
pub(crate) struct Scratch(Vec<Line>);

impl Scratch {
    /// The first `len` values.
    pub(crate) fn take(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; 16]));
        }
        // SAFETY: a line is 16 f32 without padding.
        let all =
            unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast::<f32>(), self.0.len() * 16) };
        &mut all[..len]
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    static SHARED_SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Runs `f` with `len` values of this thread's scratch memory. Calls must not nest.
pub(crate) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| f(scratch.take(len)))
}

/// [`with_scratch`] for memory that lasts over several `parallel_for`, whose jobs may use their
/// own scratch memory. Calls must not nest.
pub(crate) fn with_shared_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    SHARED_SCRATCH.with_borrow_mut(|scratch| f(scratch.take(len)))
}
