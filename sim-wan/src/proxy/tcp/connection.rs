//! One connection through the TCP proxy: its two sockets and what waits to be written to them. It moves no bytes through
//! the link; that is the proxy's loop.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

use crate::link::Direction;

/// What a segment says to the other side.
#[derive(Clone)]
pub(super) enum Content {
    Open,
    Opened,
    Established,
    Data(Vec<u8>),
    Fin,
    Reset,
}

/// One end of a connection: the client's or the target's socket.
#[derive(Default)]
pub(super) struct Side {
    pub(super) socket: Option<TcpStream>,
    pub(super) connecting: bool,
    /// The handshake has got far enough for this end to send, so reading may begin.
    pub(super) opened: bool,
    pub(super) read_ended: bool,
    pub(super) outbox: VecDeque<u8>,
    /// The other side has ended; shut down once the outbox is empty.
    pub(super) ending: bool,
    write_ended: bool,
}

impl Side {
    /// The client's end of a connection that was just accepted.
    pub(super) fn accepted(socket: TcpStream) -> Self {
        Self {
            socket: Some(socket),
            ..Self::default()
        }
    }

    /// Writes what the socket takes, then passes on the other side's end. An error means that the peer is gone.
    pub(super) fn write(&mut self) -> io::Result<()> {
        let Some(socket) = self
            .socket
            .as_mut()
            .filter(|_| !self.connecting && !self.write_ended)
        else {
            return Ok(());
        };
        while !self.outbox.is_empty() {
            match socket.write(self.outbox.as_slices().0) {
                Ok(length) => drop(self.outbox.drain(..length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.ending {
            self.write_ended = true;
            socket.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }
}

/// Both ends.
#[derive(Default)]
pub(super) struct Connection {
    pub(super) client: Side,
    pub(super) server: Side,
    pub(super) reset: bool,
}

impl Connection {
    /// The side that sends in a direction and the side that receives.
    pub(super) fn ends(&mut self, direction: Direction) -> (&mut Side, &mut Side) {
        match direction {
            Direction::Up => (&mut self.client, &mut self.server),
            Direction::Down => (&mut self.server, &mut self.client),
        }
    }

    /// Whether both directions have ended or a side was reset; a reset is passed on as one, not as an orderly end.
    pub(super) fn end_if_over(&self) -> bool {
        if self.reset {
            for socket in [&self.client.socket, &self.server.socket]
                .into_iter()
                .flatten()
            {
                let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
            }
        }
        self.reset || (self.client.write_ended && self.server.write_ended)
    }
}

pub(super) fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    socket.set_nodelay(true)
}

/// Starts a connect without waiting for it.
pub(super) fn begin_connect(target: SocketAddr) -> io::Result<TcpStream> {
    let family = if target.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let socket = TcpStream::from(socket);
    prepare(&socket)?;
    Ok(socket)
}
