//! A Unix socket at the host's end, with one client at a time. Without a client, what the guest sends is lost, as on an unplugged line.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{End, EndState};
use crate::virtio::state::DeviceStateError;

/// See the module.
pub(super) struct SocketEnd {
    listener: UnixListener,
    client: Option<UnixStream>,
    /// What the guest sent and the client has not taken.
    unsent: Vec<u8>,
    /// Readable when the listener or the client has something, so that the device waits for one descriptor a port.
    events: Epoll,
}

impl SocketEnd {
    /// A socket that is made anew.
    pub(super) fn listen(path: &Path) -> io::Result<Self> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let events = Epoll::new()?;
        let readable = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        events.ctl(ControlOperation::Add, listener.as_raw_fd(), readable)?;
        Ok(Self {
            listener,
            client: None,
            unsent: Vec::new(),
            events,
        })
    }

    fn hang_up(&mut self) {
        self.client = None;
        self.unsent.clear();
    }
}

impl End for SocketEnd {
    fn is_connected(&self) -> bool {
        self.client.is_some()
    }

    fn events(&self) -> RawFd {
        self.events.as_raw_fd()
    }

    /// Takes clients that have come; the last one stays.
    fn attend(&mut self) {
        // What was told is taken: the descriptor becomes readable again with the next event.
        let mut told = [EpollEvent::default(); 4];
        let _ = self.events.wait(0, &mut told);
        while let Ok((client, _)) = self.listener.accept() {
            let both = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
            let waits = client.set_nonblocking(true).and_then(|()| {
                let event = EpollEvent::new(both, 1);
                self.events
                    .ctl(ControlOperation::Add, client.as_raw_fd(), event)
            });
            if waits.is_ok() {
                self.unsent.clear();
                self.client = Some(client);
            }
        }
    }

    /// What the guest sent before it closed still goes to the client.
    fn set_guest_open(&mut self, _open: bool) {}

    fn is_ready(&mut self) -> bool {
        while let Some(client) = &mut self.client
            && !self.unsent.is_empty()
        {
            match client.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.hang_up(),
            }
        }
        self.unsent.is_empty()
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.client.is_some() {
            self.unsent.extend_from_slice(bytes);
        }
    }

    fn give(&mut self, room: &mut [u8]) -> usize {
        let Some(client) = &mut self.client else {
            return 0;
        };
        match client.read(room) {
            Ok(len) if len > 0 => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            _ => {
                self.hang_up();
                0
            }
        }
    }

    fn save(&self) -> EndState {
        EndState::Socket
    }

    fn restore(&mut self, state: EndState) -> Result<(), DeviceStateError> {
        match state {
            EndState::Socket => Ok(()),
            other @ EndState::Clipboard(_) => Err(other.other()),
        }
    }
}
