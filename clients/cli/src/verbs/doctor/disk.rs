//! How long a disk takes to promise something: every acknowledged submit waits for it.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use super::Finding;

/// Syncs measured, and the time after which fewer are enough.
const SYNCS: usize = 200;
const TIME: Duration = Duration::from_millis(1_500);

/// A group commit above this is felt by everyone who submits.
const SLOW: Duration = Duration::from_millis(20);

pub(super) fn sync(dir: &Path) -> Finding {
    const NAME: &str = "disk sync";
    match measure(dir) {
        Ok(times) => {
            let (p50, p99) = (percentile(&times, 50), percentile(&times, 99));
            let value = format!(
                "p50 {:.2} ms, p99 {:.2} ms in {}",
                p50.as_secs_f64() * 1e3,
                p99.as_secs_f64() * 1e3,
                dir.display()
            );
            if p50 > SLOW {
                let fix = "keep the cluster's state on a local SSD: --data-dir DIR";
                Finding::warn(NAME, value, fix)
            } else {
                Finding::ok(NAME, value)
            }
        }
        Err(error) => Finding::bad(
            NAME,
            format!("cannot write in {}: {error}", dir.display()),
            "choose a directory that you may write in: volley doctor --dir DIR",
        ),
    }
}

fn measure(dir: &Path) -> io::Result<Vec<Duration>> {
    let path = dir.join(format!(".volley-doctor.{}", std::process::id()));
    let outcome = measure_file(&path);
    // The error that counts is the one above.
    let _ = std::fs::remove_file(&path);
    outcome
}

/// Ascending times of writing 4 KiB and syncing it.
fn measure_file(path: &Path) -> io::Result<Vec<Duration>> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    let (begun, block) = (Instant::now(), [7u8; 4096]);
    let mut times = Vec::with_capacity(SYNCS);
    while times.len() < SYNCS && begun.elapsed() < TIME {
        let at = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        times.push(at.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

/// Of ascending times.
fn percentile(times: &[Duration], percent: usize) -> Duration {
    let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_measured_and_left_clean() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let times = measure(dir.path()).expect("it can be written");
        assert!(!times.is_empty() && times.is_sorted());
        assert_eq!(dir.path().read_dir().expect("it is there").count(), 0);
        assert!(sync(&dir.path().join("missing")).fix.contains("--dir"));
    }

    #[test]
    fn percentiles_of_few_values() {
        let times: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50).as_millis(), 51);
        assert_eq!(percentile(&times, 99).as_millis(), 100);
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }
}
