//! Memory that the system would still give this process.

use std::path::Path;

/// Bytes that this process can still allocate: what the machine has left, or less where a cgroup
/// limits it. `None` where the system does not tell.
#[must_use]
pub fn available_bytes() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).ok();
    let machine = read("/proc/meminfo").and_then(|text| available_of(&text));
    let group = read("/sys/fs/cgroup/memory.max").zip(read("/sys/fs/cgroup/memory.current"));
    let group = group.and_then(|(limit, used)| left_of(&limit, &used));
    machine.into_iter().chain(group).min()
}

/// `MemAvailable` of `/proc/meminfo`.
#[must_use]
pub fn available_of(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// What a cgroup leaves; `None` where its limit is `max`.
fn left_of(limit: &str, used: &str) -> Option<u64> {
    let limit: u64 = limit.trim().parse().ok()?;
    Some(limit.saturating_sub(used.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let text = "MemTotal:  100 kB\nMemAvailable:     64 kB\n";
        assert_eq!(available_of(text), Some(65_536));
        assert_eq!(available_of("MemTotal: 1 kB"), None);
        assert_eq!(left_of("100\n", "30\n"), Some(70));
        assert_eq!(left_of("100\n", "130\n"), Some(0));
        assert_eq!(left_of("max\n", "30\n"), None);
    }
}
