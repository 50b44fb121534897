//! A guest's memory in a file: as long as the memory, with holes where it is zero, and a name for each block.
//!
//! A block is 64 KiB; its name is the BLAKE3 of its bytes, which is how the rest of Splice names content. A block that is all zeros has
//! none. Blocks are checked against their names when they are read, one by one, so that a machine can go on before all are read and a
//! damaged file is never taken for memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::parts::Part;
use crate::machine::memory::Memory;

/// Bytes of a block: 16 pages, which a guest that touches one of them tends to touch too, read and hashed in some 50 µs.
pub const BLOCK_BYTES: usize = 64 << 10;
/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;

/// Blocks of a memory, in the order of its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocks(pub Vec<Option<[u8; 32]>>);

impl Part for Blocks {
    const NUMBER: u16 = 2;
    const VERSION: u16 = 1;
    const NAME: &'static str = "memory map";
}

/// Why memory cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The disk, or the host's memory.
    #[error("memory of the guest: {step} at byte {at}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// Where.
        at: u64,
        /// Why not.
        source: io::Error,
    },
    /// The file does not fit the machine.
    #[error("memory of the guest: the file has {found} bytes, {expected} are needed")]
    Size {
        /// Bytes of the file.
        found: u64,
        /// Bytes of the machine's memory.
        expected: u64,
    },
    /// Damaged.
    #[error("memory of the guest: block {0} is damaged")]
    Damaged(usize),
}

fn io_error(step: &'static str, at: u64) -> impl FnOnce(io::Error) -> ImageError {
    move |source| ImageError::Io { step, at, source }
}

/// The one file that a machine's memory is.
fn file_of(memory: &Memory) -> &File {
    let first = memory.iter().next().expect("a machine has memory");
    first.file_offset().expect("memory is a file").file()
}

fn bytes_of(memory: &Memory) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum()
}

/// The first byte from `at` on that the file holds; `None` when only holes follow.
fn data_from(file: &File, at: u64) -> Result<Option<u64>, ImageError> {
    // SAFETY: plain integers; the descriptor is open.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at as libc::off_t, libc::SEEK_DATA) };
    if found >= 0 {
        return Ok(Some(found as u64));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENXIO) => Ok(None),
        _ => Err(io_error("look for data", at)(error)),
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // Compared in long words, which the compiler does by itself.
    bytes.iter().fold(0, |all, byte| all | byte) == 0
}

/// Calls `put` with offset and bytes of each run of pages that are not all zeros.
pub(super) fn for_each_run<E>(
    block: &[u8],
    mut put: impl FnMut(usize, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut start = 0;
    let mut pages = block.chunks(PAGE_BYTES);
    let mut at = 0;
    loop {
        let page = pages.next();
        if page.is_none_or(is_zero) {
            if start < at {
                put(start, &block[start..at])?;
            }
            start = at + PAGE_BYTES;
        }
        match page {
            Some(_) => at += PAGE_BYTES,
            None => return Ok(()),
        }
    }
}

/// Writes the memory of a machine that does not run into an empty file, which is synced. Pages that are zero, which are those that the
/// guest never touched or gave back too, take no room.
///
/// # Errors
/// The disk fails.
pub fn write(memory: &Memory, out: &File) -> Result<Blocks, ImageError> {
    let (source, bytes) = (file_of(memory), bytes_of(memory));
    out.set_len(bytes)
        .map_err(io_error("set its size", bytes))?;
    let mut blocks = vec![None; (bytes / BLOCK_BYTES as u64) as usize];
    let mut block = vec![0; BLOCK_BYTES];
    let mut at = 0;
    while let Some(data) = data_from(source, at)? {
        let start = data - data % BLOCK_BYTES as u64;
        let read = source.read_exact_at(&mut block, start);
        read.map_err(io_error("read", start))?;
        for_each_run(&block, |offset, run| {
            let at = start + offset as u64;
            out.write_all_at(run, at).map_err(io_error("write", at))
        })?;
        if !is_zero(&block) {
            let index = (start / BLOCK_BYTES as u64) as usize;
            blocks[index] = Some(blake3::hash(&block).into());
        }
        at = start + BLOCK_BYTES as u64;
    }
    out.sync_all().map_err(io_error("sync", bytes))?;
    Ok(Blocks(blocks))
}

/// Memory in a file, to be read block by block.
#[derive(Debug)]
pub struct Image {
    file: File,
    blocks: Blocks,
}

impl Image {
    /// The file of a memory with these blocks, which has `found` bytes.
    ///
    /// # Errors
    /// It is not as long as they are.
    pub fn new(file: File, found: u64, blocks: Blocks) -> Result<Self, ImageError> {
        let expected = (blocks.0.len() * BLOCK_BYTES) as u64;
        if found != expected {
            return Err(ImageError::Size { found, expected });
        }
        Ok(Self { file, blocks })
    }

    /// How many blocks there are.
    pub fn len(&self) -> usize {
        self.blocks.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a block is all zeros; one that does not exist is.
    pub fn is_zero(&self, index: usize) -> bool {
        self.blocks.0.get(index).is_none_or(Option::is_none)
    }

    /// Reads a block. `false`: it is all zeros, and `block` is left as it is.
    ///
    /// # Errors
    /// The disk fails, or the block is not what was written.
    pub fn read(&self, index: usize, block: &mut [u8; BLOCK_BYTES]) -> Result<bool, ImageError> {
        let Some(Some(name)) = self.blocks.0.get(index) else {
            return Ok(false);
        };
        let at = (index * BLOCK_BYTES) as u64;
        let read = self.file.read_exact_at(block, at);
        read.map_err(io_error("read its file", at))?;
        if blake3::hash(block).as_bytes() != name {
            return Err(ImageError::Damaged(index));
        }
        Ok(true)
    }

    /// Whether the image is of a memory like this one.
    ///
    /// # Errors
    /// It is not.
    pub fn check_size(&self, memory: &Memory) -> Result<(), ImageError> {
        let (found, expected) = ((self.len() * BLOCK_BYTES) as u64, bytes_of(memory));
        if found == expected {
            Ok(())
        } else {
            Err(ImageError::Size { found, expected })
        }
    }

    /// Puts all of it into the memory of a machine that has just been made.
    ///
    /// # Errors
    /// It is of another size, damaged, or the disk fails.
    pub fn load(&self, memory: &Memory) -> Result<(), ImageError> {
        self.check_size(memory)?;
        let target = file_of(memory);
        let mut block = Box::new([0; BLOCK_BYTES]);
        for index in 0..self.len() {
            if !self.read(index, &mut block)? {
                continue;
            }
            let start = (index * BLOCK_BYTES) as u64;
            for_each_run(&*block, |offset, run| {
                let at = start + offset as u64;
                target.write_all_at(run, at).map_err(io_error("fill", at))
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::machine::memory;

    const MIB: u64 = 1 << 20;

    fn open(path: &Path, blocks: Blocks) -> Result<Image, ImageError> {
        let file = File::open(path).expect("opened");
        let bytes = file.metadata().expect("there").len();
        Image::new(file, bytes, blocks)
    }

    fn image(memory: &Memory) -> (tempfile::TempDir, Image) {
        let temp = tempfile::tempdir().expect("a folder");
        let path = temp.path().join("memory");
        let out = File::create_new(&path).expect("made");
        let blocks = write(memory, &out).expect("written");
        let image = open(&path, blocks).expect("opened");
        (temp, image)
    }

    #[test]
    fn only_what_is_not_zero_takes_room() {
        let memory = memory::create(64).expect("memory");
        memory
            .write_obj(1u8, GuestAddress(5 * MIB))
            .expect("memory");
        // Touched, and zero all the same.
        let zeros = vec![0; 1 << 20];
        memory
            .write_slice(&zeros, GuestAddress(8 * MIB))
            .expect("memory");
        let (_temp, image) = image(&memory);
        let used = image.file.metadata().expect("there");
        assert_eq!(used.len(), 64 * MIB);
        assert!(
            used.blocks() * 512 <= BLOCK_BYTES as u64,
            "{} blocks",
            used.blocks()
        );
        let named = image.blocks.0.iter().filter(|block| block.is_some());
        assert_eq!(named.count(), 1);
    }

    #[test]
    fn damage_and_other_sizes_are_refused() {
        let memory = memory::create(64).expect("memory");
        memory
            .write_obj(1u8, GuestAddress(5 * MIB))
            .expect("memory");
        let (temp, image) = image(&memory);
        let path = temp.path().join("memory");
        let index = 5 * MIB as usize / BLOCK_BYTES;
        let file = File::options().write(true).open(&path).expect("opened");
        file.write_all_at(&[3], 5 * MIB + 77).expect("damaged");
        let fresh = memory::create(64).expect("memory");
        let loaded = image.load(&fresh);
        assert!(matches!(loaded, Err(ImageError::Damaged(at)) if at == index));
        let large = memory::create(65).expect("memory");
        assert!(matches!(image.load(&large), Err(ImageError::Size { .. })));
        file.set_len(63 * MIB).expect("cut");
        let opened = open(&path, image.blocks.clone());
        assert!(matches!(opened, Err(ImageError::Size { .. })));
        // Cut after it was opened.
        file.set_len(4 * MIB).expect("cut");
        assert!(matches!(image.load(&fresh), Err(ImageError::Io { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn memory_comes_back_as_it_was(writes in prop::collection::btree_map(0u64..64 * MIB - 9000, (any::<u8>(), 1usize..9000), 0..40)) {
            let before = memory::create(64).expect("memory");
            for (at, (byte, len)) in &writes {
                before.write_slice(&vec![*byte; *len], GuestAddress(*at)).expect("memory");
            }
            let (_temp, image) = image(&before);
            let after = memory::create(64).expect("memory");
            image.load(&after).expect("loaded");
            let all = |memory: &Memory| {
                let mut bytes = vec![0; 64 * MIB as usize];
                memory.read_slice(&mut bytes, GuestAddress(0)).expect("memory");
                blake3::hash(&bytes)
            };
            prop_assert_eq!(all(&before), all(&after));
        }

        #[test]
        fn runs_are_the_pages_that_are_not_zero(pages in prop::collection::vec(any::<bool>(), 16)) {
            let block: Vec<u8> = pages.iter().flat_map(|page| vec![u8::from(*page); PAGE_BYTES]).collect();
            let mut found = BTreeMap::new();
            for_each_run(&block, |at, run| {
                found.insert(at, run.len());
                Ok::<_, ()>(())
            }).expect("no error");
            let mut covered = vec![false; 16];
            for (at, len) in &found {
                covered[at / PAGE_BYTES..(at + len) / PAGE_BYTES].fill(true);
                prop_assert!(!found.contains_key(&(at + len)), "runs beside each other are one");
            }
            prop_assert_eq!(covered, pages);
        }
    }
}
