//! Frames on a stream: `u32` little-endian length, then that many bytes.
//!
//! Invariants: a reader never allocates more than it has received plus one step, whatever a length claims; a stream that
//! ends inside a frame is an error, and a stream that its sender abandons is reset, never mistaken for a finished one.
//!
//! Cancellation: [`FrameRecv::recv`] may be dropped and called again without loss. A `send` that is dropped midway leaves
//! a torn frame, so the sender then refuses to go on and the stream is reset.

use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use quinn::{RecvStream, SendStream};

use super::connection::Shared;
use super::error::CODE_CANCELLED;
use super::repair::{Assembly, Slot};
use super::{Class, LinkError};

/// Longest frame that can be sent, in bytes. Readers set their own limits, usually far lower.
pub const FRAME_BYTES_MAX: usize = 64 << 20;

const HEADER_BYTES: usize = 4;

/// Longest frame that is repaired, in bytes: more than a whole chunk that does not compress. What is longer takes many packets anyway, and a
/// round trip more is a small part of it.
const REPAIRED_BYTES_MAX: usize = 256 * 1024;

/// Most that is taken from QUIC at once.
const READ_BYTES_MAX: usize = 64 * 1024;

/// First allocation for a frame's bytes; it grows as bytes arrive, because the length is only a claim.
const FIRST_ALLOCATION_BYTES: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SendState {
    /// Between frames.
    Open,
    /// A frame is partly written; stays so when its `send` was dropped or failed.
    InsideFrame,
    /// Finished or reset.
    Done,
}

/// The sending half of a request or answer.
///
/// Call [`finish`](Self::finish) after the last frame: a stream that is dropped unfinished is reset, so that the peer
/// never takes half an answer for a whole one.
pub struct FrameSend {
    stream: SendStream,
    link: Arc<Shared>,
    class: Class,
    state: SendState,
    /// Whether this is the answering side, whose demand frames are repaired.
    answers: bool,
    /// Bytes of the stream before the frame being sent.
    offset: u64,
    /// The frame just sent, if it may need repair.
    sent: BytesMut,
    keep_sent: bool,
}

/// The receiving half of a request or answer. Dropping it tells the peer to stop sending.
pub struct FrameRecv {
    stream: RecvStream,
    link: Arc<Shared>,
    /// What its bytes are counted as, if this end opened the stream.
    class: Option<Class>,
    /// Of a stream that is read in any order; then the fields below are not used.
    repair: Option<Box<(Assembly, Slot)>>,
    header: [u8; HEADER_BYTES],
    header_filled: usize,
    body: BytesMut,
}

impl FrameSend {
    pub(super) fn new(stream: SendStream, link: Arc<Shared>, class: Class) -> Self {
        let mut send = Self {
            stream,
            link,
            class,
            state: SendState::Open,
            answers: false,
            offset: 0,
            sent: BytesMut::new(),
            keep_sent: false,
        };
        send.set_class(class);
        send
    }

    /// This is the answering side of a stream.
    pub(super) fn answers(&mut self) {
        self.answers = true;
    }

    /// Datagrams that protect the frame just sent.
    pub(super) fn protection(&mut self) -> Vec<Bytes> {
        let frame = std::mem::take(&mut self.sent);
        let offset = self.offset - frame.len() as u64;
        let repairs = self
            .link
            .repairs
            .protect(u64::from(self.stream.id()), offset, &frame);
        let bytes = repairs.iter().map(Bytes::len).sum();
        self.link.shaper.sent(self.class, bytes);
        self.link.traffic.sent(self.class, bytes);
        repairs
    }

    /// Moves the stream to another class. What has been handed to the network already is not reordered.
    ///
    /// The answering end must set the class too: a stream accepted from the peer starts as [`Class::Fill`].
    pub fn set_class(&mut self, class: Class) {
        self.class = class;
        // A stream that is gone has nothing left to order.
        let index = self.stream.id().index();
        let _ = self.stream.set_priority(class.priority(index));
    }

    /// Sends one frame. Returns when QUIC has taken it, which is before the peer has it.
    ///
    /// Not cancellation safe: a dropped call leaves a torn frame and the stream is reset on the next use or drop.
    ///
    /// # Errors
    /// [`LinkError::StreamCancelled`] when the peer stopped reading, [`LinkError::FrameTooLarge`] above
    /// [`FRAME_BYTES_MAX`], else why the link ended.
    pub async fn send(&mut self, payload: &[u8]) -> Result<(), LinkError> {
        self.send_parts(&[payload]).await
    }

    /// Sends one frame whose payload is the parts in order, each byte copied once, into QUIC's own buffers.
    ///
    /// # Errors
    /// As [`send`](Self::send); not cancellation safe either.
    pub async fn send_parts(&mut self, parts: &[&[u8]]) -> Result<(), LinkError> {
        let header = self.begin(parts.iter().map(|part| part.len()).sum())?;
        let piece_bytes = self.link.shaper.piece_bytes(self.class);
        let mut piece = BytesMut::with_capacity(piece_bytes.min(payload_bytes(header)));
        piece.extend_from_slice(&header);
        for part in parts {
            let mut rest = *part;
            while !rest.is_empty() {
                if piece.len() >= piece_bytes {
                    self.write(&mut [piece.split().freeze()]).await?;
                    piece.reserve(piece_bytes.min(rest.len()));
                }
                let (now, later) = rest.split_at(rest.len().min(piece_bytes - piece.len()));
                piece.extend_from_slice(now);
                rest = later;
            }
        }
        self.write(&mut [piece.freeze()]).await?;
        self.end_frame();
        Ok(())
    }

    /// Sends one frame without copying: QUIC keeps references to the parts until the peer has acknowledged them.
    ///
    /// # Errors
    /// As [`send`](Self::send); not cancellation safe either.
    pub async fn send_bytes(&mut self, parts: &[Bytes]) -> Result<(), LinkError> {
        let header = self.begin(parts.iter().map(Bytes::len).sum())?;
        let piece_bytes = self.link.shaper.piece_bytes(self.class);
        // With the first piece, lest four bytes travel in a packet of their own.
        let mut waiting = Bytes::copy_from_slice(&header);
        for part in parts {
            let mut rest = part.clone();
            while !rest.is_empty() {
                let piece = rest.split_to(rest.len().min(piece_bytes));
                self.write(&mut [std::mem::take(&mut waiting), piece])
                    .await?;
            }
        }
        self.write(&mut [waiting]).await?;
        self.end_frame();
        Ok(())
    }

    fn end_frame(&mut self) {
        self.state = SendState::Open;
        if self.answers && !self.sent.is_empty() {
            let repairs = self.protection();
            self.link.repairs.send_later(repairs);
        }
    }

    /// Ends the stream after the frames sent so far. Delivery goes on in the background.
    ///
    /// # Errors
    /// [`LinkError::StreamClosed`] when the stream is finished, reset or torn already.
    pub fn finish(&mut self) -> Result<(), LinkError> {
        match self.state {
            SendState::Open => {
                self.state = SendState::Done;
                self.stream.finish().map_err(|_| LinkError::StreamClosed)
            }
            SendState::InsideFrame | SendState::Done => Err(LinkError::StreamClosed),
        }
    }

    /// Waits until the peer has received everything up to [`finish`](Self::finish).
    ///
    /// # Errors
    /// [`LinkError::StreamCancelled`] when the peer stopped reading before the end, else why the link ended.
    pub async fn delivered(&mut self) -> Result<(), LinkError> {
        match self.stream.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(LinkError::StreamCancelled),
            Err(error) => Err(self.link.write_error(error.into())),
        }
    }

    /// Abandons the stream: the peer sees [`LinkError::StreamCancelled`], and bytes not sent yet are not.
    pub fn reset(&mut self) {
        if self.state != SendState::Done {
            self.state = SendState::Done;
            // An error says that the stream is gone, which is what was wanted.
            let _ = self.stream.reset(CODE_CANCELLED);
        }
    }

    fn begin(&mut self, payload: usize) -> Result<[u8; HEADER_BYTES], LinkError> {
        if self.state != SendState::Open {
            return Err(LinkError::StreamClosed);
        }
        if payload > FRAME_BYTES_MAX {
            return Err(LinkError::FrameTooLarge {
                bytes: payload as u64,
                bytes_max: FRAME_BYTES_MAX,
            });
        }
        self.state = SendState::InsideFrame;
        self.sent.clear();
        self.keep_sent =
            self.class == Class::Demand && HEADER_BYTES + payload <= REPAIRED_BYTES_MAX;
        let payload = u32::try_from(payload).expect("64 MiB fits");
        Ok(payload.to_le_bytes())
    }

    /// Hands pieces to QUIC in this stream's turn (see `gate`).
    async fn write(&mut self, pieces: &mut [Bytes]) -> Result<(), LinkError> {
        let link = Arc::clone(&self.link);
        for piece in &*pieces {
            self.offset += piece.len() as u64;
            if self.keep_sent {
                self.sent.extend_from_slice(piece);
            }
        }
        let mut done = 0;
        while done < pieces.len() {
            let in_order = link.gate.turn(self.class).await;
            let _writing = link.gate.enter(self.class);
            let rest = &mut pieces[done..];
            // quinn's write takes something at once or nothing at all, so dropping it while it waits loses nothing.
            let stream = &mut self.stream;
            let class = self.class;
            let write = async {
                link.shaper.ready(class).await;
                stream.write_chunks(rest).await
            };
            let written = if in_order {
                tokio::select! {
                    biased;
                    () = link.gate.preempted(class) => continue,
                    written = write => written,
                }
            } else {
                write.await
            };
            let written = written.map_err(|error| link.write_error(error))?;
            link.shaper.sent(class, written.bytes);
            link.traffic.sent(class, written.bytes);
            done += written.chunks;
        }
        Ok(())
    }
}

impl Drop for FrameSend {
    fn drop(&mut self) {
        // quinn would finish it, and the peer would take what came for the whole.
        self.reset();
    }
}

impl fmt::Debug for FrameSend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameSend")
            .field("stream", &self.stream.id())
            .field("class", &self.class)
            .field("state", &self.state)
            .finish()
    }
}

impl FrameRecv {
    /// Of a peer that is not known yet: what a hole keeps waiting is memory, and QUIC's window bounds it.
    pub(super) fn in_order(stream: RecvStream, link: Arc<Shared>) -> Self {
        Self {
            stream,
            link,
            class: None,
            repair: None,
            header: [0; HEADER_BYTES],
            header_filled: 0,
            body: BytesMut::new(),
        }
    }

    /// Takes bytes as they come, so that they can be repaired by what comes into `slot`, and so that a hole does not hold back the peer's
    /// credit: one lost packet in a hundred of a large answer would else keep its window shut for most of the time.
    pub(super) fn in_any_order(stream: RecvStream, link: Arc<Shared>, slot: Slot) -> Self {
        let mut recv = Self::in_order(stream, link);
        recv.repair = Some(Box::new((Assembly::default(), slot)));
        recv
    }

    /// Counts what comes as of `class`, which this end opened the stream in.
    pub(super) fn counted(mut self, class: Class) -> Self {
        self.class = Some(class);
        self
    }

    /// Receives one frame of at most `bytes_max`; `None` at the stream's clean end.
    ///
    /// Cancellation safe: a dropped call has kept what arrived, the next one goes on.
    ///
    /// # Errors
    /// [`LinkError::FrameTooLarge`] before anything is allocated, [`LinkError::FrameTruncated`] when the stream ends
    /// inside a frame, [`LinkError::StreamCancelled`] when the sender gave it up, else why the link ended.
    pub async fn recv(&mut self, bytes_max: usize) -> Result<Option<Bytes>, LinkError> {
        if self.repair.is_some() {
            return self.recv_repaired(bytes_max).await;
        }
        while self.header_filled < HEADER_BYTES {
            let wanted = HEADER_BYTES - self.header_filled;
            match self.read(wanted).await? {
                Some(bytes) => {
                    let filled = self.header_filled + bytes.len();
                    self.header[self.header_filled..filled].copy_from_slice(&bytes);
                    self.header_filled = filled;
                }
                None if self.header_filled == 0 => return Ok(None),
                None => return Err(LinkError::FrameTruncated),
            }
        }
        let length = payload_bytes(self.header);
        if length > bytes_max {
            return Err(LinkError::FrameTooLarge {
                bytes: length as u64,
                bytes_max,
            });
        }
        while self.body.len() < length {
            let wanted = length - self.body.len();
            let bytes = self.read(wanted).await?.ok_or(LinkError::FrameTruncated)?;
            if self.body.capacity() == 0 {
                self.body.reserve(length.min(FIRST_ALLOCATION_BYTES));
            }
            // Copied even when it is the whole frame: the piece shares its memory with neighbours in the same packet.
            self.body.extend_from_slice(&bytes);
        }
        self.header_filled = 0;
        Ok(Some(std::mem::take(&mut self.body).freeze()))
    }

    async fn recv_repaired(&mut self, bytes_max: usize) -> Result<Option<Bytes>, LinkError> {
        let (assembly, slot) = &mut **self.repair.as_mut().expect("the caller looked");
        loop {
            if let Some(frame) = assembly.take_frame(bytes_max)? {
                return Ok(Some(frame));
            }
            tokio::select! {
                // In any order: what comes behind a lost packet is what the lost packet is computed from.
                chunk = self.stream.read_chunk(READ_BYTES_MAX, false) => match chunk {
                    Ok(Some(chunk)) => {
                        if let Some(class) = self.class {
                            self.link.traffic.received(class, chunk.bytes.len());
                        }
                        assembly.insert(chunk.offset, &chunk.bytes)?;
                    }
                    Ok(None) if assembly.is_between_frames() => return Ok(None),
                    Ok(None) => return Err(LinkError::FrameTruncated),
                    Err(error) => return Err(self.link.read_error(error)),
                },
                repair = slot.next() => assembly.repair(&repair),
            }
        }
    }

    /// Tells the peer that nothing more is wanted on this stream; its sender sees [`LinkError::StreamCancelled`].
    pub fn stop(&mut self) {
        // An error says that the stream has ended already, which is what was wanted.
        let _ = self.stream.stop(CODE_CANCELLED);
    }

    async fn read(&mut self, bytes_max: usize) -> Result<Option<Bytes>, LinkError> {
        match self.stream.read_chunk(bytes_max, true).await {
            Ok(chunk) => Ok(chunk.map(|chunk| chunk.bytes)),
            Err(error) => Err(self.link.read_error(error)),
        }
    }
}

impl fmt::Debug for FrameRecv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameRecv")
            .field("stream", &self.stream.id())
            .finish_non_exhaustive()
    }
}

fn payload_bytes(header: [u8; HEADER_BYTES]) -> usize {
    // usize has at least 32 bits on every platform this runs on.
    u32::from_le_bytes(header) as usize
}
