//! A network card on a tap interface (virtio 1.2, section 5.1).
//!
//! The kernel's offloads are passed through: a packet may be 64 KiB with its checksum still to be made, which saves both kernels the work
//! for each piece. Such packets come in several of the guest's buffers (MRG_RXBUF): without that a guest has to have 64 KiB ready for
//! each that may come. One pair of queues: one thread moves more than a branch's line carries.

mod card;
mod filter;
mod tap;
#[cfg(test)]
mod tests;

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub use card::HEADER_BYTES;
pub use filter::Mac;
pub use tap::{Tap, TapError};

use super::ring::{Interrupt, Ring};
use super::worker::Worker;
use super::{Device, Kind, StartError, Started, read_from};
use crate::machine::bus::lock;
use crate::machine::rate::Toll;
use card::{CONTROL, Card, Gate, PACKET_BYTES_MAX, RX, TAP, TX};
use filter::Filter;

const QUEUE_SIZE: u16 = 256;
const CONTROL_QUEUE_SIZE: u16 = 64;

/// Features: checksums and segmentation by either side, a hardware address, buffers that are merged, whether the cable is in, and commands
/// about what is received and which address the card has.
mod features {
    pub(super) const CSUM: u64 = 1 << 0;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    pub(super) const STATUS: u64 = 1 << 16;
    pub(super) const CTRL_VQ: u64 = 1 << 17;
    pub(super) const CTRL_RX: u64 = 1 << 18;
    pub(super) const CTRL_MAC_ADDR: u64 = 1 << 23;

    pub(super) const ALL: u64 = CSUM
        | GUEST_CSUM
        | MAC
        | GUEST_TSO4
        | GUEST_TSO6
        | HOST_TSO4
        | HOST_TSO6
        | MRG_RXBUF
        | STATUS
        | CTRL_VQ
        | CTRL_RX
        | CTRL_MAC_ADDR;
}

/// In the configuration's status: the cable is in.
const LINK_UP: u16 = 1;

/// How much a card may do a second, in each direction by itself; none is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Packets, those that are cut later by their pieces.
    pub packets_per_s: Option<u64>,
    /// Bytes, headers of the wire with them.
    pub bytes_per_s: Option<u64>,
}

#[derive(Default)]
struct Cable {
    is_out: AtomicBool,
    /// Of the card, while it works.
    interrupt: Mutex<Option<Arc<Interrupt>>>,
}

/// A card's cable, which can be pulled. What is sent while it is out is lost.
#[derive(Clone, Default)]
pub struct Link(Arc<Cable>);

impl Link {
    /// Whether it is in.
    pub fn is_up(&self) -> bool {
        !self.0.is_out.load(Ordering::Acquire)
    }

    /// Puts it in or pulls it; the guest is told.
    pub fn set(&self, up: bool) {
        let was_out = self.0.is_out.swap(!up, Ordering::AcqRel);
        if was_out == up
            && let Some(interrupt) = &*lock(&self.0.interrupt)
        {
            interrupt.config_changed();
        }
    }
}

/// The card's address, which its driver may change.
#[derive(Clone, Default)]
struct Addresses(Arc<AtomicU64>);

impl Addresses {
    fn set(&self, mac: Mac) {
        let [a, b, c, d, e, f] = mac;
        let bytes = [a, b, c, d, e, f, 0, 0];
        self.0.store(u64::from_le_bytes(bytes), Ordering::Release);
    }

    fn mac(&self) -> Mac {
        let [a, b, c, d, e, f, ..] = self.0.load(Ordering::Acquire).to_le_bytes();
        [a, b, c, d, e, f]
    }
}

/// See the module.
pub struct Net {
    mac: Mac,
    addresses: Addresses,
    link: Link,
    limits: Limits,
    tap: Option<Tap>,
    worker: Option<Worker<Card>>,
}

impl Net {
    /// A card with this hardware address, connected to `tap`.
    pub fn new(mac: Mac, tap: Tap, limits: Limits) -> Self {
        let addresses = Addresses::default();
        addresses.set(mac);
        Self {
            mac,
            addresses,
            link: Link::default(),
            limits,
            tap: Some(tap),
            worker: None,
        }
    }

    /// Its cable.
    pub fn link(&self) -> Link {
        self.link.clone()
    }

    fn gates(&self) -> Result<[Option<Gate>; 2], StartError> {
        let gate = || {
            let toll = Toll::new(self.limits.packets_per_s, self.limits.bytes_per_s);
            Gate::new(toll).map_err(|error| StartError::Host("a card's timer", error))
        };
        Ok([gate()?, gate()?])
    }
}

impl Device for Net {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn features(&self) -> u64 {
        features::ALL
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE, QUEUE_SIZE, CONTROL_QUEUE_SIZE]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut config = self.addresses.mac().to_vec();
        let status = if self.link.is_up() { LINK_UP } else { 0 };
        config.extend(status.to_le_bytes());
        read_from(&config, offset, data);
    }

    fn start(&mut self, started: Started) -> Result<(), StartError> {
        let gates = self.gates()?;
        let mut rings = started.rings.into_iter();
        let rx = rings.next().flatten().ok_or(StartError::Queue(RX))?;
        let tx = rings.next().flatten().ok_or(StartError::Queue(TX))?;
        let control = rings.next().flatten();
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
        let mut waits = vec![
            (rx.kick().as_raw_fd(), RX as u64),
            (tx.kick().as_raw_fd(), TX as u64),
            (tap.as_raw_fd(), TAP),
        ];
        if let Some(control) = &control {
            waits.push((control.kick().as_raw_fd(), CONTROL as u64));
        }
        let card = Card {
            rx,
            tx,
            control,
            memory: started.memory,
            tap,
            filter: Filter::new(self.mac),
            addresses: self.addresses.clone(),
            link: self.link.clone(),
            is_merged: on(features::MRG_RXBUF),
            gates,
            received: vec![0; PACKET_BYTES_MAX],
            sent: vec![0; PACKET_BYTES_MAX],
            waiting: None,
        };
        waits.extend(card.timers());
        let worker = Worker::spawn("net", card, &waits);
        self.worker = Some(worker.map_err(|error| StartError::Host("the card's thread", error))?);
        *lock(&self.link.0.interrupt) = Some(started.interrupt);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Ring>> {
        let Some(worker) = self.worker.take() else {
            return Vec::new();
        };
        *lock(&self.link.0.interrupt) = None;
        let card = worker.stop();
        self.tap = Some(card.tap);
        self.addresses.set(self.mac);
        vec![Some(card.rx), Some(card.tx), card.control]
    }
}
