//! Memory that the system would still give this process.

use std::path::Path;

/// Where the kernel shows its cgroups.
const CGROUPS: &str = "sys/fs/cgroup";

/// The names of a memory cgroup's files, by version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Files {
    limit: &'static str,
    used: &'static str,
    /// Entries of `memory.stat` with the page cache, which the kernel gives back when it has to.
    reclaimable: [&'static str; 2],
}

const VERSION_2: Files = Files {
    limit: "memory.max",
    used: "memory.current",
    reclaimable: ["inactive_file", "active_file"],
};
/// The first version's own entries leave out the groups below; those with `total_` do not.
const VERSION_1: Files = Files {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    reclaimable: ["total_inactive_file", "total_active_file"],
};

/// Bytes that this process can still allocate: what the machine has left, or less where a cgroup
/// limits it. `None` where the system does not tell.
#[must_use]
pub fn available_bytes() -> Option<u64> {
    available_under(Path::new("/"))
}

/// The same of a file system that begins at `root`.
fn available_under(root: &Path) -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(root.join(path)).ok();
    let machine = read(Path::new("proc/meminfo")).and_then(|text| available_of(&text));
    let own = read(Path::new("proc/self/cgroup")).unwrap_or_default();
    let groups = [
        (VERSION_2, Path::new(CGROUPS).to_owned(), path_2(&own)),
        (VERSION_1, Path::new(CGROUPS).join("memory"), path_1(&own)),
    ];
    let mut least = machine;
    for (files, mount, path) in groups {
        // Every group above limits, too. Where a container sees only its own group, the path of
        // the host leads nowhere, and the mount point is that group.
        for group in Path::new(path.unwrap_or_default()).ancestors() {
            let place = mount.join(group.strip_prefix("/").unwrap_or(group));
            let file = |name: &str| read(&place.join(name));
            let (Some(limit), Some(used)) = (file(files.limit), file(files.used)) else {
                continue;
            };
            let stat = file("memory.stat").unwrap_or_default();
            let left = left_of(&limit, &used, reclaimable_of(&stat, files));
            least = least.into_iter().chain(left).min();
        }
    }
    least
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

/// The process's group of version 2 in `/proc/self/cgroup`.
fn path_2(own: &str) -> Option<&str> {
    own.lines().find_map(|line| line.strip_prefix("0::"))
}

/// Its group of version 1 that counts memory: `number:controllers:path`.
fn path_1(own: &str) -> Option<&str> {
    own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let counts = controllers.split(',').any(|name| name == "memory");
        counts.then_some(path)
    })
}

/// The page cache in a group's `memory.stat`.
fn reclaimable_of(stat: &str, files: Files) -> u64 {
    let bytes = |line: &str| {
        let (name, bytes) = line.split_once(' ')?;
        let bytes: u64 = bytes.trim().parse().ok()?;
        files.reclaimable.contains(&name).then_some(bytes)
    };
    stat.lines().filter_map(bytes).fold(0, u64::saturating_add)
}

/// What a cgroup leaves; `None` where its limit is `max`.
fn left_of(limit: &str, used: &str, reclaimable: u64) -> Option<u64> {
    let limit: u64 = limit.trim().parse().ok()?;
    let used: u64 = used.trim().parse().ok()?;
    Some(limit.saturating_sub(used.saturating_sub(reclaimable)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is available where these files are all that the system shows.
    fn available(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().expect("directory");
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(path, text).expect("written");
        }
        available_under(root.path())
    }

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:  8 kB\n");
    const UNIT: &str = "0::/system.slice/volley.service\n";

    #[test]
    fn the_kernels_files_are_read() {
        let text = "MemTotal:  100 kB\nMemAvailable:     64 kB\n";
        assert_eq!(available_of(text), Some(65_536));
        assert_eq!(available_of("MemTotal: 1 kB"), None);
        assert_eq!(left_of("100\n", "30\n", 0), Some(70));
        assert_eq!(left_of("100\n", "130\n", 10), Some(0));
        assert_eq!(left_of("100\n", "30\n", 40), Some(100));
        assert_eq!(left_of("max\n", "30\n", 0), None);
        assert_eq!(available(&[]), None);
        assert_eq!(available(&[MACHINE]), Some(8192));
    }

    #[test]
    fn the_own_group_is_found_in_both_versions() {
        let hybrid = "9:name=systemd:/s\n4:cpu,memory:/box/a:b\n1:cpu:/c\n0::/u\n";
        assert_eq!(path_2(hybrid), Some("/u"));
        assert_eq!(path_1(hybrid), Some("/box/a:b"));
        assert_eq!((path_1(UNIT), path_2("1:cpu:/c\n")), (None, None));
    }

    #[test]
    fn page_cache_is_not_used_memory() {
        let stat = "anon 900\nfile 3000\ninactive_file 2500\nactive_file 500\nslab 7\n";
        assert_eq!(reclaimable_of(stat, VERSION_2), 3000);
        let stat = "inactive_file 1\nactive_file 1\ntotal_inactive_file 30\ntotal_active_file 4\n";
        assert_eq!(reclaimable_of(stat, VERSION_1), 34);
        let full_of_cache = [
            MACHINE,
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "4000\n"),
            ("sys/fs/cgroup/memory.current", "4000\n"),
            (
                "sys/fs/cgroup/memory.stat",
                "inactive_file 2500\nactive_file 500\n",
            ),
        ];
        assert_eq!(available(&full_of_cache), Some(3000));
    }

    #[test]
    fn every_group_above_limits() {
        let unit = |name| format!("sys/fs/cgroup/system.slice/volley.service/{name}");
        let slice = |name| format!("sys/fs/cgroup/system.slice/{name}");
        let of = |unit_max: &str, slice_max: &str| {
            available(&[
                MACHINE,
                ("proc/self/cgroup", UNIT),
                (&unit("memory.max"), unit_max),
                (&unit("memory.current"), "100"),
                (&slice("memory.max"), slice_max),
                (&slice("memory.current"), "300"),
            ])
        };
        assert_eq!(of("1000", "max"), Some(900));
        assert_eq!(of("1000", "1000"), Some(700));
        assert_eq!(of("max", "1000"), Some(700));
        assert_eq!(of("max", "max"), Some(8192));
    }

    #[test]
    fn the_first_version_and_a_path_of_the_host_are_understood() {
        let first = [
            MACHINE,
            ("proc/self/cgroup", "4:memory:/box\n0::/\n"),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "70000\n"),
            ("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "5000\n"),
            ("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "4000\n"),
            (
                "sys/fs/cgroup/memory/box/memory.stat",
                "total_inactive_file 600\n",
            ),
        ];
        assert_eq!(available(&first), Some(1600));
        for own in ["0::/kubepods/pod1/box\n", "0::/../../box\n", ""] {
            let container = [
                ("proc/self/cgroup", own),
                ("sys/fs/cgroup/memory.max", "5000\n"),
                ("sys/fs/cgroup/memory.current", "4000\n"),
            ];
            assert_eq!(available(&container), Some(1000), "{own:?}");
        }
    }
}
