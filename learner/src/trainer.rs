//! The training thread: it owns the optimiser's state, makes steps, and puts everything that a
//! step leaves behind on the disk before anybody hears of it.

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use volley_engine::train::Trainer;
use volley_learner_core::{Batch, Input};
use volley_protocol::AdapterVersion;
use volley_protocol::adapter::AdapterEntry;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::run::StepReport;
use volley_runtime::recipe::Train;
use volley_runtime::vital::Vital;

use crate::records::{Records, StepRecord};
use crate::reference::Reference;
use crate::step::{self, PlayedGroup, StepSettings};
use crate::transcripts;
use crate::versions::Versions;

/// What the training thread is told. At most one step and one checkpoint are ever waiting.
pub(crate) enum TrainerOrder {
    /// Make this step.
    Step {
        /// What to train, as the core decided.
        batch: Batch,
        /// The same groups with their trajectories.
        groups: Vec<PlayedGroup>,
    },
    /// Write a checkpoint of the newest version, then call `durable`.
    Checkpoint {
        /// Its step.
        step: u64,
        /// Called when it is on the disk.
        durable: Box<dyn FnOnce() + Send>,
    },
    /// Call this when everything ordered before is done.
    Finish(Box<dyn FnOnce() + Send>),
}

/// Hands orders to the training thread.
#[derive(Clone, Debug)]
pub(crate) struct TrainerHandle(mpsc::Sender<TrainerOrder>);

impl TrainerHandle {
    pub(crate) fn order(&self, order: TrainerOrder) {
        if self.0.send(order).is_err() {
            tracing::debug!("the training thread has left");
        }
    }
}

/// Everything the training thread works with.
pub(crate) struct TrainerThread {
    pub(crate) trainer: Trainer,
    pub(crate) settings: StepSettings,
    /// What was asked for; the learning rate follows it.
    pub(crate) train: Train,
    pub(crate) versions: Versions,
    pub(crate) reference: Reference,
    pub(crate) records: Records,
    pub(crate) transcripts: PathBuf,
    /// For PEFT's `base_model_name_or_path`.
    pub(crate) base_model: String,
    /// Training time of earlier lives.
    pub(crate) trained_ms_before: u64,
}

impl TrainerThread {
    /// Starts the thread. `report` takes what became of each step.
    pub(crate) fn start(
        mut self,
        report: impl Fn(Input) + Send + 'static,
        disk_failed: impl Fn(Fault) + Send + 'static,
    ) -> Result<TrainerHandle, Fault> {
        let (orders, inbox) = mpsc::channel();
        let began = Instant::now();
        let work = move || {
            let _vital = Vital("trainer");
            while let Ok(order) = inbox.recv() {
                match order {
                    TrainerOrder::Step { batch, groups } => {
                        match self.step(began, &batch, &groups) {
                            Ok(made) => report(made),
                            Err(fault) => disk_failed(fault),
                        }
                    }
                    TrainerOrder::Checkpoint { step, durable } => match self.checkpoint(step) {
                        Ok(()) => durable(),
                        Err(fault) => disk_failed(fault),
                    },
                    TrainerOrder::Finish(done) => done(),
                }
            }
        };
        thread::Builder::new()
            .name("trainer".into())
            .spawn(work)
            .map_err(|error| Fault::new(ErrorCode::Internal, format!("trainer: {error}")))?;
        Ok(TrainerHandle(orders))
    }

    /// What became of a step. A disk that fails is no property of the step: the process ends, and
    /// its next life makes the step again.
    fn step(
        &mut self,
        began: Instant,
        batch: &Batch,
        groups: &[PlayedGroup],
    ) -> Result<Input, Fault> {
        match self.try_step(began, batch, groups) {
            Ok((report, entry)) => Ok(Input::StepDone {
                report: Box::new(report),
                entry,
            }),
            Err(fault) if fault.code == ErrorCode::StoreFailed => Err(fault),
            Err(fault) => {
                tracing::error!(step = batch.step, %fault, "the step was abandoned");
                Ok(Input::StepFailed { fault })
            }
        }
    }

    fn try_step(
        &mut self,
        began: Instant,
        batch: &Batch,
        groups: &[PlayedGroup],
    ) -> Result<(StepReport, AdapterEntry), Fault> {
        self.settings.adam.lr = self.train.learning_rate_at(batch.step);
        let pull = self.reference.pull(batch.parent.step)?;
        let reference = pull.digest.map(|digest| digest.to_string());
        let stepped = step::make(
            &mut self.trainer,
            &self.settings,
            pull,
            batch.parent,
            groups,
        )?;
        let publishing = Instant::now();
        let entry = AdapterEntry {
            version: AdapterVersion {
                step: batch.step,
                digest: stepped.digest,
                ..batch.parent
            },
            parent: batch.parent.digest,
            bytes: stepped.bytes.len() as u64,
        };
        self.versions.add(
            batch.step,
            &stepped.adapter,
            stepped.bytes,
            &self.base_model,
        )?;
        self.reference.made(batch.step, &stepped.adapter)?;
        self.show_samples(batch.step, groups)?;
        let mut report = stepped.report.cut();
        report.wait_ms = batch.wait_ms;
        report.publish_ms = publishing.elapsed().as_millis() as u64;
        report.train_ms_total = self.trained_ms_before + began.elapsed().as_millis() as u64;
        // The last thing: what is not recorded has not happened.
        self.records.append(&StepRecord {
            reference,
            ..StepRecord::new(batch, entry, &report)
        })?;
        Ok((report, entry))
    }

    fn show_samples(&self, step: u64, groups: &[PlayedGroup]) -> Result<(), Fault> {
        let all: Vec<_> = groups
            .iter()
            .flat_map(|g| &g.members)
            .map(AsRef::as_ref)
            .collect();
        let path = self.transcripts.join(format!("step-{step:06}.md"));
        std::fs::write(&path, transcripts::page(step, &all)).map_err(|error| {
            Fault::new(
                ErrorCode::StoreFailed,
                format!("{}: {error}", path.display()),
            )
        })
    }

    fn checkpoint(&mut self, step: u64) -> Result<(), Fault> {
        let state = self.trainer.save_state();
        self.records.checkpoint(step, &state)
    }
}
