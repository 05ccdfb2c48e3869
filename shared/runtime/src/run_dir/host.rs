//! The machine, as far as it explains figures.

use serde::{Deserialize, Serialize};

/// What figures of a run must be read with. No host name: reports are passed around.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Operating system and architecture.
    pub system: String,
    /// Kernel release.
    #[serde(default)]
    pub kernel: String,
    /// Model of the processor; empty where the system does not tell.
    #[serde(default)]
    pub processor: String,
    /// Processors this process may use.
    pub cores: usize,
    /// Memory of the machine; 0 where the system does not tell.
    #[serde(default)]
    pub memory_bytes: u64,
}

impl Host {
    /// This machine.
    #[must_use]
    pub fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Self {
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: value(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: value(&read("/proc/meminfo"), "MemTotal")
                .and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok())
                .map_or(0, |kib| kib << 10),
        }
    }
}

/// Value of the first `key : value` line.
fn value(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found() {
        let text = "MemTotal:       16384 kB\nMemFree: 1 kB\n";
        assert_eq!(value(text, "MemTotal").as_deref(), Some("16384 kB"));
        assert_eq!(value(text, "Mem"), None);
        assert!(Host::here().cores > 0);
    }
}
