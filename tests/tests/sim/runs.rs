//! Runs of seeds: one, alone and readable, or many, on every core of the machine.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use volley_testkit::Trace;

use crate::outcome::Outcome;
use crate::plants::Plant;
use crate::world::World;

/// Last events that a failing run prints.
const TAIL_LINES: usize = 120;

thread_local! {
    /// A failure here is expected, or will be told in full by whoever asked.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Keeps panics of runs that are caught off the screen; others are printed as ever.
fn listen_to_the_loud_only() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                loud(panic);
            }
        }));
    });
}

/// Runs a seed; what went wrong, followed by the last events if `lines` are kept.
pub(crate) fn attempt(seed: u64, plant: Option<Plant>, lines: bool) -> Result<Outcome, String> {
    listen_to_the_loud_only();
    let trace = Rc::new(RefCell::new(if lines {
        Trace::with_lines(number("VOLLEY_SIM_LINES").map_or(TAIL_LINES, |lines| lines as usize))
    } else {
        Trace::default()
    }));
    let run = {
        let trace = Rc::clone(&trace);
        move || World::new(seed, plant, trace).run()
    };
    QUIET.set(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    QUIET.set(false);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let text = text.unwrap_or_else(|| "a panic without words".into());
        // The invariant's name comes first, whoever checked it.
        let text = text
            .trim_start_matches("assertion `left == right` failed: ")
            .to_owned();
        format!("{text}\n{}", trace.borrow().tail())
    })
}

/// Runs a seed; a failure is repeated with its events written down.
pub(crate) fn run(seed: u64) -> Outcome {
    attempt(seed, None, false).unwrap_or_else(|_| fail(seed))
}

fn fail(seed: u64) -> ! {
    let again = attempt(seed, None, true).expect_err("equal seeds fail alike");
    panic!(
        "seed {seed} failed:\n{again}\nreplay: VOLLEY_SIM_SEED={seed} \
         cargo test -p volley-tests --test sim clusters"
    );
}

/// Runs all of them; the lowest seed that failed, of those that were begun, fails the test.
pub(crate) fn run_all(seeds: Range<u64>) -> Outcome {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let (next, failed) = (AtomicU64::new(seeds.start), AtomicU64::new(u64::MAX));
    let work = || {
        let mut total = Outcome::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || failed.load(Ordering::Relaxed) < seed {
                return total;
            }
            match attempt(seed, None, false) {
                Ok(outcome) => total.add(&outcome),
                Err(_) => {
                    failed.fetch_min(seed, Ordering::Relaxed);
                }
            }
        }
    };
    let mut total = Outcome::default();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            total.add(&worker.join().expect("failures are caught"));
        }
    });
    match failed.into_inner() {
        u64::MAX => total,
        seed => fail(seed),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "which seeds to replay is asked of the test alone"
)]
pub(crate) fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}
