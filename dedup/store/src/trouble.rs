//! What is known to be wrong: damaged names, and that collections are halted because a condemned record was read.

use crate::chunk_store::{ChunkStore, Inner};
use crate::error::StoreError;
use crate::index::{HALT_KEY, State, damaged_key, entry_key};
use crate::kv::{Batch, Durability};
use crate::pack::RecordName;

impl ChunkStore {
    /// Makes a damaged record as good as absent, durably, so that the next put of the same bytes stores them again.
    pub fn quarantine(&self, name: RecordName) -> Result<(), StoreError> {
        let _append = self.inner.append();
        self.inner.pending_mut().remove(&name);
        let Some(mut location) = self.inner.indexed(&name)? else {
            return Ok(());
        };
        location.state = State::Quarantined;
        let mut batch = Batch::new();
        batch.put(entry_key(&name), location.encode());
        batch.put(damaged_key(&name), [0u8; 0]);
        self.inner.kv.commit(batch, Durability::Synced)?;
        self.inner.damaged().insert(name);
        Ok(())
    }

    /// Names in quarantine that were not stored again, in order.
    pub fn damaged(&self) -> Vec<RecordName> {
        self.inner.damaged().iter().copied().collect()
    }

    /// Why nothing is collected any more, if that is so: a condemned record was read.
    pub fn halted(&self) -> Option<String> {
        self.inner.halted().clone()
    }

    /// Lets collections work again, after [`Self::halted`] was looked into.
    pub fn resume_collections(&self) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        batch.delete(HALT_KEY);
        self.inner.kv.commit(batch, Durability::Synced)?;
        *self.inner.halted() = None;
        Ok(())
    }
}

impl Inner {
    /// Makes condemned records live again. A crash may undo it, until the next commit.
    pub(crate) fn revive(&self, names: &[RecordName]) -> Result<(), StoreError> {
        let mut append = self.append();
        let mut batch = Batch::new();
        for name in names {
            if let Some(mut location) = self.indexed(name)?
                && matches!(location.state, State::Condemned { .. })
            {
                location.state = State::Live;
                batch.put(entry_key(name), location.encode());
            }
        }
        if !batch.is_empty() {
            self.kv.commit(batch, Durability::Relaxed)?;
            // A commit that has nothing else to do must make this durable all the same.
            append.note_relaxed();
        }
        Ok(())
    }

    /// Somebody reads what a collection condemned, so that collection was wrong: no other takes anything away until a person has looked.
    /// The reader gets his bytes whatever becomes of the alarm.
    pub(crate) fn alarm(&self, name: &RecordName) {
        let reason = format!("{name} was read after a collection had condemned it");
        tracing::error!(
            reason,
            "collections are halted: a reader has what nothing was known to refer to; this is a defect, please report it"
        );
        let mut batch = Batch::new();
        batch.put(HALT_KEY, reason.as_bytes());
        *self.halted() = Some(reason);
        let kept = self.kv.commit(batch, Durability::Synced);
        if let Err(error) = kept.map_err(StoreError::from).and(self.revive(&[*name])) {
            tracing::error!(%error, "the alarm is not durable: it ends with this process");
        }
    }
}
