//! A network card on a tap interface (virtio 1.2, section 5.1).
//!
//! The kernel's offloads are passed through: a packet may be 64 KiB with its checksum still to be made, which saves both kernels the work
//! for each piece. Such packets come in several of the guest's buffers (MRG_RXBUF): without that a guest has to have 64 KiB ready for
//! each that may come. One pair of queues: one thread moves more than a branch's line carries.
//!
//! A snapshot keeps what the driver has said, and whether the cable is in. Packets that are on their way are lost with it, as on any wire.

mod card;
mod filter;
mod tap;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

pub use card::HEADER_BYTES;
pub use filter::Mac;
pub use tap::{Tap, TapError, inherited};

use super::ring::{Interrupt, Ring};
use super::state::{DeviceState, DeviceStateError};
use super::worker::Worker;
use super::{Device, Kind, StartError, Started, read_from};
use crate::machine::bus::lock;
use crate::machine::memory::Memory;
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

/// A hardware address for a card that nobody has chosen one for, locally administered. Two machines of one network have the same once in
/// millions of pairs.
///
/// # Errors
/// There is no randomness.
pub fn new_address() -> io::Result<Mac> {
    let mut drawn = [0; 3];
    // SAFETY: the buffer has so many bytes.
    let got = unsafe { libc::getrandom(drawn.as_mut_ptr().cast(), drawn.len(), 0) };
    if got != drawn.len() as isize {
        return Err(io::Error::last_os_error());
    }
    let [a, b, c] = drawn;
    Ok([0x52, 0x54, 0, a, b, c])
}

/// What a snapshot keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    mac: Mac,
    is_up: bool,
    filter: Option<Filter>,
}

/// See the module.
pub struct Net {
    /// The address that it has for a driver that binds to it.
    mac: Mac,
    /// The address was chosen for this machine: one of a snapshot does not replace it.
    is_chosen: bool,
    /// The address that it has now.
    addresses: Addresses,
    link: Link,
    limits: Limits,
    /// What its driver has said, while it is not at work. `None`: it has no driver.
    filter: Option<Filter>,
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
            is_chosen: false,
            addresses,
            link: Link::default(),
            limits,
            filter: None,
            tap: Some(tap),
            worker: None,
        }
    }

    /// Has it keep its address when it takes up a snapshot's state. A guest that goes on has the address that it had until its driver
    /// binds to the card anew: it reads it only then.
    pub fn with_chosen_address(mut self) -> Self {
        self.is_chosen = true;
        self
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
        let goes_on = self.filter.is_some();
        let card = Card {
            rx,
            tx,
            control,
            memory: started.memory,
            tap,
            filter: self.filter.take().unwrap_or_else(|| Filter::new(self.mac)),
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
        if goes_on {
            // That the cable was moved may have been told to a processor that was just being saved.
            started.interrupt.config_changed();
        }
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
        self.filter = Some(card.filter);
        vec![Some(card.rx), Some(card.tx), card.control]
    }

    fn reset(&mut self) {
        self.filter = None;
        self.addresses.set(self.mac);
    }

    fn save(&self, _: &Memory) -> Result<DeviceState, DeviceStateError> {
        Ok(DeviceState::Net(NetState {
            mac: self.mac,
            is_up: self.link.is_up(),
            filter: self.filter.clone(),
        }))
    }

    fn restore(&mut self, state: DeviceState, _: &Memory) -> Result<(), DeviceStateError> {
        let NetState { mac, is_up, filter } = match state {
            DeviceState::Net(state) => state,
            other => return Err(other.other()),
        };
        if !filter::is_own(&mac) {
            return Err(DeviceStateError::Wrong("hardware address"));
        }
        if filter.as_ref().is_some_and(|filter| !filter.is_sound()) {
            return Err(DeviceStateError::Wrong("filter"));
        }
        if !self.is_chosen {
            self.mac = mac;
        }
        // The driver goes on with the address that it knows.
        self.addresses
            .set(filter.as_ref().map_or(self.mac, Filter::own));
        self.filter = filter;
        self.link.0.is_out.store(!is_up, Ordering::Release);
        Ok(())
    }
}
