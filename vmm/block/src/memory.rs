//! A disk in memory, for tests.
//!
//! Invariant: `allocated` says per 4 KiB block whether something was written to it since it was last unmapped, so
//! that hole reporting can be tested. Nothing here is durable: a flush only counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::device::{BlockDevice, BlockError, BlockErrorKind, Geometry, RangeStatus, check_range};

/// Granularity of the allocation map, bytes.
const BLOCK_BYTES: usize = 4096;

struct State {
    bytes: Vec<u8>,
    allocated: Vec<bool>,
}

/// A disk whose bytes live in memory and die with it.
pub struct MemoryDevice {
    state: RwLock<State>,
    geometry: Geometry,
    flushes: AtomicU64,
}

impl MemoryDevice {
    /// A writable disk of `size_bytes` bytes, all hole.
    #[must_use]
    pub fn new(size_bytes: usize) -> Self {
        Self::build(vec![0; size_bytes], false, false)
    }

    /// A read-only disk that holds `bytes`.
    #[must_use]
    pub fn read_only(bytes: Vec<u8>) -> Self {
        Self::build(bytes, true, true)
    }

    fn build(bytes: Vec<u8>, allocated: bool, read_only: bool) -> Self {
        let geometry = Geometry {
            size_bytes: bytes.len() as u64,
            block_bytes_min: 1,
            block_bytes_preferred: BLOCK_BYTES as u32,
            read_only,
        };
        let allocated = vec![allocated; bytes.len().div_ceil(BLOCK_BYTES)];
        Self {
            state: RwLock::new(State { bytes, allocated }),
            geometry,
            flushes: AtomicU64::new(0),
        }
    }

    /// A copy of the whole content.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        self.state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .bytes
            .clone()
    }

    /// How many flushes and FUA requests came in.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::SeqCst)
    }

    fn range(&self, offset: u64, len: u64) -> Result<std::ops::Range<usize>, BlockError> {
        check_range(offset, len, self.geometry.size_bytes)?;
        Ok(offset as usize..(offset + len) as usize)
    }

    fn check_writable(&self) -> Result<(), BlockError> {
        if self.geometry.read_only {
            return Err(BlockError::new(
                BlockErrorKind::ReadOnly,
                "the memory disk is read-only",
            ));
        }
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> Result<(), BlockError> {
        self.check_writable()?;
        let range = self.range(offset, len)?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.bytes[range.clone()].fill(0);
        if unmap {
            // Only blocks that lie wholly inside the range lose their storage.
            let (first, last) = (range.start.div_ceil(BLOCK_BYTES), range.end / BLOCK_BYTES);
            if first < last {
                state.allocated[first..last].fill(false);
            }
        } else if !range.is_empty() {
            let (first, last) = (range.start / BLOCK_BYTES, range.end.div_ceil(BLOCK_BYTES));
            state.allocated[first..last].fill(true);
        }
        Ok(())
    }

    fn count_flush(&self, fua: bool) {
        self.flushes.fetch_add(u64::from(fua), Ordering::SeqCst);
    }
}

impl BlockDevice for MemoryDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        let range = self.range(offset, buf.len() as u64)?;
        buf.copy_from_slice(
            &self
                .state
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .bytes[range],
        );
        Ok(())
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError> {
        self.read(offset, buf).map(|()| true)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), BlockError> {
        self.check_writable()?;
        let range = self.range(offset, data.len() as u64)?;
        if !range.is_empty() {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let (first, last) = (range.start / BLOCK_BYTES, range.end.div_ceil(BLOCK_BYTES));
            state.bytes[range].copy_from_slice(data);
            state.allocated[first..last].fill(true);
        }
        self.count_flush(fua);
        Ok(())
    }

    fn try_write(&self, offset: u64, data: &[u8]) -> Result<bool, BlockError> {
        self.write(offset, data, false).map(|()| true)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        may_unmap: bool,
        fua: bool,
    ) -> Result<(), BlockError> {
        self.zero(offset, len, may_unmap)?;
        self.count_flush(fua);
        Ok(())
    }

    fn write_zeroes_fast(
        &self,
        offset: u64,
        len: u64,
        may_unmap: bool,
        fua: bool,
    ) -> Result<(), BlockError> {
        self.write_zeroes(offset, len, may_unmap, fua)
    }

    fn has_fast_zero(&self) -> bool {
        true
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.zero(offset, len, true)
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.count_flush(true);
        Ok(())
    }

    fn try_flush(&self) -> Result<bool, BlockError> {
        self.flush().map(|()| true)
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<RangeStatus>, BlockError> {
        let range = self.range(offset, len)?;
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut status: Vec<RangeStatus> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let end = ((at / BLOCK_BYTES + 1) * BLOCK_BYTES).min(range.end);
            let hole = !state.allocated[at / BLOCK_BYTES];
            let len = (end - at) as u64;
            match status.last_mut() {
                Some(last) if last.hole == hole => last.len += len,
                _ => status.push(RangeStatus {
                    len,
                    hole,
                    zero: hole,
                }),
            }
            at = end;
        }
        Ok(status)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::MemoryDevice;
    use crate::device::{BlockDevice, BlockErrorKind, RangeStatus};

    #[test]
    fn holes_follow_writes_and_unmaps() {
        let disk = MemoryDevice::new(5 * 4096);
        disk.write(4096, b"x", false).unwrap();
        disk.write_zeroes(3 * 4096, 4096, false, false).unwrap();
        let hole = |len| RangeStatus {
            len,
            hole: true,
            zero: true,
        };
        let data = |len| RangeStatus {
            len,
            hole: false,
            zero: false,
        };
        assert_eq!(
            disk.block_status(0, 5 * 4096).unwrap(),
            [hole(4096), data(4096), hole(4096), data(4096), hole(4096)]
        );
        disk.discard(0, 5 * 4096).unwrap();
        assert_eq!(disk.block_status(1, 4096).unwrap(), [hole(4096)]);
        assert_eq!(disk.content(), vec![0; 5 * 4096]);
    }

    #[test]
    fn a_read_only_disk_refuses_every_change() {
        let disk = MemoryDevice::read_only(vec![7; 8192]);
        for refused in [
            disk.write(0, b"x", false),
            disk.write_zeroes(0, 1, true, false),
            disk.discard(0, 1),
        ] {
            assert_eq!(refused.unwrap_err().kind, BlockErrorKind::ReadOnly);
        }
        assert_eq!(disk.content(), vec![7; 8192]);
    }
}
