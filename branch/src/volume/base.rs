//! What a read-only version looks like to a volume.
//!
//! Owns the [`Base`] contract and an in-memory one for tests. The real base (manifest, cache and link) lives with the link;
//! a volume neither knows nor cares where the bytes come from.

use std::ops::Range;

use vmm_block::{BlockError, RangeStatus, check_range};

/// The immutable content under a desktop's overlay: one disk of a version.
///
/// Ranges lie inside [`Base::size_bytes`]; a volume never asks for more.
pub trait Base: Send + Sync {
    /// Size of the version's disk in bytes.
    fn size_bytes(&self) -> u64;
    /// Fills `buf` from `offset`. May wait, bounded, for the WAN.
    ///
    /// # Errors
    /// `Unavailable` when the bounded wait expired, `Io` when the content cannot be had, `ShuttingDown`.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError>;
    /// As [`Base::read`], but soon after `enough` says so it waits no longer, and fails with `ShuttingDown`. The default never asks.
    ///
    /// # Errors
    /// As [`Base::read`].
    fn read_until(
        &self,
        offset: u64,
        buf: &mut [u8],
        _enough: &dyn Fn() -> bool,
    ) -> Result<(), BlockError> {
        self.read(offset, buf)
    }
    /// Fills `buf` from `offset` if every byte is at hand; `Ok(false)` says that [`Base::read`] would wait.
    ///
    /// # Errors
    /// As [`Base::read`], except that it never waits.
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError>;
    /// Describes `len` bytes from `offset` by consecutive ranges that add up to at least one byte and at most `len`:
    /// the zero extents of the version, the rest as data.
    fn status(&self, offset: u64, len: u64) -> Vec<RangeStatus>;
    /// Says that the range is likely to be read soon. Returns at once; the default does nothing.
    fn prefetch(&self, _offset: u64, _len: u64) {}
}

/// No base: the disk is what was written to it, and zeros.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoBase;

impl Base for NoBase {
    fn size_bytes(&self) -> u64 {
        0
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        check_range(offset, buf.len() as u64, 0)
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError> {
        self.read(offset, buf).map(|()| true)
    }

    fn status(&self, _offset: u64, _len: u64) -> Vec<RangeStatus> {
        Vec::new()
    }
}

/// A base in memory, for tests: bytes, zero ranges, and ranges that are not at hand.
#[derive(Debug, Clone, Default)]
pub struct MemBase {
    bytes: Vec<u8>,
    zero: Vec<Range<u64>>,
    away: Vec<Range<u64>>,
}

impl MemBase {
    /// A base with this content, all of it at hand.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            zero: Vec::new(),
            away: Vec::new(),
        }
    }

    /// Declares `range` a zero extent and zeroes it. Ranges are declared in ascending order and do not overlap.
    #[must_use]
    pub fn with_zero(mut self, range: Range<u64>) -> Self {
        self.bytes[range.start as usize..range.end as usize].fill(0);
        self.zero.push(range);
        self
    }

    /// Declares that `range` would have to come over the WAN.
    #[must_use]
    pub fn with_away(mut self, range: Range<u64>) -> Self {
        self.away.push(range);
        self
    }
}

impl Base for MemBase {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        check_range(offset, buf.len() as u64, self.size_bytes())?;
        let start = offset as usize;
        buf.copy_from_slice(&self.bytes[start..start + buf.len()]);
        Ok(())
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError> {
        let end = offset + buf.len() as u64;
        if self.away.iter().any(|r| r.start < end && offset < r.end) {
            return Ok(false);
        }
        self.read(offset, buf).map(|()| true)
    }

    fn status(&self, offset: u64, len: u64) -> Vec<RangeStatus> {
        let end = offset + len;
        let mut at = offset;
        let mut status = Vec::new();
        let mut push = |len: u64, zero: bool| {
            if len > 0 {
                status.push(RangeStatus {
                    len,
                    hole: zero,
                    zero,
                });
            }
        };
        for range in &self.zero {
            let (from, to) = (range.start.clamp(at, end), range.end.clamp(at, end));
            if from < to {
                push(from - at, false);
                push(to - from, true);
                at = to;
            }
        }
        push(end - at, false);
        status
    }
}
