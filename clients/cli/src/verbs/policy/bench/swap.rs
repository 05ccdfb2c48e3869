//! What a new version costs those who play: decode steps of many episodes, first undisturbed, then
//! with a version that arrives in the middle and is taken up by the groups that begin after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::{Value, json};
use volley_engine::adapter::Adapter;
use volley_engine::decode::{Decoder, Request, SequenceId};
use volley_protocol::Fault;
use volley_worker::ADAPTER_READER_NICENESS;

use super::{Bench, engine, round};

/// Episodes that share a prompt.
const GROUP: usize = 16;
/// Of this many episodes, one is over at every step, and its group's successor begins: the steps of
/// both halves hold the same work.
const TURNOVER: usize = 64;
/// Steps of each half.
const STEPS: usize = 48;
/// The step of the second half before which the version arrives.
const ARRIVAL: usize = 8;

/// The episodes under way.
struct Table<'a> {
    bench: &'a Bench<'a>,
    decoder: Decoder,
    adapter: Arc<Adapter>,
    /// Oldest first.
    playing: Vec<SequenceId>,
    started: u64,
}

impl Table<'_> {
    fn begin(&mut self, count: usize) -> Result<(), Fault> {
        for _ in 0..count {
            let id = self.started;
            self.started += 1;
            let prompt = self
                .bench
                .tokens(self.bench.args.prompt.max(1), id as usize / GROUP);
            let request = Request {
                adapter: Some(Arc::clone(&self.adapter)),
                seed: id,
                ..Request::new(prompt, 4 * STEPS)
            };
            let started = self.decoder.start(&self.bench.model, id, request);
            started.map_err(|error| engine(&error))?;
            self.playing.push(id);
        }
        Ok(())
    }

    /// Ends the oldest episodes and begins as many.
    fn turn_over(&mut self) -> Result<(), Fault> {
        let count = (self.playing.len() / TURNOVER).max(1);
        for id in self.playing.drain(..count) {
            self.decoder.remove(id);
        }
        self.begin(count)
    }

    /// One step; its milliseconds.
    fn step(&mut self) -> Result<f64, Fault> {
        let begin = Instant::now();
        let step = self.decoder.step(&self.bench.model, &self.bench.threads);
        step.map_err(|error| engine(&error))?;
        Ok(begin.elapsed().as_secs_f64() * 1e3)
    }
}

pub(super) fn run(bench: &Bench<'_>) -> Result<Value, Fault> {
    let mut table = Table {
        bench,
        decoder: Decoder::new(),
        adapter: Arc::new(bench.adapter(0)?),
        playing: Vec::new(),
        started: 0,
    };
    table.begin(bench.args.episodes.max(TURNOVER))?;
    // All prompts are computed before anything is measured.
    while table
        .decoder
        .step(&bench.model, &bench.threads)
        .map_err(|e| engine(&e))?
        .prefilled
        > 0
    {}
    let mut quiet_ms = Vec::new();
    for _ in 0..STEPS {
        table.turn_over()?;
        quiet_ms.push(table.step()?);
    }
    let bytes = bench.adapter(1)?.to_bytes();
    let (mut swap_ms, mut live_after) = (Vec::new(), None);
    let arrived = AtomicBool::new(false);
    let read = || {
        // Without the permission to stand back it reads all the same.
        let _ = rustix::process::nice(ADAPTER_READER_NICENESS);
        let read = Adapter::from_bytes(bench.model.config(), &bytes);
        let adapter = read.map_err(|error| engine(&error))?;
        adapter.prepare(bench.model.compute());
        arrived.store(true, Ordering::Release);
        Ok::<_, Fault>(Arc::new(adapter))
    };
    std::thread::scope(|scope| {
        let mut reader = None;
        for step in 0..STEPS {
            if step == ARRIVAL {
                reader = Some(scope.spawn(read));
            }
            if arrived.load(Ordering::Acquire)
                && let Some(reader) = reader.take()
                && let Ok(adapter) = reader.join()
            {
                table.adapter = adapter?;
                live_after = Some(step - ARRIVAL);
            }
            table.turn_over()?;
            swap_ms.push(table.step()?);
        }
        Ok::<(), Fault>(())
    })?;
    Ok(line(bench, bytes.len(), quiet_ms, swap_ms, live_after))
}

fn line(
    bench: &Bench<'_>,
    bytes: usize,
    mut quiet_ms: Vec<f64>,
    mut swap_ms: Vec<f64>,
    live_after: Option<usize>,
) -> Value {
    quiet_ms.sort_by(f64::total_cmp);
    swap_ms.sort_by(f64::total_cmp);
    let (median, longest) = (swap_ms[STEPS / 2], swap_ms[STEPS - 1]);
    json!({
        "episodes": bench.args.episodes.max(TURNOVER),
        "adapter_bytes": bytes,
        "quiet_step_ms_p50": round(quiet_ms[STEPS / 2]),
        "quiet_step_ms_max": round(quiet_ms[STEPS - 1]),
        "step_ms_p50": round(median),
        "step_ms_max": round(longest),
        "longest_over_median": round(longest / median),
        "live_after_steps": live_after,
    })
}
