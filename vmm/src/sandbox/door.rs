//! Reaching a disk's server, or a program that the guest calls, from where no name can be opened.
//!
//! A server may go away and come back while a machine runs, so that its socket has to be opened again and again; a guest calls when it
//! likes. Inside of the sandbox that is asked of the outer process ([`super::outer`]), which knows the servers of this machine by number
//! and the programs by the number of a port: what a hostile guest can ask for is a connection to a disk that it has anyway, or to what
//! it may call anyway.
//!
//! ```text
//! inner: kind, 1 byte (0 a server, 1 a program), and its number, 4 bytes little-endian
//! outer: 0 and the connection, or why there is none (errno), 4 bytes little-endian
//! ```

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::machine::bus::lock;

/// Most servers of a machine: more than devices fit on its bus.
pub const SERVERS_MAX: usize = 32;
/// Bytes of a request.
pub(super) const REQUEST_BYTES: usize = 5;
/// Bytes of an answer.
pub(super) const ANSWER_BYTES: usize = 4;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A disk's server.
    Server(u32),
    /// A program of the host that the guest calls, by its port.
    Service(u32),
}

impl Wanted {
    fn bytes(self) -> [u8; REQUEST_BYTES] {
        let (kind, number) = match self {
            Self::Server(number) => (0, number),
            Self::Service(port) => (1, port),
        };
        let [a, b, c, d] = number.to_le_bytes();
        [kind, a, b, c, d]
    }

    /// `None`: nothing that there is.
    pub(super) fn parse(bytes: [u8; REQUEST_BYTES]) -> Option<Self> {
        let [kind, number @ ..] = bytes;
        let number = u32::from_le_bytes(number);
        match kind {
            0 => Some(Self::Server(number)),
            1 => Some(Self::Service(number)),
            _ => None,
        }
    }
}

/// Asks the outer process. Copies ask one after another.
#[derive(Debug, Clone)]
pub struct Clerk(Arc<Mutex<UnixStream>>);

impl Clerk {
    pub(crate) fn new(outer: UnixStream) -> Self {
        Self(Arc::new(Mutex::new(outer)))
    }

    /// Calls the program that serves a port.
    ///
    /// # Errors
    /// Nobody does, or there were too many calls of late.
    pub fn call(&self, port: u32) -> io::Result<UnixStream> {
        self.open(Wanted::Service(port))
    }

    fn open(&self, wanted: Wanted) -> io::Result<UnixStream> {
        let outer = lock(&self.0);
        (&*outer).write_all(&wanted.bytes())?;
        let mut answer = [0; ANSWER_BYTES];
        let (len, socket) = outer.recv_with_fd(&mut answer)?;
        if len < ANSWER_BYTES {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match (i32::from_le_bytes(answer), socket) {
            (0, Some(socket)) => Ok(OwnedFd::from(socket).into()),
            (error, _) => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Where a clerk is left for a device that was made before there was one.
#[derive(Debug, Clone, Default)]
pub struct Desk(Arc<OnceLock<Clerk>>);

impl Desk {
    /// Leaves it, for good.
    pub fn leave(&self, clerk: &Clerk) {
        // There is one for each process; whoever comes second brings the same.
        let _ = self.0.set(clerk.clone());
    }

    /// Who was left.
    pub fn clerk(&self) -> Option<&Clerk> {
        self.0.get()
    }
}

/// A server's socket.
#[derive(Debug, Clone)]
pub struct Door {
    path: PathBuf,
    /// Who opens it, and what it is called there, if this process cannot by itself.
    clerk: Option<(Clerk, u8)>,
}

impl Door {
    /// The socket at `path`, which is number `number` of those that `clerk` opens.
    pub fn with_clerk(path: &Path, clerk: Clerk, number: u8) -> Self {
        Self {
            path: path.to_owned(),
            clerk: Some((clerk, number)),
        }
    }

    /// Its name outside.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it.
    ///
    /// # Errors
    /// Nobody listens there, or it may not be opened.
    pub fn connect(&self) -> io::Result<UnixStream> {
        match &self.clerk {
            None => UnixStream::connect(&self.path),
            Some((clerk, number)) => clerk.open(Wanted::Server((*number).into())),
        }
    }
}

impl<P: AsRef<Path> + ?Sized> From<&P> for Door {
    fn from(path: &P) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            clerk: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_five_bytes_and_others_are_nothing() {
        for (wanted, bytes) in [
            (Wanted::Server(7), [0, 7, 0, 0, 0]),
            (Wanted::Service(0x0102_0304), [1, 4, 3, 2, 1]),
        ] {
            assert_eq!(wanted.bytes(), bytes);
            assert_eq!(Wanted::parse(bytes), Some(wanted));
        }
        assert_eq!(Wanted::parse([2, 0, 0, 0, 0]), None);
        assert_eq!(Wanted::parse([0xff; REQUEST_BYTES]), None);
    }
}
