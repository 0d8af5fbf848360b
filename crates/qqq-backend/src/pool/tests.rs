use super::*;
use std::sync::atomic::AtomicU64;

// These tests run under Miri too, which looks for data races and for uses of what is gone (`.ci/run`); it takes
// a thousand times as long, and so gets fewer of everything.

/// Every index exactly once.
fn check(pool: &Pool, tasks: usize) {
    let seen: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
    pool.run(tasks, &|i| {
        seen[i].fetch_add(1, Ordering::Relaxed);
    });
    assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{tasks} tasks");
}

#[test]
fn runs_every_task_once() {
    for threads in if cfg!(miri) { vec![1, 2, 3] } else { vec![1, 2, 3, 8] } {
        let pool = Pool::new(threads);
        assert_eq!(pool.threads(), threads);
        for tasks in if cfg!(miri) { vec![0, 1, 2, 5] } else { vec![0, 1, 2, 3, 7, 64, 1000] } {
            check(&pool, tasks);
        }
    }
}

#[test]
fn stress_small_jobs_with_and_without_sleep() {
    let (threads, rounds, between_sleeps) = if cfg!(miri) { (3, 20, 5) } else { (5, 20_000, 1000) };
    let pool = Pool::new(threads);
    let sum = AtomicU64::new(0);
    let mut expected = 0;
    for round in 0..rounds {
        let tasks = 1 + (round * 7 % 11) as usize;
        pool.run(tasks, &|i| {
            sum.fetch_add(round ^ i as u64, Ordering::Relaxed);
        });
        expected += (0..tasks as u64).map(|i| round ^ i).sum::<u64>();
        if round % between_sleeps == 0 {
            // Long enough for the workers to fall asleep.
            std::thread::sleep(SPIN * 4);
        }
    }
    assert_eq!(sum.load(Ordering::Relaxed), expected);
}

#[test]
fn waits_for_tasks_longer_than_the_spin() {
    let pool = Pool::new(2);
    for _ in 0..if cfg!(miri) { 1 } else { 5 } {
        let done = AtomicUsize::new(0);
        pool.run(2, &|_| {
            std::thread::sleep(Duration::from_millis(5));
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.load(Ordering::Relaxed), 2);
    }
}

#[test]
fn nested_calls_and_concurrent_callers_complete() {
    let rounds = if cfg!(miri) { 3 } else { 200 };
    let pool = Pool::new(3);
    let count = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..rounds {
                    pool.run(4, &|_| {
                        pool.run(3, &|_| {
                            count.fetch_add(1, Ordering::Relaxed);
                        });
                    });
                }
            });
        }
    });
    assert_eq!(count.load(Ordering::Relaxed), 4 * rounds * 4 * 3);
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
    let pool = Pool::new(3);
    let finished = AtomicUsize::new(0);
    let result = catch_unwind(AssertUnwindSafe(|| {
        pool.run(16, &|i| {
            assert!(i != 5, "task five");
            finished.fetch_add(1, Ordering::Relaxed);
        });
    }));
    let payload = result.expect_err("the panic must propagate");
    assert_eq!(payload.downcast_ref::<&str>(), Some(&"task five"));
    assert_eq!(finished.load(Ordering::Relaxed), 15);
    check(&pool, 100);
}

#[test]
fn chunks_cover_the_slice() {
    let mut data = vec![0usize; 103];
    parallel_chunks_mut(&mut data, 10, |i, chunk| {
        assert_eq!(chunk.len(), if i == 10 { 3 } else { 10 });
        chunk.fill(i + 1);
    });
    assert!(data.iter().enumerate().all(|(i, &v)| v == i / 10 + 1));
    let mut many = vec![1u32; 1000];
    parallel_chunks_mut(&mut many, 7, |i, chunk| chunk.iter_mut().for_each(|x| *x += i as u32));
    assert!(many.iter().enumerate().all(|(j, &x)| x == 1 + (j / 7) as u32));
    parallel_chunks_mut(&mut [] as &mut [u8], 4, |_, _| panic!("no chunk"));
}

#[test]
fn items_are_visited_once() {
    let (mut a, mut b) = (vec![0usize; 30], vec![0usize; 10]);
    let mut items: Vec<_> = a.chunks_mut(3).zip(&mut b).collect();
    parallel_each_mut(&mut items, |i, (three, one)| {
        three.fill(i);
        **one += i + 1;
    });
    assert!(a.iter().enumerate().all(|(j, &v)| v == j / 3));
    assert!(b.iter().enumerate().all(|(i, &v)| v == i + 1));
}

#[test]
fn thread_counts_are_checked() {
    assert!(set_num_threads(Some(0)).is_err());
    assert!(set_num_threads(Some(MAX_THREADS + 1)).is_err());
    let running = num_threads();
    assert!(set_num_threads(Some(running)).is_ok());
    let error = set_num_threads(Some(running + 1)).expect_err("already running");
    assert!(error.to_string().contains("already runs"), "{error}");
}
