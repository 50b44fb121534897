//! A desktop's disk: a read-only version with the desktop's private writes over it, as one block device.
//!
//! Invariant: every byte comes from the newest overlay record that covers it, else from the base, else (past the base's end)
//! it is zero. A [`Volume`] adds no state of its own: durability, ordering and failure are the [`Overlay`]'s, waiting for the
//! WAN is the [`Base`]'s. It knows nothing of chunks, manifests or the link.

mod base;
#[cfg(test)]
mod flush_tests;
mod overlay;
#[cfg(test)]
mod seal_tests;
#[cfg(test)]
mod sending_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod upkeep_tests;

use std::sync::Arc;

use vmm_block::{BlockDevice, BlockError, BlockErrorKind, Geometry, RangeStatus};

pub use base::{Base, MemBase, NoBase};
pub use overlay::{
    Change, Changes, FillRandom, Overlay, OverlayError, OverlayIdentity, OverlayKey,
    OverlayOptions, OverlayState, OverlayStats, Shortage, Tended, fuzz_index_snapshot,
    fuzz_overlay,
};

pub(crate) use overlay::Source;
use overlay::{PIECE_BYTES, Part, SECTOR_BYTES};

/// Most ranges in one answer of [`BlockDevice::block_status`]: useful for clients, bounded for a scattered overlay.
const STATUS_RANGES_MAX: usize = 4096;

/// One disk of a desktop.
pub struct Volume {
    base: Arc<dyn Base>,
    overlay: Arc<Overlay>,
    disk: u16,
    size_bytes: u64,
}

impl Volume {
    /// Puts disk number `disk` of `overlay` over `base`. The disk may be larger than the base: zeros follow it.
    ///
    /// # Errors
    /// [`OverlayError::Invalid`]: the overlay has no such disk, or it is smaller than the base.
    pub fn new(
        base: Arc<dyn Base>,
        overlay: Arc<Overlay>,
        disk: u16,
    ) -> Result<Self, OverlayError> {
        let invalid = |why: String| OverlayError::Invalid {
            dir: overlay.dir().to_owned(),
            why,
        };
        let disks = &overlay.identity().disks;
        let Some(&size_bytes) = disks.get(usize::from(disk)) else {
            return Err(invalid(format!(
                "it has {} disks, number {disk} is not among them",
                disks.len()
            )));
        };
        if size_bytes < base.size_bytes() {
            let base = base.size_bytes();
            return Err(invalid(format!(
                "disk {disk} has {size_bytes} bytes, its base {base}: it would be cut off"
            )));
        }
        Ok(Self {
            base,
            overlay,
            disk,
            size_bytes,
        })
    }

    /// The overlay that takes the writes of this and the desktop's other disks.
    pub fn overlay(&self) -> &Arc<Overlay> {
        &self.overlay
    }

    /// Every record of the desktop's overlay up to this sequence number is durable.
    pub fn flushed_seq(&self) -> u64 {
        self.overlay.flushed_seq()
    }

    fn parts(&self, offset: u64, len: u64) -> Result<Vec<Part>, BlockError> {
        Ok(self.overlay.parts(self.disk, offset, len)?)
    }

    /// Fills `buf` from `parts`, which begin at `offset`; the base's parts by `read_base`, which may decline by `false`, as the log does
    /// unless it `may_wait`.
    fn read_parts(
        &self,
        parts: &[Part],
        offset: u64,
        buf: &mut [u8],
        may_wait: bool,
        mut read_base: impl FnMut(u64, &mut [u8]) -> Result<bool, BlockError>,
    ) -> Result<bool, BlockError> {
        // The base first: if it declines, nothing was read from the log in vain.
        let base_end = self.base.size_bytes();
        for part in parts
            .iter()
            .filter(|part| matches!(part.source, Source::Base))
        {
            let buf = &mut buf[(part.start - offset) as usize..(part.end - offset) as usize];
            let held = part.end.min(base_end).saturating_sub(part.start) as usize;
            let (head, tail) = buf.split_at_mut(held);
            tail.fill(0);
            if !head.is_empty() && !read_base(part.start, head)? {
                return Ok(false);
            }
        }
        for part in parts
            .iter()
            .filter(|part| !matches!(part.source, Source::Base))
        {
            let buf = &mut buf[(part.start - offset) as usize..(part.end - offset) as usize];
            if !self.overlay.read_part(self.disk, part, buf, may_wait)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The base's view of `start..end`, zeros past its end.
    fn base_status(&self, start: u64, end: u64, status: &mut Vec<RangeStatus>) {
        let base_end = end.min(self.base.size_bytes());
        let mut at = start;
        while at < base_end && status.len() < STATUS_RANGES_MAX {
            let before = at;
            for range in self.base.status(at, base_end - at) {
                let len = range.len.min(base_end - at);
                push_status(status, RangeStatus { len, ..range });
                at += len;
            }
            if at == before {
                // A base that says nothing about a range it has: data, which is always true enough.
                let len = base_end - at;
                push_status(
                    status,
                    RangeStatus {
                        len,
                        hole: false,
                        zero: false,
                    },
                );
                at = base_end;
            }
        }
        if at < end && at >= base_end {
            push_status(
                status,
                RangeStatus {
                    len: end - at,
                    hole: true,
                    zero: true,
                },
            );
        }
    }
}

/// Appends a range, joined to the last one if that has the same status.
fn push_status(status: &mut Vec<RangeStatus>, range: RangeStatus) {
    match status.last_mut() {
        _ if range.len == 0 => {}
        Some(last) if (last.hole, last.zero) == (range.hole, range.zero) => last.len += range.len,
        _ => status.push(range),
    }
}

impl BlockDevice for Volume {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.size_bytes,
            block_bytes_min: SECTOR_BYTES as u32,
            block_bytes_preferred: PIECE_BYTES as u32,
            read_only: false,
        }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        let parts = self.parts(offset, buf.len() as u64)?;
        let whole = self.read_parts(&parts, offset, buf, true, |at, buf| {
            self.base.read(at, buf).map(|()| true)
        })?;
        debug_assert!(whole, "a base that may wait never declines");
        Ok(())
    }

    fn read_until(
        &self,
        offset: u64,
        buf: &mut [u8],
        enough: &dyn Fn() -> bool,
    ) -> Result<(), BlockError> {
        let parts = self.parts(offset, buf.len() as u64)?;
        let whole = self.read_parts(&parts, offset, buf, true, |at, buf| {
            self.base.read_until(at, buf, enough).map(|()| true)
        })?;
        debug_assert!(whole, "a base that may wait never declines");
        Ok(())
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError> {
        let parts = self.parts(offset, buf.len() as u64)?;
        self.read_parts(&parts, offset, buf, false, |at, buf| {
            self.base.try_read(at, buf)
        })
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), BlockError> {
        self.overlay.write(self.disk, offset, data)?;
        if fua { self.flush() } else { Ok(()) }
    }

    /// A write never needs the base: it goes into the log whole. Only one that is several records long, or finds no room, may wait.
    fn try_write(&self, offset: u64, data: &[u8]) -> Result<bool, BlockError> {
        Ok(self.overlay.try_write(self.disk, offset, data)?)
    }

    fn prefetch(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        let base_end = self.base.size_bytes();
        for part in self.parts(offset, len)? {
            let end = part.end.min(base_end);
            if matches!(part.source, Source::Base) && part.start < end {
                self.base.prefetch(part.start, end - part.start);
            }
        }
        Ok(())
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        may_unmap: bool,
        fua: bool,
    ) -> Result<(), BlockError> {
        self.overlay.zero(self.disk, offset, len, may_unmap)?;
        if fua { self.flush() } else { Ok(()) }
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

    /// Zeros of any length are one record.
    fn has_fast_zero(&self) -> bool {
        true
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.overlay.zero(self.disk, offset, len, true)?;
        Ok(())
    }

    fn flush(&self) -> Result<(), BlockError> {
        Ok(self.overlay.flush()?)
    }

    fn try_flush(&self) -> Result<bool, BlockError> {
        Ok(self.overlay.try_flush()?)
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<RangeStatus>, BlockError> {
        if len == 0 {
            return Err(BlockError::new(
                BlockErrorKind::OutOfRange,
                "the status of no bytes was asked for",
            ));
        }
        let mut status = Vec::new();
        for part in self.parts(offset, len)? {
            if status.len() >= STATUS_RANGES_MAX {
                break;
            }
            let len = part.end - part.start;
            match part.source {
                Source::Base => self.base_status(part.start, part.end, &mut status),
                Source::Zero { hole } => push_status(
                    &mut status,
                    RangeStatus {
                        len,
                        hole,
                        zero: true,
                    },
                ),
                Source::Log { .. } => push_status(
                    &mut status,
                    RangeStatus {
                        len,
                        hole: false,
                        zero: false,
                    },
                ),
            }
        }
        Ok(status)
    }
}
