//! A branch that is to be wiped whole: it is revoked, and let in for this alone.
//!
//! Its control stream is greeted, told the order, and heard when that was done; whatever else it asks is not answered.

use std::time::Duration;

use dedup::BranchId;
use dedup_protocol::control::{DatacenterAction, DatacenterControl};
use dedup_protocol::wipe::Wiped;
use dedup_protocol::wire::{
    FRAME_BYTES_MAX, MINOR_LAPTOP, Message, PROTOCOL_MINOR, RefuseCode, SignedBytes, Welcome,
};
use dedup_transport::link::{Class, FrameRecv, FrameSend, Link, LinkError};

use super::control::ControlEnd;
use super::{GREETING_MAX, REQUEST_BYTES_MAX, error_line, refuse};
use crate::Datacenter;

/// How long it may take to destroy its keys and stop its machines.
const WIPE_MAX: Duration = Duration::from_secs(600);

/// Serves it until it is done or gone.
pub(super) async fn serve(dc: &Datacenter, branch: BranchId, link: &Link) {
    let ended = tokio::time::timeout(WIPE_MAX, order(dc, branch, link)).await;
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(%branch, error = error_line(&error), "a branch that is to be wiped is gone");
        }
        Err(_) => tracing::warn!(%branch, "a branch that is to be wiped takes too long"),
    }
    link.refuse("this branch's certificate is revoked");
}

async fn order(dc: &Datacenter, branch: BranchId, link: &Link) -> Result<(), ControlEnd> {
    let (mut send, mut recv) = link.accept().await?;
    let first = tokio::time::timeout(GREETING_MAX, recv.recv(REQUEST_BYTES_MAX)).await;
    let first = first.unwrap_or(Ok(None))?.ok_or(ControlEnd::Closed)?;
    let mut control = DatacenterControl::new();
    let DatacenterAction::Greeted { minor, .. } = control.handle(&first)? else {
        return Err(ControlEnd::Closed);
    };
    send.set_class(Class::Demand);
    if minor < MINOR_LAPTOP {
        tracing::error!(%branch, "the software of a branch that is to be wiped is too old to be told; only its revocation protects what it has");
        let told = refuse(RefuseCode::Revoked, "this branch's certificate is revoked");
        send.send(&told.encode()).await?;
        return Ok(send.finish()?);
    }
    let welcome = Message::Welcome(Welcome {
        minor: PROTOCOL_MINOR,
        software: env!("CARGO_PKG_VERSION").into(),
        now_unix_s: dc.now_unix_s(),
        endorsements: dc.endorsements(),
    });
    send.send(&welcome.encode()).await?;
    let orders = dc.wipes_to_tell(branch, true);
    let orders = orders.map_err(|error| {
        tracing::error!(%branch, error = error_line(&error), "orders to wipe cannot be read");
        ControlEnd::Closed
    })?;
    // One is enough: it destroys everything.
    if let Some((_, bytes)) = orders.into_iter().next() {
        send.send(&Message::Wipe(SignedBytes { bytes }).encode())
            .await?;
    }
    hear(dc, branch, &mut control, &mut send, &mut recv).await
}

async fn hear(
    dc: &Datacenter,
    branch: BranchId,
    control: &mut DatacenterControl,
    send: &mut FrameSend,
    recv: &mut FrameRecv,
) -> Result<(), ControlEnd> {
    loop {
        let frame = recv.recv(FRAME_BYTES_MAX).await?;
        let Some(frame) = frame else { return Ok(()) };
        // What it reports besides is not kept.
        if let DatacenterAction::Wiped(number) = control.handle(&frame)? {
            note(dc, branch, number, send).await?;
        }
    }
}

/// Keeps that a wipe was done, and says so.
pub(super) async fn note(
    dc: &Datacenter,
    branch: BranchId,
    number: u64,
    send: &mut FrameSend,
) -> Result<(), LinkError> {
    match dc.record_wiped(branch, number) {
        Ok(()) => send.send(&Message::Wiped(Wiped { number }).encode()).await,
        Err(error) => {
            // It says it again on its next connection.
            tracing::error!(%branch, order = number, error = error_line(&error), "that a wipe was done is not kept");
            Ok(())
        }
    }
}
