//! Buffered receiving: several small requests per system call, large payloads straight to where they belong.

use std::io;
use std::time::Instant;

use super::limits::INTAKE_BYTES;
use super::patience::{PUT_ASIDE, Patience, poller};
use super::socket::Source;

/// Why no more bytes can be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IntakeError {
    /// The client ended the stream, possibly in the middle of something.
    #[error("the client is gone")]
    Ended,
    /// Nothing came for the stall timeout.
    #[error("the client sends nothing")]
    Stalled,
    /// The handshake took longer than it may.
    #[error("the handshake took too long")]
    Late,
    #[error("receive")]
    Io(#[from] io::Error),
}

/// The receiving side of a connection and its read-ahead buffer.
pub(crate) struct Intake {
    source: Source,
    buf: Box<[u8]>,
    start: usize,
    end: usize,
    /// While set, receiving fails once this time has passed.
    deadline: Option<Instant>,
}

impl Intake {
    pub(crate) fn new(source: Source, deadline: Option<Instant>) -> Self {
        Self {
            source,
            buf: vec![0; INTAKE_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            deadline,
        }
    }

    pub(crate) fn clear_deadline(&mut self) {
        self.deadline = None;
    }

    /// Replaces the stream below. The caller checks that nothing is buffered: bytes sent in plain text before TLS
    /// must not be taken for bytes sent inside it.
    pub(crate) fn replace_source(&mut self, source: Source) {
        debug_assert!(
            self.buffered().is_empty(),
            "plain text left over at the switch to TLS"
        );
        self.source = source;
    }

    /// What is at hand without a system call.
    pub(crate) fn buffered(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    /// Drops `len` bytes off the front of [`Intake::buffered`].
    pub(crate) fn consume(&mut self, len: usize) {
        assert!(len <= self.end - self.start, "more consumed than buffered");
        self.start += len;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    fn make_room(&mut self) {
        if self.start > 0 && self.end == self.buf.len() {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        debug_assert!(self.end < self.buf.len(), "filling a full buffer");
    }

    /// As [`Intake::fill`], looking at the socket for as long as `patience` says before it sleeps.
    pub(crate) fn fill_patiently(&mut self, patience: &mut Patience) -> Result<(), IntakeError> {
        self.make_room();
        let begun = Instant::now();
        let poll = patience.poll();
        let mut looked = begun;
        let place = (!poll.is_zero() && self.source.can_look())
            .then(poller)
            .flatten();
        while place.is_some() {
            if let Some(received) = self.source.receive_now(&mut self.buf[self.end..]) {
                patience.learn(begun.elapsed());
                return match received? {
                    0 => Err(IntakeError::Ended),
                    taken => {
                        self.end += taken;
                        Ok(())
                    }
                };
            }
            let now = Instant::now();
            if now - looked > PUT_ASIDE {
                patience.put_aside();
                break;
            }
            if now - begun >= poll {
                break;
            }
            looked = now;
            // Each look takes the socket's locks, which the client's end needs.
            (0..8).for_each(|_| std::hint::spin_loop());
        }
        drop(place);
        let filled = self.fill();
        patience.learn(begun.elapsed());
        filled
    }

    /// Receives more into the buffer, which must not be full.
    pub(crate) fn fill(&mut self) -> Result<(), IntakeError> {
        self.make_room();
        let taken = Self::receive(&mut self.source, self.deadline, &mut self.buf[self.end..])?;
        self.end += taken;
        Ok(())
    }

    /// Fills `target`, from the buffer first.
    pub(crate) fn read_exact(&mut self, target: &mut [u8]) -> Result<(), IntakeError> {
        let at_hand = target.len().min(self.end - self.start);
        target[..at_hand].copy_from_slice(&self.buf[self.start..self.start + at_hand]);
        self.consume(at_hand);
        let mut filled = at_hand;
        while filled < target.len() {
            // Small pieces go through the buffer, because more is likely to follow.
            if target.len() - filled < INTAKE_BYTES / 4 {
                while self.buffered().len() < target.len() - filled {
                    self.fill()?;
                }
                let rest = target.len() - filled;
                target[filled..].copy_from_slice(&self.buf[self.start..self.start + rest]);
                self.consume(rest);
                return Ok(());
            }
            filled += Self::receive(&mut self.source, self.deadline, &mut target[filled..])?;
        }
        Ok(())
    }

    /// Drops `len` bytes of the stream.
    pub(crate) fn skip(&mut self, mut len: usize) -> Result<(), IntakeError> {
        loop {
            let at_hand = len.min(self.end - self.start);
            self.consume(at_hand);
            len -= at_hand;
            if len == 0 {
                return Ok(());
            }
            self.fill()?;
        }
    }

    fn receive(
        source: &mut Source,
        deadline: Option<Instant>,
        buf: &mut [u8],
    ) -> Result<usize, IntakeError> {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(IntakeError::Late);
        }
        match source.receive(buf) {
            Ok(0) => Err(IntakeError::Ended),
            Ok(taken) => Ok(taken),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(IntakeError::Stalled),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::{Intake, IntakeError};
    use crate::nbd::limits::INTAKE_BYTES;
    use crate::nbd::socket::Source;

    #[test]
    fn bytes_come_in_order_through_buffer_and_around_it() {
        let bytes: Vec<u8> = (0..3 * INTAKE_BYTES).map(|at| (at % 251) as u8).collect();
        let mut intake = Intake::new(
            Source::Memory {
                bytes: bytes.clone(),
                taken: 0,
            },
            None,
        );
        let mut at = 0;
        for len in [1, 28, INTAKE_BYTES, 4096, 0, INTAKE_BYTES / 4, 77] {
            let mut target = vec![0; len];
            intake.read_exact(&mut target).unwrap();
            assert!(target == bytes[at..at + len], "{len} bytes at {at}");
            at += len;
        }
        intake.skip(INTAKE_BYTES / 2).unwrap();
        at += INTAKE_BYTES / 2;
        let mut rest = vec![0; bytes.len() - at];
        intake.read_exact(&mut rest).unwrap();
        assert!(rest == bytes[at..]);
        assert!(matches!(
            intake.read_exact(&mut [0]),
            Err(IntakeError::Ended)
        ));
    }
}
