//! One port: its name, what is at the host's end of it, and bytes on their way between that and the guest.

mod clipboard;
mod socket;

use std::io::{self, Read, Write};
use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};
use virtio_queue::{Reader, Writer};

use super::{HostEnd, PortSpec};
use crate::clipboard::ClipboardState;
use crate::machine::memory::Memory;
use crate::virtio::ring::{Chain, Ring};
use crate::virtio::state::DeviceStateError;
use clipboard::ClipboardEnd;
use socket::SocketEnd;

/// Bytes given to the guest at a time.
const BYTES: usize = 16 << 10;
/// The longest piece that a guest sends at a time. Linux's driver writes 32 KiB at most; of a longer one the rest is lost.
const PIECE_BYTES_MAX: usize = 1 << 20;

/// What a snapshot keeps of a port's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum EndState {
    /// Nothing: a client is of the process that it spoke to.
    Socket,
    /// What is on its way there.
    Clipboard(Box<ClipboardState>),
}

impl EndState {
    /// It is of another kind than the end that it is given to.
    fn other(&self) -> DeviceStateError {
        let what = match self {
            Self::Socket => "a port was a socket, now it is the clipboard",
            Self::Clipboard(_) => "a port was the clipboard, now it is a socket",
        };
        DeviceStateError::Differs(what.into())
    }
}

/// The host's end of a port.
trait End: Send {
    /// Somebody is there.
    fn is_connected(&self) -> bool;

    /// Something to wait for: that somebody comes, or says something.
    fn events(&self) -> RawFd;

    /// Takes in what is told by [`End::events`].
    fn attend(&mut self) {}

    /// The guest's program has opened or closed its end.
    fn set_guest_open(&mut self, open: bool);

    /// Whether it takes more from the guest now.
    fn is_ready(&mut self) -> bool {
        true
    }

    /// Takes bytes from the guest. It was ready.
    fn take(&mut self, bytes: &[u8]);

    /// Bytes for the guest; how many there are now.
    fn give(&mut self, room: &mut [u8]) -> usize;

    /// What a snapshot keeps of it.
    fn save(&self) -> EndState;

    /// Goes on with that. The guest's program has its end open, or not, as it had then.
    fn restore(&mut self, state: EndState) -> Result<(), DeviceStateError>;
}

/// See the module.
pub(super) struct Port {
    name: String,
    end: Box<dyn End>,
    guest_open: bool,
    /// The guest's driver knows the port, and is told of clients.
    guest_ready: bool,
    piece: Vec<u8>,
}

impl Port {
    /// A port with its end; a socket is made anew.
    pub(super) fn new(spec: &PortSpec) -> io::Result<Self> {
        let end: Box<dyn End> = match &spec.end {
            HostEnd::Socket(path) => Box::new(SocketEnd::listen(path)?),
            HostEnd::Clipboard(clipboard) => Box::new(ClipboardEnd::new(clipboard.clone())?),
        };
        Ok(Self {
            name: spec.name.clone(),
            end,
            guest_open: false,
            guest_ready: false,
            piece: Vec::new(),
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_connected(&self) -> bool {
        self.end.is_connected()
    }

    pub(super) fn events(&self) -> RawFd {
        self.end.events()
    }

    pub(super) fn attend(&mut self) {
        self.end.attend();
    }

    /// The guest's program has opened or closed it.
    pub(super) fn set_guest_open(&mut self, open: bool) {
        self.guest_open = open;
        self.end.set_guest_open(open);
    }

    /// Whether the guest's program has it open.
    pub(super) fn is_guest_open(&self) -> bool {
        self.guest_open
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
        self.guest_ready = false;
        self.set_guest_open(false);
    }

    /// What a snapshot keeps of its end.
    pub(super) fn save_end(&self) -> EndState {
        self.end.save()
    }

    /// Has its end go on with that; the guest's end is as it was.
    pub(super) fn restore_end(&mut self, state: EndState) -> Result<(), DeviceStateError> {
        self.end.restore(state)
    }

    /// Takes what the guest has put in, until the end takes no more.
    pub(super) fn take_from_guest(&mut self, ring: &mut Ring, memory: &Memory) {
        let mut any = false;
        let mut turn = ring.turn();
        while self.end.is_ready() {
            let Some(chain) = ring.next_of(&mut turn, memory) else {
                break;
            };
            let head = chain.head_index();
            if self.read(chain, memory).is_ok() {
                self.end.take(&self.piece);
            }
            ring.done(memory, head, 0);
            any = true;
        }
        if any {
            ring.signal(memory);
        }
    }

    fn read(&mut self, chain: Chain<'_>, memory: &Memory) -> io::Result<()> {
        self.piece.clear();
        let mut reader =
            Reader::new(memory, chain).map_err(|error| io::Error::other(error.to_string()))?;
        let len = reader.available_bytes().min(PIECE_BYTES_MAX);
        self.piece.resize(len, 0);
        reader.read_exact(&mut self.piece)
    }

    /// Gives the guest what the end has for it, as far as it has room.
    pub(super) fn give_to_guest(&mut self, ring: &mut Ring, memory: &Memory) {
        let mut any = false;
        let mut turn = ring.turn();
        let mut bytes = [0; BYTES];
        while self.guest_open && self.end.is_connected() {
            let Some(chain) = ring.next_of(&mut turn, memory) else {
                break;
            };
            let head = chain.head_index();
            let writer = Writer::new(memory, chain);
            let Some(mut writer) = writer.ok().filter(|it| it.available_bytes() > 0) else {
                // Nothing can be put into it.
                ring.done(memory, head, 0);
                any = true;
                continue;
            };
            let room = writer.available_bytes().min(BYTES);
            let len = self.end.give(&mut bytes[..room]);
            if len == 0 {
                ring.put_back();
                break;
            }
            let written = writer.write(&bytes[..len]).unwrap_or(0);
            ring.done(memory, head, written as u32);
            any = true;
        }
        if any {
            ring.signal(memory);
        }
    }
}
