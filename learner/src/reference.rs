//! The adapter that `train.kl_reference` names: the policy is pulled towards what it says.
//!
//! It lies in the run's directory, `reference/`, so that neither the retention of versions nor a
//! change of the folder it came from alters a run that goes on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use volley_engine::adapter::Adapter;
use volley_engine::config::ModelConfig;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_runtime::recipe::{KlReference, Recipe};

use crate::records::StepRecord;
use crate::step::Pull;
use crate::versions::write_whole;

/// Loads the adapter that a recipe names as its reference; `None` where it names none.
///
/// # Errors
/// `CONFIG_INVALID`: there is no such adapter, or it does not fit the model.
pub fn load_reference(recipe: &Recipe, model: &ModelConfig) -> Result<Option<Adapter>, Fault> {
    let KlReference::Adapter(folder) = &recipe.train.kl_reference else {
        return Ok(None);
    };
    let loaded = Adapter::load_peft(model, folder);
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
    adapter: Option<Arc<Adapter>>,
}

impl Reference {
    /// The reference of a run with these steps behind it.
    pub(crate) fn open(
        directory: &Path,
        recipe: &Recipe,
        model: &ModelConfig,
        steps: &[StepRecord],
    ) -> Result<Self, Fault> {
        let mut reference = Self {
            which: recipe.train.kl_reference.clone(),
            directory: directory.to_owned(),
            base_model: recipe.model.display().to_string(),
            adapter: None,
        };
        match &reference.which {
            KlReference::Base => {}
            KlReference::Adapter(_) if directory.exists() => {
                reference.adapter = Some(Arc::new(kept(model, directory)?));
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
                    let adapter = kept(model, directory)?;
                    let digest = volley_protocol::Digest(adapter.digest());
                    if digest.to_string() == record.digest {
                        reference.adapter = Some(Arc::new(adapter));
                    }
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
        let adapter = self.adapter.as_deref().filter(|_| due);
        if due && adapter.is_none() {
            let place = self.directory.display();
            let message = format!("{place} does not hold the adapter of train.kl_reference");
            let hint = "put the folder back, or begin a new run from the newest adapter";
            return Err(Fault::new(ErrorCode::CheckpointInvalid, message).with_hint(hint));
        }
        Ok(Pull { adapter, metric })
    }

    fn keep(&mut self, adapter: Arc<Adapter>) -> Result<(), Fault> {
        write_whole(
            &self.directory,
            &adapter,
            &adapter.to_bytes(),
            &self.base_model,
        )?;
        self.adapter = Some(adapter);
        Ok(())
    }
}

/// The adapter in the run's directory.
fn kept(model: &ModelConfig, directory: &Path) -> Result<Adapter, Fault> {
    Adapter::load_peft(model, directory).map_err(|error| {
        let message = format!("{}: {error}", directory.display());
        let hint = "the run cannot go on to the bit without it: put the folder back";
        Fault::new(ErrorCode::CheckpointInvalid, message).with_hint(hint)
    })
}

#[cfg(test)]
mod tests;
