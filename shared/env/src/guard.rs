//! A panic in an environment is an error of one attempt, never the end of a worker.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;

use crate::environment::{Environment, Observation, Transition};
use crate::error::{EnvError, shortened};

thread_local! {
    /// Whether this thread is inside [`run_guarded`].
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    /// Where the last guarded panic of this thread happened.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs code of an environment; a panic becomes [`EnvError::Panic`] with what it said.
///
/// What the closure borrowed may be half changed after a panic: drop it. [`Guarded`] does.
pub fn run_guarded<T>(code: impl FnOnce() -> Result<T, EnvError>) -> Result<T, EnvError> {
    let outer = GUARDED.replace(true);
    PLACE.take();
    let outcome = catch_unwind(AssertUnwindSafe(code));
    GUARDED.set(outer);
    outcome.unwrap_or_else(|payload| {
        Err(EnvError::Panic {
            message: shortened(said(payload.as_ref())),
            location: PLACE.take(),
        })
    })
}

/// Stops guarded panics from writing to stderr, where a thousand failing rollouts would drown
/// everything else, and lets [`EnvError::Panic`] tell where they happened. All other panics go
/// to the hook that was in force. For the start of a process; later calls do nothing.
pub fn quiet_guarded_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let other = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if GUARDED.get() {
                PLACE.set(place(info));
            } else {
                other(info);
            }
        }));
    });
}

fn place(info: &PanicHookInfo<'_>) -> Option<String> {
    info.location().map(ToString::to_string)
}

fn said(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "(without a message)"
    }
}

/// An environment whose panics are errors. After the first error the inner environment is
/// dropped, guarded as well, and every further call is refused.
pub struct Guarded {
    inner: Option<Box<dyn Environment>>,
}

impl Guarded {
    /// Creates the environment of a scenario, see [`crate::create`].
    pub fn create(name: &str, scenario: &crate::Scenario) -> Result<Self, EnvError> {
        run_guarded(|| crate::create(name, scenario)).map(Self::new)
    }

    /// Guards an environment.
    #[must_use]
    pub const fn new(environment: Box<dyn Environment>) -> Self {
        Self {
            inner: Some(environment),
        }
    }

    fn call<T>(
        &mut self,
        method: impl FnOnce(&mut dyn Environment) -> Result<T, EnvError>,
    ) -> Result<T, EnvError> {
        let Some(inner) = self.inner.as_mut() else {
            return Err(EnvError::OutOfTurn {
                when: "after the environment had failed",
            });
        };
        let outcome = run_guarded(|| method(inner.as_mut()));
        if outcome.is_err() {
            self.discard();
        }
        outcome
    }

    /// Drops the inner environment; a panic in its destructor has nothing left to spoil.
    fn discard(&mut self) {
        let inner = self.inner.take();
        let _ = run_guarded(|| {
            drop(inner);
            Ok(())
        });
    }
}

impl Environment for Guarded {
    fn reset(&mut self) -> Result<Observation, EnvError> {
        self.call(|inner| inner.reset())
    }

    fn step(&mut self, reply: &str) -> Result<Transition, EnvError> {
        self.call(|inner| inner.step(reply))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.discard();
    }
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded")
            .field("alive", &self.inner.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Panics in the way its field says, and again when dropped.
    struct Bomb(fn());

    impl Environment for Bomb {
        fn reset(&mut self) -> Result<Observation, EnvError> {
            (self.0)();
            Err(EnvError::failed("no panic came"))
        }

        fn step(&mut self, _reply: &str) -> Result<Transition, EnvError> {
            Err(EnvError::failed("not stepped"))
        }
    }

    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("destructor");
        }
    }

    fn message(bomb: fn()) -> String {
        quiet_guarded_panics();
        let mut env = Guarded::new(Box::new(Bomb(bomb)));
        match env.reset() {
            Err(EnvError::Panic { message, location }) => {
                assert!(location.is_some_and(|place| place.contains("guard.rs")));
                message
            }
            other => panic!("expected a caught panic, got {other:?}"),
        }
    }

    #[test]
    fn a_panic_tells_what_it_said() {
        assert_eq!(message(|| panic!("plain")), "plain");
        assert_eq!(message(|| panic!("slot {}", 7)), "slot 7");
        assert_eq!(
            message(|| std::panic::panic_any(7_u8)),
            "(without a message)"
        );
    }

    #[test]
    fn after_a_failure_the_environment_is_gone() {
        quiet_guarded_panics();
        let mut env = Guarded::new(Box::new(Bomb(|| ())));
        assert_eq!(env.step("x").expect_err("fails").code(), "ENV_FAILED");
        assert_eq!(env.step("x").expect_err("gone").code(), "INTERNAL");
        assert_eq!(format!("{env:?}"), "Guarded { alive: false }");
    }

    #[test]
    fn sound_results_pass() {
        assert_eq!(run_guarded(|| Ok(3)), Ok(3));
        assert!(!GUARDED.get(), "the mark is taken back");
    }
}
