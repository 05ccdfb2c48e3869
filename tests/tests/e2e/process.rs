//! Processes of the system, as `/proc` shows them, and waiting.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Nothing that a test waits for takes this long, even on a slow and busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// Often enough to meet a run in the middle of its work.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Waits until `probe` finds something.
pub(crate) fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        let waited = begun.elapsed();
        assert!(waited < DEADLINE, "{what}: not within {waited:?}");
        thread::sleep(LOOK_EVERY);
    }
}

/// A living process.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// The program and its arguments.
    pub(crate) args: Vec<String>,
}

impl Process {
    /// The verb of `volley VERB`.
    pub(crate) fn role(&self) -> &str {
        self.args.get(1).map_or("", String::as_str)
    }
}

/// All living processes whose environment says `HOME=home`. A dead one that nobody has waited for
/// has no environment any more.
pub(crate) fn of_home(home: &Path) -> Vec<Process> {
    let wanted = format!("HOME={}", home.display());
    let entries = fs::read_dir("/proc").expect("a Linux system").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let ours = pids.filter(|pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|var| var == wanted.as_bytes())
    });
    ours.map(|pid| Process {
        pid,
        args: arguments(pid),
    })
    .collect()
}

fn arguments(pid: u32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = line
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty());
    words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

/// Sends a signal; whether the process is still there is for the test to find out.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let _ = kill_process(pid.expect("a process id"), signal);
}

/// Resident memory in bytes.
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a living process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB"));
    let kib: u64 = kib
        .and_then(|kib| kib.trim().parse().ok())
        .expect("VmRSS in kB");
    kib << 10
}
