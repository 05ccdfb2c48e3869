//! Every message that travels, as bytes.
//!
//! **A changed golden means a new rung on the ladder in `src/version.rs`**, a sentence there and
//! one in `docs/protocol.md`. Peers of two builds meet in one cluster, and the format has no names
//! in it: what reads yesterday's bytes wrongly does so without an error.
//!
//! To write the files again on purpose:
//! `VOLLEY_BLESS=1 cargo test -p volley-protocol --test golden`.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use volley_protocol::client::{ClientReply, ClientRequest};
use volley_protocol::codec;
use volley_protocol::delivery::{FromSink, ToSink};
use volley_protocol::fault::ErrorCode;
use volley_protocol::learner::{FromLearner, ToLearner};
use volley_protocol::version::{Hello, Welcome};
use volley_protocol::worker::{FromWorker, ToWorker};

use support::names::{self, kind_of};
use support::{Page, Sample, file, pages, samples};

const BYTES_HEAD: &str = "\
# Bytes of messages, frozen: see ../golden.rs before changing a line.
# A comment names the fields of the line below it, one word for one group of digits.";

const NUMBERS_HEAD: &str = "\
# Numbers on the wire, frozen and append-only: see ../golden.rs before changing a line.";

#[test]
fn bytes_of_every_message_are_frozen() {
    for Page { file, samples } in pages() {
        file::check_text(file, BYTES_HEAD, &file::render(&samples));
    }
}

#[test]
fn a_second_writer_made_from_the_page_writes_the_same_bytes() {
    for sample in samples() {
        let twin: Vec<u8> = sample.fields.iter().flat_map(|f| f.bytes.clone()).collect();
        assert_eq!(twin, sample.bytes, "{}", sample.name);
    }
}

#[test]
fn golden_bytes_decode_to_their_values() {
    for Page { file, samples } in pages() {
        let golden = file::parse(&file::read(file));
        assert!(file::blessing() || golden.len() == samples.len(), "{file}");
        for (sample, (name, bytes)) in samples.iter().zip(&golden) {
            assert_eq!(&sample.name, name, "{file}");
            let same = (sample.decode)(bytes);
            assert!(same.is_ok_and(|same| same), "{name} reads as another value");
        }
    }
}

#[test]
fn every_cut_is_an_error_and_so_is_a_byte_too_many() {
    for Sample {
        name,
        bytes,
        decode,
        ..
    } in samples()
    {
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_err(), "{name} cut at {cut}");
        }
        for more in [0, 1, 0xff] {
            let longer = [bytes.as_slice(), &[more]].concat();
            assert!(decode(&longer).is_err(), "{name} with {more} behind it");
        }
    }
}

#[test]
fn every_variant_has_its_frozen_number_and_a_sample() {
    let mut listed = BTreeSet::new();
    let mut lines = Vec::new();
    for (name, variants) in names::enums() {
        for (number, variant) in (0u32..).zip(variants) {
            listed.insert((name, number, variant));
            lines.push(format!("{name} {number} {variant}"));
        }
    }
    let mut sampled: BTreeSet<_> = samples().flat_map(|sample| sample.variants).collect();
    sampled.retain(|(name, ..)| *name != "ErrorCode");
    let unsampled: Vec<_> = listed.difference(&sampled).collect();
    assert!(unsampled.is_empty(), "no sample has these: {unsampled:?}");
    let unlisted: Vec<_> = sampled.difference(&listed).collect();
    assert!(unlisted.is_empty(), "names.rs lacks these: {unlisted:?}");
    file::check_numbers("enums.txt", NUMBERS_HEAD, &lines);
}

#[test]
fn numbers_of_error_codes_are_frozen() {
    for (number, code) in (0u32..).zip(ErrorCode::ALL) {
        assert_eq!(codec::encode(code), number.to_le_bytes(), "{code}");
        // Sessions are closed with this number, too (`greeting::close_with` of the runtime).
        assert_eq!(*code as u32, number, "{code}");
        let back = codec::decode::<ErrorCode>(&number.to_le_bytes());
        assert_eq!(back.ok(), Some(*code));
    }
    let unknown = codec::encode(&(ErrorCode::ALL.len() as u32));
    assert!(codec::decode::<ErrorCode>(&unknown).is_err());
    let lines = names::error_code_lines();
    file::check_numbers("error_codes.txt", NUMBERS_HEAD, &lines);
}

#[test]
fn kinds_of_frames_and_bulk_streams_are_frozen() {
    let line = |(name, number, kind): &(&str, u32, &str)| format!("{name} {number} {kind}");
    let lines: Vec<String> = names::kinds().iter().map(line).collect();
    file::check_numbers("kinds.txt", NUMBERS_HEAD, &lines);
    let messages = [
        kind_of::<Hello>(),
        kind_of::<Welcome>(),
        kind_of::<ClientRequest>(),
        kind_of::<ClientReply>(),
        kind_of::<FromWorker>(),
        kind_of::<ToWorker>(),
        kind_of::<FromLearner>(),
        kind_of::<ToLearner>(),
        kind_of::<ToSink>(),
        kind_of::<FromSink>(),
    ];
    for (kind, name) in messages {
        assert_eq!(format!("{kind:?}"), name, "a message under another's kind");
    }
    let wrong = codec::decode_frame::<Hello>(2, &[]);
    assert!(matches!(wrong, Err(codec::CodecError::WrongKind { .. })));
}

#[test]
fn no_two_samples_share_a_name() {
    let mut counts = BTreeMap::<String, usize>::new();
    samples().for_each(|sample| *counts.entry(sample.name).or_default() += 1);
    counts.retain(|_, count| *count > 1);
    assert!(counts.is_empty(), "{counts:?}");
}

/// Bytes to put somewhere into a golden.
fn damage() -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((any::<usize>(), any::<u8>()), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_goldens_never_panic(places in damage(), flip in any::<bool>()) {
        for Sample { bytes, decode, .. } in samples() {
            let mut bytes = bytes;
            for (at, byte) in &places {
                let at = at % bytes.len();
                bytes[at] = if flip { bytes[at] ^ (1 << (byte % 8)) } else { *byte };
            }
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn mixed_goldens_never_panic(places in damage()) {
        // Bytes of one message read as another's: what a peer of another role would send.
        let all: Vec<Sample> = samples().collect();
        for (at, offset) in places {
            let bytes = &all[at % all.len()].bytes;
            let from = usize::from(offset) % (bytes.len() + 1);
            for Sample { decode, .. } in &all {
                let _ = decode(&bytes[from..]);
            }
        }
    }
}
