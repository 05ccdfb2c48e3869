//! `volley policy bench`: what the engine does per second, on random weights of a given shape.
//!
//! The parts and their sizes are those of the harnesses that measure other engines, so that the
//! figures can stand side by side. Every line carries wall and processor time: on a machine that
//! is shared the second is the steadier one.

mod swap;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use volley_engine::adapter::{Adapter, LoraConfig};
use volley_engine::config::ModelConfig;
use volley_engine::cpu::threads::Threads;
use volley_engine::kv::KvCache;
use volley_engine::model::{LogitsWanted, Model, Scratch, SequenceStep};
use volley_engine::sampler::{SamplingParams, sample};
use volley_engine::train::{AdamParams, Datum, Loss, Trainer};
use volley_protocol::{ErrorCode, Fault};

use super::args::{BenchArgs, Part};
use super::engine;
use crate::errors::Stop;
use crate::output::Output;
use crate::text;

/// Rank of every adapter here.
const RANK: usize = 16;
/// Shapes that have a name.
const SHAPES: [&str; 2] = ["q06b", "small"];
/// Sequences and tokens of the training step.
const TRAIN: [usize; 2] = [8, 256];

/// Tokens behind the gradient of an optimiser's step; how many does not matter to the step.
const ADAMW_TOKENS: usize = 8;

const ALL: [Part; 11] = [
    Part::Decode1,
    Part::Decode8,
    Part::Decode32,
    Part::Decode32Adapter1,
    Part::Decode32Adapters32,
    Part::Prefill256,
    Part::Prefill1024,
    Part::Prefill2048,
    Part::Train,
    Part::Adamw,
    Part::Swap,
];

pub(super) fn run(args: &BenchArgs, output: &Output) -> Result<(), Stop> {
    let config = config(&args.shape)?;
    let long_prefill = if args.shape == "small" {
        [32, 64]
    } else {
        [8, 256]
    };
    output.talk("making random weights …");
    let model = Model::synthetic(config, args.compute, 1);
    let mut bench = Bench {
        args,
        model: Arc::new(model.map_err(|error| engine(&error))?),
        threads: super::threads(args.threads),
    };
    let parts = if args.parts.is_empty() {
        &ALL[..]
    } else {
        &args.parts
    };
    for part in parts {
        let line = match part {
            Part::Decode1 => bench.decode(1, 0)?,
            Part::Decode8 => bench.decode(8, 0)?,
            Part::Decode32 => bench.decode(32, 0)?,
            Part::Decode32Adapter1 => bench.decode(32, 1)?,
            Part::Decode32Adapters32 => bench.decode(32, 32)?,
            Part::Prefill256 => bench.prefill([1, 256])?,
            Part::Prefill1024 => bench.prefill([1, 1024])?,
            Part::Prefill2048 => bench.prefill(long_prefill)?,
            Part::Train => bench.train()?,
            Part::Adamw => bench.adamw()?,
            Part::Swap => swap::run(&bench)?,
        };
        bench.print(*part, line, output)?;
    }
    Ok(())
}

struct Bench<'a> {
    args: &'a BenchArgs,
    model: Arc<Model>,
    threads: Threads,
}

/// Wall and processor time of the fastest run.
#[derive(Clone, Copy)]
struct Times {
    wall_s: f64,
    cpu_s: f64,
}

impl Bench<'_> {
    fn print(&self, part: Part, line: Value, output: &Output) -> Result<(), Stop> {
        let mut line = line;
        let name = clap::ValueEnum::to_possible_value(&part);
        line["part"] = name.map(|name| name.get_name().to_owned()).into();
        line["peer"] = "volley".into();
        line["shape"] = self.args.shape.clone().into();
        line["dtype"] = self.args.compute.name().into();
        line["threads"] = self.threads.count().into();
        line["isa"] = self.threads.isa().name().into();
        line["load1"] = load().into();
        if self.args.json {
            output.json(&line)?;
        } else {
            let part = line["part"].as_str().unwrap_or("");
            match line.get("tok_s") {
                Some(rate) => output.data(format!("{part:24} {rate:>10} tokens/s"))?,
                None if line.get("wall_ms").is_some() => {
                    output.data(format!("{part:24} {:>10} ms", line["wall_ms"]))?;
                }
                None => output.data(format!(
                    "{part:24} {:>10} ms at most, median {} ms",
                    line["step_ms_max"], line["step_ms_p50"]
                ))?,
            }
        }
        output.flush()
    }

    /// Tokens per second of `batch` sequences that decode together.
    fn decode(&self, batch: usize, adapters: usize) -> Result<Value, Fault> {
        let adapters: Vec<Adapter> = (0..adapters)
            .map(|seed| self.adapter(seed as u64))
            .collect::<Result<_, _>>()?;
        let adapter = |i: usize| (!adapters.is_empty()).then(|| &adapters[i % adapters.len()]);
        let (prompt, new) = (self.args.prompt.max(1), self.args.new.max(1));
        let mut scratch = Scratch::new();
        let mut caches = Vec::with_capacity(batch);
        for i in 0..batch {
            let mut cache = KvCache::new(self.model.config());
            let tokens = self.tokens(prompt, i);
            self.forward(&mut scratch, [(tokens.as_slice(), &mut cache, adapter(i))])?;
            caches.push(cache);
        }
        let mut last: Vec<[u32; 1]> = (0..batch).map(|i| [i as u32]).collect();
        let mut steps_ms = Vec::new();
        let times = self.fastest(|| {
            caches.iter_mut().for_each(|cache| cache.truncate(prompt));
            steps_ms.clear();
            for position in 0..new {
                let begin = Instant::now();
                let work = (caches.iter_mut().zip(&last).enumerate())
                    .map(|(i, (cache, token))| (&token[..], cache, adapter(i)));
                let rows = self.forward(&mut scratch, work)?;
                for (i, (token, row)) in last.iter_mut().zip(&rows).enumerate() {
                    let params = SamplingParams::default();
                    token[0] = sample(row.row(0), &params, i as u64, position as u64).token;
                }
                steps_ms.push(begin.elapsed().as_secs_f64() * 1e3);
            }
            Ok(())
        })?;
        steps_ms.sort_by(f64::total_cmp);
        let mut line = rates(times, batch * new);
        line["batch"] = batch.into();
        line["adapters"] = adapters.len().into();
        line["prompt"] = prompt.into();
        line["new"] = new.into();
        line["step_ms_p50"] = round(steps_ms[new / 2]).into();
        line["step_ms_max"] = round(steps_ms[new - 1]).into();
        Ok(line)
    }

    fn prefill(&self, [batch, length]: [usize; 2]) -> Result<Value, Fault> {
        let prompts: Vec<Vec<u32>> = (0..batch).map(|i| self.tokens(length, i)).collect();
        let mut scratch = Scratch::new();
        let times = self.fastest(|| {
            let mut caches: Vec<KvCache> = (0..batch)
                .map(|_| KvCache::new(self.model.config()))
                .collect();
            let work = prompts.iter().zip(&mut caches);
            let work = work.map(|(tokens, cache)| (tokens.as_slice(), cache, None));
            self.forward(&mut scratch, work).map(|_| ())
        })?;
        let mut line = rates(times, batch * length);
        line["batch"] = batch.into();
        line["length"] = length.into();
        Ok(line)
    }

    fn train(&mut self) -> Result<Value, Fault> {
        let [batch, length] = TRAIN;
        let data: Vec<Datum> = (0..batch).map(|i| self.datum(length, i)).collect();
        let mut trainer = self.trainer()?;
        if let Some(memory_mb) = self.args.memory_mb {
            trainer = trainer.with_memory_budget(memory_mb.saturating_mul(1 << 20));
        }
        let params = AdamParams {
            grad_clip_norm: 1.0,
            ..AdamParams::default()
        };
        let mut step = || -> Result<(), Fault> {
            let loss = Loss::CrossEntropy;
            trainer
                .forward_backward(&data, &loss)
                .map_err(|error| engine(&error))?;
            trainer
                .optim_step(&params)
                .map_err(|error| engine(&error))?;
            Ok(())
        };
        step()?;
        let times = self.fastest(step)?;
        let mut line = rates(times, batch * length);
        line["batch"] = batch.into();
        line["length"] = length.into();
        line["lora_parameters"] = trainer.published().num_values().into();
        if let Some(plan) = trainer.memory_plan() {
            line["memory"] = json!({
                "budget_mib": self.args.memory_mb, "predicted_mib": plan.bytes.div_ceil(1 << 20),
                "layers": plan.layers, "layers_kept": plan.layers_kept,
                "side_by_side": plan.side_by_side, "micro_batches": plan.micro_batches,
                "rows": plan.rows,
            });
        }
        line["max_rss_gib"] = round(max_rss_bytes() / (1u64 << 30) as f64).into();
        Ok(line)
    }

    fn adamw(&mut self) -> Result<Value, Fault> {
        let mut trainer = self.trainer()?;
        let params = AdamParams {
            grad_clip_norm: 1.0,
            ..AdamParams::default()
        };
        // Each step uses up a gradient, which a short sequence makes.
        let data = [self.datum(ADAMW_TOKENS, 0)];
        let mut best: Option<Times> = None;
        for _ in 0..=self.args.repeat.max(1) {
            let output = trainer.forward_backward(&data, &Loss::CrossEntropy);
            output.map_err(|error| engine(&error))?;
            let times = timed(|| {
                let step = trainer.optim_step(&params);
                step.map(|_| ()).map_err(|error| engine(&error))
            })?;
            best = Some(times.or_faster(best));
        }
        let times = best.unwrap_or(Times::NONE);
        let mut line = json!({
            "wall_ms": round(times.wall_s * 1e3), "cpu_ms": round(times.cpu_s * 1e3),
        });
        line["lora_parameters"] = trainer.published().num_values().into();
        Ok(line)
    }

    fn trainer(&self) -> Result<Trainer, Fault> {
        let threads = Threads::new(self.threads.count());
        let trainer = Trainer::new(Arc::clone(&self.model), self.adapter(0)?, threads);
        trainer.map_err(|error| engine(&error))
    }

    fn adapter(&self, seed: u64) -> Result<Adapter, Fault> {
        let config = LoraConfig::all_linear(RANK, 2.0 * RANK as f32);
        Adapter::init(self.model.config(), &config, seed).map_err(|error| engine(&error))
    }

    fn datum(&self, length: usize, sequence: usize) -> Datum {
        Datum {
            tokens: self.tokens(length + 1, sequence),
            sampled_logprobs: vec![0.0; length],
            advantages: vec![0.0; length],
            weights: vec![1.0; length],
        }
    }

    fn tokens(&self, length: usize, sequence: usize) -> Vec<u32> {
        let vocab = self.model.config().vocab_size;
        let token = |i: usize| (sequence * 7919 + i * 104_729 + 13) % vocab;
        (0..length).map(|i| token(i) as u32).collect()
    }

    fn forward<'a>(
        &self,
        scratch: &mut Scratch,
        work: impl IntoIterator<Item = (&'a [u32], &'a mut KvCache, Option<&'a Adapter>)>,
    ) -> Result<Vec<volley_engine::model::Logits>, Fault> {
        let steps = work
            .into_iter()
            .map(|(tokens, cache, adapter)| SequenceStep {
                tokens,
                cache,
                adapter,
                logits: LogitsWanted::Last,
            });
        let mut steps: Vec<SequenceStep<'_>> = steps.collect();
        let logits = self.model.forward(&mut steps, &self.threads, scratch);
        logits.map_err(|error| engine(&error))
    }

    fn fastest(&self, mut work: impl FnMut() -> Result<(), Fault>) -> Result<Times, Fault> {
        let mut best: Option<Times> = None;
        for _ in 0..self.args.repeat.max(1) {
            best = Some(timed(&mut work)?.or_faster(best));
        }
        Ok(best.unwrap_or(Times::NONE))
    }
}

impl Times {
    /// Of nothing.
    const NONE: Self = Self {
        wall_s: f64::NAN,
        cpu_s: f64::NAN,
    };

    fn or_faster(self, other: Option<Self>) -> Self {
        other
            .filter(|other| other.wall_s < self.wall_s)
            .unwrap_or(self)
    }
}

fn timed(mut work: impl FnMut() -> Result<(), Fault>) -> Result<Times, Fault> {
    let (wall, cpu) = (Instant::now(), cpu_s());
    work()?;
    Ok(Times {
        wall_s: wall.elapsed().as_secs_f64(),
        cpu_s: cpu_s() - cpu,
    })
}

/// The shapes of the peers' harnesses, or a folder's.
fn config(shape: &str) -> Result<ModelConfig, Fault> {
    let of = |layers, hidden, heads, kv_heads, head_dim, ffn, vocab| {
        json!({
            "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": layers,
            "hidden_size": hidden, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": head_dim, "intermediate_size": ffn,
            "vocab_size": vocab, "tie_word_embeddings": true, "max_position_embeddings": 4096,
            "rope_theta": 1e6, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        })
    };
    let known = match shape {
        "q06b" => of(28, 1024, 16, 8, 128, 3072, 151_936),
        "small" => of(4, 256, 4, 2, 64, 1024, 4096),
        folder => {
            let path = Path::new(folder);
            if !path.exists() {
                return Err(unknown_shape(folder));
            }
            return ModelConfig::load(path).map_err(|error| engine(&error));
        }
    };
    let parsed = ModelConfig::parse(Path::new(shape), known.to_string().as_bytes());
    parsed.map_err(|error| engine(&error))
}

fn unknown_shape(name: &str) -> Fault {
    let hint = text::nearest(name, SHAPES.into_iter()).map_or_else(
        || {
            format!(
                "known: {}, or a folder with a config.json",
                SHAPES.join(", ")
            )
        },
        |near| format!("did you mean {near}?"),
    );
    let message = format!("--shape {name} is neither a known shape nor a folder");
    Fault::new(ErrorCode::ModelNotFound, message).with_hint(hint)
}

fn rates(times: Times, tokens: usize) -> Value {
    json!({
        "tokens": tokens,
        "wall_s": round(times.wall_s),
        "cpu_s": round(times.cpu_s),
        "tok_s": round(tokens as f64 / times.wall_s),
        "tok_per_cpu_s": round(tokens as f64 / times.cpu_s),
    })
}

/// Four digits are more than a measurement holds.
fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powf(3.0 - value.abs().log10().floor());
    (value * scale).round() / scale
}

/// Processor time of this process.
fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Most memory this process ever had.
fn max_rss_bytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) * 1024.0
}

/// How busy the machine was in the last minute.
fn load() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_a_name_or_a_folder() {
        for name in SHAPES {
            assert!(config(name).is_ok(), "{name}");
        }
        for (wrong, hint) in [
            ("smal", "did you mean small?"),
            ("q06", "did you mean q06b?"),
            (
                "no/such/folder",
                "known: q06b, small, or a folder with a config.json",
            ),
        ] {
            let fault = config(wrong).expect_err("there is no such shape");
            assert_eq!(fault.code, ErrorCode::ModelNotFound);
            assert!(fault.message.contains(wrong), "{}", fault.message);
            assert_eq!(fault.hint, hint);
        }
    }
}
