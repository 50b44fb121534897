//! What the catalog needs of a database: serialisable transactions over tables of ordered keys.
//!
//! [`Backend`] is small enough for an SQL engine (a table is a table, a key its primary key, a scan an ordered range).
//! [`KvBackend`] is the embedded one: one writer at a time over an ordered key-value store, so that every transaction sees a
//! still catalog and commits as one batch.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, RwLock};

use dedup_store::kv::{Batch, Durability, Kv, KvError};

use super::CatalogError;

/// The catalog's tables. The numbers are on disk and never reused; `docs/disk-formats/catalog.md` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Table {
    /// Format of the catalog and realm it belongs to.
    Meta = 1,
    /// Images by name.
    Images = 2,
    /// Visible versions by id.
    Versions = 3,
    /// Version ids by image and number, newest first.
    VersionNumbers = 4,
    /// Branches by id.
    Branches = 5,
    /// Branch ids by name.
    BranchNames = 6,
    /// Join tokens by the hash of their secret.
    JoinTokens = 7,
    /// What each pool at each branch is to run.
    Pools = 8,
    /// The current signed assignment of each branch.
    Assignments = 9,
    /// Versions that a branch was ever assigned.
    Grants = 10,
    /// Long work, newest first.
    Operations = 11,
    /// Tokens of the management API by their hash.
    ApiTokens = 12,
    /// What branches last reported.
    BranchStatus = 13,
    /// Caps and hours of branches that have any.
    BranchPolicies = 20,
    /// What is known of how versions boot, by version.
    BootProfiles = 21,
    /// Signed boot profiles, by version.
    SignedProfiles = 22,
    /// Recorded boots that profiles are made of, by version and number.
    BootRecordings = 23,
    /// Which chunks of its parent a version's new ones took the place of, by version.
    ChunkKin = 24,
    /// Versions that were deleted and can still be had back, by id.
    DeletedVersions = 30,
    /// Versions that must not be deleted, by id.
    VersionPins = 31,
    /// How long images keep their versions, by name.
    Retentions = 32,
    /// That the datacenter was restored from a backup, and from where its counters go on.
    Restores = 40,
    /// Branches that follow an assignment which a restored datacenter does not remember.
    Ahead = 41,
    /// Volumes of desktops that branches told of, by id.
    Volumes = 50,
    /// Who may write each volume.
    Authorities = 51,
    /// What was written to volumes, and to forks of them.
    Lines = 52,
    /// Parts of segments that are on their way.
    StagedParts = 53,
    /// What generations began with, for as long as forks of them may come.
    Begins = 54,
    /// Snapshots of volumes, by volume and number.
    Snapshots = 55,
    /// Leases and snapshots of pools that do not have the usual ones.
    StatePolicies = 56,
    /// What somebody has to answer for, newest first.
    Audit = 57,
    /// Moves of desktops to other branches, by the volumes that move.
    Moves = 58,
    /// Desktops that are checked out, by laptop and system volume.
    Checkouts = 60,
    /// Orders to wipe, by branch and number.
    Wipes = 61,
    /// People's accounts by name.
    Accounts = 70,
    /// Groups of people by name.
    Groups = 71,
    /// Who may use which pool.
    Entitlements = 72,
    /// Sessions by the hash of their secret.
    Sessions = 73,
    /// One-time codes for administrators' accounts, by their hash.
    SetupCodes = 74,
    /// The current signed roster of each branch.
    Rosters = 75,
    /// Which version each channel of each image is at.
    Channels = 80,
    /// Rollouts, newest first.
    Rollouts = 81,
}

/// Is shown a table's number with a key, and the row there; may break.
pub type RowVisitor<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// A stored row: its key and its bytes.
pub type RawRow = (Vec<u8>, Vec<u8>);

/// What can be done inside a transaction.
pub trait Transaction {
    /// The row at `key`, own changes included.
    fn get(&mut self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, CatalogError>;
    /// Inserts or replaces a row.
    fn put(&mut self, table: Table, key: &[u8], row: Vec<u8>);
    /// Removes a row, if it is there.
    fn delete(&mut self, table: Table, key: &[u8]);
    /// At most `limit` rows whose keys begin with `prefix` and are ≥ `from`, in the order of their keys.
    fn scan(
        &mut self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<RawRow>, CatalogError>;
}

/// Whether a transaction's changes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All of them.
    Commit,
    /// None of them.
    RollBack,
}

/// A database under the catalog.
pub trait Backend: Send + Sync + 'static {
    /// Runs `work` in a serialisable transaction. A backend that detects conflicts late may call `work` again, so it must have
    /// no effect but on the transaction. With [`Durability::Synced`] a commit is durable on return.
    fn transact(
        &self,
        durability: Durability,
        work: &mut dyn FnMut(&mut dyn Transaction) -> Outcome,
    ) -> Result<(), CatalogError>;

    /// Runs `work` on a still catalog; its changes are dropped.
    fn read(&self, work: &mut dyn FnMut(&mut dyn Transaction)) -> Result<(), CatalogError>;

    /// Visits every row as of one moment, in order, until the visitor breaks. Holds up nobody, however long it takes.
    fn dump(&self, visit: &mut RowVisitor<'_>) -> Result<(), CatalogError>;
}

/// The embedded backend.
pub struct KvBackend {
    kv: Arc<dyn Kv>,
    /// Held for writing by the one transaction that may change the catalog, for reading by those that only look.
    turn: RwLock<()>,
}

impl KvBackend {
    /// Uses all of `kv`.
    pub fn new(kv: Arc<dyn Kv>) -> Self {
        Self {
            kv,
            turn: RwLock::new(()),
        }
    }
}

impl Backend for KvBackend {
    fn transact(
        &self,
        durability: Durability,
        work: &mut dyn FnMut(&mut dyn Transaction) -> Outcome,
    ) -> Result<(), CatalogError> {
        let _alone = Alone::enter();
        // A panic inside `work` leaves nothing half done: changes reach the store only in `commit`.
        let _turn = self.turn.write().unwrap_or_else(|e| e.into_inner());
        let mut tx = KvTransaction::new(&*self.kv);
        if work(&mut tx) == Outcome::RollBack || tx.pending.is_empty() {
            return Ok(());
        }
        let changes = tx.pending.into_iter().collect();
        self.kv.commit(Batch { changes }, durability)?;
        Ok(())
    }

    fn read(&self, work: &mut dyn FnMut(&mut dyn Transaction)) -> Result<(), CatalogError> {
        let _alone = Alone::enter();
        let _turn = self.turn.read().unwrap_or_else(|e| e.into_inner());
        work(&mut KvTransaction::new(&*self.kv));
        Ok(())
    }

    fn dump(&self, visit: &mut RowVisitor<'_>) -> Result<(), CatalogError> {
        // One scan sees the state at the call, and each transaction is one batch: no turn is needed.
        self.kv.scan(b"", b"", &mut |key, row| visit(key, row))?;
        Ok(())
    }
}

thread_local! {
    static IN_TRANSACTION: Cell<bool> = const { Cell::new(false) };
}

/// This thread is in a transaction. One inside the other would stand still for good, but only when a writer comes between the
/// two; so it fails always, and is found by whoever calls it first.
struct Alone;

impl Alone {
    fn enter() -> Self {
        let nested = IN_TRANSACTION.replace(true);
        assert!(!nested, "a catalog transaction inside another one");
        Self
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        IN_TRANSACTION.set(false);
    }
}

struct KvTransaction<'a> {
    kv: &'a dyn Kv,
    pending: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl<'a> KvTransaction<'a> {
    fn new(kv: &'a dyn Kv) -> Self {
        Self {
            kv,
            pending: BTreeMap::new(),
        }
    }
}

fn full_key(table: Table, key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(1 + key.len());
    full.push(table as u8);
    full.extend_from_slice(key);
    full
}

impl Transaction for KvTransaction<'_> {
    fn get(&mut self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, CatalogError> {
        let key = full_key(table, key);
        if let Some(row) = self.pending.get(&key) {
            return Ok(row.clone());
        }
        Ok(self.kv.get(&key)?)
    }

    fn put(&mut self, table: Table, key: &[u8], row: Vec<u8>) {
        self.pending.insert(full_key(table, key), Some(row));
    }

    fn delete(&mut self, table: Table, key: &[u8]) {
        self.pending.insert(full_key(table, key), None);
    }

    fn scan(
        &mut self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<RawRow>, CatalogError> {
        let prefix = full_key(table, prefix);
        let start = prefix.clone().max(full_key(table, from));
        // Each pending deletion hides at most one stored row, so this many are enough for `limit` visible ones.
        let wanted = limit.saturating_add(self.pending.len());
        let mut rows: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut complete = true;
        self.kv.scan(&prefix, &start, &mut |key, row| {
            if rows.len() == wanted {
                complete = false;
                return ControlFlow::Break(());
            }
            rows.insert(key.to_vec(), row.to_vec());
            ControlFlow::Continue(())
        })?;
        // Rows of ours beyond the last stored row that was read would leave a gap.
        let horizon = (!complete)
            .then(|| rows.keys().next_back().cloned())
            .flatten();
        for (key, row) in self.pending.range(start..) {
            if !key.starts_with(&prefix) || horizon.as_ref().is_some_and(|h| key > h) {
                break;
            }
            match row {
                Some(row) => rows.insert(key.clone(), row.clone()),
                None => rows.remove(key),
            };
        }
        let strip = |(key, row): (Vec<u8>, Vec<u8>)| (key[1..].to_vec(), row);
        Ok(rows.into_iter().take(limit).map(strip).collect())
    }
}

impl From<KvError> for CatalogError {
    fn from(error: KvError) -> Self {
        match error {
            KvError::NoSpace { path } => CatalogError::NoSpace { path },
            other => CatalogError::Store(other),
        }
    }
}
