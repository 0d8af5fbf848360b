//! Somebody else's threads: a program that embeds this library has a pool of its own, such as OpenMP's. Two pools that
//! spin on the same cores slow each other down, so the library can work on the program's.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::{BackendError, Result};

/// Calls a function once on each of its threads, the caller's included, and returns when all calls have. It may use fewer
/// threads than it has.
pub type RunOnAll = dyn Fn(&(dyn Fn() + Sync)) + Send + Sync;

static TEAM: OnceLock<Team> = OnceLock::new();

/// Threads, and the way to use them.
pub struct Team {
    threads: usize,
    run_on_all: Box<RunOnAll>,
}

impl Team {
    /// A team of `threads` threads, at least one.
    pub fn new(threads: usize, run_on_all: Box<RunOnAll>) -> Self {
        Self { threads: threads.max(1), run_on_all }
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `job(i)` for every `i < tasks`; tasks are claimed one by one, in ascending order.
    ///
    /// # Panics
    /// When a task panics, the (first) panic goes on in the caller once no task is running any more; it never leaves the
    /// function that the team is given.
    pub fn run(&self, tasks: usize, job: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let panic: Mutex<Option<Box<dyn Any + Send>>> = Mutex::new(None);
        let work = || {
            while let task = next.fetch_add(1, Ordering::Relaxed)
                && task < tasks
            {
                if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(task))) {
                    panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
                }
            }
        };
        (self.run_on_all)(&work);
        if let Some(payload) = panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(payload);
        }
    }
}

/// Makes a team the process-wide pool: from now on everything runs on it, and no other threads are started.
///
/// # Errors
/// There is a team already.
pub fn set_team(team: Team) -> Result<()> {
    TEAM.set(team).map_err(|_| {
        BackendError::Unavailable("this process has given the library threads to work on already".into())
    })
}

/// The team, if there is one.
pub(super) fn team() -> Option<&'static Team> {
    TEAM.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scoped(threads: usize) -> Team {
        let run = move |work: &(dyn Fn() + Sync)| {
            std::thread::scope(|s| (0..threads).for_each(|_| drop(s.spawn(work))));
        };
        Team::new(threads, Box::new(run))
    }

    #[test]
    fn runs_every_task_once() {
        for threads in [1, 3] {
            for tasks in if cfg!(miri) { vec![0, 1, 5] } else { vec![0, 1, 2, 64, 1000] } {
                let seen: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                scoped(threads).run(tasks, &|i| {
                    seen[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{tasks} tasks");
            }
        }
    }

    #[test]
    fn a_panic_goes_on_in_the_caller() {
        let done = AtomicUsize::new(0);
        let result = catch_unwind(AssertUnwindSafe(|| {
            scoped(3).run(10, &|i| {
                assert!(i != 4, "task four");
                done.fetch_add(1, Ordering::Relaxed);
            });
        }));
        let payload = result.unwrap_err();
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"task four"));
        assert_eq!(done.load(Ordering::Relaxed), 9);
    }
}
