//! Opening a cache after any kind of stop.
//!
//! Only two things refuse: another realm's cache, and a later format. Everything else that is not right (a lost or damaged
//! header, index or slab, another key, entries that contradict each other) makes the cache smaller, because it can be fetched again.

use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock};

use dedup_store::disk::{Disk, Open};
use dedup_store::kv::{Batch, Durability, Kv};

use super::format::{BLOCK_BYTES, CHUNK_SLOTS_MAX, Fault, Keys, META_BYTES, Meta, Residency};
use super::insert::Pending;
use super::residency::{Placed, ResidencyMap, Stay};
use super::slab::{SLABS_MAX, Slab, slab_name, slab_number};
use super::slots::Slots;
use super::{Cache, CacheError, CacheIdentity, CacheKey, CacheOptions, Counters, lock, path};

const META_NAME: &str = "cache.meta";
const META_NEW_NAME: &str = "cache.meta.new";
/// Changes in one commit while stale entries are swept.
const SWEEP_BATCH: usize = 4096;

impl Cache {
    /// Opens the cache in `dir` with its index in `kv`, creating it if there is none. `new_instance` is 16 random bytes, used
    /// only for a new cache. One that is not under `key`, or not encrypted, starts empty.
    ///
    /// # Errors
    /// [`CacheError::OtherRealm`], [`CacheError::Unsupported`], and failures of the disk or the key-value store themselves.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &str,
        kv: Arc<dyn Kv>,
        identity: CacheIdentity,
        new_instance: [u8; 16],
        key: CacheKey,
        options: CacheOptions,
    ) -> Result<Self, CacheError> {
        let error = |what| move |e| CacheError::io(dir, dir, what, e);
        disk.create_dir(dir)
            .map_err(error("create the directory"))?;
        let fresh = Meta {
            identity,
            sealed_by: key.id(),
            instance: new_instance,
        };
        let meta = load_meta(&*disk, dir, fresh)?;
        let keys = Keys::new(&options.kv_prefix);
        if kv.get(&keys.instance())?.as_deref() != Some(&meta.instance[..]) {
            tracing::info!(
                cache = dir,
                "the residency index is new or another cache's: starting empty"
            );
            sweep(&*kv, &keys.chunks())?;
            sweep(&*kv, &keys.all_bad())?;
        }
        // Also where nothing changes: what a process that died had committed becomes durable with it, so that no chunk which it
        // forgot comes back over slots that we reuse.
        let mut batch = Batch::new();
        batch.put(keys.instance(), meta.instance);
        kv.commit(batch, Durability::Synced)?;
        let (slabs, slots) = load_slabs(&*disk, dir, &meta, &options)?;
        // A process that died between creating a file and syncing its name left a file that we found but a power cut would
        // not leave us.
        disk.sync_dir(dir).map_err(error("sync the directory"))?;
        let mut cache = Self {
            disk,
            dir: dir.to_owned(),
            kv,
            keys,
            key,
            meta,
            slabs,
            map: ResidencyMap::new(),
            slots: Mutex::new(slots),
            pending: Mutex::new(Pending::default()),
            sync: Mutex::new(()),
            commit: Mutex::new(()),
            tick: AtomicU32::new(0),
            stamp: AtomicU32::new(0),
            counters: Counters::default(),
            options,
        };
        cache.load_residency()?;
        Ok(cache)
    }

    /// Fills map and free slots from the index; forgets entries that cannot be true.
    fn load_residency(&mut self) -> Result<(), CacheError> {
        let mut stale = Batch::new();
        let (mut tick, mut stamp, mut quarantined) = (0, 0u32, 0);
        let prefix = self.keys.chunks();
        self.kv.scan(&prefix, &prefix, &mut |key, value| {
            let found = self.keys.chunk_of(key).zip(Residency::decode(value));
            let placed = found.is_some_and(|(id, residency)| {
                let stay = Stay {
                    slab: residency.slab,
                    slot: residency.slot,
                    len: residency.len,
                    stamp,
                    tick: residency.tick,
                    quarantined: residency.quarantined,
                };
                // Keys are unique, so a place that is free is all that is needed.
                lock(&self.slots).take_exactly(stay.run())
                    && self.map.place(id, stay) == Placed::New
            });
            match found {
                Some((_, residency)) if placed => {
                    stamp = stamp.wrapping_add(1);
                    tick = tick.max(residency.tick);
                    quarantined += u64::from(residency.quarantined);
                }
                _ => stale.delete(key),
            }
            ControlFlow::Continue(())
        })?;
        let prefix = self.keys.all_bad();
        self.kv.scan(&prefix, &prefix, &mut |key, value| {
            let run = self
                .bad_run(key, value)
                .filter(|run| (1..=CHUNK_SLOTS_MAX).contains(&run.count));
            if !run.is_some_and(|run| lock(&self.slots).take_exactly(run)) {
                stale.delete(key);
            }
            ControlFlow::Continue(())
        })?;
        if !stale.is_empty() {
            tracing::warn!(cache = %self.dir, entries = stale.changes.len(), "forgot residencies without their slabs");
            commit_in_parts(&*self.kv, stale)?;
        }
        self.tick = AtomicU32::new(tick.saturating_add(1));
        self.stamp = AtomicU32::new(stamp);
        self.counters.quarantined = AtomicU64::new(quarantined);
        tracing::info!(cache = %self.dir, chunks = self.map.len(), quarantined, "cache open");
        Ok(())
    }
}

/// Opens the slabs that belong to this cache; removes what only looks like one.
fn load_slabs(
    disk: &dyn Disk,
    dir: &str,
    meta: &Meta,
    options: &CacheOptions,
) -> Result<(Vec<OnceLock<Slab>>, Slots), CacheError> {
    let mut slots = Slots::default();
    let mut found = Vec::new();
    for name in disk
        .list(dir)
        .map_err(|e| CacheError::io(dir, dir, "list", e))?
    {
        let Some(number) = slab_number(&name) else {
            continue;
        };
        match Slab::open(disk, dir, meta, number) {
            Ok(Some(slab)) => {
                slots.add_slab(number, slab.slots);
                found.push((number, slab));
            }
            other => {
                let why = other
                    .err()
                    .map_or("its header does not match".to_owned(), |e| e.to_string());
                tracing::warn!(
                    cache = dir,
                    file = name,
                    why,
                    "slab discarded: its chunks will be fetched again"
                );
                let file = path(dir, &slab_name(number));
                disk.remove(&file)
                    .map_err(|e| CacheError::io(dir, &file, "remove", e))?;
            }
        }
    }
    let by_capacity = options
        .capacity_bytes
        .div_ceil(options.slab_bytes.max(BLOCK_BYTES));
    let highest = found
        .iter()
        .map(|(number, _)| number + 1)
        .max()
        .unwrap_or(0);
    // A slab that failed keeps its number, so there is room for some more than the capacity needs.
    let count = by_capacity
        .saturating_mul(2)
        .clamp(u64::from(highest), u64::from(SLABS_MAX)) as usize;
    let slabs: Vec<OnceLock<Slab>> = (0..count).map(|_| OnceLock::new()).collect();
    for (number, slab) in found {
        let fresh = slabs[number as usize].set(slab).is_ok();
        debug_assert!(fresh, "names in a directory are unique");
    }
    Ok((slabs, slots))
}

/// The header that is there, if it is of the same realm and key as `fresh`; else `fresh`, written.
fn load_meta(disk: &dyn Disk, dir: &str, fresh: Meta) -> Result<Meta, CacheError> {
    let name = path(dir, META_NAME);
    let error = |e| CacheError::io(dir, &name, "read the header", e);
    let mut bytes = [0; META_BYTES];
    let read = disk.open(&name, Open::Read).and_then(|file| {
        if file.len()? == bytes.len() as u64 {
            file.read_at(0, &mut bytes)?;
        }
        Ok(())
    });
    match read {
        Ok(()) => match Meta::decode(&bytes) {
            Ok(meta) if meta.identity != fresh.identity => {
                return Err(CacheError::OtherRealm {
                    dir: dir.to_owned(),
                    expected: fresh.identity.to_string(),
                    found: meta.identity.to_string(),
                });
            }
            Ok(meta) if meta.sealed_by == fresh.sealed_by => return Ok(meta),
            Ok(_) => tracing::warn!(
                cache = dir,
                "it is encrypted under another key: starting empty, its chunks will be fetched again"
            ),
            Err(Fault::Plain) => tracing::warn!(
                cache = dir,
                "an earlier release wrote it in the clear: starting empty, its chunks will be fetched again"
            ),
            Err(Fault::Unsupported(why)) => {
                return Err(CacheError::Unsupported { file: name, why });
            }
            Err(Fault::Damaged) => {
                tracing::warn!(cache = dir, "the header is damaged: starting empty")
            }
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(error(e)),
    }
    write_meta(disk, dir, &fresh).map_err(|e| CacheError::io(dir, &name, "write the header", e))?;
    Ok(fresh)
}

fn write_meta(disk: &dyn Disk, dir: &str, meta: &Meta) -> io::Result<()> {
    let new = path(dir, META_NEW_NAME);
    if disk.list(dir)?.iter().any(|name| name == META_NEW_NAME) {
        disk.remove(&new)?;
    }
    let file = disk.open(&new, Open::CreateNew)?;
    file.write_at(0, &meta.encode())?;
    file.sync()?;
    disk.rename(&new, &path(dir, META_NAME))?;
    disk.sync_dir(dir)
}

/// Deletes every key under `prefix`.
fn sweep(kv: &dyn Kv, prefix: &[u8]) -> Result<(), CacheError> {
    let mut batch = Batch::new();
    kv.scan(prefix, prefix, &mut |key, _| {
        batch.delete(key);
        ControlFlow::Continue(())
    })?;
    commit_in_parts(kv, batch)
}

fn commit_in_parts(kv: &dyn Kv, batch: Batch) -> Result<(), CacheError> {
    let mut changes = batch.changes.into_iter().peekable();
    while changes.peek().is_some() {
        let changes = changes.by_ref().take(SWEEP_BATCH).collect();
        kv.commit(Batch { changes }, Durability::Synced)?;
    }
    Ok(())
}
