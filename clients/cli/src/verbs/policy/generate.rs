//! `volley policy generate`: continues prompts, many at a time.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use volley_engine::cpu::threads::Threads;
use volley_engine::decode::{Decoder, Drawn, Request, TokenLogprobs, TurnEnd};
use volley_engine::model::Model;
use volley_engine::sampler::SamplingParams;
use volley_engine::text::{StopStrings, TextStream, Tokenizer};
use volley_protocol::{Fault, SamplingSpec};

use super::args::GenerateArgs;
use super::{adapter, engine, ids};
use crate::errors::Stop;
use crate::output::Output;

/// Prompts that are continued at a time: enough for full tiles of every product; more would only
/// hold more logits in memory.
const BATCH: usize = 32;

pub(super) fn run(args: &GenerateArgs, output: &Output) -> Result<(), Stop> {
    let spec = args.sampling();
    spec.validate()?;
    let prompts = ids(&args.input)?;
    let (model, threads) = args.model.load(false, output)?;
    let text = args.stream || !args.stop.is_empty();
    let adapter = adapter(&model, args.adapter.as_deref())?.map(Arc::new);
    let mut generation = Generation {
        args,
        output,
        tokenizer: text.then(|| tokenizer(&args.model.model)).transpose()?,
        stop: StopStrings::new(spec.stop),
        decoder: Decoder::new(),
        sequences: prompts.iter().map(|_| Sequence::default()).collect(),
    };
    let mut waiting = prompts.into_iter().enumerate();
    loop {
        while generation.decoder.len() < BATCH {
            let Some((id, prompt)) = waiting.next() else {
                break;
            };
            let request = generation.request(&model, prompt, adapter.clone());
            let started = generation.decoder.start(&model, id as u64, request);
            started.map_err(|error| engine(&error))?;
        }
        if generation.decoder.is_empty() {
            break;
        }
        generation.step(&model, &threads)?;
    }
    let sequences: Vec<Value> = (generation.sequences.into_iter())
        .map(|sequence| sequence.json(args))
        .collect();
    output.json(&json!({ "sequences": sequences }))
}

fn tokenizer(directory: &Path) -> Result<Tokenizer, Fault> {
    Tokenizer::load(directory).map_err(|error| engine(&error))
}

impl GenerateArgs {
    /// The settings as a job has them, which can be checked.
    fn sampling(&self) -> SamplingSpec {
        SamplingSpec {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed,
            stop: self.stop.clone(),
        }
    }
}

struct Generation<'a> {
    args: &'a GenerateArgs,
    output: &'a Output,
    /// Where text is asked for.
    tokenizer: Option<Tokenizer>,
    stop: StopStrings,
    decoder: Decoder,
    sequences: Vec<Sequence>,
}

#[derive(Default)]
struct Sequence {
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    prompt: Vec<TokenLogprobs>,
    /// Why it ended.
    end: &'static str,
    /// Its text before a stop string.
    text: Option<String>,
    stream: TextStream,
}

impl Generation<'_> {
    fn request(
        &self,
        model: &Model,
        prompt: Vec<u32>,
        adapter: Option<Arc<volley_engine::adapter::Adapter>>,
    ) -> Request {
        let args = self.args;
        let eos: &[u32] = match args.stop_at_eos {
            true => &model.config().eos_token_ids,
            false => &[],
        };
        Request {
            adapter,
            sampling: SamplingParams {
                temperature: args.temperature,
                top_k: args.top_k,
                top_p: args.top_p,
                min_p: args.min_p,
            },
            seed: args.seed,
            stop_tokens: eos.into(),
            prompt_logprobs: args.prompt_logprobs,
            top_logprobs: args.top_logprobs,
            ..Request::new(prompt, args.max_tokens)
        }
    }

    fn step(&mut self, model: &Model, threads: &Threads) -> Result<(), Stop> {
        let step = self.decoder.step(model, threads);
        let step = step.map_err(|error| engine(&error))?;
        if self.args.max_tokens == 0 && step.drawn.is_empty() {
            // Only prompts: nothing is drawn, so nothing says that they are done.
            if step.prefilled == 0 {
                (0..self.sequences.len()).try_for_each(|id| self.leave(id, "length"))?;
            }
            return Ok(());
        }
        for drawn in step.drawn {
            self.take(drawn)?;
        }
        Ok(())
    }

    fn take(&mut self, drawn: Drawn) -> Result<(), Stop> {
        let id = drawn.sequence as usize;
        let sequence = &mut self.sequences[id];
        let token = drawn.token;
        if let Some(tokenizer) = self.tokenizer.as_ref().filter(|_| self.args.stream) {
            let text = sequence.stream.push(tokenizer, token);
            let text = text.map_err(|error| engine(&error))?;
            self.output.json(&json!({
                "event": "token", "sequence": id, "token": token,
                "logprob": drawn.logprobs.logprob, "text": text,
            }))?;
            self.output.flush()?;
        }
        sequence.tokens.push(token);
        sequence.logprobs.push(drawn.logprobs);
        if let Some(tokenizer) = &self.tokenizer {
            let cut = self.stop.cut(tokenizer, &sequence.tokens);
            sequence.text = cut.map_err(|error| engine(&error))?;
        }
        match (&sequence.text, drawn.end) {
            (Some(_), _) => self.leave(id, "stop_string"),
            (None, Some(TurnEnd::StopToken)) => self.leave(id, "stop_token"),
            (None, Some(TurnEnd::Length)) => self.leave(id, "length"),
            (None, None) => Ok(()),
        }
    }

    fn leave(&mut self, id: usize, end: &'static str) -> Result<(), Stop> {
        // Sequences that were never started, or have left, are none of the decoder's.
        let Ok(prompt) = self.decoder.prompt_logprobs(id as u64) else {
            return Ok(());
        };
        let sequence = &mut self.sequences[id];
        sequence.prompt = prompt.to_vec();
        sequence.end = end;
        self.decoder.remove(id as u64);
        if let Some(tokenizer) = self.tokenizer.as_ref().filter(|_| self.args.stream) {
            let rest = std::mem::take(&mut sequence.stream).finish(tokenizer);
            let rest = rest.map_err(|error| engine(&error))?;
            let line = json!({ "event": "end", "sequence": id, "end": end, "text": rest });
            self.output.json(&line)?;
        }
        Ok(())
    }
}

impl Sequence {
    fn json(self, args: &GenerateArgs) -> Value {
        let logprob = |token: &TokenLogprobs| token.logprob;
        let top = |tokens: &[TokenLogprobs]| -> Vec<Vec<(u32, f32)>> {
            tokens.iter().map(|token| token.top.clone()).collect()
        };
        let mut object = Map::new();
        let logprobs: Vec<f32> = self.logprobs.iter().map(logprob).collect();
        object.insert("tokens".to_owned(), json!(self.tokens));
        object.insert("logprobs".to_owned(), json!(logprobs));
        object.insert("stopped".to_owned(), json!(self.end != "length"));
        object.insert("end".to_owned(), json!(self.end));
        if let Some(text) = &self.text {
            object.insert("text".to_owned(), json!(text));
        }
        if args.top_logprobs > 0 {
            object.insert("top_logprobs".to_owned(), json!(top(&self.logprobs)));
        }
        if args.prompt_logprobs {
            let logprobs: Vec<f32> = self.prompt.iter().map(logprob).collect();
            object.insert("prompt_logprobs".to_owned(), json!(logprobs));
            if args.top_logprobs > 0 {
                object.insert("prompt_top_logprobs".to_owned(), json!(top(&self.prompt)));
            }
        }
        Value::Object(object)
    }
}
