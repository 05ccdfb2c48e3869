//! Where files are kept that can be made again: `$VOLLEY_CACHE_DIR`, else
//! `$XDG_CACHE_HOME/volley`, else `~/.cache/volley`.

use std::path::PathBuf;

use crate::env_vars::{HOME, VOLLEY_CACHE_DIR, XDG_CACHE_HOME};

/// Packed weights of models, which the engine shares between processes; `None` when the
/// environment names no place.
#[must_use]
pub fn packed_weights() -> Option<PathBuf> {
    Some(cache()?.join("packed"))
}

/// Adapters that processes of this host share; `None` when the environment names no place.
#[must_use]
pub fn adapters() -> Option<PathBuf> {
    Some(cache()?.join("adapters"))
}

fn cache() -> Option<PathBuf> {
    choose(
        VOLLEY_CACHE_DIR.directory(),
        XDG_CACHE_HOME.directory(),
        HOME.directory(),
    )
}

fn choose(told: Option<PathBuf>, xdg: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    told.or_else(|| Some(xdg?.join("volley")))
        .or_else(|| Some(home?.join(".cache/volley")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_place_wins() {
        let [told, xdg, home] = ["/told", "/xdg", "/me"].map(|path| Some(PathBuf::from(path)));
        let chosen = |told: &Option<PathBuf>, xdg: &Option<PathBuf>, home: &Option<PathBuf>| {
            choose(told.clone(), xdg.clone(), home.clone())
        };
        assert_eq!(chosen(&told, &xdg, &home), told);
        assert_eq!(chosen(&None, &xdg, &home), Some("/xdg/volley".into()));
        assert_eq!(
            chosen(&None, &None, &home),
            Some("/me/.cache/volley".into())
        );
        assert_eq!(chosen(&None, &None, &None), None);
    }
}
