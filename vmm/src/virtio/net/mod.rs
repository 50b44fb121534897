//! A network card on a tap interface. The kernel's offloads are passed through: a packet may be 64 KiB with its checksum still to be made.

mod tap;

use std::os::fd::AsRawFd;

use virtio_queue::{Reader, Writer};

pub use tap::{Tap, TapError, inherited};

use super::ring::{Chain, Ring};
use super::worker::{Handler, Worker};
use super::{Device, Kind, StartError, Started, read_from};
use crate::machine::memory::Memory;
use crate::threads::Role;

const QUEUE_SIZE: u16 = 256;
const RX: usize = 0;
const TX: usize = 1;

/// Bytes of the header before each packet (virtio 1.2, section 5.1.6).
pub const HEADER_BYTES: usize = 12;
/// The largest packet with its header: 64 KiB that the kernel will cut.
const PACKET_BYTES_MAX: usize = (64 << 10) + 14 + HEADER_BYTES;
/// Where the header says how many buffers a packet takes: always one.
const BUFFERS_AT: usize = 10;

/// Features: checksums and segmentation by either side, a hardware address, and whether the cable is in.
mod features {
    pub(super) const CSUM: u64 = 1 << 0;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const STATUS: u64 = 1 << 16;
}

/// In the configuration's status: the cable is in.
const LINK_UP: u16 = 1;

struct Card {
    rx: Ring,
    tx: Ring,
    memory: Memory,
    tap: Tap,
    packet: Vec<u8>,
    /// A packet that came when the guest had no room for it: so many bytes of `packet`.
    waiting: Option<usize>,
}

impl Card {
    /// Takes packets from the tap until it has none, or the guest has no room.
    fn receive(&mut self) {
        let mut any = false;
        let mut turn = self.rx.turn();
        loop {
            let len = match self.waiting {
                Some(len) => len,
                None => match self.tap.read(&mut self.packet) {
                    Some(len) => len,
                    None => break,
                },
            };
            let memory = &self.memory;
            let Some(chain) = self.rx.next_of(&mut turn, memory) else {
                self.waiting = Some(len);
                break;
            };
            self.waiting = None;
            let head = chain.head_index();
            self.packet[BUFFERS_AT..HEADER_BYTES].copy_from_slice(&1u16.to_le_bytes());
            let written = deliver(memory, chain, &self.packet[..len]);
            self.rx.done(memory, head, written);
            any = true;
        }
        if any {
            self.rx.signal(&self.memory);
        }
    }

    fn send(&mut self) {
        let (memory, tap, packet) = (&self.memory, &self.tap, &mut self.packet);
        // The buffer may hold a packet that waits for room.
        let mut own = Vec::new();
        let packet = if self.waiting.is_some() {
            own.resize(PACKET_BYTES_MAX, 0);
            &mut own
        } else {
            packet
        };
        self.tx.drain(memory, |chain| {
            if let Some(len) = collect(memory, chain, packet) {
                tap.write(&packet[..len]);
            }
            0
        });
    }
}

/// Writes a packet into a guest's buffer; one that is too small gets nothing.
fn deliver(memory: &Memory, chain: Chain<'_>, packet: &[u8]) -> u32 {
    let Ok(mut writer) = Writer::new(memory, chain) else {
        return 0;
    };
    if writer.available_bytes() < packet.len() {
        return 0;
    }
    match std::io::Write::write_all(&mut writer, packet) {
        Ok(()) => packet.len() as u32,
        Err(_) => 0,
    }
}

/// Reads a packet that the guest sends. `None`: it is none.
fn collect(memory: &Memory, chain: Chain<'_>, packet: &mut [u8]) -> Option<usize> {
    let mut reader = Reader::new(memory, chain).ok()?;
    let len = reader.available_bytes();
    let packet = packet.get_mut(..len).filter(|_| len > HEADER_BYTES)?;
    std::io::Read::read_exact(&mut reader, packet).ok()?;
    Some(len)
}

/// The tap's token; queues have their numbers.
const TAP: u64 = 2;

impl Handler for Card {
    const ROLE: Role = Role::Net;

    fn ready(&mut self, token: u64) {
        match token as usize {
            TX => self.send(),
            // The guest has made room, or the tap has packets.
            _ => self.receive(),
        }
    }
}

/// See the module.
pub struct Net {
    mac: [u8; 6],
    tap: Option<Tap>,
    worker: Option<Worker<Card>>,
}

impl Net {
    /// A card with this hardware address, connected to `tap`.
    pub fn new(mac: [u8; 6], tap: Tap) -> Self {
        Self {
            mac,
            tap: Some(tap),
            worker: None,
        }
    }
}

impl Device for Net {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn features(&self) -> u64 {
        use features::{
            CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6, MAC, STATUS,
        };
        CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6 | MAC | STATUS
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut config = self.mac.to_vec();
        config.extend(LINK_UP.to_le_bytes());
        read_from(&config, offset, data);
    }

    fn start(&mut self, started: Started) -> Result<(), StartError> {
        let mut rings = started.rings.into_iter();
        let rx = rings.next().flatten().ok_or(StartError::Queue(RX))?;
        let tx = rings.next().flatten().ok_or(StartError::Queue(TX))?;
        let tap = self.tap.take().ok_or(StartError::Queue(RX))?;
        let on = |feature| started.features & feature != 0;
        let offloads = tap.set_offloads(
            on(features::GUEST_CSUM),
            on(features::GUEST_TSO4),
            on(features::GUEST_TSO6),
        );
        if let Err(error) = offloads {
            self.tap = Some(tap);
            return Err(StartError::Host("the tap's offloads", error));
        }
        let waits = [
            (rx.kick().as_raw_fd(), RX as u64),
            (tx.kick().as_raw_fd(), TX as u64),
            (tap.as_raw_fd(), TAP),
        ];
        let card = Card {
            rx,
            tx,
            memory: started.memory,
            tap,
            packet: vec![0; PACKET_BYTES_MAX],
            waiting: None,
        };
        let worker = Worker::spawn("net", card, &waits);
        self.worker = Some(worker.map_err(|error| StartError::Host("the card's thread", error))?);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Ring>> {
        let Some(worker) = self.worker.take() else {
            return Vec::new();
        };
        let card = worker.stop();
        self.tap = Some(card.tap);
        vec![Some(card.rx), Some(card.tx)]
    }
}
