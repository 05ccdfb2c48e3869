//! An intake that is cut, flipped and robbed.

use std::fs;
use std::sync::Mutex;

use volley_protocol::ids::{AttemptId, Epoch, JobId, PeerId, RolloutId};
use volley_protocol::trajectory::TrajectoryHeader;

use super::*;

fn trajectory(index: u64) -> Arc<Trajectory> {
    let rollout = RolloutId {
        job: JobId(7),
        index,
    };
    let header = TrajectoryHeader {
        attempt: AttemptId {
            rollout,
            epoch: Epoch(1),
            number: 1,
        },
        worker: PeerId(1),
        instance: index,
        version: None,
        numerics: "test".into(),
        reward: 0.5,
        metrics: std::collections::BTreeMap::new(),
        turns: 1,
        truncated: false,
        transcript: vec![],
        episode_ms: 1,
    };
    Arc::new(Trajectory {
        header,
        tokens: vec![1, 2],
        logprobs: vec![0.0, -0.5],
        sampled: vec![0, 1],
    })
}

fn write(number: u64) -> Write {
    Write {
        number,
        failed: vec![1000 + number],
        kept: vec![trajectory(number)],
    }
}

/// An intake of writes 1 to 3 in one file and 4 to 6 in the next, as a running learner leaves it.
fn filled() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("directory");
    let mut files = Files {
        directory: directory.path().to_owned(),
        current: None,
    };
    for number in 1..=6 {
        let (orders, inbox) = mpsc::sync_channel(PENDING_WRITES_MAX);
        if number == 4 {
            orders.send(Order::Rotate { below: 1 }).expect("room");
        }
        orders.send(Order::Append(write(number))).expect("room");
        drop(orders);
        let told = Mutex::new(0);
        let synced = |upto| *told.lock().expect("one thread") = upto;
        files.serve(&inbox, &synced).expect("a good disk");
        assert_eq!(
            *told.lock().expect("one thread"),
            number,
            "synced before it is told"
        );
    }
    directory
}

fn numbers(writes: &[Write]) -> Vec<u64> {
    let whole = |found: &Write| {
        let due = write(found.number);
        assert_eq!((&found.failed, &found.kept), (&due.failed, &due.kept));
        found.number
    };
    writes.iter().map(whole).collect()
}

fn file(directory: &Path, first: u64) -> PathBuf {
    directory.join(format!("{first:012}.seg"))
}

#[test]
fn a_file_that_is_full_is_sealed_and_all_are_after_a_restart() {
    let directory = filled();
    let sealed = |first| {
        let path = file(directory.path(), first);
        volley_runtime::segment::inspect(&path)
            .expect("inspect")
            .sealed
    };
    assert_eq!([sealed(1), sealed(4)], [true, false]);
    assert_eq!(
        numbers(&read_back(directory.path()).expect("whole")),
        [1, 2, 3, 4, 5, 6]
    );
    assert_eq!([sealed(1), sealed(4)], [true, true]);
}

#[test]
fn a_cut_of_the_last_file_keeps_every_whole_write() {
    let directory = filled();
    fs::remove_file(file(directory.path(), 1)).expect("collected");
    let path = file(directory.path(), 4);
    let bytes = fs::read(&path).expect("read");
    let mut kept = std::collections::BTreeSet::new();
    for cut in 0..=bytes.len() {
        fs::write(&path, &bytes[..cut]).expect("write");
        let writes = read_back(directory.path()).expect("a torn tail is no damage");
        let numbers = numbers(&writes);
        assert_eq!(
            numbers,
            (4..).take(numbers.len()).collect::<Vec<_>>(),
            "cut at {cut}"
        );
        kept.insert(numbers.len());
    }
    assert_eq!(kept.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn a_flipped_bit_of_a_synced_write_is_refused_with_its_place() {
    let directory = filled();
    fs::remove_file(file(directory.path(), 1)).expect("collected");
    let path = file(directory.path(), 4);
    let bytes = fs::read(&path).expect("read");
    let mark = bytes.len() - 12;
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &flipped).expect("write");
        match read_back(directory.path()) {
            Ok(writes) => {
                // The last mark says nothing but that what is before it was synced.
                assert!(bit / 8 >= mark, "bit {bit} went unnoticed");
                assert_eq!(numbers(&writes), [4, 5, 6]);
            }
            Err(fault) => {
                assert_eq!(fault.code, ErrorCode::StoreFailed);
                assert!(fault.message.contains("000000000004.seg"), "{fault}");
                let header = bit / 8 < 16;
                assert!(
                    header || fault.message.contains("damaged at byte"),
                    "{fault}"
                );
                assert!(
                    header || fault.hint.contains("volley journal repair"),
                    "{fault}"
                );
            }
        }
    }
}

#[test]
fn a_file_that_is_missing_or_cut_in_the_middle_is_noticed() {
    let directory = filled();
    let (first, bytes) = {
        let path = file(directory.path(), 1);
        let bytes = fs::read(&path).expect("read");
        (path, bytes)
    };
    for cut in [16, bytes.len() / 2, bytes.len() - 30] {
        fs::write(&first, &bytes[..cut]).expect("write");
        let fault = read_back(directory.path()).expect_err("a cut in the middle");
        assert!(fault.message.contains("goes on with write 4"), "{fault}");
        fs::write(&first, &bytes).expect("write");
    }
    fs::write(&first, &bytes).expect("write");
    assert_eq!(read_back(directory.path()).expect("whole").len(), 6);
}

#[test]
fn what_a_repair_gave_up_is_missing_and_the_rest_is_there() {
    let directory = filled();
    for (first, at) in [(1, 120), (4, 40)] {
        let path = file(directory.path(), first);
        let mut bytes = fs::read(&path).expect("read");
        bytes[at] ^= 4;
        fs::write(&path, &bytes).expect("write");
        assert!(read_back(directory.path()).is_err());
        let repaired = volley_runtime::segment::repair(&path).expect("repair");
        assert_eq!(repaired.expect("damaged").given_up.len(), 1);
    }
    let writes = read_back(directory.path()).expect("repaired");
    assert_eq!(numbers(&writes).len(), 4);
    assert!(numbers(&writes).is_sorted());
    // A second start finds the same.
    assert_eq!(read_back(directory.path()).expect("again").len(), 4);
}
