//! One slab file: header, checks, slots.
//!
//! Invariant: the file has its full length from the start (sparse), so that filling it changes no metadata but the block map
//! and no read meets its end. It knows nothing of residency.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dedup::ChunkId;
use dedup_store::disk::{Disk, DiskFile, Open};

use super::format::{
    BLOCK_BYTES, CHECK_BYTES, CHUNK_SLOTS_MAX, Meta, block_check, check_is, check_position,
    decode_slab_header, encode_check, encode_slab_header, slot_position,
};
use super::residency::Stay;
use super::slots::Run;
use super::{CacheError, path};

/// Most slabs of one cache: 16 TiB of the default size. Bounds what a stray file name makes us allocate.
pub const SLABS_MAX: u32 = 1 << 16;

const CHECKS_BYTES_MAX: usize = CHUNK_SLOTS_MAX as usize * CHECK_BYTES as usize;

thread_local! {
    /// Whole blocks around a read that does not begin and end with blocks; at most one chunk per thread.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// An open slab.
pub struct Slab {
    pub name: String,
    file: Arc<dyn DiskFile>,
    pub slots: u32,
    /// Set by the first failed write or sync: what was written since the last good sync is in doubt.
    failed: AtomicBool,
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
        Ok(Self {
            file: made,
            slots,
            failed: AtomicBool::new(false),
            name,
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
        Ok(Some(Self {
            name,
            file,
            slots,
            failed: AtomicBool::new(false),
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
        let mut checks = Vec::with_capacity(CHECKS_BYTES_MAX.min(bytes.len() / 128 + 32));
        for (number, block) in bytes.chunks(BLOCK_BYTES as usize).enumerate() {
            checks.extend_from_slice(&encode_check(block_check(id, number as u32, block)));
        }
        self.file
            .write_at(slot_position(self.slots, slot), bytes)
            .and_then(|()| self.file.write_at(check_position(slot), &checks))
            .map_err(|e| self.failure(CacheError::io(dir, &self.name, "write a chunk", e)))
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

    /// Fills `buf` from byte `offset` of a chunk; `Ok(false)` if a block does not match its check. The range lies inside the
    /// chunk.
    pub fn read(&self, id: &ChunkId, stay: &Stay, offset: u32, buf: &mut [u8]) -> io::Result<bool> {
        if buf.is_empty() {
            return Ok(true);
        }
        let block = BLOCK_BYTES as u32;
        let end = offset + buf.len() as u32;
        let (first, last) = (offset / block, (end - 1) / block);
        let (from, to) = (first * block, ((last + 1) * block).min(stay.len));
        let mut checks = [0; CHECKS_BYTES_MAX];
        let checks = &mut checks[..(last - first + 1) as usize * CHECK_BYTES as usize];
        self.file
            .read_at(check_position(stay.slot + first), checks)?;
        let position = slot_position(self.slots, stay.slot + first);
        if (from, to) == (offset, end) {
            self.file.read_at(position, buf)?;
            return Ok(verifies(id, first, buf, checks));
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let span = (to - from) as usize;
            if scratch.len() < span {
                scratch.resize(span, 0);
            }
            let scratch = &mut scratch[..span];
            self.file.read_at(position, scratch)?;
            if !verifies(id, first, scratch, checks) {
                return Ok(false);
            }
            buf.copy_from_slice(&scratch[(offset - from) as usize..(end - from) as usize]);
            Ok(true)
        })
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
