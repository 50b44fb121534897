//! What a snapshot keeps of a virtio device: its transport and queues, the same for all, and what the guest has made of the device.
//!
//! All of it comes from a file, so all of it is checked when it is taken up: by the same doors through which a guest comes.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState as Places};

use super::balloon::BalloonState;
use super::console::ConsoleState;
use super::gpu::GpuState;
use super::input::InputState;
use super::net::NetState;
use super::vhost_user::InflightState;
use crate::snapshot::parts::Part;

/// Why a device's state cannot be taken, or taken up.
#[derive(Debug, thiserror::Error)]
pub enum DeviceStateError {
    /// The device is another one.
    #[error("{0}")]
    Differs(String),
    /// What a guest could not have made.
    #[error("its {0} makes no sense")]
    Wrong(&'static str),
    /// Requests are left.
    #[error("it does not come to rest: {0}")]
    Busy(&'static str),
    /// What it holds is not safe.
    #[error("flush it")]
    Flush(#[source] vmm_block::BlockError),
    /// Memory for them.
    #[error("its requests in flight")]
    Inflight(#[source] std::io::Error),
}

/// What a guest has made of a device beside its queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// Nothing.
    Nothing,
    /// A disk: it keeps what the guest wrote by itself. Its size must be the same.
    Disk {
        /// Bytes.
        bytes: u64,
        /// Requests that its server had taken and could not answer: the next one goes on with them.
        inflight: Option<InflightState>,
    },
    /// A network card.
    Net(NetState),
    /// Ports.
    Console(ConsoleState),
    /// A balloon.
    Balloon(BalloonState),
    /// A graphics adapter.
    Gpu(GpuState),
    /// A keyboard or tablet.
    Input(InputState),
}

impl DeviceState {
    /// It is of another kind than the device that it is given to.
    pub fn other(&self) -> DeviceStateError {
        let kind = match self {
            Self::Nothing => "a device without state",
            Self::Disk { .. } => "a disk",
            Self::Net(_) => "a network card",
            Self::Console(_) => "ports",
            Self::Balloon(_) => "a balloon",
            Self::Gpu(_) => "a graphics adapter",
            Self::Input(_) => "a keyboard or tablet",
        };
        DeviceStateError::Differs(format!("it was {kind}"))
    }
}

/// A queue: where the driver put it and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Entries.
    pub size: u16,
    /// The driver has set it up.
    pub ready: bool,
    /// The next entry to be taken.
    pub next_available: u16,
    /// The next answer's place.
    pub next_used: u16,
    /// Where descriptors, available and used ring are.
    pub rings: [u64; 3],
}

impl QueueState {
    /// Of a queue.
    pub fn of(queue: &Queue) -> Self {
        let places = queue.state();
        Self {
            size: places.size,
            ready: places.ready,
            next_available: places.next_avail,
            next_used: places.next_used,
            rings: [places.desc_table, places.avail_ring, places.used_ring],
        }
    }

    /// A queue like it, of a device whose queue has so many entries at most.
    ///
    /// # Errors
    /// A driver could not have set it up so.
    pub fn queue(&self, size_max: u16) -> Result<Queue, DeviceStateError> {
        let [desc_table, avail_ring, used_ring] = self.rings;
        let places = Places {
            max_size: size_max,
            next_avail: self.next_available,
            next_used: self.next_used,
            // Set when the device starts, by what the driver has taken.
            event_idx_enabled: false,
            size: self.size,
            ready: self.ready,
            desc_table,
            avail_ring,
            used_ring,
        };
        Queue::try_from(places).map_err(|_| DeviceStateError::Wrong("queue"))
    }
}

/// A device on its bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// Its name in this machine.
    pub name: String,
    /// Its kind's number.
    pub kind: u16,
    /// Configuration space.
    #[serde(with = "serde_bytes")]
    pub config: Vec<u8>,
    /// MSI-X table.
    pub table: Vec<[u32; 4]>,
    /// By vector: an interrupt is held back.
    pub pending: Vec<bool>,
    /// Vectors of configuration changes and of each queue.
    pub vectors: Vec<u16>,
    /// Of the configuration.
    pub generation: u8,
    /// Device status.
    pub status: u8,
    /// Features that the driver has taken.
    pub driver_features: u64,
    /// Which halves of the features are shown.
    pub feature_page: [u32; 2],
    /// Which queue is shown.
    pub queue_select: u16,
    /// The driver was ready, and has not reset it since.
    pub is_started: bool,
    /// Queues.
    pub queues: Vec<QueueState>,
    /// The device.
    pub device: DeviceState,
}

/// The devices of a machine, in the order of their places on the bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStates(pub Vec<TransportState>);

impl Part for DeviceStates {
    const NUMBER: u16 = 6;
    /// 1 knew neither a card's filter and cable nor a clipboard.
    const VERSION: u16 = 2;
    const NAME: &'static str = "devices";
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_queue::QueueT;

    use super::*;

    proptest! {
        #[test]
        fn queues_come_back_and_those_that_cannot_be_are_refused(
            size in prop_oneof![Just(0u16), Just(1), Just(64), Just(256), Just(512), any::<u16>()],
            ready: bool, places: [u16; 2], rings: [u64; 3],
        ) {
            let state = QueueState { size, ready, next_available: places[0], next_used: places[1], rings };
            let fits = size.is_power_of_two() && size <= 256
                && rings[0] % 16 == 0 && rings[1] % 2 == 0 && rings[2] % 4 == 0;
            match state.queue(256) {
                Ok(queue) => {
                    prop_assert!(fits);
                    prop_assert_eq!(QueueState::of(&queue), state);
                    prop_assert_eq!(queue.max_size(), 256);
                }
                Err(_) => prop_assert!(!fits),
            }
        }
    }
}
