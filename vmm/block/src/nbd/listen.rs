//! Listening sockets: binding them without taking anything away from a server that still runs.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Why a server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process answers on the socket.
    #[error("{} is in use by a running server; stop that one or choose another path", .0.display())]
    InUse(PathBuf),
    /// Something that is no socket is there.
    #[error("{} exists and is not a socket; it is left alone, choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The operating system refused.
    #[error("{place}: {what}")]
    Io {
        /// Path or address.
        place: String,
        /// The step that failed.
        what: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// The server is shut down.
    #[error("the server is shut down")]
    ShutDown,
}

/// A listening socket; the path of a Unix one is removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) fd: OwnedFd,
    pub(crate) is_tcp: bool,
    unix: Option<Bound>,
}

#[derive(Debug)]
struct Bound {
    path: PathBuf,
    /// Device and inode, so that the path is only removed while it is still ours.
    identity: (u64, u64),
}

impl Listener {
    /// Listens on a Unix socket that only this user may connect to (mode 0600 from its first moment; who else may,
    /// is decided by `mode`). A socket file on which nobody listens is replaced.
    pub(crate) fn unix(path: &Path, mode: u32) -> Result<Self, ListenError> {
        let failed = |what| {
            move |error: rustix::io::Errno| ListenError::Io {
                place: path.display().to_string(),
                what,
                source: error.into(),
            }
        };
        let address = SocketAddrUnix::new(path)
            .map_err(failed("use as a socket path (at most 107 bytes)"))?;
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let folder = rustix::fs::open(
            folder,
            OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(failed("open its folder"))?;
        // Held over look, removal and bind, so that two servers that start at once do not remove each other's socket.
        rustix::fs::flock(&folder, FlockOperation::LockExclusive)
            .map_err(failed("lock its folder"))?;
        Self::clear_the_way(path, &address)?;
        let fd = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(failed("make a socket"))?;
        // On Linux the file that bind makes takes its mode from the socket.
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o600)).map_err(failed("set its mode"))?;
        rustix::net::bind(&fd, &address).map_err(failed("bind"))?;
        let status = std::fs::symlink_metadata(path).map_err(|source| ListenError::Io {
            place: path.display().to_string(),
            what: "look at the new socket",
            source,
        })?;
        let unix = Some(Bound {
            path: path.to_owned(),
            identity: (status.dev(), status.ino()),
        });
        let listener = Self {
            fd,
            is_tcp: false,
            unix,
        };
        if mode != 0o600 {
            rustix::fs::chmod(path, Mode::from_raw_mode(mode)).map_err(failed("set its mode"))?;
        }
        rustix::net::listen(&listener.fd, BACKLOG).map_err(failed("listen"))?;
        Ok(listener)
    }

    fn clear_the_way(path: &Path, address: &SocketAddrUnix) -> Result<(), ListenError> {
        let failed = |what, source| ListenError::Io {
            place: path.display().to_string(),
            what,
            source,
        };
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("look at", error)),
            Ok(status) if !std::os::unix::fs::FileTypeExt::is_socket(&status.file_type()) => {
                return Err(ListenError::NotASocket(path.to_owned()));
            }
            Ok(_) => {}
        }
        let probe = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|error| failed("make a socket", error.into()))?;
        match rustix::net::connect(&probe, address) {
            // The kernel's word that nobody listens: the server that made the file is gone.
            Err(rustix::io::Errno::CONNREFUSED) => {
                std::fs::remove_file(path).map_err(|error| failed("remove the stale socket", error))
            }
            Err(rustix::io::Errno::NOENT) => Ok(()),
            _ => Err(ListenError::InUse(path.to_owned())),
        }
    }

    /// Listens on a TCP address.
    pub(crate) fn tcp(address: SocketAddr) -> Result<(Self, SocketAddr), ListenError> {
        let failed = |source| ListenError::Io {
            place: address.to_string(),
            what: "listen",
            source,
        };
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        Ok((
            Self {
                fd: OwnedFd::from(listener),
                is_tcp: true,
                unix: None,
            },
            local,
        ))
    }

    /// The user and process at the other end of a Unix connection.
    pub(crate) fn peer(fd: impl AsFd) -> io::Result<(u32, i32)> {
        let credentials = sockopt::socket_peercred(fd)?;
        Ok((
            credentials.uid.as_raw(),
            credentials.pid.as_raw_nonzero().get(),
        ))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some(bound) = &self.unix else { return };
        let still_ours = std::fs::symlink_metadata(&bound.path)
            .is_ok_and(|status| (status.dev(), status.ino()) == bound.identity);
        if still_ours {
            // Best effort: what is left behind is recognised as stale by the next server.
            let _ = std::fs::remove_file(&bound.path);
        }
    }
}
