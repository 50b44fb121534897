//! Disks that wait when the test wants it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use vmm_block::{BlockDevice, BlockError, BlockErrorKind, Geometry, MemoryDevice, RangeStatus};

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

/// A disk in memory that is cut off: reads of sector 0 are given up after a while, writes of it find no room.
pub struct CutOff {
    pub disk: MemoryDevice,
    is_cut: AtomicBool,
    tries: AtomicUsize,
}

impl CutOff {
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            disk: MemoryDevice::new(bytes),
            is_cut: AtomicBool::new(true),
            tries: AtomicUsize::new(0),
        })
    }

    pub fn restore(&self) {
        self.is_cut.store(false, Ordering::SeqCst);
    }

    /// Attempts that failed.
    pub fn tries(&self) -> usize {
        self.tries.load(Ordering::SeqCst)
    }

    fn fail(&self, offset: u64, kind: BlockErrorKind) -> Result<(), BlockError> {
        if offset > 0 || !self.is_cut.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.tries.fetch_add(1, Ordering::SeqCst);
        Err(BlockError::new(kind, "cut off"))
    }
}

impl BlockDevice for CutOff {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        self.fail(offset, BlockErrorKind::Unavailable)?;
        self.disk.read(offset, buf)
    }

    /// As long as it is cut off, sector 8 waits until it is told that it is enough.
    fn read_until(
        &self,
        offset: u64,
        buf: &mut [u8],
        enough: &dyn Fn() -> bool,
    ) -> Result<(), BlockError> {
        while offset == 8 * 512 && self.is_cut.load(Ordering::SeqCst) {
            if enough() {
                let kind = BlockErrorKind::ShuttingDown;
                return Err(BlockError::new(kind, "told to stop"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.read(offset, buf)
    }

    fn try_read(&self, _: u64, _: &mut [u8]) -> Result<bool, BlockError> {
        Ok(false)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), BlockError> {
        self.fail(offset, BlockErrorKind::NoSpace)?;
        self.disk.write(offset, data, fua)
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> Result<(), BlockError> {
        unreachable!("the tests do not ask for it")
    }

    fn discard(&self, _: u64, _: u64) -> Result<(), BlockError> {
        unreachable!("the tests do not ask for it")
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.disk.flush()
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<RangeStatus>, BlockError> {
        self.disk.block_status(offset, len)
    }
}
