//! Configuration by ports ("mechanism 1") and, among these ports, the reset register of every PC.
//!
//! Kernels use this before they have read where ECAM is. It reaches the first 256 bytes of each function.

use std::sync::{Arc, Mutex};

use super::Ecam;
use crate::machine::bus::{Registers, lock};
use crate::machine::event::{Event, Events};
use crate::machine::layout::{CONFIG_PORT, RESET_PORT};

/// What ACPI tells kernels to write into the reset register.
pub const RESET_VALUE: u8 = 0x6;
/// The bit of it that resets.
const RESET_CPU: u8 = 1 << 2;
const RESET: u64 = (RESET_PORT - CONFIG_PORT) as u64;

const ADDRESS: u64 = 0;
const DATA: u64 = 4;
/// In the address: data ports reach configuration space.
const ENABLE: u32 = 1 << 31;

/// See the module.
pub struct ConfigPorts {
    ecam: Arc<Mutex<Ecam>>,
    address: u32,
    events: Events,
}

impl ConfigPorts {
    /// Ports to the functions of this bus.
    pub fn new(ecam: Arc<Mutex<Ecam>>, events: Events) -> Self {
        Self {
            ecam,
            address: 0,
            events,
        }
    }

    /// The address that was written last.
    pub fn address(&self) -> u32 {
        self.address
    }

    /// As if it had been written.
    pub fn set_address(&mut self, address: u32) {
        self.address = address;
    }

    /// Where in ECAM the data port at `offset` leads.
    fn target(&self, offset: u64) -> Option<u64> {
        let byte = offset.checked_sub(DATA)?;
        // Bus, device and function; the register's lowest bits are the data port's.
        let function = u64::from(self.address >> 8 & 0xffff);
        let register = u64::from(self.address & 0xfc) + byte;
        (self.address & ENABLE != 0).then_some(function << 12 | register)
    }
}

impl Registers for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(target) = self.target(offset) {
            lock(&self.ecam).read(target, data);
        } else if offset == ADDRESS && data.len() == 4 {
            data.copy_from_slice(&self.address.to_le_bytes());
        } else if offset == RESET && data.len() == 1 {
            data.fill(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(target) = self.target(offset) {
            lock(&self.ecam).write(target, data);
        } else if let (ADDRESS, Ok(address)) = (offset, data.try_into()) {
            self.address = u32::from_le_bytes(address);
        } else if let (RESET, [value]) = (offset, data)
            && value & RESET_CPU != 0
        {
            self.events.put(Event::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports() -> (ConfigPorts, std::sync::mpsc::Receiver<Event>) {
        let (events, taken) = Events::new();
        let ecam = Arc::new(Mutex::new(Ecam::new(Vec::new())));
        (ConfigPorts::new(ecam, events), taken)
    }

    #[test]
    fn functions_are_reached_by_address_and_data() {
        let (mut ports, _taken) = ports();
        let mut id = [0; 2];
        ports.read(DATA, &mut id);
        assert_eq!(id, [0xff; 2], "not enabled");
        ports.write(ADDRESS, &ENABLE.to_le_bytes());
        ports.read(DATA + 2, &mut id);
        assert_eq!(u16::from_le_bytes(id), 0x0008, "the bridge's device id");
        ports.write(ADDRESS, &(ENABLE | 1 << 11).to_le_bytes());
        ports.read(DATA, &mut id);
        assert_eq!(id, [0xff; 2], "nobody is there");
    }

    #[test]
    fn the_reset_register_resets_and_an_address_does_not() {
        let (mut ports, taken) = ports();
        ports.write(ADDRESS, &[0xff; 4]);
        ports.write(RESET, &[0x2]);
        assert!(taken.try_recv().is_err());
        ports.write(RESET, &[RESET_VALUE]);
        assert!(matches!(taken.try_recv(), Ok(Event::Reset)));
    }
}
