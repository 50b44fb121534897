//! Where a file lies on its file system's device, as the kernel says (FS_IOC_FIEMAP, linux/fiemap.h).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: libc::c_ulong = 0xC020_660B;
/// Extents asked for at once.
const EXTENTS: usize = 128;

const LAST: u32 = 0x1;
/// Where it lies is not known, not yet, not as it is (compressed, encrypted), or not in blocks of its own.
const NOT_ON_DISK: u32 = 0x2 | 0x4 | 0x8 | 0x80 | 0x200 | 0x400;

/// A piece of a file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) logical: u64,
    pub(crate) physical: u64,
    pub(crate) len: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

#[repr(C)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}

/// A file's pieces, by their places in the file.
///
/// # Errors
/// The file system has no such map.
pub(crate) fn pieces(file: &File) -> io::Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut start = 0;
    loop {
        let mut request = Request {
            start,
            length: u64::MAX - start,
            flags: 0,
            mapped_extents: 0,
            extent_count: EXTENTS as u32,
            reserved: 0,
            extents: [Extent::default(); EXTENTS],
        };
        // SAFETY: the descriptor is open while `file` lives, and the request is laid out as the kernel's struct with room for
        // `extent_count` extents behind it.
        if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP as _, &raw mut request) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let extents = &request.extents[..(request.mapped_extents as usize).min(EXTENTS)];
        for extent in extents.iter().filter(|e| e.flags & NOT_ON_DISK == 0) {
            pieces.push(Piece {
                logical: extent.logical,
                physical: extent.physical,
                len: extent.length,
            });
        }
        match extents.last() {
            Some(extent) if extent.flags & LAST == 0 => start = extent.logical + extent.length,
            _ => return Ok(pieces),
        }
    }
}
