//! Ports between guest and host (virtio 1.2, section 5.3): each has a name by which a guest's agent finds it, and is a Unix socket on
//! the host, or the machine's clipboard.
//!
//! One client a socket at a time. A guest that reads nothing holds its client up, a client that reads nothing holds the guest's port up;
//! neither holds up anything else.

mod port;
mod state;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use virtio_queue::{Reader, Writer};

use super::ring::Ring;
use super::state::{DeviceState, DeviceStateError};
use super::worker::{Handler, Worker};
use super::{Device, Kind, StartError, Started, read_from};
use crate::clipboard::Clipboard;
use crate::machine::memory::Memory;
use crate::threads::Role;
use port::Port;
pub use state::ConsoleState;

const QUEUE_SIZE: u16 = 64;
/// Most ports.
pub const PORTS_MAX: usize = 8;

/// There are several ports, and queues to speak about them.
const F_MULTIPORT: u64 = 1 << 1;

/// Queues to speak about ports, behind port 0's own two.
const CONTROL_RX: usize = 2;
const CONTROL_TX: usize = 3;

/// What is said about ports.
mod control {
    pub(super) const DEVICE_READY: u16 = 0;
    pub(super) const DEVICE_ADD: u16 = 1;
    pub(super) const PORT_READY: u16 = 3;
    pub(super) const PORT_OPEN: u16 = 6;
    pub(super) const PORT_NAME: u16 = 7;
    /// Bytes of a message before a name.
    pub(super) const BYTES: usize = 8;
}

/// Messages to the guest that wait for room: a few for each port.
const MESSAGES_MAX: usize = PORTS_MAX * 8;

/// A port to be had.
#[derive(Clone)]
pub struct PortSpec {
    /// What the guest knows it by, such as `org.qemu.guest_agent.0`.
    pub name: String,
    /// What is at the host's end.
    pub end: HostEnd,
}

/// The host's end of a port.
#[derive(Clone)]
pub enum HostEnd {
    /// A Unix socket, made anew.
    Socket(PathBuf),
    /// The clipboard that viewers share.
    Clipboard(Clipboard),
}

/// Number of a port's first queue (to the guest); the second (from the guest) follows.
fn queue_of(port: usize) -> usize {
    if port == 0 { 0 } else { 2 * port + 2 }
}

fn message(port: usize, event: u16, value: u16, name: &str) -> Vec<u8> {
    let mut message = (port as u32).to_le_bytes().to_vec();
    message.extend(event.to_le_bytes());
    message.extend(value.to_le_bytes());
    message.extend(name.as_bytes());
    message
}

struct Ports {
    rings: Vec<Option<Ring>>,
    memory: Memory,
    ports: Vec<Port>,
    messages: VecDeque<Vec<u8>>,
}

/// Tokens of sockets: 2 for each port, behind those of queues.
const SOCKETS: u64 = 1 << 16;

impl Ports {
    fn tell(&mut self, port: usize, event: u16, value: u16, name: &str) {
        if self.messages.len() >= MESSAGES_MAX {
            // A guest that asks again and again without listening.
            return;
        }
        self.messages.push_back(message(port, event, value, name));
        self.send_messages();
    }

    fn send_messages(&mut self) {
        let memory = &self.memory;
        let Some(Some(ring)) = self.rings.get_mut(CONTROL_RX) else {
            return;
        };
        let mut any = false;
        while let Some(message) = self.messages.front() {
            let Some(chain) = ring.next(memory) else {
                break;
            };
            let head = chain.head_index();
            let written = Writer::new(memory, chain)
                .ok()
                .and_then(|mut writer| io::Write::write(&mut writer, message).ok());
            ring.done(memory, head, written.unwrap_or(0) as u32);
            self.messages.pop_front();
            any = true;
        }
        if any {
            ring.signal(memory);
        }
    }

    fn read_messages(&mut self) {
        let memory = self.memory.clone();
        let mut heard = Vec::new();
        if let Some(Some(ring)) = self.rings.get_mut(CONTROL_TX) {
            ring.drain(&memory, |chain| {
                let mut message = [0; control::BYTES];
                let read = Reader::new(&memory, chain)
                    .map(|mut reader| io::Read::read_exact(&mut reader, &mut message));
                if matches!(read, Ok(Ok(()))) {
                    heard.push(message);
                }
                0
            });
        }
        for message in heard {
            let [a, b, c, d, e, f, g, h] = message;
            let port = u32::from_le_bytes([a, b, c, d]) as usize;
            let (event, value) = (u16::from_le_bytes([e, f]), u16::from_le_bytes([g, h]));
            self.hear(port, event, value);
        }
    }

    fn hear(&mut self, port: usize, event: u16, value: u16) {
        match event {
            control::DEVICE_READY if value == 1 => {
                for port in 0..self.ports.len() {
                    self.tell(port, control::DEVICE_ADD, 0, "");
                }
            }
            control::PORT_READY if value == 1 && port < self.ports.len() => {
                self.ports[port].set_guest_ready();
                let name = self.ports[port].name().to_owned();
                self.tell(port, control::PORT_NAME, 1, &name);
                if self.ports[port].is_connected() {
                    self.tell(port, control::PORT_OPEN, 1, "");
                }
            }
            control::PORT_OPEN => {
                if let Some(it) = self.ports.get_mut(port) {
                    it.set_guest_open(value == 1);
                    // Something may be there for it already.
                    self.move_bytes(port);
                }
            }
            _ => {}
        }
    }

    /// Moves bytes in both directions as far as they go, and tells the guest of clients that came or went.
    fn move_bytes(&mut self, index: usize) {
        let memory = self.memory.clone();
        let queue = queue_of(index);
        let (to_guest, from_guest) = (queue, queue + 1);
        let port = &mut self.ports[index];
        let was_connected = port.is_connected();
        port.attend();
        if let Some(Some(ring)) = self.rings.get_mut(from_guest) {
            port.take_from_guest(ring, &memory);
        }
        if let Some(Some(ring)) = self.rings.get_mut(to_guest) {
            port.give_to_guest(ring, &memory);
        }
        let is_connected = port.is_connected();
        if was_connected != is_connected && port.is_guest_ready() {
            self.tell(index, control::PORT_OPEN, is_connected.into(), "");
        }
    }
}

impl Handler for Ports {
    const ROLE: Role = Role::Ports;

    fn ready(&mut self, token: u64) {
        if token >= SOCKETS {
            self.move_bytes((token - SOCKETS) as usize);
            return;
        }
        match token as usize {
            CONTROL_RX => self.send_messages(),
            CONTROL_TX => self.read_messages(),
            queue => {
                let port = if queue < 2 { 0 } else { (queue - 2) / 2 };
                if port < self.ports.len() {
                    self.move_bytes(port);
                }
            }
        }
    }
}

/// See the module.
pub struct Console {
    ports: Vec<Port>,
    /// What the guest is still to be told, while it is not at work.
    messages: VecDeque<Vec<u8>>,
    worker: Option<Worker<Ports>>,
}

impl Console {
    /// A device with these ports.
    ///
    /// # Errors
    /// A socket cannot be made.
    pub fn new(ports: &[PortSpec]) -> io::Result<Self> {
        assert!((1..=PORTS_MAX).contains(&ports.len()));
        let ports = ports.iter().map(Port::new).collect::<Result<_, _>>()?;
        Ok(Self {
            ports,
            messages: VecDeque::new(),
            worker: None,
        })
    }
}

impl Device for Console {
    fn kind(&self) -> Kind {
        Kind::Console
    }

    fn features(&self) -> u64 {
        F_MULTIPORT
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let ports = self.ports.len().max(1);
        vec![QUEUE_SIZE; queue_of(ports - 1).max(CONTROL_RX) + 2]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        // Columns and rows are not told.
        let mut config = vec![0; 4];
        config.extend((self.ports.len() as u32).to_le_bytes());
        read_from(&config, offset, data);
    }

    fn start(&mut self, started: Started) -> Result<(), StartError> {
        let mut waits: Vec<(RawFd, u64)> = started
            .rings
            .iter()
            .flatten()
            .map(|ring| (ring.kick().as_raw_fd(), ring.index() as u64))
            .collect();
        for (index, port) in self.ports.iter().enumerate() {
            waits.push((port.events(), SOCKETS + index as u64));
        }
        let ports = Ports {
            rings: started.rings,
            memory: started.memory,
            ports: std::mem::take(&mut self.ports),
            messages: std::mem::take(&mut self.messages),
        };
        let worker = Worker::spawn("console", ports, &waits);
        self.worker =
            Some(worker.map_err(|error| StartError::Host("the console's thread", error))?);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Ring>> {
        let Some(worker) = self.worker.take() else {
            return Vec::new();
        };
        let ports = worker.stop();
        (self.ports, self.messages) = (ports.ports, ports.messages);
        ports.rings
    }

    fn reset(&mut self) {
        self.messages.clear();
        self.ports.iter_mut().for_each(Port::forget_guest);
    }

    fn save(&self, _: &Memory) -> Result<DeviceState, DeviceStateError> {
        Ok(DeviceState::Console(self.state()))
    }

    fn restore(&mut self, state: DeviceState, _: &Memory) -> Result<(), DeviceStateError> {
        match state {
            DeviceState::Console(state) => self.take_up(state),
            other => Err(other.other()),
        }
    }
}
