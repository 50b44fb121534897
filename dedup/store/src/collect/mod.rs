//! Collecting garbage: what no root reaches is condemned, erased from the index a grace later, and its space given back.
//!
//! ```text
//!   begin ──► (caller reads its roots) ──► commit ──► mark ──► sweep ──► compact
//!                                                      │         │           └ packs of little use are emptied and removed
//!                                                      │         └ unreached: Live → Condemned → (grace) → erased; reached: Live again
//!                                                      └ walk of all trees: an error here ends the collection, nothing is condemned
//! ```
//!
//! It works beside puts and reads, and may die anywhere. Invariant: a record that a root reaches, or that a [`crate::Hold`] which lived at
//! any time since the beginning keeps, is neither condemned nor erased; and a pack file is removed only after no readable entry points
//! into it, durably. Decision 0035 has the proof. What it does not decide is what the roots are, and when to run.
//!
//! Bounded memory: marks take at most [`CollectOptions::mark_bytes_max`] (plus the names of distinct manifest nodes, one for 4 MiB of
//! disk); a larger store is marked and swept in slices of the names' space. Bounded space: one pack at a time is copied.

mod compact;
mod mark;
mod sweep;

use std::ops::ControlFlow;
use std::sync::MutexGuard;

use dedup::NodeId;

use crate::chunk_store::{ChunkStore, Inner};
use crate::error::StoreError;
use crate::recovery::pack_states;

use mark::Marks;
use sweep::Sweep;

/// How a collection works.
#[derive(Debug, Clone)]
pub struct CollectOptions {
    /// For how long a condemned record stays readable, in hours, at most 32767. A safety net: correctness does not depend on it.
    pub grace_hours: u16,
    /// Packs of which less than this is wanted are rewritten, in percent; 100 rewrites every pack that has anything unwanted in it.
    pub compact_below_percent: u8,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Most memory for marks of chunks, in bytes.
    pub mark_bytes_max: u64,
}

impl Default for CollectOptions {
    fn default() -> Self {
        Self {
            grace_hours: 24,
            compact_below_percent: 60,
            dry_run: false,
            mark_bytes_max: 512 << 20,
        }
    }
}

/// What a collection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CollectPhase {
    /// Walking the trees; counted in roots.
    Mark,
    /// Going through the index; counted in records.
    Sweep,
    /// Rewriting packs; counted in bytes of those packs.
    Compact,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectProgress {
    /// What it is doing.
    pub phase: CollectPhase,
    /// How much of it is done.
    pub done: u64,
    /// How much there is; an estimate while sweeping.
    pub total: u64,
    /// Bytes read from or written to packs since the last call, for whoever limits the rate.
    pub io_bytes: u64,
}

/// What it did. With `dry_run`, what it would have done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CollectReport {
    /// Trees walked.
    pub roots: u64,
    /// Distinct manifest nodes that are reachable.
    pub reachable_nodes: u64,
    /// Distinct chunks that are reachable.
    pub reachable_chunks: u64,
    /// Records condemned now.
    pub condemned: u64,
    /// Their bytes in packs.
    pub condemned_bytes: u64,
    /// Records condemned earlier, whose grace is not over.
    pub waiting: u64,
    /// Their bytes in packs.
    pub waiting_bytes: u64,
    /// Condemned records that are reachable again.
    pub revived: u64,
    /// Records erased from the index.
    pub erased: u64,
    /// Their bytes in packs.
    pub erased_bytes: u64,
    /// Unreachable records that somebody is about to refer to.
    pub held: u64,
    /// Reachable records that are damaged.
    pub damaged: u64,
    /// Packs that had nothing wanted in them and were removed.
    pub packs_removed: u64,
    /// Packs that were rewritten and removed.
    pub packs_rewritten: u64,
    /// Packs that were left as they are, because something wanted in them does not read back; a scrub finds out what.
    pub packs_damaged: u64,
    /// Bytes that were copied.
    pub moved_bytes: u64,
    /// Bytes of packs that were removed, less the copied ones.
    pub freed_bytes: u64,
    /// Bytes in the packs that are left which nothing refers to.
    pub dead_bytes: u64,
    /// Whether rewriting ended early because the disk is full.
    pub out_of_space: bool,
}

/// Called between steps; a break ends the collection with [`StoreError::Stopped`]. It may wait, to limit the rate.
pub(crate) type Control<'a> = &'a mut dyn FnMut(&CollectProgress) -> ControlFlow<()>;

/// A collection that has begun. What is stored from now on is safe from it, so roots that are read after the beginning are enough.
pub struct Collection<'a> {
    inner: &'a Inner,
    _turn: MutexGuard<'a, ()>,
}

impl Drop for Collection<'_> {
    fn drop(&mut self) {
        self.inner.holds.collection_ended();
    }
}

impl ChunkStore {
    /// Begins a collection; waits for the end of another, of a verification, or of one pack's scrub. Read the roots after this.
    pub fn begin_collection(&self) -> Result<Collection<'_>, StoreError> {
        let turn = self.inner.maintenance();
        self.inner.refuse_if_halted()?;
        self.inner.holds.collection_began();
        Ok(Collection {
            inner: &self.inner,
            _turn: turn,
        })
    }
}

impl Inner {
    /// Nothing is taken away while a person has to look into something.
    pub(crate) fn refuse_if_halted(&self) -> Result<(), StoreError> {
        match &*self.halted() {
            Some(reason) => Err(StoreError::Halted {
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }
}

impl Collection<'_> {
    /// Collects what none of `roots` reaches. The caller has read them since the beginning, from where a put content's root is durable
    /// before its hold ends.
    pub fn run(
        self,
        roots: &[NodeId],
        options: &CollectOptions,
        now_unix_s: u64,
        control: &mut dyn FnMut(&CollectProgress) -> ControlFlow<()>,
    ) -> Result<CollectReport, StoreError> {
        validate(options)?;
        let inner = self.inner;
        if !options.dry_run {
            // What holds that ended left behind is in the index from here on, where the sweep sees it.
            inner.commit()?;
        }
        let mut report = CollectReport {
            roots: roots.len() as u64,
            ..CollectReport::default()
        };
        // A pack that grows during the sweep would have more in it than the sweep sees.
        let closed = pack_states(&*inner.kv)?;
        let mut sweep = Sweep::new(inner, options, now_unix_s);
        let slices = slices(inner, options.mark_bytes_max);
        for slice in 0..slices {
            let marks = Marks::of(inner, roots, slice, slices, &mut *control)?;
            report.reachable_chunks += marks.chunks();
            sweep.chunks(&marks, slice, slices, &mut report, &mut *control)?;
            if slice + 1 == slices {
                report.reachable_nodes = marks.nodes();
                sweep.nodes(&marks, &mut report, &mut *control)?;
            }
        }
        let wanted = sweep.finish();
        compact::compact(inner, &closed, &wanted, options, &mut report, control)?;
        Ok(report)
    }
}

fn validate(options: &CollectOptions) -> Result<(), StoreError> {
    let bad = |option, why: String| Err(StoreError::BadOption { option, why });
    if options.grace_hours > i16::MAX as u16 {
        return bad(
            "grace_hours",
            format!("{} is above 32767", options.grace_hours),
        );
    }
    if options.compact_below_percent > 100 {
        return bad(
            "compact_below_percent",
            format!("{} is above 100", options.compact_below_percent),
        );
    }
    Ok(())
}

/// Bytes of memory for the mark of one chunk: 16 of its name, and a hash table that may be half empty.
const MARK_BYTES: u64 = 40;

/// In how many slices of the space of names chunks are marked: a power of two, at most 256.
fn slices(inner: &Inner, mark_bytes_max: u64) -> u32 {
    let chunks = inner.stats().chunks;
    let wanted = chunks
        .saturating_mul(MARK_BYTES)
        .div_ceil(mark_bytes_max.max(1));
    (wanted.clamp(1, 256) as u32).next_power_of_two()
}

/// Calls the control and turns its break into an error.
fn step(control: Control<'_>, progress: CollectProgress) -> Result<(), StoreError> {
    match control(&progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(StoreError::Stopped),
    }
}
