//! Holds: what keeps a collection away from records that somebody is about to refer to.
//!
//! Whoever makes content reachable (a publish, an upload, a desktop's segments) takes a [`Hold`] before its first put and drops it after
//! what refers to the content is durable elsewhere, or after it gave up. Until then, and until the end of a collection that was running
//! meanwhile, no record that was put through it is condemned or erased.
//!
//! Invariant: of every record that a put through the hold called new or known, the hold has the name, or the record lies in the hold's
//! floor pack or a later one. New records are appended, so they need no memory. Names are kept as 64 of their bits: two that are equal
//! there keep each other, which costs nothing but space. A hold of more than [`KNOWN_MAX`] names keeps everything.
//!
//! Holds are not durable: when the process dies, what they were for dies with it. Who cannot tell whether it did, because the commit of
//! what refers to the content failed half-way, leaves the hold to the process ([`Hold::keep`]).

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use dedup::ChunkId;

use crate::append::Writer;
use crate::chunk_store::{ChunkStore, Inner};
use crate::error::StoreError;
use crate::index::{Location, State};
use crate::pack::{PackNumber, RecordName};

/// Most names of a hold, 64 MiB of them: a disk of 64 GiB of which all is known and nothing is in a recent pack.
const KNOWN_MAX: usize = 1 << 22;

/// Keeps collections away from what is put through it, for as long as it lives. Clones are the same hold.
#[derive(Clone)]
pub struct Hold {
    pub(crate) inner: Arc<Inner>,
    kept: Arc<Ending>,
}

impl Hold {
    /// A handle for storing. It keeps the hold alive.
    pub fn writer(&self) -> Writer {
        Writer::new(self.clone())
    }

    /// Keeps what was put through it until the process ends: for whoever cannot tell whether what refers to it is durable. The next
    /// process finds out, before it collects anything.
    pub fn keep(self) {
        self.inner.holds.keep(&self.kept.kept);
    }

    /// The plain lengths, in bytes, of those of `chunks` that are readable. These stay, as if they had been put; durable are those that
    /// wait for a commit only after one.
    pub fn chunk_lengths(&self, chunks: &[ChunkId]) -> Result<Vec<Option<u32>>, StoreError> {
        let names: Vec<RecordName> = chunks.iter().map(|id| RecordName::chunk(*id)).collect();
        let found = self.keep_readable(&names)?;
        let lengths = found.iter().map(|found| found.map(|l| l.raw_len));
        Ok(lengths.collect())
    }

    /// Which of `names` are readable; these stay, and those among them that were condemned are live again.
    pub(crate) fn known(&self, names: &[RecordName]) -> Result<Vec<bool>, StoreError> {
        let found = self.keep_readable(names)?;
        Ok(found.iter().map(Option::is_some).collect())
    }

    /// Where those of `names` are that are readable; see [`Self::known`].
    fn keep_readable(&self, names: &[RecordName]) -> Result<Vec<Option<Location>>, StoreError> {
        // No collection decides between our look and our note.
        let _gate = self.inner.gate_shared();
        let mut found = self.inner.locate_many(names)?;
        let mut condemned = Vec::new();
        for (name, location) in names.iter().zip(&mut found) {
            *location = location.filter(|l| l.state.is_readable());
            let Some(location) = location else {
                continue;
            };
            self.kept.kept.note(name, location);
            if location.state != State::Live {
                condemned.push(*name);
            }
        }
        if !condemned.is_empty() {
            self.inner.revive(&condemned)?;
        }
        Ok(found)
    }
}

/// What a hold keeps.
pub(crate) struct Kept {
    /// Everything in this pack and in later ones.
    floor: PackNumber,
    known: Mutex<Known>,
}

enum Known {
    These(HashSet<u64>),
    All,
}

/// 64 bits of a name. Names are hashes, so any bits are as good as others.
fn short(name: &RecordName) -> u64 {
    let mut bits = [0; 8];
    bits.copy_from_slice(&name.id[..8]);
    u64::from_le_bytes(bits)
}

impl Kept {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known
            .lock()
            .expect("no code panics while it holds these names")
    }

    fn note(&self, name: &RecordName, location: &Location) {
        if location.pack >= self.floor {
            return;
        }
        let mut known = self.known();
        if let Known::These(names) = &mut *known {
            names.insert(short(name));
            if names.len() > KNOWN_MAX {
                tracing::warn!(
                    names = names.len(),
                    "a publish met more known chunks than are remembered; collections leave everything alone until it ends"
                );
                *known = Known::All;
            }
        }
    }

    fn keeps(&self, name: &RecordName, location: &Location) -> bool {
        if location.pack >= self.floor {
            return true;
        }
        match &*self.known() {
            Known::These(names) => names.contains(&short(name)),
            Known::All => true,
        }
    }
}

/// All holds of a store.
#[derive(Default)]
pub(crate) struct Holds {
    state: Mutex<Registry>,
}

#[derive(Default)]
struct Registry {
    live: Vec<Weak<Kept>>,
    /// Those that ended since the collection that is running began: it may have looked for what is reachable before they were done.
    ended: Vec<Arc<Kept>>,
    /// Those that stay until the process ends.
    lasting: Vec<Arc<Kept>>,
    collecting: bool,
}

impl Holds {
    fn state(&self) -> MutexGuard<'_, Registry> {
        self.state
            .lock()
            .expect("no code panics while it holds the holds")
    }

    /// From now on holds that end are kept, until [`Self::collection_ended`].
    pub(crate) fn collection_began(&self) {
        let mut state = self.state();
        debug_assert!(!state.collecting, "one collection at a time");
        state.collecting = true;
    }

    pub(crate) fn collection_ended(&self) {
        let mut state = self.state();
        state.collecting = false;
        state.ended.clear();
    }

    /// All that keep something from the collection that is running.
    pub(crate) fn all(&self) -> Held {
        let mut state = self.state();
        state.live.retain(|hold| hold.strong_count() > 0);
        let live = state.live.iter().filter_map(Weak::upgrade);
        let others = state.ended.iter().chain(&state.lasting).cloned();
        Held(live.chain(others).collect())
    }

    fn begin(&self, kept: &Arc<Kept>) {
        let mut state = self.state();
        state.live.retain(|hold| hold.strong_count() > 0);
        state.live.push(Arc::downgrade(kept));
    }

    fn keep(&self, kept: &Arc<Kept>) {
        self.state().lasting.push(Arc::clone(kept));
    }

    fn end(&self, kept: &Arc<Kept>) {
        let mut state = self.state();
        if state.collecting {
            state.ended.push(Arc::clone(kept));
        }
    }
}

/// Tells the registry when the last handle of a hold is gone.
struct Ending {
    inner: Arc<Inner>,
    kept: Arc<Kept>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.inner.holds.end(&self.kept);
    }
}

/// The holds at one moment.
pub(crate) struct Held(Vec<Arc<Kept>>);

impl Held {
    /// Whether any of them keeps the record.
    pub(crate) fn keeps(&self, name: &RecordName, location: &Location) -> bool {
        self.0.iter().any(|kept| kept.keeps(name, location))
    }
}

impl ChunkStore {
    /// Takes a hold; see the module.
    pub fn hold(&self) -> Hold {
        let floor = {
            let append = self.inner.append();
            append.open.as_ref().map_or(append.next, |open| open.number)
        };
        let kept = Arc::new(Kept {
            floor,
            known: Mutex::new(Known::These(HashSet::new())),
        });
        self.inner.holds.begin(&kept);
        Hold {
            inner: Arc::clone(&self.inner),
            kept: Arc::new(Ending {
                inner: Arc::clone(&self.inner),
                kept,
            }),
        }
    }
}
