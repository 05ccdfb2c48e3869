//! `volley policy`: the engine by itself, on files: what a check against another implementation
//! needs.

mod args;
mod bench;
mod data;
mod generate;
mod loss;

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use volley_engine::EngineError;
use volley_engine::adapter::Adapter;
use volley_engine::cpu::threads::Threads;
use volley_engine::model::{LoadOptions, Model};
use volley_engine::packed::PackedCache;
use volley_engine::safetensors::{Dtype, TensorData, write};
use volley_engine::score::score as score_tokens;
use volley_engine::train::{self, AdamParams, Loss, StepOutput, Trainer};
use volley_protocol::{ErrorCode, Fault};
use volley_runtime::cache_dir;

use crate::errors::Stop;
use crate::output::Output;
use args::{AdamwArgs, BatchArgs, GradArgs, ModelArgs, ScoreArgs};

pub(crate) use args::PolicyVerb;

/// Largest input of token ids.
const INPUT_BYTES_MAX: u64 = 256 << 20;

pub(crate) fn run(verb: PolicyVerb, output: &Output) -> Result<(), Stop> {
    match verb {
        PolicyVerb::Score(args) => score(&args, output),
        PolicyVerb::Generate(args) => generate::run(&args, output),
        PolicyVerb::Grad(args) => grad(&args, output),
        PolicyVerb::Adamw(args) => adamw(&args, output),
        PolicyVerb::Bench(args) => bench::run(&args, output),
    }
}

fn score(args: &ScoreArgs, output: &Output) -> Result<(), Stop> {
    let sequences = ids(&args.input)?;
    let (model, threads) = args.model.load(false, output)?;
    let adapter = adapter(&model, args.adapter.as_deref())?;
    let mut logprobs = Vec::with_capacity(sequences.len());
    for sequence in &sequences {
        let scored = score_tokens(&model, adapter.as_ref(), sequence, &threads);
        logprobs.push(scored.map_err(|error| engine(&error))?);
    }
    output.json(&json!({ "logprobs": logprobs }))
}

fn grad(args: &GradArgs, output: &Output) -> Result<(), Stop> {
    let (mut trainer, data, loss) = args.batch.load(&args.model, output)?;
    let step = trainer
        .forward_backward(&data, &loss)
        .map_err(|error| engine(&error))?;
    let tensors: Vec<TensorData<'_>> = trainer
        .grads()
        .map(|grad| TensorData {
            name: grad.name.to_owned(),
            shape: grad.shape.to_vec(),
            dtype: Dtype::F32,
            data: grad.values,
        })
        .collect();
    let squares = tensors
        .iter()
        .flat_map(|tensor| tensor.data)
        .map(|g| f64::from(*g).powi(2));
    let grad_norm = squares.sum::<f64>().sqrt();
    write(&args.out, &tensors, &std::collections::BTreeMap::new())
        .map_err(|error| unreadable(&error))?;
    if args.model.json {
        let mut object = step_object(&step);
        object["grad_norm"] = grad_norm.into();
        object["logprobs"] = json!(step.logprobs);
        object["out"] = args.out.to_string_lossy().into();
        return output.json(&object);
    }
    output.talk(&format!(
        "loss {:.6}, gradient norm {grad_norm:.6}, written to",
        step.loss_sum
    ));
    output.data(args.out.display())
}

fn adamw(args: &AdamwArgs, output: &Output) -> Result<(), Stop> {
    let (mut trainer, data, loss) = args.batch.load(&args.model, output)?;
    let params = AdamParams {
        lr: args.lr,
        beta1: args.beta1,
        beta2: args.beta2,
        eps: args.eps,
        weight_decay: args.weight_decay,
        grad_clip_norm: args.grad_clip,
    };
    let mut steps = Vec::new();
    for _ in 0..args.steps {
        let step = trainer
            .forward_backward(&data, &loss)
            .map_err(|error| engine(&error))?;
        let optim = trainer
            .optim_step(&params)
            .map_err(|error| engine(&error))?;
        let mut object = step_object(&step);
        object["step"] = optim.step.into();
        object["grad_norm"] = optim.grad_norm.into();
        object["clip_coef"] = optim.clip_coef.into();
        let (number, loss) = (optim.step, step.loss_sum);
        output.talk(&format!(
            "step {number}: loss {loss:.6}, gradient norm {:.6}",
            optim.grad_norm
        ));
        steps.push(object);
    }
    let base = args.model.model.to_string_lossy();
    trainer
        .published()
        .save_peft(&args.out, &base)
        .map_err(|error| unreadable(&error))?;
    if args.model.json {
        let out = args.out.to_string_lossy();
        return output.json(&json!({ "steps": steps, "out": out }));
    }
    output.data(args.out.display())
}

fn step_object(step: &StepOutput) -> Value {
    let metrics = &step.metrics;
    json!({
        "loss_sum": step.loss_sum,
        "loss_tokens": metrics.loss_tokens,
        "ratio_mean": metrics.ratio_mean,
        "clip_fraction": metrics.clip_fraction,
        "drift_kl": metrics.drift_kl,
        "logprob_gap_max": metrics.logprob_gap_max,
        "entropy": metrics.entropy,
    })
}

impl ModelArgs {
    fn load(&self, training: bool, output: &Output) -> Result<(Model, Threads), Fault> {
        let options = LoadOptions {
            compute: self.compute,
            cache: cache_dir::packed_weights().map(PackedCache::new),
            training,
        };
        let model = Model::load_with(&self.model, &options).map_err(|error| engine(&error))?;
        let troubles = model.packings().iter();
        for packing in troubles.filter(|packing| packing.is_trouble()) {
            output.talk(&packing.to_string());
        }
        Ok((model, threads(self.threads)))
    }
}

impl BatchArgs {
    fn load(
        &self,
        model: &ModelArgs,
        output: &Output,
    ) -> Result<(Trainer, Vec<train::Datum>, Loss), Fault> {
        let loss = loss::parse(&self.loss, self.loss_config.as_deref())?;
        let data = data::read(&self.data)?;
        let (model, threads) = model.load(true, output)?;
        let adapter = Adapter::load_peft_for(&model, &self.adapter);
        let adapter = adapter.map_err(|error| unreadable(&error))?;
        let trainer = Trainer::new(Arc::new(model), adapter, threads);
        Ok((trainer.map_err(|error| engine(&error))?, data, loss))
    }
}

/// That many threads, or one per core.
fn threads(count: Option<usize>) -> Threads {
    let all = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Threads::new(count.unwrap_or_else(all).max(1))
}

fn adapter(model: &Model, directory: Option<&Path>) -> Result<Option<Adapter>, Fault> {
    let loaded = directory.map(|directory| Adapter::load_peft_for(model, directory));
    loaded.transpose().map_err(|error| unreadable(&error))
}

/// Token ids of an input file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ids {
    #[serde(alias = "prompts")]
    sequences: Vec<Vec<u32>>,
}

fn ids(path: &Path) -> Result<Vec<Vec<u32>>, Fault> {
    let io = |error: std::io::Error| {
        Fault::new(
            ErrorCode::IoFailed,
            format!("cannot read {}: {error}", path.display()),
        )
    };
    let bad = |why: String| {
        let message = format!("{} holds no token ids: {why}", path.display());
        Fault::new(ErrorCode::InvalidRequest, message)
            .with_hint(r#"it should look like {"sequences": [[1, 2, 3], [4, 5]]}"#)
    };
    let length = std::fs::metadata(path).map_err(io)?.len();
    if length > INPUT_BYTES_MAX {
        return Err(bad(format!(
            "it has {length} bytes, at most {INPUT_BYTES_MAX} are read"
        )));
    }
    let text = std::fs::read(path).map_err(io)?;
    let ids: Ids = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
    Ok(ids.sequences)
}

/// The fault of an engine error.
fn engine(error: &EngineError) -> Fault {
    Fault::from(error)
}

/// The fault of an error with a file that is no model's: data, adapters, results.
fn unreadable(error: &EngineError) -> Fault {
    let fault = engine(error);
    match error {
        EngineError::NotFound { .. } => Fault::new(ErrorCode::IoFailed, fault.message),
        _ => fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_under_both_names() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("ids.json");
        for text in [r#"{"sequences": [[1, 2]]}"#, r#"{"prompts": [[1, 2]]}"#] {
            std::fs::write(&path, text).expect("writable");
            assert_eq!(ids(&path), Ok(vec![vec![1, 2]]));
        }
        for text in [
            "",
            "[]",
            r#"{"sequences": [[-1]]}"#,
            r#"{"sequences": [], "x": 1}"#,
        ] {
            std::fs::write(&path, text).expect("writable");
            assert_eq!(ids(&path).expect_err(text).code, ErrorCode::InvalidRequest);
        }
        assert_eq!(
            ids(&dir.path().join("no")).expect_err("missing").code,
            ErrorCode::IoFailed
        );
    }
}
