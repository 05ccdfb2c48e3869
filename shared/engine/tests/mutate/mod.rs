//! Changes to files that keep enough of their structure to be read far into.

use serde_json::{Map, Value, json};

use crate::random_model::Noise;

/// Stands for the same key once more: a character that no fixture has, as JSON writes it.
const AGAIN: &str = "\\u0001";

/// Stands for brackets in brackets.
const DEEP: &str = "deep in brackets";

/// How deep: below and above what parsers of JSON accept, and enough to end a stack.
const DEPTHS: [usize; 3] = [100, 200, 50_000];

/// A document with a few changes, as text; one in eight is then broken as text, too.
pub(crate) fn json(noise: &mut Noise, document: &Value, other: &Value) -> Vec<u8> {
    let mut changed = document.clone();
    for _ in 0..[1, 1, 1, 2, 4][noise.below(5)] {
        let donor = if noise.below(2) == 0 { document } else { other };
        let gift = pick(noise, donor).clone();
        change(noise, &mut changed, &gift);
    }
    let depth = DEPTHS[noise.below(DEPTHS.len())];
    let nested = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let text = changed.to_string();
    let text = text.replace(&format!("\"{DEEP}\""), &nested);
    let mut text = text.replace(AGAIN, "").into_bytes();
    if noise.below(8) == 0 {
        bytes(noise, &mut text, other.to_string().as_bytes());
    }
    text
}

/// Flips, cuts, repeats and splices.
pub(crate) fn bytes(noise: &mut Noise, data: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=noise.below(3) {
        let at = noise.below(data.len() + 1);
        match noise.below(6) {
            0 | 1 => {
                if let Some(byte) = data.get_mut(at) {
                    *byte = match noise.below(3) {
                        0 => noise.next() as u8,
                        1 => *byte ^ 1 << noise.below(8),
                        _ => [0, 0x7F, 0x80, 0xFF, b'{', b'"', b'9'][noise.below(7)],
                    };
                }
            }
            2 => data.truncate(at),
            3 => {
                let end = (at + noise.below(64)).min(data.len());
                let part = data[at..end].to_vec();
                let times = 1 + noise.below(4);
                data.splice(at..at, part.repeat(times));
            }
            4 => {
                let from = noise.below(other.len() + 1);
                let end = (from + noise.below(256)).min(other.len());
                let until = (at + noise.below(64)).min(data.len());
                data.splice(at..until, other[from..end].iter().copied());
            }
            _ => {
                let end = (at + noise.below(64)).min(data.len());
                data.drain(at..end);
            }
        }
    }
}

/// A safetensors file with another header, mostly of the right length, or with other bytes.
pub(crate) fn safetensors(noise: &mut Noise, file: &[u8], other: &[u8]) -> Vec<u8> {
    let (header, data) = parts(file);
    let (foreign, _) = parts(other);
    let mut changed = file.to_vec();
    match noise.below(4) {
        0 => bytes(noise, &mut changed, other),
        1 => {
            // Numbers that are none, in the tensors alone.
            let start = file.len() - data.len();
            for _ in 0..=noise.below(4) {
                if let Some(word) = data.len().checked_sub(4) {
                    let at = start + noise.below(word + 1);
                    let odd = [f32::NAN, f32::INFINITY, f32::MAX, 1e-45, -0.0];
                    let value = odd[noise.below(odd.len())];
                    changed[at..at + 4].copy_from_slice(&value.to_le_bytes());
                }
            }
        }
        _ => {
            let text = json(noise, &header, &foreign);
            let length = match noise.below(8) {
                0 => [0, 7, 8 << 20, u64::MAX, u64::MAX - 7, 1 << 63][noise.below(6)],
                _ => text.len() as u64,
            };
            changed = [&length.to_le_bytes(), text.as_slice(), data].concat();
        }
    }
    changed
}

/// Header and tensors of a valid file.
fn parts(file: &[u8]) -> (Value, &[u8]) {
    let (length, rest) = file.split_first_chunk::<8>().expect("a length");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    (serde_json::from_slice(header).expect("a header"), data)
}

/// A random node; the whole document is one.
fn pick<'a>(noise: &mut Noise, document: &'a Value) -> &'a Value {
    let mut node = document;
    loop {
        let inner = match node {
            Value::Array(list) if !list.is_empty() => list.get(noise.below(list.len())),
            Value::Object(map) if !map.is_empty() => map.values().nth(noise.below(map.len())),
            _ => None,
        };
        match inner {
            Some(inner) if noise.below(4) != 0 => node = inner,
            _ => return node,
        }
    }
}

/// Changes something below a random node.
fn change(noise: &mut Noise, document: &mut Value, gift: &Value) {
    match document {
        Value::Array(list) if !list.is_empty() => {
            let at = noise.below(list.len());
            match noise.below(6) {
                0 => drop(list.remove(at)),
                1 => {
                    let copies = [1, 3, 1000][noise.below(3)];
                    let copied = vec![list[at].clone(); copies];
                    list.splice(at..at, copied);
                }
                2 => list[at] = leaf(noise, &list[at], gift),
                _ => change(noise, &mut list[at], gift),
            }
        }
        Value::Object(map) if !map.is_empty() => {
            let key = map.keys().nth(noise.below(map.len()));
            let key = key.expect("below its length").clone();
            change_in(noise, map, &key, gift);
        }
        other => *other = leaf(noise, other, gift),
    }
}

fn change_in(noise: &mut Noise, map: &mut Map<String, Value>, key: &str, gift: &Value) {
    match noise.below(8) {
        0 => drop(map.remove(key)),
        1 => {
            // The same key twice, with another value.
            map.insert(format!("{key}\u{1}"), gift.clone());
        }
        2 => {
            let value = map.remove(key).unwrap_or_default();
            map.insert(
                ["", "type", "é\0", "__metadata__"][noise.below(4)].to_owned(),
                value,
            );
        }
        3 => map[key] = leaf(noise, &map[key], gift),
        _ => change(noise, &mut map[key], gift),
    }
}

/// Another value for a node.
fn leaf(noise: &mut Noise, old: &Value, gift: &Value) -> Value {
    let extremes = [
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(1),
        json!(-1),
        json!(u32::MAX),
        json!(1u64 << 32),
        json!(1u64 << 53),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(0.5),
        json!(-0.0),
        json!(1e308),
        json!(5e-324),
        json!(""),
        json!("\u{0}é\u{1F600}"),
        json!("x".repeat(10_000)),
        json!([]),
        json!({}),
        json!([[], {}]),
    ];
    if noise.below(100) == 0 {
        return json!(DEEP);
    }
    match (noise.below(4), old) {
        (0, _) => gift.clone(),
        (1, Value::Number(number)) => match number.as_i64() {
            Some(whole) => {
                let near = [
                    whole.wrapping_add(1),
                    whole.wrapping_sub(1),
                    whole.wrapping_mul(2),
                ];
                json!(near[noise.below(3)])
            }
            None => json!(number.as_f64().unwrap_or_default() * [2.0, -1.0, 1e30][noise.below(3)]),
        },
        (1, Value::String(text)) => {
            let half: String = text.chars().take(text.chars().count() / 2).collect();
            match noise.below(3) {
                0 => json!(half),
                1 => json!(format!("{text}{text}")),
                _ => json!(format!("{half}{{1000}}{{1000}}(?={half})*")),
            }
        }
        _ => extremes[noise.below(extremes.len())].clone(),
    }
}
