//! Pages of mapped files.

use std::ops::Range;

use memmap2::Mmap;

/// Takes the pages of a part of a mapped file out of this process's memory; the next read of them gets them back, from the
/// system's cache or from the file. Without this the whole of a model counts as used memory once it has been read.
pub(crate) fn release(map: &Mmap, range: Range<usize>) {
    #[cfg(unix)]
    {
        // SAFETY: the map is shared with the file and never written to, so that its pages hold nothing but what the file
        // does; those that are dropped are read again.
        let done = unsafe {
            map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
        };
        // It is a hint: without it the system takes pages when it lacks memory.
        let _ = done;
    }
    #[cfg(not(unix))]
    let _ = (map, range);
}
