//! One port: a listening socket, its client, and what is on its way between them and the guest.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use virtio_queue::{Reader, Writer};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::PortSpec;
use crate::machine::memory::Memory;
use crate::virtio::ring::Ring;

/// Bytes moved to the guest at a time.
const BYTES: usize = 16 << 10;
/// Most bytes of one chain from the guest: a pipe's worth, which is the most that Linux splices into a port. What a chain has beyond is
/// lost.
const CHAIN_BYTES_MAX: usize = 1 << 20;

/// See the module.
pub(super) struct Port {
    name: String,
    listener: UnixListener,
    client: Option<UnixStream>,
    /// What the guest sent and the client has not taken.
    unsent: Vec<u8>,
    guest_open: bool,
    /// The guest's driver knows the port, and is told of clients.
    guest_ready: bool,
    /// Readable when the listener or the client has something, so that the device waits for one descriptor a port.
    events: Epoll,
}

impl Port {
    /// A port whose socket is made anew.
    pub(super) fn listen(spec: &PortSpec) -> io::Result<Self> {
        let _ = std::fs::remove_file(&spec.socket);
        let listener = UnixListener::bind(&spec.socket)?;
        listener.set_nonblocking(true)?;
        let events = Epoll::new()?;
        let readable = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        events.ctl(ControlOperation::Add, listener.as_raw_fd(), readable)?;
        Ok(Self {
            name: spec.name.clone(),
            listener,
            client: None,
            unsent: Vec::new(),
            guest_open: false,
            guest_ready: false,
            events,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn has_client(&self) -> bool {
        self.client.is_some()
    }

    /// The guest's program has opened or closed it. What it sent before it closed still goes to the client.
    pub(super) fn set_guest_open(&mut self, open: bool) {
        self.guest_open = open;
    }

    /// Whether the guest's driver wants to hear of clients.
    pub(super) fn is_guest_ready(&self) -> bool {
        self.guest_ready
    }

    /// The guest's driver has found it.
    pub(super) fn set_guest_ready(&mut self) {
        self.guest_ready = true;
    }

    /// The guest's driver is gone, or will find it again.
    pub(super) fn forget_guest(&mut self) {
        (self.guest_ready, self.guest_open) = (false, false);
    }

    /// Whether the guest's program has it open.
    pub(super) fn guest_open(&self) -> bool {
        self.guest_open
    }

    /// Something to wait for: clients that come, and what they send.
    pub(super) fn events(&self) -> RawFd {
        self.events.as_raw_fd()
    }

    /// Takes clients that have come; the last one stays.
    pub(super) fn accept(&mut self) {
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

    /// Sends what the guest has put in, until the client takes no more. Without a client it is lost, as on an unplugged line.
    pub(super) fn take_from_guest(&mut self, ring: &mut Ring, memory: &Memory) {
        let mut any = false;
        let mut turn = ring.turn();
        loop {
            self.flush();
            if !self.unsent.is_empty() {
                break;
            }
            let Some(chain) = ring.next_of(&mut turn, memory) else {
                break;
            };
            let head = chain.head_index();
            if let Ok(mut reader) = Reader::new(memory, chain)
                && self.client.is_some()
            {
                let len = reader.available_bytes().min(CHAIN_BYTES_MAX);
                self.unsent.resize(len, 0);
                if reader.read_exact(&mut self.unsent).is_err() {
                    self.unsent.clear();
                }
            }
            ring.done(memory, head, 0);
            any = true;
        }
        if any {
            ring.signal(memory);
        }
    }

    fn flush(&mut self) {
        while let Some(client) = &mut self.client
            && !self.unsent.is_empty()
        {
            match client.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.hang_up(),
            }
        }
    }

    fn hang_up(&mut self) {
        self.client = None;
        self.unsent.clear();
    }

    /// Gives the guest what the client has sent, as far as it has room.
    pub(super) fn give_to_guest(&mut self, ring: &mut Ring, memory: &Memory) {
        let mut any = false;
        let mut turn = ring.turn();
        let mut bytes = [0; BYTES];
        while self.guest_open
            && let Some(client) = &mut self.client
        {
            let Some(chain) = ring.next_of(&mut turn, memory) else {
                break;
            };
            let head = chain.head_index();
            let writer = Writer::new(memory, chain).ok();
            let Some(mut writer) = writer.filter(|writer| writer.available_bytes() > 0) else {
                // Nothing can be put into it.
                ring.done(memory, head, 0);
                any = true;
                continue;
            };
            let room = writer.available_bytes().min(BYTES);
            match client.read(&mut bytes[..room]) {
                Ok(len) if len > 0 => {
                    let written = writer.write(&bytes[..len]).unwrap_or(0);
                    ring.done(memory, head, written as u32);
                    any = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ring.put_back();
                    break;
                }
                _ => {
                    ring.put_back();
                    self.hang_up();
                }
            }
        }
        if any {
            ring.signal(memory);
        }
    }
}
