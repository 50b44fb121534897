//! Repair of what a guest waits for: redundancy in QUIC datagrams beside the stream, so that a lost packet costs no round trip.
//!
//! On a path that loses one packet in a hundred, a demand of six packets meets a loss 6 % of the time, and QUIC then takes one to two
//! round trips more. So the answering end sends, beside a demand answer's stream, repair symbols of it ([`code`]); the asking
//! end sends its request a second time. Each repairs the bytes of a *stream*, at their offsets: what a frame means does not matter
//! here, the stream goes on as if nothing had been added, and its own retransmissions remain the last resort.
//!
//! Invariants: no repair without measured loss, and never more than a tenth of what the path carries ([`plan::Budget`]); repairs for
//! streams that nobody reads are dropped, but for those that the peer has just opened, of which [`EARLY_MAX`] datagrams are kept; a
//! repaired byte is as trustworthy as the peer's datagram, which is as its stream: what they carry is verified by whoever reads it.

mod assembly;
mod code;
mod datagram;
mod plan;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use quinn::Connection;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub(super) use assembly::Assembly;
use datagram::{Body, PIECE_HEAD_BYTES, Repair};
use plan::{Budget, Layout, LossMeter};

/// Datagrams kept for one stream until its reader takes them: the repair of one large answer.
const SLOT_MAX: usize = 64;
/// Datagrams kept for streams that have not been accepted yet; the oldest give way. With the largest datagram 370 KB a link.
const EARLY_MAX: usize = 256;
/// Datagrams that are no repair, kept for [`super::Link::recv_datagram`].
const OTHERS_MAX: usize = 256;

/// How long after the first copy the second one leaves: packets that leave together are lost together, in the burst of a router's
/// queue or of a radio. A 64th of a round trip, within these.
const SPACING_MIN: Duration = Duration::from_millis(1);
const SPACING_MAX: Duration = Duration::from_millis(5);

/// The repair of one link.
pub(super) struct Repairs {
    connection: Connection,
    began: Instant,
    state: Arc<Mutex<State>>,
    others: tokio::sync::Mutex<mpsc::Receiver<Bytes>>,
    receiving: AbortHandle,
}

#[derive(Default)]
struct State {
    /// Readers of streams that may be repaired.
    readers: HashMap<u64, mpsc::Sender<Repair>>,
    /// Repairs for streams that the peer opened and nobody has accepted yet.
    early: VecDeque<Repair>,
    /// Streams of the peer below this number have been accepted.
    accepted: u64,
    meter: LossMeter,
    budget: Budget,
    received: u64,
}

/// Repairs on their way to one reader.
pub(super) struct Slot {
    stream: u64,
    state: Arc<Mutex<State>>,
    repairs: mpsc::Receiver<Repair>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no panic under this lock")
}

impl Repairs {
    /// Begins to receive on `connection`. Must be called within a tokio runtime.
    pub(super) fn new(connection: Connection) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let (others_in, others) = mpsc::channel(OTHERS_MAX);
        let began = Instant::now();
        let receiving = tokio::spawn(receive(
            connection.clone(),
            Arc::clone(&state),
            began,
            others_in,
        ))
        .abort_handle();
        Self {
            connection,
            began,
            state,
            others: tokio::sync::Mutex::new(others),
            receiving,
        }
    }

    /// The next datagram that is no repair; `None` when the link has ended.
    pub(super) async fn other(&self) -> Option<Bytes> {
        self.others.lock().await.recv().await
    }

    /// Repairs of a stream that this end opened.
    pub(super) fn opened(&self, stream: u64) -> Slot {
        self.slot(stream, &mut lock(&self.state))
    }

    /// Repairs of a stream that the peer opened, with those that have come already.
    pub(super) fn accepted(&self, stream: u64) -> Slot {
        let mut state = lock(&self.state);
        state.accepted = state.accepted.max(stream + 1);
        let slot = self.slot(stream, &mut state);
        let early = std::mem::take(&mut state.early);
        for repair in early {
            if repair.stream == stream {
                deliver(&mut state, repair);
            } else if repair.stream >= state.accepted {
                state.early.push_back(repair);
            }
        }
        slot
    }

    fn slot(&self, stream: u64, state: &mut State) -> Slot {
        let (sender, repairs) = mpsc::channel(SLOT_MAX);
        state.readers.insert(stream, sender);
        Slot {
            stream,
            state: Arc::clone(&self.state),
            repairs,
        }
    }

    /// Repair datagrams received.
    pub(super) fn received(&self) -> u64 {
        lock(&self.state).received
    }

    /// Share of packets that are lost of late, per mille, either way; 0 below what counts. Told the packets sent and lost since the connection began.
    pub(super) fn loss_per_mille(&self, sent: u64, lost: u64) -> u16 {
        let now = self.began.elapsed();
        let mut state = lock(&self.state);
        state.meter.update(sent, lost);
        (state.meter.share(now) * 1000.0).round() as u16
    }

    /// Datagrams that protect `bytes` of a stream, for [`Self::send_later`]; none while the path loses nothing, or the budget is spent.
    pub(super) fn protect(&self, stream: u64, offset: u64, bytes: &[u8]) -> Vec<Bytes> {
        let Some(datagram_bytes) = self.connection.max_datagram_size() else {
            return Vec::new();
        };
        let now = self.began.elapsed();
        let path = self.path_bytes_per_s();
        // What it costs is asked before it is computed: a link whose budget is spent computes nothing.
        let mut guard = lock(&self.state);
        let State { meter, budget, .. } = &mut *guard;
        self.measure(meter);
        let (loss, own) = (meter.share(now), meter.own_per_mille());
        if loss == 0.0 || bytes.is_empty() {
            return Vec::new();
        }
        if PIECE_HEAD_BYTES + bytes.len() <= datagram_bytes {
            // Of a single packet a copy is as good as a symbol, and needs no decoding.
            if !budget.take(PIECE_HEAD_BYTES + bytes.len(), path, now) {
                return Vec::new();
            }
            let piece = Repair {
                loss: own,
                stream,
                offset,
                body: Body::Piece(Bytes::copy_from_slice(bytes)),
            };
            return vec![piece.encode()];
        }
        let Some(layout) = Layout::of(bytes.len(), datagram_bytes) else {
            return Vec::new();
        };
        let packets = bytes.len().div_ceil(datagram_bytes) + 1;
        let wanted = budget.afford(plan::survived(packets, loss));
        let Some(lost) = budget.take_for(wanted, |lost| layout.cost_bytes(lost), path, now) else {
            return Vec::new();
        };
        drop(guard);
        plan::symbols(stream, offset, bytes, &layout, lost, own)
            .iter()
            .map(Repair::encode)
            .collect()
    }

    fn measure(&self, meter: &mut LossMeter) {
        let path = self.connection.stats().path;
        meter.update(path.sent_packets, path.lost_packets);
    }

    fn path_bytes_per_s(&self) -> f64 {
        let path = self.connection.stats().path;
        path.cwnd as f64 / path.rtt.as_secs_f64().max(1e-3)
    }

    /// How long a copy waits behind the original.
    pub(super) fn spacing(&self) -> Duration {
        (self.connection.rtt() / 64).clamp(SPACING_MIN, SPACING_MAX)
    }

    /// Sends datagrams a little later, in the background.
    pub(super) fn send_later(&self, datagrams: Vec<Bytes>) {
        if datagrams.is_empty() {
            return;
        }
        let connection = self.connection.clone();
        let spacing = self.spacing();
        tokio::spawn(async move {
            tokio::time::sleep(spacing).await;
            for datagram in datagrams {
                // The path's packets may have become smaller, or the link may be gone: then there is nothing to repair with.
                if connection.send_datagram(datagram).is_err() {
                    return;
                }
            }
        });
    }

    /// Sends a datagram now.
    pub(super) fn send_now(&self, datagrams: Vec<Bytes>) {
        for datagram in datagrams {
            let _ = self.connection.send_datagram(datagram);
        }
    }
}

impl Drop for Repairs {
    fn drop(&mut self) {
        // It holds the connection, which closes when its last holder goes.
        self.receiving.abort();
    }
}

impl Slot {
    /// The next repair of this stream. Never returns when there is none. Cancellation safe.
    pub(super) async fn next(&mut self) -> Repair {
        match self.repairs.recv().await {
            Some(repair) => repair,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.state).readers.remove(&self.stream);
    }
}

fn deliver(state: &mut State, repair: Repair) {
    if let Some(reader) = state.readers.get(&repair.stream) {
        // A reader that does not read, or a peer that sends too many: either is as if they had been lost.
        let _ = reader.try_send(repair);
    }
}

async fn receive(
    connection: Connection,
    state: Arc<Mutex<State>>,
    began: Instant,
    others: mpsc::Sender<Bytes>,
) {
    let ours = u64::from(connection.side().is_server());
    while let Ok(datagram) = connection.read_datagram().await {
        let Some(repair) = Repair::decode(&datagram) else {
            let _ = others.try_send(datagram);
            continue;
        };
        let mut state = lock(&state);
        state.received += 1;
        state.meter.peer_says(repair.loss, began.elapsed());
        if state.readers.contains_key(&repair.stream) {
            deliver(&mut state, repair);
        } else if repair.stream >= state.accepted && repair.stream & 3 == 1 - ours {
            // A bidirectional stream of the peer's (RFC 9000 section 2.1) that nobody has accepted yet.
            if state.early.len() == EARLY_MAX {
                state.early.pop_front();
            }
            state.early.push_back(repair);
        }
    }
}
