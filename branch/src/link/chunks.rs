//! Fetching chunks: requests from the fetcher's queue onto streams, batches into the cache.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dedup_protocol::client::ChunkExchange;
use dedup_protocol::wire::{FRAME_BYTES_MAX, GetChunks, Message, RefuseCode, Urgency};
use dedup_transport::link::{Class, Link};
use tokio::task::JoinSet;

use super::{ConnectionEnd, seconds_ahead};
use crate::fetch::queue::Request;
use crate::server::Branch;

/// What a path is taken to carry before it was measured, in plain bytes a second: 20 Mbit/s, compressed 2.5 : 1.
const RATE_FIRST: f64 = 6e6;
/// How much of each new measurement goes into the rate.
const RATE_GAIN: f64 = 0.3;

enum Outcome {
    Whole,
    Refused(String),
}

/// A request that must go back into the queue if its task is dropped: the link was lost, or the server stops.
struct Flight {
    branch: Arc<Branch>,
    request: Option<Request>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            self.branch.fetcher.ended(request);
        }
    }
}

/// Keeps requests in flight as the queue allows, until the connection ends.
pub async fn run(branch: &Arc<Branch>, link: &Link) -> Result<Infallible, ConnectionEnd> {
    let mut flights: JoinSet<Result<(u64, Duration), ConnectionEnd>> = JoinSet::new();
    let mut rate = Rate::new();
    loop {
        let window = rate.bytes_per_s * seconds_ahead(&link.stats());
        while let Some(request) = branch.fetcher.next_request(window as u64) {
            let flight = Flight {
                branch: Arc::clone(branch),
                request: Some(request),
            };
            flights.spawn(fly(link.clone(), flight));
        }
        tokio::select! {
            () = branch.fetcher.work_arrived() => {}
            Some(landed) = flights.join_next() => {
                let (bytes, _) = landed??;
                rate.landed(bytes);
            }
        }
    }
}

/// Plain bytes a second that arrive while something is in flight.
struct Rate {
    bytes_per_s: f64,
    since: Instant,
    bytes: u64,
}

impl Rate {
    fn new() -> Self {
        Self {
            bytes_per_s: RATE_FIRST,
            since: Instant::now(),
            bytes: 0,
        }
    }

    fn landed(&mut self, bytes: u64) {
        self.bytes += bytes;
        let took = self.since.elapsed().as_secs_f64();
        if took >= 1.0 {
            let now = self.bytes as f64 / took;
            // Idle seconds say nothing about the path, so the rate falls slowly and rises fast.
            let gain = if now > self.bytes_per_s {
                1.0
            } else {
                RATE_GAIN
            };
            self.bytes_per_s += (now - self.bytes_per_s) * gain;
            self.since = Instant::now();
            self.bytes = 0;
        }
    }
}

async fn fly(link: Link, mut flight: Flight) -> Result<(u64, Duration), ConnectionEnd> {
    let begun = Instant::now();
    let request = flight
        .request
        .as_ref()
        .expect("a flight begins with its request");
    let bytes = request
        .expected
        .iter()
        .map(|(_, len)| u64::from(*len))
        .sum();
    let outcome = fetch(&link, &flight.branch, request).await?;
    let request = flight.request.take().expect("only this function takes it");
    match outcome {
        Outcome::Whole => {
            let counters = &flight.branch.fetcher.counters;
            match request.urgency {
                // Measured where guests wait.
                Urgency::Demand => {}
                Urgency::Boot => counters.boot_fetch.record(begun.elapsed()),
                Urgency::Fill => counters.fill_fetch.record(begun.elapsed()),
            }
            flight.branch.fetcher.ended(request);
        }
        Outcome::Refused(reason) => flight.branch.fetcher.refused(request, &reason),
    }
    Ok((bytes, begun.elapsed()))
}

async fn fetch(
    link: &Link,
    branch: &Arc<Branch>,
    request: &Request,
) -> Result<Outcome, ConnectionEnd> {
    let class = match request.urgency {
        Urgency::Demand => Class::Demand,
        Urgency::Boot => Class::Boot,
        Urgency::Fill => Class::Fill,
    };
    let message = Message::GetChunks(GetChunks {
        version: request.version,
        tree: request.tree,
        urgency: request.urgency,
        runs: request.runs.clone(),
    });
    let mut recv = if class == Class::Demand {
        link.request(class, &message.encode()).await?
    } else {
        let (mut send, recv) = link.open(class).await?;
        send.send(&message.encode()).await?;
        send.finish()?;
        recv
    };
    let key = branch.identity.id_key.clone();
    let mut exchange = ChunkExchange::new(key, request.expected.clone());
    let urgency = request.urgency;
    while exchange.remaining() > 0 {
        let Some(frame) = recv.recv(FRAME_BYTES_MAX).await? else {
            break;
        };
        let batch = match Message::decode(&frame)? {
            Message::Batch(batch) => batch,
            Message::Unreadable(part) => {
                let ids = exchange.unreadable(part.count)?;
                tracing::warn!(count = ids.len(), reason = part.message, "chunks refused");
                branch.fetcher.unreadable(&ids, &part.message);
                continue;
            }
            Message::Refuse(refuse) if refuse.code == RefuseCode::Busy => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                return Ok(Outcome::Whole);
            }
            Message::Refuse(refuse) => {
                tracing::warn!(code = ?refuse.code, reason = refuse.message, "chunks refused");
                return Ok(Outcome::Refused(refuse.message));
            }
            other => {
                return Err(dedup_protocol::wire::WireError::Unexpected {
                    got: other.name(),
                    expected: "Batch",
                }
                .into());
            }
        };
        // Unpacking, hashing and the disk are not for the link's threads; at most one batch a request is in work.
        let worker = Arc::clone(branch);
        exchange = tokio::task::spawn_blocking(move || {
            let chunks = exchange.batch(&batch)?;
            let cached = worker.fetcher.deliver(urgency, &chunks);
            worker.fetcher.log_uncached(&cached);
            Ok::<_, ConnectionEnd>(exchange)
        })
        .await??;
    }
    Ok(Outcome::Whole)
}
