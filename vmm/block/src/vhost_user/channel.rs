//! One connection's socket: whole messages in and out, with the file descriptors that belong to them.
//!
//! Invariant: a peer that has begun a message, or that should take one, is waited for [`MESSAGE_PATIENCE`] at most. The descriptors of a
//! message that is refused are closed.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use super::wire::{Frame, HEADER_BYTES, Header, REGIONS_MAX, WireError};

/// Time for the rest of a message whose first byte has come, and for sending one: they are small and go over a local socket.
const MESSAGE_PATIENCE: Duration = Duration::from_secs(5);

/// Why nothing more is received or sent.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The peer has closed the connection between two messages.
    #[error("the peer has closed the connection")]
    Closed,
    /// It has done so in the middle of one.
    #[error("the connection ends in the middle of a message")]
    Torn,
    /// Nothing came, or nothing was taken.
    #[error("the peer does not answer")]
    Silent,
    /// Somebody here wants to end.
    #[error("told to stop")]
    Stopped,
    /// What came is no message.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// More descriptors than any message has, or in the middle of one.
    #[error("file descriptors where none may be")]
    Descriptors,
    /// The operating system refused.
    #[error("socket")]
    Io(#[source] std::io::Error),
}

impl From<Errno> for ChannelError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::PIPE | Errno::CONNRESET => Self::Closed,
            error => Self::Io(error.into()),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Channel {
    /// Over a connected stream socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// The next message. Waits for its first byte as long as `patience` says, for ever if it says nothing, or until `stop` is readable.
    ///
    /// # Errors
    /// See [`ChannelError`]; the connection is of no more use.
    pub fn receive(
        &self,
        patience: Option<Duration>,
        stop: Option<BorrowedFd<'_>>,
    ) -> Result<Frame, ChannelError> {
        wait_readable(self, patience, stop)?;
        let deadline = Instant::now() + MESSAGE_PATIENCE;
        let mut header = [0; HEADER_BYTES];
        let fds = self.fill(&mut header, true, deadline)?;
        let header = Header::parse(header)?;
        let mut body = vec![0; header.size];
        self.fill(&mut body, false, deadline)?;
        Ok(Frame { header, body, fds })
    }

    /// Sends a message.
    ///
    /// # Errors
    /// See [`ChannelError`]; the connection is of no more use.
    pub fn send(
        &self,
        code: u32,
        flags: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let header = Header {
            code,
            flags,
            size: body.len(),
        };
        let message = [&header.bytes(), body].concat();
        let deadline = Instant::now() + MESSAGE_PATIENCE;
        let mut sent = 0;
        while sent < message.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(REGIONS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            // Descriptors go with the first byte.
            if sent == 0 && !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(ChannelError::Descriptors);
            }
            let slices = [IoSlice::new(&message[sent..])];
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::sendmsg(&self.socket, &slices, &mut control, flags) {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait_until(PollFlags::OUT, deadline)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Fills a buffer; descriptors may come with its first byte if `takes_fds`.
    fn fill(
        &self,
        buffer: &mut [u8],
        takes_fds: bool,
        deadline: Instant,
    ) -> Result<Vec<OwnedFd>, ChannelError> {
        let mut fds = Vec::new();
        let mut filled = 0;
        while filled < buffer.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(REGIONS_MAX))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut buffer[filled..])];
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let received =
                match rustix::net::recvmsg(&self.socket, &mut slices, &mut control, flags) {
                    Ok(received) => received,
                    Err(Errno::INTR) => continue,
                    Err(Errno::AGAIN) => {
                        self.wait_until(PollFlags::IN, deadline)?;
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                };
            let came: Vec<OwnedFd> = control
                .drain()
                .filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                    _ => None,
                })
                .flatten()
                .collect();
            if received.flags.contains(ReturnFlags::CTRUNC) {
                return Err(ChannelError::Descriptors);
            }
            let is_first = takes_fds && filled == 0;
            if !is_first && !came.is_empty() {
                return Err(ChannelError::Descriptors);
            }
            fds.extend(came);
            if received.bytes == 0 {
                return Err(if is_first {
                    ChannelError::Closed
                } else {
                    ChannelError::Torn
                });
            }
            filled += received.bytes;
        }
        Ok(fds)
    }

    fn wait_until(&self, events: PollFlags, deadline: Instant) -> Result<(), ChannelError> {
        let left = deadline.saturating_duration_since(Instant::now());
        wait(self.as_fd(), events, Some(left), None)
    }
}

/// Waits until something is readable, or its other end is gone.
///
/// # Errors
/// `patience` is over, or `stop` is readable.
pub fn wait_readable(
    fd: impl AsFd,
    patience: Option<Duration>,
    stop: Option<BorrowedFd<'_>>,
) -> Result<(), ChannelError> {
    wait(fd.as_fd(), PollFlags::IN, patience, stop)
}

fn wait(
    fd: BorrowedFd<'_>,
    events: PollFlags,
    patience: Option<Duration>,
    stop: Option<BorrowedFd<'_>>,
) -> Result<(), ChannelError> {
    let deadline = patience.map(|patience| Instant::now() + patience);
    loop {
        let mut fds = vec![PollFd::new(&fd, events)];
        fds.extend(stop.iter().map(|stop| PollFd::new(stop, PollFlags::IN)));
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Err(ChannelError::Silent),
            Ok(_) if fds.get(1).is_some_and(|stop| !stop.revents().is_empty()) => {
                return Err(ChannelError::Stopped);
            }
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::super::wire::{NEED_REPLY, code};
    use super::*;

    const NOW: Option<Duration> = Some(Duration::from_millis(200));

    fn pair() -> (Channel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        (Channel::new(ours.into()), theirs)
    }

    #[test]
    fn messages_arrive_whole_with_their_descriptors() {
        let (channel, theirs) = pair();
        let peer = Channel::new(theirs.into());
        let null = std::fs::File::open("/dev/null").expect("it is everywhere");
        let fds = [null.as_fd(), null.as_fd()];
        peer.send(code::SET_MEM_TABLE, NEED_REPLY, &[1; 72], &fds)
            .expect("sent");
        peer.send(code::GET_FEATURES, 0, &[], &[]).expect("sent");
        let frame = channel.receive(NOW, None).expect("received");
        assert_eq!(frame.header.code, code::SET_MEM_TABLE);
        assert_eq!((frame.body.len(), frame.fds.len()), (72, 2));
        let frame = channel.receive(NOW, None).expect("received");
        assert_eq!((frame.body.len(), frame.fds.len()), (0, 0));
        drop(peer);
        assert!(matches!(
            channel.receive(NOW, None),
            Err(ChannelError::Closed)
        ));
    }

    #[test]
    fn what_is_torn_silent_or_nonsense_is_told_apart() {
        let (channel, mut theirs) = pair();
        assert!(matches!(
            channel.receive(NOW, None),
            Err(ChannelError::Silent)
        ));
        theirs.write_all(&[1, 0, 0, 0, 1]).expect("written");
        drop(theirs);
        assert!(matches!(
            channel.receive(NOW, None),
            Err(ChannelError::Torn)
        ));
        let (channel, mut theirs) = pair();
        theirs.write_all(&[0xff; 64]).expect("written");
        assert!(matches!(
            channel.receive(NOW, None),
            Err(ChannelError::Wire(_))
        ));
    }

    #[test]
    fn descriptors_behind_the_first_byte_are_refused() {
        let (channel, mut theirs) = pair();
        let header = Header {
            code: code::SET_FEATURES,
            flags: 0,
            size: HEADER_BYTES,
        };
        theirs.write_all(&header.bytes()).expect("written");
        let peer = Channel::new(theirs.into());
        let null = std::fs::File::open("/dev/null").expect("it is everywhere");
        // A second message where the first one's body should be, with a descriptor.
        peer.send(1, 0, &[], &[null.as_fd()]).expect("sent");
        assert!(matches!(
            channel.receive(NOW, None),
            Err(ChannelError::Descriptors)
        ));
    }
}
