//! A disk on a Unix socket: one front-end after the other.
//!
//! A second one that connects waits until the first is gone: a VMM that was restarted comes back before the kernel has told that its old
//! connection is closed.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::channel::{Channel, ChannelError, wait_readable};
use super::event::Stop;
use super::session::Session;
use super::{Disk, DiskSpec, Held, QUEUES_MAX};
use crate::Seldom;
use crate::nbd::ListenError;
use crate::nbd::listen::Listener;

/// Rest of the thread that accepts when the process is out of file descriptors or memory.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Serves one disk. Dropping it stops it.
pub struct VhostUserServer {
    stop: Arc<Stop>,
    disk: Arc<Disk>,
    thread: Option<JoinHandle<()>>,
}

impl VhostUserServer {
    /// Serves `disk` on a Unix socket at `path` with this mode. A socket file on which nobody listens is replaced; the file is removed at
    /// the end.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn listen(path: &Path, mode: u32, disk: DiskSpec) -> Result<Self, ListenError> {
        let failed = |what, source| ListenError::Io {
            place: path.display().to_string(),
            what,
            source,
        };
        let disk = Arc::new(Disk {
            device: disk.device,
            serial: disk.serial,
            queues: disk.queues.clamp(1, QUEUES_MAX),
            held: Held::default(),
        });
        let listener = Listener::unix(path, mode)?;
        // A front-end that gives up between poll and accept must not block the thread.
        rustix::io::ioctl_fionbio(&listener.fd, true)
            .map_err(|error| failed("set non-blocking", error.into()))?;
        let stop = Stop::new().map_err(|error| failed("make an event", error.into()))?;
        let stop = Arc::new(stop);
        let (stopping, served) = (Arc::clone(&stop), Arc::clone(&disk));
        let thread = std::thread::Builder::new()
            .name("vhost-user".into())
            .spawn(move || serve(listener, &served, &stopping))
            .map_err(|error| failed("start a thread", error))?;
        Ok(Self {
            stop,
            disk,
            thread: Some(thread),
        })
    }

    /// Why requests wait that the device could not do for now, if any do.
    #[must_use]
    pub fn waits_for(&self) -> Option<String> {
        self.disk.held.reason()
    }

    /// Stops: what is in work is finished, but for requests that wait for what is not there; then the connection is closed. A front-end
    /// that reconnects to another server loses nothing.
    pub fn stop(mut self) {
        self.end();
    }

    /// Has it stop; [`VhostUserServer::stop`], or dropping it, waits for that.
    pub fn begin_stop(&self) {
        self.stop.raise();
    }

    fn end(&mut self) {
        self.stop.raise();
        let thread = self.thread.take().map(JoinHandle::join);
        if let Some(Err(_)) = thread {
            // A defect of ours; its thread has told where.
            tracing::error!("a vhost-user server ended by a panic");
        }
    }
}

impl Drop for VhostUserServer {
    fn drop(&mut self) {
        self.end();
    }
}

fn serve(listener: Listener, disk: &Arc<Disk>, stop: &Stop) {
    // Whoever may connect may connect again and again.
    let seldom = Arc::new(Seldom::default());
    loop {
        let socket = match accept(&listener, stop) {
            Ok(socket) => socket,
            Err(ChannelError::Stopped) => return,
            Err(error) => {
                // Waiting itself is refused, which is a defect of ours: the socket is closed, so that it is seen.
                tracing::error!(serial = disk.serial, %error, "no connections are accepted");
                return;
            }
        };
        let session = Session::new(Arc::clone(disk), Channel::new(socket), Arc::clone(&seldom));
        match session.run(stop) {
            ChannelEnd::Closed => tracing::debug!(serial = disk.serial, "front-end is gone"),
            ChannelEnd::Stopped => return,
            ChannelEnd::Failed(reason) if seldom.passes() => {
                tracing::warn!(serial = disk.serial, reason, "front-end is cut off");
            }
            ChannelEnd::Failed(_) => {}
        }
    }
}

/// How a connection ended.
#[derive(Debug)]
pub(crate) enum ChannelEnd {
    Closed,
    Stopped,
    Failed(String),
}

fn accept(listener: &Listener, stop: &Stop) -> Result<OwnedFd, ChannelError> {
    loop {
        wait_readable(&listener.fd, None, Some(stop.as_fd()))?;
        match rustix::net::accept_with(&listener.fd, SocketFlags::CLOEXEC) {
            Ok(socket) => return Ok(socket),
            Err(Errno::INTR | Errno::AGAIN | Errno::CONNABORTED) => {}
            Err(error) => {
                tracing::warn!(%error, "accept");
                std::thread::sleep(ACCEPT_REST);
            }
        }
    }
}
