//! The server: listening sockets, one thread per connection, and an orderly end.
//!
//! Guest I/O stays outside any async run time: threads that wait for a guest or a disk are ordinary threads.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::SocketFlags;

use super::connection::Connection;
use super::export::{Client, ExportSource, Origin};
use super::handshake::Handshake;
use super::intake::Intake;
use super::limits::{HANDSHAKE_TIMEOUT, SERVER_CONNECTIONS_MAX};
use super::listen::{ListenError, Listener};
use super::outbox::Outbox;
use super::socket::{Sink, Socket, Source};

/// How long [`NbdServer::shutdown`] waits for connections to end after it has cut their sockets.
const CUT_GRACE: Duration = Duration::from_secs(5);

/// How long an accept thread rests when the process is out of file descriptors or memory.
const ACCEPT_REST: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// How clients may use TLS.
#[derive(Clone)]
pub struct TlsPolicy {
    /// Certificates, client verification and versions, as the caller decided.
    pub config: Arc<rustls::ServerConfig>,
    /// Refuse everything before TLS. Otherwise clients choose.
    pub required: bool,
}

/// What a server needs to know besides its exports.
#[derive(Clone)]
pub struct NbdOptions {
    /// `None`: no TLS, which suits a Unix socket; a TCP socket that leaves the machine should have it.
    pub tls: Option<TlsPolicy>,
    /// Mode of the Unix socket's file.
    pub unix_mode: u32,
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self {
            tls: None,
            unix_mode: 0o600,
        }
    }
}

struct Shared {
    exports: Arc<dyn ExportSource>,
    options: NbdOptions,
    /// Readable once the server shall end.
    stop: OwnedFd,
    stopping: AtomicBool,
    connections: Mutex<HashMap<u64, Arc<Socket>>>,
    gone: Condvar,
}

/// An NBD server. Dropping it shuts it down, giving requests in flight a moment only; see [`NbdServer::shutdown`].
pub struct NbdServer {
    shared: Arc<Shared>,
    accepting: Mutex<Vec<JoinHandle<()>>>,
}

impl NbdServer {
    /// A server that listens nowhere yet.
    ///
    /// # Errors
    /// No event descriptor can be had.
    pub fn new(exports: Arc<dyn ExportSource>, options: NbdOptions) -> std::io::Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Shared {
            exports,
            options,
            stop,
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
            gone: Condvar::new(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            accepting: Mutex::default(),
        })
    }

    /// Serves on a Unix socket. A socket file on which nobody listens is replaced; the file is removed at the end.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn listen_unix(&self, path: &Path) -> Result<(), ListenError> {
        let listener = Listener::unix(path, self.shared.options.unix_mode)?;
        self.accept_from(listener, &path.display().to_string())
    }

    /// Serves on a TCP address, and returns it (with the port that port 0 was given).
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn listen_tcp(&self, address: SocketAddr) -> Result<SocketAddr, ListenError> {
        let (listener, local) = Listener::tcp(address)?;
        self.accept_from(listener, &local.to_string())?;
        Ok(local)
    }

    fn accept_from(&self, listener: Listener, place: &str) -> Result<(), ListenError> {
        let mut accepting = self
            .accepting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.shared.stopping.load(Ordering::Acquire) {
            return Err(ListenError::ShutDown);
        }
        let failed = |what, source| ListenError::Io {
            place: place.to_owned(),
            what,
            source,
        };
        // A client that gives up between poll and accept must not block the thread.
        rustix::io::ioctl_fionbio(&listener.fd, true)
            .map_err(|error| failed("set non-blocking", error.into()))?;
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name("nbd-accept".into())
            .spawn(move || shared.accept(&listener))
            .map_err(|error| failed("start a thread", error))?;
        accepting.push(thread);
        Ok(())
    }

    /// Connections that are open now, handshakes included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.lock().len()
    }

    /// Stops accepting, lets requests in flight finish, and closes every connection; what has not ended after `grace`
    /// is cut. Returns whether every connection has ended; false means that a device call has not come back.
    pub fn shutdown(&self, grace: Duration) -> bool {
        self.shared.stopping.store(true, Ordering::Release);
        // Fails only if the counter is full, and then it is readable all the same.
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        let accepting = std::mem::take(
            &mut *self
                .accepting
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for thread in accepting {
            if thread.join().is_err() {
                tracing::error!("an NBD accept thread panicked");
            }
        }
        let mut connections = self.shared.lock();
        for socket in connections.values() {
            socket.ask_to_close();
        }
        connections = self.shared.wait_until_gone(connections, grace);
        for socket in connections.values() {
            socket.cut();
        }
        self.shared
            .wait_until_gone(connections, CUT_GRACE)
            .is_empty()
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.shutdown(Duration::from_secs(1));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Socket>>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until_gone<'a>(
        &'a self,
        mut connections: MutexGuard<'a, HashMap<u64, Arc<Socket>>>,
        grace: Duration,
    ) -> MutexGuard<'a, HashMap<u64, Arc<Socket>>> {
        let deadline = Instant::now() + grace;
        while !connections.is_empty() {
            let Some(left) = deadline
                .checked_duration_since(Instant::now())
                .filter(|left| !left.is_zero())
            else {
                break;
            };
            connections = self
                .gone
                .wait_timeout(connections, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        connections
    }

    fn accept(self: &Arc<Self>, listener: &Listener) {
        loop {
            let mut ready = [
                PollFd::new(&listener.fd, PollFlags::IN),
                PollFd::new(&self.stop, PollFlags::IN),
            ];
            // Without a time limit poll fails with EINTR only.
            let _ = poll(&mut ready, None);
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            match rustix::net::accept_with(&listener.fd, SocketFlags::CLOEXEC) {
                Ok(fd) => self.welcome(fd, listener.is_tcp),
                Err(
                    rustix::io::Errno::AGAIN
                    | rustix::io::Errno::INTR
                    | rustix::io::Errno::CONNABORTED,
                ) => {}
                Err(error) => {
                    tracing::warn!(%error, "no connection can be accepted");
                    let _ = poll(
                        &mut [PollFd::new(&self.stop, PollFlags::IN)],
                        Some(&ACCEPT_REST),
                    );
                }
            }
        }
    }

    /// Starts a connection's thread; a connection too many is dropped on the spot.
    fn welcome(self: &Arc<Self>, fd: OwnedFd, is_tcp: bool) {
        let origin = if is_tcp {
            rustix::net::getpeername(&fd)
                .ok()
                .flatten()
                .and_then(|peer| SocketAddr::try_from(peer).ok())
                .map(Origin::Tcp)
        } else {
            Listener::peer(&fd)
                .ok()
                .map(|(uid, pid)| Origin::Unix { uid, pid })
        };
        let (Some(origin), Ok(socket)) = (origin, Socket::new(fd, is_tcp)) else {
            return;
        };
        let socket = Arc::new(socket);
        let id = {
            let mut connections = self.lock();
            if connections.len() >= SERVER_CONNECTIONS_MAX {
                tracing::warn!(
                    ?origin,
                    "dropped: the server has its {SERVER_CONNECTIONS_MAX} connections already"
                );
                return;
            }
            // The address of a live value is unique among live values.
            let id = Arc::as_ptr(&socket) as u64;
            connections.insert(id, Arc::clone(&socket));
            id
        };
        let place = Place {
            shared: Arc::clone(self),
            id,
        };
        let spawned = std::thread::Builder::new()
            .name("nbd-connection".into())
            .spawn(move || {
                let _place = &place;
                place.shared.serve(&socket, origin);
            });
        if let Err(error) = spawned {
            tracing::warn!(%error, ?origin, "no thread for a connection");
        }
    }

    fn serve(&self, socket: &Arc<Socket>, origin: Origin) {
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        let client = Client {
            origin,
            tls: false,
            certificate: None,
        };
        let mut handshake = Handshake::new(
            Intake::new(Source::Plain(Arc::clone(socket)), Some(deadline)),
            Sink::Plain(Arc::clone(socket)),
            Some(Arc::clone(socket)),
            client,
            &*self.exports,
            self.options.tls.as_ref(),
            deadline,
        );
        let chosen = match handshake.run() {
            Ok(Some(chosen)) => chosen,
            Ok(None) => return handshake.sink.close(),
            Err(error) => {
                tracing::debug!(
                    ?origin,
                    error = &error as &dyn std::error::Error,
                    "NBD handshake"
                );
                return handshake.sink.close();
            }
        };
        let Handshake {
            mut intake, sink, ..
        } = handshake;
        intake.clear_deadline();
        let export = Arc::clone(&chosen.seat.export);
        let outbox = Arc::new(Outbox::new(sink, Some(Arc::clone(socket))));
        let connection = Connection::new(
            chosen.seat,
            chosen.agreement,
            outbox,
            Some(Arc::clone(socket)),
        );
        tracing::debug!(export = export.name(), ?origin, "NBD client connected");
        match connection.serve(&mut intake) {
            Ok(()) => tracing::debug!(export = export.name(), ?origin, "NBD client left"),
            Err(error) => {
                tracing::info!(
                    export = export.name(),
                    ?origin,
                    error = &error as &dyn std::error::Error,
                    "NBD client dropped"
                );
            }
        }
    }
}

/// A connection's place in the server's list; dropping it gives the place back.
struct Place {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.lock().remove(&self.id);
        self.shared.gone.notify_all();
    }
}
