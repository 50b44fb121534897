//! Taking an index snapshot while guests write.
//!
//! No lock is held longer than it takes to copy a few thousand extents, so what is copied is of no single moment. That does no harm: what
//! was written since the copying began is in the snapshot's own segment or a later one, is left out here and read from the log when the
//! overlay opens. The file takes its name only once these records are durable, because it lacks what they replaced.
//!
//! ```text
//!   note the newest segment ─► flush ─► list segments, copy extents ─► flush ─► end, sync, rename
//! ```

use std::io;

use dedup_store::disk::Open;

use super::error::OverlayError;
use super::open::io_error;
use super::snapshot::{Listed, NAME, NEW_NAME, PART_EXTENTS_MAX, PART_SEGMENTS_MAX, Parts};
use super::{Overlay, lock, path};

impl Overlay {
    /// Replaces the index snapshot. Its length in bytes; 0 if it has to wait: for room, for a segment to become durable, or because its
    /// own file failed. That closes nothing, because the log says all of it.
    pub(super) fn write_snapshot(&self) -> Result<u64, OverlayError> {
        let error = match self.snapshot() {
            Ok(bytes) => return Ok(bytes),
            // A sync on the way, which was the log's as well.
            Err(error) if self.failed.get().is_some() => return Err(error),
            Err(error) => error,
        };
        if !error.is_full() {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(overlay = %self.dir, error, "no index snapshot: the next opening reads more");
        }
        // The old one stands; the attempt is only in the way.
        let _ = self.disk.remove(&path(&self.dir, NEW_NAME));
        Ok(0)
    }

    fn snapshot(&self) -> Result<u64, OverlayError> {
        let (segment, last_seq, chain) = {
            let writer = lock(&self.writer);
            let map = self.map_read();
            let home = &map.segments[&writer.number];
            (writer.number, home.first_seq - 1, home.chain)
        };
        self.flush_all()?;
        if lock(&self.meta).segments_synced < segment {
            return Ok(0);
        }
        let (name, new) = (path(&self.dir, NAME), path(&self.dir, NEW_NAME));
        let (dir, new_name) = (self.dir.as_str(), new.as_str());
        let error = |what: &'static str| move |e: io::Error| io_error(dir, new_name, what, e);
        match self.disk.remove(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(error("remove")(e)),
            _ => {}
        }
        let file = self
            .disk
            .open(&new, Open::CreateNew)
            .map_err(error("create"))?;
        let mut parts =
            Parts::begin(&*file, &self.key, segment, last_seq).map_err(error("write"))?;
        let listed: Vec<Listed> = self
            .map_read()
            .segments
            .range(..segment)
            .map(|(&number, s)| Listed {
                number,
                first_seq: s.first_seq,
                last_seq: s.last_seq,
                len: s.len,
            })
            .collect();
        for some in listed.chunks(PART_SEGMENTS_MAX) {
            parts.segments(some).map_err(error("write"))?;
        }
        for disk in 0..self.identity.disks.len() {
            let mut at = 0;
            loop {
                let mut extents = self.map_read().disks[disk].scan(at, PART_EXTENTS_MAX);
                let Some(last) = extents.last() else { break };
                at = last.end();
                extents.retain(|extent| extent.content().segment() < segment);
                if !extents.is_empty() {
                    parts
                        .extents(disk as u16, &extents)
                        .map_err(error("write"))?;
                }
            }
        }
        let durable = self.flush_all()?;
        let bytes = parts.end(chain, durable).map_err(error("write"))?;
        file.sync().map_err(error("sync"))?;
        self.disk.rename(&new, &name).map_err(error("rename"))?;
        // The log's names are in this directory too, and a failure is told once.
        self.disk
            .sync_dir(&self.dir)
            .map_err(|e| self.fail(OverlayError::io(&self.dir, "sync the directory", e)))?;
        tracing::debug!(overlay = %self.dir, segment, bytes, "index snapshot");
        Ok(bytes)
    }
}
