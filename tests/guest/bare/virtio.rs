//! A virtio device on PCI, as the specification has drivers use it (virtio 1.2, sections 3.1 and 4.1).

use crate::clock;
use crate::pci::{self, Function};
use crate::queue::Queue;
use crate::report::{Wrong, ensure};
use crate::start::{VECTOR_FIRST, VECTORS};

const VENDOR: u32 = 0x1af4;
const DEVICE_ID: u32 = 0x1040;

/// Kinds of the vendor's capability.
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const DEVICE: u8 = 4;

const VENDOR_CAPABILITY: u8 = 9;
const MSIX_CAPABILITY: u8 = 0x11;
const MSIX_ENABLE: u16 = 1 << 15;
/// Where messages to the first processor go.
const MESSAGE_ADDRESS: u64 = 0xfee0_0000;

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;

pub const F_EVENT_IDX: u64 = 1 << 29;
pub const F_VERSION_1: u64 = 1 << 32;

/// Registers of the common configuration.
mod at {
    pub const FEATURE_SELECT: usize = 0x00;
    pub const FEATURES: usize = 0x04;
    pub const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub const DRIVER_FEATURES: usize = 0x0c;
    pub const CONFIG_VECTOR: usize = 0x10;
    pub const QUEUES: usize = 0x12;
    pub const STATUS: usize = 0x14;
    pub const QUEUE_SELECT: usize = 0x16;
    pub const QUEUE_SIZE: usize = 0x18;
    pub const QUEUE_VECTOR: usize = 0x1a;
    pub const QUEUE_ENABLE: usize = 0x1c;
    pub const QUEUE_NOTIFY: usize = 0x1e;
    pub const QUEUE_DESCRIPTORS: usize = 0x20;
    pub const QUEUE_AVAILABLE: usize = 0x28;
    pub const QUEUE_USED: usize = 0x30;
}

/// How a driver learns of answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Learns {
    /// It looks.
    Polls,
    /// It is interrupted.
    Interrupted,
}

/// See the module.
pub struct Device {
    function: Function,
    common: usize,
    notify: usize,
    notify_step: usize,
    config: usize,
    msix: usize,
    learns: Learns,
    /// Both sides have them.
    features: u64,
}

fn read<T: Copy>(at: usize) -> T {
    // SAFETY: registers of a BAR, which is mapped; every caller reads a register at its place and width.
    unsafe { (at as *const T).read_volatile() }
}

fn write<T: Copy>(at: usize, value: T) {
    // SAFETY: as above.
    unsafe { (at as *mut T).write_volatile(value) };
}

impl Device {
    /// Finds a device by its kind's number, resets it and agrees on features: of `wanted`, those it has.
    pub fn open(kind: u32, nth: usize, wanted: u64, learns: Learns) -> Result<Self, Wrong> {
        let function = pci::find(VENDOR | (DEVICE_ID + kind) << 16, nth);
        let function = function.ok_or(Wrong { what: "no such device", value: kind.into() })?;
        function.enable();
        let bar = function.bar();
        let mut this = Self {
            function,
            common: 0,
            notify: 0,
            notify_step: 0,
            config: 0,
            msix: 0,
            learns,
            features: 0,
        };
        function.capabilities(|number, place| match number {
            VENDOR_CAPABILITY => {
                let offset = bar + function.read::<u32>(place + 8) as usize;
                match function.read::<u8>(place + 3) {
                    COMMON => this.common = offset,
                    NOTIFY => {
                        this.notify = offset;
                        this.notify_step = function.read::<u32>(place + 16) as usize;
                    }
                    DEVICE => this.config = offset,
                    _ => {}
                }
            }
            MSIX_CAPABILITY => this.msix = place,
            _ => {}
        })?;
        ensure(this.common != 0 && this.notify != 0, "parts are missing", 0)?;
        this.reset()?;
        this.agree(wanted)?;
        if learns == Learns::Interrupted {
            this.connect();
        }
        Ok(this)
    }

    fn status(&self) -> u8 {
        read(self.common + at::STATUS)
    }

    fn set_status(&self, bits: u8) {
        write(self.common + at::STATUS, self.status() | bits);
    }

    fn agree(&mut self, wanted: u64) -> Result<(), Wrong> {
        self.set_status(ACKNOWLEDGE);
        self.set_status(DRIVER);
        let mut offered = 0;
        for page in 0..2u32 {
            write(self.common + at::FEATURE_SELECT, page);
            offered |= u64::from(read::<u32>(self.common + at::FEATURES)) << (32 * page);
        }
        ensure(offered & F_VERSION_1 != 0, "an old device", offered)?;
        self.features = offered & (wanted | F_VERSION_1);
        for page in 0..2u32 {
            write(self.common + at::DRIVER_FEATURE_SELECT, page);
            let half = (self.features >> (32 * page)) as u32;
            write(self.common + at::DRIVER_FEATURES, half);
        }
        self.set_status(FEATURES_OK);
        let status = self.status();
        ensure(status & FEATURES_OK != 0, "features are refused", self.features)
    }

    /// Vector 0 is of the configuration; queues have one of their own each.
    fn connect(&self) {
        let table = self.function.read::<u32>(self.msix + 4);
        let table = self.function.bar() + (table & !7) as usize;
        for vector in 0..VECTORS {
            let entry = table + 16 * vector;
            write(entry, MESSAGE_ADDRESS as u32);
            write(entry + 4, 0u32);
            write(entry + 8, u32::from(VECTOR_FIRST) + vector as u32);
            write(entry + 12, 0u32);
        }
        let control = self.function.read::<u16>(self.msix + 2);
        self.function.write(self.msix + 2, control | MSIX_ENABLE);
        write(self.common + at::CONFIG_VECTOR, 0u16);
    }

    /// Sets up a queue of so many entries.
    pub fn queue(&self, index: u16, size: u16) -> Result<Queue, Wrong> {
        write(self.common + at::QUEUE_SELECT, index);
        let size_max: u16 = read(self.common + at::QUEUE_SIZE);
        ensure(size <= size_max, "a queue that is too small", size_max.into())?;
        let place: u16 = read(self.common + at::QUEUE_NOTIFY);
        let notify = self.notify + usize::from(place) * self.notify_step;
        let vector = (self.learns == Learns::Interrupted).then_some(index + 1);
        let event_idx = self.features & F_EVENT_IDX != 0;
        let queue = Queue::new(index, size, notify, vector.map(usize::from), event_idx);
        write(self.common + at::QUEUE_SIZE, size);
        if let Some(vector) = vector {
            write(self.common + at::QUEUE_VECTOR, vector);
            let taken: u16 = read(self.common + at::QUEUE_VECTOR);
            ensure(taken == vector, "no vector for a queue", taken.into())?;
        }
        let [descriptors, available, used] = queue.places();
        for (register, place) in [
            (at::QUEUE_DESCRIPTORS, descriptors),
            (at::QUEUE_AVAILABLE, available),
            (at::QUEUE_USED, used),
        ] {
            write(self.common + register, place as u32);
            write(self.common + register + 4, (place >> 32) as u32);
        }
        write(self.common + at::QUEUE_ENABLE, 1u16);
        Ok(queue)
    }

    /// Queues that the device has.
    pub fn queues(&self) -> u16 {
        read(self.common + at::QUEUES)
    }

    /// Lets it begin.
    pub fn begin(&self) -> Result<(), Wrong> {
        self.set_status(DRIVER_OK);
        let status = self.status();
        ensure(status & NEEDS_RESET == 0, "the device does not begin", status.into())
    }

    /// Resets it, and has no interrupts come from it.
    pub fn reset(&self) -> Result<(), Wrong> {
        write(self.common + at::STATUS, 0u8);
        clock::wait("a reset that ends", || (self.status() == 0).then_some(()))?;
        let control = self.function.read::<u16>(self.msix + 2);
        self.function.write(self.msix + 2, control & !MSIX_ENABLE);
        Ok(())
    }

    pub fn config<T: Copy>(&self, offset: usize) -> T {
        read(self.config + offset)
    }

    pub fn set_config<T: Copy>(&self, offset: usize, value: T) {
        write(self.config + offset, value);
    }

    /// Features that both sides have.
    pub fn features(&self) -> u64 {
        self.features
    }
}
