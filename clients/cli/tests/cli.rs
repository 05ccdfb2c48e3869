//! The binary as a person or a script meets it: words, streams, exit statuses.

use std::process::{Command, Output};

use volley_protocol::ErrorCode;

/// The binary on a machine where nothing runs.
fn volley(args: &[&str]) -> Output {
    let nowhere = tempfile::tempdir().expect("a temporary directory");
    Command::new(env!("CARGO_BIN_EXE_volley"))
        .args(args)
        .current_dir(nowhere.path())
        .env("HOME", nowhere.path())
        .env("XDG_RUNTIME_DIR", nowhere.path())
        .env("XDG_STATE_HOME", nowhere.path())
        .env_remove("VOLLEY_ADDR")
        .output()
        .expect("the binary starts")
}

fn status(output: &Output) -> i32 {
    output.status.code().expect("no signal ended it")
}

fn out(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("UTF-8")
}

fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("UTF-8")
}

#[test]
fn help_names_every_verb_and_the_exit_statuses() {
    let output = volley(&["--help"]);
    assert_eq!(status(&output), 0);
    let verbs = [
        "train",
        "up",
        "coordinator",
        "worker",
        "learner",
        "map",
        "put",
        "job",
        "run",
        "adapter",
        "monitor",
        "doctor",
        "explain",
        "completions",
        "policy",
    ];
    for verb in verbs {
        let line = format!("\n  {verb} ");
        assert!(out(&output).contains(&line), "{verb} is not in the help");
        assert_eq!(status(&volley(&[verb, "--help"])), 0, "{verb} --help");
    }
    assert!(out(&output).contains("69 coordinator unreachable"));
    assert_eq!(
        out(&volley(&["--version"])),
        concat!("volley ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn wrong_usage_is_two_and_says_what_was_meant() {
    for (args, words) in [
        (&["mapp"][..], "map"),
        (&[], "Usage"),
        (&["map", "guess"], "--seeds"),
        (&["map", "guess", "--seeds", "16"], "0..16"),
        (&["map", "guess", "--seeds", "4..4"], "nothing"),
        (&["map", "gues", "--seeds", "0..4"], "guess"),
        (
            &["map", "faulty", "--seeds", "0..4", "--option", "mod=nan"],
            "mode",
        ),
        (&["explain", "QUEUE_FUL"], "QUEUE_FULL"),
        (&["job", "list", "--addr", "nonsense"], "HOST:PORT"),
        (&["monitor", "--watch"], "--json"),
    ] {
        let output = volley(args);
        assert_eq!(status(&output), 2, "{args:?}: {}", err(&output));
        assert!(err(&output).contains(words), "{args:?}: {}", err(&output));
        assert_eq!(out(&output), "", "{args:?}: an error is not data");
    }
}

#[test]
fn without_a_cluster_every_client_says_how_to_start_one() {
    for args in [
        &["map", "guess", "--seeds", "0..4"][..],
        &["put", "guess", "--seeds", "0..4"],
        &["job", "list"],
        &["job", "cancel", "abcd"],
        &["run", "list"],
        &["adapter", "list", "x"],
        &["monitor"],
        &["monitor", "--once", "--json"],
    ] {
        let output = volley(args);
        assert_eq!(status(&output), 69, "{args:?}: {}", err(&output));
        assert!(
            err(&output).starts_with("error[COORDINATOR_UNREACHABLE]: "),
            "{}",
            err(&output)
        );
        assert!(
            err(&output).contains("hint: start one: volley up"),
            "{}",
            err(&output)
        );
        assert_eq!(out(&output), "");
    }
}

#[test]
fn every_code_is_explained() {
    for code in ErrorCode::ALL {
        let output = volley(&["explain", code.name()]);
        assert_eq!(status(&output), 0);
        assert!(out(&output).starts_with(&format!("# {}\n", code.name())));
        assert!(out(&output).contains("## What to do"));
    }
    // Those of the link, too, which only logs and messages name.
    let pages = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors");
    let pages = std::fs::read_dir(pages).expect("the pages").flatten();
    let names: Vec<String> = pages
        .filter_map(|page| Some(page.file_name().to_str()?.strip_suffix(".md")?.to_owned()))
        .collect();
    for name in &names {
        let output = volley(&["explain", name]);
        assert!(out(&output).starts_with(&format!("# {name}\n")), "{name}");
    }
    let all = volley(&["explain"]);
    assert_eq!(out(&all).lines().count(), names.len());
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let script = format!("{} explain | head -n 1", env!("CARGO_BIN_EXE_volley"));
    let output = Command::new("bash")
        .args(["-o", "pipefail", "-c", &script])
        .output()
        .expect("a shell");
    assert_eq!((status(&output), err(&output)), (0, ""));
}

#[test]
fn completions_know_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let output = volley(&["completions", shell]);
        assert_eq!(status(&output), 0);
        assert!(out(&output).contains("monitor"), "{shell}");
    }
}

#[test]
fn the_doctor_tells_facts_with_fixes() {
    let output = volley(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_str(out(&output)).expect("JSON");
    assert_eq!(report["schema"], "volley.doctor/1");
    let findings = report["findings"].as_array().expect("a list");
    assert_eq!(findings.len(), 10);
    for finding in findings {
        let is_fine = finding["level"] == "ok";
        assert_eq!(finding["fix"] == "", is_fine, "{finding}");
    }
    let expected = i32::from(report["worst"] == "bad");
    assert_eq!(status(&output), expected);
    let words = volley(&["doctor"]);
    assert!(out(&words).contains("GPU policy is not in this version; CPU is used"));
}

#[test]
fn a_cluster_does_not_come_up_with_a_model_that_is_not_there() {
    let output = volley(&["up", "--model", "no-such-model"]);
    assert_eq!(status(&output), 78, "{}", err(&output));
    assert!(err(&output).contains("MODEL_NOT_FOUND"), "{}", err(&output));
    assert!(err(&output).contains("no-such-model"), "{}", err(&output));
}

#[test]
fn threads_have_a_bound() {
    for count in ["0", "257", "many"] {
        let output = volley(&["policy", "bench", "--shape", "small", "--threads", count]);
        assert_eq!(status(&output), 2, "{count}");
        assert!(
            err(&output).contains("allowed is 1 to 256"),
            "{}",
            err(&output)
        );
    }
}
