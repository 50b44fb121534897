//! Enrolment of a branch: one request on a connection without a client certificate.

use dedup_protocol::join::JoinAnswer;
use dedup_protocol::wire::{Message, RefuseCode};
use dedup_transport::link::{Link, LinkError};

use super::{REQUEST_BYTES_MAX, refuse};
use crate::Datacenter;

/// Serves a join connection to its end.
pub async fn serve(dc: &Datacenter, link: &Link) -> Result<(), LinkError> {
    let (mut send, mut recv) = link.accept().await?;
    let Some(frame) = recv.recv(REQUEST_BYTES_MAX).await? else {
        return Ok(());
    };
    let answer = match Message::decode(&frame) {
        Ok(Message::Join(request)) => {
            match dc.redeem_join_token(&request.secret, &request.csr_der, dc.now_unix_s()) {
                Ok(joined) => {
                    tracing::info!(branch = %joined.branch, name = joined.name, peer = %link.remote_addr(), "joined");
                    Message::Joined(JoinAnswer {
                        branch: joined.branch,
                        name: joined.name,
                        certificate_der: joined.cert_der,
                        ca_pem: dc.ca().cert_pem(),
                        id_key: *dc.id_key().secret(),
                        anchor: dc.anchor(),
                        endorsements: dc.endorsements(),
                    })
                }
                Err(error) => {
                    let error = super::error_line(&error);
                    tracing::warn!(peer = %link.remote_addr(), error, "join refused");
                    refuse(RefuseCode::JoinRefused, &error)
                }
            }
        }
        Ok(other) => refuse(
            RefuseCode::BadRequest,
            &format!("{} is not a join request", other.name()),
        ),
        Err(error) => refuse(RefuseCode::BadRequest, &error.to_string()),
    };
    send.send(&answer.encode()).await?;
    send.finish()?;
    // The branch closes when it has read the answer.
    link.closed().await;
    Ok(())
}
