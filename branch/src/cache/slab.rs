//! One slab file: header, tags, slots.
//!
//! Invariant: the file has its full length from the start (sparse), so that filling it changes no metadata but the block map
//! and no read meets its end. What lies in it is encrypted. The tags of an open slab are in memory as well (16 bytes a slot, 0.4 % of
//! what is cached), read once, so that a hit is one read of the data. Chunks lie in the order in which they came, and guests read ahead by themselves: the
//! system's own reading ahead would bring what nobody asked for. It knows nothing of residency.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use dedup_store::disk::{Disk, DiskFile, Open};

use super::format::{
    BLOCK_BYTES, Meta, TAG_BYTES, decode_slab_header, encode_slab_header, slot_position,
    tag_position,
};
use super::residency::Stay;
use super::seal::{BlockTag, ChunkCipher, TagCell};
use super::slots::Run;
use super::{CacheError, lock, path};

/// Most slabs of one cache: 16 TiB of the default size. Bounds what a stray file name makes us allocate.
pub const SLABS_MAX: u32 = 1 << 16;

/// An open slab.
pub struct Slab {
    pub name: String,
    pub(super) file: Arc<dyn DiskFile>,
    pub slots: u32,
    /// Set by the first failed write or sync: what was written since the last good sync is in doubt.
    failed: AtomicBool,
    /// The tag of each slot, once they were needed.
    tags: OnceLock<Box<[TagCell]>>,
    /// Held while the tags are read, which happens once.
    loading: Mutex<()>,
}

/// Name of slab `number` within the cache's directory.
pub fn slab_name(number: u32) -> String {
    format!("{number:06}.slab")
}

/// The number in a slab's name.
pub fn slab_number(name: &str) -> Option<u32> {
    let number = name.strip_suffix(".slab")?.parse().ok()?;
    (slab_name(number) == name && number < SLABS_MAX).then_some(number)
}

impl Slab {
    /// Creates slab `number`, durable on return.
    pub fn create(
        disk: &dyn Disk,
        dir: &str,
        meta: &Meta,
        number: u32,
        slots: u32,
    ) -> Result<Self, CacheError> {
        let name = path(dir, &slab_name(number));
        let error = |e| CacheError::io(dir, &name, "create", e);
        let made = disk.open(&name, Open::CreateNew).map_err(error)?;
        let filled = made
            .truncate(slot_position(slots, slots))
            .and_then(|()| made.write_at(0, &encode_slab_header(meta, number, slots)))
            .and_then(|()| made.sync())
            .and_then(|()| disk.sync_dir(dir));
        if let Err(e) = filled {
            // The name must be free for the next attempt; if it is not, that attempt says so.
            let _ = disk.remove(&name);
            return Err(error(e));
        }
        made.expect_random_reads();
        Ok(Self {
            file: made,
            slots,
            failed: AtomicBool::new(false),
            name,
            tags: OnceLock::from((0..slots).map(|_| TagCell::default()).collect::<Box<[_]>>()),
            loading: Mutex::new(()),
        })
    }

    /// Opens slab `number` if it belongs to this very cache and is whole.
    pub fn open(disk: &dyn Disk, dir: &str, meta: &Meta, number: u32) -> io::Result<Option<Self>> {
        let name = path(dir, &slab_name(number));
        let file = disk.open(&name, Open::Write)?;
        let mut header = [0; 80];
        if file.len()? < header.len() as u64 {
            return Ok(None);
        }
        file.read_at(0, &mut header)?;
        let Some(slots) = decode_slab_header(meta, number, &header) else {
            return Ok(None);
        };
        if file.len()? < slot_position(slots, slots) {
            return Ok(None);
        }
        file.expect_random_reads();
        Ok(Some(Self {
            name,
            file,
            slots,
            failed: AtomicBool::new(false),
            tags: OnceLock::new(),
            loading: Mutex::new(()),
        }))
    }

    /// Whether a write or sync has failed.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Encrypts a chunk and writes it, with its tags, into its slots.
    pub fn write(
        &self,
        dir: &str,
        cipher: &ChunkCipher,
        slot: u32,
        bytes: &[u8],
    ) -> Result<(), CacheError> {
        let failure = |what| move |e| self.failure(CacheError::io(dir, &self.name, what, e));
        // Before anything is written: who reads the tags later would read them while they change.
        let table = self.tags().map_err(failure("read the tags"))?;
        let mut sealed = bytes.to_vec();
        let tags: Vec<BlockTag> = sealed
            .chunks_mut(BLOCK_BYTES as usize)
            .zip(0..)
            .map(|(block, number)| cipher.seal(number, block))
            .collect();
        self.file
            .write_at(slot_position(self.slots, slot), &sealed)
            .and_then(|()| self.file.write_at(tag_position(slot), tags.as_flattened()))
            .map_err(failure("write a chunk"))?;
        for (entry, tag) in table[slot as usize..].iter().zip(tags) {
            entry.store(tag);
        }
        Ok(())
    }

    /// The tags, if they are in memory.
    pub fn tags_at_hand(&self) -> Option<&[TagCell]> {
        self.tags.get().map(|tags| &tags[..])
    }

    /// The tags, read from the file if they are not in memory: 1 MiB for a slab of 256 MiB.
    pub fn tags(&self) -> io::Result<&[TagCell]> {
        if let Some(tags) = self.tags.get() {
            return Ok(tags);
        }
        let _once = lock(&self.loading);
        if let Some(tags) = self.tags.get() {
            return Ok(tags);
        }
        let mut bytes = vec![0; self.slots as usize * TAG_BYTES as usize];
        self.file.read_at(tag_position(0), &mut bytes)?;
        let (tags, _) = bytes.as_chunks();
        let cells = tags.iter().map(|tag| TagCell::new(*tag)).collect();
        Ok(self.tags.get_or_init(|| cells))
    }

    /// Makes everything written so far durable.
    pub fn sync(&self, dir: &str) -> Result<(), CacheError> {
        self.file.sync().map_err(|e| {
            // A full disk at this point has lost pages as surely as a broken one.
            self.failed.store(true, Ordering::Release);
            CacheError::io(dir, &self.name, "sync", e)
        })
    }

    /// Gives the space of free slots back to the host.
    pub fn punch(&self, dir: &str, run: Run) -> Result<(), CacheError> {
        let (from, len) = (
            slot_position(self.slots, run.slot),
            BLOCK_BYTES * u64::from(run.count),
        );
        self.file
            .punch_hole(from, len)
            .map_err(|e| CacheError::io(dir, &self.name, "give back space", e))
    }

    fn failure(&self, error: CacheError) -> CacheError {
        if !matches!(error, CacheError::NoSpace { .. }) {
            self.failed.store(true, Ordering::Release);
        }
        error
    }

    /// Reads a whole chunk and its tags as the disk has them, decrypted; `Ok(false)` if a block does not match. For scrubbing, which asks
    /// what a restart would find.
    pub fn read_stored(
        &self,
        cipher: &ChunkCipher,
        stay: &Stay,
        buf: &mut [u8],
    ) -> io::Result<bool> {
        debug_assert_eq!(buf.len(), stay.len as usize);
        let mut tags = vec![[0; TAG_BYTES as usize]; buf.len().div_ceil(BLOCK_BYTES as usize)];
        self.file
            .read_at(tag_position(stay.slot), tags.as_flattened_mut())?;
        self.file
            .read_at(slot_position(self.slots, stay.slot), buf)?;
        Ok(buf
            .chunks_mut(BLOCK_BYTES as usize)
            .zip(tags)
            .zip(0..)
            .all(|((block, tag), number)| cipher.open(number, block, tag)))
    }
}
