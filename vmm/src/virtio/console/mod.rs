//! Ports between guest and host (virtio 1.2, section 5.3): each has a name by which a guest's agent finds it, and is a Unix socket on
//! the host.
//!
//! One client a port at a time. A guest that reads nothing holds its client up, a client that reads nothing holds the guest's port up;
//! neither holds up anything else.

mod port;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use virtio_queue::{Reader, Writer};

use super::ring::Ring;
use super::state::{DeviceState, DeviceStateError};
use super::worker::{Handler, Worker};
use super::{Device, Kind, StartError, Started, read_from};
use crate::machine::memory::Memory;
use crate::threads::Role;
use port::Port;

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// What the guest knows it by, such as `org.qemu.guest_agent.0`.
    pub name: String,
    /// Where the host's side is.
    pub socket: PathBuf,
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
                if self.ports[port].has_client() {
                    self.tell(port, control::PORT_OPEN, 1, "");
                }
            }
            control::PORT_OPEN => {
                if let Some(port) = self.ports.get_mut(port) {
                    port.set_guest_open(value == 1);
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
        let had_client = port.has_client();
        port.accept();
        if let Some(Some(ring)) = self.rings.get_mut(from_guest) {
            port.take_from_guest(ring, &memory);
        }
        if let Some(Some(ring)) = self.rings.get_mut(to_guest) {
            port.give_to_guest(ring, &memory);
        }
        let has_client = port.has_client();
        if had_client != has_client && port.is_guest_ready() {
            self.tell(index, control::PORT_OPEN, has_client.into(), "");
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

/// What a snapshot keeps of a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PortState {
    name: String,
    /// The guest's driver has found it, and is told of clients.
    guest_ready: bool,
    guest_open: bool,
    /// The guest has been told that somebody is on the host's side.
    host_open: bool,
}

/// What a snapshot keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    ports: Vec<PortState>,
    /// Messages that wait for room.
    messages: Vec<Vec<u8>>,
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
        let ports = ports.iter().map(Port::listen).collect::<Result<_, _>>()?;
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
        let ports = self.ports.iter().map(|port| PortState {
            name: port.name().to_owned(),
            guest_ready: port.is_guest_ready(),
            guest_open: port.guest_open(),
            host_open: port.is_guest_ready() && port.has_client(),
        });
        Ok(DeviceState::Console(ConsoleState {
            ports: ports.collect(),
            messages: self.messages.iter().cloned().collect(),
        }))
    }

    fn restore(&mut self, state: DeviceState, _: &Memory) -> Result<(), DeviceStateError> {
        let ConsoleState { ports, messages } = match state {
            DeviceState::Console(state) => state,
            other => return Err(other.other()),
        };
        let names = |ports: &mut dyn Iterator<Item = &str>| ports.collect::<Vec<_>>().join(", ");
        let saved = names(&mut ports.iter().map(|port| port.name.as_str()));
        let here = names(&mut self.ports.iter().map(Port::name));
        if saved != here {
            let what = format!("its ports were {saved}, now they are {here}");
            return Err(DeviceStateError::Differs(what));
        }
        // None is longer than the name of a port that there is.
        let fits = |message: &Vec<u8>| message.len() <= control::BYTES + saved.len();
        let messages = messages.into_iter().filter(fits).take(MESSAGES_MAX);
        self.messages = messages.collect();
        for (index, (port, saved)) in self.ports.iter_mut().zip(&ports).enumerate() {
            port.forget_guest();
            if saved.guest_ready {
                port.set_guest_ready();
            }
            port.set_guest_open(saved.guest_open);
            if saved.guest_ready && saved.host_open {
                // Whoever that was is not here; whoever comes is told of.
                let gone = message(index, control::PORT_OPEN, 0, "");
                self.messages.push_back(gone);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_go_on_tell_the_guest_that_the_other_side_is_gone() {
        let temp = tempfile::tempdir().expect("a folder");
        let memory = crate::machine::memory::create(64).expect("memory");
        let console = |names: &[&str]| {
            let spec = |name: &&str| PortSpec {
                name: (*name).to_owned(),
                socket: temp.path().join(name),
            };
            let ports: Vec<_> = names.iter().map(spec).collect();
            Console::new(&ports).expect("sockets")
        };
        let mut before = console(&["agent", "clipboard"]);
        before.ports[1].set_guest_ready();
        before.ports[1].set_guest_open(true);
        before
            .messages
            .push_back(message(0, control::PORT_READY, 1, ""));
        let mut state = match before.save(&memory).expect("saved") {
            DeviceState::Console(state) => state,
            other => panic!("{other:?} is no console"),
        };
        state.ports[1].host_open = true;
        let bytes = postcard::to_stdvec(&DeviceState::Console(state)).expect("bytes");
        let parsed = || postcard::from_bytes::<DeviceState>(&bytes).expect("the same");
        let mut after = console(&["agent", "clipboard"]);
        after.restore(parsed(), &memory).expect("taken up");
        assert_eq!(
            [false, true],
            [0, 1].map(|port: usize| after.ports[port].guest_open())
        );
        assert_eq!(
            [false, true],
            [0, 1].map(|port: usize| after.ports[port].is_guest_ready())
        );
        let told = [
            message(0, control::PORT_READY, 1, ""),
            message(1, control::PORT_OPEN, 0, ""),
        ];
        assert_eq!(after.messages, told);
        after.reset();
        assert!(after.messages.is_empty() && !after.ports[1].guest_open());
        assert!(!after.ports[1].is_guest_ready());
        let mut other = console(&["agent", "sound"]);
        let refused = other.restore(parsed(), &memory).expect_err("another port");
        let text = "its ports were agent, clipboard, now they are agent, sound";
        assert_eq!(refused.to_string(), text);
    }
}
