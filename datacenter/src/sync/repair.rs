//! Damaged chunks back from branches: which branch is asked for what, and taking in what it sends.
//!
//! A branch is asked by place, for versions that its pools run or pin, so it learns nothing that it may not know. What it sends is proven by
//! name before it is stored, and only what is damaged here is stored. One offer at a time: this is rare, and each costs a commit.

use std::collections::HashSet;
use std::sync::Arc;

use dedup::BranchId;
use dedup_protocol::restore::Intake;
use dedup_protocol::server::AnswerError;
use dedup_protocol::wire::{
    Batch, FRAME_BYTES_MAX, MINOR_WANTED, Message, RefuseCode, Restore, Restored, Wanted,
};
use dedup_store::{RecordName, StoreError};
use dedup_transport::link::{Class, FrameRecv, FrameSend, LinkError};

use super::content::SharedContent;
use super::{GREETING_MAX, Shared, end, end_with, error_line};
use crate::Datacenter;

/// Asks a branch for damaged chunks that it was not asked for on this connection. `told` is what it was asked for last.
pub(super) async fn ask(
    dc: &Datacenter,
    branch: BranchId,
    minor: u16,
    told: &mut Vec<Wanted>,
    send: &mut FrameSend,
) -> Result<(), LinkError> {
    if minor < MINOR_WANTED {
        return Ok(());
    }
    let damage = dc.upkeep().damage();
    if damage.count() == 0 {
        told.clear();
        return Ok(());
    }
    let versions = match dc.versions_assigned(branch) {
        Ok(versions) => versions,
        Err(error) => {
            tracing::error!(%branch, error = error_line(&error), "pools cannot be looked up");
            return Ok(());
        }
    };
    let wanted = damage.wanted(&versions);
    for asked in wanted.iter().filter(|asked| !told.contains(asked)) {
        tracing::info!(%branch, version = %asked.version, places = asked.runs.len(), "a branch is asked for damaged chunks");
        send.send(&Message::Wanted(asked.clone()).encode()).await?;
    }
    *told = wanted;
    Ok(())
}

/// Answers an offer.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    branch: BranchId,
    restore: Restore,
    send: &mut FrameSend,
    recv: &mut FrameRecv,
) -> Result<(), LinkError> {
    send.set_class(Class::State);
    let Ok(_turn) = shared.repairs.try_acquire() else {
        return end(send, RefuseCode::Busy, "another offer is being taken in").await;
    };
    let _use = shared.dc.use_version(restore.version);
    let worker = Arc::clone(shared);
    let begun =
        tokio::task::spawn_blocking(move || begin(&worker.dc, &worker.content, branch, &restore))
            .await
            .expect("answering does not panic");
    let intake = match begun {
        Ok(intake) => intake,
        Err(error) => return end_with(branch, send, &error).await,
    };
    let Ok(frame) = tokio::time::timeout(GREETING_MAX, recv.recv(FRAME_BYTES_MAX)).await else {
        return end(send, RefuseCode::Busy, "the chunks took too long").await;
    };
    let Some(frame) = frame? else {
        return end(send, RefuseCode::BadRequest, "no chunks followed").await;
    };
    let batch = match Message::decode(&frame) {
        Ok(Message::Batch(batch)) => batch,
        Ok(other) => {
            let reason = format!("{} where Batch was due", other.name());
            return end(send, RefuseCode::BadRequest, &reason).await;
        }
        Err(error) => return end(send, RefuseCode::BadRequest, &error.to_string()).await,
    };
    let worker = Arc::clone(shared);
    let taken = tokio::task::spawn_blocking(move || take(&worker.dc, intake, &batch))
        .await
        .expect("taking chunks in does not panic");
    match taken {
        Ok(chunks) => {
            tracing::info!(%branch, chunks, "damaged chunks came back");
            let answer = Message::Restored(Restored { chunks });
            send.send(&answer.encode()).await?;
            send.finish()
        }
        Err(NotTaken::Offer(error)) => end_with(branch, send, &error).await,
        Err(NotTaken::Refused(reason)) => {
            tracing::warn!(%branch, reason, "an offer was not believed");
            end(send, RefuseCode::BadRequest, &reason).await
        }
        Err(NotTaken::Store(error)) => {
            tracing::error!(%branch, error = error_line(&error), "chunks that came back were not stored");
            end(send, RefuseCode::Busy, "they cannot be stored now").await
        }
    }
}

/// Why chunks that a branch offers are not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// The offer itself.
    #[error(transparent)]
    Offer(#[from] AnswerError),
    /// What came is not what was published.
    #[error("the chunks that came: {0}")]
    Refused(String),
    /// It could not be stored.
    #[error("chunk store")]
    Store(#[source] StoreError),
}

/// Takes chunks that a branch offers; answers how many were damaged here and are not any more. The stream's work without the stream.
pub fn take_back(
    dc: &Arc<Datacenter>,
    branch: BranchId,
    restore: &Restore,
    batch: &Batch,
) -> Result<u32, NotTaken> {
    let content = SharedContent::new(Arc::clone(dc));
    take(dc, begin(dc, &content, branch, restore)?, batch)
}

fn begin(
    dc: &Datacenter,
    content: &SharedContent,
    branch: BranchId,
    restore: &Restore,
) -> Result<Intake, AnswerError> {
    let readable = |version| {
        dc.may_read(branch, version).unwrap_or_else(|error| {
            tracing::error!(%branch, %version, error = error_line(&error), "rights cannot be looked up");
            false
        })
    };
    Intake::new(content, dc.id_key().clone(), restore, readable)
}

/// Stores those of the chunks that are damaged here; answers how many.
fn take(dc: &Datacenter, mut intake: Intake, batch: &Batch) -> Result<u32, NotTaken> {
    let chunks = intake
        .batch(batch)
        .map_err(|error| NotTaken::Refused(error_line(&error)))?;
    let damaged: HashSet<RecordName> = dc.store().damaged().into_iter().collect();
    let writer = dc.store().writer();
    let mut taken = 0;
    for chunk in &chunks {
        if damaged.contains(&RecordName::chunk(chunk.id())) {
            writer.put_chunk(chunk).map_err(NotTaken::Store)?;
            taken += 1;
        }
    }
    dc.store().commit().map_err(NotTaken::Store)?;
    Ok(taken)
}
