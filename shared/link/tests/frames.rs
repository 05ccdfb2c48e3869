//! The frame decoder against every split of the stream and against noise.

use bytes::{Bytes, BytesMut};
use proptest::{collection::vec, prelude::*};
use volley_link::{Frame, FrameDecoder, encode_frame, limits::CONTROL_FRAME_BYTES_MAX};

/// Frozen: another process, perhaps older, reads this.
#[test]
fn a_frame_is_length_kind_payload() {
    let mut bytes = BytesMut::new();
    encode_frame(0x2a, b"abc", &mut bytes).unwrap();
    assert_eq!(
        bytes[..],
        [
            3, 0, 0, 0,    // payload length, little endian
            0x2a, // kind
            b'a', b'b', b'c', // payload
        ]
    );
}

#[test]
fn an_impossible_length_is_refused_from_the_header_alone() {
    for split in 0..=5 {
        let header = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 1]);
        let mut decoder = FrameDecoder::new();
        let mut frames = Vec::new();
        let first = decoder.decode(header.slice(..split), &mut frames);
        let error = first.and_then(|()| decoder.decode(header.slice(split..), &mut frames));
        let error = error.unwrap_err();
        assert_eq!(error.code(), "FRAME_TOO_LARGE");
        assert!(
            error.to_string().contains("len=4294967295 max=1048576"),
            "{error}"
        );
        assert!(frames.is_empty());
    }
}

#[test]
fn the_cap_itself_passes_and_one_more_does_not() {
    let mut bytes = BytesMut::new();
    encode_frame(1, &vec![7; CONTROL_FRAME_BYTES_MAX], &mut bytes).unwrap();
    let mut frames = Vec::new();
    FrameDecoder::new()
        .decode(bytes.freeze(), &mut frames)
        .unwrap();
    assert_eq!(frames[0].payload.len(), CONTROL_FRAME_BYTES_MAX);
    let mut out = BytesMut::new();
    let error = encode_frame(1, &vec![7; CONTROL_FRAME_BYTES_MAX + 1], &mut out).unwrap_err();
    assert_eq!(error.code(), "FRAME_TOO_LARGE");
    assert!(out.is_empty());
}

#[test]
fn a_stream_that_ends_inside_a_frame_is_told() {
    let whole = [2, 0, 0, 0, 9, 1, 2];
    for cut in 0..=whole.len() {
        let mut decoder = FrameDecoder::new();
        let mut frames = Vec::new();
        decoder
            .decode(Bytes::copy_from_slice(&whole[..cut]), &mut frames)
            .unwrap();
        match decoder.finish() {
            Ok(()) => assert!(cut == 0 || cut == whole.len()),
            Err(error) => {
                assert_eq!(error.code(), "FRAME_TRUNCATED");
                assert!(
                    error.to_string().contains(&format!("{cut} bytes")),
                    "{error}"
                );
            }
        }
    }
}

fn frames() -> impl Strategy<Value = Vec<Frame>> {
    let frame = (any::<u8>(), vec(any::<u8>(), 0..300)).prop_map(|(kind, payload)| Frame {
        kind,
        payload: payload.into(),
    });
    vec(frame, 0..20)
}

proptest! {
    #[test]
    fn any_split_gives_the_same_frames(sent in frames(), cuts in vec(any::<prop::sample::Index>(), 0..40)) {
        let mut stream = BytesMut::new();
        for frame in &sent {
            encode_frame(frame.kind, &frame.payload, &mut stream).unwrap();
        }
        let stream = stream.freeze();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.push(stream.len());
        cuts.sort_unstable();
        let mut decoder = FrameDecoder::new();
        let mut received = Vec::new();
        let mut from = 0;
        for cut in cuts {
            decoder.decode(stream.slice(from..cut), &mut received).unwrap();
            from = cut;
        }
        decoder.finish().unwrap();
        prop_assert_eq!(received, sent);
    }

    #[test]
    fn noise_never_panics_and_never_invents_bytes(chunks in vec(vec(any::<u8>(), 0..64), 0..64)) {
        let mut decoder = FrameDecoder::new();
        let mut frames = Vec::new();
        let total: usize = chunks.iter().map(Vec::len).sum();
        for chunk in chunks {
            if decoder.decode(chunk.into(), &mut frames).is_err() {
                break;
            }
        }
        let got: usize = frames.iter().map(|frame| 5 + frame.payload.len()).sum();
        prop_assert!(got <= total);
    }
}
