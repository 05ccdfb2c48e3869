//! The adapter that `train.kl_reference` names: the policy is pulled towards what it says.
//!
//! It lies in the run's directory, `reference/`, so that neither the retention of versions nor a
//! change of the folder it came from alters a run that goes on. Every step's record names the digest
//! of what it was pulled towards: a run does not go on with another adapter.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use volley_engine::adapter::Adapter;
use volley_engine::config::ModelConfig;
use volley_engine::model::Model;
use volley_protocol::Digest;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_runtime::recipe::{KlReference, Recipe};

use crate::records::StepRecord;
use crate::step::Pull;
use crate::versions::write_whole;

/// Loads the adapter that a recipe names as its reference; `None` where it names none.
///
/// # Errors
/// `CONFIG_INVALID`: there is no such adapter, it does not fit the model, or it was trained on
/// another one.
pub fn load_reference(recipe: &Recipe, model: &Model) -> Result<Option<Adapter>, Fault> {
    let KlReference::Adapter(folder) = &recipe.train.kl_reference else {
        return Ok(None);
    };
    let loaded = Adapter::load_peft_for(model, folder);
    let checked = loaded.and_then(|adapter| adapter.check_finite().map(|()| Some(adapter)));
    checked.map_err(|error| {
        let place = folder.display();
        let message = format!("train.kl_reference: {place} cannot be used: {error}");
        Fault::new(ErrorCode::ConfigInvalid, message).with_hint(
            "name a folder in PEFT's layout whose adapter fits the model, \"base\", or \"step:N\"",
        )
    })
}

/// The reference of a run.
#[derive(Debug)]
pub(crate) struct Reference {
    which: KlReference,
    directory: PathBuf,
    /// For PEFT's `base_model_name_or_path`.
    base_model: String,
    held: Option<Held>,
}

/// An adapter and its digest, which takes a pass over all of its bytes.
#[derive(Debug)]
struct Held {
    adapter: Arc<Adapter>,
    digest: Digest,
}

impl Held {
    fn new(adapter: Arc<Adapter>) -> Self {
        let digest = Digest(adapter.digest());
        Self { adapter, digest }
    }
}

impl Reference {
    /// The reference of a run with these steps behind it.
    pub(crate) fn open(
        directory: &Path,
        recipe: &Recipe,
        model: &Model,
        steps: &[StepRecord],
    ) -> Result<Self, Fault> {
        let mut reference = Self {
            which: recipe.train.kl_reference.clone(),
            directory: directory.to_owned(),
            base_model: recipe.model.display().to_string(),
            held: None,
        };
        match &reference.which {
            KlReference::Base => {}
            // The folder that the recipe names may have changed since the first step.
            KlReference::Adapter(_) if directory.exists() || !steps.is_empty() => {
                let held = kept(model.config(), directory)?;
                check_recorded(directory, &held, steps)?;
                reference.held = Some(held);
            }
            KlReference::Adapter(_) => {
                if let Some(adapter) = load_reference(recipe, model)? {
                    reference.keep(Arc::new(adapter))?;
                }
            }
            KlReference::Step(wanted) => {
                // What a step left that was not recorded is written again when it is made again.
                let record = steps.iter().find(|record| record.step == *wanted);
                if let (Some(record), true) = (record, directory.exists()) {
                    reference.held = version(model.config(), directory, record);
                }
            }
        }
        Ok(reference)
    }

    /// A step was made: keeps its adapter if it is the reference.
    pub(crate) fn made(&mut self, step: u64, adapter: &Arc<Adapter>) -> Result<(), Fault> {
        if self.which == KlReference::Step(step) {
            self.keep(Arc::clone(adapter))?;
        }
        Ok(())
    }

    /// Towards what the step after version `parent` pulls. Before a version exists that is to be
    /// the reference, it is the base model.
    pub(crate) fn pull(&self, parent: u64) -> Result<Pull<'_>, Fault> {
        let metric = match self.which {
            KlReference::Base => "kl_base",
            KlReference::Step(_) | KlReference::Adapter(_) => "kl_reference",
        };
        let due = match self.which {
            KlReference::Base => false,
            KlReference::Step(step) => parent >= step,
            KlReference::Adapter(_) => true,
        };
        let held = self.held.as_ref().filter(|_| due);
        if due && held.is_none() {
            let place = self.directory.display();
            let message = format!("{place} does not hold the adapter of train.kl_reference");
            let hint = "put the folder back, or begin a new run from the newest adapter";
            return Err(Fault::new(ErrorCode::CheckpointInvalid, message).with_hint(hint));
        }
        Ok(Pull {
            adapter: held.map(|held| &*held.adapter),
            digest: held.map(|held| held.digest),
            metric,
        })
    }

    fn keep(&mut self, adapter: Arc<Adapter>) -> Result<(), Fault> {
        write_whole(
            &self.directory,
            &adapter,
            &adapter.to_bytes(),
            &self.base_model,
        )?;
        self.held = Some(Held::new(adapter));
        Ok(())
    }
}

/// The adapter in the run's directory.
fn kept(model: &ModelConfig, directory: &Path) -> Result<Held, Fault> {
    let loaded = Adapter::load_peft(model, directory);
    let held = loaded.map(|adapter| Held::new(Arc::new(adapter)));
    held.map_err(|error| {
        let message = format!("{}: {error}", directory.display());
        let hint = "the run cannot go on to the bit without it: put the folder back";
        Fault::new(ErrorCode::CheckpointInvalid, message).with_hint(hint)
    })
}

/// The adapter in the run's directory, if it is the one that a step made. Another one, or what
/// cannot be read, counts as none: a replay may write it again, and [`Reference::pull`] refuses if
/// it does not.
fn version(model: &ModelConfig, directory: &Path, record: &StepRecord) -> Option<Held> {
    match kept(model, directory) {
        Ok(held) => (held.digest.to_string() == record.digest).then_some(held),
        Err(fault) => {
            tracing::warn!(%fault, "a damaged reference is passed over");
            None
        }
    }
}

/// The adapter must be the one that the recorded steps were pulled towards. Records of a learner
/// that did not name it yet tell nothing.
fn check_recorded(directory: &Path, held: &Held, steps: &[StepRecord]) -> Result<(), Fault> {
    let digest = held.digest.to_string();
    let named = steps
        .iter()
        .rev()
        .find_map(|record| record.reference.as_ref());
    match named {
        Some(due) if *due != digest => {
            let place = directory.display();
            let message = format!(
                "{place} holds the adapter {digest}, but the run's steps were pulled towards {due}"
            );
            let hint = "put back the folder whose adapter_model.safetensors has that SHA-256";
            Err(Fault::new(ErrorCode::CheckpointInvalid, message).with_hint(hint))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
