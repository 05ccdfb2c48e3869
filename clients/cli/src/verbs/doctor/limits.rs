//! What the system allows this process to have.

use rustix::process::{Resource, getrlimit};
use volley_runtime::memory::available_of;

use super::{Finding, kernel_file};
use crate::text;

/// A coordinator with a thousand workers and its segment files.
const DESCRIPTORS_WANTED: u64 = 4_096;

/// A small model with its workers.
const MEMORY_WANTED: u64 = 2 << 30;

pub(super) fn memory() -> Finding {
    const NAME: &str = "memory";
    let Some(available) = kernel_file("/proc/meminfo").and_then(|text| available_of(&text)) else {
        return Finding::ok(NAME, "unknown");
    };
    let limit = kernel_file("/sys/fs/cgroup/memory.max").and_then(|text| text.parse().ok());
    let usable = limit.map_or(available, |limit: u64| limit.min(available));
    let value = match limit {
        Some(limit) => format!(
            "{} available, limited to {} by the cgroup",
            text::bytes(available),
            text::bytes(limit)
        ),
        None => format!("{} available", text::bytes(available)),
    };
    if usable < MEMORY_WANTED {
        return Finding::warn(
            NAME,
            value,
            "every worker holds the model: start fewer, --workers 1",
        );
    }
    Finding::ok(NAME, value)
}

pub(super) fn descriptors() -> Finding {
    const NAME: &str = "open files";
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    if current >= DESCRIPTORS_WANTED {
        return Finding::ok(NAME, format!("at most {}", text::count(current)));
    }
    let fix = match limit.maximum {
        Some(hard) if hard < DESCRIPTORS_WANTED => {
            format!("raise the hard limit (now {hard}) in /etc/security/limits.conf or the unit")
        }
        _ => format!("ulimit -n {DESCRIPTORS_WANTED}"),
    };
    Finding::warn(
        NAME,
        format!("at most {current}: enough for a small cluster"),
        fix,
    )
}
