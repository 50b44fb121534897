//! The one door through which the rest of Splice sees a disk image: a virtual size, regions of data and of zeros, and
//! reads. Readers are positioned (no cursor), so that a caller may inspect and then walk the same image.

use crate::error::ImageError;
use crate::format::ImageFormat;

/// Disk sizes are whole sectors of this many bytes. An image whose stated size is not is read as if zeros filled the
/// last sector, which is what QEMU shows a guest.
pub const SECTOR_BYTES: u64 = 512;

/// The largest disk: 64 TiB, which is also VHDX's limit, and low enough that no offset arithmetic comes near 2⁶³.
pub(crate) const DISK_BYTES_MAX: u64 = 64 << 40;

/// What a [`Region`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RegionKind {
    /// Stored bytes, which may happen to be zeros.
    Data,
    /// Zeros that need not be read.
    Zero,
}

/// A run of a disk that is data or zeros throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    /// Where it begins, in bytes from the start of the disk.
    pub offset: u64,
    /// Its length in bytes, at least 1.
    pub len: u64,
    /// What it holds.
    pub kind: RegionKind,
}

impl Region {
    /// The first byte after it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// A disk, read from an image of any format.
pub trait DiskImage: Send {
    /// The format of the file behind it.
    fn format(&self) -> ImageFormat;

    /// The disk's size in bytes, a multiple of [`SECTOR_BYTES`] and never 0.
    fn size_bytes(&self) -> u64;

    /// The region that begins at `offset`. It is as long as is cheap to know: the next region may have the same kind.
    /// Holes are never read.
    ///
    /// # Errors
    ///
    /// [`ImageError::OutOfRange`] when `offset` is not on the disk; else what reading the image's tables may find.
    fn region_at(&mut self, offset: u64) -> Result<Region, ImageError>;

    /// Fills `buf` with the disk's bytes at `offset`; zero regions give zeros.
    ///
    /// # Errors
    ///
    /// [`ImageError::OutOfRange`] when the range is not wholly on the disk; else what reading the image may find.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ImageError>;
}

/// Checks that `len` bytes at `offset` lie on a disk of `size_bytes`.
pub(crate) fn check_range(offset: u64, len: u64, size_bytes: u64) -> Result<(), ImageError> {
    match offset.checked_add(len) {
        Some(end) if end <= size_bytes => Ok(()),
        _ => Err(ImageError::OutOfRange {
            offset,
            len,
            size_bytes,
        }),
    }
}
