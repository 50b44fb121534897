//! Reaching a disk's server from where no name can be opened.
//!
//! A server may go away and come back while a machine runs, so that its socket has to be opened again and again. Inside of the sandbox
//! that is asked of the outer process ([`super::outer`]), which knows the servers of this machine by number: what a hostile guest can ask
//! for is a connection to a disk that it has anyway.
//!
//! ```text
//! inner: number of the server, 1 byte      outer: 0 and the connection, or why there is none (errno), 4 bytes little-endian
//! ```

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::machine::bus::lock;

/// Most servers of a machine: more than devices fit on its bus.
pub const SERVERS_MAX: usize = 32;
/// Bytes of an answer.
pub(super) const ANSWER_BYTES: usize = 4;

/// Asks the outer process. Copies ask one after another.
#[derive(Debug, Clone)]
pub struct Clerk(Arc<Mutex<UnixStream>>);

impl Clerk {
    pub(super) fn new(outer: UnixStream) -> Self {
        Self(Arc::new(Mutex::new(outer)))
    }

    fn open(&self, number: u8) -> io::Result<UnixStream> {
        let outer = lock(&self.0);
        (&*outer).write_all(&[number])?;
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
            Some((clerk, number)) => clerk.open(*number),
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
