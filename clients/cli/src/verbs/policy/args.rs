//! What can be asked of the engine on the command line.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use volley_engine::config::Compute;
use volley_engine::train::AdamParams;

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
    /// Measure decoding, prefill, a training step and the optimiser on random weights.
    Bench(BenchArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Shape of the model: q06b (28 layers, hidden 1024, vocabulary 151,936), small (4 layers,
    /// hidden 256, vocabulary 4,096), or the folder of a config.json.
    #[arg(long, value_name = "NAME")]
    pub(super) shape: String,
    /// Number format of the matrix products: f32 or bf16.
    #[arg(long, value_name = "FORMAT", default_value = "bf16", value_parser = crate::compute)]
    pub(super) compute: Compute,
    /// Threads. Default: all cores.
    #[arg(long, value_name = "N", value_parser = crate::threads)]
    pub(super) threads: Option<usize>,
    /// What to measure, in this order; by default everything.
    #[arg(long, value_name = "PART,…", value_delimiter = ',', value_enum)]
    pub(super) parts: Vec<Part>,
    /// Tokens in the cache before decoding begins.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(super) prompt: usize,
    /// Episodes that play while a version arrives.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(super) episodes: usize,
    /// Tokens decoded per sequence.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(super) new: usize,
    /// Memory for the training step beside the weights, MiB. Default: no bound.
    #[arg(long, value_name = "N")]
    pub(super) memory_mb: Option<u64>,
    /// Measurements of each part, of which the fastest counts.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(super) repeat: usize,
    /// One JSON object per line on standard output.
    #[arg(long)]
    pub(super) json: bool,
}

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Part {
    /// One sequence, token by token.
    Decode1,
    /// Eight sequences at once.
    Decode8,
    /// Thirty-two sequences at once.
    Decode32,
    /// The same, all with one adapter of rank 16.
    Decode32Adapter1,
    /// The same, each with an adapter of its own.
    Decode32Adapters32,
    /// One prompt of 256 tokens.
    Prefill256,
    /// One prompt of 1,024 tokens.
    Prefill1024,
    /// Prompts of 2,048 tokens altogether.
    Prefill2048,
    /// Forward, backward, clip and AdamW on 8 sequences of 256 tokens, rank 16.
    Train,
    /// Clip, AdamW and publication alone.
    Adamw,
    /// Decode steps of many episodes while a new version arrives.
    Swap,
}

#[derive(Debug, Args)]
pub(super) struct ModelArgs {
    /// Model folder (Hugging Face layout).
    #[arg(long, value_name = "DIR")]
    pub(super) model: PathBuf,
    /// Threads; they change the time, not the result. Default: all cores.
    #[arg(long, value_name = "N", value_parser = crate::threads)]
    pub(super) threads: Option<usize>,
    /// Number format of the matrix products: f32 or bf16.
    #[arg(long, value_name = "FORMAT", default_value = "f32", value_parser = crate::compute)]
    pub(super) compute: Compute,
    /// JSON on standard output.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// PEFT folder.
    #[arg(long, value_name = "DIR")]
    pub(super) adapter: Option<PathBuf>,
    /// File with {"sequences": [[id, …], …]}.
    #[arg(long, value_name = "IDS.json")]
    pub(super) input: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// PEFT folder.
    #[arg(long, value_name = "DIR")]
    pub(super) adapter: Option<PathBuf>,
    /// File with {"prompts": [[id, …], …]}; `sequences` says the same.
    #[arg(long, value_name = "IDS.json")]
    pub(super) input: PathBuf,
    /// Tokens to add to each.
    #[arg(long, value_name = "N")]
    pub(super) max_tokens: usize,
    /// 0 always takes the likeliest token.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub(super) temperature: f32,
    /// Keeps the K most likely tokens; 0 keeps all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(super) top_k: u32,
    /// Keeps the fewest most likely tokens whose probabilities reach P.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub(super) top_p: f32,
    /// Keeps tokens at least this fraction as likely as the most likely one.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub(super) min_p: f32,
    /// Seed of the sampling.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(super) seed: u64,
    /// End as soon as the text contains this string; may be repeated. Needs tokenizer.json.
    #[arg(long, value_name = "TEXT")]
    pub(super) stop: Vec<String>,
    /// Report the log-probabilities of the prompt's tokens but the first.
    #[arg(long)]
    pub(super) prompt_logprobs: bool,
    /// Report the K likeliest tokens in each token's place, as [id, log-probability].
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(super) top_logprobs: usize,
    /// Print a JSON line for every token as it is drawn, with its text. Needs tokenizer.json.
    #[arg(long)]
    pub(super) stream: bool,
    /// End with the model's end-of-text token.
    #[arg(long)]
    pub(super) stop_at_eos: bool,
}

#[derive(Debug, Args)]
pub(super) struct BatchArgs {
    /// PEFT folder that training starts from.
    #[arg(long, value_name = "DIR")]
    pub(super) adapter: PathBuf,
    /// Tensors datum{i}.tokens (or seq{i}.tokens), .weights, .logprobs, .advantages.
    #[arg(long, value_name = "DATA.safetensors")]
    pub(super) data: PathBuf,
    /// cross_entropy, importance_sampling, ppo, cispo, gspo or dro.
    #[arg(long, value_name = "NAME")]
    pub(super) loss: String,
    /// For example {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}.
    #[arg(long, value_name = "JSON")]
    pub(super) loss_config: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct GradArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    pub(super) batch: BatchArgs,
    /// File for {module}.lora_A and {module}.lora_B.
    #[arg(long, value_name = "GRADS.safetensors")]
    pub(super) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct AdamwArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    pub(super) batch: BatchArgs,
    /// Steps, each with fresh gradients of the same batch.
    #[arg(long, value_name = "K", default_value_t = 1)]
    pub(super) steps: u64,
    /// Learning rate.
    #[arg(long, default_value_t = AdamParams::default().lr)]
    pub(super) lr: f64,
    /// Decay of the first moment.
    #[arg(long, default_value_t = AdamParams::default().beta1)]
    pub(super) beta1: f64,
    /// Decay of the second moment.
    #[arg(long, default_value_t = AdamParams::default().beta2)]
    pub(super) beta2: f64,
    /// Added to the root of the second moment.
    #[arg(long, default_value_t = AdamParams::default().eps)]
    pub(super) eps: f64,
    /// Decoupled weight decay.
    #[arg(long, default_value_t = 0.0)]
    pub(super) weight_decay: f64,
    /// Limit of the gradient's global norm; 0 switches it off.
    #[arg(long, default_value_t = 0.0)]
    pub(super) grad_clip: f64,
    /// PEFT folder for the result.
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
}
