//! A front-end's memory, mapped here.
//!
//! Invariant: what is mapped cannot be taken away under us. A file that its owner can shorten would end this process, and so every other
//! desktop of the branch, at the next access (SIGBUS); so only memory files (memfd) that are sealed against it are taken, and none on
//! huge pages, which run out. QEMU makes such files with `-object memory-backend-memfd,share=on`, which are sealed by default.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{SealFlags, fcntl_get_seals, fstat, fstatfs};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionCollectionError, GuestRegionMmap,
    MmapRegion,
};

use super::wire::{REGIONS_MAX, Region};

/// Most memory of one front-end, all regions together: 1 TiB, as large as machines get here.
const MEMORY_BYTES_MAX: u64 = 1 << 40;
/// Guest addresses end here, as on processors with 52 bits of them. What lies above is ours.
pub(crate) const GUEST_END: u64 = 1 << 52;

const PAGE_BYTES: u64 = 4096;

/// Why memory is not mapped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapError {
    #[error("{0} memory regions; from 1 to {REGIONS_MAX} are possible")]
    Count(usize),
    #[error("a memory region of {len:#x} bytes at {guest:#x} does not make sense")]
    Region { guest: u64, len: u64 },
    #[error("memory regions overlap in the front-end's addresses")]
    Overlap,
    #[error("memory regions")]
    Regions(#[source] GuestRegionCollectionError),
    #[error("a file of {file} bytes, but {end} are to be mapped")]
    TooShort { file: u64, end: u64 },
    #[error(
        "not a memory file that is sealed against shrinking, on small pages \
         (QEMU: memory-backend-memfd,share=on)"
    )]
    NotSealed,
    #[error("map")]
    Map(#[source] MmapRegionError),
    #[error("file")]
    File(#[source] std::io::Error),
}

/// Refuses a file unless it can be mapped up to `end` for good.
fn check_file(file: impl AsFd, end: u64) -> Result<(), MapError> {
    // First of all, and answered by the kernel alone: a file of a file system that its owner serves could keep us waiting for ever.
    match fcntl_get_seals(&file) {
        Ok(seals) if seals.contains(SealFlags::SHRINK) => {}
        _ => return Err(MapError::NotSealed),
    }
    let failed = |error: rustix::io::Errno| MapError::File(error.into());
    let on = fstatfs(&file).map_err(failed)?.f_type;
    if i128::from(on) != i128::from(libc::TMPFS_MAGIC) {
        return Err(MapError::NotSealed);
    }
    let status = fstat(&file).map_err(failed)?;
    let size = u64::try_from(status.st_size).unwrap_or(0);
    if size < end {
        return Err(MapError::TooShort { file: size, end });
    }
    Ok(())
}

/// Maps a part of a memory file, shared.
pub(crate) fn map_file(file: OwnedFd, offset: u64, len: u64) -> Result<MmapRegion<()>, MapError> {
    let wrong = MapError::Region { guest: offset, len };
    let fits = len > 0 && len <= MEMORY_BYTES_MAX && offset.is_multiple_of(PAGE_BYTES);
    let Some(end) = offset.checked_add(len).filter(|_| fits) else {
        return Err(wrong);
    };
    check_file(&file, end)?;
    MmapRegionBuilder::new(len as usize)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .with_file_offset(FileOffset::new(File::from(file), offset))
        .build()
        .map_err(MapError::Map)
}

/// See the module.
pub(crate) struct GuestMap {
    /// By guest addresses.
    pub(crate) memory: GuestMemoryMmap<()>,
    regions: Vec<Region>,
}

impl GuestMap {
    /// Maps all of it or nothing.
    pub(crate) fn new(mut table: Vec<(Region, OwnedFd)>) -> Result<Self, MapError> {
        if !(1..=REGIONS_MAX).contains(&table.len()) {
            return Err(MapError::Count(table.len()));
        }
        table.sort_by_key(|(region, _)| region.guest);
        let regions: Vec<Region> = table.iter().map(|(region, _)| *region).collect();
        check_table(&regions)?;
        let mut mapped = Vec::new();
        for (region, file) in table {
            let Region { guest, len, .. } = region;
            let mapping = map_file(file, region.offset, len)?;
            let mapping = GuestRegionMmap::new(mapping, GuestAddress(guest));
            mapped.push(Arc::new(mapping.ok_or(MapError::Region { guest, len })?));
        }
        let memory = GuestMemoryMmap::from_arc_regions(mapped).map_err(MapError::Regions)?;
        Ok(Self { memory, regions })
    }

    /// The guest address of what the front-end has at `user`.
    pub(crate) fn guest_address(&self, user: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let inside = user.checked_sub(region.user)?;
            (inside < region.len).then(|| region.guest + inside)
        })
    }
}

/// Ranges that end where addresses do, and do not overlap among the front-end's addresses. Among the guest's, mapping finds it.
fn check_table(regions: &[Region]) -> Result<(), MapError> {
    let mut total = 0u64;
    for Region {
        guest, len, user, ..
    } in regions.iter().copied()
    {
        let guest_end = guest.checked_add(len).filter(|end| *end <= GUEST_END);
        let fits = guest_end.is_some() && user.checked_add(len).is_some();
        total = total.saturating_add(len);
        if len == 0 || !fits || !guest.is_multiple_of(PAGE_BYTES) || total > MEMORY_BYTES_MAX {
            return Err(MapError::Region { guest, len });
        }
    }
    let mut by_user: Vec<_> = regions.iter().map(|one| (one.user, one.len)).collect();
    by_user.sort_unstable();
    let overlaps = by_user
        .windows(2)
        .any(|pair| pair[0].0 + pair[0].1 > pair[1].0);
    if overlaps {
        Err(MapError::Overlap)
    } else {
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};
    use vm_memory::{Bytes, GuestMemoryBackend};

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A memory file as a good front-end has it.
    pub(crate) fn sealed(bytes: u64) -> OwnedFd {
        let file = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, bytes).unwrap();
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        file
    }

    fn region(guest: u64, len: u64, user: u64, offset: u64) -> Region {
        Region {
            guest,
            len,
            user,
            offset,
        }
    }

    fn map(regions: &[Region]) -> Result<GuestMap, MapError> {
        let file = sealed(4 * MIB);
        let with_file = |region: &Region| (*region, file.try_clone().unwrap());
        GuestMap::new(regions.iter().map(with_file).collect())
    }

    #[test]
    fn regions_are_found_by_either_address() {
        let high = region(1 << 32, MIB, 5 * MIB, 0);
        let low = region(0, MIB, 0, MIB);
        let map = map(&[high, low]).unwrap();
        assert_eq!(map.guest_address(5 * MIB + 7), Some((1 << 32) + 7));
        assert_eq!(map.guest_address(MIB - 1), Some(MIB - 1));
        assert_eq!(map.guest_address(MIB), None);
        map.memory.write_obj(7u8, GuestAddress(1 << 32)).unwrap();
        assert_eq!(map.memory.num_regions(), 2);
    }

    #[test]
    fn tables_that_make_no_sense_are_refused() {
        for wrong in [
            vec![],
            vec![region(0, 0, 0, 0)],
            vec![region(1, MIB, 0, 0)],
            vec![region(0, MIB, 0, 1)],
            vec![region(0, MIB, u64::MAX, 0)],
            vec![region(u64::MAX - 4095, MIB, 0, 0)],
            vec![region(GUEST_END - 4096, 2 * 4096, 0, 0)],
            vec![region(0, MIB, 0, u64::MAX - 4095)],
            vec![region(0, 5 * MIB, 0, 0)],
            vec![region(0, MIB, 0, 4 * MIB)],
            vec![region(0, 2 * MIB, 0, 0), region(MIB, MIB, 8 * MIB, 0)],
            vec![region(0, MIB, 0, 0), region(MIB, MIB, MIB - 1, 0)],
            vec![region(0, 1 << 41, 0, 0)],
        ] {
            assert!(map(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn files_that_can_shrink_are_refused() {
        let table = |file| GuestMap::new(vec![(region(0, MIB, 0, 0), file)]);
        let open = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&open, MIB).unwrap();
        assert!(matches!(table(open), Err(MapError::NotSealed)));
        let plain = tempfile::tempfile().unwrap();
        plain.set_len(MIB).unwrap();
        assert!(matches!(table(plain.into()), Err(MapError::NotSealed)));
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(table(null.into()), Err(MapError::NotSealed)));
        let written = sealed(MIB);
        fcntl_add_seals(&written, SealFlags::WRITE).unwrap();
        assert!(matches!(table(written), Err(MapError::Map(_))));
    }
}
