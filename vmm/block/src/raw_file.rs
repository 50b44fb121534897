//! A disk in a file or block device of the host.
//!
//! Invariant: an acknowledged write is in the kernel's page cache, an acknowledged flush went through `fdatasync`. A
//! failed `fdatasync` fails the device for good: Linux reports a write-back error once and then forgets it, so that a
//! later success would claim durability for bytes that were dropped.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use crate::device::{BlockDevice, BlockError, BlockErrorKind, Geometry, RangeStatus, check_range};

/// Zeroes written at a time where the file system cannot zero a range by itself, bytes.
const ZERO_BUFFER_BYTES: usize = 64 * 1024;
static ZEROES: [u8; ZERO_BUFFER_BYTES] = [0; ZERO_BUFFER_BYTES];

/// Most status ranges reported by one call: enough for a useful answer, little memory for a badly fragmented file.
const STATUS_RANGES_MAX: usize = 4096;

/// A raw disk image, or a host block device, as a disk.
pub struct RawFile {
    file: File,
    path: PathBuf,
    geometry: Geometry,
    /// Set for good by the first failed sync.
    failed: AtomicBool,
}

impl RawFile {
    /// Opens an existing image or block device; its size is the disk's size, rounded down to whole 512-byte sectors
    /// only by clients that need that.
    ///
    /// # Errors
    /// The file cannot be opened or its size cannot be found.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, BlockError> {
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(|error| BlockError::from_io(format!("{}: open", path.display()), error))?;
        let size_bytes = seek(&file, SeekFrom::End(0)).map_err(|error| {
            BlockError::from_io(format!("{}: find its size", path.display()), error.into())
        })?;
        Ok(Self::build(file, path, size_bytes, read_only))
    }

    /// Creates a sparse image of `size_bytes` bytes. The path must not exist.
    ///
    /// # Errors
    /// The file exists or cannot be created at that size.
    pub fn create(path: &Path, size_bytes: u64) -> Result<Self, BlockError> {
        let context = |what: &str| format!("{}: {what}", path.display());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|error| BlockError::from_io(context("create"), error))?;
        file.set_len(size_bytes)
            .map_err(|error| BlockError::from_io(context("set its size"), error))?;
        Ok(Self::build(file, path, size_bytes, false))
    }

    fn build(file: File, path: &Path, size_bytes: u64, read_only: bool) -> Self {
        let geometry = Geometry {
            size_bytes,
            block_bytes_min: 1,
            block_bytes_preferred: 4096,
            read_only,
        };
        Self {
            file,
            path: path.to_owned(),
            geometry,
            failed: AtomicBool::new(false),
        }
    }

    fn error(&self, what: &str, offset: u64, len: u64, error: std::io::Error) -> BlockError {
        BlockError::from_io(
            format!("{}: {what} {len} bytes at {offset}", self.path.display()),
            error,
        )
    }

    fn check_change(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        if self.geometry.read_only {
            return Err(BlockError::new(
                BlockErrorKind::ReadOnly,
                format!("{} is open read-only", self.path.display()),
            ));
        }
        self.check_alive()?;
        check_range(offset, len, self.geometry.size_bytes)
    }

    fn check_alive(&self) -> Result<(), BlockError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(BlockError::new(
                BlockErrorKind::Io,
                format!(
                    "{} failed to sync before and takes no more writes",
                    self.path.display()
                ),
            ));
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), BlockError> {
        self.check_alive()?;
        self.file.sync_data().map_err(|error| {
            self.failed.store(true, Ordering::Release);
            BlockError::from_io(format!("{}: sync", self.path.display()), error)
        })
    }

    /// Lets the file system zero the range; `Ok(false)` where it cannot.
    fn zero_by_file_system(&self, offset: u64, len: u64, unmap: bool) -> Result<bool, BlockError> {
        let mut modes = [FallocateFlags::ZERO_RANGE, FallocateFlags::PUNCH_HOLE];
        if unmap {
            modes.reverse();
        }
        // Without permission to unmap, punching is no way out: it would take the storage away.
        let modes = if unmap { &modes[..] } else { &modes[..1] };
        for &mode in modes {
            match fallocate(&self.file, mode | FallocateFlags::KEEP_SIZE, offset, len) {
                Ok(()) => return Ok(true),
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => {}
                Err(error) => return Err(self.error("zero", offset, len, error.into())),
            }
        }
        Ok(false)
    }

    fn zero(
        &self,
        offset: u64,
        len: u64,
        unmap: bool,
        fast: bool,
        fua: bool,
    ) -> Result<(), BlockError> {
        self.check_change(offset, len)?;
        if len > 0 && !self.zero_by_file_system(offset, len, unmap)? {
            if fast {
                return Err(BlockError::new(
                    BlockErrorKind::Unsupported,
                    format!(
                        "{}: the file system cannot zero a range",
                        self.path.display()
                    ),
                ));
            }
            let mut at = offset;
            while at < offset + len {
                let piece = (offset + len - at).min(ZERO_BUFFER_BYTES as u64);
                self.file
                    .write_all_at(&ZEROES[..piece as usize], at)
                    .map_err(|error| self.error("zero", at, piece, error))?;
                at += piece;
            }
        }
        if fua { self.sync() } else { Ok(()) }
    }
}

impl BlockDevice for RawFile {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        check_range(offset, buf.len() as u64, self.geometry.size_bytes)?;
        self.file
            .read_exact_at(buf, offset)
            .map_err(|error| self.error("read", offset, buf.len() as u64, error))
    }

    /// A local file counts as not waiting: a disk read is what any guest expects of a disk.
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError> {
        self.read(offset, buf).map(|()| true)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), BlockError> {
        self.check_change(offset, data.len() as u64)?;
        self.file
            .write_all_at(data, offset)
            .map_err(|error| self.error("write", offset, data.len() as u64, error))?;
        if fua { self.sync() } else { Ok(()) }
    }

    fn try_write(&self, offset: u64, data: &[u8]) -> Result<bool, BlockError> {
        self.write(offset, data, false).map(|()| true)
    }

    fn prefetch(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        check_range(offset, len, self.geometry.size_bytes)?;
        // Advice; where the kernel does not take it, the read simply comes later.
        let _ = rustix::fs::fadvise(
            &self.file,
            offset,
            std::num::NonZeroU64::new(len),
            Advice::WillNeed,
        );
        Ok(())
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        may_unmap: bool,
        fua: bool,
    ) -> Result<(), BlockError> {
        self.zero(offset, len, may_unmap, false, fua)
    }

    fn write_zeroes_fast(
        &self,
        offset: u64,
        len: u64,
        may_unmap: bool,
        fua: bool,
    ) -> Result<(), BlockError> {
        self.zero(offset, len, may_unmap, true, fua)
    }

    fn has_fast_zero(&self) -> bool {
        true
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.check_change(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        match fallocate(
            &self.file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            offset,
            len,
        ) {
            // A discard is advice: a file system that cannot follow it keeps the old bytes.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => Ok(()),
            Err(error) => Err(self.error("discard", offset, len, error.into())),
        }
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.sync()
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<RangeStatus>, BlockError> {
        check_range(offset, len, self.geometry.size_bytes)?;
        let end = offset + len;
        let mut status = Vec::new();
        let mut at = offset;
        while at < end && status.len() < STATUS_RANGES_MAX {
            // Every position below is absolute, so threads that share the file offset do not disturb each other.
            let data_at = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(data_at) => data_at.clamp(at, end),
                Err(Errno::NXIO) => end,
                // No hole information (block device, plain file system): all data.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
                Err(error) => return Err(self.error("map", at, end - at, error.into())),
            };
            if data_at > at {
                status.push(RangeStatus {
                    len: data_at - at,
                    hole: true,
                    zero: true,
                });
            }
            if data_at < end {
                let hole_at = match seek(&self.file, SeekFrom::Hole(data_at)) {
                    // A hole exactly here means that it was punched between the two calls; one more round sees it.
                    Ok(hole_at) => hole_at.min(end),
                    Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => end,
                    Err(error) => {
                        return Err(self.error("map", data_at, end - data_at, error.into()));
                    }
                };
                if hole_at > data_at {
                    status.push(RangeStatus {
                        len: hole_at - data_at,
                        hole: false,
                        zero: false,
                    });
                }
                at = hole_at;
            } else {
                at = end;
            }
        }
        Ok(status)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::RawFile;
    use crate::device::{BlockDevice, BlockErrorKind};

    #[test]
    fn bytes_survive_reopening_and_holes_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        let disk = RawFile::create(&path, 1 << 20).unwrap();
        disk.write(256 * 1024, &[7; 4096], true).unwrap();
        drop(disk);
        let disk = RawFile::open(&path, false).unwrap();
        assert_eq!(disk.geometry().size_bytes, 1 << 20);
        let mut read = [0; 4098];
        disk.read(256 * 1024 - 1, &mut read).unwrap();
        assert_eq!((read[0], read[1], read[4096], read[4097]), (0, 7, 7, 0));
        let status = disk.block_status(0, 1 << 20).unwrap();
        assert_eq!(status.iter().map(|range| range.len).sum::<u64>(), 1 << 20);
        assert!(status[0].hole && status[0].zero, "{status:?}");
        disk.write_zeroes(256 * 1024, 4096, true, false).unwrap();
        disk.read(256 * 1024 - 1, &mut read).unwrap();
        assert_eq!(read, [0; 4098]);
    }

    #[test]
    fn ranges_outside_and_read_only_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        drop(RawFile::create(&path, 8192).unwrap());
        assert!(
            RawFile::create(&path, 8192).is_err(),
            "an existing image is not overwritten"
        );
        let disk = RawFile::open(&path, true).unwrap();
        assert_eq!(
            disk.read(8191, &mut [0; 2]).unwrap_err().kind,
            BlockErrorKind::OutOfRange
        );
        assert_eq!(
            disk.write(0, b"x", false).unwrap_err().kind,
            BlockErrorKind::ReadOnly
        );
        assert_eq!(
            disk.discard(0, 1).unwrap_err().kind,
            BlockErrorKind::ReadOnly
        );
    }
}
