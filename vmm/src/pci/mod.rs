//! One PCI Express bus: a host bridge and the devices of a machine, found by ECAM.
//!
//! Invariant: a guest can move a BAR anywhere, but registers answer only inside the window for BARs, and never on top of another's.

pub mod config;
pub mod msix;
pub mod ports;

use std::sync::{Arc, Mutex};

use crate::machine::bus::{Registers, lock};
use config::ConfigSpace;

/// Devices on the bus, the bridge included.
pub const DEVICES_MAX: usize = 32;

/// Bytes of one function's configuration space.
const FUNCTION_BYTES: u64 = 4096;
/// Functions of a device; only the first exists.
const FUNCTIONS: u64 = 8;

/// What a guest configures.
pub trait Function: Send {
    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;
    /// The guest writes into it.
    fn write_config(&mut self, offset: usize, data: &[u8]);
}

/// The bridge between processors and the bus: configuration space and nothing else.
pub struct HostBridge(ConfigSpace);

impl Default for HostBridge {
    fn default() -> Self {
        // A class that says "host bridge"; vendor and device of Red Hat's PCIe host bridge, which no driver binds to.
        Self(ConfigSpace::new(0x1b36, 0x0008, [0x06, 0x00, 0x00]))
    }
}

impl Function for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.0.write(offset, data);
    }
}

/// The configuration spaces of all devices, one after another.
pub struct Ecam {
    devices: Vec<Arc<Mutex<dyn Function>>>,
}

impl Ecam {
    /// A bus with these devices, the bridge before them.
    ///
    /// # Panics
    /// There are more than [`DEVICES_MAX`]: the machine is checked before.
    pub fn new(devices: Vec<Arc<Mutex<dyn Function>>>) -> Self {
        let bridge: Arc<Mutex<dyn Function>> = Arc::new(Mutex::new(HostBridge::default()));
        let devices: Vec<_> = std::iter::once(bridge).chain(devices).collect();
        assert!(devices.len() <= DEVICES_MAX, "the bus has 32 places");
        Self { devices }
    }

    /// The bridge's configuration space, for a snapshot.
    pub fn bridge(&self) -> Vec<u8> {
        lock(&self.devices[0]).config().bytes().to_vec()
    }

    /// Takes up what the guest had configured of the bridge.
    pub fn restore_bridge(&mut self, config: &[u8]) {
        lock(&self.devices[0]).write_config(0, config);
    }

    fn find(&self, offset: u64) -> Option<(&Mutex<dyn Function>, usize)> {
        let function = offset / FUNCTION_BYTES;
        if !function.is_multiple_of(FUNCTIONS) {
            return None;
        }
        let device = self.devices.get((function / FUNCTIONS) as usize)?;
        Some((device, (offset % FUNCTION_BYTES) as usize))
    }
}

impl Registers for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match self.find(offset) {
            Some((device, at)) => lock(device).config().read(at, data),
            None => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some((device, at)) = self.find(offset) {
            lock(device).write_config(at, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bus_shows_its_bridge_and_ones_where_nothing_is() {
        let mut ecam = Ecam::new(Vec::new());
        let mut id = [0; 4];
        ecam.read(0, &mut id);
        assert_eq!(u32::from_le_bytes(id), 0x0008_1b36);
        for other in [1 << 12, 1 << 15, 31 << 15, (1 << 20) - 4] {
            ecam.read(other, &mut id);
            assert_eq!(id, [0xff; 4]);
            ecam.write(other, &[0; 4]);
        }
    }
}
