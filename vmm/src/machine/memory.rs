//! A guest's memory: one memfd, mapped below and above the hole for devices.
//!
//! It is a file so that it can be shared with a process that serves a disk over vhost-user, and sealed so that nobody can shrink it
//! under us.

use std::fs::File;
use std::os::fd::FromRawFd;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use super::layout::{MEMORY_HIGH, MEMORY_LOW_MAX};

/// A guest's memory.
pub type Memory = GuestMemoryMmap<()>;

/// Least memory of a machine, MiB: a distribution's kernel and initrd unpack in no less.
pub const MEMORY_MIB_MIN: u64 = 64;
/// Most memory of a machine, MiB.
pub const MEMORY_MIB_MAX: u64 = 1 << 20;

/// Why there is no memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Size.
    #[error("{0} MiB of memory: from {MEMORY_MIB_MIN} to {MEMORY_MIB_MAX} MiB are possible")]
    Size(u64),
    /// The file.
    #[error("memory file of {bytes} bytes: {step}")]
    File {
        /// Its size.
        bytes: u64,
        /// What was tried.
        step: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The mapping.
    #[error("mapping {0} bytes of memory")]
    Map(usize, #[source] vm_memory::mmap::MmapRegionError),
    /// Regions that do not fit together.
    #[error("memory regions")]
    Regions(#[source] vm_memory::GuestRegionCollectionError),
}

/// Guest ranges of a machine with so much memory: start and bytes, lowest first.
pub fn ranges(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(MEMORY_LOW_MAX);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((MEMORY_HIGH, bytes - low));
    }
    ranges
}

/// Makes the memory of a machine. Pages are had when they are first touched.
///
/// # Errors
/// The size is out of bounds, or the host has no room for the mapping.
pub fn create(mib: u64) -> Result<Memory, MemoryError> {
    if !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&mib) {
        return Err(MemoryError::Size(mib));
    }
    let bytes = mib << 20;
    map(memfd(bytes)?, bytes)
}

/// Less memory than any machine has, for devices without a machine.
///
/// # Errors
/// The host has no room for it.
pub(crate) fn small(bytes: u64) -> Result<Memory, MemoryError> {
    map(memfd(bytes)?, bytes)
}

/// A file in memory of that size, which cannot change.
pub(crate) fn memfd(bytes: u64) -> Result<File, MemoryError> {
    let failed = |step| {
        move || MemoryError::File {
            bytes,
            step,
            source: std::io::Error::last_os_error(),
        }
    };
    // SAFETY: the name is a C string; the result is checked before it is used.
    let fd = unsafe {
        libc::memfd_create(
            c"guest-memory".as_ptr(),
            libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
        )
    };
    if fd < 0 {
        return Err(failed("create it")());
    }
    // SAFETY: the descriptor was made just now and belongs to nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes).map_err(|source| MemoryError::File {
        bytes,
        step: "set its size",
        source,
    })?;
    // SAFETY: plain integers; the descriptor is open.
    let sealed = unsafe {
        libc::fcntl(
            fd,
            libc::F_ADD_SEALS,
            libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL,
        )
    };
    if sealed < 0 {
        return Err(failed("seal its size")());
    }
    Ok(file)
}

fn map(file: File, bytes: u64) -> Result<Memory, MemoryError> {
    let file = std::sync::Arc::new(file);
    let mut offset = 0;
    let mut regions = Vec::new();
    for (start, len) in ranges(bytes) {
        let len_here = len as usize;
        let mapping = MmapRegionBuilder::new(len_here)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(std::sync::Arc::clone(&file), offset))
            .build()
            .map_err(|source| MemoryError::Map(len_here, source))?;
        offset += len;
        let region = GuestRegionMmap::new(mapping, GuestAddress(start));
        regions.push(region.expect("ranges end far below 2^64"));
    }
    Memory::from_regions(regions).map_err(MemoryError::Regions)
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    use super::*;

    #[test]
    fn memory_beyond_the_hole_begins_at_four_gib() {
        assert_eq!(ranges(1 << 30), [(0, 1 << 30)]);
        assert_eq!(
            ranges(4 << 30),
            [(0, MEMORY_LOW_MAX), (MEMORY_HIGH, 1 << 30)]
        );
    }

    #[test]
    fn all_of_it_can_be_written_and_nothing_beside() {
        let memory = create(64).expect("64 MiB are there");
        memory
            .write_obj(7u64, GuestAddress((64 << 20) - 8))
            .expect("its last word");
        assert!(
            memory
                .write_obj(7u64, GuestAddress((64 << 20) - 7))
                .is_err()
        );
        assert!(memory.iter().all(|region| region.file_offset().is_some()));
    }

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        assert!(matches!(create(1), Err(MemoryError::Size(1))));
        assert!(matches!(create(1 << 40), Err(MemoryError::Size(_))));
    }
}
