//! What a child process is to be.

use std::ffi::OsString;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use volley_protocol::Fault;

use super::lifeline::Lifelines;
use crate::faults;

/// Where a child's output goes. Standard output of a role is never data: both streams go there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ChildLog {
    /// To the standard error of this process.
    #[default]
    Inherit,
    /// Appended to this file, which is created if needed.
    File(PathBuf),
    /// Nowhere.
    Discard,
}

/// A child process to be started with [`Child::spawn`](super::Child::spawn).
#[derive(Debug)]
pub struct ChildSpec {
    /// For people: `coordinator`, `worker-3`.
    pub name: String,
    /// What is run.
    pub program: PathBuf,
    /// Its arguments. Never a secret: everybody on the machine can read them.
    pub args: Vec<OsString>,
    /// Variables beside those of this process.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory; that of this process if `None`.
    pub dir: Option<PathBuf>,
    /// Where its output goes.
    pub log: ChildLog,
    pub(super) identity: Identity,
    pub(super) lifelines: Lifelines,
    pub(super) fds: Vec<(String, OwnedFd)>,
}

/// Key material. Does not print.
#[derive(Default)]
pub(super) struct Identity(pub(super) Option<Vec<u8>>);

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "<hidden>"
        } else {
            "<none>"
        })
    }
}

impl ChildSpec {
    /// This program again, with other arguments: how every role is started.
    ///
    /// # Errors
    /// `IO_FAILED` when the system cannot tell which program this is.
    pub fn role<A>(name: impl Into<String>, args: A) -> Result<Self, Fault>
    where
        A: IntoIterator,
        A::Item: Into<OsString>,
    {
        Ok(Self::program(this_program()?, name, args))
    }

    /// Any program. It must call [`Handoff::take`](super::Handoff::take) to get what it is handed.
    pub fn program<A>(program: impl Into<PathBuf>, name: impl Into<String>, args: A) -> Self
    where
        A: IntoIterator,
        A::Item: Into<OsString>,
    {
        Self {
            name: name.into(),
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            dir: None,
            log: ChildLog::default(),
            identity: Identity::default(),
            lifelines: Lifelines::none(),
            fds: Vec::new(),
        }
    }

    /// Hands over its certificate and key (or whatever bytes make its identity).
    #[must_use]
    pub fn identity(mut self, bytes: Vec<u8>) -> Self {
        self.identity = Identity(Some(bytes));
        self
    }

    /// Hands over lifelines: the child learns of the death of each of their holders.
    #[must_use]
    pub fn lifelines(mut self, lifelines: Lifelines) -> Self {
        self.lifelines = lifelines;
        self
    }

    /// Hands over a descriptor under a name.
    #[must_use]
    pub fn fd(mut self, name: impl Into<String>, fd: OwnedFd) -> Self {
        self.fds.push((name.into(), fd));
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets where its output goes.
    #[must_use]
    pub fn log(mut self, log: ChildLog) -> Self {
        self.log = log;
        self
    }
}

/// The program that runs now. After an upgrade in place its old path is gone; the kernel still
/// has the image, and a role must be of the same build as its launcher.
fn this_program() -> Result<PathBuf, Fault> {
    let image = Path::new("/proc/self/exe");
    match std::env::current_exe() {
        Ok(path) if path.exists() || !image.exists() => Ok(path),
        Ok(_) => Ok(image.to_owned()),
        Err(error) => Err(faults::io("find the program behind", image, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_do_not_print() {
        let spec = ChildSpec::program("true", "t", ["-x"]).identity(b"secret".to_vec());
        let shown = format!("{spec:?}");
        assert!(!shown.contains("secret") && !shown.contains("115") && shown.contains("<hidden>"));
    }

    #[test]
    fn a_role_is_this_program() {
        let spec = ChildSpec::role("worker-1", ["worker"]).expect("a program runs");
        assert_eq!(spec.program, std::env::current_exe().expect("path"));
    }
}
