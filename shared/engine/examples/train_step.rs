//! Times a training step: `train_step MODEL_DIR [sequences] [tokens] [rank] [threads]`.
//!
//! Sequences are made of arbitrary tokens, the second half of each is trained on. Prints seconds
//! of forward and backward, of the optimiser, and tokens per second; best and median of the runs.
#![allow(clippy::print_stdout, reason = "it is a program")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use volley_engine::adapter::{Adapter, LoraConfig};
use volley_engine::cpu::threads::Threads;
use volley_engine::model::Model;
use volley_engine::train::{AdamParams, Datum, Loss, Trainer};

const RUNS: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(dir) = arguments.first() else {
        return Err("usage: train_step MODEL_DIR [sequences] [tokens] [rank] [threads]".into());
    };
    let number = |index: usize, default: usize| -> Result<usize, std::num::ParseIntError> {
        arguments
            .get(index)
            .map_or(Ok(default), |text| text.parse())
    };
    let (sequences, tokens) = (number(1, 192)?, number(2, 70)?);
    let (rank, threads) = (number(3, 16)?, number(4, 2)?);

    let model = Arc::new(Model::load(Path::new(dir))?);
    let config = LoraConfig::all_linear(rank, 2.0 * rank as f32);
    let adapter = Adapter::init(model.config(), &config, 1)?;
    let data = data(model.config().vocab_size, sequences, tokens);
    let mut trainer = Trainer::new(model, adapter, Threads::new(threads))?;
    let loss = Loss::ImportanceSampling;
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let begin = Instant::now();
        trainer.forward_backward(&data, &loss)?;
        let computed = begin.elapsed().as_secs_f64();
        trainer.optim_step(&AdamParams::default())?;
        times.push((begin.elapsed().as_secs_f64(), computed));
    }
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (best, median) = (times[0], times[RUNS / 2]);
    println!(
        "best {:.3} s (optimiser {:.4} s), median {:.3} s, {:.0} tokens/s, {threads} threads",
        best.0,
        best.0 - best.1,
        median.0,
        (sequences * tokens) as f64 / best.0,
    );
    Ok(())
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
