//! Frames of the control stream: `[u32 payload length, little endian][u8 kind][payload]`.
//!
//! The decoder trusts nothing: the announced length is compared with the cap before a byte is
//! reserved for it, and a long frame's buffer grows with what has arrived, not with the claim.

use bytes::{Buf, Bytes, BytesMut};

use crate::{
    error::LinkError,
    limits::{CONTROL_FRAME_BYTES_MAX, FRAME_HEADER_BYTES},
};

/// One message, opaque to the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is; the protocol's business.
    pub kind: u8,
    /// The bytes. They may share memory with their neighbours: copy what is kept for long.
    pub payload: Bytes,
}

/// Appends one frame to `out`, or refuses a payload above the cap.
pub fn encode_frame(kind: u8, payload: &[u8], out: &mut BytesMut) -> Result<(), LinkError> {
    let len = check_len(payload.len() as u64)?;
    let len = u32::try_from(len).expect("the cap is far below 4 GiB");
    out.reserve(FRAME_HEADER_BYTES + payload.len());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&[kind]);
    out.extend_from_slice(payload);
    Ok(())
}

/// Cuts a byte stream, however it is split, into frames.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    /// A header or payload that did not arrive in one piece.
    partial: BytesMut,
    /// Length and kind, once the header of the partial frame is complete.
    header: Option<(usize, u8)>,
}

impl FrameDecoder {
    /// A decoder at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the frames that `chunk` completes to `out`. After an error the stream is unusable.
    pub fn decode(&mut self, mut chunk: Bytes, out: &mut Vec<Frame>) -> Result<(), LinkError> {
        while !chunk.is_empty() {
            let frame = if self.partial.is_empty() && self.header.is_none() {
                self.whole(&mut chunk)?
            } else {
                self.resume(&mut chunk)?
            };
            out.extend(frame);
        }
        Ok(())
    }

    /// Call at the end of the stream: an unfinished frame is an error.
    pub fn finish(&self) -> Result<(), LinkError> {
        let header = if self.header.is_some() {
            FRAME_HEADER_BYTES
        } else {
            0
        };
        match header + self.partial.len() {
            0 => Ok(()),
            have => Err(LinkError::FrameTruncated { have }),
        }
    }

    /// The usual case: a frame that lies in one chunk is a view of it.
    fn whole(&mut self, chunk: &mut Bytes) -> Result<Option<Frame>, LinkError> {
        let Some(header) = chunk.first_chunk::<FRAME_HEADER_BYTES>() else {
            self.partial.extend_from_slice(chunk);
            chunk.clear();
            return Ok(None);
        };
        let (len, kind) = parse_header(*header)?;
        chunk.advance(FRAME_HEADER_BYTES);
        if chunk.len() >= len {
            return Ok(Some(Frame {
                kind,
                payload: chunk.split_to(len),
            }));
        }
        self.header = Some((len, kind));
        self.partial.extend_from_slice(chunk);
        chunk.clear();
        Ok(None)
    }

    /// A frame that began in an earlier chunk.
    fn resume(&mut self, chunk: &mut Bytes) -> Result<Option<Frame>, LinkError> {
        if self.header.is_none() {
            self.fill(chunk, FRAME_HEADER_BYTES);
            let Some(header) = self.partial.first_chunk::<FRAME_HEADER_BYTES>() else {
                return Ok(None);
            };
            self.header = Some(parse_header(*header)?);
            self.partial.clear();
        }
        let (len, kind) = self.header.expect("it was set above or before");
        self.fill(chunk, len);
        if self.partial.len() < len {
            return Ok(None);
        }
        self.header = None;
        Ok(Some(Frame {
            kind,
            payload: self.partial.split().freeze(),
        }))
    }

    fn fill(&mut self, chunk: &mut Bytes, target: usize) {
        let take = (target - self.partial.len()).min(chunk.len());
        self.partial.extend_from_slice(&chunk[..take]);
        chunk.advance(take);
    }
}

fn parse_header(header: [u8; FRAME_HEADER_BYTES]) -> Result<(usize, u8), LinkError> {
    let [a, b, c, d, kind] = header;
    let len = check_len(u64::from(u32::from_le_bytes([a, b, c, d])))?;
    Ok((len, kind))
}

fn check_len(len: u64) -> Result<usize, LinkError> {
    let max = CONTROL_FRAME_BYTES_MAX as u64;
    match usize::try_from(len) {
        Ok(short) if len <= max => Ok(short),
        _ => Err(LinkError::FrameTooLarge { len, max }),
    }
}
