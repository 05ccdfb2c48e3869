//! Every environment variable that Volley reads, in one table.

use std::ffi::OsString;
use std::path::PathBuf;

macro_rules! env_vars {
    ($($(#[doc = $doc:literal])+ $name:ident;)*) => {
        $($(#[doc = $doc])+ pub const $name: EnvVar = EnvVar {
            name: stringify!($name),
            help: concat!($($doc),+),
        };)*

        /// All of them, for `--help` and the documentation.
        pub const ALL: &[EnvVar] = &[$($name,)*];
    };
}

/// One environment variable. Empty values count as unset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnvVar {
    /// Its name.
    pub name: &'static str,
    /// What it does, one sentence.
    pub help: &'static str,
}

env_vars! {
    /// Address of the coordinator, `host:port`; wins over the newest cluster on this machine.
    VOLLEY_ADDR;
    /// Log filter in `tracing` syntax, e.g. `info,volley_coordinator=debug`; default `info`.
    VOLLEY_LOG;
    /// `json` writes one JSON object per log line; anything else is compact text.
    VOLLEY_LOG_FORMAT;
    /// `off`: processes of one machine exchange bulk and results by the network, as if they were
    /// on several, and share no adapters; `results`: only bulk goes by the network. To measure, or
    /// to look for a fault.
    VOLLEY_SAME_HOST;
    /// Set by a launcher for its children: descriptor 0 is a handoff socket.
    VOLLEY_HANDOFF;
    /// Any value switches colours off (no-color.org).
    NO_COLOR;
    /// Name of the terminal; on a `dumb` one the monitor prints a plain table.
    TERM;
    /// Absolute path of a directory for what can be made again, such as the packed weights that
    /// processes share; default `$XDG_CACHE_HOME/volley`, else `~/.cache/volley`.
    VOLLEY_CACHE_DIR;
    /// Directory of the user for sockets and pointers of this login.
    XDG_RUNTIME_DIR;
    /// Directory of the user for state that outlives a login.
    XDG_STATE_HOME;
    /// Directory of the user for what can be made again.
    XDG_CACHE_HOME;
    /// Home directory of the user.
    HOME;
}

impl EnvVar {
    /// Its value, if it is set and not empty.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads it"
    )]
    pub fn value(self) -> Option<OsString> {
        std::env::var_os(self.name).filter(|value| !value.is_empty())
    }

    /// Its value as text, if it is set, not empty and UTF-8.
    #[must_use]
    pub fn text(self) -> Option<String> {
        self.value().and_then(|value| value.into_string().ok())
    }

    /// Its value as an absolute path; relative ones are ignored, as the XDG rules ask.
    #[must_use]
    pub fn directory(self) -> Option<PathBuf> {
        self.value().map(PathBuf::from).filter(|p| p.is_absolute())
    }

    /// Is it set to anything but the empty string?
    #[must_use]
    pub fn is_set(self) -> bool {
        self.value().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_told() {
        for (index, var) in ALL.iter().enumerate() {
            assert!(var.help.trim().len() > 10, "{} has no help", var.name);
            assert!(ALL[index + 1..].iter().all(|other| other.name != var.name));
        }
    }

    #[test]
    fn unset_is_none() {
        let var = EnvVar {
            name: "VOLLEY_NO_SUCH_VARIABLE",
            help: "",
        };
        assert_eq!((var.text(), var.is_set()), (None, false));
    }
}
