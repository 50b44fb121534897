//! The replies of one connection on their way out, and the allowance of requests in flight.
//!
//! Any thread may add a reply; one thread at a time writes, and takes along whatever others add meanwhile, so that
//! replies leave in large system calls and nobody waits for a lock while the socket is slow. The connection's own
//! reader waits for its client; a worker never does: where the client takes nothing more, the rest is left to a
//! thread of its own, so that a slow or dead client holds up nobody else.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::exchange::Exchange;
use super::limits::{
    BYTES_IN_FLIGHT_MAX, KEPT_BYTES_MAX, KEPT_EXCHANGES_MAX, REQUESTS_IN_FLIGHT_MAX,
};
use super::socket::{Sink, Socket};

/// Slices given to one system call.
const SLICES_MAX: usize = 64;

struct State {
    queue: VecDeque<Box<Exchange>>,
    queued_bytes: usize,
    /// Some thread is writing and will look at the queue again before it stops.
    writing: bool,
    /// The client is gone: replies are dropped.
    failed: bool,
    in_flight: usize,
    bytes_in_flight: usize,
    /// Threads that wait for `room`: signalling nobody costs a system call all the same.
    waiting: usize,
    #[expect(
        clippy::vec_box,
        reason = "an exchange moves as one pointer between queue, batch and here"
    )]
    free: Vec<Box<Exchange>>,
    /// Bytes that the buffers of `free` take.
    free_bytes: usize,
}

struct Writer {
    sink: Sink,
    /// Being sent; `skip` bytes of the first one are already out.
    batch: VecDeque<Box<Exchange>>,
    skip: usize,
}

/// The sending half of a connection.
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Signalled when an exchange ends.
    room: Condvar,
    writer: Mutex<Writer>,
    /// To end the connection when sending fails; `None` in memory.
    socket: Option<Arc<Socket>>,
}

impl Outbox {
    pub(crate) fn new(sink: Sink, socket: Option<Arc<Socket>>) -> Self {
        Self {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                queued_bytes: 0,
                writing: false,
                failed: false,
                in_flight: 0,
                bytes_in_flight: 0,
                waiting: 0,
                free: Vec::new(),
                free_bytes: 0,
            }),
            room: Condvar::new(),
            writer: Mutex::new(Writer {
                sink,
                batch: VecDeque::new(),
                skip: 0,
            }),
            socket,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An exchange for a request that needs `bytes` of payload, if the allowance has room for it now.
    pub(crate) fn try_begin(&self, bytes: usize) -> Option<Box<Exchange>> {
        Self::begin_locked(&mut self.lock(), bytes)
    }

    /// As [`Outbox::try_begin`], waiting until earlier requests have ended.
    pub(crate) fn begin(&self, bytes: usize) -> Box<Exchange> {
        let mut state = self.lock();
        loop {
            if let Some(exchange) = Self::begin_locked(&mut state, bytes) {
                return exchange;
            }
            state = self.wait_for_room(state);
        }
    }

    fn wait_for_room<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.waiting += 1;
        state = self
            .room
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state
    }

    fn signal_room(&self, state: &State) {
        if state.waiting > 0 {
            self.room.notify_all();
        }
    }

    fn begin_locked(state: &mut State, bytes: usize) -> Option<Box<Exchange>> {
        let fits = state.bytes_in_flight + bytes <= BYTES_IN_FLIGHT_MAX
            && state.in_flight < REQUESTS_IN_FLIGHT_MAX;
        if !fits && state.in_flight > 0 {
            return None;
        }
        state.in_flight += 1;
        state.bytes_in_flight += bytes;
        let mut exchange = match state.free.pop() {
            Some(kept) => {
                state.free_bytes -= kept.kept_bytes();
                kept
            }
            None => Box::new(Exchange::new()),
        };
        exchange.charged = bytes;
        Some(exchange)
    }

    fn end(state: &mut State, mut exchange: Box<Exchange>) {
        state.in_flight -= 1;
        state.bytes_in_flight -= exchange.charged;
        exchange.recycle();
        let free_bytes = state.free_bytes + exchange.kept_bytes();
        if free_bytes <= KEPT_BYTES_MAX && state.free.len() < KEPT_EXCHANGES_MAX {
            state.free_bytes = free_bytes;
            state.free.push(exchange);
        }
    }

    /// Gives an exchange back without an answer (the connection is ending).
    pub(crate) fn abandon(&self, exchange: Box<Exchange>) {
        let mut state = self.lock();
        Self::end(&mut state, exchange);
        self.signal_room(&state);
    }

    /// Adds an exchange whose reply is laid out; returns how many bytes now wait to be sent.
    pub(crate) fn push(&self, exchange: Box<Exchange>) -> usize {
        let mut state = self.lock();
        if state.failed {
            Self::end(&mut state, exchange);
            self.signal_room(&state);
            return 0;
        }
        state.queued_bytes += exchange.reply_len();
        state.queue.push_back(exchange);
        state.queued_bytes
    }

    /// Sends what waits, from the connection's own reader, which may wait for its client.
    pub(crate) fn flush(&self) {
        if self.start_writing() {
            self.write(true);
        }
    }

    /// Sends what waits, from a worker.
    pub(crate) fn flush_from_worker(self: &Arc<Self>) {
        if !self.start_writing() || self.write(false) {
            return;
        }
        let outbox = Arc::clone(self);
        let drain = move || {
            outbox.write(true);
        };
        if std::thread::Builder::new()
            .name("nbd-drain".into())
            .spawn(drain)
            .is_err()
        {
            // No thread to be had: rather a busy worker than a lost reply.
            self.write(true);
        }
    }

    fn start_writing(&self) -> bool {
        let mut state = self.lock();
        if state.writing || state.queue.is_empty() {
            return false;
        }
        state.writing = true;
        true
    }

    /// Writes until nothing waits. False: the client takes nothing right now, and `writing` is still set.
    fn write(&self, wait: bool) -> bool {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Err(error) = writer.send_batch(wait) {
                if error.kind() == io::ErrorKind::WouldBlock && !wait {
                    return false;
                }
                tracing::debug!(%error, "a reply cannot be sent; the connection ends");
                self.fail(&mut writer);
                return true;
            }
            let mut state = self.lock();
            let state = &mut *state;
            for exchange in writer.batch.drain(..) {
                Self::end(state, exchange);
            }
            self.signal_room(state);
            if state.queue.is_empty() {
                state.writing = false;
                return true;
            }
            std::mem::swap(&mut writer.batch, &mut state.queue);
            state.queued_bytes = 0;
        }
    }

    fn fail(&self, writer: &mut Writer) {
        if let Some(socket) = &self.socket {
            socket.cut();
        }
        let mut state = self.lock();
        let state = &mut *state;
        state.failed = true;
        state.writing = false;
        state.queued_bytes = 0;
        let dropped = std::mem::take(&mut state.queue);
        for exchange in writer.batch.drain(..).chain(dropped) {
            Self::end(state, exchange);
        }
        self.signal_room(state);
    }

    /// Waits until every request is answered or dropped, then says goodbye. The wait is bounded by the device's own
    /// bounds and the stall timeout.
    pub(crate) fn finish(&self) {
        self.flush();
        let mut state = self.lock();
        while state.in_flight > 0 {
            state = self.wait_for_room(state);
        }
        drop(state);
        self.writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .sink
            .close();
    }
}

impl Writer {
    fn send_batch(&mut self, wait: bool) -> io::Result<()> {
        while !self.batch.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let (mut used, mut skip) = (0, self.skip);
            'gather: for exchange in &self.batch {
                for slice in exchange.slices() {
                    let skipped = skip.min(slice.len());
                    skip -= skipped;
                    if skipped < slice.len() {
                        slices[used] = IoSlice::new(&slice[skipped..]);
                        used += 1;
                        if used == SLICES_MAX {
                            break 'gather;
                        }
                    }
                }
            }
            self.skip += self.sink.send(&slices[..used], wait)?;
            // Whole exchanges at the front are kept until the batch is out: they are few and give their room back
            // together; only the count of bytes moves on.
            let total: usize = self.batch.iter().map(|exchange| exchange.reply_len()).sum();
            if self.skip == total {
                break;
            }
        }
        self.sink.finish(wait)?;
        self.skip = 0;
        Ok(())
    }
}
