//! The weight files of a model's folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::error::EngineError;
use crate::safetensors::{SafetensorsFile, TensorView};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The open weight files.
pub(super) struct Checkpoint {
    dir: PathBuf,
    /// File name and file, sorted by name.
    files: Vec<(String, SafetensorsFile)>,
    /// Tensor name to index of its file.
    places: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards that the index names.
    pub(super) fn open(dir: &Path) -> Result<Self, EngineError> {
        let index = dir.join(INDEX);
        let single = dir.join(SINGLE);
        let names: BTreeSet<String> = if single.exists() || !index.exists() {
            BTreeSet::from([SINGLE.to_owned()])
        } else {
            shard_names(&index)?
        };
        let mut files = Vec::with_capacity(names.len());
        let mut places = BTreeMap::new();
        for name in names {
            let path = dir.join(&name);
            let file = SafetensorsFile::open(&path)?;
            for tensor in file.names() {
                if places.insert(tensor.to_owned(), files.len()).is_some() {
                    let reason = format!("{tensor} is in another shard too");
                    return Err(EngineError::SafetensorsHeader { file: path, reason });
                }
            }
            files.push((name, file));
        }
        Ok(Self {
            dir: dir.to_owned(),
            files,
            places,
        })
    }

    /// A tensor of exactly this shape.
    pub(super) fn tensor(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<TensorView<'_>, EngineError> {
        let Some(&file) = self.places.get(name) else {
            let file = match self.files.as_slice() {
                [(only, _)] => self.dir.join(only),
                _ => self.dir.clone(),
            };
            return Err(EngineError::TensorMissing {
                file,
                tensor: name.to_owned(),
            });
        };
        self.files[file].1.tensor(name)?.expect_shape(shape)
    }

    /// Whether a tensor exists.
    pub(super) fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// Whether nothing has written into the files since they were opened, so that the digest is
    /// that of the tensors that were read.
    pub(super) fn check_unchanged(&self) -> Result<(), EngineError> {
        self.files
            .iter()
            .try_for_each(|(_, file)| file.check_unchanged())
    }

    /// SHA-256 over `config` and all weight files, each preceded by its name and length.
    pub(super) fn digest(&self, config: &[u8]) -> [u8; 32] {
        let mut hash = Sha256::new();
        let files = self
            .files
            .iter()
            .map(|(name, file)| (name.as_str(), file.file_bytes()));
        for (name, bytes) in std::iter::once(("config.json", config)).chain(files) {
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        hash.finalize().into()
    }
}

/// The shard files that an index names; each must be a plain file name.
fn shard_names(index: &Path) -> Result<BTreeSet<String>, EngineError> {
    let bytes = fs::read(index).map_err(|e| EngineError::io(index, e))?;
    let invalid = |reason: String| EngineError::ConfigInvalid {
        file: index.to_owned(),
        reason,
    };
    let parsed: Index = serde_json::from_slice(&bytes).map_err(|e| invalid(e.to_string()))?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    for name in &names {
        let mut parts = Path::new(name).components();
        let plain = matches!(
            (parts.next(), parts.next()),
            (Some(Component::Normal(_)), None)
        );
        if !plain {
            return Err(invalid(format!("{name} is not a file name")));
        }
    }
    if names.is_empty() {
        return Err(invalid("weight_map is empty".to_owned()));
    }
    Ok(names)
}
