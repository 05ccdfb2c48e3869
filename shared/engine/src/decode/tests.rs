use std::path::Path;

use super::*;
use crate::adapter::LoraConfig;
use crate::config::{Compute, ModelConfig};
use crate::score::score;

const CONTEXT: usize = 2000;

fn model() -> Model {
    let json = format!(
        r#"{{"architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 2, "hidden_size": 32,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 48, "vocab_size": 97, "tie_word_embeddings": true,
        "max_position_embeddings": {CONTEXT}, "rope_theta": 1e4, "rms_norm_eps": 1e-6,
        "hidden_act": "silu"}}"#
    );
    let config = ModelConfig::parse(Path::new("config.json"), json.as_bytes());
    let config = config.expect("a plain model");
    Model::synthetic(config, Compute::F32, 7).expect("a small model")
}

fn adapter(model: &Model, seed: u64) -> Arc<Adapter> {
    let config = LoraConfig::all_linear(4, 8.0);
    Arc::new(Adapter::init(model.config(), &config, seed).expect("a plain adapter"))
}

fn tokens(count: usize, salt: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 31 + salt) % 97) as u32).collect()
}

fn request(prompt: Vec<u32>, max_tokens: usize, seed: u64) -> Request {
    Request {
        seed,
        ..Request::new(prompt, max_tokens)
    }
}

/// Steps until every turn is over; what each sequence drew, by name.
fn play(decoder: &mut Decoder, model: &Model, count: usize) -> Vec<Vec<Drawn>> {
    let threads = Threads::new(1);
    let mut drawn = vec![Vec::new(); count];
    loop {
        let step = decoder.step(model, &threads).expect("valid sequences");
        if step == Step::default() {
            return drawn;
        }
        for one in step.drawn {
            drawn[one.sequence as usize].push(one);
        }
    }
}

fn ids(drawn: &[Drawn]) -> Vec<u32> {
    drawn.iter().map(|drawn| drawn.token).collect()
}

fn alone(model: &Model, prompt: &[u32], max_tokens: usize, seed: u64) -> Vec<u32> {
    let sampling = SamplingParams::default();
    let threads = Threads::new(1);
    let got = generate(
        model,
        None,
        prompt,
        max_tokens,
        &sampling,
        seed,
        &[],
        &threads,
    );
    got.expect("it fits").tokens
}

#[test]
fn a_group_computes_its_prompt_once_and_keeps_one_copy() {
    let (model, mut decoder) = (model(), Decoder::new());
    let prompt = tokens(100, 3);
    for id in 0..16 {
        let request = request(prompt.clone(), 5, id);
        decoder.start(&model, id, request).expect("it fits");
    }
    let threads = Threads::new(1);
    let first = decoder.step(&model, &threads).expect("valid sequences");
    assert_eq!((first.prefilled, first.drawn.len()), (99, 1), "one of them");
    let second = decoder.step(&model, &threads).expect("valid sequences");
    assert_eq!((second.prefilled, second.drawn.len()), (0, 16));
    // Seven pages; the last is written to by everyone.
    for sequence in &decoder.sequences {
        let (all, own) = (sequence.cache.bytes(), sequence.cache.own_bytes());
        assert_eq!(own * 7, all, "sequence {}", sequence.id);
    }
    let drawn = play(&mut decoder, &model, 16);
    for (id, drawn) in drawn.iter().enumerate() {
        let expected = alone(&model, &prompt, 5, id as u64);
        let seen = usize::from(id == 0) + 1;
        assert_eq!(ids(drawn), expected[seen..], "member {id}");
    }
}

#[test]
fn prompts_with_a_common_beginning_share_it() {
    let (model, mut decoder) = (model(), Decoder::new());
    let begin = tokens(60, 1);
    let prompts: Vec<Vec<u32>> = (0..3)
        .map(|i| [begin.clone(), tokens(20, 40 + i)].concat())
        .collect();
    for (id, prompt) in prompts.iter().enumerate() {
        let request = request(prompt.clone(), 4, 9);
        decoder.start(&model, id as u64, request).expect("it fits");
    }
    let threads = Threads::new(1);
    let first = decoder.step(&model, &threads).expect("valid sequences");
    let second = decoder.step(&model, &threads).expect("valid sequences");
    assert_eq!((first.prefilled, second.prefilled), (79, 38));
    let drawn = play(&mut decoder, &model, 3);
    for (prompt, drawn) in prompts.iter().zip(&drawn) {
        assert!(alone(&model, prompt, 4, 9).ends_with(&ids(drawn)));
    }
}

#[test]
fn another_adapter_shares_nothing_and_a_dropped_one_stays_nowhere() {
    let (model, mut decoder) = (model(), Decoder::new());
    let first = adapter(&model, 1);
    for (id, adapter) in [Some(&first), None].into_iter().enumerate() {
        let request = Request {
            adapter: adapter.cloned(),
            ..request(tokens(40, 2), 1, 0)
        };
        decoder.start(&model, id as u64, request).expect("it fits");
    }
    let step = decoder.step(&model, &Threads::new(1)).expect("valid");
    assert_eq!((step.prefilled, step.drawn.len()), (78, 2));
    assert!(decoder.remove(0) && decoder.remove(1) && !decoder.remove(1));
    assert_eq!(Arc::strong_count(&first), 1, "the prefixes hold it weakly");
    drop(first);
    // The next adapter may lie where the last one lay: it must not be taken for it.
    let request = Request {
        adapter: Some(adapter(&model, 2)),
        ..request(tokens(40, 2), 1, 0)
    };
    decoder.start(&model, 2, request).expect("it fits");
    let step = decoder.step(&model, &Threads::new(1)).expect("valid");
    assert_eq!(step.prefilled, 39);
}

#[test]
fn a_long_prompt_is_computed_beside_those_who_decode() {
    let (model, mut decoder) = (model(), Decoder::new());
    decoder
        .start(&model, 0, request(tokens(5, 1), 30, 4))
        .expect("it fits");
    let threads = Threads::new(1);
    decoder.step(&model, &threads).expect("valid sequences");
    decoder
        .start(&model, 1, request(tokens(600, 2), 3, 5))
        .expect("it fits");
    for expected in [256, 256, 87] {
        let step = decoder.step(&model, &threads).expect("valid sequences");
        let drawn: Vec<SequenceId> = step.drawn.iter().map(|drawn| drawn.sequence).collect();
        let due = if expected == 87 { vec![0, 1] } else { vec![0] };
        assert_eq!((step.prefilled, drawn), (expected, due));
    }
    let drawn = play(&mut decoder, &model, 2);
    assert!(alone(&model, &tokens(5, 1), 30, 4).ends_with(&ids(&drawn[0])));
    assert!(alone(&model, &tokens(600, 2), 3, 5).ends_with(&ids(&drawn[1])));
}

#[test]
fn further_turns_compute_only_what_is_new() {
    let (model, mut decoder) = (model(), Decoder::new());
    decoder
        .start(&model, 0, request(tokens(30, 1), 6, 4))
        .expect("it fits");
    let mut all = tokens(30, 1);
    for turn in 0..3 {
        let drawn = play(&mut decoder, &model, 1).remove(0);
        assert_eq!(
            drawn.last().and_then(|last| last.end),
            Some(TurnEnd::Length)
        );
        assert_eq!(ids(&drawn), alone(&model, &all, 6, 4), "turn {turn}");
        all.extend(ids(&drawn));
        let given = tokens(4, 50 + turn);
        decoder.go_on(&model, 0, &given, 6).expect("it fits");
        all.extend(given);
        assert_eq!(decoder.tokens(0).expect("it exists"), all);
        let step = decoder.step(&model, &Threads::new(1)).expect("valid");
        assert_eq!(step.prefilled, 4, "the last drawn token and three given");
        all.push(step.drawn[0].token);
        let rest = play(&mut decoder, &model, 1).remove(0);
        all.extend(ids(&rest));
        decoder.go_on(&model, 0, &[], 6).expect("it fits");
    }
}

#[test]
fn nobody_waits_for_a_prompt_that_is_computed_already() {
    let (model, mut decoder) = (model(), Decoder::new());
    decoder
        .start(&model, 0, request(tokens(40, 1), 1, 4))
        .expect("it fits");
    play(&mut decoder, &model, 1);
    // Enough other prompts that the first is no longer remembered.
    for id in 1..=64 {
        let request = request(tokens(20, id), 1, 0);
        decoder.start(&model, id as u64, request).expect("it fits");
    }
    play(&mut decoder, &model, 65);
    decoder
        .go_on(&model, 0, &tokens(30, 7), 3)
        .expect("it fits");
    decoder
        .start(&model, 100, request(tokens(40, 1), 3, 5))
        .expect("it fits");
    let step = decoder.step(&model, &Threads::new(1)).expect("valid");
    assert_eq!(step.drawn.len(), 2);
}

#[test]
fn a_prompt_beyond_every_bound_is_still_shared_by_its_group() {
    let (model, mut decoder) = (model(), Decoder::new());
    let start = |decoder: &mut Decoder, id, prompt| {
        let started = decoder.start(&model, id, request(prompt, 2, id));
        started.expect("it fits");
    };
    start(&mut decoder, 0, tokens(100, 0));
    start(&mut decoder, 1, tokens(900, 50));
    play(&mut decoder, &model, 2);
    decoder.prefixes.keep_within(64, 1);
    start(&mut decoder, 2, tokens(900, 50));
    start(&mut decoder, 3, tokens(100, 0));
    let step = decoder.step(&model, &Threads::new(1)).expect("valid");
    assert_eq!(
        (step.prefilled, step.drawn.len()),
        (99, 2),
        "the newest stays"
    );
}

#[test]
fn pages_that_prompts_share_count_once() {
    let (model, mut decoder) = (model(), Decoder::new());
    for id in 0..20 {
        let prompt = [tokens(160, 1), tokens(16, 30 + id as usize)].concat();
        decoder
            .start(&model, id, request(prompt, 1, 0))
            .expect("it fits");
    }
    play(&mut decoder, &model, 20);
    let page = decoder.sequences[0].cache.bytes() / 11;
    decoder.prefixes.keep_within(64, 30 * page);
    let begun = |salt| [tokens(160, 1), tokens(16, salt)].concat();
    let request = request(begun(30), 1, 0);
    decoder.start(&model, 20, request).expect("it fits");
    let step = decoder.step(&model, &Threads::new(1)).expect("valid");
    assert_eq!(
        step.prefilled, 0,
        "ten pages for all and one for each of twenty"
    );
}

#[test]
fn a_prompt_that_gets_no_draw_takes_nothing_from_the_others() {
    let (model, mut decoder) = (model(), Decoder::new());
    for id in 0..64 {
        let request = request(tokens(1, id as usize), 3, id);
        decoder.start(&model, id, request).expect("it fits");
    }
    for id in 64..70 {
        let request = request(tokens(100, id as usize), 3, id);
        decoder.start(&model, id, request).expect("it fits");
    }
    let Decoder {
        sequences,
        prefixes,
        ..
    } = &mut decoder;
    let shares = plan::plan(sequences, prefixes, 5_000_000);
    assert!(shares[..64].iter().all(|work| work.all));
    let prompts: Vec<usize> = shares[64..].iter().map(|work| work.tokens).collect();
    assert_eq!(prompts, [99, 99, 58, 0, 0, 0], "all but the last token");
}

#[test]
fn a_leader_that_leaves_hands_over() {
    let (model, mut decoder) = (model(), Decoder::new());
    decoder
        .start(&model, 0, request(tokens(3, 9), 40, 1))
        .expect("it fits");
    let threads = Threads::new(1);
    decoder.step(&model, &threads).expect("valid sequences");
    for id in 1..4 {
        let request = request(tokens(700, 2), 3, id);
        decoder.start(&model, id, request).expect("it fits");
    }
    let first = decoder.step(&model, &threads).expect("valid sequences");
    assert_eq!((first.prefilled, first.drawn.len()), (256, 1));
    decoder.remove(1);
    let drawn = play(&mut decoder, &model, 4);
    for id in [2, 3] {
        assert_eq!(
            ids(&drawn[id]),
            alone(&model, &tokens(700, 2), 3, id as u64)
        );
    }
}

#[test]
fn the_logits_of_a_step_are_bounded() {
    let (model, mut decoder) = (model(), Decoder::new());
    for id in 0..80 {
        let request = request(tokens(2, id as usize), 3, id);
        decoder.start(&model, id, request).expect("it fits");
    }
    let Decoder {
        sequences,
        prefixes,
        ..
    } = &mut decoder;
    let drawing = |vocab_size, sequences: &mut [Sequence], prefixes: &mut PrefixCache| {
        let shares = plan::plan(sequences, prefixes, vocab_size);
        shares.iter().filter(|work| work.all).count()
    };
    assert_eq!(drawing(97, sequences, prefixes), 80);
    assert_eq!(drawing(1_000_000, sequences, prefixes), 67);
    assert_eq!(drawing(5_000_000, sequences, prefixes), 64);
}

#[test]
fn who_is_removed_or_ended_says_nothing_more() {
    let (model, mut decoder) = (model(), Decoder::new());
    for id in 0..3 {
        let request = request(tokens(20, id as usize), 8, id);
        decoder.start(&model, id, request).expect("it fits");
    }
    let threads = Threads::new(1);
    let first = decoder.step(&model, &threads).expect("valid sequences");
    assert_eq!(first.drawn.len(), 3);
    assert!(decoder.remove(1));
    decoder.end_turn(2).expect("it exists");
    let drawn = play(&mut decoder, &model, 3);
    assert!(drawn[1].is_empty() && drawn[2].is_empty());
    assert_eq!(ids(&drawn[0]), alone(&model, &tokens(20, 0), 8, 0)[1..]);
}

#[test]
fn a_stop_token_ends_the_turn_with_itself() {
    let (model, mut decoder) = (model(), Decoder::new());
    let said = alone(&model, &tokens(12, 5), 10, 3);
    let stop = said[4];
    let request = Request {
        stop_tokens: [stop].into(),
        ..request(tokens(12, 5), 10, 3)
    };
    decoder.start(&model, 0, request).expect("it fits");
    let drawn = play(&mut decoder, &model, 1).remove(0);
    let until = said.iter().position(|t| *t == stop).expect("it is there") + 1;
    assert_eq!(ids(&drawn), said[..until]);
    assert_eq!(drawn[until - 1].end, Some(TurnEnd::StopToken));
}

#[test]
fn logprobs_of_prompts_and_of_the_likeliest_tokens() {
    let (model, mut decoder) = (model(), Decoder::new());
    // Computed before, and computed again because its logits are wanted.
    decoder
        .start(&model, 0, request(tokens(300, 8), 1, 0))
        .expect("it fits");
    play(&mut decoder, &model, 1);
    let request = Request {
        prompt_logprobs: true,
        top_logprobs: 5,
        ..request(tokens(300, 8), 2, 0)
    };
    decoder.start(&model, 1, request).expect("it fits");
    let drawn = play(&mut decoder, &model, 2).remove(1);
    let prompt = decoder.prompt_logprobs(1).expect("it exists");
    let scored = score(&model, None, &tokens(300, 8), &Threads::new(1)).expect("it fits");
    let found: Vec<f32> = prompt.iter().map(|token| token.logprob).collect();
    assert_eq!(found, scored);
    for token in prompt.iter().chain(drawn.iter().map(|d| &d.logprobs)) {
        assert_eq!(token.top.len(), 5);
        assert!(token.top.is_sorted_by(|a, b| a.1 >= b.1));
        assert!(token.logprob <= token.top[0].1);
    }
    let own = drawn[0].logprobs.top.iter().find(|t| t.0 == drawn[0].token);
    assert!(own.is_none_or(|(_, logprob)| *logprob == drawn[0].logprobs.logprob));
}

#[test]
fn what_cannot_be_played_is_refused_and_nothing_changes() {
    let (model, mut decoder) = (model(), Decoder::new());
    let refused = |decoder: &mut Decoder, request| {
        let error = decoder
            .start(&model, 0, request)
            .expect_err("it is refused");
        error.to_string()
    };
    let empty = refused(&mut decoder, request(Vec::new(), 1, 0));
    assert!(empty.contains("empty prompt"), "{empty}");
    let outside = refused(&mut decoder, request(vec![97], 1, 0));
    assert!(outside.contains("97"), "{outside}");
    refused(&mut decoder, request(tokens(CONTEXT, 0), 2, 0));
    refused(&mut decoder, request(tokens(2, 0), usize::MAX, 0));
    assert!(decoder.is_empty());
    decoder
        .start(&model, 0, request(tokens(4, 0), 2, 0))
        .expect("it fits");
    let twice = refused(&mut decoder, request(tokens(4, 0), 2, 0));
    assert!(twice.contains("already"), "{twice}");
    assert!(decoder.go_on(&model, 0, &[1], 1).is_err(), "in a turn");
    assert!(decoder.go_on(&model, 1, &[1], 1).is_err(), "unknown");
    play(&mut decoder, &model, 1);
    assert!(decoder.go_on(&model, 0, &[1], CONTEXT).is_err(), "too long");
    assert_eq!(decoder.tokens(0).expect("it exists").len(), 6);
    decoder.go_on(&model, 0, &[1], 1).expect("it fits");
}
