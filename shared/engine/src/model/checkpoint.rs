//! The weight files of a model's folder.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::error::EngineError;
use crate::safetensors::{SafetensorsFile, TensorView};
use crate::small_file;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What every tensor of a text model but its output matrix begins with.
const TEXT: &str = "model.";
/// The same where the text model is a part of one with images: as it was published, and as some
/// versions of transformers write it.
const TEXT_INSIDE: [&str; 2] = ["language_model.model.", "model.language_model."];
/// What the output matrix may begin with there.
const OUTPUT_INSIDE: &str = "language_model.";
/// The tensor that tells which it is.
const EMBEDDING: &str = "embed_tokens.weight";

/// The open weight files.
pub(super) struct Checkpoint {
    dir: PathBuf,
    /// File name and file, sorted by name.
    files: Vec<(String, SafetensorsFile)>,
    /// Tensor name to index of its file.
    places: BTreeMap<String, usize>,
    /// What stands in the files for [`TEXT`].
    text: &'static str,
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
        let embeds = |text: &&str| places.contains_key(&format!("{text}{EMBEDDING}"));
        let text = [TEXT].into_iter().chain(TEXT_INSIDE).find(embeds);
        Ok(Self {
            dir: dir.to_owned(),
            files,
            text: text.unwrap_or(TEXT),
            places,
        })
    }

    /// The name in the files of a tensor of the text model.
    fn stored<'a>(&self, name: &'a str) -> Cow<'a, str> {
        match name.strip_prefix(TEXT) {
            _ if self.text == TEXT => name.into(),
            Some(rest) => format!("{}{rest}", self.text).into(),
            None if self.places.contains_key(name) => name.into(),
            None => format!("{OUTPUT_INSIDE}{name}").into(),
        }
    }

    /// A tensor of exactly this shape, by its name in a text model.
    pub(super) fn tensor(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<TensorView<'_>, EngineError> {
        let name = self.stored(name);
        let Some(&file) = self.places.get(&*name) else {
            let file = match self.files.as_slice() {
                [(only, _)] => self.dir.join(only),
                _ => self.dir.clone(),
            };
            return Err(EngineError::TensorMissing {
                file,
                tensor: name.into_owned(),
            });
        };
        self.files[file].1.tensor(&name)?.expect_shape(shape)
    }

    /// Whether a tensor exists.
    pub(super) fn has(&self, name: &str) -> bool {
        self.places.contains_key(&*self.stored(name))
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
    let bytes = small_file::read(index)?;
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
