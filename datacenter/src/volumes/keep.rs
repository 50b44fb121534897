//! The transactions: a decision becomes durable, together with all that follows from it.
//!
//! Invariant: a row is written only over the row that its decision was made from, and a segment only while its generation may still bring one;
//! both are read in the transaction. Where the catalog fails nobody knows what is durable: the volume is loaded again.

use datacenter_api::AuditFacts;
use dedup::{BranchId, DesktopId};
use dedup_protocol::records::TreeRef;
use dedup_protocol::state::authority::{Authority, AuthorityRow, Broken, Standing};
use dedup_protocol::state::message::Cut;
use dedup_protocol::state::writeback::{LineRow, Snapshot, next_cut, to_drop};
use dedup_protocol::state::{Ended, Generation};

use super::manage::branch_name;
use super::policy::policy_of;
use super::{Machines, StateError};
use crate::catalog::volumes::{
    AuditEvent, BeginRow, GenerationKey, LineKey, PartKey, PartRow, SnapshotKey, VolumeEvent,
    VolumeRow,
};
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;

/// Most snapshots of a volume. Retention keeps far fewer; those that were asked for stay until somebody deletes them, and a branch can ask for as
/// many as it likes.
pub(super) const SNAPSHOTS_MAX: usize = 512;

/// What is kept of a line in one transaction.
pub(super) struct LineChange {
    /// The row that the decision was made from; `None` of a fork of which nothing is durable.
    pub(super) before: Option<LineRow>,
    /// The row.
    pub(super) row: LineRow,
    /// All parts that are kept go first.
    pub(super) drops_parts: bool,
    /// Then this one is kept.
    pub(super) part: Option<(u32, Vec<u8>, Option<TreeRef>)>,
    /// Whether a snapshot of the new state is cut; it is one if no part is kept.
    pub(super) cut: Cut,
}

/// Adds an entry to the audit log.
pub(super) fn audit(tx: &mut Tx<'_>, entry: &VolumeEvent) -> Result<(), CatalogError> {
    let known: Option<VolumeRow> = tx.get(&entry.volume)?;
    let branch = entry.branch.or(known.as_ref().map(|known| known.home));
    let branch = branch.map(|branch| branch_name(tx, branch)).transpose()?;
    let facts = AuditFacts {
        unix_s: entry.unix_s,
        event: entry.event.name().to_owned(),
        who: entry.event.who().to_owned(),
        volume: entry.volume.to_string(),
        desktop: entry.desktop.clone(),
        generation: entry.generation.0,
        branch,
        pool: known.map(|known| known.pool),
        reason: entry.reason.clone(),
        ..AuditFacts::default()
    };
    crate::catalog::audit::append(tx, &facts)?;
    Ok(())
}

/// Forgets the parts that `row` says are there.
pub(super) fn drop_parts(tx: &mut Tx<'_>, line: LineKey, row: &LineRow) {
    let parts = row.staged.as_ref().map_or(0, |staged| staged.parts);
    for part in 0..parts {
        tx.delete::<PartRow>(&PartKey { line, part });
    }
}

/// Generations of which a fork may come, the one that is held included.
fn open_generations(row: &AuthorityRow) -> impl Iterator<Item = Generation> + '_ {
    let held = row.holder.as_ref().map(|_| row.last);
    row.past.iter().map(|past| past.generation).chain(held)
}

impl Datacenter {
    /// Makes a decision about who may write a volume durable, with its entry in the audit log and with what a new generation begins with. `home` is the
    /// branch that may ask for it from then on.
    pub(super) fn keep_authority(
        &self,
        machines: &mut Machines,
        id: DesktopId,
        volume: &VolumeRow,
        row: AuthorityRow,
        entry: Option<VolumeEvent>,
        home: BranchId,
    ) -> Result<(), StateError> {
        let before = machines.kept.as_ref();
        let kept = self.catalog().transact(|tx| {
            if tx.get::<AuthorityRow>(&id)?.as_ref() != before {
                return Err(StateError::Stale);
            }
            tx.put(&id, &row);
            for generation in before.into_iter().flat_map(open_generations) {
                if !open_generations(&row).any(|open| open == generation) {
                    let key = GenerationKey {
                        volume: id,
                        generation,
                    };
                    tx.delete::<BeginRow>(&key);
                }
            }
            let is_granted = before.is_none_or(|before| before.last != row.last);
            if let Some(holder) = row.holder.as_ref().filter(|_| is_granted) {
                let line: Option<LineRow> = tx.get(&LineKey::own(id))?;
                let line = line.filter(|line| line.applied.head == holder.base);
                let tree = line.and_then(|line| line.disks.first().copied());
                let key = GenerationKey {
                    volume: id,
                    generation: row.last,
                };
                let begin = BeginRow {
                    head: holder.base,
                    tree: tree.ok_or(StateError::Stale)?,
                };
                tx.put(&key, &begin);
            }
            // Who may ask was looked up before; the volume may have been moved or deleted since.
            let known: Option<VolumeRow> = tx.get(&id)?;
            let known = known.filter(|known| known.home == volume.home);
            let mut known = known.ok_or(StateError::Stale)?;
            if known.home != home {
                known.home = home;
                tx.put(&id, &known);
            }
            if let Some(entry) = &entry {
                audit(tx, entry)?;
            }
            Ok(())
        });
        if let Err(error) = kept {
            self.forget_volume(id);
            return Err(error);
        }
        machines.kept = Some(row);
        Ok(())
    }

    /// Makes a step of a line durable. A segment is applied only if its generation may still bring one, as the catalog says now. Answers the snapshot that
    /// was cut, if one was.
    pub(super) fn keep_line(
        &self,
        id: DesktopId,
        change: &LineChange,
    ) -> Result<Option<u64>, StateError> {
        let now = self.now_unix_s();
        let key = LineKey::of(&change.row.line);
        let kept = self.catalog().transact(|tx| {
            let is_same = tx.get::<LineRow>(&key)? == change.before;
            if !is_same || !may_bring(tx, id, key, &change.row)? {
                return Err(StateError::Stale);
            }
            if change.drops_parts
                && let Some(before) = &change.before
            {
                drop_parts(tx, key, before);
            }
            if let Some((part, ranges, chunks)) = &change.part {
                let row = PartRow {
                    ranges: ranges.clone(),
                    chunks: *chunks,
                };
                tx.put(
                    &PartKey {
                        line: key,
                        part: *part,
                    },
                    &row,
                );
            }
            tx.put(&key, &change.row);
            let is_applied = change.part.is_none() && key.fork.is_none();
            if is_applied {
                return Ok(cut_snapshot(tx, id, &change.row, change.cut, now)?);
            }
            Ok(None)
        });
        kept.inspect_err(|_| self.forget_volume(id))
    }
}

/// Whether the line's generation may bring a segment to it.
fn may_bring(
    tx: &mut Tx<'_>,
    id: DesktopId,
    key: LineKey,
    row: &LineRow,
) -> Result<bool, CatalogError> {
    let Some(authority) = tx.get::<AuthorityRow>(&id)? else {
        return Ok(false);
    };
    let standing = Authority::open(authority).standing_of(row.line.generation);
    Ok(match key.fork {
        None => standing == Standing::Current,
        Some(_) => matches!(standing, Standing::Past(_)),
    })
}

/// Cuts a snapshot of a volume's new state if one is due or was asked for, and drops those that retention gives up. Answers its number.
fn cut_snapshot(
    tx: &mut Tx<'_>,
    id: DesktopId,
    line: &LineRow,
    cut: Cut,
    now_unix_s: u64,
) -> Result<Option<u64>, CatalogError> {
    let Some(mut volume) = tx.get::<VolumeRow>(&id)? else {
        return Ok(None);
    };
    let policy = policy_of(tx, volume.home, &volume.pool)?.snapshots;
    let rows = tx.list::<Snapshot>(&id.0, None, SNAPSHOTS_MAX + 1)?;
    let mut snapshots: Vec<Snapshot> = rows.into_iter().map(|(_, row)| row).collect();
    let Some(cut) = next_cut(&policy, snapshots.last(), line, cut, now_unix_s) else {
        return Ok(None);
    };
    if snapshots.len() >= SNAPSHOTS_MAX {
        tracing::warn!(volume = %id, desktop = volume.desktop, "a volume has as many snapshots as are kept, and gets no more; delete some with `splice desktop-state drop-snapshot`");
        return Ok(None);
    }
    volume.snapshots += 1;
    let number = volume.snapshots;
    let snapshot = Snapshot {
        number,
        line: line.line,
        at: line.applied,
        cut,
        sealed_unix_s: line.sealed_unix_s,
        taken_unix_s: now_unix_s,
        is_pinned: false,
        disks: line.disks.clone(),
    };
    tx.put(&id, &volume);
    tx.put(&SnapshotKey { volume: id, number }, &snapshot);
    snapshots.push(snapshot);
    for number in to_drop(&snapshots, &policy.keep) {
        tx.delete::<Snapshot>(&SnapshotKey { volume: id, number });
    }
    Ok(Some(number))
}

/// The entry of a lease that was broken.
pub(super) fn broken_entry(broken: &Broken, volume: &VolumeRow, now_unix_s: u64) -> VolumeEvent {
    VolumeEvent {
        unix_s: now_unix_s,
        event: match broken.ended {
            Ended::OldCopy => AuditEvent::OldCopy,
            Ended::Broken | Ended::Returned => AuditEvent::LeaseBroken,
        },
        volume: broken.desktop,
        desktop: volume.desktop.clone(),
        generation: broken.generation,
        branch: Some(broken.branch),
        reason: broken.reason.clone(),
    }
}
