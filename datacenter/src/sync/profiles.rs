//! Boot profiles over a link: recorded boots in, signed profiles out.

use std::sync::Arc;

use dedup::BranchId;
use dedup_protocol::wire::{Message, ProfileAvailable, RefuseCode, SignedBytes};
use dedup_transport::link::{FrameSend, LinkError};

use super::{Shared, error_line, refuse};
use crate::Datacenter;
use crate::profiles::RecordError;

/// Answers one request about boot profiles.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    branch: BranchId,
    request: Message,
    send: &mut FrameSend,
) -> Result<(), LinkError> {
    // One at a time, and whoever comes meanwhile tells it later: the morning after an update a thousand branches have a boot to tell,
    // and what works on them works for guests as well.
    let turn = match &request {
        Message::BootRecorded(_) => match shared.recordings.try_acquire() {
            Ok(turn) => Some(turn),
            Err(_) => {
                let later = refuse(RefuseCode::Busy, "other boots are being taken in");
                send.send(&later.encode()).await?;
                return send.finish();
            }
        },
        _ => None,
    };
    let worker = Arc::clone(&shared.dc);
    // Leaves are read and many recordings compared: not for the link's threads.
    let answer = tokio::task::spawn_blocking(move || respond(&worker, branch, request))
        .await
        .expect("answering does not panic");
    drop(turn);
    send.send(&answer.encode()).await?;
    send.finish()
}

fn respond(dc: &Datacenter, branch: BranchId, request: Message) -> Message {
    let answered = match request {
        Message::BootRecorded(recorded) => dc.record_boot(branch, recorded).map(available),
        Message::GetProfile(asked) => dc
            .profile_newer_than(branch, asked.version, asked.have)
            .map(|found| match found {
                Ok(bytes) => Message::Profile(SignedBytes { bytes }),
                Err(current) => available(current),
            }),
        other => return refuse(RefuseCode::BadRequest, other.name()),
    };
    answered.unwrap_or_else(|error| {
        let (code, line) = (code(&error), error_line(&error));
        match &error {
            RecordError::Catalog(_) | RecordError::Manifest(_) => {
                tracing::error!(%branch, error = line, "a boot profile could not be worked on");
            }
            _ => {
                tracing::warn!(%branch, error = line, "a request about a boot profile was refused")
            }
        }
        // What is wrong here is not the branch's to know.
        refuse(code, &error.to_string())
    })
}

fn available(profile: ProfileAvailable) -> Message {
    Message::ProfileAvailable(profile)
}

fn code(error: &RecordError) -> RefuseCode {
    match error {
        RecordError::NotReadable(_) => RefuseCode::NotReadable,
        RecordError::Empty | RecordError::TooLong { .. } | RecordError::Place(_) => {
            RefuseCode::BadRequest
        }
        RecordError::TooSoon { .. } | RecordError::Catalog(_) => RefuseCode::Busy,
        RecordError::Manifest(_) => RefuseCode::Damaged,
    }
}
