//! Scrubbing: reading everything again, pack by pack, at whatever pace the caller keeps, over and over.
//!
//! Each record is decoded and proven by its name. What is wanted and does not prove is looked at a second time, as a bit may have
//! flipped on its way here, and then quarantined: a put of the same bytes stores it again, whoever has them. The cursor is kept in the
//! index, so that a pass goes on where the process ended. It does not repair and does not know who shows what.
//!
//! Invariant: a pack is passed by the cursor only after the damage found in it is durably quarantined.

use std::collections::HashSet;
use std::ops::ControlFlow;

use crate::chunk_store::{ChunkStore, Inner};
use crate::disk::is_medium_error;
use crate::error::StoreError;
use crate::index::{ENTRY_PREFIXES, Location, PACK_PREFIX, PackState, SCRUB_KEY, entry_name};
use crate::kv::{Batch, Durability};
use crate::pack::{HEADER_LEN, PackNumber, RecordName, Tally, array_at, u64_at};
use crate::recovery::{check_header, read_range, scan};

const STATE_VERSION: u16 = 1;
const STATE_LEN: usize = 34;

/// Where the scrub is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubState {
    /// Passes that ended.
    pub passes: u64,
    /// The first pack that the present pass has not looked at.
    pub next: PackNumber,
    /// When the present pass began, unix seconds; 0 before the first.
    pub began_unix_s: u64,
    /// When the last pass ended, unix seconds; 0 before the first.
    pub ended_unix_s: u64,
}

impl ScrubState {
    const START: Self = Self {
        passes: 0,
        next: PackNumber(0),
        began_unix_s: 0,
        ended_unix_s: 0,
    };

    fn encode(&self) -> [u8; STATE_LEN] {
        let mut bytes = [0; STATE_LEN];
        bytes[..2].copy_from_slice(&STATE_VERSION.to_le_bytes());
        let fields = [
            self.passes,
            self.next.0,
            self.began_unix_s,
            self.ended_unix_s,
        ];
        for (field, place) in fields.iter().zip(bytes[2..].chunks_exact_mut(8)) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// What cannot be read is no loss: the pass starts over.
    fn parse(bytes: &[u8]) -> Self {
        if bytes.len() != STATE_LEN || u16::from_le_bytes(array_at(bytes, 0)) != STATE_VERSION {
            return Self::START;
        }
        Self {
            passes: u64_at(bytes, 2),
            next: PackNumber(u64_at(bytes, 10)),
            began_unix_s: u64_at(bytes, 18),
            ended_unix_s: u64_at(bytes, 26),
        }
    }
}

/// What the scrub of one pack found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubbedPack {
    /// The pack.
    pub pack: PackNumber,
    /// Its bytes.
    pub bytes: u64,
    /// Sound records in it, wanted or not.
    pub records: u64,
    /// Wanted records that are damaged; they are in quarantine now.
    pub damaged: Vec<RecordName>,
}

impl ChunkStore {
    /// Where the scrub is.
    pub fn scrub_state(&self) -> Result<ScrubState, StoreError> {
        self.inner.scrub_state()
    }

    /// Begins the present pass again, with the first pack.
    pub fn restart_scrub(&self, now_unix_s: u64) -> Result<(), StoreError> {
        let state = ScrubState {
            next: PackNumber(0),
            began_unix_s: now_unix_s,
            ..self.inner.scrub_state()?
        };
        self.inner.keep_scrub_state(&state)
    }

    /// Scrubs the next pack of the present pass. `None`: that was the last one, and the next call begins another pass. Waits for the end of
    /// a collection.
    pub fn scrub_next(&self, now_unix_s: u64) -> Result<Option<ScrubbedPack>, StoreError> {
        let _turn = self.inner.maintenance();
        let mut state = self.inner.scrub_state()?;
        if state.next == PackNumber(0) {
            state.began_unix_s = now_unix_s;
        }
        let Some((pack, pack_state)) = self.inner.pack_from(state.next)? else {
            state.passes += 1;
            state.next = PackNumber(0);
            state.ended_unix_s = now_unix_s;
            self.inner.keep_scrub_state(&state)?;
            return Ok(None);
        };
        let scrubbed = self.inner.scrub_pack(pack, &pack_state)?;
        for name in &scrubbed.damaged {
            tracing::error!(%pack, %name, "a stored record is damaged; it is in quarantine now");
            self.quarantine(*name)?;
        }
        state.next = PackNumber(pack.0 + 1);
        self.inner.keep_scrub_state(&state)?;
        Ok(Some(scrubbed))
    }
}

impl Inner {
    fn scrub_state(&self) -> Result<ScrubState, StoreError> {
        let value = self.kv.get(SCRUB_KEY)?;
        Ok(value.map_or(ScrubState::START, |bytes| ScrubState::parse(&bytes)))
    }

    fn keep_scrub_state(&self, state: &ScrubState) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        batch.put(SCRUB_KEY, state.encode());
        Ok(self.kv.commit(batch, Durability::Relaxed)?)
    }

    /// The first pack with at least this number that is to stay.
    fn pack_from(&self, from: PackNumber) -> Result<Option<(PackNumber, PackState)>, StoreError> {
        let mut found = None;
        let start = PackState::key(from);
        self.kv.scan(PACK_PREFIX, &start, &mut |key, value| {
            match PackState::parse(key, value) {
                Ok((_, state)) if state.doomed => return ControlFlow::Continue(()),
                other => found = Some(other),
            }
            ControlFlow::Break(())
        })?;
        found.transpose()
    }

    fn scrub_pack(&self, pack: PackNumber, state: &PackState) -> Result<ScrubbedPack, StoreError> {
        let mut scrubbed = ScrubbedPack {
            pack,
            bytes: state.indexed_len,
            records: 0,
            damaged: Vec::new(),
        };
        let mut sound = HashSet::new();
        let bytes = self
            .file(pack)
            .and_then(|file| read_range(&*file, pack, 0, state.indexed_len));
        match bytes {
            Ok(bytes) if bytes.len() >= HEADER_LEN => {
                let header = check_header(&bytes, pack, &self.key, self.realm);
                let body = bytes.slice(HEADER_LEN..);
                let tally = Tally::default();
                let found = scan(body, HEADER_LEN as u64, pack, &self.key, tally, false);
                scrubbed.records = found.records.len() as u64;
                if found.damaged.is_empty() && matches!(header, Ok(Ok(()))) {
                    return Ok(scrubbed);
                }
                for damage in found.damaged.iter().take(8) {
                    tracing::warn!(%damage, "damage in a pack");
                }
                let places = found.records.into_iter();
                sound.extend(places.map(|(name, location)| (name, location.offset)));
            }
            Ok(_) => {}
            // Not whole: record by record tells what of it can be read.
            Err(error) => tracing::warn!(%pack, %error, "a pack cannot be read whole"),
        }
        for (name, location) in self.entries_of(pack)? {
            if !sound.contains(&(name, location.offset)) && !self.is_sound(&name)? {
                scrubbed.damaged.push(name);
            }
        }
        Ok(scrubbed)
    }

    /// A second look at one record.
    fn is_sound(&self, name: &RecordName) -> Result<bool, StoreError> {
        match self.record_for_collection(name) {
            Ok((record, _)) => Ok(record.header.open(&self.key, &record.stored).is_ok()),
            // Erased since.
            Err(StoreError::NotFound { .. }) => Ok(true),
            Err(StoreError::Damaged { .. }) => Ok(false),
            Err(StoreError::Io { source, .. }) if is_medium_error(&source) => Ok(false),
            // Too many open files, say: that says nothing about the record.
            Err(other) => Err(other),
        }
    }

    /// The readable entries that point into a pack. Reads the whole index, which only damage is worth.
    fn entries_of(&self, pack: PackNumber) -> Result<Vec<(RecordName, Location)>, StoreError> {
        let mut entries = Vec::new();
        for (kind, prefix) in ENTRY_PREFIXES {
            let mut bad = None;
            self.kv.scan(prefix, prefix, &mut |key, value| {
                let Some(name) = entry_name(kind, key) else {
                    return ControlFlow::Continue(());
                };
                match Location::parse(&name, value) {
                    Ok(location) if location.pack == pack && location.state.is_readable() => {
                        entries.push((name, location));
                    }
                    Ok(_) => {}
                    Err(e) => {
                        bad = Some(e);
                        return ControlFlow::Break(());
                    }
                }
                ControlFlow::Continue(())
            })?;
            if let Some(e) = bad {
                return Err(e);
            }
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scrub's state, version 1, byte by byte; `docs/disk-formats/store.md` describes the same.
    #[test]
    fn golden_bytes() {
        let state = ScrubState {
            passes: 1,
            next: PackNumber(0x0203),
            began_unix_s: 4,
            ended_unix_s: 5,
        };
        let mut bytes = vec![1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3, 2, 0, 0, 0, 0, 0, 0];
        bytes.extend([4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(state.encode()[..], bytes);
        assert_eq!(ScrubState::parse(&bytes), state);
        assert_eq!(ScrubState::parse(&bytes[1..]), ScrubState::START);
        bytes[0] = 2;
        assert_eq!(ScrubState::parse(&bytes), ScrubState::START);
    }
}
