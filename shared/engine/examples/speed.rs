//! Measures the matrix product and a model: `speed THREADS [MODEL_DIR]`. Every figure is the
//! fastest of many short runs, so that a busy machine shows in it as little as possible.
#![allow(clippy::print_stdout, reason = "the figures are the output")]

use std::path::Path;
use std::time::Instant;

use volley_engine::EngineError;
use volley_engine::adapter::{Adapter, LoraConfig};
use volley_engine::cpu::Isa;
use volley_engine::cpu::gemm::{Store, gemm};
use volley_engine::cpu::pack::PackedWeights;
use volley_engine::cpu::threads::Threads;
use volley_engine::kv::KvCache;
use volley_engine::model::{LogitsWanted, Model, Scratch, SequenceStep};

fn main() -> Result<(), EngineError> {
    let mut args = std::env::args().skip(1);
    let count = args.next().and_then(|n| n.parse().ok()).unwrap_or(1);
    let Some(dir) = args.next() else {
        for isa in Isa::available()
            .into_iter()
            .filter(|isa| isa.name() != "scalar")
        {
            println!(
                "{} x {count}: GFLOP/s for m = 1, 4, .., f32 and bf16 each",
                isa.name()
            );
            products(&Threads::with_isa(count, isa));
        }
        return Ok(());
    };
    let model = Model::load(Path::new(&dir))?;
    let config = LoraConfig::all_linear(16, 32.0);
    let adapter = Adapter::init(model.config(), &config, 1)?;
    let threads = Threads::new(count);
    for adapter in [None, Some(&adapter)] {
        println!("adapter: {}", adapter.is_some());
        for batch in [1, 8, 32, 64] {
            decode(&model, &threads, adapter, batch)?;
        }
        prefill(&model, &threads, adapter, 1, 256)?;
        prefill(&model, &threads, adapter, 32, 64)?;
    }
    Ok(())
}

/// Seconds of the fastest of several runs.
fn best(mut work: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while begin.elapsed().as_secs_f64() < 0.15 {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn products(threads: &Threads) {
    for (n, k) in [
        (192, 192),
        (480, 192),
        (16, 192),
        (192, 480),
        (1024, 192),
        (1024, 1024),
    ] {
        let weights = vec![0.5; n * k];
        let bits = vec![0x3f00; n * k];
        print!("  {n:5} x {k:4}:");
        for m in [1, 4, 8, 32, 512, 2048] {
            let (x, mut y) = (vec![0.25; m * k], vec![0.0; m * n]);
            for packed in [
                PackedWeights::pack(&weights, n, k),
                PackedWeights::pack_bf16(&bits, n, k),
            ] {
                let seconds = best(|| gemm(threads, &x, &packed, &mut y, Store::Set));
                print!(" {:6.1}", 2.0 * (m * n * k) as f64 / seconds * 1e-9);
            }
            print!(" |");
        }
        println!();
    }
}

fn decode(
    model: &Model,
    threads: &Threads,
    adapter: Option<&Adapter>,
    batch: usize,
) -> Result<(), EngineError> {
    let mut scratch = Scratch::new();
    let prompt = vec![7u32; 64];
    let mut caches: Vec<KvCache> = (0..batch).map(|_| KvCache::new(model.config())).collect();
    let mut step = |tokens: &[u32]| -> Result<(), EngineError> {
        let one = |cache| SequenceStep {
            tokens,
            cache,
            adapter,
            logits: LogitsWanted::Last,
        };
        let mut steps: Vec<_> = caches.iter_mut().map(one).collect();
        model.forward(&mut steps, threads, &mut scratch).map(drop)
    };
    step(&prompt)?;
    let mut fastest = f64::INFINITY;
    for _ in 0..100 {
        let start = Instant::now();
        step(&[9])?;
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    println!(
        "  decode b{batch} after {}: {:.0} tok/s",
        prompt.len(),
        batch as f64 / fastest
    );
    Ok(())
}

fn prefill(
    model: &Model,
    threads: &Threads,
    adapter: Option<&Adapter>,
    batch: usize,
    length: usize,
) -> Result<(), EngineError> {
    let mut scratch = Scratch::new();
    let tokens = vec![7u32; length];
    let mut fastest = f64::INFINITY;
    for _ in 0..5 {
        let mut caches: Vec<KvCache> = (0..batch).map(|_| KvCache::new(model.config())).collect();
        let logits = LogitsWanted::Last;
        let one = |cache| SequenceStep {
            tokens: &tokens,
            cache,
            adapter,
            logits,
        };
        let mut steps: Vec<_> = caches.iter_mut().map(one).collect();
        let start = Instant::now();
        model.forward(&mut steps, threads, &mut scratch)?;
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    let rate = (batch * length) as f64 / fastest;
    println!("  prefill {batch} x {length}: {rate:.0} tok/s");
    Ok(())
}
