//! The block device contract: what every export and every virtio queue may ask of a disk.
//!
//! Invariant: a device never answers with bytes it is not sure of. A read either fills the whole buffer with what was
//! last written (or with the base content) or returns an error; a flush returns only when every write that completed
//! before it began is durable. Byte ranges here are byte-granular; a transport that promised its client a minimum
//! block size enforces that promise itself.
//!
//! The traits here deliberately know nothing of async run times: callers are guest I/O threads.

use std::io;
use std::sync::Arc;

/// Shape of a device. It does not change while the device is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the disk in bytes.
    pub size_bytes: u64,
    /// Smallest unit in bytes that the device accepts, a power of two between 1 and 64 KiB.
    pub block_bytes_min: u32,
    /// Unit in bytes at which the device works best (4,096 for a volume: it checksums per 4 KiB).
    pub block_bytes_preferred: u32,
    /// Whether writes, discards and zeroing are refused.
    pub read_only: bool,
}

/// What kind of failure a caller sees; decides what the guest is told and whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockErrorKind {
    /// The medium failed, or its content did not verify. Not retried into success.
    Io,
    /// No room for this write, also after eviction.
    NoSpace,
    /// The device is read-only.
    ReadOnly,
    /// The range is not inside the device: the guest's or client's mistake.
    OutOfRange,
    /// The bounded wait for bytes that come over the WAN expired. A later attempt can succeed.
    Unavailable,
    /// The device is being closed.
    ShuttingDown,
    /// The device cannot do this, or cannot do it quickly (see [`BlockDevice::write_zeroes_fast`]).
    Unsupported,
}

impl BlockErrorKind {
    /// The Linux error number that describes this kind, which is also what NBD puts on the wire.
    ///
    /// NBD defines EPERM 1, EIO 5, ENOMEM 12, EINVAL 22, ENOSPC 28, EOVERFLOW 75, ENOTSUP 95 and ESHUTDOWN 108 and
    /// nothing else, so an expired wait is EIO: the guest's file system must not take it for data.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::Io | Self::Unavailable => libc::EIO,
            Self::NoSpace => libc::ENOSPC,
            Self::ReadOnly => libc::EPERM,
            Self::OutOfRange => libc::EINVAL,
            Self::ShuttingDown => libc::ESHUTDOWN,
            Self::Unsupported => libc::ENOTSUP,
        }
    }

    /// Whether it is the guest's or client's own mistake, of which nobody else needs to hear.
    #[must_use]
    pub const fn is_askers(self) -> bool {
        matches!(self, Self::OutOfRange | Self::ReadOnly | Self::Unsupported)
    }

    /// Whether the same request can succeed later without anybody mending anything here.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Unavailable)
    }

    /// Whether a guest is to wait until it can be done rather than be told that it cannot: nothing is wrong with its disk, the WAN is
    /// cut or the branch's own disk is full. A guest's file system takes an error for good and stops to write.
    #[must_use]
    pub const fn can_pass(self) -> bool {
        matches!(self, Self::Unavailable | Self::NoSpace)
    }
}

/// Why a block request failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{context}")]
pub struct BlockError {
    /// What the caller is told.
    pub kind: BlockErrorKind,
    /// Which device, which place, what to do.
    pub context: String,
    /// The error below, if any. Shared, so that one failed fetch can fail every request that waited for it.
    #[source]
    pub source: Option<Arc<dyn std::error::Error + Send + Sync + 'static>>,
}

impl BlockError {
    /// An error without a cause below it.
    #[must_use]
    pub fn new(kind: BlockErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// An error with the cause below it.
    #[must_use]
    pub fn with_source(
        kind: BlockErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync + 'static>>,
    ) -> Self {
        Self {
            kind,
            context: context.into(),
            source: Some(Arc::from(source.into())),
        }
    }

    /// Classifies an operating-system error: ENOSPC and EDQUOT are [`BlockErrorKind::NoSpace`], EROFS and EPERM are
    /// [`BlockErrorKind::ReadOnly`], EOPNOTSUPP is [`BlockErrorKind::Unsupported`], everything else is
    /// [`BlockErrorKind::Io`]. By kind and not by number, because a layer that names the file in the error keeps the kind only.
    #[must_use]
    pub fn from_io(context: impl Into<String>, error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BlockErrorKind::NoSpace,
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                BlockErrorKind::ReadOnly
            }
            io::ErrorKind::Unsupported => BlockErrorKind::Unsupported,
            // Not every release of the standard library has a kind for it.
            _ if error.raw_os_error() == Some(libc::EOPNOTSUPP) => BlockErrorKind::Unsupported,
            _ => BlockErrorKind::Io,
        };
        Self::with_source(kind, context, error)
    }
}

/// What is known about a range without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeStatus {
    /// Length of the range in bytes, never 0.
    pub len: u64,
    /// No storage is allocated for it here.
    pub hole: bool,
    /// It reads as zeroes.
    pub zero: bool,
}

/// A disk that a guest can use.
///
/// Requests may come from several threads at once and overlap; overlapping requests in flight have no defined order
/// among each other, requests that do not overlap in time do.
pub trait BlockDevice: Send + Sync {
    /// Size, block sizes and whether it can be written.
    fn geometry(&self) -> Geometry;

    /// Fills `buf` from `offset` (bytes) or fails. May wait, bounded, for bytes to come over the WAN.
    ///
    /// # Errors
    /// [`BlockErrorKind::OutOfRange`], [`BlockErrorKind::Io`], [`BlockErrorKind::Unavailable`] or
    /// [`BlockErrorKind::ShuttingDown`]; `buf` then holds anything.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError>;

    /// As [`BlockDevice::read`], but soon after `enough` says so it waits no longer for bytes that come over the WAN, and fails with
    /// [`BlockErrorKind::ShuttingDown`]. The default never asks, as is right for a device that does not wait long.
    ///
    /// # Errors
    /// As [`BlockDevice::read`].
    fn read_until(
        &self,
        offset: u64,
        buf: &mut [u8],
        _enough: &dyn Fn() -> bool,
    ) -> Result<(), BlockError> {
        self.read(offset, buf)
    }

    /// Serves the read only if that needs no waiting. `Ok(false)` says that [`BlockDevice::read`] must be called on a
    /// thread that may block; `buf` then holds anything.
    ///
    /// # Errors
    /// As [`BlockDevice::read`].
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError>;

    /// Writes `data` at `offset` (bytes). It is accepted by the kernel before the call returns, so that it survives
    /// the death of this process; with `fua` (force unit access) it is durable when the call returns.
    ///
    /// # Errors
    /// Any [`BlockErrorKind`]; the range then holds old or new bytes per block, undefined which.
    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), BlockError>;

    /// Writes without FUA, but only if that needs no waiting; `Ok(false)`, having written nothing, says that
    /// [`BlockDevice::write`] must be called on a thread that may block. By default, whole blocks of the preferred
    /// size are taken and others are not: a part of a block may need the rest of it read over the WAN first.
    ///
    /// # Errors
    /// As [`BlockDevice::write`].
    fn try_write(&self, offset: u64, data: &[u8]) -> Result<bool, BlockError> {
        let grain = u64::from(self.geometry().block_bytes_preferred.max(1));
        if !offset.is_multiple_of(grain) || !(data.len() as u64).is_multiple_of(grain) {
            return Ok(false);
        }
        self.write(offset, data, false).map(|()| true)
    }

    /// Says that the range is likely to be read soon; the device may fetch it, or do nothing (the default).
    ///
    /// # Errors
    /// [`BlockErrorKind::OutOfRange`]; failing to fetch is no error here.
    fn prefetch(&self, _offset: u64, _len: u64) -> Result<(), BlockError> {
        Ok(())
    }

    /// Makes the range read as zeroes. `may_unmap` allows (does not demand) that its storage is given back.
    ///
    /// # Errors
    /// As [`BlockDevice::write`].
    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        may_unmap: bool,
        fua: bool,
    ) -> Result<(), BlockError>;

    /// As [`BlockDevice::write_zeroes`], but fails with [`BlockErrorKind::Unsupported`], having changed nothing,
    /// where zeroing would not be much cheaper than writing zeroes. The default always refuses, which is correct for
    /// a device that never said [`BlockDevice::has_fast_zero`].
    ///
    /// # Errors
    /// As [`BlockDevice::write`], and [`BlockErrorKind::Unsupported`].
    fn write_zeroes_fast(
        &self,
        _offset: u64,
        _len: u64,
        _may_unmap: bool,
        _fua: bool,
    ) -> Result<(), BlockError> {
        Err(BlockError::new(
            BlockErrorKind::Unsupported,
            "zeroing is not cheaper than writing on this device",
        ))
    }

    /// Whether [`BlockDevice::write_zeroes_fast`] can succeed at all.
    fn has_fast_zero(&self) -> bool {
        false
    }

    /// Tells the device that the range's content is no longer needed. What it reads as afterwards is undefined but
    /// stable until written: old bytes or zeroes.
    ///
    /// # Errors
    /// As [`BlockDevice::write`].
    fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError>;

    /// Makes every write that completed before this call durable, whichever connection or thread it came from.
    ///
    /// # Errors
    /// [`BlockErrorKind::Io`]: nothing written since the last successful flush can be relied upon.
    fn flush(&self) -> Result<(), BlockError>;

    /// Flushes, but only if that is likely to be quick: little was written since the last one, and nobody else is flushing. `Ok(false)`
    /// says that [`BlockDevice::flush`] must be called on a thread that may block; the default always does.
    ///
    /// # Errors
    /// As [`BlockDevice::flush`].
    fn try_flush(&self) -> Result<bool, BlockError> {
        Ok(false)
    }

    /// Describes `len` bytes (more than 0) from `offset` by consecutive ranges, without waiting for the WAN. The
    /// ranges add up to at least one byte and at most `len`; neighbours may have equal status. Data that is not here
    /// yet is reported as plain data (`hole: false, zero: false`).
    ///
    /// # Errors
    /// [`BlockErrorKind::OutOfRange`] or [`BlockErrorKind::Io`].
    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<RangeStatus>, BlockError>;
}

/// Checks that `len` bytes from `offset` lie inside a device of `size_bytes` bytes.
///
/// # Errors
/// [`BlockErrorKind::OutOfRange`], naming range and size.
pub fn check_range(offset: u64, len: u64, size_bytes: u64) -> Result<(), BlockError> {
    if offset.checked_add(len).is_some_and(|end| end <= size_bytes) {
        return Ok(());
    }
    Err(BlockError::new(
        BlockErrorKind::OutOfRange,
        format!("{len} bytes at {offset} do not lie inside a disk of {size_bytes} bytes"),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::{BlockError, BlockErrorKind, check_range};
    use std::io;

    #[test]
    fn ranges_at_the_edge_and_past_it() {
        assert!(check_range(0, 0, 0).is_ok());
        assert!(check_range(10, 0, 10).is_ok());
        assert!(check_range(0, 10, 10).is_ok());
        assert_eq!(
            check_range(1, 10, 10).unwrap_err().kind,
            BlockErrorKind::OutOfRange
        );
        assert_eq!(
            check_range(u64::MAX, 2, 10).unwrap_err().kind,
            BlockErrorKind::OutOfRange
        );
    }

    #[test]
    fn a_full_disk_is_told_apart_from_a_broken_one() {
        let full = BlockError::from_io("overlay", io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(full.kind, BlockErrorKind::NoSpace);
        assert_eq!(full.kind.errno(), libc::ENOSPC);
        for (number, kind) in [
            (libc::ENOSPC, BlockErrorKind::NoSpace),
            (libc::EDQUOT, BlockErrorKind::NoSpace),
            (libc::EROFS, BlockErrorKind::ReadOnly),
            (libc::EIO, BlockErrorKind::Io),
        ] {
            let raw = io::Error::from_raw_os_error(number);
            let wrapped = io::Error::new(raw.kind(), format!("segment 7: {raw}"));
            assert_eq!(BlockError::from_io("overlay", raw).kind, kind);
            assert_eq!(BlockError::from_io("overlay", wrapped).kind, kind);
        }
        let broken = BlockError::from_io("overlay", io::Error::from_raw_os_error(libc::EIO));
        assert_eq!(broken.kind, BlockErrorKind::Io);
        assert_eq!(
            broken.to_string(),
            "overlay",
            "the source is not repeated in Display"
        );
    }
}
