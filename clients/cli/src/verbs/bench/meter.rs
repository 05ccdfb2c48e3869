//! What processes cost: their time and memory, as the system counts them.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

/// Ticks of the system's counters per second; Linux has shown 100 to programs for decades.
const TICKS_PER_S: f64 = 100.0;

/// The machine, for whoever reads the figures later.
pub(crate) fn machine() -> Value {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load1: f64 = load
        .split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0.0);
    json!({"cpus": cpus, "load1": load1})
}

/// One process.
#[derive(Clone, Debug)]
struct Process {
    parent: u32,
    ticks: u64,
}

/// Time of this process with all its descendants, and of everybody else.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meter {
    own_s: f64,
    all_s: f64,
    at: std::time::Instant,
}

/// What happened since a meter was started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    /// Time of this process and its descendants.
    pub(crate) own_s: f64,
    /// Processors that others kept busy.
    pub(crate) others_cpus: f64,
}

impl Meter {
    /// Begins to count.
    pub(crate) fn start() -> Self {
        Self {
            own_s: own_seconds(),
            all_s: busy_seconds(),
            at: std::time::Instant::now(),
        }
    }

    /// What was spent since.
    pub(crate) fn spent(&self) -> Spent {
        let own_s = own_seconds() - self.own_s;
        let others_s = busy_seconds() - self.all_s - own_s;
        Spent {
            own_s,
            others_cpus: (others_s / self.at.elapsed().as_secs_f64()).max(0.0),
        }
    }
}

fn own_seconds() -> f64 {
    let all = processes();
    let ticks: u64 = family(&all).iter().map(|pid| all[pid].ticks).sum();
    ticks as f64 / TICKS_PER_S
}

fn busy_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    let numbers: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|word| word.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal
    let idle: u64 = numbers.iter().skip(3).take(2).sum();
    (numbers.iter().sum::<u64>() - idle) as f64 / TICKS_PER_S
}

fn processes() -> BTreeMap<u32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, process(pid)?))).collect()
}

fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything; what follows are numbers.
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Process {
        parent: u32::try_from(number(1)?).ok()?,
        ticks: number(11)? + number(12)?,
    })
}

/// This process and its descendants.
fn family(all: &BTreeMap<u32, Process>) -> Vec<u32> {
    let mut family = vec![std::process::id()];
    let mut at = 0;
    while let Some(parent) = family.get(at).copied() {
        let children = all.iter().filter(|(_, process)| process.parent == parent);
        family.extend(children.map(|(pid, _)| *pid));
        at += 1;
    }
    family.retain(|pid| all.contains_key(pid));
    family
}

/// Memory of this process and its descendants, in MiB: resident, and with shared pages divided
/// among those who share them.
pub(crate) fn memory() -> Vec<Value> {
    let all = processes();
    let of = |pid: &u32| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let mib = |name: &str| {
            let line = rollup.lines().find(|line| line.starts_with(name))?;
            let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
            Some((kib / 1024.0 * 10.0).round() / 10.0)
        };
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        let role = words.split('\0').nth(1).unwrap_or_default().to_owned();
        Some(json!({"role": role, "rss_mib": mib("Rss:")?, "pss_mib": mib("Pss:")?}))
    };
    family(&all).iter().filter_map(of).collect()
}

/// Resident memory of a process, in bytes; 0 when it cannot be read.
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_its_own_time_and_memory() {
        let all = processes();
        let family = family(&all);
        assert!(family.contains(&std::process::id()) && !family.contains(&1));
        let meter = Meter::start();
        let mut x = 1_u64;
        while meter.spent().own_s < 0.05 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(
            memory()
                .iter()
                .any(|process| process["rss_mib"].as_f64() > Some(1.0))
        );
    }
}
