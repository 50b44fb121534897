//! One slab file: header, checks, slots.
//!
//! Invariant: the file has its full length from the start (sparse), so that filling it changes no metadata but the block map
//! and no read meets its end. The checks of an open slab are in memory as well (8 bytes a slot, 0.2 % of what is cached), read
//! once, so that a hit is one read of the data. Chunks lie in the order in which they came, and guests read ahead by themselves: the
//! system's own reading ahead would bring what nobody asked for. It knows nothing of residency.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use dedup::ChunkId;
use dedup_store::disk::{Disk, DiskFile, Open};

use super::format::{
    BLOCK_BYTES, CHECK_BYTES, Meta, block_check, check_is, check_position, check_word,
    decode_slab_header, encode_check, encode_slab_header, slot_position,
};
use super::residency::Stay;
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
    /// The check of each slot, once they were needed.
    checks: OnceLock<Box<[AtomicU64]>>,
    /// Held while the checks are read, which happens once.
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
            checks: OnceLock::from((0..slots).map(|_| AtomicU64::new(0)).collect::<Box<[_]>>()),
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
            checks: OnceLock::new(),
            loading: Mutex::new(()),
        }))
    }

    /// Whether a write or sync has failed.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Writes a chunk and its checks into its slots.
    pub fn write(
        &self,
        dir: &str,
        id: &ChunkId,
        slot: u32,
        bytes: &[u8],
    ) -> Result<(), CacheError> {
        let failure = |what| move |e| self.failure(CacheError::io(dir, &self.name, what, e));
        // Before anything is written: who reads the checks later would read them while they change.
        let table = self.checks().map_err(failure("read the checks"))?;
        let blocks = bytes.chunks(BLOCK_BYTES as usize).enumerate();
        let words: Vec<u64> = blocks
            .map(|(number, block)| block_check(id, number as u32, block))
            .collect();
        let checks: Vec<u8> = words.iter().flat_map(|word| encode_check(*word)).collect();
        self.file
            .write_at(slot_position(self.slots, slot), bytes)
            .and_then(|()| self.file.write_at(check_position(slot), &checks))
            .map_err(failure("write a chunk"))?;
        for (entry, word) in table[slot as usize..].iter().zip(words) {
            entry.store(word, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The checks, if they are in memory.
    pub fn checks_at_hand(&self) -> Option<&[AtomicU64]> {
        self.checks.get().map(|checks| &checks[..])
    }

    /// The checks, read from the file if they are not in memory: 1 MiB for a slab of 256 MiB.
    pub fn checks(&self) -> io::Result<&[AtomicU64]> {
        if let Some(checks) = self.checks.get() {
            return Ok(checks);
        }
        let _once = lock(&self.loading);
        if let Some(checks) = self.checks.get() {
            return Ok(checks);
        }
        let mut bytes = vec![0; self.slots as usize * CHECK_BYTES as usize];
        self.file.read_at(check_position(0), &mut bytes)?;
        let words = bytes.chunks_exact(CHECK_BYTES as usize).map(check_word);
        let words = words.map(AtomicU64::new).collect();
        Ok(self.checks.get_or_init(|| words))
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

    /// Reads a whole chunk and its checks as the disk has them; `Ok(false)` if a block does not match. For scrubbing, which asks
    /// what a restart would find.
    pub fn read_stored(&self, id: &ChunkId, stay: &Stay, buf: &mut [u8]) -> io::Result<bool> {
        debug_assert_eq!(buf.len(), stay.len as usize);
        let mut checks = vec![0; buf.len().div_ceil(BLOCK_BYTES as usize) * CHECK_BYTES as usize];
        self.file.read_at(check_position(stay.slot), &mut checks)?;
        self.file
            .read_at(slot_position(self.slots, stay.slot), buf)?;
        Ok(verifies(id, 0, buf, &checks))
    }
}

/// Whether every block of `bytes`, the first of which is number `first` of the chunk, matches its check.
fn verifies(id: &ChunkId, first: u32, bytes: &[u8], checks: &[u8]) -> bool {
    bytes
        .chunks(BLOCK_BYTES as usize)
        .zip(checks.chunks_exact(CHECK_BYTES as usize))
        .zip(first..)
        .all(|((block, check), number)| check_is(check, block_check(id, number, block)))
}
