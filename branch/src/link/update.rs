//! Filling a version by its update: batches that the datacenter encoded against a version that is here.
//!
//! ```text
//!   head ──► for each batch, some at a time: ask ──► wait for the batches it was made with ──► decode, cache
//!    ▲                                        │
//!    └───────── busy, or made anew ───────────┘          anything else, and at the end: plain fill of what is missing
//! ```
//!
//! Invariant: whatever becomes of an update, plain fill of the version follows it, so that the version becomes whole as if there were no
//! updates. Batches depart by the rules of fill ([`crate::fetch::queue`]); nothing waits for one but this task.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dedup::VersionId;
use dedup::update::{UpdateBatch, UpdateRefused};
use dedup_protocol::client::ChunkExchange;
use dedup_protocol::records::Tree;
use dedup_protocol::update::{UpdateExchange, UpdateShape};
use dedup_protocol::wire::{
    BatchRange, FRAME_BYTES_MAX, GetChunks, GetUpdate, Message, RUNS_MAX, RefuseCode, Run,
    UpdatePart, Urgency,
};
use dedup_transport::link::{Class, Link};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::{ConnectionEnd, seconds_ahead};
use crate::cache::CacheError;
use crate::desktop::error_line;
use crate::fetch::update::{Choice, Following, UpdateTicket, parent_of};
use crate::server::Branch;

/// Batches in work at once, from being asked for to being cached: those in flight, and as many whose bytes wait to be decoded.
const BATCHES_MAX: usize = 6;
/// Batches being decoded at once: each takes up to 32 MiB.
const DECODING_MAX: usize = 2;
/// How often it is looked whether fill may depart.
const DEPART_POLL: Duration = Duration::from_millis(50);
/// How long a branch waits for the head of an update before it fetches plain: a large one is planned within a minute or two, but
/// others may be made before it.
const HEAD_WAIT_MAX: Duration = Duration::from_secs(600);
/// Pause after the datacenter was busy.
const BUSY_PAUSE: Duration = Duration::from_secs(2);
/// Times in a row that an update is begun anew without a batch of it having come.
const BARREN_ROUNDS_MAX: usize = 30;
/// Batches that may come in vain, for want of a chunk they were made with, before the rest is fetched plain: each costs its bytes twice.
const SPOILT_MAX: usize = 3;
/// Plain bytes that fill sends for each packed byte, about: what the bounds of fill are written in.
const PLAIN_PER_PACKED: f64 = 2.5;
/// Chunks in one plain request for what a batch lacks: all of a batch of chunks of the usual size, and a request's limit for small ones.
const PLAIN_CHUNKS_MAX: usize = if RUNS_MAX < 1024 { RUNS_MAX } else { 1024 };
/// What a path is taken to carry before it was measured, in bytes a second: 20 Mbit/s.
const RATE_FIRST: f64 = 2.5e6;

/// A version to be filled by update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub version: VersionId,
    /// The version that is here.
    pub parent: VersionId,
}

/// How a version's update fared since the process started. It outlives connections, and so does the wait for the datacenter to make it.
#[derive(Debug, Clone, Copy)]
pub enum Attempt {
    /// Wanted since then.
    Since(Instant),
    /// Followed to whatever end: what the version still lacks comes plain.
    Over,
}

/// The version that an update to `version` should start from, unless its update was followed to an end before.
pub async fn parent_for(
    branch: &Arc<Branch>,
    version: VersionId,
) -> Result<Option<VersionId>, ConnectionEnd> {
    if is_over(branch, version) {
        return Ok(None);
    }
    let worker = Arc::clone(branch);
    let look = move || parent_of(&worker.versions, worker.fetcher.cache(), version);
    Ok(tokio::task::spawn_blocking(look).await??)
}

fn attempts(branch: &Branch) -> std::sync::MutexGuard<'_, HashMap<VersionId, Attempt>> {
    let attempts = branch.link.update_attempts.lock();
    attempts.expect("no panic under this lock")
}

fn is_over(branch: &Branch, version: VersionId) -> bool {
    matches!(attempts(branch).get(&version), Some(Attempt::Over))
}

/// Follows the updates that are wanted, one after the other, until the connection ends.
pub async fn run(
    branch: &Arc<Branch>,
    link: &Link,
    mut wanted: watch::Receiver<Vec<Wanted>>,
) -> Result<Infallible, ConnectionEnd> {
    loop {
        let next = {
            let wanted = wanted.borrow_and_update();
            let mut untried = wanted.iter().filter(|w| !is_over(branch, w.version));
            untried.next().copied()
        };
        let Some(next) = next else {
            if wanted.changed().await.is_err() {
                // The task that says what is wanted has ended, and with it the connection.
                std::future::pending::<()>().await;
            }
            continue;
        };
        let still_wanted = |all: &Vec<Wanted>| all.iter().any(|w| w.version == next.version);
        tokio::select! {
            ended = follow(branch, link, next) => {
                ended?;
                attempts(branch).insert(next.version, Attempt::Over);
                super::versions::fill(branch, next.version)?;
                branch.link.report_now.notify_one();
            }
            // What was asked for goes on to no end: its tasks are dropped.
            _ = wanted.wait_for(|all| !still_wanted(all)) => {
                tracing::info!(version = %next.version, "update is not wanted any more");
            }
        }
    }
}

/// What the tasks of an update share.
struct Work {
    branch: Arc<Branch>,
    following: Following,
    shape: UpdateShape,
    decoding: Semaphore,
    /// Batches that were asked for and are neither cached nor given up.
    flying: watch::Sender<BTreeSet<u32>>,
}

/// How one batch ended.
enum Landed {
    /// Its chunks are cached.
    Here,
    /// It came in vain: a chunk it was made with is not here. Its own chunks came plain.
    Spoilt,
    /// The datacenter asks to come again.
    Again,
    /// There is no use in going on.
    GiveUp(String),
}

/// How a round of batches ended.
enum Round {
    Whole,
    Again { came: usize },
    GiveUp(String),
}

/// Brings as much of an update here as there is.
async fn follow(branch: &Arc<Branch>, link: &Link, wanted: Wanted) -> Result<(), ConnectionEnd> {
    let Wanted { version, parent } = wanted;
    let _held = branch.versions.hold(parent);
    // It was chosen when the assignment came; others were followed since, and may have pushed it out of the cache.
    if parent_for(branch, version).await? != Some(parent) {
        return Ok(());
    }
    let begun = Instant::now();
    let attempt = *attempts(branch)
        .entry(version)
        .or_insert(Attempt::Since(begun));
    let wait_began = match attempt {
        Attempt::Since(at) => at,
        Attempt::Over => begun,
    };
    let mut barren = 0;
    loop {
        let Some(following) = number(branch, wanted).await? else {
            return Ok(());
        };
        let shape = match head(link, &following, wait_began).await? {
            Ok(shape) => shape,
            Err(reason) => {
                tracing::info!(%version, %parent, reason, "no update; the version is fetched plain");
                return Ok(());
            }
        };
        // Kernel and initrd are on the disk as well: what they bring need not come again.
        while branch.fetcher.is_filling_beside(version, Tree::Disk) {
            tokio::time::sleep(DEPART_POLL).await;
        }
        let cache = branch.fetcher.cache();
        let choices = following.choose(&shape, |id| cache.contains(id));
        let work = Arc::new(Work {
            branch: Arc::clone(branch),
            following,
            shape,
            decoding: Semaphore::new(DECODING_MAX),
            flying: watch::Sender::default(),
        });
        let mut pace = Pace::new(link);
        if !complete_plain(&work, link, &choices, &mut pace).await? {
            tracing::info!(%version, %parent, "update given up for want of room; the rest of the version is fetched plain");
            return Ok(());
        }
        match batches(&work, link, &choices, &mut pace).await? {
            Round::Whole => {
                tracing::info!(%version, %parent, batches = choices.len(), took = ?begun.elapsed(), "updated");
                return Ok(());
            }
            Round::GiveUp(reason) => {
                tracing::warn!(%version, %parent, reason, "update given up; the rest of the version is fetched plain");
                return Ok(());
            }
            Round::Again { came } => {
                barren = if came > 0 { 0 } else { barren + 1 };
                if barren >= BARREN_ROUNDS_MAX {
                    tracing::warn!(%version, %parent, "the update does not come; the rest of the version is fetched plain");
                    return Ok(());
                }
                tokio::time::sleep(BUSY_PAUSE).await;
            }
        }
    }
}

/// Numbers both disks' chunks. `None`: one of them is not here.
async fn number(branch: &Arc<Branch>, wanted: Wanted) -> Result<Option<Following>, ConnectionEnd> {
    let worker = Arc::clone(branch);
    let numbered = tokio::task::spawn_blocking(move || {
        let parent = worker.versions.tree(wanted.parent, Tree::Disk)?;
        let version = worker.versions.tree(wanted.version, Tree::Disk)?;
        let (Some(parent), Some(version)) = (parent, version) else {
            return Ok(None);
        };
        Ok::<_, crate::catalog::CatalogError>(Following::new(&parent, version).ok())
    });
    Ok(numbered.await??)
}

/// The update's shape, waiting for it to be planned; or why there is none.
async fn head(
    link: &Link,
    following: &Following,
    wait_began: Instant,
) -> Result<Result<UpdateShape, String>, ConnectionEnd> {
    let request = Message::GetUpdate(GetUpdate {
        version: following.tree.version,
        parent: following.parent,
        head: true,
        batches: Vec::new(),
    });
    loop {
        match ask(link, &request).await? {
            Ok(Message::UpdateHead(head)) => {
                let shape = UpdateShape::new(&head, &following.numbering);
                return Ok(shape.map_err(|e| error_line(&e)));
            }
            Ok(Message::Refuse(refuse)) if refuse.code == RefuseCode::Busy => {
                if wait_began.elapsed() > HEAD_WAIT_MAX {
                    return Ok(Err("it is not ready yet".into()));
                }
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            other => return Ok(Err(no_answer(other))),
        }
    }
}

/// One request and the first frame of its answer. What cannot be understood ends the update, not the link: plain fill needs that.
async fn ask(link: &Link, request: &Message) -> Result<Result<Message, String>, ConnectionEnd> {
    let (mut send, mut recv) = link.open(Class::Fill).await?;
    send.send(&request.encode()).await?;
    send.finish()?;
    let Some(frame) = recv.recv(FRAME_BYTES_MAX).await? else {
        return Ok(Err("an empty answer".into()));
    };
    Ok(Message::decode(&frame).map_err(|e| error_line(&e)))
}

/// Why an answer is not the one that was asked for.
fn no_answer(answer: Result<Message, String>) -> String {
    match answer {
        Ok(Message::Refuse(refuse)) => refuse.message,
        Ok(other) => format!("{} came", other.name()),
        Err(reason) => reason,
    }
}

/// Asks for the chosen batches, some at a time.
async fn batches(
    work: &Arc<Work>,
    link: &Link,
    choices: &[Choice],
    pace: &mut Pace,
) -> Result<Round, ConnectionEnd> {
    let chosen = (0u32..).zip(choices).filter(|(_, c)| **c == Choice::Update);
    let mut todo: VecDeque<u32> = chosen.map(|(number, _)| number).collect();
    let mut tasks: JoinSet<Result<Landed, ConnectionEnd>> = JoinSet::new();
    let (mut came, mut spoilt, mut ends_with) = (0, 0, None);
    loop {
        while ends_with.is_none() && tasks.len() < BATCHES_MAX {
            let Some(number) = todo.front().copied() else {
                break;
            };
            let Some(ticket) = departs(work, link, number, pace) else {
                break;
            };
            todo.pop_front();
            let flying = Flying::new(work, number);
            tasks.spawn(fly(Arc::clone(work), link.clone(), number, ticket, flying));
        }
        if tasks.is_empty() && (todo.is_empty() || ends_with.is_some()) {
            return Ok(ends_with.unwrap_or(Round::Whole));
        }
        tokio::select! {
            Some(landed) = tasks.join_next() => match landed?? {
                Landed::Here => came += 1,
                Landed::Spoilt => {
                    spoilt += 1;
                    if spoilt >= SPOILT_MAX {
                        let reason = format!("{spoilt} batches were made with chunks that are not here");
                        ends_with = Some(Round::GiveUp(reason));
                    }
                }
                Landed::Again => ends_with = ends_with.or(Some(Round::Again { came: 0 })),
                Landed::GiveUp(reason) => ends_with = Some(Round::GiveUp(reason)),
            },
            () = tokio::time::sleep(DEPART_POLL) => {}
        }
        if let Some(Round::Again { came: so_far }) = &mut ends_with {
            *so_far = came;
        }
    }
}

fn departs(work: &Work, link: &Link, number: u32, pace: &mut Pace) -> Option<UpdateTicket> {
    let bytes = match work.shape.packed_bytes(number) {
        Some(packed) => (f64::from(packed) * PLAIN_PER_PACKED) as u64,
        None => work.following.plain_bytes(&work.shape, number),
    };
    let window = pace.window(link);
    work.branch.fetcher.update_departs(window, bytes)
}

/// A batch that others may wait for; it lands however its task ends.
struct Flying {
    work: Arc<Work>,
    number: u32,
}

impl Flying {
    fn new(work: &Arc<Work>, number: u32) -> Self {
        work.flying.send_modify(|flying| {
            flying.insert(number);
        });
        Self {
            work: Arc::clone(work),
            number,
        }
    }
}

impl Drop for Flying {
    fn drop(&mut self) {
        self.work.flying.send_modify(|flying| {
            flying.remove(&self.number);
        });
    }
}

/// Brings one batch here.
async fn fly(
    work: Arc<Work>,
    link: Link,
    number: u32,
    ticket: UpdateTicket,
    flying: Flying,
) -> Result<Landed, ConnectionEnd> {
    let ranges = vec![BatchRange {
        first: number,
        count: 1,
    }];
    let mut exchange = UpdateExchange::new(&work.shape, &ranges);
    let request = Message::GetUpdate(GetUpdate {
        version: work.following.tree.version,
        parent: work.following.parent,
        head: false,
        batches: ranges,
    });
    let part = match ask(&link, &request).await? {
        Ok(Message::UpdatePart(part)) => part,
        Ok(Message::Refuse(refuse)) if refuse.code == RefuseCode::Busy => {
            return Ok(Landed::Again);
        }
        other => return Ok(Landed::GiveUp(no_answer(other))),
    };
    drop(ticket);
    let packed_bytes = part.batch.len() as u64;
    let batch = match take(&mut exchange, part) {
        Ok(batch) => batch,
        // It may have been made anew since the head was told; if it is a lie, the rounds are bounded.
        Err(reason) => {
            tracing::warn!(reason, "a batch is not what was asked for");
            return Ok(Landed::Again);
        }
    };
    let made_with = work.following.made_with(&work.shape, &batch);
    let settled = |flying: &BTreeSet<u32>| made_with.iter().all(|n| !flying.contains(n));
    // Only batches before it are waited for, so that two never wait for each other.
    let _ = work.flying.subscribe().wait_for(settled).await;
    let permit = work.decoding.acquire().await;
    let worker = Arc::clone(&work);
    let landed = tokio::task::spawn_blocking(move || land(&worker, &batch, packed_bytes)).await;
    drop(permit);
    let landed = match landed {
        Ok(Ok(())) => Landed::Here,
        Ok(Err(LandError::Batch(reason @ UpdateRefused::MissingPrefix(_)))) => {
            tracing::info!(
                version = %work.following.tree.version, reason = error_line(&reason), "a batch comes plain"
            );
            // At once: others may be made with its chunks, and wait for it.
            if fetch_plain(&work, &link, work.shape.chunks(number)).await? {
                Landed::Spoilt
            } else {
                Landed::GiveUp("chunks could not be cached".into())
            }
        }
        Ok(Err(error)) => Landed::GiveUp(error_line(&error)),
        // A defect of the decoder must not end the link as well.
        Err(defect) => Landed::GiveUp(error_line(&defect)),
    };
    drop(flying);
    Ok(landed)
}

fn take(exchange: &mut UpdateExchange, part: UpdatePart) -> Result<UpdateBatch, String> {
    let taken = exchange.part(part).map_err(|e| error_line(&e))?;
    Ok(taken.1)
}

/// Why a batch that came could not be used.
#[derive(Debug, thiserror::Error)]
enum LandError {
    #[error(transparent)]
    Batch(#[from] UpdateRefused),
    #[error("caching an update")]
    Cache(#[from] CacheError),
}

/// Decodes a batch and caches its chunks. Blocks.
fn land(work: &Work, batch: &UpdateBatch, packed_bytes: u64) -> Result<(), LandError> {
    let fetcher = &work.branch.fetcher;
    let key = &work.branch.identity.id_key;
    let chunks = work.following.decode(batch, key, fetcher.cache())?;
    Ok(fetcher.deliver_update(chunks, packed_bytes)?)
}

/// Fetches plain what mostly resident batches lack, before anything that may be made with it. False: there is no room for it.
async fn complete_plain(
    work: &Arc<Work>,
    link: &Link,
    choices: &[Choice],
    pace: &mut Pace,
) -> Result<bool, ConnectionEnd> {
    for (number, _) in (0u32..).zip(choices).filter(|(_, c)| **c == Choice::Plain) {
        let bytes = work.following.plain_bytes(&work.shape, number);
        let ticket = loop {
            let window = pace.window(link);
            match work.branch.fetcher.update_departs(window, bytes) {
                Some(ticket) => break ticket,
                None => tokio::time::sleep(DEPART_POLL).await,
            }
        };
        let fetched = fetch_plain(work, link, work.shape.chunks(number)).await?;
        drop(ticket);
        if !fetched {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Fetches plain which of these new chunks are not here. What does not come is left to plain fill. False: what came found no room.
async fn fetch_plain(
    work: &Arc<Work>,
    link: &Link,
    chunks: Range<u32>,
) -> Result<bool, ConnectionEnd> {
    let cache = work.branch.fetcher.cache();
    let named = chunks.clone().zip(work.following.new_chunks(chunks));
    let missing: Vec<u32> = named
        .filter(|(_, (id, _))| !cache.contains(id))
        .map(|(index, _)| index)
        .collect();
    for some in missing.chunks(PLAIN_CHUNKS_MAX) {
        if !plain_request(work, link, some).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn plain_request(
    work: &Arc<Work>,
    link: &Link,
    indexes: &[u32],
) -> Result<bool, ConnectionEnd> {
    let tree = &work.following.tree;
    let places = indexes
        .iter()
        .map(|i| tree.map.chunk(work.following.place_of(*i)));
    let runs = places.clone().map(|place| Run {
        leaf: place.leaf,
        first: place.extent,
        count: 1,
    });
    let request = Message::GetChunks(GetChunks {
        version: tree.version,
        tree: Tree::Disk,
        urgency: Urgency::Fill,
        runs: runs.collect(),
    });
    let expected = places.map(|place| (place.id, place.len)).collect();
    let key = work.branch.identity.id_key.clone();
    let mut exchange = ChunkExchange::new(key, expected);
    let (mut send, mut recv) = link.open(Class::Fill).await?;
    send.send(&request.encode()).await?;
    send.finish()?;
    while exchange.remaining() > 0 {
        let Some(frame) = recv.recv(FRAME_BYTES_MAX).await? else {
            break;
        };
        match Message::decode(&frame)? {
            Message::Batch(batch) => {
                let worker = Arc::clone(&work.branch);
                let (goes_on, cached) = tokio::task::spawn_blocking(move || {
                    let chunks = exchange.batch(&batch)?;
                    let cached = worker.fetcher.deliver(Urgency::Fill, &chunks);
                    worker.fetcher.log_uncached(&cached);
                    Ok::<_, ConnectionEnd>((exchange, cached.is_ok()))
                })
                .await??;
                if !cached {
                    return Ok(false);
                }
                exchange = goes_on;
            }
            Message::Unreadable(part) => {
                exchange.unreadable(part.count)?;
            }
            _ => break,
        }
    }
    Ok(true)
}

/// How fast the link brings bytes, and so how much may be on its way.
struct Pace {
    since: Instant,
    received_bytes: u64,
    bytes_per_s: f64,
}

impl Pace {
    fn new(link: &Link) -> Self {
        Self {
            since: Instant::now(),
            received_bytes: link.stats().received_bytes,
            bytes_per_s: RATE_FIRST,
        }
    }

    /// What is asked for ahead, in plain bytes.
    fn window(&mut self, link: &Link) -> u64 {
        let stats = link.stats();
        let took = self.since.elapsed().as_secs_f64();
        if took >= 1.0 {
            let now = stats.received_bytes.saturating_sub(self.received_bytes) as f64 / took;
            // Idle seconds say nothing about the path: the rate falls slowly and rises fast.
            self.bytes_per_s = now.max(self.bytes_per_s * 0.9);
            self.since = Instant::now();
            self.received_bytes = stats.received_bytes;
        }
        let held = self.bytes_per_s * seconds_ahead(&stats);
        (held * PLAIN_PER_PACKED) as u64
    }
}
