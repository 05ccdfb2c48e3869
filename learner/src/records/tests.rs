//! Records that are cut and flipped.

use volley_runtime::run_dir::metrics_line;

use super::*;

fn digest(step: u64) -> String {
    Digest::of(&step.to_le_bytes()).to_string()
}

fn record(step: u64) -> StepRecord {
    let members = |group: u64| (0..4).map(|member| group * 4 + member).collect();
    let group = |group: u64| GroupRecord {
        group,
        members: members(group),
        degraded: false,
    };
    StepRecord {
        step,
        lineage: 0,
        digest: digest(step),
        parent: digest(step - 1),
        bytes: 1000,
        groups: vec![group(2 * step), group(2 * step + 1)],
        dropped: vec![],
        failed: vec![step],
        reference: None,
        report: StepReport {
            step,
            reward_mean: 0.5 + step as f64 / 100.0,
            ..StepReport::default()
        },
    }
}

/// A run of so many steps; its `steps.jsonl` and where each line begins, then the end.
fn run(steps: u64) -> (tempfile::TempDir, Vec<u8>, Vec<usize>) {
    let directory = tempfile::tempdir().expect("directory");
    let (mut records, before) = Records::open(directory.path()).expect("open");
    assert!(before.is_empty());
    for step in 1..=steps {
        records.append(&record(step)).expect("append");
    }
    let bytes = fs::read(directory.path().join("steps.jsonl")).expect("read");
    let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    let begins = std::iter::once(0)
        .chain(ends.map(|(at, _)| at + 1))
        .collect();
    (directory, bytes, begins)
}

/// What `metrics.jsonl` tells: steps up to this one.
fn tell(directory: &Path, upto: u64) {
    let lines: String = (1..=upto)
        .map(|step| metrics_line(&record(step).report))
        .collect();
    fs::write(directory.join("metrics.jsonl"), lines).expect("write");
}

fn opened(directory: &Path, steps: &[u8]) -> Result<Vec<StepRecord>, Fault> {
    fs::write(directory.join("steps.jsonl"), steps).expect("write");
    Records::open(directory).map(|(_, records)| records)
}

#[test]
fn steps_come_back_and_go_on() {
    let (directory, bytes, _) = run(6);
    let records = opened(directory.path(), &bytes).expect("whole");
    assert_eq!(records, (1..=6).map(record).collect::<Vec<_>>());
    assert_eq!(
        fs::read(directory.path().join("steps.jsonl")).expect("read"),
        bytes
    );
}

#[test]
fn numbers_come_back_to_the_bit() {
    let (directory, _, _) = run(0);
    let directory = directory.path();
    let mut odd = record(1);
    // Two of those that a careless reader takes for their neighbours.
    odd.report.entropy = 0.200_191_597_239_381_74;
    odd.report.grad_norm = 0.243_692_800_057_676_02;
    let (mut records, _) = Records::open(directory).expect("open");
    records.append(&odd).expect("append");
    let path = directory.join("steps.jsonl");
    let written = fs::read(&path).expect("read");
    let (_, read) = Records::open(directory).expect("open");
    assert_eq!(read, [odd]);
    assert_eq!(fs::read(&path).expect("read"), written);
}

#[test]
fn a_cut_anywhere_in_the_last_three_records_is_a_torn_line_or_told() {
    let (directory, bytes, begins) = run(6);
    let directory = directory.path();
    for cut in begins[3]..bytes.len() {
        let whole = begins[1..].iter().filter(|end| **end <= cut).count() as u64;
        fs::write(directory.join("steps.jsonl"), &bytes[..cut]).expect("write");
        // A power cut while the line was written: nobody was told of its step.
        tell(directory, whole);
        let found = read_steps(directory).expect("read");
        assert_eq!(found.damage, None, "cut at {cut}");
        // All of a line but its end is the line.
        let due = whole + u64::from(begins.contains(&(cut + 1)));
        assert_eq!(found.records, (1..=due).map(record).collect::<Vec<_>>());
        if cut % 500 == 0 {
            let (_, records) = Records::open(directory).expect("a torn tail");
            assert_eq!(records.len() as u64, due);
            fs::write(directory.join("steps.jsonl"), &bytes[..cut]).expect("write");
        }

        // The same after the step was published: refused with its place.
        tell(directory, 6);
        match Records::open(directory) {
            Ok((_, records)) => assert_eq!((cut + 1, records.len()), (bytes.len(), 6)),
            Err(fault) => {
                assert_eq!(fault.code, ErrorCode::CheckpointInvalid);
                let place = "steps.jsonl is damaged at byte ";
                assert!(fault.message.contains(place), "{fault}");
                assert!(fault.hint.contains("volley journal repair"), "{fault}");
            }
        }
    }
}

#[test]
fn any_flipped_bit_of_the_last_three_records_is_refused_with_its_place() {
    let (directory, bytes, begins) = run(6);
    let directory = directory.path();
    tell(directory, 6);
    let metrics = fs::read(directory.join("metrics.jsonl")).expect("read");
    for bit in begins[3] * 8..bytes.len() * 8 {
        let at = bit / 8;
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (bit % 8);
        fs::write(directory.join("steps.jsonl"), &flipped).expect("write");
        let found = read_steps(directory).expect("read");
        // Without its end the last line is whole still.
        if at + 1 == bytes.len() && found.damage.is_none() {
            assert_eq!(found.records.len(), 6);
            continue;
        }
        let damage = found
            .damage
            .unwrap_or_else(|| panic!("bit {bit} went unnoticed"));
        let line = begins
            .iter()
            .rposition(|begin| *begin <= at)
            .expect("a line");
        assert_eq!(damage.offset as usize, begins[line], "bit {bit}");
        assert_eq!(found.records.len(), line);
    }
    assert!(Records::open(directory).is_err());
    assert_eq!(
        fs::read(directory.join("metrics.jsonl")).expect("read"),
        metrics,
        "left alone"
    );
}

#[test]
fn records_that_vanish_are_missed() {
    let (directory, bytes, begins) = run(3);
    let directory = directory.path();
    fs::remove_file(directory.join("steps.jsonl")).expect("removed");
    let fault = Records::open(directory).expect_err("no steps");
    assert!(
        fault.message.contains("metrics.jsonl tells of step 3"),
        "{fault}"
    );
    let fault = opened(directory, &bytes[..begins[2]]).expect_err("two steps");
    assert!(fault.message.contains("ends with step 2"), "{fault}");
}

#[test]
fn lines_of_builds_without_checksums_are_read_and_get_one() {
    let (directory, bytes, _) = run(3);
    let directory = directory.path();
    let old: String = (1..=3)
        .map(|step| format!("{}\n", json!(record(step))))
        .collect();
    assert_eq!(opened(directory, old.as_bytes()).expect("read").len(), 3);
    assert_eq!(
        fs::read(directory.join("steps.jsonl")).expect("read"),
        bytes
    );
    // But none after one that has a checksum: that would be a way around it.
    let mixed = [&bytes[..], format!("{}\n", json!(record(4))).as_bytes()].concat();
    tell(directory, 4);
    assert!(opened(directory, &mixed).is_err());
}

#[test]
fn a_damaged_checkpoint_is_never_taken() {
    let (directory, _, _) = run(4);
    let directory = directory.path();
    let (records, _) = Records::open(directory).expect("open");
    let (old, new) = (vec![1; 300], vec![2; 400]);
    records.checkpoint(2, &old).expect("checkpoint");
    records.checkpoint(4, &new).expect("checkpoint");
    let newest = || {
        let found = records
            .newest_checkpoint(4)
            .expect("read")
            .expect("one of two");
        (found.step, found.state)
    };
    assert_eq!(newest(), (4, new.clone()));
    for extension in ["json", "state"] {
        let path = directory.join(format!("checkpoints/step-000004.{extension}"));
        let whole = fs::read(&path).expect("read");
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &flipped).expect("write");
            assert_eq!(newest(), (2, old.clone()), "{extension}, bit {bit}");
        }
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).expect("write");
            assert_eq!(newest(), (2, old.clone()), "{extension}, cut {cut}");
        }
        fs::write(&path, &whole).expect("write");
    }
    assert_eq!(newest(), (4, new));
}
