//! Reading everything again: every record of every pack, and every entry of the index.
//!
//! It changes nothing; [`ChunkStore::quarantine`] is the caller's answer to damage. It may run beside readers and writers, and looks
//! at what was committed when it began.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::chunk_store::{ChunkStore, Inner};
use crate::error::StoreError;
use crate::index::{ENTRY_PREFIXES, Location, PackState, State, entry_name};
use crate::pack::{HEADER_LEN, PackNumber, RecordName, Tally};
use crate::recovery::{Damage, check_header, pack_states, read_range, scan};

/// Most damages that a report lists; the others are counted.
const DAMAGED_MAX: usize = 10_000;

/// How far a verification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Packs read.
    pub packs_done: u64,
    /// Packs to read.
    pub packs_total: u64,
    /// Bytes read.
    pub bytes_done: u64,
    /// Bytes to read.
    pub bytes_total: u64,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Sound records, read and proven by name.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Damage, up to 10,000 of it: rotten bytes, and index entries whose record is not there or not sound.
    pub damaged: Vec<Damage>,
    /// All damage.
    pub damaged_total: u64,
    /// Sound records that the index does not know.
    pub unindexed: u64,
    /// Sound records whose name the index finds elsewhere.
    pub duplicates: u64,
    /// Sound records whose name is in quarantine.
    pub quarantined: u64,
    /// Sound records that a collection has condemned; they are readable.
    pub condemned: u64,
}

impl VerifyReport {
    /// Whether everything that was ever committed can be read.
    pub fn is_sound(&self) -> bool {
        self.damaged_total == 0
    }

    fn note(&mut self, damage: Damage) {
        self.damaged_total += 1;
        if self.damaged.len() < DAMAGED_MAX {
            self.damaged.push(damage);
        }
    }
}

impl ChunkStore {
    /// Reads and proves every committed record, and looks for index entries without a record and records without an entry.
    pub fn verify(
        &self,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<VerifyReport, StoreError> {
        // Nothing is moved or removed meanwhile.
        let _turn = self.inner.maintenance();
        let mut states = pack_states(&*self.inner.kv)?;
        states.retain(|_, state| !state.doomed);
        let mut report = VerifyReport::default();
        let mut at = VerifyProgress {
            packs_done: 0,
            packs_total: states.len() as u64,
            bytes_done: 0,
            bytes_total: states.values().map(|s| s.indexed_len).sum(),
        };
        let mut confirmed = 0;
        for (pack, state) in &states {
            progress(at);
            confirmed += self.inner.verify_pack(*pack, state, &mut report)?;
            at.packs_done += 1;
            at.bytes_done += state.indexed_len;
        }
        progress(at);
        self.inner.verify_entries(&states, confirmed, &mut report)?;
        Ok(report)
    }
}

impl Inner {
    /// Checks one pack up to where the index knows it. Returns how many index entries point at a sound record of it.
    fn verify_pack(
        &self,
        pack: PackNumber,
        state: &PackState,
        report: &mut VerifyReport,
    ) -> Result<u64, StoreError> {
        let bytes = match self
            .file(pack)
            .and_then(|file| read_range(&*file, pack, 0, state.indexed_len))
        {
            Ok(bytes) if bytes.len() >= HEADER_LEN => bytes,
            other => {
                report.note(Damage {
                    pack,
                    offset: 0,
                    len: state.indexed_len,
                    name: None,
                    why: other
                        .err()
                        .map_or("it is shorter than its header".into(), |e| e.to_string()),
                });
                return Ok(0);
            }
        };
        report.bytes += bytes.len() as u64;
        let header = match check_header(&bytes, pack, &self.key, self.realm) {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(e.to_string()),
            Err(e) => Some(e.to_string()),
        };
        if let Some(why) = header {
            report.note(Damage {
                pack,
                offset: 0,
                len: HEADER_LEN as u64,
                name: None,
                why,
            });
        }
        let body = bytes.slice(HEADER_LEN..);
        let found = scan(
            body,
            HEADER_LEN as u64,
            pack,
            &self.key,
            Tally::default(),
            false,
        );
        let mut confirmed = 0;
        report.records += found.records.len() as u64;
        for (name, here) in &found.records {
            match self.indexed(name)? {
                Some(location) if location == *here => confirmed += 1,
                Some(location) if location.state == State::Quarantined => report.quarantined += 1,
                Some(location) if location.is_at(here) && location.state != State::Live => {
                    report.condemned += 1;
                }
                Some(_) => report.duplicates += 1,
                None => report.unindexed += 1,
            }
        }
        found.damaged.into_iter().for_each(|d| report.note(d));
        Ok(confirmed)
    }

    /// Looks for entries that point at no sound record, if the number of entries says that there are any.
    fn verify_entries(
        &self,
        states: &BTreeMap<PackNumber, PackState>,
        confirmed: u64,
        report: &mut VerifyReport,
    ) -> Result<(), StoreError> {
        let mut live = 0;
        self.live_entries(states, &mut |_, _| live += 1)?;
        if live == confirmed {
            return Ok(());
        }
        let mut failed = Vec::new();
        self.live_entries(states, &mut |name, location| {
            let why = match self.record(&name) {
                Ok(record) => match record.header.open(&self.key, &record.stored) {
                    Ok(_) => return,
                    Err(why) => why,
                },
                Err(e) => e.to_string(),
            };
            failed.push(Damage {
                pack: location.pack,
                offset: u64::from(location.offset),
                len: u64::from(location.stored_len),
                name: Some(name),
                why: format!("the index points at it, but: {why}"),
            });
        })?;
        // A rotten record whose header still names it was noted when its pack was read.
        let known: std::collections::HashSet<RecordName> =
            report.damaged.iter().filter_map(|d| d.name).collect();
        for damage in failed {
            if damage.name.is_none_or(|name| !known.contains(&name)) {
                report.note(damage);
            }
        }
        Ok(())
    }

    /// Visits the live entries that point into what the index knew of `states`.
    fn live_entries(
        &self,
        states: &BTreeMap<PackNumber, PackState>,
        visit: &mut dyn FnMut(RecordName, Location),
    ) -> Result<(), StoreError> {
        for (kind, prefix) in ENTRY_PREFIXES {
            let mut bad = None;
            self.kv.scan(prefix, prefix, &mut |key, value| {
                let entry = entry_name(kind, key)
                    .ok_or_else(|| StoreError::BadIndex {
                        what: format!("{kind:?}"),
                        why: format!("a key of {} bytes", key.len()),
                    })
                    .and_then(|name| Ok((name, Location::parse(&name, value)?)));
                match entry {
                    Ok((name, location)) => {
                        // A pack begun after the verification is not its business; one that was never known is.
                        let newest = states.keys().next_back();
                        let covered = match states.get(&location.pack) {
                            Some(state) => u64::from(location.offset) < state.indexed_len,
                            None => newest.is_some_and(|newest| location.pack < *newest),
                        };
                        if covered && location.state == State::Live {
                            visit(name, location);
                        }
                        ControlFlow::Continue(())
                    }
                    Err(e) => {
                        bad = Some(e);
                        ControlFlow::Break(())
                    }
                }
            })?;
            if let Some(e) = bad {
                return Err(e);
            }
        }
        Ok(())
    }
}
