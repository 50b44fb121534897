//! Creating an overlay, and opening one after any kind of stop.
//!
//! Order of creation: the directory, the first segment, and last the header file, under its name only when all is durable.
//! So a header file means a complete overlay, and its absence that nothing was ever acknowledged.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, OnceLock, RwLock};

use dedup::VersionId;
use dedup_store::disk::{Disk, Open};

use super::compact::Upkeep;
use super::error::{OverlayError, is_full};
use super::format::{DISKS_MAX, Fault, SECTOR_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::meta::Meta;
use super::packed::DISK_BYTES_MAX;
use super::replay::{Found, Start, replay};
use super::room::Room;
use super::seal::{LogKey, OverlayKey};
use super::sending::Sending;
use super::settle::settle_tail;
use super::snapshot;
use super::writer::Writer;
use super::{
    FlushState, Overlay, OverlayIdentity, OverlayOptions, OverlayState, path, segment_name,
};

const META_NAME: &str = "overlay.meta";
const META_NEW_NAME: &str = "overlay.meta.new";
/// Longest header file believed: 16 disks and 4,096 runs of dropped segments.
const META_BYTES_MAX: u64 = 64 << 10;

impl Overlay {
    /// Creates an empty overlay in `dir` and opens it. `log_id` is 16 random bytes, new for each overlay; `key` is kept by the caller,
    /// durable before this is called.
    ///
    /// # Errors
    /// [`OverlayError::Exists`] if there is one, [`OverlayError::Invalid`] for an impossible identity,
    /// [`OverlayError::NoSpace`], [`OverlayError::Io`].
    pub fn create(
        disk: Arc<dyn Disk>,
        dir: &str,
        identity: &OverlayIdentity,
        log_id: [u8; 16],
        key: &OverlayKey,
        options: OverlayOptions,
    ) -> Result<Self, OverlayError> {
        check_identity(dir, identity)?;
        let io = |what: &'static str| move |e| io_error(dir, dir, what, e);
        disk.create_dir(dir).map_err(io("create the directory"))?;
        let first = segment_name(dir, 1);
        for name in disk.list(dir).map_err(io("list the directory"))? {
            let file = path(dir, &name);
            // An interrupted creation leaves the first segment without records; anything more may be somebody's data.
            let leftover =
                file == first && disk_len(&*disk, dir, &file)? <= SEGMENT_HEADER_BYTES as u64;
            if leftover && !exists(&*disk, dir, META_NAME)? {
                disk.remove(&file).map_err(io("remove a leftover"))?;
            } else if name == META_NAME || name.ends_with(".seg") {
                return Err(OverlayError::Exists {
                    dir: dir.to_owned(),
                    file,
                });
            }
        }
        let log = LogKey::new(&log_id, key);
        let header = SegmentHeader {
            number: 1,
            first_seq: 1,
            chain: 0,
            durable: 0,
        };
        let segment = disk
            .open(&first, Open::CreateNew)
            .map_err(|e| io_error(dir, &first, "create", e))?;
        segment
            .write_at(0, &header.encode(&log))
            .and_then(|()| segment.sync())
            .map_err(|e| io_error(dir, &first, "write the segment header", e))?;
        disk.sync_dir(dir).map_err(io("sync the directory"))?;
        let meta = Meta {
            desktop: identity.desktop,
            base: identity.base.0,
            log_id,
            key_id: key.key_id(),
            disks: identity.disks.clone(),
            segments_synced: 1,
            plain_until: 0,
            dropped: Vec::new(),
        };
        write_meta(&*disk, dir, &meta, &log)?;
        Self::open(disk, dir, identity, key, options)
    }

    /// Has the closed overlay in `dir`, which is of this identity, lie over another base from now on. Nothing happens if it does already, so that it can
    /// be done again after any stop. Which of the new base's bytes are seen is the caller's to have thought of.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn lay_over(
        disk: &dyn Disk,
        dir: &str,
        identity: &OverlayIdentity,
        base: VersionId,
        key: &OverlayKey,
    ) -> Result<(), OverlayError> {
        let (mut meta, log) = read_meta(disk, dir, key)?;
        let moved = OverlayIdentity {
            base,
            ..identity.clone()
        };
        if meta.base == base.0 {
            return check_same(dir, &moved, &meta);
        }
        check_same(dir, identity, &meta)?;
        meta.base = base.0;
        write_meta(disk, dir, &meta, &log)
    }

    /// Opens the overlay in `dir`, which must be of this identity and under this key. Reads and verifies the log from its last index
    /// snapshot on, or all of it.
    ///
    /// # Errors
    /// [`OverlayError::Absent`], [`OverlayError::Mismatch`], [`OverlayError::OtherKey`], [`OverlayError::Unsupported`], [`OverlayError::Corrupt`],
    /// [`OverlayError::NoSpace`], [`OverlayError::Io`].
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &str,
        identity: &OverlayIdentity,
        key: &OverlayKey,
        options: OverlayOptions,
    ) -> Result<Self, OverlayError> {
        check_identity(dir, identity)?;
        let (mut meta, log) = read_meta(&*disk, dir, key)?;
        check_same(dir, identity, &meta)?;
        // A process that died while replacing the header file may have left us one that a power cut would take back; nothing
        // is removed on the word of that.
        disk.sync_dir(dir)
            .map_err(|e| io_error(dir, dir, "sync the directory", e))?;
        let found = find_segments(&*disk, dir, &meta)?;
        let start = load_snapshot(&*disk, dir, &meta, &log, &found)?
            .unwrap_or_else(|| Start::nothing(meta.disks.len()));
        let (from, covered) = (start.segment, start.last_seq);
        let mut replayed = replay(&meta, &found, dir, &log, start)?;
        settle_tail(&*disk, dir, &found, &mut replayed)?;
        let Some((&number, current)) = replayed.map.segments.iter().next_back() else {
            return Err(OverlayError::Corrupt {
                file: path(dir, META_NAME),
                offset: 0,
                why: "it lists no segment that is still there".to_owned(),
            });
        };
        let writer = Writer::resume(number, current, replayed.last_seq, replayed.chain);
        if meta.segments_synced != number || meta.key_id != key.key_id() {
            if meta.key_id != key.key_id() {
                // It was in the clear. From here on only what lies there already may be.
                meta.key_id = key.key_id();
                meta.plain_until = number;
                tracing::info!(
                    overlay = dir,
                    "it was in the clear: new writes are encrypted, and what is there is moved bit by bit"
                );
            }
            meta.segments_synced = number;
            write_meta(&*disk, dir, &meta, &log)?;
        }
        let read: u64 = replayed
            .map
            .segments
            .range(from..)
            .map(|(_, segment)| segment.len)
            .sum();
        tracing::info!(
            overlay = dir,
            records = replayed.last_seq,
            by_snapshot = covered,
            bytes_read = read,
            segments = replayed.map.segments.len(),
            "overlay open"
        );
        Ok(Self {
            key: log,
            room: Room::default(),
            upkeep: Mutex::new(Upkeep::new(read)),
            extents: AtomicU64::new(replayed.map.extents()),
            appended: AtomicU64::new(read),
            writer: Mutex::new(writer),
            map: RwLock::new(replayed.map),
            meta: Mutex::new(meta),
            flush: Mutex::new(FlushState::default()),
            flushed: Condvar::new(),
            guest_seq: AtomicU64::new(replayed.guest_seq),
            guest_durable: AtomicU64::new(replayed.guest_seq),
            sending: Mutex::new(Sending::default()),
            durable: AtomicU64::new(replayed.last_seq),
            read_faults: AtomicU64::new(0),
            failed: OnceLock::new(),
            disk,
            dir: dir.to_owned(),
            identity: identity.clone(),
            options,
        })
    }

    /// Opens the overlay in `dir`, or creates it if there is none.
    ///
    /// # Errors
    /// As [`Overlay::create`] and [`Overlay::open`].
    pub fn open_or_create(
        disk: Arc<dyn Disk>,
        dir: &str,
        identity: &OverlayIdentity,
        log_id: [u8; 16],
        key: &OverlayKey,
        options: OverlayOptions,
    ) -> Result<Self, OverlayError> {
        if exists(&*disk, dir, META_NAME)? {
            Self::open(disk, dir, identity, key, options)
        } else {
            Self::create(disk, dir, identity, log_id, key, options)
        }
    }

    /// What there is in `dir`, as far as the header file tells: which key is needed depends on it.
    ///
    /// # Errors
    /// [`OverlayError::Io`].
    pub fn state(disk: &dyn Disk, dir: &str) -> Result<OverlayState, OverlayError> {
        if !exists(disk, dir, META_NAME)? {
            return Ok(OverlayState::Absent);
        }
        let name = path(dir, META_NAME);
        let error = |e| io_error(dir, &name, "read", e);
        let file = disk.open(&name, Open::Read).map_err(error)?;
        let mut start = [0; Meta::START_BYTES];
        // One that is shorter is damaged, as opening it will say.
        if file.len().map_err(error)? >= start.len() as u64 {
            file.read_at(0, &mut start).map_err(error)?;
        }
        Ok(if Meta::starts_plain(&start) {
            OverlayState::Plain
        } else {
            OverlayState::Sealed
        })
    }
}

/// Reads the index snapshot, if there is one that fits the log. One that does not is only slower: the log says the same.
fn load_snapshot(
    disk: &dyn Disk,
    dir: &str,
    meta: &Meta,
    key: &LogKey,
    found: &BTreeMap<u32, Found>,
) -> Result<Option<Start>, OverlayError> {
    let name = path(dir, snapshot::NAME);
    let file = match disk.open(&name, Open::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error(dir, &name, "open", e)),
    };
    match snapshot::read(&*file, meta, key, found) {
        Ok(start) => Ok(Some(start)),
        Err(snapshot::Unusable::Io(e)) => Err(io_error(dir, &name, "read", e)),
        Err(snapshot::Unusable::Damaged(why)) => {
            tracing::warn!(
                overlay = dir,
                file = name,
                why,
                "the index snapshot is not used: the whole log is read"
            );
            Ok(None)
        }
    }
}

/// Opens every segment file, and removes those that the header file says were dropped.
fn find_segments(
    disk: &dyn Disk,
    dir: &str,
    meta: &Meta,
) -> Result<BTreeMap<u32, Found>, OverlayError> {
    let mut found = BTreeMap::new();
    for name in disk.list(dir).map_err(|e| io_error(dir, dir, "list", e))? {
        let Some(number) = name
            .strip_suffix(".seg")
            .and_then(|digits| digits.parse::<u32>().ok())
        else {
            continue;
        };
        let file_path = path(dir, &name);
        if number == 0 || file_path != segment_name(dir, number) {
            continue;
        }
        if meta.dropped_until(number).is_some() {
            disk.remove(&file_path)
                .map_err(|e| io_error(dir, &file_path, "remove", e))?;
            continue;
        }
        let file = disk
            .open(&file_path, Open::Write)
            .map_err(|e| io_error(dir, &file_path, "open", e))?;
        found.insert(
            number,
            Found {
                name: file_path.into(),
                file,
            },
        );
    }
    Ok(found)
}

/// Replaces the header file atomically; durable on return.
pub fn write_meta(
    disk: &dyn Disk,
    dir: &str,
    meta: &Meta,
    key: &LogKey,
) -> Result<(), OverlayError> {
    let (name, new) = (path(dir, META_NAME), path(dir, META_NEW_NAME));
    if exists(disk, dir, META_NEW_NAME)? {
        disk.remove(&new)
            .map_err(|e| io_error(dir, &new, "remove", e))?;
    }
    let written = disk.open(&new, Open::CreateNew).and_then(|file| {
        file.write_at(0, &meta.encode(key))?;
        file.sync()
    });
    if let Err(e) = written {
        // The old header file stands; the attempt is only in the way.
        let _ = disk.remove(&new);
        return Err(io_error(dir, &new, "write", e));
    }
    disk.rename(&new, &name)
        .map_err(|e| io_error(dir, &name, "replace", e))?;
    // Never "no room", which would be tried again: segments' names are in this directory too, and a failure is told once.
    disk.sync_dir(dir)
        .map_err(|e| OverlayError::io(dir, "sync the directory", e))
}

fn read_meta(disk: &dyn Disk, dir: &str, key: &OverlayKey) -> Result<(Meta, LogKey), OverlayError> {
    let name = path(dir, META_NAME);
    let file = match disk.open(&name, Open::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(OverlayError::Absent {
                dir: dir.to_owned(),
            });
        }
        Err(e) => return Err(io_error(dir, &name, "open", e)),
    };
    let corrupt = |why: String| OverlayError::Corrupt {
        file: name.clone(),
        offset: 0,
        why,
    };
    let len = file
        .len()
        .map_err(|e| io_error(dir, &name, "find its length", e))?;
    if len > META_BYTES_MAX {
        return Err(corrupt(format!("it has {len} bytes")));
    }
    let mut bytes = vec![0; len as usize];
    file.read_at(0, &mut bytes)
        .map_err(|e| io_error(dir, &name, "read", e))?;
    Meta::decode(&bytes, key).map_err(|fault| match fault {
        Fault::Damaged(why) => corrupt(why),
        Fault::Unsupported(why) => OverlayError::Unsupported {
            file: name.clone(),
            why,
        },
        Fault::OtherKey(found) => OverlayError::OtherKey {
            dir: dir.to_owned(),
            expected: key_name(key.key_id()),
            found: key_name(found),
        },
    })
}

fn key_name(id: [u8; 8]) -> String {
    format!("{:016x}", u64::from_be_bytes(id))
}

fn check_identity(dir: &str, identity: &OverlayIdentity) -> Result<(), OverlayError> {
    let disks = &identity.disks;
    let sound = !disks.is_empty() && disks.len() <= DISKS_MAX;
    let possible = |size: &u64| size.is_multiple_of(SECTOR_BYTES) && *size <= DISK_BYTES_MAX;
    if !sound || !disks.iter().all(possible) {
        return Err(OverlayError::Invalid {
            dir: dir.to_owned(),
            why: format!(
                "disk sizes {disks:?}: 1 to {DISKS_MAX} disks of whole {SECTOR_BYTES}-byte sectors and at most {DISK_BYTES_MAX} bytes are possible"
            ),
        });
    }
    Ok(())
}

fn check_same(dir: &str, identity: &OverlayIdentity, meta: &Meta) -> Result<(), OverlayError> {
    let mismatch = |what, expected: String, found: String| {
        Err(OverlayError::Mismatch {
            dir: dir.to_owned(),
            what,
            expected,
            found,
        })
    };
    let hex = |id: &[u8; 16]| format!("{:032x}", u128::from_be_bytes(*id));
    if meta.desktop != identity.desktop {
        return mismatch("desktop", hex(&identity.desktop), hex(&meta.desktop));
    }
    if meta.base != identity.base.0 {
        return mismatch(
            "base version",
            identity.base.to_string(),
            VersionId(meta.base).to_string(),
        );
    }
    if meta.disks != identity.disks {
        return mismatch(
            "disk sizes",
            format!("{:?}", identity.disks),
            format!("{:?}", meta.disks),
        );
    }
    Ok(())
}

fn exists(disk: &dyn Disk, dir: &str, name: &str) -> Result<bool, OverlayError> {
    let names = disk.list(dir).map_err(|e| io_error(dir, dir, "list", e))?;
    Ok(names.iter().any(|n| n == name))
}

fn disk_len(disk: &dyn Disk, dir: &str, file: &str) -> Result<u64, OverlayError> {
    disk.open(file, Open::Read)
        .and_then(|f| f.len())
        .map_err(|e| io_error(dir, file, "find its length", e))
}

pub fn io_error(dir: &str, file: &str, what: &'static str, error: io::Error) -> OverlayError {
    if is_full(&error) {
        return OverlayError::NoSpace {
            dir: dir.to_owned(),
        };
    }
    OverlayError::io(file, what, error)
}
