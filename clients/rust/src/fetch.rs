//! The bytes of an adapter, from the learner that has them.

use std::net::SocketAddr;

use volley_link::{Endpoint, Role, close_code};
use volley_protocol::adapter::AdapterEntry;
use volley_protocol::codec::{self, Message as _};
use volley_protocol::delivery::{BulkKind, FromSink, ToSink};
use volley_protocol::limits::ADAPTER_BYTES_MAX;
use volley_protocol::version::Hello;
use volley_protocol::{Digest, ErrorCode, Fault};
use volley_runtime::conversation::{self, Open};
use volley_runtime::greeting::link_fault;

use crate::faults;

/// Kind byte and digest in front of an adapter's bytes.
const HEADER_BYTES: usize = 33;

/// Dials the learner, fetches one version and checks that it is what it is called.
pub(crate) async fn adapter(
    endpoint: &Endpoint,
    hello: &Hello,
    entry: &AdapterEntry,
    source: SocketAddr,
) -> Result<Vec<u8>, Fault> {
    let mut connected = conversation::dial(endpoint, source, Role::Learner, hello).await?;
    let fetched = transfer(&mut connected, entry).await;
    connected.session.close(close_code::NORMAL, "fetched");
    check(&fetched?, entry)
}

async fn transfer(connected: &mut Open, entry: &AdapterEntry) -> Result<Vec<u8>, Fault> {
    let digest = entry.version.digest;
    let limit = usize::try_from(entry.bytes)
        .unwrap_or(usize::MAX)
        .min(ADAPTER_BYTES_MAX)
        + HEADER_BYTES;
    let request = codec::encode(&ToSink::Fetch { digest });
    let told = |error| link_fault(&error);
    connected
        .sender
        .send(ToSink::KIND as u8, &request)
        .await
        .map_err(told)?;
    let session = connected.session.clone();
    let read = async {
        let stream = session.accept_bulk().await?;
        stream.read_to_end(limit).await
    };
    let mut read = std::pin::pin!(read);
    loop {
        tokio::select! {
            bytes = &mut read => return bytes.map_err(told),
            frame = connected.receiver.recv() => {
                let frame = frame.map_err(told)?.ok_or_else(|| missing(&digest, "it hung up"))?;
                let said = codec::decode_frame::<FromSink>(frame.kind, &frame.payload);
                match said.map_err(|error| faults::decode(&error))? {
                    FromSink::AdapterMissing { digest } => {
                        return Err(missing(&digest, "it has no such version any more"));
                    }
                    FromSink::Delivered { .. } => {}
                }
            }
        }
    }
}

fn check(stream: &[u8], entry: &AdapterEntry) -> Result<Vec<u8>, Fault> {
    let digest = entry.version.digest;
    let (header, bytes) = stream
        .split_at_checked(HEADER_BYTES)
        .ok_or_else(|| missing(&digest, "what it sent is cut short"))?;
    if header[0] != BulkKind::Adapter as u8 || header[1..] != digest.0 {
        return Err(missing(&digest, "it sent something else"));
    }
    if bytes.len() as u64 != entry.bytes || Digest::of(bytes) != digest {
        return Err(missing(&digest, "what it sent has another digest"));
    }
    Ok(bytes.to_vec())
}

fn missing(digest: &Digest, why: &str) -> Fault {
    let message = format!(
        "adapter {} is not to be had from its learner: {why}",
        digest.short()
    );
    Fault::new(ErrorCode::AdapterUnavailable, message)
}

#[cfg(test)]
mod tests {
    use volley_protocol::{AdapterVersion, RunId};

    use super::*;

    #[test]
    fn only_the_named_bytes_are_taken() {
        let bytes = b"weights";
        let version = AdapterVersion {
            run: RunId(1),
            lineage: 0,
            step: 3,
            digest: Digest::of(bytes),
        };
        let entry = AdapterEntry {
            version,
            parent: Digest::default(),
            bytes: 7,
        };
        let stream = [&[2][..], &version.digest.0, bytes].concat();
        assert_eq!(check(&stream, &entry).as_deref(), Ok(&bytes[..]));
        for at in [0, 5, HEADER_BYTES] {
            let mut other = stream.clone();
            other[at] ^= 1;
            let fault = check(&other, &entry).expect_err("one bit differs");
            assert_eq!(fault.code, ErrorCode::AdapterUnavailable);
        }
        assert!(check(&stream[..20], &entry).is_err());
        assert!(check(&stream[..stream.len() - 1], &entry).is_err());
    }
}
