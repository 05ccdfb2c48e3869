//! What computes: instructions, cores, an accelerator, the clock.

use std::path::Path;

use super::{Finding, kernel_file};

/// Where distributions and container runtimes put the driver's library.
const CUDA_PATHS: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu/libcuda.so.1",
    "/usr/lib/aarch64-linux-gnu/libcuda.so.1",
    "/usr/lib64/libcuda.so.1",
    "/usr/lib/libcuda.so.1",
    "/usr/local/nvidia/lib64/libcuda.so.1",
    "/usr/lib/wsl/lib/libcuda.so.1",
];

pub(super) fn features() -> Finding {
    const NAME: &str = "cpu";
    #[cfg(target_arch = "x86_64")]
    {
        let has_avx512 =
            std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw");
        let has_avx2 =
            std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma");
        match (has_avx512, has_avx2) {
            (true, _) if std::is_x86_feature_detected!("avx512bf16") => {
                Finding::ok(NAME, "x86-64 with AVX-512 and bf16 products")
            }
            (true, _) => Finding::ok(NAME, "x86-64 with AVX-512"),
            (false, true) => Finding::ok(NAME, "x86-64 with AVX2 and FMA"),
            (false, false) => Finding::warn(
                NAME,
                "x86-64 without AVX2",
                "results are the same, but slow: use a machine of the last ten years, or let the \
                 hypervisor pass the host's CPU model through",
            ),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        Finding::ok(
            NAME,
            format!("{}: portable kernels", std::env::consts::ARCH),
        )
    }
}

pub(super) fn cores() -> Finding {
    const NAME: &str = "cores";
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let quota = kernel_file("/sys/fs/cgroup/cpu.max").and_then(|text| quota_of(&text));
    match quota {
        Some(quota) if quota < 1.0 => Finding::warn(
            NAME,
            format!("{cores}, limited to {quota:.2} of one"),
            "raise the CPU limit of this container to at least 1",
        ),
        Some(quota) => Finding::ok(
            NAME,
            format!("{cores}, limited to {quota:.1} by the cgroup"),
        ),
        None => Finding::ok(NAME, cores.to_string()),
    }
}

/// `max 100000` is no limit; `150000 100000` are one and a half cores.
fn quota_of(text: &str) -> Option<f64> {
    let (quota, period) = text.split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (period > 0.0).then_some(quota / period)
}

pub(super) fn gpu() -> Finding {
    const NAME: &str = "gpu";
    const PLAN: &str = "GPU policy is not in this version; CPU is used";
    match CUDA_PATHS.iter().find(|path| Path::new(path).exists()) {
        Some(path) => Finding::ok(NAME, format!("driver library at {path}. {PLAN}")),
        None => Finding::ok(NAME, format!("no driver library found. {PLAN}")),
    }
}

pub(super) fn clock() -> Finding {
    const NAME: &str = "clock";
    const FILE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    match kernel_file(FILE) {
        Some(source) if matches!(&*source, "hpet" | "acpi_pm") => Finding::warn(
            NAME,
            format!("{source}: every reading costs about a microsecond"),
            "boot with clocksource=tsc if the machine's time stamp counter is sound",
        ),
        Some(source) => Finding::ok(NAME, source),
        None => Finding::ok(NAME, "unknown source"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_read() {
        assert_eq!(quota_of("150000 100000"), Some(1.5));
        assert_eq!(quota_of("max 100000"), None);
        assert_eq!(quota_of(""), None);
        assert_eq!(quota_of("1 0"), None);
    }
}
