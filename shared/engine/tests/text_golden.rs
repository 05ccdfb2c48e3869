//! Tokenizers and chat templates against the golden files of the fixtures.

mod fixture;

use std::path::PathBuf;

use fixture::Fixture;

use serde_json::Value;
use volley_engine::text::{ChatMessage, ChatTemplate, Tokenizer, stop_tokens};

fn fixture() -> PathBuf {
    fixture::dir()
}

fn golden(fixture: Fixture) -> Value {
    let text = std::fs::read_to_string(fixture.dir().join("golden_tokenizer.json"));
    serde_json::from_str(&text.expect("the fixture is there")).expect("it is JSON")
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("a list of ids")
}

fn loaded() -> (Tokenizer, ChatTemplate) {
    load(fixture::QWEN3)
}

fn load(fixture: Fixture) -> (Tokenizer, ChatTemplate) {
    let dir = fixture.dir();
    (
        Tokenizer::load(&dir).expect("the tokenizer loads"),
        ChatTemplate::load(&dir).expect("the template loads"),
    )
}

fn user(content: &str) -> ChatMessage {
    ChatMessage::new("user", content)
}

fn assistant(content: &str) -> ChatMessage {
    ChatMessage::new("assistant", content)
}

#[test]
fn texts_are_tokenised_as_recorded() {
    for fixture in fixture::ALL {
        let (tokenizer, _) = load(fixture);
        let golden = golden(fixture);
        let texts = golden["texts"].as_array().expect("a list");
        assert_eq!(texts.len(), 23);
        for case in texts {
            let text = case["text"].as_str().expect("a text");
            let expected = ids(&case["ids_no_special"]);
            let got = tokenizer.encode(text).expect("encodes");
            assert_eq!(got, expected, "{fixture:?} {text:?}");
            for (key, skip) in [("decoded", false), ("decoded_skip_special", true)] {
                let decoded = tokenizer.decode(&expected, skip).expect("decodes");
                assert_eq!(
                    Some(decoded.as_str()),
                    case[key].as_str(),
                    "{fixture:?} {text:?}"
                );
            }
        }
    }
}

#[test]
fn chats_are_rendered_as_recorded() {
    for fixture in fixture::ALL {
        let (tokenizer, chat) = load(fixture);
        let golden = golden(fixture);
        let chats = golden["chats"].as_array().expect("a list");
        assert_eq!(chats.len(), 6);
        for case in chats {
            let messages: Vec<ChatMessage> =
                serde_json::from_value(case["messages"].clone()).expect("messages");
            let prompt = case["add_generation_prompt"].as_bool().expect("a flag");
            let text = chat.render(&messages, prompt).expect("renders");
            assert_eq!(
                Some(text.as_str()),
                case["rendered"].as_str(),
                "{fixture:?}"
            );
            assert_eq!(tokenizer.encode(&text).expect("encodes"), ids(&case["ids"]));
            if prompt {
                let got = chat.prompt_ids(&tokenizer, &messages).expect("renders");
                assert_eq!(got, ids(&case["ids"]), "{fixture:?}");
            }
        }
    }
}

#[test]
fn stop_tokens_are_those_of_the_generation_config() {
    let due: [[u32; 2]; 4] = [[509, 507], [509, 507], [511, 508], [5, 0]];
    for (fixture, due) in fixture::ALL.into_iter().zip(due) {
        assert_eq!(
            stop_tokens(&fixture.dir()).expect("it is valid"),
            due,
            "{fixture:?}"
        );
    }
}

#[test]
fn prompt_turn_and_increment_are_the_whole_conversation() {
    let (tokenizer, chat) = loaded();
    let end = tokenizer.token_id("<|im_end|>").expect("it is a token");
    let first = [user("hi"), assistant("hello")];
    let new = [user("bye")];

    let mut context = chat.prompt_ids(&tokenizer, &first[..1]).expect("renders");
    context.extend(tokenizer.encode("hello").expect("encodes"));
    context.push(end);
    let increment = chat.continuation_ids(&tokenizer, &first, &new);
    context.extend(increment.expect("renders"));

    let whole = [user("hi"), assistant("hello"), user("bye")];
    assert_eq!(
        context,
        chat.prompt_ids(&tokenizer, &whole).expect("renders")
    );
}

#[test]
fn the_increment_survives_words_that_the_template_changes() {
    let (tokenizer, chat) = loaded();
    let plain = chat
        .continuation_ids(&tokenizer, &[user("hi"), assistant("x")], &[user("bye")])
        .expect("renders");
    // Trimmed by the template, spelling out the end token, empty.
    for words in ["  x \n", "a<|im_end|>b", ""] {
        let so_far = [user("hi"), assistant(words)];
        let got = chat.continuation_ids(&tokenizer, &so_far, &[user("bye")]);
        assert_eq!(got.expect("renders"), plain, "{words:?}");
    }
    let text = tokenizer.decode(&plain, false).expect("decodes");
    assert_eq!(
        text,
        "\n<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn a_turn_that_was_cut_off_gets_its_end_token_first() {
    let (tokenizer, chat) = loaded();
    let so_far = [user("hi"), assistant("hel")];
    let ended = chat
        .continuation_ids(&tokenizer, &so_far, &[user("bye")])
        .expect("renders");
    let cut = chat
        .cut_off_continuation_ids(&tokenizer, &so_far, &[user("bye")])
        .expect("renders");
    assert_eq!(cut[0], 509);
    assert_eq!(cut[1..], ended);
}

#[test]
fn only_an_assistant_can_be_continued_after() {
    let (tokenizer, chat) = loaded();
    assert!(
        chat.continuation_ids(&tokenizer, &[user("hi")], &[])
            .is_err()
    );
    assert!(
        chat.continuation_ids(&tokenizer, &[], &[user("hi")])
            .is_err()
    );
}

#[test]
fn hostile_files_are_errors() {
    let golden_tokenizer =
        std::fs::read(fixture().join("tokenizer.json")).expect("the fixture is there");
    let cut = &golden_tokenizer[..golden_tokenizer.len() / 2];
    let files: [&[u8]; 6] = [
        b"",
        b"[]",
        b"{\"model\":{}}",
        b"\xff\xfe",
        cut,
        br#"{"version":"1.0","model":{"type":"Unigram","unk_id":9,"vocab":[]}}"#,
    ];
    for bytes in files {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        std::fs::write(dir.path().join("tokenizer.json"), bytes).expect("it is writable");
        let error = Tokenizer::load(dir.path()).expect_err("it is refused");
        assert_eq!(error.code(), "TOKENIZER_INVALID");
    }
    for source in ["{% for %}", "{{ x", "{% include 'other' %}{{ 1 // 0 }}"] {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        std::fs::write(dir.path().join("chat_template.jinja"), source).expect("it is writable");
        let error = ChatTemplate::load(dir.path())
            .and_then(|chat| chat.render(&[user("hi")], true).map(|_| chat))
            .expect_err("it is refused");
        assert_eq!(error.code(), "TOKENIZER_INVALID");
    }
    let empty = tempfile::tempdir().expect("a temporary directory can be made");
    assert!(Tokenizer::load(empty.path()).is_err());
    assert!(ChatTemplate::load(empty.path()).is_err());
}

#[test]
fn reasoning_that_later_turns_drop_does_not_change_the_increment() {
    let (tokenizer, _) = loaded();
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let source = "{%- for m in messages %}{%- set words = m.content %}\
        {%- if m.role == 'assistant' and not loop.last %}\
        {%- set words = words.split('</think>')[-1].lstrip('\\n') %}{%- endif %}\
        {{- '<|im_start|>' + m.role + '\\n' + words + '<|im_end|>\\n' }}{%- endfor %}\
        {%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";
    for (name, text) in [
        ("chat_template.jinja", source),
        (
            "tokenizer_config.json",
            r#"{"eos_token": {"content": "<|im_end|>"}}"#,
        ),
    ] {
        std::fs::write(dir.path().join(name), text).expect("it is writable");
    }
    let chat = ChatTemplate::load(dir.path()).expect("it loads");
    let so_far = [user("hi"), assistant("<think>\nhm\n</think>\n\nhello")];
    let got = chat.continuation_ids(&tokenizer, &so_far, &[user("bye")]);
    let text = tokenizer
        .decode(&got.expect("renders"), false)
        .expect("decodes");
    assert_eq!(
        text,
        "\n<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\n"
    );
}
