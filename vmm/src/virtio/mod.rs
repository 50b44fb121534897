//! Virtio devices (OASIS virtio 1.2) and their PCI transport.
//!
//! [`pci`] is what the guest configures. A [`Device`] begins to work when its driver says so, on threads of its own ([`worker`]), and
//! gives its queues back when the guest resets it or a snapshot is taken. [`ring`] is a queue as devices use it, [`state`] what a snapshot
//! keeps. Invariant: a device that is not started touches no guest memory.
//!
//! ```text
//!   reset ──restore──► at rest ──start──► at work          a driver resets: stop, reset
//!     ▲                   ▲ └───reset──┐     │             a snapshot: stop, save, start
//!     └───────────────────┼────────────┘     │             a machine that goes on: restore, start
//!                         └──────stop────────┘
//! ```

pub mod balloon;
pub mod block;
pub mod console;
pub mod gpu;
pub mod hostile;
pub mod input;
pub mod net;
pub mod pci;
pub mod ring;
pub mod rng;
pub mod state;
pub mod vhost_user;
pub mod vsock;
pub mod worker;

use std::sync::Arc;

use crate::machine::memory::Memory;
use ring::{Interrupt, Ring};
use state::{DeviceState, DeviceStateError};

/// Both sides speak virtio 1.0 or later: there is no other kind here.
pub const F_VERSION_1: u64 = 1 << 32;
/// Notifications are asked for by position.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// Descriptors may be in a table of their own.
pub const F_INDIRECT: u64 = 1 << 28;

/// Features that rings give every device.
pub const F_RINGS: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT;

/// What kind of device (virtio 1.2, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Network card.
    Net = 1,
    /// Disk.
    Block = 2,
    /// Terminal.
    Console = 3,
    /// Source of entropy.
    Rng = 4,
    /// Memory balloon.
    Balloon = 5,
    /// Graphics adapter.
    Gpu = 16,
    /// Keyboard or tablet.
    Input = 18,
    /// Sockets between guest and host.
    Vsock = 19,
}

impl Kind {
    /// PCI class: base, sub, interface.
    pub fn class(self) -> [u8; 3] {
        match self {
            Self::Net => [0x02, 0x00, 0],
            Self::Block => [0x01, 0x00, 0],
            Self::Console => [0x07, 0x80, 0],
            Self::Gpu => [0x03, 0x80, 0],
            Self::Input => [0x09, 0x80, 0],
            Self::Rng | Self::Balloon | Self::Vsock => [0xff, 0x00, 0],
        }
    }
}

/// What a device works with from when its driver is ready.
pub struct Started {
    /// The guest's memory.
    pub memory: Memory,
    /// Features that both sides have.
    pub features: u64,
    /// Queues that the driver has set up, in order, `None` for those that it left out.
    pub rings: Vec<Option<Ring>>,
    /// Its interrupts, also for changes of its configuration.
    pub interrupt: Arc<Interrupt>,
}

/// Why a device does not start. The guest sees that it needs a reset.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The driver left out a queue that the device cannot do without.
    #[error("queue {0} is not set up")]
    Queue(usize),
    /// No thread, no event descriptor.
    #[error("{0}")]
    Host(&'static str, #[source] std::io::Error),
}

/// A device without its transport.
pub trait Device: Send {
    /// What it is.
    fn kind(&self) -> Kind;

    /// Features beside those of rings.
    fn features(&self) -> u64;

    /// Most entries of each of its queues, powers of two.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Reads its configuration; what does not exist is left as it is (zeros).
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// Writes its configuration.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    /// Begins to work.
    ///
    /// # Errors
    /// It cannot.
    fn start(&mut self, started: Started) -> Result<(), StartError>;

    /// Stops; the rings come back with their places, in the order of [`Started::rings`]. Requests in work are finished first. What the
    /// guest has made of the device is kept: it may be started again.
    fn stop(&mut self) -> Vec<Option<Ring>>;

    /// Forgets what the guest has made of it. It is stopped.
    fn reset(&mut self) {}

    /// What the guest has made of it beside its queues, for a snapshot. It is stopped, and what it has answered is safe.
    ///
    /// # Errors
    /// It cannot be saved now.
    fn save(&self, _memory: &Memory) -> Result<DeviceState, DeviceStateError> {
        Ok(DeviceState::Nothing)
    }

    /// Takes up what was saved of a device like it, before it is started for the first time.
    ///
    /// # Errors
    /// It was another device.
    fn restore(&mut self, state: DeviceState, _memory: &Memory) -> Result<(), DeviceStateError> {
        match state {
            DeviceState::Nothing => Ok(()),
            other => Err(other.other()),
        }
    }
}

/// Copies from a structure in its wire form; what lies beyond it is left as it is.
pub fn read_from(structure: &[u8], offset: usize, data: &mut [u8]) {
    if let Some(rest) = structure.get(offset..) {
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
    }
}
