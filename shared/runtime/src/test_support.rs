//! Child roles for tests: this test program again, with one test as its `main`.

use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::env_vars::EnvVar;
use crate::process::{Child, ChildSpec, Handoff, Lifelines, ShutdownSignals};

const ROLE: EnvVar = EnvVar {
    name: "VOLLEY_TEST_ROLE",
    help: "which child role the test program plays",
};

/// `O_CLOEXEC` as `/proc/self/fdinfo` shows it.
const CLOEXEC: u32 = 0o2_000_000;

/// This test program as a child that plays `what`.
pub(crate) fn role(what: &str) -> ChildSpec {
    let args = [
        "--exact",
        "test_support::play_role",
        "--nocapture",
        "--quiet",
    ];
    ChildSpec::role(what, args)
        .expect("this program")
        .env(ROLE.name, what)
}

/// Polls until there is something; panics after ten seconds.
pub(crate) fn wait_until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "nothing came in ten seconds"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The main function of child roles; in the test program itself there is no role to play.
#[test]
fn play_role() {
    let Some(what) = ROLE.text() else {
        return;
    };
    let mut handoff = Handoff::take().expect("handoff");
    match what.as_str() {
        "report-handoff" => report(&mut handoff),
        "launch-two-deep" => launch(),
        "launch-one-deep" => {
            watch(&handoff);
            launch_last(&handoff);
        }
        "watch" => {
            watch(&handoff);
            std::thread::sleep(Duration::from_secs(600));
        }
        "hear-two-signals" => hear_two_signals(),
        "log-two-lines" => {
            crate::telemetry::init("info", &crate::telemetry::LogOutput::Stderr).expect("init");
            tracing::info!("below the filter");
            tracing::warn!("heard");
        }
        other => panic!("no role {other}"),
    }
}

fn say(line: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "{line}").expect("standard error");
}

fn report(handoff: &mut Handoff) {
    let identity = String::from_utf8(handoff.take_identity().expect("identity")).expect("text");
    let second = Handoff::take().expect("second").take_identity();
    let second = if second.is_some() { "some" } else { "none" };
    let lifeline = !handoff.lifelines().is_empty();
    say(&format!(
        "identity={identity} lifeline={lifeline} second={second}"
    ));
    let stdin = std::fs::read_link("/proc/self/fd/0").expect("stdin");
    let strangers = inheritable_fds();
    say(&format!("stdin={} strangers={strangers}", stdin.display()));
}

fn hear_two_signals() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().expect("runtime");
    runtime.block_on(async {
        let mut signals = ShutdownSignals::install().expect("install");
        say("ready");
        for _ in 0..2 {
            let signal = signals.recv().await;
            say(&format!("{signal:?}"));
        }
    });
}

fn watch(handoff: &Handoff) {
    let watching = handoff
        .lifelines()
        .watch(Some(Duration::ZERO))
        .expect("watch");
    assert!(!watching.is_gone());
    say(&format!("watching pid={}", std::process::id()));
}

fn launch() {
    let own = Lifelines::own().expect("lifeline");
    let _child = Child::spawn(role("launch-one-deep").lifelines(own)).expect("spawn");
    std::thread::sleep(Duration::from_secs(600));
}

fn launch_last(handoff: &Handoff) {
    // Only the launcher's lifeline is handed on: the death of this process alone ends nothing.
    let lifelines = handoff.lifelines().clone();
    let _child = Child::spawn(role("watch").lifelines(lifelines)).expect("spawn");
    std::thread::sleep(Duration::from_secs(600));
}

/// Descriptors beyond the three streams that this process would pass on to a child: those that
/// the program above it (cargo's job server) opened so.
pub(crate) fn inheritable_fds() -> usize {
    let descriptors = std::fs::read_dir("/proc/self/fdinfo").expect("fdinfo");
    let inheritable = |entry: std::fs::DirEntry| {
        let number: u32 = entry.file_name().to_str()?.parse().ok()?;
        let info = std::fs::read_to_string(entry.path()).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let flags = u32::from_str_radix(flags.trim(), 8).ok()?;
        (number > 2 && flags & CLOEXEC == 0).then_some(number)
    };
    descriptors
        .filter_map(|entry| inheritable(entry.ok()?))
        .count()
}
