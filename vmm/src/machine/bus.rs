//! Who answers at a port or an address. One bus for ports, one for memory-mapped registers.
//!
//! A guest may touch anything: what nobody owns reads as ones, as on a PC without the device, and swallows writes. Devices may be moved
//! (a guest moves the BARs of PCI devices), so the bus is changed while processors use it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Registers that a processor reads and writes.
pub trait Registers: Send {
    /// Fills `data` from the registers at `offset` bytes from the start of the range. `data` is 1 to 8 bytes.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Writes `data`, 1 to 8 bytes.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device on a bus.
pub type Shared = Arc<Mutex<dyn Registers>>;

/// Locks a device. One whose thread panicked is used as it was left: its guest is in trouble already, others are not.
pub fn lock<T: ?Sized>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Place {
    len: u64,
    device: Shared,
}

/// See the module.
#[derive(Default)]
pub struct Bus {
    /// By first address; ranges do not overlap.
    places: RwLock<BTreeMap<u64, Place>>,
}

/// Two devices at one place.
#[derive(Debug, thiserror::Error)]
#[error("{len} bytes at {base:#x} overlap what is there already")]
pub struct Overlap {
    base: u64,
    len: u64,
}

impl Bus {
    /// Puts a device at `base`.
    ///
    /// # Errors
    /// Something is there.
    pub fn insert(&self, base: u64, len: u64, device: Shared) -> Result<(), Overlap> {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        let overlap = Overlap { base, len };
        let Some(end) = base.checked_add(len) else {
            return Err(overlap);
        };
        let before = places.range(..end).next_back();
        if before.is_some_and(|(start, place)| start + place.len > base) {
            return Err(overlap);
        }
        places.insert(base, Place { len, device });
        Ok(())
    }

    /// Takes away what begins at `base`.
    pub fn remove(&self, base: u64) {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        places.remove(&base);
    }

    /// The device at an address and the offset in it, if all `len` bytes are the device's.
    fn find(&self, address: u64, len: usize) -> Option<(Shared, u64)> {
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        let (base, place) = places.range(..=address).next_back()?;
        let offset = address - base;
        let fits = offset
            .checked_add(len as u64)
            .is_some_and(|end| end <= place.len);
        fits.then(|| (Arc::clone(&place.device), offset))
    }

    /// A processor reads.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((device, offset)) => lock(&device).read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A processor writes.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address, data.len()) {
            lock(&device).write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);

    impl Registers for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&mut self, _: u64, data: &[u8]) {
            self.0 = data[0];
        }
    }

    fn read(bus: &Bus, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        bus.read(address, &mut data);
        data
    }

    #[test]
    fn what_nobody_owns_reads_as_ones() {
        let bus = Bus::default();
        bus.insert(0x10, 4, Arc::new(Mutex::new(Echo(1))))
            .expect("free");
        assert_eq!(read(&bus, 0x0f, 1), [0xff]);
        assert_eq!(read(&bus, 0x12, 1), [3]);
        assert_eq!(read(&bus, 0x13, 2), [0xff, 0xff], "half beyond the end");
        assert_eq!(read(&bus, u64::MAX, 8), [0xff; 8]);
        bus.write(0x12, &[9]);
        assert_eq!(read(&bus, 0x10, 1), [9]);
    }

    #[test]
    fn ranges_do_not_overlap_and_can_be_moved() {
        let bus = Bus::default();
        let device: Shared = Arc::new(Mutex::new(Echo(1)));
        bus.insert(0x10, 4, Arc::clone(&device)).expect("free");
        for (base, len) in [(0x10, 1), (0xf, 2), (0x13, 9), (0, 0x100), (u64::MAX, 2)] {
            assert!(bus.insert(base, len, Arc::clone(&device)).is_err());
        }
        bus.insert(0x14, 4, Arc::clone(&device)).expect("behind it");
        bus.remove(0x10);
        bus.insert(0xc, 8, device).expect("free again");
        assert_eq!(read(&bus, 0xc, 1), [1]);
    }
}
