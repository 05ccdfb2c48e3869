//! The first words of a session, spoken and answered alike by every role.

use std::time::Duration;

use tokio::time::timeout;
use volley_link::{Connected, Frame, LinkError, close_code};
use volley_protocol::codec::{self, Message};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::ids::{Epoch, PeerId};
use volley_protocol::limits::NAME_BYTES_MAX;
use volley_protocol::version::{Hello, PROTOCOL_VERSION, Welcome};

/// A peer that says nothing for this long after the handshake is not worth a session.
const GREETING_DEADLINE: Duration = Duration::from_secs(5);

/// Who answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeted {
    /// Name of the cluster.
    pub cluster: String,
    /// Epoch of the coordinator; 0 from a learner.
    pub epoch: Epoch,
    /// The listening process.
    pub peer: PeerId,
}

/// Says hello on a session that was just dialled, and waits for the welcome.
///
/// # Errors
/// The peer's own refusal, `UNSUPPORTED_PROTOCOL`, or what became of the session.
pub async fn greet(connected: &mut Connected, hello: &Hello) -> Result<Greeted, Fault> {
    let payload = codec::encode(hello);
    connected
        .sender
        .send(Hello::KIND as u8, &payload)
        .await
        .map_err(|error| link_fault(&error))?;
    let frame = first_frame(connected).await?;
    match decode(connected, &frame)? {
        Welcome::Accepted { protocol, .. } if protocol != PROTOCOL_VERSION => {
            Err(unsupported(protocol))
        }
        Welcome::Accepted {
            cluster,
            epoch,
            peer,
            ..
        } => Ok(Greeted {
            cluster,
            epoch,
            peer,
        }),
        Welcome::Refused(fault) => Err(fault),
    }
}

/// Waits for the hello of a peer that dialled, and refuses what this build cannot talk to.
///
/// # Errors
/// `UNSUPPORTED_PROTOCOL`, `DECODE_ERROR`, or what became of the session. The peer has been told.
pub async fn hear(connected: &mut Connected) -> Result<Hello, Fault> {
    let heard = first_frame(connected).await;
    let verdict = heard.and_then(|frame| {
        // Before anything else: what follows may have another layout in another version.
        if frame.kind == Hello::KIND as u8
            && let Some(version) = Hello::version_in(&frame.payload)
            && version != PROTOCOL_VERSION
        {
            return Err(unsupported(version));
        }
        let hello: Hello = decode(connected, &frame)?;
        if hello.name.len() > NAME_BYTES_MAX {
            let message = format!("a peer's name has at most {NAME_BYTES_MAX} bytes");
            Err(Fault::new(ErrorCode::InvalidName, message))
        } else {
            Ok(hello)
        }
    });
    if let Err(fault) = &verdict {
        let refusal = codec::encode(&Welcome::Refused(fault.clone()));
        // A peer that is gone already needs no refusal.
        let _ = connected.sender.send(Welcome::KIND as u8, &refusal).await;
        let _ = timeout(GREETING_DEADLINE, connected.sender.finish()).await;
        close_with(&connected.session, fault);
    }
    verdict
}

/// Answers a hello.
///
/// # Errors
/// What became of the session.
pub async fn welcome(
    connected: &Connected,
    cluster: &str,
    epoch: Epoch,
    peer: PeerId,
) -> Result<(), Fault> {
    let welcome = Welcome::Accepted {
        protocol: PROTOCOL_VERSION,
        cluster: cluster.to_owned(),
        epoch,
        peer,
    };
    let payload = codec::encode(&welcome);
    let sent = connected.sender.send(Welcome::KIND as u8, &payload).await;
    sent.map_err(|error| link_fault(&error))
}

/// Ends a session with a fault that the peer can read.
pub fn close_with(session: &volley_link::Session, fault: &Fault) {
    session.close(
        close_code::APPLICATION_MIN + fault.code as u32,
        &fault.to_string(),
    );
}

/// The fault behind an error of the link: its own code where users can meet it.
#[must_use]
pub fn link_fault(error: &LinkError) -> Fault {
    let code = ErrorCode::from_name(error.code()).unwrap_or_else(|| match error.code() {
        "IDENTITY_REFUSED" | "PEER_NO_CERTIFICATE" | "PEER_WRONG_ROLE" => ErrorCode::PeerUntrusted,
        "PEER_REFUSED" | "HANDSHAKE_TIMEOUT" => ErrorCode::PeerUnreachable,
        "IDENTITY_FILE" | "IDENTITY_HAND_OVER" | "SOCKET_FAILED" => ErrorCode::IoFailed,
        "ADDRESS_NOT_LOCAL" | "ADDRESS_DENIED" => ErrorCode::ConfigInvalid,
        "BAD_PREFACE" | "FRAME_TRUNCATED" | "BULK_TOO_LARGE" => ErrorCode::DecodeError,
        _ => ErrorCode::PeerLost,
    });
    Fault::new(code, error.to_string())
}

async fn first_frame(connected: &mut Connected) -> Result<Frame, Fault> {
    let peer = connected.session.remote_addr();
    timeout(GREETING_DEADLINE, connected.receiver.recv())
        .await
        .map_err(|_| Fault::new(ErrorCode::PeerLost, format!("{peer} did not say who it is")))?
        .map_err(|error| link_fault(&error))?
        .ok_or_else(|| Fault::new(ErrorCode::PeerLost, format!("{peer} left at once")))
}

fn decode<M: Message>(connected: &Connected, frame: &Frame) -> Result<M, Fault> {
    let peer = connected.session.remote_addr();
    codec::decode_frame(frame.kind, &frame.payload)
        .map_err(|error| Fault::new(ErrorCode::DecodeError, format!("{peer}: {error}")))
}

fn unsupported(got: u16) -> Fault {
    Fault::new(
        ErrorCode::UnsupportedProtocol,
        format!("this program speaks protocol {PROTOCOL_VERSION}, the peer {got}"),
    )
    .with_hint("run the same version of volley on both sides")
}

#[cfg(test)]
mod tests {
    use volley_link::{Peer, Role, memory_pair};

    use super::*;

    fn pair() -> (Connected, Connected) {
        let peer = |role| Peer::new(role, "x", "c").expect("a valid peer");
        memory_pair(peer(Role::Worker), peer(Role::Coordinator))
    }

    fn hello(protocol: u16) -> Hello {
        Hello {
            protocol,
            peer: PeerId(4),
            name: "w".into(),
            pid: 1,
        }
    }

    #[tokio::test]
    async fn a_hello_is_welcomed() {
        let (mut dialler, mut listener) = pair();
        let answer = async {
            let heard = hear(&mut listener).await.expect("a good hello");
            assert_eq!(heard.peer, PeerId(4));
            welcome(&listener, "c", Epoch(7), PeerId(9))
                .await
                .expect("sent");
        };
        let hello = hello(PROTOCOL_VERSION);
        let (greeted, ()) = tokio::join!(greet(&mut dialler, &hello), answer);
        assert_eq!(greeted.expect("welcome").epoch, Epoch(7));
    }

    #[tokio::test]
    async fn another_version_is_refused_and_told_why() {
        let (mut dialler, mut listener) = pair();
        let hello = hello(255);
        let (greeted, heard) = tokio::join!(greet(&mut dialler, &hello), hear(&mut listener));
        assert_eq!(
            heard.expect_err("refused").code,
            ErrorCode::UnsupportedProtocol
        );
        assert_eq!(
            greeted.expect_err("refused").code,
            ErrorCode::UnsupportedProtocol
        );
    }

    #[tokio::test]
    async fn a_longer_hello_of_another_version_is_refused_for_its_version() {
        for (protocol, due) in [
            (PROTOCOL_VERSION + 1, ErrorCode::UnsupportedProtocol),
            (PROTOCOL_VERSION, ErrorCode::DecodeError),
        ] {
            let (mut dialler, mut listener) = pair();
            let mut longer = codec::encode(&hello(protocol));
            longer.extend_from_slice(b"a field of tomorrow");
            let sent = dialler.sender.send(Hello::KIND as u8, &longer).await;
            sent.expect("sent");
            assert_eq!(hear(&mut listener).await.expect_err("refused").code, due);
            let answer = dialler.receiver.recv().await.expect("open");
            let answer = answer.expect("an answer");
            let welcome: Welcome = codec::decode(&answer.payload).expect("a refusal");
            assert!(matches!(welcome, Welcome::Refused(fault) if fault.code == due));
        }
    }
}
