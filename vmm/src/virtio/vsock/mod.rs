//! Sockets between guest and host (virtio 1.2, section 5.10): streams, bridged to Unix sockets of the host (see [`sockets`] for how
//! programs use them). It carries the guest's agent.
//!
//! What a guest can have of the host: connections to sockets whose names begin with the one it was given, and for each of at most 64
//! connections a buffer of 256 KiB. A guest that does not speak the protocol has its connections reset; one that takes nothing is not
//! heard. Connections end when the guest resets the device, outlive a snapshot in the machine that it was taken of, and are told to have
//! ended in those that go on from it: the host's programs are not there.

mod connection;
mod packet;
#[cfg(test)]
mod restored;
mod sockets;
mod table;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use virtio_queue::{Reader, Writer};

use super::ring::{Chain, Ring};
use super::state::{DeviceState, DeviceStateError};
use super::worker::{Handler, Worker};
use super::{Device, Kind, StartError, Started, read_from};
use crate::machine::memory::Memory;
use crate::sandbox::door::Desk;
use crate::threads::Role;
use packet::{HEADER_BYTES, Header, PACKET_BYTES_MAX};
use sockets::Sockets;
use table::Connections;

const QUEUE_SIZE: u16 = 128;
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
/// Token of sockets; queues have their numbers.
const SOCKETS: u64 = 3;

/// The event that all connections are gone.
const TRANSPORT_RESET: u32 = 0;

/// Addresses that a guest may have: 0 to 2 have a meaning, and so has the last one of 32 bits.
pub const CIDS: std::ops::RangeInclusive<u32> = 3..=u32::MAX - 1;

/// A device to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockSpec {
    /// The guest's address, of [`CIDS`].
    pub cid: u32,
    /// Where programs of the host call the guest; see [`sockets`].
    pub socket: PathBuf,
}

struct Bridge {
    rx: Ring,
    tx: Ring,
    event: Ring,
    memory: Memory,
    sockets: Sockets,
    connections: Connections<UnixStream>,
    /// Data of one packet.
    data: Vec<u8>,
}

/// Reads a packet; its data is put into `data`. `None`: it is none.
fn read_packet(memory: &Memory, chain: Chain<'_>, data: &mut Vec<u8>) -> Option<Header> {
    let mut reader = Reader::new(memory, chain).ok()?;
    let mut header = [0; HEADER_BYTES];
    reader.read_exact(&mut header).ok()?;
    let header = Header::parse(&header);
    let len = header.len as usize;
    if len > PACKET_BYTES_MAX || len > reader.available_bytes() {
        return None;
    }
    data.resize(len, 0);
    reader.read_exact(data).ok()?;
    Some(header)
}

fn write_packet(writer: &mut Writer<'_>, header: &Header, data: &[u8]) -> io::Result<u32> {
    writer.write_all(&header.bytes())?;
    writer.write_all(data)?;
    Ok((HEADER_BYTES + data.len()) as u32)
}

impl Bridge {
    /// Takes packets of the guest's, as long as there is room for what they may be answered with. True: some may be left for that reason.
    fn hear_guest(&mut self) -> bool {
        let (mut any, mut turn) = (false, self.tx.turn());
        let mut left = false;
        loop {
            if !self.connections.listens() {
                left = true;
                break;
            }
            let memory = &self.memory;
            let Some(chain) = self.tx.next_of(&mut turn, memory) else {
                break;
            };
            let head = chain.head_index();
            if let Some(header) = read_packet(memory, chain, &mut self.data) {
                self.connections
                    .take(&header, &self.data, &mut self.sockets);
            }
            self.tx.done(memory, head, 0);
            any = true;
        }
        if any {
            self.tx.signal(&self.memory);
        }
        left
    }

    /// Gives the guest packets, as long as it has room.
    fn tell_guest(&mut self) {
        let (mut any, mut turn) = (false, self.rx.turn());
        let memory = &self.memory;
        while let Some(chain) = self.rx.next_of(&mut turn, memory) {
            let head = chain.head_index();
            let writer = Writer::new(memory, chain).ok();
            let fits = |writer: &Writer<'_>| writer.available_bytes() >= HEADER_BYTES;
            let Some(mut writer) = writer.filter(fits) else {
                // No packet goes into it.
                self.rx.done(memory, head, 0);
                any = true;
                continue;
            };
            let room = writer.available_bytes() - HEADER_BYTES;
            let Some(header) = self.connections.give(room, &mut self.data) else {
                self.rx.put_back();
                break;
            };
            let written = write_packet(&mut writer, &header, &self.data);
            self.rx.done(memory, head, written.unwrap_or(0));
            any = true;
        }
        if any {
            self.rx.signal(memory);
        }
    }

    /// Tells the guest that connections it may think it has are gone.
    fn tell_reset(&mut self) {
        let memory = &self.memory;
        if let Some(chain) = self.event.next(memory) {
            let head = chain.head_index();
            let written = Writer::new(memory, chain)
                .ok()
                .and_then(|mut writer| writer.write(&TRANSPORT_RESET.to_le_bytes()).ok());
            self.event.done(memory, head, written.unwrap_or(0) as u32);
            self.event.signal(memory);
        }
    }
}

impl Handler for Bridge {
    const ROLE: Role = Role::Ports;

    fn ready(&mut self, token: u64) {
        if token == EVENT as u64 {
            // The guest has room for events; there are none now.
            return;
        }
        let connections = &mut self.connections;
        self.sockets
            .take(|port, stream| connections.call(port, stream));
        connections.wake();
        let left = self.hear_guest();
        self.tell_guest();
        if left && self.connections.listens() {
            self.tx.again();
        }
    }
}

/// See the module.
pub struct Vsock {
    cid: u32,
    sockets: Option<Sockets>,
    /// While it is stopped and the guest has not reset it.
    connections: Option<Connections<UnixStream>>,
    /// The guest may have connections of the machine that it was saved in.
    is_elsewhere: bool,
    worker: Option<Worker<Bridge>>,
}

impl Vsock {
    /// A device whose socket is made anew.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn new(spec: &VsockSpec) -> io::Result<Self> {
        Ok(Self {
            cid: spec.cid,
            sockets: Some(Sockets::listen(&spec.socket)?),
            connections: None,
            is_elsewhere: false,
            worker: None,
        })
    }

    /// Has the guest's calls made by whoever is left at `desk`, once somebody is.
    #[must_use]
    pub fn with_desk(mut self, desk: Desk) -> Self {
        if let Some(sockets) = &mut self.sockets {
            sockets.desk = desk;
        }
        self
    }
}

impl Device for Vsock {
    fn kind(&self) -> Kind {
        Kind::Vsock
    }

    fn features(&self) -> u64 {
        // Streams are what there is without any.
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_from(&u64::from(self.cid).to_le_bytes(), offset, data);
    }

    fn start(&mut self, started: Started) -> Result<(), StartError> {
        let mut rings = started.rings.into_iter();
        let mut ring = |index| rings.next().flatten().ok_or(StartError::Queue(index));
        let (rx, tx, event) = (ring(RX)?, ring(TX)?, ring(EVENT)?);
        let gone = || io::Error::other("it was lost when the device could not be started before");
        let sockets = self.sockets.take();
        let sockets = sockets.ok_or_else(|| StartError::Host("the socket", gone()))?;
        let waits = [
            (rx.kick().as_raw_fd(), RX as u64),
            (tx.kick().as_raw_fd(), TX as u64),
            (event.kick().as_raw_fd(), EVENT as u64),
            (sockets.events(), SOCKETS),
        ];
        let connections = self.connections.take();
        let mut bridge = Bridge {
            rx,
            tx,
            event,
            memory: started.memory,
            sockets,
            connections: connections.unwrap_or_else(|| Connections::new(self.cid.into())),
            data: Vec::new(),
        };
        if std::mem::take(&mut self.is_elsewhere) {
            bridge.tell_reset();
        }
        let worker = Worker::spawn("vsock", bridge, &waits);
        self.worker = Some(worker.map_err(|error| StartError::Host("a thread", error))?);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Ring>> {
        let Some(worker) = self.worker.take() else {
            return Vec::new();
        };
        let bridge = worker.stop();
        self.sockets = Some(bridge.sockets);
        self.connections = Some(bridge.connections);
        vec![Some(bridge.rx), Some(bridge.tx), Some(bridge.event)]
    }

    fn reset(&mut self) {
        self.connections = None;
        self.is_elsewhere = false;
    }

    fn restore(&mut self, state: DeviceState, _: &Memory) -> Result<(), DeviceStateError> {
        match state {
            DeviceState::Nothing => {
                (self.connections, self.is_elsewhere) = (None, true);
                Ok(())
            }
            other => Err(other.other()),
        }
    }
}
