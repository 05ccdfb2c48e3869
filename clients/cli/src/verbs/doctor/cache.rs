//! Where packed weights are shared between processes, and how much is there.

use volley_engine::packed::PackedCache;
use volley_runtime::cache_dir;

use super::Finding;
use crate::text;

pub(super) fn packed_weights() -> Finding {
    found(cache_dir::packed_weights().map(PackedCache::new))
}

fn found(cache: Option<PackedCache>) -> Finding {
    const NAME: &str = "weight cache";
    let Some(cache) = cache else {
        let value = "nowhere: every process keeps weights of its own";
        return Finding::warn(NAME, value, "set VOLLEY_CACHE_DIR to an absolute path");
    };
    let place = cache.directory().display();
    match cache.usage() {
        Ok((0, _)) => Finding::ok(NAME, format!("{place}, empty")),
        Ok((files, bytes)) => {
            let files = match files {
                1 => "1 file".to_owned(),
                _ => format!("{files} files"),
            };
            Finding::ok(NAME, format!("{place}, {files}, {}", text::bytes(bytes)))
        }
        Err(error) => {
            let cause = std::error::Error::source(&error);
            let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
            let fix = "set VOLLEY_CACHE_DIR to a directory of your own";
            Finding::warn(NAME, format!("{error}{cause}"), fix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn it_tells_place_and_size() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let place = root.path().join("packed");
        let look = || found(Some(PackedCache::new(&place)));
        assert!(look().value.ends_with("packed, empty"));
        assert!(!place.exists());
        std::fs::create_dir(&place).expect("writable");
        let name: String = std::iter::repeat_n('0', 64).collect();
        std::fs::write(place.join(name + ".packed"), [0; 2048]).expect("writable");
        assert!(look().value.ends_with("packed, 1 file, 2.0 KiB"));
        assert_eq!(look().level, Level::Ok);
        let plain = root.path().join("plain");
        std::fs::write(&plain, "").expect("writable");
        assert_eq!(found(Some(PackedCache::new(&plain))).level, Level::Warn);
        assert!(found(None).fix.contains("VOLLEY_CACHE_DIR"));
    }
}
