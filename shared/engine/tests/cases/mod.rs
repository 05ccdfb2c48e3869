//! Runs the cases of a fuzz target and counts what each costs: processor time, memory, panics.
#![allow(
    unsafe_code,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an allocator that counts, and what the cases cost"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use rustix::time::{ClockId, clock_gettime};

use crate::random_model::Noise;

/// The cases of a run; another seed is another run.
pub(crate) const SEED: u64 = 1;
/// Runs of every target's number of cases, which takes about a second of it.
const ROUNDS: u64 = 1;

/// Processor time of a case. The slowest takes a few milliseconds.
const CPU_MS_MAX: f64 = 200.0;

/// Memory of a case, beside [`BYTES_PER_BYTE_MAX`] per byte of its files: threads' scratch, rotary
/// tables, and what libraries keep.
const BYTES_MAX: usize = 8 << 20;
/// The densest is JSON of many small values, which are some thirty times as large in memory.
const BYTES_PER_BYTE_MAX: usize = 100;

/// A single allocation that ends the run: the machine would not survive it.
const ABSURD_BYTES: usize = 4 << 30;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
    static CASE: Cell<u64> = const { Cell::new(0) };
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// The system's allocator, counting what each thread holds.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

impl Counting {
    /// Counts, unless the thread is ending; whether the size is sane.
    fn grow(bytes: usize) -> bool {
        let _ = LIVE.try_with(|live| {
            live.set(live.get().wrapping_add(bytes));
            // Memory of another thread that was freed here leaves a number below zero.
            let held = live.get().cast_signed().max(0).cast_unsigned();
            let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held)));
        });
        if bytes > ABSURD_BYTES {
            let case = CASE.try_with(Cell::get).unwrap_or_default();
            eprintln!("case {case} wants {bytes} bytes at once");
        }
        bytes <= ABSURD_BYTES
    }

    fn shrink(bytes: usize) {
        let _ = LIVE.try_with(|live| live.set(live.get().wrapping_sub(bytes)));
    }
}

// SAFETY: every call goes to the system's allocator with the arguments it came with; null, which is
// returned without one, means that there is no memory. Counting neither allocates nor unwinds: the
// counters are constants at first and have no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match Self::grow(layout.size()) {
            // SAFETY: the caller's promise about `layout` is the one that is asked for.
            true => unsafe { System.alloc(layout) },
            false => std::ptr::null_mut(),
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match Self::grow(layout.size()) {
            // SAFETY: as above.
            true => unsafe { System.alloc_zeroed(layout) },
            false => std::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        Self::shrink(layout.size());
        // SAFETY: the block came from `alloc` above, which is the system's.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !Self::grow(size) {
            return std::ptr::null_mut();
        }
        // SAFETY: as above; on failure the old block stays as it is.
        let new = unsafe { System.realloc(at, layout, size) };
        Self::shrink(if new.is_null() { size } else { layout.size() });
        new
    }
}

fn cpu_ms() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 * 1e-6
}

/// What a target's cases cost and how many were accepted.
#[derive(Default)]
struct Tally {
    target: &'static str,
    accepted: u64,
    refused: u64,
    slowest: (f64, u64),
    largest: (usize, u64),
}

/// Runs the cases of a target. `make` changes files and returns their length; `read` reads them and
/// tells whether they were accepted.
pub(crate) fn fuzz<T>(
    target: &'static str,
    cases: u64,
    mut make: impl FnMut(&mut Noise) -> (T, usize),
    mut read: impl FnMut(&T) -> bool,
) {
    // Panics that libraries are guarded against would fill the screen.
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !READING.get() {
                loud(panic);
            }
        }));
    });
    let name = target.bytes().fold(SEED, |hash, byte| {
        hash.wrapping_mul(0x100_0000_01B3).wrapping_add(byte.into())
    });
    let mut tally = Tally {
        target,
        ..Tally::default()
    };
    for case in 0..cases * ROUNDS {
        let (input, bytes) = make(&mut Noise::new(name.wrapping_add(case.wrapping_mul(7919))));
        CASE.set(case);
        LIVE.set(0);
        PEAK.set(0);
        let begin = cpu_ms();
        READING.set(true);
        let ended = catch_unwind(AssertUnwindSafe(|| read(&input)));
        READING.set(false);
        let (cpu_ms, peak) = (cpu_ms() - begin, PEAK.get());
        let which = format!("{target}, seed {SEED}, case {case}");
        let accepted = ended.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            panic!("{which}: panic: {}", text.unwrap_or("?"))
        });
        let most = BYTES_MAX + BYTES_PER_BYTE_MAX * bytes;
        assert!(peak <= most, "{which}: {peak} bytes of memory for {bytes}");
        assert!(cpu_ms <= CPU_MS_MAX, "{which}: {cpu_ms} ms");
        tally.add(case, accepted, cpu_ms, peak);
    }
    tally.end();
}

impl Tally {
    fn add(&mut self, case: u64, accepted: bool, cpu_ms: f64, peak: usize) {
        self.accepted += u64::from(accepted);
        self.refused += u64::from(!accepted);
        if cpu_ms > self.slowest.0 {
            self.slowest = (cpu_ms, case);
        }
        if peak > self.largest.0 {
            self.largest = (peak, case);
        }
    }

    /// Both sides of every check must have been seen, or the changes are too wild or too tame.
    fn end(&self) {
        let Self {
            target,
            accepted,
            refused,
            slowest: (ms, slow),
            largest: (peak, large),
        } = self;
        println!(
            "{target}: seed {SEED}, {accepted} accepted, {refused} refused, slowest {ms:.1} ms \
             (case {slow}), largest {} KiB (case {large})",
            peak >> 10
        );
        assert!(*accepted > 0 && *refused > 0, "{target}: all alike");
    }
}
