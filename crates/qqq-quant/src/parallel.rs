//! Small helpers over the backend's thread pool. All of them give results that do not depend on the number of threads.

use std::sync::Mutex;

use qqq_backend::cpu::pool::parallel_for;

/// Calls `f(i, &mut items[i])` for every item, on all threads.
pub(crate) fn each_mut<T: Send>(items: &mut [T], f: impl Fn(usize, &mut T) + Sync) {
    // A mutex per item is never contended: it only carries the exclusive borrow into the job.
    let cells: Vec<Mutex<&mut T>> = items.iter_mut().map(Mutex::new).collect();
    parallel_for(cells.len(), |i| {
        let mut item = cells[i].lock().unwrap_or_else(|e| e.into_inner());
        f(i, *item);
    });
}

/// Calls `f(i, chunk)` for every chunk of `len` values, on all threads.
pub(crate) fn chunks_mut<T: Send>(data: &mut [T], len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let mut chunks: Vec<&mut [T]> = data.chunks_mut(len.max(1)).collect();
    each_mut(&mut chunks, |i, chunk| f(i, chunk));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_once() {
        let mut v = vec![1u32; 1000];
        chunks_mut(&mut v, 7, |i, c| c.iter_mut().for_each(|x| *x += i as u32));
        assert!(v.iter().enumerate().all(|(j, &x)| x == 1 + (j / 7) as u32));
    }
}
