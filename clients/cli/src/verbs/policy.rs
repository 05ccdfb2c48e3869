//! `volley policy`: the engine by itself, on files: what a check against another implementation
//! needs.

mod data;
mod loss;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};
use serde::Deserialize;
use serde_json::{Value, json};
use volley_engine::EngineError;
use volley_engine::adapter::Adapter;
use volley_engine::cpu::threads::Threads;
use volley_engine::model::Model;
use volley_engine::safetensors::{Dtype, TensorData, write};
use volley_engine::sampler::SamplingParams;
use volley_engine::train::{self, AdamParams, Loss, StepOutput, Trainer};
use volley_protocol::{ErrorCode, Fault};

use crate::errors::Stop;
use crate::output::Output;

/// Largest input of token ids.
const INPUT_BYTES_MAX: u64 = 256 << 20;

/// The engine by itself, on files.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyVerb {
    /// Log-probability of every token but the first: {"sequences": [[id, …], …]}.
    Score(ScoreArgs),
    /// Continue prompts: {"prompts": [[id, …], …]}.
    Generate(GenerateArgs),
    /// Gradients of a loss over a batch.
    Grad(GradArgs),
    /// AdamW steps on a batch; the result is a PEFT folder.
    Adamw(AdamwArgs),
}

/// How numbers are computed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Compute {
    /// Activations in 32 bits, whatever the weights are stored in.
    F32,
}

#[derive(Debug, Args)]
struct ModelArgs {
    /// Model folder (Hugging Face layout).
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Threads; they change the time, not the result. Default: all cores.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// How numbers are computed.
    #[arg(long, value_enum, default_value_t = Compute::F32)]
    compute: Compute,
    /// JSON on standard output.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// PEFT folder.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// File with {"sequences": [[id, …], …]}.
    #[arg(long, value_name = "IDS.json")]
    input: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// PEFT folder.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// File with {"prompts": [[id, …], …]}; `sequences` says the same.
    #[arg(long, value_name = "IDS.json")]
    input: PathBuf,
    /// Tokens to add to each.
    #[arg(long, value_name = "N")]
    max_tokens: usize,
    /// 0 always takes the likeliest token.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Seed of the sampling.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// End with the model's end-of-text token.
    #[arg(long)]
    stop_at_eos: bool,
}

#[derive(Debug, Args)]
struct BatchArgs {
    /// PEFT folder that training starts from.
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// Tensors datum{i}.tokens (or seq{i}.tokens), .weights, .logprobs, .advantages.
    #[arg(long, value_name = "DATA.safetensors")]
    data: PathBuf,
    /// cross_entropy, importance_sampling, ppo, cispo or dro.
    #[arg(long, value_name = "NAME")]
    loss: String,
    /// For example {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}.
    #[arg(long, value_name = "JSON")]
    loss_config: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct GradArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    batch: BatchArgs,
    /// File for {module}.lora_A and {module}.lora_B.
    #[arg(long, value_name = "GRADS.safetensors")]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct AdamwArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    batch: BatchArgs,
    /// Steps, each with fresh gradients of the same batch.
    #[arg(long, value_name = "K", default_value_t = 1)]
    steps: u64,
    /// Learning rate.
    #[arg(long, default_value_t = AdamParams::default().lr)]
    lr: f64,
    /// Decay of the first moment.
    #[arg(long, default_value_t = AdamParams::default().beta1)]
    beta1: f64,
    /// Decay of the second moment.
    #[arg(long, default_value_t = AdamParams::default().beta2)]
    beta2: f64,
    /// Added to the root of the second moment.
    #[arg(long, default_value_t = AdamParams::default().eps)]
    eps: f64,
    /// Decoupled weight decay.
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    /// Limit of the gradient's global norm; 0 switches it off.
    #[arg(long, default_value_t = 0.0)]
    grad_clip: f64,
    /// PEFT folder for the result.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(crate) fn run(verb: PolicyVerb, output: &Output) -> Result<(), Stop> {
    match verb {
        PolicyVerb::Score(args) => score(&args, output),
        PolicyVerb::Generate(args) => generate(&args, output),
        PolicyVerb::Grad(args) => grad(&args, output),
        PolicyVerb::Adamw(args) => adamw(&args, output),
    }
}

fn score(args: &ScoreArgs, output: &Output) -> Result<(), Stop> {
    let sequences = ids(&args.input)?;
    let (model, threads) = args.model.load()?;
    let adapter = adapter(&model, args.adapter.as_deref())?;
    let mut logprobs = Vec::with_capacity(sequences.len());
    for sequence in &sequences {
        let scored = train::score(&model, adapter.as_ref(), sequence, &threads);
        logprobs.push(scored.map_err(|error| engine(&error))?);
    }
    output.json(&json!({ "logprobs": logprobs }))
}

fn generate(args: &GenerateArgs, output: &Output) -> Result<(), Stop> {
    let prompts = ids(&args.input)?;
    let (model, threads) = args.model.load()?;
    let adapter = adapter(&model, args.adapter.as_deref())?;
    let params = SamplingParams {
        temperature: args.temperature,
        ..SamplingParams::greedy()
    };
    let eos: &[u32] = if args.stop_at_eos {
        &model.config().eos_token_ids
    } else {
        &[]
    };
    let mut sequences = Vec::with_capacity(prompts.len());
    for prompt in &prompts {
        let generated = train::generate(
            &model,
            adapter.as_ref(),
            prompt,
            args.max_tokens,
            &params,
            args.seed,
            eos,
            &threads,
        );
        let train::Generated {
            tokens,
            logprobs,
            stopped,
        } = generated.map_err(|error| engine(&error))?;
        sequences.push(json!({ "tokens": tokens, "logprobs": logprobs, "stopped": stopped }));
    }
    output.json(&json!({ "sequences": sequences }))
}

fn grad(args: &GradArgs, output: &Output) -> Result<(), Stop> {
    let (mut trainer, data, loss) = args.batch.load(&args.model)?;
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
        .map_err(|error| engine(&error))?;
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
    let (mut trainer, data, loss) = args.batch.load(&args.model)?;
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
        .map_err(|error| engine(&error))?;
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
    fn load(&self) -> Result<(Model, Threads), Fault> {
        let Compute::F32 = self.compute;
        let all = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = self.threads.unwrap_or_else(all).max(1);
        let model = Model::load(&self.model).map_err(|error| engine(&error))?;
        Ok((model, Threads::new(threads)))
    }
}

impl BatchArgs {
    fn load(&self, model: &ModelArgs) -> Result<(Trainer, Vec<train::Datum>, Loss), Fault> {
        let loss = loss::parse(&self.loss, self.loss_config.as_deref())?;
        let data = data::read(&self.data)?;
        let (model, threads) = model.load()?;
        let adapter = Adapter::load_peft(model.config(), &self.adapter);
        let adapter = adapter.map_err(|error| engine(&error))?;
        let trainer = Trainer::new(Arc::new(model), adapter, threads);
        Ok((trainer.map_err(|error| engine(&error))?, data, loss))
    }
}

fn adapter(model: &Model, directory: Option<&Path>) -> Result<Option<Adapter>, Fault> {
    let loaded = directory.map(|directory| Adapter::load_peft(model.config(), directory));
    loaded.transpose().map_err(|error| engine(&error))
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
