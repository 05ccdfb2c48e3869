//! A thread pool that divides outputs between a few threads.
//!
//! Operators of a small model take microseconds, so a worker that has nothing to do spins
//! for [`SPIN`] before it sleeps, and the caller never waits for a worker that has not
//! started: a region is over when its chunks are done, whoever did them.
#![allow(unsafe_code, reason = "hands a borrowed closure to long-lived threads")]

use std::cell::UnsafeCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::simd::Isa;

/// How long an idle worker spins. Longer than the gaps between the operators of a decode
/// step (a few microseconds), far shorter than a scheduler's time slice.
const SPIN: Duration = Duration::from_micros(40);
/// Polls of the wait loop between looks at the clock.
const POLLS_PER_LOOK: u32 = 64;

/// Threads that compute together, and the instruction set they use.
pub struct Threads {
    isa: Isa,
    pool: Option<Pool>,
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads")
            .field("count", &self.count())
            .field("isa", &self.isa)
            .finish()
    }
}

impl Threads {
    /// A pool of `n` threads, the caller included. With 1, everything runs in the caller.
    #[must_use]
    pub fn new(n: usize) -> Self {
        Self::with_isa(n, Isa::best())
    }

    /// The same with a chosen instruction set. Results do not depend on it.
    #[must_use]
    pub fn with_isa(n: usize, isa: Isa) -> Self {
        Self {
            isa,
            pool: (n > 1).then(|| Pool::new(n - 1)),
        }
    }

    /// Number of threads, the caller included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.pool.as_ref().map_or(1, |pool| pool.workers.len() + 1)
    }

    /// The instruction set in use.
    #[must_use]
    pub const fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `work` once for each of `0..chunks`, in any order, on any thread, and returns
    /// when all calls have returned. A second caller, or a nested call, runs alone.
    ///
    /// # Panics
    /// When a call of `work` panics.
    pub fn run(&self, chunks: usize, work: &(dyn Fn(usize) + Sync)) {
        if let Some(pool) = &self.pool
            && chunks > 1
            && let Some(_entry) = pool.try_enter()
        {
            pool.shared.run(chunks, work);
        } else {
            (0..chunks).for_each(work);
        }
    }
}

struct Pool {
    shared: Arc<Shared>,
    entry: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    fn new(workers: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            active: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            job: UnsafeCell::new(None),
        });
        let spawn = |i| {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name(format!("volley-cpu-{i}"))
                .spawn(move || shared.work())
                .expect("a thread can be started")
        };
        Self {
            workers: (0..workers).map(spawn).collect(),
            entry: Mutex::new(()),
            shared,
        }
    }
}

impl Pool {
    /// The right to open a region; `None` while somebody has one open.
    fn try_enter(&self) -> Option<MutexGuard<'_, ()>> {
        match self.entry.try_lock() {
            Ok(entry) => Some(entry),
            // Some earlier region panicked; it was closed while unwinding.
            Err(TryLockError::Poisoned(entry)) => Some(entry.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake_sleepers();
        for worker in self.workers.drain(..) {
            // A worker catches panics of its work, so joining it cannot fail.
            let _ = worker.join();
        }
    }
}

#[derive(Clone, Copy)]
struct Job {
    chunks: usize,
    work: *const (dyn Fn(usize) + Sync + 'static),
}

/// What caller and workers share.
///
/// `state` counts regions: odd while one is open. A worker first enters (`active + 1`), then
/// looks at `state`; the caller first closes `state`, then waits until nobody is inside. All
/// four are `SeqCst`, so a worker that saw an open region is waited for, and a worker that
/// entered too late sees that it is closed and leaves without touching `job`.
struct Shared {
    state: AtomicU64,
    active: AtomicUsize,
    next: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    job: UnsafeCell<Option<Job>>,
}

// SAFETY: `job` is written only by the one caller that holds `Pool::entry`, while the region is
// closed and after it has seen `active == 0`; it is read only by a worker inside an open
// region. The closure behind the pointer is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is only followed inside an open region.
unsafe impl Send for Shared {}

impl Shared {
    fn run(&self, chunks: usize, work: &(dyn Fn(usize) + Sync)) {
        let work: *const (dyn Fn(usize) + Sync + '_) = work;
        // SAFETY: only the lifetime changes. `Region` (below) is dropped before this function
        // returns or unwinds, and its drop waits until no worker can follow the pointer.
        let work: *const (dyn Fn(usize) + Sync + 'static) = unsafe { std::mem::transmute(work) };
        let job = Job { chunks, work };
        // SAFETY: the previous region is closed and empty, and this is the only caller.
        unsafe { *self.job.get() = Some(job) };
        self.next.store(0, Ordering::Relaxed);
        self.panicked.store(false, Ordering::Relaxed);
        self.state.fetch_add(1, Ordering::SeqCst);
        let region = Region { shared: self };
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.wake_sleepers();
        }
        self.take_chunks(job);
        drop(region);
        assert!(
            !self.panicked.load(Ordering::SeqCst),
            "a thread of the pool panicked"
        );
    }

    fn take_chunks(&self, job: Job) {
        loop {
            let chunk = self.next.fetch_add(1, Ordering::Relaxed);
            if chunk >= job.chunks {
                return;
            }
            // SAFETY: the region is open: the caller is inside `run`, or waits in `Region::drop`
            // for this thread, so the closure is alive.
            unsafe { (*job.work)(chunk) };
        }
    }

    fn work(&self) {
        let mut done = 0;
        while let Some(()) = self.wait_for_region(done) {
            self.active.fetch_add(1, Ordering::SeqCst);
            let state = self.state.load(Ordering::SeqCst);
            if is_open(state) {
                // SAFETY: this thread is inside an open region (see `Shared`).
                let job = unsafe { *self.job.get() };
                let job = job.expect("an open region has a job");
                if catch_unwind(AssertUnwindSafe(|| self.take_chunks(job))).is_err() {
                    self.panicked.store(true, Ordering::SeqCst);
                }
            }
            done = state;
            self.active.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Returns when a region other than `done` is open; `None` when the pool stops.
    fn wait_for_region(&self, done: u64) -> Option<()> {
        let ready = || {
            let state = self.state.load(Ordering::SeqCst);
            is_open(state) && state != done
        };
        let begin = Instant::now();
        while begin.elapsed() < SPIN {
            for _ in 0..POLLS_PER_LOOK {
                if ready() {
                    return Some(());
                }
                std::hint::spin_loop();
            }
        }
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !ready() && !self.stop.load(Ordering::SeqCst) {
            guard = self
                .wake
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        (!self.stop.load(Ordering::SeqCst)).then_some(())
    }

    fn wake_sleepers(&self) {
        drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_all();
    }
}

const fn is_open(state: u64) -> bool {
    state % 2 == 1
}

/// An open region; closing it waits for the workers inside, also while unwinding.
struct Region<'a> {
    shared: &'a Shared,
}

impl Drop for Region<'_> {
    fn drop(&mut self) {
        // Chunks that nobody took (only when unwinding) are abandoned.
        self.shared.next.store(usize::MAX / 2, Ordering::Relaxed);
        self.shared.state.fetch_add(1, Ordering::SeqCst);
        let mut polls = 0u32;
        while self.shared.active.load(Ordering::SeqCst) > 0 {
            polls += 1;
            if polls.is_multiple_of(1 << 12) {
                thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(to: &AtomicUsize, n: usize) {
        to.fetch_add(n, Ordering::Relaxed);
    }

    #[test]
    fn every_chunk_runs_once() {
        for count in [1, 2, 3, 5] {
            let threads = Threads::new(count);
            assert_eq!(threads.count(), count);
            for chunks in [0, 1, 2, 7, 1000] {
                let calls: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
                for round in 1..50 {
                    threads.run(chunks, &|i| add(&calls[i], 1));
                    assert!(
                        calls
                            .iter()
                            .all(|calls| calls.load(Ordering::Relaxed) == round)
                    );
                }
            }
        }
    }

    #[test]
    fn sleeping_workers_wake_up_and_nested_regions_run() {
        let threads = Threads::new(3);
        let sum = AtomicUsize::new(0);
        for _ in 0..5 {
            thread::sleep(Duration::from_millis(2));
            threads.run(4, &|_| threads.run(3, &|i| add(&sum, i)));
        }
        assert_eq!(sum.into_inner(), 5 * 4 * 3);
    }

    #[test]
    fn callers_on_several_threads_do_not_meet() {
        let threads = Threads::new(2);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        let sum = AtomicUsize::new(0);
                        threads.run(9, &|i| add(&sum, i));
                        assert_eq!(sum.into_inner(), 36);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let threads = Threads::new(3);
        for bad in 0..6 {
            let call = || threads.run(6, &|i| assert_ne!(i, bad, "on purpose"));
            assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
            let calls = AtomicUsize::new(0);
            threads.run(6, &|_| add(&calls, 1));
            assert_eq!(calls.into_inner(), 6);
        }
    }
}
