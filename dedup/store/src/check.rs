//! Reading chosen records again, to see whether they are still what was written.
//!
//! Each record's header, place and checksum are checked, not its name: no frame was stored that had not been decoded and compared
//! (see [`crate::codec`]), so stored bytes that match their checksum decode to what they were made of. That costs a tenth of decoding
//! and naming them. [`ChunkStore::verify`] does the latter, for all records.

use crate::chunk_store::{ChunkStore, Inner};
use crate::error::StoreError;
use crate::index::{Location, State};
use crate::pack::{PackNumber, RECORD_HEADER_LEN, RecordName};

/// Records that lie this close together are read at once, in bytes: reading what is between costs less than asking again.
const GAP_BYTES_MAX: u64 = 64 * 1024;
/// Most bytes read at once, so that a caller's list bounds no memory but its own. A single record may be longer.
const READ_BYTES_MAX: u64 = 1024 * 1024;

impl ChunkStore {
    /// Reads the records of `names` and answers those that are not sound, each with [`StoreError::Damaged`] or
    /// [`StoreError::NotFound`]. Records that lie side by side cost one read.
    ///
    /// Fails if the disk or the index cannot be read.
    pub fn check_records(
        &self,
        names: &[RecordName],
    ) -> Result<Vec<(RecordName, StoreError)>, StoreError> {
        let mut unsound = Vec::new();
        let mut due: Vec<(RecordName, Location)> = Vec::new();
        for (name, location) in names.iter().zip(self.inner.locate_many(names)?) {
            match location {
                None => unsound.push((*name, StoreError::NotFound { name: *name })),
                Some(location) if location.state == State::Quarantined => {
                    unsound.push((
                        *name,
                        damaged(name, &location, "it is in quarantine".into()),
                    ));
                }
                Some(location) => due.push((*name, location)),
            }
        }
        due.sort_unstable_by_key(|(_, location)| (location.pack, location.offset));
        due.dedup();
        let mut bytes = Vec::new();
        let mut rest = &due[..];
        while !rest.is_empty() {
            let (run, later) = rest.split_at(run_len(rest));
            self.inner.check_run(run, &mut bytes, &mut unsound)?;
            rest = later;
        }
        Ok(unsound)
    }
}

fn start(location: &Location) -> u64 {
    u64::from(location.offset)
}

fn end(location: &Location) -> u64 {
    start(location) + RECORD_HEADER_LEN as u64 + u64::from(location.stored_len)
}

fn damaged(name: &RecordName, location: &Location, why: String) -> StoreError {
    StoreError::Damaged {
        name: *name,
        pack: location.pack,
        offset: start(location),
        why,
    }
}

/// How many of the first records are worth one read, at least one. They are sorted by place.
fn run_len(records: &[(RecordName, Location)]) -> usize {
    let first = &records[0].1;
    let mut reach = end(first);
    let fits = |(_, location): &&(RecordName, Location)| {
        let near = location.pack == first.pack
            && start(location) <= reach + GAP_BYTES_MAX
            && end(location) - start(first) <= READ_BYTES_MAX;
        reach = reach.max(end(location));
        near
    };
    1 + records[1..].iter().take_while(fits).count()
}

impl Inner {
    fn check_run(
        &self,
        run: &[(RecordName, Location)],
        bytes: &mut Vec<u8>,
        unsound: &mut Vec<(RecordName, StoreError)>,
    ) -> Result<(), StoreError> {
        let (pack, base) = (run[0].1.pack, start(&run[0].1));
        let reach = run.iter().map(|(_, location)| end(location)).max();
        bytes.resize((reach.unwrap_or(base) - base) as usize, 0);
        if self.read_whole(pack, base, bytes)? {
            for (name, location) in run {
                let from = (start(location) - base) as usize;
                let to = (end(location) - base) as usize;
                if let Err(why) = location.check_record(name, &bytes[from..to]) {
                    unsound.push((*name, damaged(name, location, why)));
                }
            }
            return Ok(());
        }
        // The pack ends inside the run: one by one, so that only what is cut off counts as damaged. Or a collection moved it all.
        for (name, _) in run {
            match self.record(name) {
                Ok(_) => {}
                Err(e @ StoreError::Damaged { .. }) => unsound.push((*name, e)),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Whether the pack reaches far enough to fill `bytes` from `offset`.
    fn read_whole(
        &self,
        pack: PackNumber,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<bool, StoreError> {
        let file = match self.file(pack) {
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(false);
            }
            other => other?,
        };
        match file.read_at(offset, bytes) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => Err(StoreError::io(
                format!("read {} bytes of {pack} at offset {offset}", bytes.len()),
                e,
            )),
        }
    }
}
