//! What a branch knows by heart, so that it serves with the link down: versions, manifests, its assignment, its desktops.
//!
//! Rows live in the branch's key-value store under one-letter prefixes (`docs/disk-formats/branch.md`). Leaves may be lost in a crash,
//! they are fetched again; a manifest row is written, synced, only when all its leaves are there.

pub mod laptop;

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use dedup::{ChunkerParams, DesktopId, Manifest, NodeId, NodeSource, VersionId};
use dedup_protocol::policy::Policy;
use dedup_protocol::profile::BootProfile;
use dedup_protocol::records::{Assignment, VersionRecord};
use dedup_protocol::state::authority::{HoldRow, Stage};
use dedup_protocol::state::began::StateRecord;
use dedup_protocol::state::lease::Lease;
use dedup_protocol::state::writeback::SendRow;
use dedup_protocol::trust::{Endorsement, Signed, Trust, TrustAnchor, TrustError};
use dedup_store::kv::{Batch, Durability, Kv, KvError};
use serde::{Deserialize, Serialize};

use crate::desktop::record::DesktopRecord;
use crate::ready::writes::WriteHistory;
use crate::writeback::rows::{KeptHold, OverlayOf, Rows, read_row, write_row};

/// Why the catalog could not answer.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The store under it.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// A row that this program cannot read.
    #[error(
        "branch catalog row {key:?} is malformed ({reason}); it was written by a newer version or damaged"
    )]
    Row {
        /// Which row.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A kept record whose signature does not hold any more: the store was tampered with.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A node that is not stored here.
    #[error("manifest node {0} is not stored at this branch")]
    NoNode(NodeId),
}

#[derive(Serialize, Deserialize)]
struct ManifestRow {
    size_bytes: u64,
    params: ChunkerParams,
    leaves: Vec<NodeId>,
}

/// See the module.
#[derive(Clone)]
pub struct Catalog {
    kv: Arc<dyn Kv>,
    anchor: TrustAnchor,
}

fn key(prefix: u8, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + name.len());
    key.push(prefix);
    key.extend_from_slice(name);
    key
}

fn malformed(key: &[u8], reason: impl ToString) -> CatalogError {
    CatalogError::Row {
        key: String::from_utf8_lossy(key).into_owned(),
        reason: reason.to_string(),
    }
}

impl Catalog {
    /// Keeps its rows in `kv`; signed records must be of the realm of `anchor`.
    pub fn new(kv: Arc<dyn Kv>, anchor: TrustAnchor) -> Self {
        Self { kv, anchor }
    }

    /// The realm and its root key.
    pub fn anchor(&self) -> &TrustAnchor {
        &self.anchor
    }

    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> Result<(), CatalogError> {
        let mut batch = Batch::new();
        batch.put(key, value);
        Ok(self.kv.commit(batch, Durability::Synced)?)
    }

    /// Publisher keys endorsed by the realm's root, as last told.
    pub fn endorsements(&self) -> Result<Vec<Endorsement>, CatalogError> {
        match self.kv.get(b"e")? {
            Some(row) => postcard::from_bytes(&row).map_err(|e| malformed(b"e", e)),
            None => Ok(Vec::new()),
        }
    }

    /// Keeps endorsements. They are checked whenever they are used.
    pub fn set_endorsements(&self, endorsements: &[Endorsement]) -> Result<(), CatalogError> {
        // Endorsements are added, not replaced: a version signed under an older key must stay readable.
        let mut kept = self.endorsements()?;
        for new in endorsements {
            kept.retain(|old| {
                old.publisher != new.publisher || old.until_unix_s > new.until_unix_s
            });
            if !kept.iter().any(|old| old.publisher == new.publisher) {
                kept.push(new.clone());
            }
        }
        let row = postcard::to_stdvec(&kept).expect("endorsements serialise without failing");
        self.put(b"e".to_vec(), row)
    }

    /// Caps and hours as last told; none of either before the first.
    pub fn policy(&self) -> Result<Policy, CatalogError> {
        match self.kv.get(b"q")? {
            Some(row) => postcard::from_bytes(&row).map_err(|e| malformed(b"q", e)),
            None => Ok(Policy::default()),
        }
    }

    /// Keeps caps and hours, so that they hold from the start of the next connection.
    pub fn set_policy(&self, policy: &Policy) -> Result<(), CatalogError> {
        let row = postcard::to_stdvec(policy).expect("policies serialise without failing");
        self.put(b"q".to_vec(), row)
    }

    /// The assignment being followed.
    pub fn assignment(&self) -> Result<Option<Assignment>, CatalogError> {
        match self.kv.get(b"a")? {
            Some(row) => {
                let signed = Signed::<Assignment>::from_bytes(&row)?;
                Ok(Some(signed.open(
                    &self.anchor,
                    &self.endorsements()?,
                    Trust::Kept,
                )?))
            }
            None => Ok(None),
        }
    }

    /// The assignment being followed, as the datacenter signed it.
    pub fn signed_assignment(&self) -> Result<Option<Vec<u8>>, CatalogError> {
        Ok(self.kv.get(b"a")?)
    }

    /// Follows `assignment`. The caller has checked that its counter goes up.
    pub fn set_assignment(&self, assignment: &Signed<Assignment>) -> Result<(), CatalogError> {
        self.put(b"a".to_vec(), assignment.to_bytes())
    }

    /// A version's record, if it is here.
    pub fn version(&self, id: VersionId) -> Result<Option<VersionRecord>, CatalogError> {
        match self.kv.get(&key(b'v', id.as_bytes()))? {
            Some(row) => {
                let signed = Signed::<VersionRecord>::from_bytes(&row)?;
                Ok(Some(signed.open(
                    &self.anchor,
                    &self.endorsements()?,
                    Trust::Kept,
                )?))
            }
            None => Ok(None),
        }
    }

    /// All versions here.
    pub fn versions(&self) -> Result<Vec<(VersionId, VersionRecord)>, CatalogError> {
        let mut ids = Vec::new();
        self.kv.scan(b"v", b"v", &mut |key, _| {
            ids.extend(VersionId::from_slice(&key[1..]));
            ControlFlow::Continue(())
        })?;
        let mut versions = Vec::new();
        for id in ids {
            versions.extend(self.version(id)?.map(|record| (id, record)));
        }
        Ok(versions)
    }

    /// Keeps a version's record; the caller has opened it.
    pub fn put_version(&self, signed: &Signed<VersionRecord>) -> Result<(), CatalogError> {
        self.put(key(b'v', signed.id().as_bytes()), signed.to_bytes())
    }

    /// Whether a leaf is stored.
    pub fn has_leaf(&self, id: NodeId) -> Result<bool, CatalogError> {
        Ok(self.kv.get(&key(b'n', id.as_bytes()))?.is_some())
    }

    /// Stores verified leaves.
    pub fn put_leaves(&self, leaves: Vec<(NodeId, Vec<u8>)>) -> Result<(), CatalogError> {
        let mut batch = Batch::new();
        for (id, bytes) in leaves {
            batch.put(key(b'n', id.as_bytes()), bytes);
        }
        Ok(self.kv.commit(batch, Durability::Relaxed)?)
    }

    /// A tree's manifest, if all of it is here.
    pub fn manifest(&self, root: NodeId) -> Result<Option<Manifest>, CatalogError> {
        let key = key(b'm', root.as_bytes());
        let Some(row) = self.kv.get(&key)? else {
            return Ok(None);
        };
        let row: ManifestRow = postcard::from_bytes(&row).map_err(|e| malformed(&key, e))?;
        Ok(Some(Manifest {
            size_bytes: row.size_bytes,
            params: row.params,
            leaves: row.leaves,
        }))
    }

    /// Keeps a manifest whose leaves are all stored. The synced commit carries the leaves' relaxed ones before it.
    pub fn put_manifest(&self, root: NodeId, manifest: &Manifest) -> Result<(), CatalogError> {
        let row = ManifestRow {
            size_bytes: manifest.size_bytes,
            params: manifest.params,
            leaves: manifest.leaves.clone(),
        };
        let row = postcard::to_stdvec(&row).expect("manifests serialise without failing");
        self.put(key(b'm', root.as_bytes()), row)
    }

    /// A version's boot profile, if it is here.
    pub fn profile(&self, id: VersionId) -> Result<Option<BootProfile>, CatalogError> {
        match self.kv.get(&key(b'p', id.as_bytes()))? {
            Some(row) => {
                let signed = Signed::<BootProfile>::from_bytes(&row)?;
                Ok(Some(signed.open(
                    &self.anchor,
                    &self.endorsements()?,
                    Trust::Kept,
                )?))
            }
            None => Ok(None),
        }
    }

    /// Keeps a version's boot profile; the caller has accepted it.
    pub fn put_profile(
        &self,
        id: VersionId,
        signed: &Signed<BootProfile>,
    ) -> Result<(), CatalogError> {
        self.put(key(b'p', id.as_bytes()), signed.to_bytes())
    }

    /// Frames of recorded boots that the datacenter has not taken yet, one for each version.
    pub fn recordings(&self) -> Result<Vec<(VersionId, Vec<u8>)>, CatalogError> {
        let mut rows = Vec::new();
        self.kv.scan(b"b", b"b", &mut |key, value| {
            rows.extend(VersionId::from_slice(&key[1..]).map(|id| (id, value.to_vec())));
            ControlFlow::Continue(())
        })?;
        Ok(rows)
    }

    /// Keeps the frame of a recorded boot, instead of an earlier one of the same version.
    pub fn put_recording(&self, id: VersionId, frame: &[u8]) -> Result<(), CatalogError> {
        self.put(key(b'b', id.as_bytes()), frame.to_vec())
    }

    /// Forgets a recorded boot, unless a newer one took its place.
    pub fn delete_recording(&self, id: VersionId, frame: &[u8]) -> Result<(), CatalogError> {
        let key = key(b'b', id.as_bytes());
        if self.kv.get(&key)?.as_deref() == Some(frame) {
            let mut batch = Batch::new();
            batch.delete(key);
            self.kv.commit(batch, Durability::Relaxed)?;
        }
        Ok(())
    }

    /// What was seen of each pool's desktops' writes. A row that cannot be read is as good as none.
    pub fn writes(&self) -> Result<Vec<(String, WriteHistory)>, CatalogError> {
        let mut rows: Vec<(String, WriteHistory)> = Vec::new();
        self.kv.scan(b"w", b"w", &mut |key, value| {
            let pool = std::str::from_utf8(&key[1..]);
            if let (Ok(pool), Ok(history)) = (pool, serde_json::from_slice(value)) {
                rows.push((pool.to_owned(), history));
            }
            ControlFlow::Continue(())
        })?;
        Ok(rows)
    }

    /// Keeps what was seen of some pools. Lost in a crash, it is a minute less.
    pub fn put_writes(&self, changed: &[(String, WriteHistory)]) -> Result<(), CatalogError> {
        let mut batch = Batch::new();
        for (pool, history) in changed {
            let row = serde_json::to_vec(history).expect("numbers serialise without failing");
            batch.put(key(b'w', pool.as_bytes()), row);
        }
        if batch.is_empty() {
            return Ok(());
        }
        Ok(self.kv.commit(batch, Durability::Relaxed)?)
    }

    /// This branch's right to a volume. A lease is believed by its signature, as when it came: who has the disk must not prolong it.
    pub fn hold(&self, volume: DesktopId) -> Result<Option<KeptHold>, CatalogError> {
        let key = key(b'h', volume.as_bytes());
        let Some(row) = self.kv.get(&key)? else {
            return Ok(None);
        };
        let kept: KeptHold = read_row(&row).map_err(|e| malformed(&key, e))?;
        if let Stage::Held { lease, .. } = &kept.row.stage {
            let envelope = kept.lease.as_deref().unwrap_or_default();
            let signed = Signed::<Lease>::from_bytes(envelope)?;
            let signed = signed.open(&self.anchor, &self.endorsements()?, Trust::Kept)?;
            if signed != *lease {
                return Err(malformed(&key, "its lease is not the one that was signed"));
            }
        }
        if kept.row.desktop != volume {
            return Err(malformed(&key, "it is another volume's"));
        }
        Ok(Some(kept))
    }

    /// Volumes that were given up here, of which the datacenter may not know it yet.
    pub fn dropped(&self) -> Result<Vec<DesktopId>, CatalogError> {
        let mut rows = Vec::new();
        self.kv.scan(b"h", b"h", &mut |key, row| {
            rows.push((key.to_vec(), row.to_vec()));
            ControlFlow::Continue(())
        })?;
        let mut dropped = Vec::new();
        for (key, row) in rows {
            let kept: KeptHold = read_row(&row).map_err(|e| malformed(&key, e))?;
            if matches!(kept.row.stage, Stage::Dropped { .. }) {
                dropped.push(kept.row.desktop);
            }
        }
        Ok(dropped)
    }

    /// How far a volume's write-back is.
    pub fn send_row(&self, volume: DesktopId) -> Result<Option<SendRow>, CatalogError> {
        let key = key(b's', volume.as_bytes());
        let row = self.kv.get(&key)?;
        row.map(|row| read_row(&row).map_err(|e| malformed(&key, e)))
            .transpose()
    }

    /// Forgets the right to a volume that is no more, and its write-back.
    pub fn forget_volume(&self, volume: DesktopId) -> Result<(), CatalogError> {
        let mut batch = Batch::new();
        batch.delete(key(b'h', volume.as_bytes()));
        batch.delete(key(b's', volume.as_bytes()));
        batch.delete(key(b't', volume.as_bytes()));
        Ok(self.kv.commit(batch, Durability::Synced)?)
    }

    /// Keeps what a generation of a volume begins with; the caller has opened it, and no overlay lies over it yet.
    pub fn put_state(
        &self,
        volume: DesktopId,
        signed: &Signed<StateRecord>,
    ) -> Result<(), CatalogError> {
        self.put(key(b't', volume.as_bytes()), signed.to_bytes())
    }

    /// What the newest generation of a volume that began behind another branch's, or a former, state began with.
    pub fn state(&self, volume: DesktopId) -> Result<Option<StateRecord>, CatalogError> {
        let key = key(b't', volume.as_bytes());
        let Some(row) = self.kv.get(&key)? else {
            return Ok(None);
        };
        let signed = Signed::<StateRecord>::from_bytes(&row)?;
        let state = signed.open(&self.anchor, &self.endorsements()?, Trust::Kept)?;
        if state.desktop != volume {
            return Err(malformed(&key, "it is another volume's"));
        }
        Ok(Some(state))
    }

    /// The state that a volume's overlay lies over; `None`: it lies over a version, or over nothing.
    pub fn state_under(&self, volume: DesktopId) -> Result<Option<StateRecord>, CatalogError> {
        let Some(state) = self.state(volume)? else {
            return Ok(None);
        };
        let overlay = self.hold(volume)?.map(|kept| kept.overlay);
        Ok((overlay == Some(OverlayOf::Under(state.generation))).then_some(state))
    }

    /// Forgets what a volume's overlay lay over, which is removed.
    pub fn forget_state(&self, volume: DesktopId) -> Result<(), CatalogError> {
        let mut batch = Batch::new();
        batch.delete(key(b't', volume.as_bytes()));
        Ok(self.kv.commit(batch, Durability::Synced)?)
    }

    /// All desktops, by name.
    pub fn desktops(&self) -> Result<Vec<DesktopRecord>, CatalogError> {
        self.desktops_under(b'd')
    }

    fn desktops_under(&self, prefix: u8) -> Result<Vec<DesktopRecord>, CatalogError> {
        let mut rows = Vec::new();
        self.kv.scan(&[prefix], &[prefix], &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
        rows.into_iter()
            .map(|(key, row)| serde_json::from_slice(&row).map_err(|e| malformed(&key, e)))
            .collect()
    }

    /// Keeps a desktop.
    pub fn put_desktop(&self, desktop: &DesktopRecord) -> Result<(), CatalogError> {
        let row = serde_json::to_vec(desktop).expect("desktop records serialise without failing");
        self.put(key(b'd', desktop.name.as_bytes()), row)
    }

    /// Takes in a desktop whose volumes are somewhere else: what they go on behind comes with their leases. All at once; a volume that was here
    /// before stays as it is.
    pub fn take_in_moved(
        &self,
        desktop: &DesktopRecord,
        volumes: &[DesktopId],
    ) -> Result<(), CatalogError> {
        let mut batch = Batch::new();
        for volume in volumes {
            let key = key(b'h', volume.as_bytes());
            if self.kv.get(&key)?.is_none() {
                let kept = KeptHold {
                    row: HoldRow::new(*volume),
                    lease: None,
                    overlay: OverlayOf::Gone,
                };
                batch.put(key, write_row(&kept));
            }
        }
        let row = serde_json::to_vec(desktop).expect("desktop records serialise without failing");
        batch.put(key(b'd', desktop.name.as_bytes()), row);
        Ok(self.kv.commit(batch, Durability::Synced)?)
    }

    /// Desktops that are tried out and thrown away.
    pub fn trials(&self) -> Result<Vec<DesktopRecord>, CatalogError> {
        self.desktops_under(b'y')
    }

    /// Keeps one that is tried out, so that nothing of it is left after a crash.
    pub fn put_trial(&self, desktop: &DesktopRecord) -> Result<(), CatalogError> {
        let row = serde_json::to_vec(desktop).expect("desktop records serialise without failing");
        self.put(key(b'y', desktop.name.as_bytes()), row)
    }

    /// Forgets one that was thrown away.
    pub fn delete_trial(&self, name: &str) -> Result<(), CatalogError> {
        let mut batch = Batch::new();
        batch.delete(key(b'y', name.as_bytes()));
        Ok(self.kv.commit(batch, Durability::Synced)?)
    }

    /// Forgets a desktop.
    pub fn delete_desktop(&self, name: &str) -> Result<(), CatalogError> {
        let mut batch = Batch::new();
        batch.delete(key(b'd', name.as_bytes()));
        Ok(self.kv.commit(batch, Durability::Synced)?)
    }
}

impl Rows for Catalog {
    fn keep_hold(&self, kept: &KeptHold) -> Result<(), CatalogError> {
        self.put(key(b'h', kept.row.desktop.as_bytes()), write_row(kept))
    }

    fn keep_send(&self, row: &SendRow) -> Result<(), CatalogError> {
        self.put(key(b's', row.line.desktop.as_bytes()), write_row(row))
    }

    fn open_lease(&self, envelope: &[u8], now_unix_s: u64) -> Result<Lease, CatalogError> {
        let signed = Signed::<Lease>::from_bytes(envelope)?;
        Ok(signed.open(
            &self.anchor,
            &self.endorsements()?,
            Trust::New { now_unix_s },
        )?)
    }
}

impl NodeSource for Catalog {
    type Error = CatalogError;

    fn node(&self, id: NodeId) -> Result<Bytes, CatalogError> {
        let leaf = self.kv.get(&key(b'n', id.as_bytes()))?;
        leaf.map(Bytes::from).ok_or(CatalogError::NoNode(id))
    }
}
