//! Telling the datacenter that all keys of this branch are destroyed, as it ordered.
//!
//! Nothing else is left of the branch then: this connects, greets, says it and waits until that is noted; again and again, since only then may the
//! certificate go that the connection needs.

use std::time::Duration;

use dedup_protocol::wipe::{Wipe, Wiped};
use dedup_protocol::wire::{FRAME_BYTES_MAX, Hello, Message, PROTOCOL_MINOR, RefuseCode};
use dedup_transport::link::{Class, LinkClient, LinkTuning};

use super::ConnectionEnd;
use crate::identity::Identity;

/// Between two tries.
const PAUSE: Duration = Duration::from_secs(15);
/// How long a try may wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Tells it until it is noted.
pub async fn tell(identity: &Identity, wipe: &Wipe, tuning: &LinkTuning) {
    let mut told = String::new();
    loop {
        let trial = tokio::time::timeout(ANSWER_MAX, tell_once(identity, wipe, tuning));
        let line = match trial.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => crate::desktop::error_line(&error),
            Err(_) => "no answer".to_owned(),
        };
        // The same trouble is told once.
        if line != told {
            tracing::warn!(
                error = line,
                "the datacenter is not told yet that this branch is wiped"
            );
            told = line;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn tell_once(
    identity: &Identity,
    wipe: &Wipe,
    tuning: &LinkTuning,
) -> Result<(), ConnectionEnd> {
    let certificate = identity.certificate()?;
    let realm = identity.anchor.realm;
    let client = LinkClient::new(&certificate, &identity.ca_pem, realm, tuning)?;
    let link = client.connect(&identity.address).await?;
    let (mut send, mut recv) = link.open(Class::Demand).await?;
    let hello = Message::Hello(Hello {
        minor: PROTOCOL_MINOR,
        software: env!("CARGO_PKG_VERSION").into(),
        assignment_counter: 0,
    });
    send.send(&hello.encode()).await?;
    let number = wipe.number;
    let mut is_greeted = false;
    while let Some(frame) = recv.recv(FRAME_BYTES_MAX).await? {
        match Message::decode(&frame)? {
            Message::Welcome(_) if !is_greeted => {
                is_greeted = true;
                send.send(&Message::Wiped(Wiped { number }).encode())
                    .await?;
            }
            Message::Wiped(noted) if noted.number == number => {
                link.close("wiped");
                return Ok(());
            }
            Message::Refuse(refuse) if refuse.code == RefuseCode::Busy => break,
            // What a branch would have to do is nothing to this one.
            _ => {}
        }
    }
    Err(ConnectionEnd::ControlEnded)
}
