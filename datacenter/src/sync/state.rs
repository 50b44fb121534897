//! Leases and write-back over a link: one stream for each question, and one for each part with its chunks.
//!
//! ```text
//!   AskLease, ReturnLease, DropLease ──►   ◄── the answer
//!   OfferPart ──►               ◄── WantChunks
//!   PartChunks, … ──►           ◄── PartStaged; behind the last part SegmentApplied, when the state is built
//! ```
//!
//! The branch may send chunks as long as it was told which are wanted and the part is not staged; who is too slow begins the stream again, and
//! what came by then is stored. What is decided is [`crate::volumes`]'s.

use std::sync::Arc;
use std::time::Duration;

use dedup::BranchId;
use dedup_protocol::wire::{FRAME_BYTES_MAX, Message, RefuseCode};
use dedup_transport::link::{Class, FrameRecv, FrameSend, LinkError};
use tokio::sync::Semaphore;

use super::{Shared, error_line, refuse};
use crate::Datacenter;
use crate::volumes::{Received, StateError};

/// How long the next chunks of a part may take: a frame of 4 MiB over a bad line, behind everything that guests wait for.
const CHUNKS_WAIT_MAX: Duration = Duration::from_secs(180);

/// Answers one stream, which `first` began. `turns` are the branch's.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    branch: BranchId,
    turns: &Semaphore,
    first: Message,
    send: &mut FrameSend,
    recv: &mut FrameRecv,
) -> Result<(), LinkError> {
    send.set_class(Class::State);
    let _turn = turns
        .acquire()
        .await
        .expect("the semaphore is never closed");
    let mut next = Some(first);
    while let Some(message) = next.take() {
        let were_chunks = matches!(message, Message::PartChunks(_));
        let is_lease = matches!(
            message,
            Message::AskLease(_) | Message::ReturnLease(_) | Message::DropLease(_)
        );
        let task = move |dc: &Datacenter| handle(dc, branch, message);
        // A lease costs a row, and does not wait behind states that are built.
        let handled = if is_lease {
            begin(shared, task).await
        } else {
            work(shared, task).await
        };
        let received = match handled {
            Ok(received) => received,
            Err(error) => return end(branch, send, &error).await,
        };
        // More of them are due, or the branch ends the stream.
        let is_more_due = were_chunks && received.messages.is_empty();
        let is_wanted = received
            .messages
            .iter()
            .any(|message| matches!(message, Message::WantChunks(_)));
        for message in &received.messages {
            send.send(&message.encode()).await?;
        }
        if let Some((line, segment)) = received.whole {
            let finished = work(shared, move |dc| dc.finish_segment(line, segment)).await;
            match finished {
                Ok(messages) => {
                    for message in messages {
                        send.send(&message.encode()).await?;
                    }
                }
                Err(error) => return end(branch, send, &error).await,
            }
        }
        if !is_wanted && !is_more_due {
            break;
        }
        let Ok(frame) = tokio::time::timeout(CHUNKS_WAIT_MAX, recv.recv(FRAME_BYTES_MAX)).await
        else {
            return refused(send, RefuseCode::Busy, "the chunks took too long").await;
        };
        let Some(frame) = frame? else { break };
        match Message::decode(&frame) {
            Ok(message @ Message::PartChunks(_)) => next = Some(message),
            Ok(other) => {
                let reason = format!("{} where PartChunks was due", other.name());
                return refused(send, RefuseCode::BadRequest, &reason).await;
            }
            Err(error) => return refused(send, RefuseCode::BadRequest, &error.to_string()).await,
        }
    }
    send.finish()
}

/// Works for one message on the blocking pool, not more at once than there are cores.
async fn work<T: Send + 'static>(
    shared: &Arc<Shared>,
    task: impl FnOnce(&Datacenter) -> Result<T, StateError> + Send + 'static,
) -> Result<T, StateError> {
    let _permit = shared
        .states
        .acquire()
        .await
        .expect("the semaphore is never closed");
    begin(shared, task).await
}

/// Works on the blocking pool.
async fn begin<T: Send + 'static>(
    shared: &Arc<Shared>,
    task: impl FnOnce(&Datacenter) -> Result<T, StateError> + Send + 'static,
) -> Result<T, StateError> {
    let worker = Arc::clone(&shared.dc);
    tokio::task::spawn_blocking(move || task(&worker))
        .await
        .expect("answering does not panic")
}

fn handle(dc: &Datacenter, branch: BranchId, message: Message) -> Result<Received, StateError> {
    let told = |messages| Received {
        messages,
        whole: None,
    };
    match message {
        Message::AskLease(ask) => dc.ask_lease(branch, &ask).map(told),
        Message::ReturnLease(message) => dc.return_lease(branch, &message).map(told),
        Message::DropLease(message) => dc.drop_lease(branch, &message).map(told),
        Message::OfferPart(offer) => dc.offer_part(branch, &offer),
        Message::PartChunks(frame) => dc.take_part_chunks(branch, &frame),
        // Whoever calls has looked.
        _ => Ok(Received::default()),
    }
}

async fn end(branch: BranchId, send: &mut FrameSend, error: &StateError) -> Result<(), LinkError> {
    let line = error_line(error);
    if error.is_ours() {
        tracing::error!(%branch, error = line, "a volume could not be worked on");
        // What is wrong here is not the branch's to know.
        return refused(send, error.code(), &error.to_string()).await;
    }
    tracing::warn!(%branch, error = line, "a message about a volume was refused");
    refused(send, error.code(), &line).await
}

async fn refused(send: &mut FrameSend, code: RefuseCode, reason: &str) -> Result<(), LinkError> {
    send.send(&refuse(code, reason).encode()).await?;
    send.finish()
}
