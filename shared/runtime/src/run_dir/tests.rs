use super::*;

fn recipe(name: &str) -> Recipe {
    let text = format!("name = \"{name}\"\nmodel = \"/models/tiny\"\nenvironment = \"guess\"");
    toml::from_str(&text).expect("a recipe")
}

#[test]
fn a_run_is_begun_and_found_again() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let runs = dir.path().join("runs");
    let fault = RunDir::latest(&runs, None).expect_err("nothing there");
    assert_eq!(fault.code, ErrorCode::RunNotFound);
    let first = RunDir::create(&runs, &recipe("guess")).expect("first");
    let second = RunDir::create(&runs, &recipe("guess")).expect("same second");
    let other = RunDir::create(&runs, &recipe("routing")).expect("another");
    assert_ne!(first.run_id(), second.run_id());
    assert_eq!(RunDir::open(first.path()), Ok(first.clone()));
    assert_eq!(first.recipe(), Ok(recipe("guess")));
    assert_eq!(RunDir::all(&runs).len(), 3);
    assert_eq!(RunDir::latest(&runs, Some("routing")), Ok(other));
    let latest = RunDir::latest(&runs, Some("guess")).expect("there are two");
    assert!(latest == first || latest == second);
    assert!(
        RunDir::latest(&runs, Some("none"))
            .expect_err("none")
            .message
            .contains("named none")
    );
}

#[test]
fn a_named_directory_is_never_taken_over() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("here");
    assert_eq!(
        RunDir::open(&path).map_err(|f| f.code),
        Err(ErrorCode::RunNotFound)
    );
    let run = RunDir::create_at(&path, &recipe("guess")).expect("begin");
    let fault = RunDir::create_at(&path, &recipe("guess")).expect_err("taken");
    assert_eq!(fault.code, ErrorCode::RunExists);
    assert!(fault.hint.contains("--resume"), "{fault}");
    assert!(run.logs().is_dir() && run.path().is_absolute());
}

#[test]
fn evaluations_and_progress_are_kept() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let run = RunDir::create(dir.path(), &recipe("guess")).expect("begin");
    let evaluation = |step, greedy| Evaluation {
        step,
        greedy,
        ..Evaluation::default()
    };
    for kept in [
        evaluation(60, 0.9),
        evaluation(0, 0.3),
        evaluation(60, 0.95),
    ] {
        run.keep_evaluation(&kept).expect("keep");
    }
    let info = run.info().expect("run.json");
    assert_eq!(info.before().map(|e| e.greedy), Some(0.3));
    assert_eq!(info.after().map(|e| e.greedy), Some(0.95));
    assert_eq!(
        (info.evaluations.len(), info.progress),
        (2, RunProgress::Training)
    );
    let failed = |info: &mut RunInfoFile| info.set_progress(RunProgress::Failed, Some("x".into()));
    let info = run.update(failed).expect("update");
    assert!(info.ended_unix_ms.is_some());
    assert_eq!(run.info(), Ok(info));
    std::fs::write(run.info_file(), "{").expect("write");
    assert_eq!(
        run.info().map_err(|f| f.code),
        Err(ErrorCode::CheckpointInvalid)
    );
}
