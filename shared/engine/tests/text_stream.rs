//! Text as it is drawn: its pieces are the text, and strings end a turn where they first stand in
//! it, however the tokens cut them.

mod fixture;
mod random_model;

use random_model::Noise;
use volley_engine::text::{StopStrings, TextStream, Tokenizer};

const TEXT: &str = "Grüße, 世界! 🦀🦀 The answer is <answer>42</answer> — naïve?\n\n  done. ";

/// Token sequences of every tokenizer: real texts, and ids at random (half characters, special
/// tokens, ids without text).
fn sequences(tokenizer: &Tokenizer, noise: &mut Noise) -> Vec<Vec<u32>> {
    let text = tokenizer.encode(TEXT).expect("it encodes");
    let mut sequences = vec![text.clone(), text.repeat(6), Vec::new()];
    for _ in 0..60 {
        let length = 1 + noise.below(150);
        sequences.push(noise.tokens(length, tokenizer.vocab_size() + 3));
    }
    sequences
}

/// Whether single bytes stand where no character does. A decoder then takes back what it said
/// about the bytes before them, which no stream can.
fn has_malformed_bytes(tokenizer: &Tokenizer, tokens: &[u32]) -> bool {
    let byte = |token: &u32| {
        let name = tokenizer.token(*token)?;
        let hex = name.strip_prefix("<0x")?.strip_suffix('>')?.to_owned();
        u8::from_str_radix(&hex, 16).ok()
    };
    let mut runs = tokens.chunk_by(|a, b| byte(a).is_some() == byte(b).is_some());
    runs.any(|run| {
        let bytes: Vec<u8> = run.iter().filter_map(byte).collect();
        std::str::from_utf8(&bytes).is_err()
    })
}

#[test]
fn the_pieces_of_a_text_are_the_text() {
    let mut noise = Noise::new(11);
    for fixture in fixture::ALL {
        let tokenizer = Tokenizer::load(&fixture.dir()).expect("it loads");
        for tokens in sequences(&tokenizer, &mut noise) {
            let mut stream = TextStream::default();
            let mut text = String::new();
            for token in &tokens {
                text += &stream.push(&tokenizer, *token).expect("it decodes");
            }
            text += &stream.finish(&tokenizer).expect("it decodes");
            let whole = tokenizer.decode(&tokens, true).expect("it decodes");
            if has_malformed_bytes(&tokenizer, &tokens) {
                continue;
            }
            assert_eq!(text, whole, "{fixture:?} {tokens:?}");
        }
    }
}

#[test]
fn a_turn_ends_with_the_token_that_completes_a_stop_string() {
    let mut noise = Noise::new(12);
    for fixture in fixture::ALL {
        let tokenizer = Tokenizer::load(&fixture.dir()).expect("it loads");
        for tokens in sequences(&tokenizer, &mut noise) {
            let whole = tokenizer.decode(&tokens, true).expect("it decodes");
            let chars: Vec<char> = whole.chars().collect();
            let strings = (0..3).map(|_| {
                let from = noise.below(chars.len().max(1));
                let length = 1 + noise.below(12);
                chars.iter().skip(from).take(length).collect::<String>()
            });
            let strings: Vec<String> = strings.filter(|s| !s.contains('\u{FFFD}')).collect();
            let stop = StopStrings::new(strings.clone());
            let strings: Vec<&String> = strings.iter().filter(|s| !s.is_empty()).collect();
            for end in 0..=tokens.len() {
                let turn = &tokens[..end];
                let text = tokenizer.decode(turn, true).expect("it decodes");
                let at = strings.iter().filter_map(|s| text.find(s.as_str())).min();
                let cut = stop.cut(&tokenizer, turn).expect("it decodes");
                let expected = at.map(|at| text[..at].to_owned());
                assert_eq!(cut, expected, "{fixture:?} {strings:?} {turn:?}");
                if at.is_some() {
                    break;
                }
            }
        }
    }
}

#[test]
fn without_strings_nothing_ends() {
    let tokenizer = Tokenizer::load(&fixture::QWEN3.dir()).expect("it loads");
    let tokens = tokenizer.encode(TEXT).expect("it encodes");
    let stop = StopStrings::new([String::new()]);
    assert!(stop.is_empty());
    assert_eq!(stop.cut(&tokenizer, &tokens).expect("it decodes"), None);
}
