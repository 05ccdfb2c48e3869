//! The only place that knows how messages become bytes.
//!
//! A control frame is `[u32 length][u8 kind][payload]`; the link writes length and kind, this
//! file the payload: bincode 2, fixed-width little-endian integers, serde. Enums are append-only
//! (a reordered enum decodes into the wrong variant without an error), trailing bytes are refused
//! (an older reader would silently ignore what a newer writer added), and decoding is bounded, so
//! that a length inside a message cannot claim memory.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

use crate::limits::CONTROL_FRAME_BYTES_MAX;

/// What a frame carries. The number is on the wire; append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// [`crate::version::Hello`], the first frame of every session.
    Hello = 1,
    /// [`crate::version::Welcome`] or a refusal.
    Welcome = 2,
    /// [`crate::client::ClientRequest`]
    ClientRequest = 10,
    /// [`crate::client::ClientReply`]
    ClientReply = 11,
    /// [`crate::worker::FromWorker`]
    FromWorker = 20,
    /// [`crate::worker::ToWorker`]
    ToWorker = 21,
    /// [`crate::learner::FromLearner`]
    FromLearner = 30,
    /// [`crate::learner::ToLearner`]
    ToLearner = 31,
    /// [`crate::delivery::ToSink`]
    ToSink = 40,
    /// [`crate::delivery::FromSink`]
    FromSink = 41,
}

/// A message that travels as a control frame.
pub trait Message: Serialize + DeserializeOwned {
    /// The frame kind that announces it.
    const KIND: FrameKind;
}

/// Why bytes are no message.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The payload does not decode.
    #[error("payload of {len} bytes is no {what}: {reason}")]
    Malformed {
        /// Type that was expected.
        what: &'static str,
        /// Length of the payload.
        len: usize,
        /// The decoder's own words.
        reason: String,
    },
    /// The payload decodes, but bytes are left: a newer or a broken peer.
    #[error("{what} ends after {used} of {len} bytes")]
    Trailing {
        /// Type that was expected.
        what: &'static str,
        /// Bytes that the message took.
        used: usize,
        /// Bytes there were.
        len: usize,
    },
    /// Another kind of frame was due.
    #[error("frame kind {got} where {want:?} is due")]
    WrongKind {
        /// Kind that was expected.
        want: FrameKind,
        /// Kind byte that came.
        got: u8,
    },
    /// A bound of [`crate::limits`] is exceeded.
    #[error("{what} has {got}, at most {max} are allowed")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        got: u64,
        /// How large it may be.
        max: u64,
    },
}

type Config = bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Fixint,
    bincode::config::Limit<CONTROL_FRAME_BYTES_MAX>,
>;

const CONFIG: Config = bincode::config::standard()
    .with_fixed_int_encoding()
    .with_limit();

/// Encodes a value. The types of this crate cannot fail to encode into memory.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    encode_into(value, &mut bytes);
    bytes
}

/// Encodes a value at the end of `bytes`.
pub fn encode_into<T: Serialize>(value: &T, bytes: &mut Vec<u8>) {
    // The limit of CONFIG holds for reading; writers are bounded by what they put in.
    bincode::serde::encode_into_std_write(value, bytes, CONFIG.with_no_limit())
        .expect("derived Serialize into a Vec does not fail");
}

/// Decodes exactly one value.
///
/// # Errors
/// [`CodecError`] when the bytes are malformed or some are left over.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let what = std::any::type_name::<T>();
    let (value, used) = bincode::serde::decode_from_slice(bytes, CONFIG).map_err(|error| {
        CodecError::Malformed {
            what,
            len: bytes.len(),
            reason: error.to_string(),
        }
    })?;
    if used == bytes.len() {
        Ok(value)
    } else {
        Err(CodecError::Trailing {
            what,
            used,
            len: bytes.len(),
        })
    }
}

/// Decodes a frame that must be of `T`'s kind.
///
/// # Errors
/// [`CodecError`] when the kind is another one or the payload is malformed.
pub fn decode_frame<T: Message>(kind: u8, payload: &[u8]) -> Result<T, CodecError> {
    if kind == T::KIND as u8 {
        decode(payload)
    } else {
        Err(CodecError::WrongKind {
            want: T::KIND,
            got: kind,
        })
    }
}

/// Bytes that travel as they are, not element by element.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Blob;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.to_vec()))
            }

            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::client::{ClientReply, ClientRequest};
    use crate::delivery::{FromSink, ToSink};
    use crate::learner::{FromLearner, ToLearner};
    use crate::version::{Hello, Welcome};
    use crate::worker::{FromWorker, ToWorker};

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&7u32);
        bytes.push(0);
        assert!(matches!(
            decode::<u32>(&bytes),
            Err(CodecError::Trailing {
                used: 4,
                len: 5,
                ..
            })
        ));
    }

    #[test]
    fn a_hostile_length_claims_no_memory() {
        let bytes = u64::MAX.to_le_bytes();
        assert!(decode::<Blob>(&bytes).is_err());
        assert!(decode::<Vec<u64>>(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<Hello>(&bytes);
            let _ = decode::<Welcome>(&bytes);
            let _ = decode::<ClientRequest>(&bytes);
            let _ = decode::<ClientReply>(&bytes);
            let _ = decode::<FromWorker>(&bytes);
            let _ = decode::<ToWorker>(&bytes);
            let _ = decode::<FromLearner>(&bytes);
            let _ = decode::<ToLearner>(&bytes);
            let _ = decode::<ToSink>(&bytes);
            let _ = decode::<FromSink>(&bytes);
        }

        #[test]
        fn blobs_round_trip(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let blob = Blob(bytes);
            prop_assert_eq!(decode::<Blob>(&encode(&blob)).expect("own bytes"), blob);
        }
    }
}
