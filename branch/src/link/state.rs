//! Leases and write-back over the link: each question and each part on a stream of its own, in the class *state*.
//!
//! A task for each volume moves its line and carries what that wants to be said. They take turns, in the order in which they come, so that a desktop with much to
//! send keeps no other waiting for longer than a part takes. What is broken off is begun again by the line, from its rows.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use dedup::DesktopId;
use dedup_protocol::state::{Generation, Head};
use dedup_protocol::wire::{FRAME_BYTES_MAX, MINOR_STATE, Message};
use dedup_transport::link::{Class, FrameRecv, FrameSend, Link, LinkError};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::Instrument;

use super::{ConnectionEnd, began};
use crate::server::Branch;
use crate::writeback::line::LineError;
use crate::writeback::lines::Lines;

/// Questions and parts under way at once: each part is up to 7 MB in memory here, and two keep a line busy that answers late.
const EXCHANGES_MAX: usize = 4;
/// How often is looked for volumes that are new.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often a line is moved without a reason: a segment is sealed so much later than it could be at most.
const TICK_EVERY: Duration = Duration::from_secs(5);
/// After what came to nothing.
const RETRY: Duration = Duration::from_secs(5);
/// How long an answer may take. Behind the last part of a first segment the datacenter builds a whole manifest.
const ANSWER_MAX: Duration = Duration::from_secs(300);

/// Drives the lines of all volumes until the connection ends.
pub async fn run(branch: &Arc<Branch>, link: &Link) -> Result<Infallible, ConnectionEnd> {
    if branch.link.minor() < MINOR_STATE {
        tracing::info!(
            "this datacenter knows no leases: what desktops write is kept at this branch only"
        );
        return std::future::pending().await;
    }
    let turns = Arc::new(Semaphore::new(EXCHANGES_MAX));
    let mut tasks: JoinSet<(DesktopId, Result<(), ConnectionEnd>)> = JoinSet::new();
    let mut driven = HashSet::new();
    loop {
        let worker = Arc::clone(branch);
        let volumes = tokio::task::spawn_blocking(move || worker.desktops.volume_ids()).await?;
        for volume in volumes {
            if driven.insert(volume) {
                let (branch, link, turns) = (Arc::clone(branch), link.clone(), Arc::clone(&turns));
                let span = tracing::info_span!("volume", %volume);
                let drives = async move { (volume, drive(&branch, &link, volume, &turns).await) };
                tasks.spawn(drives.instrument(span));
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            Some(ended) = tasks.join_next() => {
                let (volume, ended) = ended?;
                ended?;
                // It is no more. Another desktop of that name has another id.
                driven.remove(&volume);
            }
        }
    }
}

/// Works on a line on the blocking pool.
async fn with<T: Send + 'static>(
    branch: &Arc<Branch>,
    volume: DesktopId,
    work: impl FnOnce(&Branch, &Lines) -> Result<T, LineError> + Send + 'static,
) -> Result<Result<T, LineError>, ConnectionEnd> {
    let worker = Arc::clone(branch);
    let span = tracing::Span::current();
    let done = tokio::task::spawn_blocking(move || {
        let _span = span.entered();
        let branch: &Branch = &worker;
        let result = work(branch, branch.desktops.lines());
        branch.desktops.tend_line(volume);
        result
    });
    Ok(done.await?)
}

/// Drives one volume's line, until the volume is no more.
async fn drive(
    branch: &Arc<Branch>,
    link: &Link,
    volume: DesktopId,
    turns: &Semaphore,
) -> Result<(), ConnectionEnd> {
    let mut told = String::new();
    let mut first = true;
    let mut said: Option<Message> = None;
    let mut hurries = branch.desktops.lines().hurries();
    loop {
        hurries.mark_unchanged();
        let begins = std::mem::take(&mut first);
        let next = with(branch, volume, move |branch, lines| {
            if !branch.desktops.has_volume(volume) {
                return Ok(None);
            }
            branch.desktops.lend_overlay(volume);
            lines.with(volume, |line, now| {
                if begins {
                    line.linked(now)?;
                }
                line.tick(now)?;
                let message = line.next_message();
                // What is to be said comes first: a lease that runs out, perhaps.
                let awaited = line.awaited().filter(|_| message.is_none());
                Ok(Some((message, awaited)))
            })
        })
        .await?;
        let (message, awaited) = match next {
            Ok(None) => return Ok(()),
            Ok(Some(next)) => next,
            Err(error) => {
                tell(volume, &error, &mut told);
                (None, None)
            }
        };
        if let Some(awaited) = awaited {
            if begin_behind(branch, link, volume, awaited, &mut told).await? {
                told.clear();
            } else {
                tokio::time::sleep(RETRY).await;
            }
            continue;
        }
        let Some(message) = message else {
            let _ = tokio::time::timeout(TICK_EVERY, hurries.changed()).await;
            continue;
        };
        // What was answered by nothing that leads on is not said again at once.
        if said.as_ref() == Some(&message) {
            tokio::time::sleep(RETRY).await;
        }
        let turn = turns
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let went = exchange(branch, link, volume, &message, &mut told).await?;
        drop(turn);
        said = Some(message);
        if went {
            told.clear();
        } else {
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Brings here what a generation goes on behind, and tells the line. False: it is tried again later.
async fn begin_behind(
    branch: &Arc<Branch>,
    link: &Link,
    volume: DesktopId,
    awaited: (Generation, Head),
    told: &mut String,
) -> Result<bool, ConnectionEnd> {
    if !began::bring(branch, link, volume, awaited).await? {
        return Ok(false);
    }
    let generation = awaited.0;
    let begins = with(branch, volume, move |_, lines| {
        lines.with(volume, |line, now| line.begin_behind(generation, now))
    });
    match begins.await? {
        // Where it is not waited for any more, something else is to be done.
        Ok(_) => Ok(true),
        Err(error) => {
            tell(volume, &error, told);
            Ok(false)
        }
    }
}

/// The same trouble is told once.
fn tell(volume: DesktopId, error: &dyn std::error::Error, told: &mut String) {
    let line = crate::desktop::error_line(error);
    if line != *told {
        tracing::warn!(%volume, error = line, "write-back stands still");
        *told = line;
    }
}

/// Sends a message and hears what comes. False: it came to nothing, and is tried again later.
async fn exchange(
    branch: &Arc<Branch>,
    link: &Link,
    volume: DesktopId,
    message: &Message,
    told: &mut String,
) -> Result<bool, ConnectionEnd> {
    let (mut send, mut recv) = link.open(Class::State).await?;
    match converse(branch, volume, message, (&mut send, &mut recv), told).await {
        // The other end gave up this stream, and no more.
        Err(ConnectionEnd::Link(LinkError::StreamCancelled | LinkError::StreamClosed)) => Ok(false),
        Ok(true) => Ok(true),
        other => {
            send.reset();
            recv.stop();
            other
        }
    }
}

async fn converse(
    branch: &Arc<Branch>,
    volume: DesktopId,
    message: &Message,
    (send, recv): (&mut FrameSend, &mut FrameRecv),
    told: &mut String,
) -> Result<bool, ConnectionEnd> {
    send.send(&message.encode()).await?;
    // Only a part may be followed by something.
    let mut is_open = matches!(message, Message::OfferPart(_));
    if !is_open {
        send.finish()?;
    }
    loop {
        let Ok(frame) = tokio::time::timeout(ANSWER_MAX, recv.recv(FRAME_BYTES_MAX)).await else {
            tracing::warn!(%volume, message = message.name(), "no answer");
            return Ok(false);
        };
        let Some(frame) = frame? else {
            return Ok(true);
        };
        let answer = Message::decode(&frame)?;
        if let Message::Refuse(refuse) = answer {
            let line = format!("{:?}: {}", refuse.code, refuse.message);
            if line != *told {
                tracing::warn!(%volume, message = message.name(), reason = line, "refused");
                *told = line;
            }
            return Ok(false);
        }
        let heard = with(branch, volume, move |_, lines| {
            lines.with(volume, |line, now| line.hear(answer, now))
        });
        let replies = match heard.await? {
            Ok(replies) => replies,
            Err(error) => {
                tell(volume, &error, told);
                return Ok(false);
            }
        };
        for reply in replies {
            send.send(&reply.encode()).await?;
        }
        if is_open {
            // Chunks are asked for once, by the first answer.
            send.finish()?;
            is_open = false;
        }
    }
}
