//! Roles are killed with `kill -9` at random moments, over and over, and started again by hand, so
//! that no supervisor's budget of restarts ends it.
//!
//! A test kills every role [`KILLS`] times; `VOLLEY_TORTURE_KILLS=1000` kills for longer (`just
//! torture` does). It prints its seed; `VOLLEY_TORTURE_SEED=17` draws those moments again, though
//! what the processes do meanwhile is theirs.

mod queue;
mod training;

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use volley_testkit::Rng;

use crate::home::{Done, Home, Running};
use crate::process::until;

/// Kills of each role where nobody asks for more.
const KILLS: u64 = 15;

/// What no process may say, whoever is killed: acknowledged results that are gone, a defect.
const NEVER_SAID: [&str; 3] = ["RESULTS_LOST", "panicked", "error["];

/// How often, and when.
struct Torture {
    kills: u64,
    rng: Rng,
}

impl Torture {
    fn new(what: &str) -> Self {
        let kills = number("VOLLEY_TORTURE_KILLS").unwrap_or(KILLS);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let drawn = now.map_or(1, |now| now.subsec_nanos().into());
        let seed = number("VOLLEY_TORTURE_SEED").unwrap_or(drawn);
        let this = Self {
            kills,
            rng: Rng::new(seed),
        };
        say(&format!("{what}: VOLLEY_TORTURE_SEED={seed}"));
        this
    }

    /// One that still has kills ahead of it.
    fn victim<'r>(&mut self, left: &BTreeMap<&'r str, u64>) -> Option<&'r str> {
        let roles: Vec<&str> = left
            .iter()
            .filter(|(_, n)| **n > 0)
            .map(|(r, _)| *r)
            .collect();
        self.rng.pick(&roles).copied()
    }

    fn pause(&mut self, ms_max: u64) {
        thread::sleep(Duration::from_millis(self.rng.between(0, ms_max)));
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the product's table of variables is not for its tests"
)]
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|e| panic!("{name}={text}: {e}")),
    )
}

#[expect(clippy::print_stdout, reason = "the test's harness captures it")]
fn say(words: &str) {
    println!("{words}");
}

/// A role under a supervisor that never gives up.
struct Role<'h> {
    home: &'h Home,
    command: Vec<String>,
    life: Running,
}

impl<'h> Role<'h> {
    fn start(home: &'h Home, command: &[&str]) -> Self {
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        let life = home.start(&command);
        Self {
            home,
            command,
            life,
        }
    }

    /// Kills it and starts it again.
    #[track_caller]
    fn kill(&mut self) {
        self.assert_lives();
        self.life.signal(Signal::KILL);
        until("the end of a killed process", || {
            self.life.has_ended().then_some(())
        });
        self.assert_said_nothing_bad();
        self.life = self.home.start(&self.command);
    }

    /// Asks it to end.
    #[track_caller]
    fn stop(self) -> Done {
        self.life.signal(Signal::TERM);
        self.life.end().with(0)
    }

    #[track_caller]
    fn assert_lives(&mut self) {
        let ended = self.life.has_ended();
        assert!(!ended, "{:?} ended: {}", self.command, self.life.err());
    }

    #[track_caller]
    fn assert_said_nothing_bad(&self) {
        let said = self.life.err();
        let bad = NEVER_SAID.iter().find(|words| said.contains(**words));
        assert_eq!(bad, None, "{:?} said: {said}", self.command);
    }
}
