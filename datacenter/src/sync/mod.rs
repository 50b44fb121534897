//! The datacenter's end of every link: who connects, what they may ask, and what they are told unasked.
//!
//! A connection is a join (one request) or a branch. A branch's first stream is its control stream; every other stream is one request,
//! answered by a `Responder` frame by frame. Reading and packing run on the blocking pool; how much of it at once is bounded, and
//! what a guest waits for is not behind what fills a cache.

mod content;
mod control;
mod join;
mod profiles;
mod repair;
mod state;
mod update;
mod wipe;

use std::sync::Arc;
use std::time::Duration;

use dedup::{BranchId, VersionId};
use dedup_protocol::server::{AnswerError, Responder};
use dedup_protocol::state::began::StateName;
use dedup_protocol::wire::{FRAME_BYTES_MAX, Message, Refuse, RefuseCode, Urgency};
use dedup_transport::link::{
    Accepted, Class, FrameRecv, FrameSend, Incoming, Link, LinkError, LinkServer,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::Datacenter;
use content::SharedContent;
pub use repair::{NotTaken, take_back};

/// Handshakes at once: each costs a signature, and strangers can begin one.
const HANDSHAKES_MAX: usize = 64;
/// How long a stranger may take for a handshake or its first request.
const GREETING_MAX: Duration = Duration::from_secs(30);
/// Largest request frame: [`dedup_protocol::wire::RUNS_MAX`] runs of eleven bytes and a head.
const REQUEST_BYTES_MAX: usize = 128 << 10;
/// Requests of one branch answered at once.
const REQUESTS_PER_BRANCH_MAX: usize = 256;
/// Those of them about leases and write-back that are worked on at once; the others wait. A volume has one part on its way, and each holds a frame
/// of chunks in memory.
const STATES_PER_BRANCH_MAX: usize = 8;

/// Serves links until `cancel`.
pub async fn serve(dc: Arc<Datacenter>, server: LinkServer, cancel: CancellationToken) {
    let shared = Arc::new(Shared {
        content: SharedContent::new(Arc::clone(&dc)),
        dc,
        // Packing is pure CPU: more at once than cores only makes every branch wait longer.
        packers: Semaphore::new(std::thread::available_parallelism().map_or(2, usize::from)),
        recordings: Semaphore::new(1),
        repairs: Semaphore::new(1),
        states: Semaphore::new(std::thread::available_parallelism().map_or(2, usize::from)),
    });
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let incoming = tokio::select! {
            incoming = server.accept() => incoming,
            () = cancel.cancelled() => break,
        };
        let Some(incoming) = incoming else { break };
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
            tracing::warn!("too many handshakes at once, one is dropped");
            continue;
        };
        let (shared, cancel) = (Arc::clone(&shared), cancel.clone());
        tokio::spawn(async move {
            let connection = establish(incoming).await;
            drop(permit);
            tokio::select! {
                () = connection_task(&shared, connection) => {}
                () = cancel.cancelled() => {}
            }
        });
    }
    server.close("the datacenter stops");
}

struct Shared {
    dc: Arc<Datacenter>,
    content: SharedContent,
    packers: Semaphore,
    /// Recorded boots being taken in.
    recordings: Semaphore,
    /// Chunks that come back being taken in.
    repairs: Semaphore,
    /// Messages about leases and write-back being worked on: hashing, compressing and building manifests.
    states: Semaphore,
}

async fn establish(incoming: Incoming) -> Result<Accepted, LinkError> {
    // The transport bounds the handshake by its idle timeout.
    incoming.establish().await
}

async fn connection_task(shared: &Arc<Shared>, connection: Result<Accepted, LinkError>) {
    match connection {
        Ok(Accepted::Join(link)) => {
            let joined = tokio::time::timeout(GREETING_MAX, join::serve(&shared.dc, &link)).await;
            if let Ok(Err(error)) = joined {
                tracing::info!(peer = %link.remote_addr(), error = error_line(&error), "join failed");
            }
        }
        Ok(Accepted::Branch(branch, link)) => {
            if let Err(error) = shared.dc.adopt_branch(branch) {
                tracing::error!(%branch, error = error_line(&error), "a branch cannot be looked up");
            }
            let is_refused = is_revoked(&shared.dc, branch);
            if is_refused && is_to_be_wiped(&shared.dc, branch) {
                tracing::warn!(%branch, peer = %link.remote_addr(), "a branch that is to be wiped is in contact");
                wipe::serve(&shared.dc, branch, &link).await;
                return;
            }
            if is_refused {
                tracing::warn!(%branch, peer = %link.remote_addr(), "a revoked branch was refused");
                link.refuse("this branch's certificate is revoked");
                return;
            }
            tracing::info!(%branch, peer = %link.remote_addr(), "link up");
            let ended = branch_connection(shared, branch, &link).await;
            tracing::info!(%branch, reason = error_line(&ended), "link down");
        }
        Err(error) => tracing::info!(error = error_line(&error), "handshake failed"),
    }
}

/// A revocation list that cannot be read refuses everybody.
fn is_revoked(dc: &Datacenter, branch: BranchId) -> bool {
    dc.is_revoked(branch).unwrap_or_else(|error| {
        tracing::error!(%branch, error = error_line(&error), "revocation cannot be looked up");
        true
    })
}

/// Whether a branch that is refused has an order to wipe all of it.
fn is_to_be_wiped(dc: &Datacenter, branch: BranchId) -> bool {
    dc.is_wiped_whole(branch).unwrap_or_else(|error| {
        tracing::error!(%branch, error = error_line(&error), "orders to wipe cannot be looked up");
        false
    })
}

async fn branch_connection(shared: &Arc<Shared>, branch: BranchId, link: &Link) -> LinkError {
    let _online = shared.dc.link_up(branch, link.remote_addr());
    let _counted = shared.dc.count_link(link);
    let places = Arc::new(Semaphore::new(REQUESTS_PER_BRANCH_MAX));
    let states = Arc::new(Semaphore::new(STATES_PER_BRANCH_MAX));
    let mut streams = tokio::task::JoinSet::new();
    loop {
        let place = Arc::clone(&places)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let stream = tokio::select! {
            stream = link.accept() => stream,
            Some(ended) = streams.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%branch, "answering a request panicked");
                }
                continue;
            }
        };
        match stream {
            Ok((send, recv)) => {
                let (shared, link) = (Arc::clone(shared), link.clone());
                let states = Arc::clone(&states);
                streams.spawn(async move {
                    let _place = place;
                    let task = stream_task(&shared, branch, &link, &states, send, recv);
                    if let Err(error) = task.await {
                        tracing::debug!(%branch, error = error_line(&error), "stream ended early");
                    }
                });
            }
            Err(error) => return error,
        }
    }
}

async fn stream_task(
    shared: &Arc<Shared>,
    branch: BranchId,
    link: &Link,
    states: &Semaphore,
    mut send: FrameSend,
    mut recv: FrameRecv,
) -> Result<(), LinkError> {
    let first = tokio::time::timeout(GREETING_MAX, recv.recv(REQUEST_BYTES_MAX)).await;
    let Ok(Some(frame)) = first.unwrap_or(Ok(None)) else {
        return Ok(());
    };
    match Message::decode(&frame) {
        Ok(Message::Hello(_)) => {
            let ended = control::serve(&shared.dc, branch, link, &frame, send, recv).await;
            // Without its control stream a connection is of no use: the branch starts over.
            let Err(error) = ended;
            tracing::warn!(%branch, error = error_line(&error), "control stream ended");
            link.close("control stream ended");
            Ok(())
        }
        Ok(Message::GetUpdate(request)) => update::answer(shared, branch, request, &mut send).await,
        Ok(Message::Restore(offer)) => {
            repair::answer(shared, branch, offer, &mut send, &mut recv).await
        }
        Ok(
            request @ (Message::AskLease(_)
            | Message::ReturnLease(_)
            | Message::DropLease(_)
            | Message::OfferPart(_)
            | Message::PartChunks(_)),
        ) => state::answer(shared, branch, states, request, &mut send, &mut recv).await,
        Ok(request) => answer(shared, branch, request, &mut send).await,
        Err(error) => {
            let refusal = refuse(RefuseCode::BadRequest, &error.to_string());
            send.send(&refusal.encode()).await?;
            send.finish()
        }
    }
}

fn refuse(code: RefuseCode, message: &str) -> Message {
    Message::Refuse(Refuse {
        code,
        message: message.into(),
    })
}

/// Answers one request.
async fn answer(
    shared: &Arc<Shared>,
    branch: BranchId,
    request: Message,
    send: &mut FrameSend,
) -> Result<(), LinkError> {
    let (class, waits) = match &request {
        Message::GetChunks(r) => match r.urgency {
            Urgency::Demand => (Class::Demand, true),
            Urgency::Boot => (Class::Boot, false),
            Urgency::Fill => (Class::Fill, false),
        },
        _ => (Class::Boot, true),
    };
    send.set_class(class);
    if let Message::BootRecorded(_) | Message::GetProfile(_) = &request {
        return profiles::answer(shared, branch, request, send).await;
    }
    // Until the last frame is made; looked up after this, so what is found stays.
    let _uses = asked_versions(&request)
        .map(|version| version.map(|version| shared.dc.use_version(version)));
    let worker = Arc::clone(shared);
    let (begun, _state) = tokio::task::spawn_blocking(move || {
        let dc = &worker.dc;
        let state = asked_versions(&request)[0].and_then(StateName::of_version);
        // Before it is looked up, as with versions.
        let kept = state.and_then(|state| {
            dc.use_state(state).unwrap_or_else(|error| {
                tracing::error!(%branch, error = error_line(&error), "a state cannot be looked up");
                None
            })
        });
        let readable = |version| {
            let may_read = match StateName::of_version(version) {
                Some(state) => dc.may_read_state(branch, state),
                None => dc.may_read(branch, version),
            };
            may_read.unwrap_or_else(|error| {
                tracing::error!(%branch, %version, error = error_line(&error), "rights cannot be looked up");
                false
            })
        };
        let begun = Responder::new(worker.content.clone(), &request, readable);
        (begun, kept)
    })
    .await
    .expect("answering does not panic");
    let mut responder = match begun {
        Ok(responder) => responder,
        Err(error) => return end_with(branch, send, &error).await,
    };
    loop {
        let permit = if waits {
            None
        } else {
            Some(
                shared
                    .packers
                    .acquire()
                    .await
                    .expect("the semaphore is never closed"),
            )
        };
        let (frame, back) = tokio::task::spawn_blocking(move || {
            let frame = responder.next_frame();
            (frame.map(|f| f.map(|message| message.encode())), responder)
        })
        .await
        .expect("answering does not panic");
        drop(permit);
        responder = back;
        match frame {
            Ok(Some(frame)) => {
                debug_assert!(frame.len() <= FRAME_BYTES_MAX);
                send.send(&frame).await?;
            }
            Ok(None) => return send.finish(),
            Err(error) => return end_with(branch, send, &error).await,
        }
    }
}

/// The versions that a request reads: the one that it is about, and the one that the answer is told against.
fn asked_versions(request: &Message) -> [Option<VersionId>; 2] {
    match request {
        Message::GetVersion(r) => [Some(r.version), None],
        Message::GetOutline(r) => [Some(r.version), r.parent],
        Message::GetLeaves(r) => [Some(r.version), r.parent],
        Message::GetChunks(r) => [Some(r.version), None],
        _ => [None, None],
    }
}

/// Ends an answer with a refusal.
async fn end(send: &mut FrameSend, code: RefuseCode, reason: &str) -> Result<(), LinkError> {
    send.send(&refuse(code, reason).encode()).await?;
    send.finish()
}

/// The same, for a request that could not be answered.
async fn end_with(
    branch: BranchId,
    send: &mut FrameSend,
    error: &AnswerError,
) -> Result<(), LinkError> {
    match error {
        AnswerError::Content { .. } => {
            tracing::error!(%branch, error = error_line(error), "a request could not be answered; run `splice version verify`");
        }
        _ => tracing::warn!(%branch, error = error_line(error), "a request was refused"),
    }
    send.send(&error.refusal().encode()).await?;
    send.finish()
}

/// An error with its causes, on one line.
fn error_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}
