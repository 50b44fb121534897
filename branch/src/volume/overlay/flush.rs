//! Group flush, and the housekeeping that follows one.
//!
//! Whoever finds nobody syncing becomes the leader and syncs for all; the others wait and look whether the result covers
//! them. Order within one sync: segments oldest first, then the directory if a segment is new, and only then the watermark.
//!
//! ```text
//!   flush() ── covered? ──► return          leader: segments ─► names ─► watermark ─► wake followers
//!      │ no                                                                 └► mark, header file, dead segments
//!      ├─ somebody syncs ──► wait ──► look again
//!      └─ lead
//! ```

use std::sync::atomic::Ordering;

use super::error::OverlayError;
use super::open::write_meta;
use super::seal::Form;
use super::{Overlay, lock};

impl Overlay {
    /// Makes every write that completed before this call durable, on all disks, whichever thread it came from.
    ///
    /// # Errors
    /// The sync failed now or earlier: the overlay is closed.
    pub fn flush(&self) -> Result<(), OverlayError> {
        self.flush_to(self.guest_seq.load(Ordering::Acquire))
    }

    /// Makes every record that is in the log now durable, also those that no guest asked for.
    pub(super) fn flush_all(&self) -> Result<u64, OverlayError> {
        let target = lock(&self.writer).last_seq;
        self.flush_to(target)?;
        Ok(target)
    }

    fn flush_to(&self, target: u64) -> Result<(), OverlayError> {
        let mut state = lock(&self.flush);
        loop {
            self.check_alive()?;
            if self.flushed_seq() >= target {
                return Ok(());
            }
            if state.syncing {
                state = self
                    .flushed
                    .wait(state)
                    .expect("no code panics while it holds this lock");
                continue;
            }
            state.syncing = true;
            drop(state);
            let synced = self.sync();
            self.flushed.notify_all();
            // What follows is not needed for the followers' answers, so they do not wait for it.
            let done = synced.and_then(|newest| self.housekeep(newest));
            state = lock(&self.flush);
            state.syncing = false;
            drop(state);
            self.flushed.notify_all();
            done?;
            state = lock(&self.flush);
        }
    }

    /// Flushes if that costs one small sync or none: `Ok(false)` says that [`Overlay::flush`] would wait for somebody else's sync or
    /// for much to be written.
    ///
    /// # Errors
    /// As [`Overlay::flush`].
    pub fn try_flush(&self) -> Result<bool, OverlayError> {
        let target = self.guest_seq.load(Ordering::Acquire);
        if self.flushed_seq() < target
            && (lock(&self.flush).syncing || !lock(&self.writer).little_is_unsynced())
        {
            return Ok(false);
        }
        self.flush().map(|()| true)
    }

    /// Syncs what was appended so far and raises the watermark. Returns the newest segment that is durable now.
    fn sync(&self) -> Result<u32, OverlayError> {
        let (covered, said, newest, segments, new_names) = {
            let mut writer = lock(&self.writer);
            writer.begin_sync();
            (
                writer.last_seq,
                self.guest_seq.load(Ordering::Acquire),
                writer.number,
                std::mem::take(&mut writer.unsynced),
                std::mem::take(&mut writer.new_names),
            )
        };
        for (_, name, file) in &segments {
            file.sync()
                .map_err(|e| self.fail(OverlayError::io(name, "sync", e)))?;
        }
        if new_names {
            self.disk
                .sync_dir(&self.dir)
                .map_err(|e| self.fail(OverlayError::io(&self.dir, "sync the directory", e)))?;
        }
        // Under the lock, so that a follower cannot look before and sleep after.
        let _state = lock(&self.flush);
        // First: what is dropped because it is durable is in what is told to be.
        self.guest_durable.fetch_max(said, Ordering::AcqRel);
        self.durable.store(covered, Ordering::Release);
        Ok(newest)
    }

    /// Leaves proof of the flush in the log, notes new segments in the header file, and drops dead ones.
    fn housekeep(&self, newest: u32) -> Result<(), OverlayError> {
        self.append_mark()?;
        let mut meta = lock(&self.meta).clone();
        let known = meta.segments_synced;
        meta.segments_synced = known.max(newest);
        let durable = self.flushed_seq();
        let (dead, plain_is_left) = {
            let map = self.map_read();
            let dead: Vec<u32> = map
                .segments
                .iter()
                // The newest takes appends. The rest is dead for good once what killed it is durable.
                .filter(|(number, s)| {
                    let is_dead = s.live == 0 && s.dead_since.max(s.last_seq) <= durable;
                    **number < newest && is_dead && !self.is_held(s)
                })
                .map(|(number, _)| *number)
                .take_while(|number| meta.add_dropped(*number))
                .collect();
            let plain_is_left = meta.plain_until > 0
                && map
                    .segments
                    .iter()
                    .any(|(number, s)| s.form == Form::Plain && !dead.contains(number));
            (dead, plain_is_left)
        };
        if !plain_is_left {
            meta.plain_until = 0;
        }
        if dead.is_empty() && meta.segments_synced == known {
            return Ok(());
        }
        match write_meta(&*self.disk, &self.dir, &meta, &self.key) {
            Ok(()) => {}
            // The next flush tries again; until then nothing is dropped.
            Err(OverlayError::NoSpace { .. }) => return Ok(()),
            Err(error) => return Err(self.fail(error)),
        }
        *lock(&self.meta) = meta;
        for number in dead {
            let segment = self.map_write().segments.remove(&number);
            // A file that stays is removed by the next opening, which knows from the header file that it is dropped.
            if let Some(segment) = segment
                && let Err(error) = self.disk.remove(&segment.name)
            {
                tracing::warn!(overlay = %self.dir, file = %segment.name, %error, "a dropped segment stays for now");
            }
        }
        Ok(())
    }
}
