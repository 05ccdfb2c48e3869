//! The numerics contract: a sequence's logits depend on its tokens and its adapter, to the bit,
//! and on nothing else.

mod random_model;

use random_model::{Noise, ODD_SHAPES, Shape, models};
use volley_engine::EngineError;
use volley_engine::adapter::{Adapter, LoraConfig, Target};
use volley_engine::cpu::Isa;
use volley_engine::cpu::threads::Threads;
use volley_engine::kv::KvCache;
use volley_engine::model::{LogitsWanted, Model, Scratch, SequenceStep};

/// Logits of all `tokens`, computed in pieces that end at `cuts`, as bit patterns.
fn logits_in_pieces(
    model: &Model,
    threads: &Threads,
    adapter: Option<&Adapter>,
    tokens: &[u32],
    cuts: &[usize],
) -> Vec<u32> {
    let mut cache = KvCache::new(model.config());
    let (mut scratch, mut bits, mut begin) = (Scratch::new(), Vec::new(), 0);
    for end in cuts.iter().copied().chain([tokens.len()]) {
        let step = SequenceStep {
            tokens: &tokens[begin..end],
            cache: &mut cache,
            adapter,
            logits: LogitsWanted::All,
        };
        let out = model
            .forward(&mut [step], threads, &mut scratch)
            .expect("valid tokens");
        bits.extend(out[0].data().iter().map(|value| value.to_bits()));
        begin = end;
    }
    assert_eq!(cache.len(), tokens.len());
    bits
}

fn logits(model: &Model, adapter: Option<&Adapter>, tokens: &[u32]) -> Vec<u32> {
    logits_in_pieces(model, &Threads::new(1), adapter, tokens, &[])
}

/// An adapter whose B is not zero.
fn adapter(model: &Model, rank: usize, targets: &[Target], lm_head: bool, seed: u64) -> Adapter {
    let config = LoraConfig {
        rank,
        alpha: 1.5 * rank as f32,
        rslora: false,
        targets: targets.to_vec(),
        lm_head,
    };
    random_model::adapter(model, &config, seed)
}

/// One adapter per kind of coverage.
fn adapters(model: &Model) -> Vec<Adapter> {
    vec![
        adapter(model, 3, &Target::ALL, true, 5),
        adapter(model, 17, &[Target::Q, Target::V], false, 6),
        adapter(model, 1, &[Target::O, Target::Up, Target::Down], true, 7),
        adapter(model, 33, &[], true, 8),
    ]
}

#[test]
fn decode_and_every_chunking_equal_prefill() {
    for (name, shape, model) in models() {
        let mut noise = Noise::new(11);
        let tokens = noise.tokens(83, shape.vocab);
        let loras = adapters(&model);
        for adapter in [None, Some(&loras[0]), Some(&loras[3])] {
            let whole = logits(&model, adapter, &tokens);
            let one_by_one: Vec<usize> = (1..tokens.len()).collect();
            let mut chunkings = vec![
                one_by_one,
                vec![1],
                vec![82],
                vec![16, 32],
                vec![15, 33, 34],
            ];
            for _ in 0..6 {
                let mut cuts: Vec<usize> = (0..5).map(|_| noise.below(83)).collect();
                cuts.sort_unstable();
                chunkings.push(cuts);
            }
            for cuts in chunkings {
                let threads = Threads::new(1);
                let pieces = logits_in_pieces(&model, &threads, adapter, &tokens, &cuts);
                assert!(pieces == whole, "{name} cut at {cuts:?}");
            }
        }
    }
}

#[test]
fn threads_and_instruction_sets_change_nothing() {
    for (name, shape, model) in models() {
        let tokens = Noise::new(3).tokens(200, shape.vocab);
        for lora in &adapters(&model)[..2] {
            let expected = logits(&model, Some(lora), &tokens);
            for isa in Isa::available() {
                for count in [1, 2, 3] {
                    let threads = Threads::with_isa(count, isa);
                    let cuts = [150, 151, 152];
                    let got = logits_in_pieces(&model, &threads, Some(lora), &tokens, &cuts);
                    assert!(got == expected, "{name} {} x {count}", isa.name());
                }
            }
        }
    }
}

#[test]
fn company_in_the_batch_changes_nothing() {
    for (name, shape, model) in models() {
        let mut noise = Noise::new(23);
        let loras = adapters(&model);
        let lengths = [1, 90, 3, 17, 1, 40, 1, 1, 16];
        let sequences: Vec<Vec<u32>> = lengths
            .iter()
            .map(|&len| noise.tokens(len + 5, shape.vocab))
            .collect();
        let pick = |i: usize| {
            let lora = [None, Some(0), Some(0), Some(1), Some(2), Some(3), Some(3)][i % 7];
            lora.map(|index: usize| &loras[index])
        };
        let alone: Vec<Vec<u32>> = (sequences.iter().enumerate())
            .map(|(i, tokens)| logits(&model, pick(i), tokens))
            .collect();
        for count in [1, 2] {
            let threads = Threads::new(count);
            let mut caches: Vec<KvCache> = sequences
                .iter()
                .map(|_| KvCache::new(model.config()))
                .collect();
            let mut together: Vec<Vec<u32>> = vec![Vec::new(); sequences.len()];
            let mut scratch = Scratch::new();
            // The prompts (one sequence starts late, as in continuous batching), then tokens
            // one by one, then the rest.
            for round in 0..5 {
                let range = |(i, cache): (usize, &KvCache)| match (round, i) {
                    (0, 3) => 0..0,
                    (0, _) | (1, 3) => 0..lengths[i],
                    (4, _) => cache.len()..sequences[i].len(),
                    (_, _) => cache.len()..cache.len() + 1,
                };
                let ranges: Vec<_> = caches.iter().enumerate().map(range).collect();
                let mut steps: Vec<SequenceStep<'_>> = (caches.iter_mut().enumerate())
                    .map(|(i, cache)| SequenceStep {
                        tokens: &sequences[i][ranges[i].clone()],
                        cache,
                        adapter: pick(i),
                        logits: LogitsWanted::All,
                    })
                    .collect();
                let out = model
                    .forward(&mut steps, &threads, &mut scratch)
                    .expect("valid");
                for (bits, out) in together.iter_mut().zip(&out) {
                    bits.extend(out.data().iter().map(|value| value.to_bits()));
                }
            }
            assert!(together == alone, "{name} on {count} threads");
        }
    }
}

#[test]
fn forks_and_truncated_caches_continue_exactly() {
    for (name, shape, model) in models() {
        let (threads, mut scratch) = (Threads::new(1), Scratch::new());
        let mut noise = Noise::new(31);
        let prompt = noise.tokens(37, shape.vocab);
        let mut base = KvCache::new(model.config());
        let mut run = |cache: &mut KvCache, tokens: &[u32]| -> Vec<u32> {
            let logits = LogitsWanted::Last;
            let step = SequenceStep {
                tokens,
                cache,
                adapter: None,
                logits,
            };
            let out = model
                .forward(&mut [step], &threads, &mut scratch)
                .expect("valid");
            out[0].row(0).iter().map(|value| value.to_bits()).collect()
        };
        run(&mut base, &prompt);
        let continuations: Vec<Vec<u32>> = (0..3).map(|_| noise.tokens(9, shape.vocab)).collect();
        for tokens in &continuations {
            let all = [prompt.as_slice(), tokens].concat();
            let expected = run(&mut KvCache::new(model.config()), &all);
            let mut fork = base.fork();
            assert!(run(&mut fork, tokens) == expected, "{name}: fork");
            // Back to the prompt, over the remains of the last continuation.
            fork.truncate(prompt.len());
            assert!(run(&mut fork, tokens) == expected, "{name}: truncated");
            fork.truncate(20);
            assert!(
                run(&mut fork, &all[20..]) == expected,
                "{name}: truncated further"
            );
        }
        assert_eq!(base.len(), prompt.len());
    }
}

#[test]
fn wanted_rows_are_those_rows() {
    for (name, shape, model) in models() {
        let tokens = Noise::new(2).tokens(9, shape.vocab);
        let loras = adapters(&model);
        let all = |lora| logits(&model, lora, &tokens);
        let mut caches: [KvCache; 4] = std::array::from_fn(|_| KvCache::new(model.config()));
        let wanted = [
            (Some(&loras[3]), LogitsWanted::None),
            (Some(&loras[0]), LogitsWanted::Last),
            (None, LogitsWanted::All),
            (Some(&loras[3]), LogitsWanted::All),
        ];
        let steps = caches.iter_mut().zip(wanted);
        let mut steps: Vec<_> = steps
            .map(|(cache, (adapter, logits))| SequenceStep {
                tokens: &tokens,
                cache,
                adapter,
                logits,
            })
            .collect();
        let out = model
            .forward(&mut steps, &Threads::new(1), &mut Scratch::new())
            .expect("valid");
        let rows: Vec<usize> = out.iter().map(|l| l.rows()).collect();
        assert_eq!(rows, [0, 1, 9, 9]);
        let bits = |data: &[f32]| data.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let last = &all(Some(&loras[0]))[8 * shape.vocab..];
        assert!(bits(out[1].row(0)) == last, "{name}");
        assert!(bits(out[2].data()) == all(None), "{name}");
        assert!(bits(out[3].data()) == all(Some(&loras[3])), "{name}");
    }
}

#[test]
fn a_refused_batch_changes_no_cache() {
    let (shape, model) = (ODD_SHAPES[0], ODD_SHAPES[0].model(1));
    let other = ODD_SHAPES[1].model(9);
    let good = [1u32, 2, 3];
    let long = vec![1u32; 601];
    let beyond = [shape.vocab as u32];
    let misfit = adapter(&other, 2, &Target::ALL, false, 1);
    let wider = Shape {
        vocab: shape.vocab + 2,
        ..shape
    };
    let other_vocab = adapter(&wider.model(1), 2, &[], true, 1);
    let mut foreign = KvCache::new(other.config());
    let cases: [(&[u32], Option<&Adapter>, &str); 4] = [
        (&long, None, "CONTEXT_EXCEEDED"),
        (&beyond, None, "TOKEN_OUT_OF_RANGE"),
        (&good, Some(&misfit), "ADAPTER_MISMATCH"),
        (&good, Some(&other_vocab), "ADAPTER_MISMATCH"),
    ];
    let run = |tokens: &[u32], cache: &mut KvCache, adapter| -> EngineError {
        let mut first = KvCache::new(model.config());
        let logits = LogitsWanted::Last;
        let mut steps = [
            SequenceStep {
                tokens: &good,
                cache: &mut first,
                adapter: None,
                logits,
            },
            SequenceStep {
                tokens,
                cache,
                adapter,
                logits,
            },
        ];
        let out = model.forward(&mut steps, &Threads::new(1), &mut Scratch::new());
        assert!(first.is_empty());
        out.expect_err("it is refused")
    };
    for (tokens, adapter, code) in cases {
        let mut cache = KvCache::new(model.config());
        assert_eq!(run(tokens, &mut cache, adapter).code(), code);
        assert!(cache.is_empty());
    }
    assert_eq!(run(&good, &mut foreign, None).code(), "INVALID_ARGUMENT");
}
