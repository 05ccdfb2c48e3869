use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;

/// Bytes, and the digest that they have.
fn adapter(seed: u8, length: usize) -> (Digest, Vec<u8>) {
    let bytes: Vec<u8> = (0..length)
        .map(|at| (at as u8).wrapping_mul(seed))
        .collect();
    (Digest::of(&bytes), bytes)
}

fn host() -> (tempfile::TempDir, HostAdapters) {
    let root = tempfile::tempdir().expect("a temporary directory");
    let host = HostAdapters::at(root.path().join("cache/adapters"));
    (root, host)
}

/// Reads a file and checks its bytes, as a process does that maps it.
fn take(found: &HostAdapter) -> Option<Vec<u8>> {
    let mut bytes = vec![0; found.bytes()];
    found.file().read_exact_at(&mut bytes, 0).ok()?;
    found.is(&bytes).then_some(bytes)
}

fn turn(host: &HostAdapters, digest: Digest) -> Turn {
    match host.look(digest, take).expect("usable") {
        Looked::Yours(turn) => turn,
        other => panic!("{other:?}"),
    }
}

fn here(host: &HostAdapters, digest: Digest) -> Option<Vec<u8>> {
    match host.look(digest, take).expect("usable") {
        Looked::Here(bytes) => Some(bytes),
        Looked::Yours(_) | Looked::Busy => None,
    }
}

fn path(host: &HostAdapters, digest: Digest) -> PathBuf {
    host.path.join(digest.to_string() + SUFFIX)
}

#[test]
fn of_many_that_want_one_adapter_one_fetches() {
    let (_root, host) = host();
    let (digest, bytes) = adapter(7, 100_000);
    let fetches = AtomicU32::new(0);
    let get = || loop {
        match host.look(digest, take).expect("usable") {
            Looked::Here(found) => return found,
            Looked::Yours(turn) => {
                fetches.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
                host.put(digest, &bytes, &turn).expect("there is room");
            }
            Looked::Busy => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(get)).collect();
        for one in all {
            assert_eq!(one.join().expect("no panic"), bytes);
        }
    });
    assert_eq!(fetches.into_inner(), 1);
    let mode = |path: &Path| fs::metadata(path).expect("it is there").mode() & 0o777;
    assert_eq!(
        (mode(&host.path), mode(&path(&host, digest))),
        (0o700, 0o400)
    );
}

#[test]
fn a_process_that_dies_gives_its_turn_back() {
    let (_root, host) = host();
    let (digest, bytes) = adapter(9, 1000);
    let turn = turn(&host, digest);
    // The lock lives in a child that inherits it, and in nothing else.
    let lock = turn._lock.try_clone().expect("a descriptor");
    let sleeper = Command::new("sleep")
        .arg("1000")
        .stdin(Stdio::from(lock))
        .spawn();
    let mut sleeper = sleeper.expect("a process");
    drop(turn);
    assert!(matches!(host.look(digest, take), Ok(Looked::Busy)));
    sleeper.kill().expect("it is ours");
    sleeper.wait().expect("it has ended");
    let Ok(Looked::Yours(turn)) = host.look(digest, take) else {
        panic!("the turn of the dead is free");
    };
    host.put(digest, &bytes, &turn).expect("there is room");
    drop(turn);
    assert_eq!(here(&host, digest), Some(bytes));
}

#[test]
fn what_is_damaged_or_cut_is_removed_and_fetched_again() {
    let (_root, host) = host();
    let (digest, bytes) = adapter(11, 5000);
    let damage: [fn(&mut Vec<u8>); 6] = [
        |file| file[17] ^= 1,
        |file| file.truncate(4096),
        |file| file.clear(),
        |file| file.push(0),
        |file| *file.last_mut().expect("a footer") ^= 1,
        |file| file[..4096].fill(0),
    ];
    for damage in damage {
        let turn = turn(&host, digest);
        host.put(digest, &bytes, &turn).expect("there is room");
        drop(turn);
        assert_eq!(here(&host, digest).as_ref(), Some(&bytes));
        let path = path(&host, digest);
        let mut file = fs::read(&path).expect("readable");
        damage(&mut file);
        fs::remove_file(&path).expect("ours");
        fs::write(&path, file).expect("writable");
        assert_eq!(here(&host, digest), None);
        assert!(!path.exists());
    }
}

#[test]
fn what_others_could_change_is_not_used() {
    let (root, host) = host();
    let (digest, bytes) = adapter(13, 5000);
    host.offer(digest, &bytes).expect("there is room");
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
    };
    mode(&path(&host, digest), 0o620);
    assert_eq!(here(&host, digest), None);

    host.offer(digest, &bytes).expect("there is room");
    let aside = root.path().join("aside");
    fs::rename(path(&host, digest), &aside).expect("ours");
    std::os::unix::fs::symlink(&aside, path(&host, digest)).expect("a link");
    assert_eq!(here(&host, digest), None);

    mode(&host.path, 0o750);
    let refused = host.look(digest, take).expect_err("not ours alone");
    assert!(refused.contains("this user alone"), "{refused}");
    mode(&host.path, 0o700);
    let link = root.path().join("link");
    std::os::unix::fs::symlink(&host.path, &link).expect("a link");
    let refused = HostAdapters::at(link).offer(digest, &bytes);
    assert!(refused.expect_err("a link").contains("this user alone"));
    let nowhere = HostAdapters::at("/proc/none".into()).offer(digest, &bytes);
    assert!(nowhere.expect_err("no place").contains("/proc/none"));
}

#[test]
fn the_least_lately_used_leave_and_foreign_files_stay() {
    let (_root, host) = host();
    let all = [1, 2, 3].map(|seed| adapter(2 * seed + 1, 10_000 - FOOTER));
    for (age, (digest, bytes)) in all.iter().enumerate() {
        host.offer(*digest, bytes).expect("there is room");
        let file = File::open(path(&host, *digest)).expect("it is there");
        let used = SystemTime::now() - Duration::from_hours(10 - age as u64);
        file.set_modified(used).expect("ours");
    }
    let foreign = host.path.join("notes.adapter");
    fs::write(&foreign, "").expect("writable");
    // Used now: it is the second that is the oldest then.
    assert!(here(&host, all[0].0).is_some());
    let (fresh, _) = adapter(99, 10);
    let mine = turn(&host, fresh);
    let remains = host.path.join(format!("{fresh}{SUFFIX}.77{TEMPORARY}"));
    fs::write(&remains, "half").expect("writable");
    // Three are held: as much is free as lets one more be half of it all.
    let free = |files: u64| 2 * 10_000 * files - 30_000;
    host.make_room_beside(10_000, free(4), &mine)
        .expect("all fit");
    let there = || {
        all.each_ref()
            .map(|(digest, _)| path(&host, *digest).exists())
    };
    assert_eq!((there(), remains.exists()), ([true; 3], false));
    host.make_room_beside(10_000, free(3), &mine)
        .expect("one leaves");
    assert_eq!(there(), [true, false, true]);
    host.remove(all[1].0).expect("it has gone already");
    let full = host.make_room_beside(HOST_ADAPTERS_BYTES_MAX + 1, u64::MAX, &mine);
    assert!(full.expect_err("more than all").contains("may hold"));
    assert_eq!((there(), foreign.exists()), ([true, false, true], true));
    host.remove(all[0].0).expect("ours");
    assert_eq!(there(), [false, false, true]);
}

#[test]
fn bytes_are_put_in_their_own_turn_only() {
    let (_root, host) = host();
    let (digest, bytes) = adapter(3, 100);
    let mut other = digest;
    other.0[0] ^= 0xf0;
    let turn = turn(&host, other);
    let refused = host.put(digest, &bytes, &turn).expect_err("not its turn");
    assert!(refused.contains("turn"), "{refused}");
}

#[test]
fn only_our_own_names_are_ours() {
    let digest = Digest::default().to_string();
    for (name, ours) in [
        (format!("{digest}.adapter"), Some(false)),
        (format!("{digest}.adapter.12.tmp"), Some(true)),
        (format!("{digest}.adapter.12"), None),
        (format!("{digest}.packed"), None),
        (digest.replace('0', "g") + SUFFIX, None),
        (format!("{}é.adapter", &digest[1..]), None),
        ("a".to_owned(), None),
    ] {
        assert_eq!(is_ours(&name), ours, "{name}");
    }
}
