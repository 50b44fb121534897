//! Disks that wait when the test wants it.

use std::sync::{Arc, Condvar, Mutex};

use vmm_block::{BlockDevice, BlockError, Geometry, MemoryDevice, RangeStatus};

/// A disk in memory whose reads and writes of sector 0 wait at a gate, as if it came over the WAN.
pub struct Gated {
    pub disk: MemoryDevice,
    open: Mutex<bool>,
    opened: Condvar,
    waiting: Mutex<usize>,
}

impl Gated {
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            disk: MemoryDevice::new(bytes),
            open: Mutex::new(false),
            opened: Condvar::new(),
            waiting: Mutex::new(0),
        })
    }

    pub fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    /// Requests that have come to the gate.
    pub fn came(&self) -> usize {
        *self.waiting.lock().unwrap()
    }

    fn pass(&self, offset: u64) {
        if offset == 0 {
            *self.waiting.lock().unwrap() += 1;
            let mut open = self.open.lock().unwrap();
            while !*open {
                open = self.opened.wait(open).unwrap();
            }
        }
    }
}

impl BlockDevice for Gated {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        self.pass(offset);
        self.disk.read(offset, buf)
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError> {
        if offset == 0 {
            return Ok(false);
        }
        self.disk.try_read(offset, buf)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), BlockError> {
        self.pass(offset);
        self.disk.write(offset, data, fua)
    }

    fn try_write(&self, offset: u64, data: &[u8]) -> Result<bool, BlockError> {
        if offset == 0 {
            return Ok(false);
        }
        self.disk.try_write(offset, data)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        may_unmap: bool,
        fua: bool,
    ) -> Result<(), BlockError> {
        self.disk.write_zeroes(offset, len, may_unmap, fua)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.disk.discard(offset, len)
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.disk.flush()
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<RangeStatus>, BlockError> {
        self.disk.block_status(offset, len)
    }
}
