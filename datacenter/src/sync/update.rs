//! Answering requests for updates: the same update to every branch, while it is still being encoded as well as from disk.
//!
//! An answer waits for what is not encoded yet, for a bounded time, then tells the branch to ask again; what was sent by then is the
//! branch's. It never makes anything itself.

use std::sync::Arc;
use std::time::Duration;

use dedup::BranchId;
use dedup_protocol::server::AnswerError;
use dedup_protocol::update::{Next, UpdateResponder, check_update};
use dedup_protocol::wire::{FRAME_BYTES_MAX, GetUpdate, RefuseCode};
use dedup_transport::link::{Class, FrameSend, LinkError};

use super::{Shared, end, end_with, error_line};
use crate::update::{NoUpdate, Pair, Stage, Update};

/// How long an answer waits for the next batch, or for the plan. A branch that asks again costs one small frame.
const LATER_MAX: Duration = Duration::from_secs(20);

enum Begun {
    Update(Arc<Update>),
    Refused(AnswerError),
    None(NoUpdate),
}

/// Answers one request.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    branch: BranchId,
    request: GetUpdate,
    send: &mut FrameSend,
) -> Result<(), LinkError> {
    send.set_class(Class::Fill);
    let (worker, asked) = (Arc::clone(shared), request.clone());
    let begun = tokio::task::spawn_blocking(move || begin(&worker, branch, &asked))
        .await
        .expect("answering does not panic");
    let update = match begun {
        Begun::Update(update) => update,
        Begun::Refused(error) => return end_with(branch, send, &error).await,
        Begun::None(error) => {
            let code = match &error {
                NoUpdate::Busy => RefuseCode::Busy,
                NoUpdate::Failed(_) => RefuseCode::Damaged,
                NoUpdate::Io(_) => {
                    tracing::error!(%branch, error = error_line(&error), "updates cannot be read");
                    RefuseCode::Damaged
                }
            };
            return end(send, code, &error_line(&error)).await;
        }
    };
    let mut stage = update.subscribe();
    let mut responder = UpdateResponder::new(Arc::clone(&update), &request);
    loop {
        stage.mark_unchanged();
        let permit = shared
            .packers
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let (next, back) = tokio::task::spawn_blocking(move || {
            let next = responder.next_frame();
            (next, responder)
        })
        .await
        .expect("answering does not panic");
        drop(permit);
        responder = back;
        match next {
            Ok(Next::Frame(message)) => {
                let frame = message.encode();
                debug_assert!(frame.len() <= FRAME_BYTES_MAX);
                send.send(&frame).await?;
            }
            Ok(Next::End) => return send.finish(),
            Ok(Next::Later) => {
                let failed = match &*stage.borrow() {
                    Stage::Failed(reason) => Some(Arc::clone(reason)),
                    _ => None,
                };
                if let Some(reason) = failed {
                    return end(send, RefuseCode::Damaged, &reason).await;
                }
                if tokio::time::timeout(LATER_MAX, stage.changed())
                    .await
                    .is_err()
                {
                    return end(send, RefuseCode::Busy, "it is being encoded").await;
                }
            }
            Err(error @ AnswerError::Content { .. }) => {
                // It is made again, and the branch asks again.
                let (worker, reason) = (Arc::clone(shared), error_line(&error));
                let discarded = Arc::clone(&update);
                tokio::task::spawn_blocking(move || {
                    worker.dc.updates().discard(&discarded, &reason);
                })
                .await
                .expect("discarding does not panic");
                return end(send, RefuseCode::Busy, "it was damaged and is made again").await;
            }
            Err(error) => return end_with(branch, send, &error).await,
        }
    }
}

fn begin(shared: &Shared, branch: BranchId, request: &GetUpdate) -> Begun {
    let dc = &shared.dc;
    let readable = |version| {
        dc.may_read(branch, version).unwrap_or_else(|error| {
            tracing::error!(%branch, %version, error = error_line(&error), "rights cannot be looked up");
            false
        })
    };
    let was_readable = |version| {
        dc.could_read(branch, version).unwrap_or_else(|error| {
            tracing::error!(%branch, %version, error = error_line(&error), "rights cannot be looked up");
            false
        })
    };
    if let Err(error) = check_update(&shared.content, request, readable, was_readable) {
        return Begun::Refused(error);
    }
    let pair = Pair {
        parent: request.parent,
        version: request.version,
    };
    match dc.updates().find_or_want(dc, pair) {
        Ok(update) => Begun::Update(update),
        Err(error) => Begun::None(error),
    }
}
