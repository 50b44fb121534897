//! The bus, as a kernel finds it by ECAM.

use crate::report::{Check, Wrong, ensure, say};

/// Where the ACPI tables say it is.
const ECAM: usize = 0xe000_0000;
const DEVICES: u8 = 32;
const NOBODY: u32 = u32::MAX;

const ID: usize = 0x00;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CLASS: usize = 0x08;
const BAR: usize = 0x10;
const CAPABILITIES: usize = 0x34;

/// In the command register: memory, and bus mastering.
const MEMORY_AND_MASTER: u16 = 0b110;
const HAS_CAPABILITIES: u16 = 1 << 4;
/// More than fit into 256 bytes.
const CAPABILITIES_MAX: usize = 48;

/// A function of a device.
#[derive(Clone, Copy)]
pub struct Function(u8);

impl Function {
    fn place<T>(self, at: usize) -> *mut T {
        (ECAM + (usize::from(self.0) << 15) + at) as *mut T
    }

    pub fn read<T: Copy>(self, at: usize) -> T {
        // SAFETY: ECAM is mapped, and reading configuration space changes nothing.
        unsafe { self.place::<T>(at).read_volatile() }
    }

    pub fn write<T: Copy>(self, at: usize, value: T) {
        // SAFETY: ECAM is mapped; what is written is a register of the device.
        unsafe { self.place::<T>(at).write_volatile(value) };
    }

    /// Where its one BAR is.
    pub fn bar(self) -> usize {
        (self.read::<u32>(BAR) & !0xf) as usize
    }

    /// Lets it answer, and reach memory.
    pub fn enable(self) {
        self.write(COMMAND, self.read::<u16>(COMMAND) | MEMORY_AND_MASTER);
    }

    /// Calls `see` with number and place of each capability.
    pub fn capabilities(self, mut see: impl FnMut(u8, usize)) -> Result<(), Wrong> {
        if self.read::<u16>(STATUS) & HAS_CAPABILITIES == 0 {
            return Ok(());
        }
        let mut at = usize::from(self.read::<u8>(CAPABILITIES));
        for _ in 0..CAPABILITIES_MAX {
            if at == 0 {
                return Ok(());
            }
            see(self.read(at), at);
            at = self.read::<u8>(at + 1).into();
        }
        Err(Wrong { what: "a list of capabilities without end", value: self.0.into() })
    }
}

/// The function number `nth` with this vendor and device.
pub fn find(id: u32, nth: usize) -> Option<Function> {
    let all = (0..DEVICES).map(Function);
    all.filter(|function| function.read::<u32>(ID) == id).nth(nth)
}

/// Looks at all that is there; BARs must tell their size and keep their place.
pub fn scan(check: &mut Check) -> Result<(), Wrong> {
    let bridge = Function(0).read::<u32>(CLASS) >> 16;
    ensure(bridge == 0x0600, "device 0 is no host bridge", bridge.into())?;
    check.done("bridge");
    let mut found = 0;
    for function in (1..DEVICES).map(Function) {
        let id = function.read::<u32>(ID);
        if id == NOBODY {
            continue;
        }
        let (mut parts, mut interrupts) = (0, 0);
        function.capabilities(|number, _| match number {
            9 => parts += 1,
            0x11 => interrupts += 1,
            _ => {}
        })?;
        ensure(parts >= 4 && interrupts == 1, "capabilities are missing", id.into())?;
        let before = function.read::<u32>(BAR);
        function.write(BAR, u32::MAX);
        let size = !(function.read::<u32>(BAR) & !0xf) + 1;
        function.write(BAR, before);
        ensure(size.is_power_of_two(), "a BAR of a strange size", size.into())?;
        ensure(function.read::<u32>(BAR) == before, "a BAR that moved", before.into())?;
        say!("NOTE pci {id:08x} BAR {before:08x} of {size:#x}");
        found += 1;
    }
    // Beyond the end of the bus, nobody is there.
    let beyond = Function(DEVICES - 1).read::<u32>(ID);
    ensure(beyond == NOBODY, "somebody at the last place", beyond.into())?;
    check.done("functions");
    ensure(found > 0, "no devices", 0)
}
