//! An adapter as one byte string: a safetensors file with the settings in its metadata.

use std::collections::BTreeMap;

use super::config::RANK_MAX;
use super::{Adapter, Factor, LoraConfig, LoraPair, PerSite, Site, Target};
use super::{mismatch, shape_mismatch};
use crate::config::ModelConfig;
use crate::error::EngineError;
use crate::model::PackedCell;
use crate::safetensors::{Dtype, SafetensorsFile, TensorData, serialize};

/// Names the layout of the metadata; another number is another layout.
const FORMAT: &str = "volley-lora-1";

impl Adapter {
    /// The whole adapter, settings included. Equal adapters give equal bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let LoraConfig {
            rank,
            alpha,
            rslora,
            ..
        } = &self.config;
        let metadata = BTreeMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("rank".to_owned(), rank.to_string()),
            // The bits: a decimal would have to be parsed back exactly.
            ("alpha_bits".to_owned(), alpha.to_bits().to_string()),
            ("rslora".to_owned(), rslora.to_string()),
        ]);
        serialize(&self.file_tensors(), &metadata)
            .expect("every tensor's shape is computed from its length")
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    ///
    /// The bytes are no adapter of this layout, or it does not fit the model.
    pub fn from_bytes(model: &ModelConfig, bytes: &[u8]) -> Result<Self, EngineError> {
        let file = SafetensorsFile::from_bytes("adapter", bytes.to_vec())?;
        let field = |key: &str| -> Result<&str, EngineError> {
            let value = file.metadata().get(key).map(String::as_str);
            value.ok_or_else(|| mismatch(format!("metadata has no {key}")))
        };
        if field("format")? != FORMAT {
            return Err(mismatch(format!(
                "format expected={FORMAT} got={}",
                field("format")?
            )));
        }
        let settings = Settings {
            rank: parsed("rank", field("rank")?)?,
            alpha: f32::from_bits(parsed("alpha_bits", field("alpha_bits")?)?),
            rslora: parsed("rslora", field("rslora")?)?,
        };
        settings.read(model, &file, file.names())
    }

    /// The tensors under the names that PEFT gives them.
    pub(super) fn file_tensors(&self) -> Vec<TensorData<'_>> {
        let tensors = self.tensors().map(|tensor| TensorData {
            name: tensor.peft_name(),
            shape: tensor.shape.to_vec(),
            dtype: Dtype::F32,
            data: tensor.values,
        });
        tensors.collect()
    }
}

/// The settings that tensors do not tell.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) rank: usize,
    pub(super) alpha: f32,
    pub(super) rslora: bool,
}

impl Settings {
    /// The adapter of the tensors `names` of a file; every one of them must belong to it.
    pub(super) fn read<'a>(
        self,
        model: &ModelConfig,
        file: &SafetensorsFile,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<Adapter, EngineError> {
        let Self {
            rank,
            alpha,
            rslora,
        } = self;
        if rank == 0 || rank > RANK_MAX {
            return Err(mismatch(format!("rank={rank} outside 1..={RANK_MAX}")));
        }
        let mut pairs = PerSite::from_fn(model.num_layers, |_| None);
        for name in names {
            let (site, factor) = place(name)
                .filter(|(site, _)| pairs.get(*site).is_some())
                .ok_or_else(|| mismatch(format!("tensor={name} is not in this model")))?;
            let tensor = file.tensor(name)?;
            let due = factor.shape(rank, site, model);
            if tensor.shape() != due {
                return Err(shape_mismatch(name, due, tensor.shape()));
            }
            let pair = pairs[site].get_or_insert_with(|| LoraPair {
                a: Vec::new(),
                b: Vec::new(),
            });
            match factor {
                Factor::A => pair.a = tensor.to_f32(),
                Factor::B => pair.b = tensor.to_f32(),
            }
        }
        refuse_halves(&pairs)?;
        let config = LoraConfig {
            rank,
            alpha,
            rslora,
            targets: adapted(&pairs),
            lm_head: pairs[Site::LmHead].is_some(),
        };
        config.check()?;
        Ok(Adapter {
            config,
            pairs,
            packed: PackedCell::default(),
        })
    }
}

/// Site and factor of a tensor's name in a file.
fn place(name: &str) -> Option<(Site, Factor)> {
    let path = name.strip_prefix("base_model.model.")?;
    let (path, factor) = path.strip_suffix(".weight")?.rsplit_once('.')?;
    let factor = match factor {
        "lora_A" => Factor::A,
        "lora_B" => Factor::B,
        _ => return None,
    };
    Some((Site::from_path(path)?, factor))
}

fn refuse_halves(pairs: &PerSite<Option<LoraPair>>) -> Result<(), EngineError> {
    for (site, pair) in pairs.iter() {
        let Some(pair) = pair else { continue };
        for (factor, values) in [("lora_A", &pair.a), ("lora_B", &pair.b)] {
            if values.is_empty() {
                let what = format!("tensor={}.{factor} is missing", site.path());
                return Err(mismatch(what));
            }
        }
    }
    Ok(())
}

/// The targets that at least one layer has.
fn adapted(pairs: &PerSite<Option<LoraPair>>) -> Vec<Target> {
    let present = |target: &Target| {
        (pairs.iter()).any(|(site, pair)| {
            matches!(site, Site::Layer(_, of_layer) if of_layer == *target) && pair.is_some()
        })
    };
    Target::ALL.into_iter().filter(present).collect()
}

fn parsed<T: std::str::FromStr>(key: &str, text: &str) -> Result<T, EngineError> {
    text.parse()
        .map_err(|_| mismatch(format!("metadata {key}={text:?}")))
}
