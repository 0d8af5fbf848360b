//! Threads: a pool whose workers spin for a moment before they sleep, because a decode step hands
//! out some two hundred small jobs and a futex wake costs as much as one of them.
//!
//! Tasks are claimed one by one from a shared counter, so a worker that is late (asleep, or
//! preempted on a busy machine) costs nothing but its help: the caller goes on with the rest.
//!
//! On two cores without other work a decoder of 135M parameters prefills 1.11 times and decodes 1.03 times as fast as on
//! rayon's pool, called from one of rayon's own threads; `examples/pool_speed.rs` measures the patterns. The tests run
//! under Miri as well.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{BackendError, Result, shared::SharedMut, team::team};

/// How long a thread without work spins before it sleeps: longer than the serial pieces between
/// the parallel regions of a decode step, short enough not to be felt by other processes.
const SPIN: Duration = Duration::from_micros(50);

/// The largest thread count that is accepted.
const MAX_THREADS: usize = 1024;

static POOL: OnceLock<Pool> = OnceLock::new();

thread_local! {
    /// Whether this thread is running a task; parallel regions inside one run inline.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// Ends a task on a thread that is not the pool's own.
struct Reset;

impl Drop for Reset {
    fn drop(&mut self) {
        IN_TASK.set(false);
    }
}

/// Runs `job(i)` for every `i < tasks`, on all threads of the process-wide pool (the caller's
/// included) or of the [team](crate::team) in its place; returns when all are done. Tasks are claimed dynamically, in
/// ascending order. A call
/// from within a job, or while another thread uses the pool, runs its tasks on the calling thread.
///
/// # Panics
/// When a task panics, the (first) panic goes on in the caller once no task is running any more.
pub fn parallel_for(tasks: usize, job: impl Fn(usize) + Sync) {
    if tasks <= 1 || IN_TASK.get() {
        (0..tasks).for_each(job);
    } else if let Some(team) = team() {
        team.run(tasks, &|i| {
            IN_TASK.set(true);
            let _reset = Reset;
            job(i);
        });
    } else {
        global().run(tasks, &job);
    }
}

/// Splits `data` into chunks of `chunk` elements (the last may be shorter) and runs
/// `job(index, chunk)` for each, as [`parallel_for`] does.
///
/// # Panics
/// If `chunk` is 0, or a task panics.
pub fn parallel_chunks_mut<T: Send>(data: &mut [T], chunk: usize, job: impl Fn(usize, &mut [T]) + Sync) {
    let len = data.len();
    let base = SharedMut::new(data);
    parallel_for(len.div_ceil(chunk), |i| {
        let start = i * chunk;
        // SAFETY: task i alone touches start..start + chunk, which is cut at the end of `data`.
        job(i, unsafe { base.slice(start..len.min(start + chunk)) });
    });
}

/// Runs `job(index, item)` for every item, as [`parallel_for`] does. An item may hold parts of several buffers that belong
/// together: `a.chunks_mut(n).zip(b.chunks_mut(m))`.
///
/// # Panics
/// If a task panics.
pub fn parallel_each_mut<T: Send>(items: &mut [T], job: impl Fn(usize, &mut T) + Sync) {
    parallel_chunks_mut(items, 1, |i, item| job(i, &mut item[0]));
}

/// Number of threads that [`parallel_for`] uses: the [team](crate::team)'s, else what [`set_num_threads`] said, else
/// `QQQ_THREADS`, else the available cores.
pub fn num_threads() -> usize {
    team().map_or_else(|| global().threads(), |team| team.threads())
}

/// Sets the number of threads of the process-wide pool and starts it; `None` leaves the choice to
/// `QQQ_THREADS` or the available cores.
///
/// # Errors
/// The count (or the value of `QQQ_THREADS`) is not in 1..=1024, or the pool already runs with another.
pub fn set_num_threads(threads: Option<usize>) -> Result<()> {
    let threads = match threads {
        Some(n) => valid_threads(n).ok_or_else(|| {
            BackendError::Unavailable(format!("{n} threads asked for: give a count from 1 to {MAX_THREADS}"))
        })?,
        None => default_threads()?,
    };
    let running = POOL.get_or_init(|| Pool::new(threads)).threads();
    if running == threads {
        return Ok(());
    }
    Err(BackendError::Unavailable(format!(
        "{threads} threads asked for, but the thread pool already runs with {running}: set the count before the first computation"
    )))
}

fn valid_threads(n: usize) -> Option<usize> {
    (1..=MAX_THREADS).contains(&n).then_some(n)
}

fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS)
}

fn default_threads() -> Result<usize> {
    threads_by(std::env::var_os("QQQ_THREADS"))
}

/// `QQQ_THREADS`; empty or -1: all cores.
fn threads_by(variable: Option<OsString>) -> Result<usize> {
    let text = variable.unwrap_or_default();
    match text.to_string_lossy().trim() {
        "" | "-1" => Ok(available_cores()),
        text => text.parse().ok().and_then(valid_threads).ok_or_else(|| {
            BackendError::Unavailable(format!(
                "QQQ_THREADS: \"{text}\" is no number of threads: give a count from 1 to {MAX_THREADS}, or -1 for all cores"
            ))
        }),
    }
}

fn global() -> &'static Pool {
    POOL.get_or_init(|| {
        let threads = default_threads().unwrap_or_else(|error| {
            let cores = available_cores();
            tracing::warn!("{error}; using the {cores} available cores");
            cores
        });
        Pool::new(threads)
    })
}

/// The job in progress: a borrowed closure whose lifetime is hidden. `Pool::run` returns only when
/// every task is done, so it outlives every use.
#[derive(Clone, Copy)]
struct Job {
    tasks: usize,
    run: *const (dyn Fn(usize) + Sync),
}

/// Keeps counters that different threads hammer on out of each other's cache lines.
#[repr(align(128))]
struct Padded<T>(T);

struct Shared {
    /// Tasks not yet claimed. Going from n > 0 to n - 1 claims task `tasks - n` of the current job.
    unclaimed: Padded<AtomicUsize>,
    /// Tasks not yet finished.
    unfinished: Padded<AtomicUsize>,
    /// Written by the holder of `Pool::busy` while `unfinished` is 0; read by whoever has claimed
    /// a task and not yet finished it.
    job: UnsafeCell<Option<Job>>,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    caller_sleeps: AtomicBool,
    done: Mutex<()>,
    all_done: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

// SAFETY: `job` is the only field that is not Sync by itself. It is written only while no task is
// claimed and unfinished, and read only by holders of such a claim: the claim (acquire on
// `unclaimed`) comes after the write (release on `unclaimed`), the next write (acquire on
// `unfinished`) after the read (release on `unfinished`).
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` points to a Sync closure.
unsafe impl Send for Shared {}

/// A thread pool of its own; most code uses the process-wide one through [`parallel_for`].
pub struct Pool {
    shared: Arc<Shared>,
    /// Held by the thread whose job the pool runs.
    busy: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that can panic runs under these locks, but a poisoned one would be usable as it is.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Spins until `ready`, or for about [`SPIN`]; returns whether it became ready.
fn spin_until(ready: impl Fn() -> bool) -> bool {
    let spin = || {
        (0..32).any(|_| {
            let now = ready();
            if !now {
                std::hint::spin_loop();
            }
            now
        })
    };
    if spin() {
        return true;
    }
    let start = Instant::now();
    while start.elapsed() < SPIN {
        if spin() {
            return true;
        }
    }
    ready()
}

impl Pool {
    /// A pool of `threads` threads, the caller's included (so `threads - 1` are started; fewer if
    /// the system refuses more).
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            unclaimed: Padded(AtomicUsize::new(0)),
            unfinished: Padded(AtomicUsize::new(0)),
            job: UnsafeCell::new(None),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            caller_sleeps: AtomicBool::new(false),
            done: Mutex::new(()),
            all_done: Condvar::new(),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let mut workers = Vec::new();
        for i in 1..threads {
            let shared = Arc::clone(&shared);
            match std::thread::Builder::new().name(format!("qqq-{i}")).spawn(move || shared.work()) {
                Ok(handle) => workers.push(handle),
                Err(error) => {
                    tracing::warn!("only {i} of {threads} threads could be started: {error}");
                    break;
                }
            }
        }
        Self { shared, busy: Mutex::new(()), workers }
    }

    /// Threads of this pool, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// As [`parallel_for`], on this pool.
    pub fn run(&self, tasks: usize, job: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() || IN_TASK.get() {
            (0..tasks).for_each(job);
            return;
        }
        let _busy = match self.busy.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => {
                (0..tasks).for_each(job);
                return;
            }
        };
        // SAFETY: only hides the lifetime. The pointer is used by claimed tasks alone, and this
        // function waits for all of them.
        let run = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(
                job,
            )
        };
        self.shared.publish(Job { tasks, run });
        IN_TASK.set(true);
        self.shared.run_claimable();
        self.shared.wait_until_finished();
        IN_TASK.set(false);
        let panic = lock(&self.shared.panic).take();
        drop(_busy);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.sleep));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks and has none of its own.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn publish(&self, job: Job) {
        // SAFETY: the caller holds `Pool::busy` and the previous job is finished (its caller has
        // seen `unfinished` at 0 with acquire ordering), so nobody holds a claim.
        unsafe { *self.job.get() = Some(job) };
        self.unfinished.0.store(job.tasks, Ordering::Relaxed);
        // SeqCst, not just Release: either this thread sees the sleeper below, or the sleeper,
        // which counts itself first, sees the tasks.
        self.unclaimed.0.store(job.tasks, Ordering::SeqCst);
        let sleepers = self.sleepers.load(Ordering::SeqCst);
        if sleepers > 0 {
            drop(lock(&self.sleep));
            if job.tasks > sleepers {
                self.wake.notify_all();
            } else {
                (1..job.tasks).for_each(|_| self.wake.notify_one());
            }
        }
    }

    /// Claims and runs tasks until none is left.
    fn run_claimable(&self) {
        let mut left = self.unclaimed.0.load(Ordering::Relaxed);
        while left > 0 {
            // A success means that this thread owns a task of the job that is current now (even if
            // `left` was read while an earlier one was).
            match self.unclaimed.0.compare_exchange_weak(left, left - 1, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => {
                    self.run_task(left);
                    left = self.unclaimed.0.load(Ordering::Relaxed);
                }
                Err(now) => left = now,
            }
        }
    }

    fn run_task(&self, left: usize) {
        // SAFETY: the claim keeps the job from being replaced until `unfinished` is lowered below,
        // and acquired the write that published it.
        let job = unsafe { *self.job.get() };
        if let Some(job) = job {
            // SAFETY: the closure lives until its caller sees this task finished.
            let run = unsafe { &*job.run };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| run(job.tasks - left))) {
                lock(&self.panic).get_or_insert(payload);
            }
        }
        // SeqCst with `caller_sleeps`, as in `publish` with `sleepers`.
        if self.unfinished.0.fetch_sub(1, Ordering::SeqCst) == 1 && self.caller_sleeps.load(Ordering::SeqCst)
        {
            drop(lock(&self.done));
            self.all_done.notify_all();
        }
    }

    fn wait_until_finished(&self) {
        if spin_until(|| self.unfinished.0.load(Ordering::Acquire) == 0) {
            return;
        }
        let mut guard = lock(&self.done);
        self.caller_sleeps.store(true, Ordering::SeqCst);
        while self.unfinished.0.load(Ordering::SeqCst) != 0 {
            guard = self.all_done.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_sleeps.store(false, Ordering::SeqCst);
    }

    fn work(&self) {
        IN_TASK.set(true);
        while !self.stop.load(Ordering::Relaxed) {
            self.run_claimable();
            if !spin_until(|| {
                self.unclaimed.0.load(Ordering::Relaxed) > 0 || self.stop.load(Ordering::Relaxed)
            }) {
                self.sleep_until_work();
            }
        }
    }

    fn sleep_until_work(&self) {
        let mut guard = lock(&self.sleep);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while self.unclaimed.0.load(Ordering::SeqCst) == 0 && !self.stop.load(Ordering::SeqCst) {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests;
