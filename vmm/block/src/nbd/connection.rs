//! The transmission phase: requests come in, are performed, and are answered in whatever order they finish.
//!
//! One thread per connection receives. What a device can answer at once it answers right there; everything that may
//! wait goes to the export's pool. Invariant: every request that was received is answered exactly once or its
//! connection is ended, and the connection's exchanges are all back before its thread ends.

use std::sync::Arc;
use std::time::Instant;

use super::counters::is_known;
use super::exchange::Exchange;
use super::export::Seat;
use super::intake::{Intake, IntakeError};
use super::limits::{
    COALESCE_BYTES_MAX, INLINE_ALONE_BYTES_MAX, INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX,
    STATUS_EXTENTS_MAX,
};
use super::outbox::Outbox;
use super::patience::{FlushPace, Patience};
use super::pool::Job;
use super::socket::Socket;
use super::wire::{
    CMD_BLOCK_STATUS, CMD_CACHE, CMD_DISC, CMD_FLAG_DF, CMD_FLAG_FAST_ZERO, CMD_FLAG_FUA,
    CMD_FLAG_NO_HOLE, CMD_FLAG_REQ_ONE, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES,
    EINVAL, ENOSPC, EOVERFLOW, EPERM, REQUEST_BYTES, Request,
};
use crate::device::{BlockDevice, BlockError, BlockErrorKind, Geometry, RangeStatus, check_range};

/// What the handshake agreed on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Agreement {
    pub(crate) structured: bool,
    /// `base:allocation` was selected.
    pub(crate) allocation: bool,
}

/// A connection in the transmission phase.
pub(crate) struct Connection {
    seat: Seat,
    agreement: Agreement,
    geometry: Geometry,
    pub(crate) outbox: Arc<Outbox>,
    socket: Option<Arc<Socket>>,
}

/// Why a connection ended other than by the client's wish.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransmissionError {
    #[error("a request does not begin with the request magic")]
    BadMagic,
    #[error("a write of {0} bytes is larger than was agreed")]
    TooLarge(u32),
    #[error(transparent)]
    Intake(#[from] IntakeError),
}

/// A request that fails without touching the device.
struct Refusal {
    error: u32,
    text: &'static str,
}

impl Connection {
    pub(crate) fn new(
        seat: Seat,
        agreement: Agreement,
        outbox: Arc<Outbox>,
        socket: Option<Arc<Socket>>,
    ) -> Arc<Self> {
        let geometry = seat.export.device().geometry();
        Arc::new(Self {
            seat,
            agreement,
            geometry,
            outbox,
            socket,
        })
    }

    fn device(&self) -> &dyn BlockDevice {
        &**self.seat.export.device()
    }

    /// Serves the connection until it ends; then everything that was begun is finished and the socket is closed.
    pub(crate) fn serve(self: &Arc<Self>, intake: &mut Intake) -> Result<(), TransmissionError> {
        let ended = self.receive_requests(intake);
        self.outbox.finish();
        match ended {
            // Many clients just go. Nothing is lost: what they were told is done is done.
            Err(TransmissionError::Intake(IntakeError::Ended)) => Ok(()),
            ended => ended,
        }
    }

    fn receive_requests(self: &Arc<Self>, intake: &mut Intake) -> Result<(), TransmissionError> {
        let mut patience = Patience::default();
        let mut pace = FlushPace::default();
        loop {
            while intake.buffered().len() < REQUEST_BYTES {
                // Nothing more is at hand, so nothing is gained by holding replies back.
                self.outbox.flush();
                match intake.fill_patiently(&mut patience) {
                    Ok(()) => {}
                    Err(IntakeError::Stalled) if intake.buffered().is_empty() => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if self
                .socket
                .as_ref()
                .is_some_and(|socket| socket.is_closing())
            {
                return Ok(());
            }
            let header = intake
                .buffered()
                .first_chunk()
                .expect("the loop above has a whole header");
            let request = Request::parse(header).ok_or(TransmissionError::BadMagic)?;
            intake.consume(REQUEST_BYTES);
            if request.command == CMD_DISC {
                return Ok(());
            }
            let wants = match request.command {
                CMD_WRITE if request.len > PAYLOAD_BYTES_MAX => {
                    return Err(TransmissionError::TooLarge(request.len));
                }
                CMD_READ if request.len > PAYLOAD_BYTES_MAX => 0,
                CMD_READ | CMD_WRITE => request.len as usize,
                _ => 0,
            };
            let mut exchange = match self.outbox.try_begin(wants) {
                Some(exchange) => exchange,
                None => {
                    self.outbox.flush();
                    self.outbox.begin(wants)
                }
            };
            exchange.request = request;
            exchange.started = Instant::now();
            self.stream(intake, &mut exchange);
            match self.receive_one(intake, &mut exchange, &mut pace) {
                Ok(true) => {
                    self.count(&exchange);
                    if self.outbox.push(exchange) >= COALESCE_BYTES_MAX {
                        self.outbox.flush();
                    }
                }
                Ok(false) => {
                    self.outbox.flush();
                    self.seat.export.pool.submit(Job {
                        connection: Arc::clone(self),
                        exchange,
                    });
                }
                Err(error) => {
                    self.outbox.abandon(exchange);
                    return Err(error.into());
                }
            }
        }
    }

    /// Answers a large read in parts while nothing else waits, so that the client takes one part while the next is read, and both
    /// copies stay in the processor's cache. Leaves the last part, and whatever cannot be had at once, as the request.
    fn stream(&self, intake: &Intake, exchange: &mut Exchange) {
        let request = exchange.request;
        let streams = request.command == CMD_READ
            && self.agreement.structured
            && !request.has(CMD_FLAG_DF)
            && (INLINE_BYTES_MAX + 1..=INLINE_ALONE_BYTES_MAX).contains(&request.len)
            && intake.buffered().is_empty();
        if !streams || self.judge(&request).is_some() {
            return;
        }
        while exchange.request.len > INLINE_BYTES_MAX {
            // Its bytes are charged to the whole request already.
            let Some(mut part) = self.outbox.try_begin(0) else {
                return;
            };
            part.request = Request {
                len: INLINE_BYTES_MAX,
                ..exchange.request
            };
            let payload = part.payload_mut(INLINE_BYTES_MAX as usize);
            if !matches!(
                self.device().try_read(exchange.request.offset, payload),
                Ok(true)
            ) {
                // Found again, and answered, where the rest is read.
                return self.outbox.abandon(part);
            }
            part.reply_read_part();
            self.seat.export.counters.count_part(INLINE_BYTES_MAX);
            self.outbox.push(part);
            self.outbox.flush();
            exchange.request.offset += u64::from(INLINE_BYTES_MAX);
            exchange.request.len -= INLINE_BYTES_MAX;
        }
    }

    /// Up to which length a read is answered right here: a large one too where nothing that came after it has to wait for it, for
    /// then a change of thread costs more than it gains.
    fn inline_bytes_max(&self, intake: &Intake) -> u32 {
        if intake.buffered().is_empty() {
            INLINE_ALONE_BYTES_MAX
        } else {
            INLINE_BYTES_MAX
        }
    }

    /// Takes a request's payload and answers the request if that needs no waiting. `Ok(false)`: a worker must.
    fn receive_one(
        &self,
        intake: &mut Intake,
        exchange: &mut Exchange,
        pace: &mut FlushPace,
    ) -> Result<bool, IntakeError> {
        let request = exchange.request;
        let len = request.len as usize;
        let refusal = self.judge(&request);
        if let Some(Refusal { error, text }) = refusal {
            if request.command == CMD_WRITE {
                self.outbox.flush();
                intake.skip(len)?;
            }
            self.seat.export.counters.count_error();
            exchange.reply_error(self.agreement.structured, error, text);
            return Ok(true);
        }
        match request.command {
            CMD_READ if request.len <= self.inline_bytes_max(intake) => {
                match self
                    .device()
                    .try_read(request.offset, exchange.payload_mut(len))
                {
                    Ok(true) => {
                        exchange.reply_read(self.agreement.structured, !request.has(CMD_FLAG_DF))
                    }
                    Ok(false) => {
                        self.seat.export.counters.count_miss();
                        return Ok(false);
                    }
                    Err(error) => self.reply_device_error(exchange, &error),
                }
                Ok(true)
            }
            CMD_WRITE => {
                let inline = request.len <= INLINE_BYTES_MAX && !request.has(CMD_FLAG_FUA);
                if inline && intake.buffered().len() >= len {
                    // The usual case: straight from the receive buffer to the device.
                    match self
                        .device()
                        .try_write(request.offset, &intake.buffered()[..len])
                    {
                        Ok(true) => exchange.reply_done(),
                        Ok(false) => {
                            exchange
                                .payload_mut(len)
                                .copy_from_slice(&intake.buffered()[..len]);
                            intake.consume(len);
                            return Ok(false);
                        }
                        Err(error) => self.reply_device_error(exchange, &error),
                    }
                    intake.consume(len);
                    return Ok(true);
                }
                if intake.buffered().len() < len {
                    self.outbox.flush();
                }
                intake.read_exact(exchange.payload_mut(len))?;
                if !inline {
                    return Ok(false);
                }
                match self.device().try_write(request.offset, exchange.payload()) {
                    Ok(true) => exchange.reply_done(),
                    Ok(false) => return Ok(false),
                    Err(error) => self.reply_device_error(exchange, &error),
                }
                Ok(true)
            }
            // As with a large read: behind a quick flush nothing waits long, and two changes of thread would take longer.
            CMD_FLUSH if intake.buffered().is_empty() && pace.is_quick() => {
                self.outbox.flush();
                let begun = Instant::now();
                let flushed = self.device().try_flush();
                pace.learn(begun.elapsed());
                match flushed {
                    Ok(true) => exchange.reply_done(),
                    Ok(false) => return Ok(false),
                    Err(error) => self.reply_device_error(exchange, &error),
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Performs a request that may wait, on a worker.
    pub(crate) fn perform(&self, exchange: &mut Exchange) {
        let request = exchange.request;
        let device = self.device();
        let (offset, len) = (request.offset, u64::from(request.len));
        let fua = request.has(CMD_FLAG_FUA);
        let done = match request.command {
            CMD_READ => device.read(offset, exchange.payload_mut(request.len as usize)),
            CMD_WRITE => device.write(offset, exchange.payload(), fua),
            CMD_FLUSH => device.flush(),
            CMD_TRIM => device
                .discard(offset, len)
                .and_then(|()| if fua { device.flush() } else { Ok(()) }),
            CMD_WRITE_ZEROES if request.has(CMD_FLAG_FAST_ZERO) => {
                device.write_zeroes_fast(offset, len, !request.has(CMD_FLAG_NO_HOLE), fua)
            }
            CMD_WRITE_ZEROES => {
                device.write_zeroes(offset, len, !request.has(CMD_FLAG_NO_HOLE), fua)
            }
            CMD_CACHE => device.prefetch(offset, len),
            CMD_BLOCK_STATUS => device.block_status(offset, len).map(|ranges| {
                let extents = extents(&ranges, request.len, request.has(CMD_FLAG_REQ_ONE));
                exchange.reply_status(&extents);
            }),
            _ => unreachable!("`judge` lets no unknown command through"),
        };
        match done {
            Ok(()) => match request.command {
                CMD_READ => {
                    exchange.reply_read(self.agreement.structured, !request.has(CMD_FLAG_DF))
                }
                CMD_BLOCK_STATUS => {}
                _ => exchange.reply_done(),
            },
            Err(error) => self.reply_device_error(exchange, &error),
        }
        self.count(exchange);
    }

    fn count(&self, exchange: &Exchange) {
        let request = &exchange.request;
        self.seat
            .export
            .counters
            .count(request.command, request.len, exchange.started.elapsed());
    }

    /// What the protocol says about a request before any device is asked.
    fn judge(&self, request: &Request) -> Option<Refusal> {
        let refuse = |error, text| Some(Refusal { error, text });
        if !is_known(request.command) {
            return refuse(EINVAL, "unknown command");
        }
        let allowed = CMD_FLAG_FUA
            | match request.command {
                CMD_READ if self.agreement.structured => CMD_FLAG_DF,
                CMD_WRITE_ZEROES if self.device().has_fast_zero() => {
                    CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO
                }
                CMD_WRITE_ZEROES => CMD_FLAG_NO_HOLE,
                CMD_BLOCK_STATUS => CMD_FLAG_REQ_ONE,
                _ => 0,
            };
        if request.flags & !allowed != 0 {
            return refuse(EINVAL, "a command flag that this command does not have");
        }
        let writes = matches!(request.command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES);
        if writes && self.geometry.read_only {
            return refuse(EPERM, "the export is read-only");
        }
        if request.command == CMD_FLUSH {
            // Offset and length mean nothing here.
            return None;
        }
        if request.command == CMD_BLOCK_STATUS && (!self.agreement.allocation || request.len == 0) {
            return refuse(
                EINVAL,
                "block status without a selected metadata context, or of no bytes",
            );
        }
        if request.command == CMD_READ && request.len > PAYLOAD_BYTES_MAX {
            return refuse(
                if self.agreement.structured {
                    EOVERFLOW
                } else {
                    EINVAL
                },
                "the read is too large",
            );
        }
        if check_range(
            request.offset,
            u64::from(request.len),
            self.geometry.size_bytes,
        )
        .is_err()
        {
            let beyond = if matches!(request.command, CMD_WRITE | CMD_WRITE_ZEROES) {
                ENOSPC
            } else {
                EINVAL
            };
            return refuse(beyond, "the range is not inside the export");
        }
        let grain = u64::from(self.geometry.block_bytes_min);
        if !request.offset.is_multiple_of(grain) || !u64::from(request.len).is_multiple_of(grain) {
            return refuse(EINVAL, "the range is not aligned to the minimum block size");
        }
        None
    }

    /// Answers a request in which the device panicked.
    pub(crate) fn reply_panic(&self, exchange: &mut Exchange) {
        let error = BlockError::new(BlockErrorKind::Io, "the device failed in an unforeseen way");
        self.reply_device_error(exchange, &error);
    }

    fn reply_device_error(&self, exchange: &mut Exchange, error: &BlockError) {
        let export = &self.seat.export;
        let so_far = export.counters.count_error();
        let refused_fast_zero =
            error.kind == BlockErrorKind::Unsupported && exchange.request.has(CMD_FLAG_FAST_ZERO);
        // The protocol allows ENOTSUP as the answer to a fast zero only.
        let errno = match error.kind {
            BlockErrorKind::Unsupported if !refused_fast_zero => EINVAL,
            kind => kind.errno() as u32,
        };
        let is_ours = matches!(
            error.kind,
            BlockErrorKind::Io | BlockErrorKind::NoSpace | BlockErrorKind::Unavailable
        );
        // A broken disk fails every request: the first failures are told, then ever fewer.
        if is_ours && (so_far < 16 || so_far.is_power_of_two()) {
            let cause = error.source.as_ref().map(tracing::field::display);
            tracing::warn!(export = export.name(), %error, cause, kind = ?error.kind, so_far, "block request failed");
        }
        exchange.reply_error(self.agreement.structured, errno, &error.context);
    }
}

/// What a client is told of a device's ranges: neighbours of one kind merged, nothing beyond `len`.
fn extents(ranges: &[RangeStatus], len: u32, only_one: bool) -> Vec<RangeStatus> {
    let max = if only_one { 1 } else { STATUS_EXTENTS_MAX };
    let mut left = u64::from(len);
    let mut extents: Vec<RangeStatus> = Vec::new();
    for range in ranges {
        let range = RangeStatus {
            len: range.len.min(left),
            ..*range
        };
        if range.len == 0 {
            continue;
        }
        let is_full = extents.len() == max;
        match extents.last_mut() {
            Some(last) if (last.hole, last.zero) == (range.hole, range.zero) => {
                last.len += range.len
            }
            _ if is_full => break,
            _ => extents.push(range),
        }
        left -= range.len;
    }
    if extents.is_empty() {
        // A device that knows nothing: plain data is always a true answer.
        extents.push(RangeStatus {
            len: u64::from(len),
            hole: false,
            zero: false,
        });
    }
    extents
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::extents;
    use crate::device::RangeStatus;

    #[test]
    fn extents_are_merged_clipped_and_never_empty() {
        let data = |len| RangeStatus {
            len,
            hole: false,
            zero: false,
        };
        let hole = |len| RangeStatus {
            len,
            hole: true,
            zero: true,
        };
        let ranges = [data(10), data(5), hole(3), hole(100)];
        assert_eq!(extents(&ranges, 20, false), [data(15), hole(5)]);
        assert_eq!(extents(&ranges, 20, true), [data(15)]);
        assert_eq!(extents(&ranges, 12, true), [data(12)]);
        assert_eq!(extents(&[], 12, true), [data(12)]);
    }
}
