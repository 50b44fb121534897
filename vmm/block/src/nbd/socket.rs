//! One client's byte stream: a Unix or TCP socket, with or without TLS, or memory (for fuzzing).
//!
//! The two directions are separate values because they belong to different threads: [`Source`] to the connection's
//! reader, [`Sink`] to whoever writes replies at the moment. Receiving waits at most [`STALL_TIMEOUT`] at a time.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, sockopt};

use super::limits::{SEND_BUFFER_BYTES, STALL_TIMEOUT};
use super::tls::{TlsSink, TlsSource};

/// A connected stream socket with the server's time limits set on it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    /// Set once the connection shall end: no further request is begun.
    closing: AtomicBool,
}

impl Socket {
    pub(crate) fn new(fd: OwnedFd, is_tcp: bool) -> io::Result<Self> {
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(STALL_TIMEOUT))?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Send, Some(STALL_TIMEOUT))?;
        // Room for a whole large reply, so that it leaves in one call while the client still takes the first of it. Less is granted
        // where the administrator allows less (net.core.wmem_max), which is no error.
        let _ = sockopt::set_socket_send_buffer_size(&fd, SEND_BUFFER_BYTES);
        if is_tcp {
            sockopt::set_tcp_nodelay(&fd, true)?;
            // Finds clients that vanished without a word: idle connections are not timed otherwise.
            sockopt::set_socket_keepalive(&fd, true)?;
        }
        Ok(Self {
            fd,
            closing: AtomicBool::new(false),
        })
    }

    /// Receives at least one byte; 0 says that the client has ended its side. `WouldBlock` says that nothing came
    /// for [`STALL_TIMEOUT`].
    pub(crate) fn receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::net::recv(&self.fd, &mut *buf, RecvFlags::empty()) {
                Ok((taken, _)) => return Ok(taken),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// As [`Socket::receive`], except that it never waits: `WouldBlock` says that nothing is there now.
    pub(crate) fn receive_now(&self, buf: &mut [u8]) -> io::Result<usize> {
        let (taken, _) = rustix::net::recv(&self.fd, &mut *buf, RecvFlags::DONTWAIT)?;
        Ok(taken)
    }

    /// Sends some bytes. `WouldBlock` says that the client takes nothing: for [`STALL_TIMEOUT`] if `wait`, right now
    /// if not.
    pub(crate) fn send(&self, slices: &[IoSlice<'_>], wait: bool) -> io::Result<usize> {
        let mut flags = SendFlags::NOSIGNAL;
        if !wait {
            flags |= SendFlags::DONTWAIT;
        }
        loop {
            match rustix::net::sendmsg(&self.fd, slices, &mut SendAncillaryBuffer::default(), flags)
            {
                Err(rustix::io::Errno::INTR) => {}
                done => return Ok(done?),
            }
        }
    }

    /// Asks the connection to end: what is in flight is still answered, nothing new is begun.
    pub(crate) fn ask_to_close(&self) {
        self.closing.store(true, Ordering::Release);
        self.shut(Shutdown::Read);
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Ends both directions now. Errors say that the socket is gone already.
    pub(crate) fn cut(&self) {
        self.closing.store(true, Ordering::Release);
        self.shut(Shutdown::Both);
    }

    fn shut(&self, how: Shutdown) {
        let how = match how {
            Shutdown::Read => rustix::net::Shutdown::Read,
            Shutdown::Write => rustix::net::Shutdown::Write,
            Shutdown::Both => rustix::net::Shutdown::Both,
        };
        let _ = rustix::net::shutdown(&self.fd, how);
    }
}

/// The receiving direction.
pub(crate) enum Source {
    Plain(Arc<Socket>),
    Tls(Box<TlsSource>),
    Memory { bytes: Vec<u8>, taken: usize },
}

impl Source {
    /// Whether [`Self::receive_now`] can tell anything: not what TLS has made of the bytes.
    pub(crate) fn can_look(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    /// Takes what is there now, where a look costs one system call; `None` if nothing is, or if it cannot be looked at like this.
    pub(crate) fn receive_now(&mut self, buf: &mut [u8]) -> Option<io::Result<usize>> {
        let Self::Plain(socket) = self else {
            return None;
        };
        match socket.receive_now(buf) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                None
            }
            done => Some(done),
        }
    }

    /// As [`Socket::receive`].
    pub(crate) fn receive(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.receive(buf),
            Self::Tls(source) => source.receive(buf),
            Self::Memory { bytes, taken } => {
                let len = buf.len().min(bytes.len() - *taken);
                buf[..len].copy_from_slice(&bytes[*taken..*taken + len]);
                *taken += len;
                Ok(len)
            }
        }
    }
}

/// The sending direction.
pub(crate) enum Sink {
    Plain(Arc<Socket>),
    Tls(Box<TlsSink>),
    Memory(Vec<u8>),
}

impl Sink {
    /// Takes some bytes; as [`Socket::send`]. With TLS they may stay buffered until [`Sink::finish`].
    pub(crate) fn send(&mut self, slices: &[IoSlice<'_>], wait: bool) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.send(slices, wait),
            Self::Tls(sink) => sink.send(slices, wait),
            Self::Memory(bytes) => Ok(slices
                .iter()
                .map(|slice| (bytes.extend_from_slice(slice), slice.len()).1)
                .sum()),
        }
    }

    /// Sends what [`Sink::send`] has taken and still holds. `WouldBlock` as there; call again.
    pub(crate) fn finish(&mut self, wait: bool) -> io::Result<()> {
        match self {
            Self::Tls(sink) => sink.finish(wait),
            Self::Plain(_) | Self::Memory(_) => Ok(()),
        }
    }

    /// Sends everything, waiting as long as the client takes some.
    pub(crate) fn send_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let taken = self.send(&[IoSlice::new(bytes)], true)?;
            bytes = &bytes[taken..];
        }
        self.finish(true)
    }

    /// Says goodbye where the layer has a word for it (TLS), then ends both directions.
    pub(crate) fn close(&mut self) {
        match self {
            Self::Plain(socket) => socket.cut(),
            Self::Tls(sink) => sink.close(),
            Self::Memory(_) => {}
        }
    }
}
