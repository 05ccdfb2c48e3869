//! A test's own home: directories, environment, and every process that was started in it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::binary;
use crate::process::{self, Process, until};

/// How much of each process's standard error a failed test shows.
const SHOWN_BYTES: usize = 4 << 10;

/// A directory that `HOME` and its kin point into. When it goes, so do the processes in it.
#[derive(Debug)]
pub(crate) struct Home {
    dir: TempDir,
    started: AtomicU32,
}

impl Home {
    pub(crate) fn new() -> Self {
        let dir = TempDir::with_prefix("volley-e2e-").expect("a temporary directory");
        let started = AtomicU32::new(0);
        Self { dir, started }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file into the home.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("a test may write into its home");
        path
    }

    /// Starts `volley ARGS`; what it says goes into files.
    pub(crate) fn start<S: AsRef<str>>(&self, args: &[S]) -> Running {
        self.start_with(args, &[])
    }

    /// The same with further variables, which its children inherit.
    pub(crate) fn start_with<S: AsRef<str>>(&self, args: &[S], env: &[(&str, &Path)]) -> Running {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        let (out, err) = (
            self.path(&format!("{number}.out")),
            self.path(&format!("{number}.err")),
        );
        let create = |path: &Path| File::create(path).expect("a test may write into its home");
        let child = Command::new(binary::volley())
            .args(&args)
            .current_dir(self.dir.path())
            .env_clear()
            .env("HOME", self.dir.path())
            .env("XDG_RUNTIME_DIR", self.dir.path())
            .env("XDG_STATE_HOME", self.path("state"))
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(create(&out))
            .stderr(create(&err))
            .spawn()
            .expect("the program starts");
        Running {
            what: args.join(" "),
            child,
            out,
            err,
        }
    }

    /// Runs `volley ARGS` to its end.
    pub(crate) fn run<S: AsRef<str>>(&self, args: &[S]) -> Done {
        self.start(args).end()
    }

    /// Every living process that was started here, directly or not.
    pub(crate) fn processes(&self) -> Vec<Process> {
        process::of_home(self.dir.path())
    }

    /// The pids of those that are `volley ROLE`.
    pub(crate) fn pids(&self, role: &str) -> Vec<u32> {
        let all = self.processes().into_iter();
        all.filter(|process| process.role() == role)
            .map(|process| process.pid)
            .collect()
    }

    #[expect(clippy::print_stdout, reason = "the test's harness captures it")]
    fn show(&self) {
        let entries = fs::read_dir(self.dir.path())
            .into_iter()
            .flatten()
            .flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|ext| ext == "err"));
        paths.sort();
        for path in paths {
            let text = fs::read(&path).unwrap_or_default();
            if text.is_empty() {
                continue;
            }
            let tail = &text[text.len().saturating_sub(SHOWN_BYTES)..];
            let name = path.file_name().unwrap_or_default().display();
            println!("--- {name}\n{}", String::from_utf8_lossy(tail));
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if thread::panicking() {
            self.show();
        }
        // A dying supervisor may start one more process: until none is left.
        for _ in 0..1_000 {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            for process in left {
                process::signal(process.pid, Signal::KILL);
            }
            thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// A command that was started.
#[derive(Debug)]
pub(crate) struct Running {
    what: String,
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        process::signal(self.pid(), signal);
    }

    /// The file that has its standard output.
    pub(crate) fn out(&self) -> &Path {
        &self.out
    }

    /// Standard error so far.
    pub(crate) fn err(&self) -> String {
        fs::read_to_string(&self.err).unwrap_or_default()
    }

    /// The whole lines of standard output so far, each a JSON document.
    pub(crate) fn objects(&self) -> Vec<Value> {
        objects(&fs::read_to_string(&self.out).unwrap_or_default())
    }

    /// The whole lines of standard output so far.
    pub(crate) fn lines(&self) -> usize {
        let text = fs::read(&self.out).unwrap_or_default();
        text.iter().filter(|byte| **byte == b'\n').count()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_some()
    }

    /// Waits for `lines` lines of output while the command is still at work.
    pub(crate) fn wait_for_lines(&mut self, lines: usize) {
        let what = format!("{lines} lines of `{}`", self.what);
        until(&what, || {
            (self.lines() >= lines || self.has_ended()).then_some(())
        });
        assert!(
            !self.has_ended(),
            "`{}` has ended already: {}",
            self.what,
            self.err()
        );
    }

    /// Waits for the end.
    pub(crate) fn end(mut self) -> Done {
        let what = format!("the end of `{}`", self.what);
        let status = until(&what, || self.child.try_wait().expect("a child of ours"));
        Done {
            status: status.code(),
            out: fs::read_to_string(&self.out).unwrap_or_default(),
            err: self.err(),
            what: self.what,
        }
    }
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Done {
    what: String,
    /// `None` after a signal.
    pub(crate) status: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    /// Asserts the exit status.
    #[track_caller]
    pub(crate) fn with(self, status: i32) -> Self {
        let Self { what, err, .. } = &self;
        assert_eq!(self.status, Some(status), "`{what}` said: {err}");
        self
    }

    /// Every line of standard output as a JSON document.
    pub(crate) fn objects(&self) -> Vec<Value> {
        objects(&self.out)
    }
}

fn objects(text: &str) -> Vec<Value> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    whole.lines().map(parse).collect()
}
