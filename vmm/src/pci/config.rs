//! Configuration space of a function (PCI 3.0, chapter 6), with one 32-bit memory BAR and a list of capabilities.

/// Bytes that exist; the rest of the 4 KiB of PCI Express reads as zeros: no extended capability.
const BYTES: usize = 256;

const VENDOR: usize = 0x00;
const DEVICE: usize = 0x02;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const BAR: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
/// Where the first capability goes.
const CAPABILITY_FIRST: usize = 0x40;

/// In the command register: the BAR answers.
const COMMAND_MEMORY: u8 = 1 << 1;
/// What of the command register can be written: memory, bus master, and INTx off.
const COMMAND_MASK: [u8; 2] = [0b110, 0b100];
const STATUS_CAPABILITIES: u8 = 1 << 4;

/// See the module.
pub struct ConfigSpace {
    bytes: [u8; BYTES],
    writable: [u8; BYTES],
    bar_bytes: u32,
    /// Where the last capability's link is, and where the next one goes.
    link: usize,
    next: usize,
}

impl ConfigSpace {
    /// A function with this vendor, device and class (base, sub, interface).
    pub fn new(vendor: u16, device: u16, [base, sub, interface]: [u8; 3]) -> Self {
        let mut this = Self {
            bytes: [0; BYTES],
            writable: [0; BYTES],
            bar_bytes: 0,
            link: CAPABILITIES,
            next: CAPABILITY_FIRST,
        };
        this.put(VENDOR, &vendor.to_le_bytes());
        this.put(DEVICE, &device.to_le_bytes());
        this.put(CLASS, &[interface, sub, base]);
        this.writable[COMMAND..COMMAND + 2].copy_from_slice(&COMMAND_MASK);
        this
    }

    /// Names what the function is a part of.
    pub fn with_subsystem(mut self, vendor: u16, device: u16, revision: u8) -> Self {
        self.put(SUBSYSTEM_VENDOR, &vendor.to_le_bytes());
        self.put(SUBSYSTEM, &device.to_le_bytes());
        self.put(REVISION, &[revision]);
        self
    }

    /// Gives it a BAR of `bytes`, a power of two of 16 at least, at `address`.
    pub fn with_bar(mut self, address: u32, bytes: u32) -> Self {
        assert!(bytes.is_power_of_two() && bytes >= 16 && address.is_multiple_of(bytes));
        self.bar_bytes = bytes;
        self.put(BAR, &address.to_le_bytes());
        self.writable[BAR..BAR + 4].copy_from_slice(&(!(bytes - 1)).to_le_bytes());
        self.bytes[COMMAND] |= COMMAND_MEMORY;
        self
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Appends a capability: its number, and what follows the link. `writable` has the bits that a guest may change. The answer is
    /// where it begins.
    ///
    /// # Panics
    /// There is no room: capabilities are fixed, so that is seen by the first test.
    pub fn add_capability(&mut self, number: u8, body: &[u8], writable: &[(usize, u8)]) -> usize {
        let at = self.next;
        self.put(at, &[number, 0]);
        self.put(at + 2, body);
        for (offset, bits) in writable {
            self.writable[at + offset] = *bits;
        }
        self.bytes[self.link] = at as u8;
        self.link = at + 1;
        self.next = (at + 2 + body.len()).next_multiple_of(4);
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        at
    }

    /// Where the BAR answers now; `None` while it does not.
    pub fn bar(&self) -> Option<u64> {
        let address = u32::from_le_bytes(self.bytes[BAR..BAR + 4].try_into().expect("four bytes"));
        let on = self.bar_bytes > 0 && self.bytes[COMMAND] & COMMAND_MEMORY != 0;
        on.then_some(u64::from(address))
    }

    /// Fills `data` from `offset`; what does not exist reads as zeros.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes the bits that can be written.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, byte) in (offset..BYTES).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | byte & mask;
        }
    }

    /// All bytes that exist, for a snapshot; written back with [`ConfigSpace::write`], those that a guest may change are as they were.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A byte of it.
    pub fn byte(&self, at: usize) -> u8 {
        self.bytes[at]
    }

    /// Changes bytes that a guest may not.
    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        self.put(at, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(0x1af4, 0x1042, [1, 0, 0]).with_bar(0xc000_0000, 0x8000)
    }

    fn word(space: &ConfigSpace, at: usize) -> u32 {
        let mut data = [0; 4];
        space.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_bar_tells_its_size_and_keeps_its_place() {
        let mut space = space();
        assert_eq!(space.bar(), Some(0xc000_0000));
        space.write(BAR, &[0xff; 4]);
        assert_eq!(word(&space, BAR), 0xffff_8000);
        space.write(BAR, &0xc123_4567u32.to_le_bytes());
        assert_eq!(space.bar(), Some(0xc123_0000));
        space.write(COMMAND, &[0, 0]);
        assert_eq!(space.bar(), None);
        // The other five do not exist.
        space.write(BAR + 4, &[0xff; 4]);
        assert_eq!(word(&space, BAR + 4), 0);
    }

    #[test]
    fn capabilities_are_a_list_and_only_given_bits_can_be_written() {
        let mut space = space();
        let first = space.add_capability(9, &[16, 1, 2, 3, 4], &[]);
        let second = space.add_capability(0x11, &[0; 10], &[(3, 0xc0)]);
        assert_eq!(usize::from(space.byte(CAPABILITIES)), first);
        assert_eq!(usize::from(space.byte(first + 1)), second);
        assert_eq!(space.byte(second + 1), 0);
        space.write(second, &[0xff; 4]);
        assert_eq!(word(&space, second), 0xc000_0011);
        space.write(0, &[0; 4]);
        assert_eq!(word(&space, 0), 0x1042_1af4);
        space.write(254, &[1; 8]);
        let mut beyond = [7; 4];
        space.read(254, &mut beyond);
        assert_eq!(beyond, [0; 4]);
    }
}
