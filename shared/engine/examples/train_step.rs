//! Times a training step: `train_step MODEL_DIR [sequences] [tokens] [rank] [threads] [runs]`.
//!
//! A folder with nothing but a `config.json` gives random weights in bfloat16. Sequences are made
//! of arbitrary tokens, the second half of each is trained on. Prints seconds of forward and
//! backward and of the optimiser, and tokens per second; best and median of the runs. Processor
//! time, where the system tells it, is that of all threads, spinning included.
#![allow(clippy::print_stdout, reason = "it is a program")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use volley_engine::adapter::{Adapter, LoraConfig};
use volley_engine::config::{Compute, ModelConfig};
use volley_engine::cpu::threads::Threads;
use volley_engine::model::Model;
use volley_engine::train::{AdamParams, Datum, Loss, Trainer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(dir) = arguments.first() else {
        return Err(
            "usage: train_step MODEL_DIR [sequences] [tokens] [rank] [threads] [runs]".into(),
        );
    };
    let number = |index: usize, default: usize| -> Result<usize, std::num::ParseIntError> {
        arguments
            .get(index)
            .map_or(Ok(default), |text| text.parse())
    };
    let (sequences, tokens) = (number(1, 192)?, number(2, 70)?);
    let (rank, threads, runs) = (number(3, 16)?, number(4, 2)?, number(5, 5)?.max(1));

    let dir = Path::new(dir);
    let model = Arc::new(if dir.join("model.safetensors").exists() {
        Model::load(dir)?
    } else {
        Model::synthetic(ModelConfig::load(dir)?, Compute::Bf16, 1)?
    });
    let config = LoraConfig::all_linear(rank, 2.0 * rank as f32);
    let adapter = Adapter::init(model.config(), &config, 1)?;
    let data = data(model.config().vocab_size, sequences, tokens);
    let mut trainer = Trainer::new(model, adapter, Threads::new(threads))?;
    let loss = Loss::ImportanceSampling;
    let (mut steps, mut updates, mut cpus) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        let begin = Instant::now();
        trainer.forward_backward(&data, &loss)?;
        let (computed, cpu) = (Instant::now(), cpu_s());
        trainer.optim_step(&AdamParams::default())?;
        cpus.push(cpu_s() - cpu);
        updates.push(computed.elapsed().as_secs_f64());
        steps.push(begin.elapsed().as_secs_f64());
    }
    for times in [&mut steps, &mut updates, &mut cpus] {
        times.sort_by(f64::total_cmp);
    }
    println!(
        "best {:.3} s, median {:.3} s, {:.0} tokens/s, {threads} threads; optimiser best {:.2} ms, \
         median {:.2} ms, processor {:.2} ms, {} values",
        steps[0],
        steps[runs / 2],
        (sequences * tokens) as f64 / steps[0],
        updates[0] * 1e3,
        updates[runs / 2] * 1e3,
        cpus[0] * 1e3,
        trainer.published().num_values(),
    );
    Ok(())
}

/// Processor time of this process's threads.
fn cpu_s() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    let of = |task: std::fs::DirEntry| -> Option<f64> {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok()
    };
    tasks.flatten().filter_map(of).sum::<f64>() * 1e-9
}

fn data(vocab: usize, sequences: usize, tokens: usize) -> Vec<Datum> {
    let datum = |sequence: usize| Datum {
        tokens: (0..tokens)
            .map(|t| ((sequence * 31 + t * 17 + t * t) % vocab) as u32)
            .collect(),
        sampled_logprobs: vec![-6.0; tokens - 1],
        advantages: vec![
            if sequence.is_multiple_of(2) {
                1.0
            } else {
                -1.0
            };
            tokens - 1
        ],
        weights: (1..tokens)
            .map(|t| if 2 * t > tokens { 1.0 } else { 0.0 })
            .collect(),
    };
    (0..sequences).map(datum).collect()
}
