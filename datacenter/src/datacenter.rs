//! The datacenter as a value: realm, catalog and chunk store, and what the parts of the daemon ask of them.
//!
//! It owns no sockets and no threads; the sync server, the management API and publish stand on it and share it.
//! Invariant: a version that [`Datacenter::version`] answers is complete in the store and signed by this realm.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use datacenter_api::BranchStatus;
use dedup::{BranchId, IdKey, RealmId, VersionId};
use dedup_protocol::records::VersionRecord;
use dedup_protocol::trust::{Endorsement, Signed, SigningKey, TrustAnchor, TrustError};
use dedup_store::ChunkStore;
use dedup_transport::identity::RealmCa;
use tokio::sync::watch;

use crate::catalog::rows::VersionRow;
use crate::catalog::{Catalog, CatalogError};
use crate::clock::Clock;
use crate::config::Config;
use crate::identity::Identity;
use crate::metrics::Observed;
use crate::operations::Operations;
use crate::realm::Realm;
use crate::realm::files::DataDir;
use crate::rollouts::Rollouts;
use crate::roots::InUse;
use crate::update::Updates;
use crate::upkeep::Upkeep;
use crate::volumes::Volumes;

/// The datacenter.
pub struct Datacenter {
    realm: Realm,
    /// As in the realm, but renewed while the daemon runs.
    endorsements: RwLock<Vec<Endorsement>>,
    catalog: Catalog,
    store: Arc<ChunkStore>,
    clock: Arc<dyn Clock>,
    config: Config,
    dir: DataDir,
    operations: Operations,
    updates: Updates,
    upkeep: Upkeep,
    started_unix_s: u64,
    assignment_changes: watch::Sender<u64>,
    /// Records that were asked for; versions are immutable and few.
    versions: Mutex<HashMap<VersionId, Arc<Signed<VersionRecord>>>>,
    /// Where links that are up come from, per branch; a branch that reconnects has two for a moment.
    links: Mutex<HashMap<BranchId, Vec<SocketAddr>>>,
    statuses: Mutex<HashMap<BranchId, (u64, BranchStatus)>>,
    /// Versions that are being read.
    in_use: InUse,
    /// Images that are being published.
    publishing: Mutex<HashSet<String>>,
    /// Files that versions are being exported to.
    exporting: Mutex<HashSet<PathBuf>>,
    /// Held by who makes boot profiles: one at a time.
    profiling: Mutex<()>,
    /// Whether a backup is at work.
    backing_up: AtomicBool,
    /// Volumes of desktops that are worked with.
    volumes: Volumes,
    /// Who calls, and what they may do.
    identity: Identity,
    observed: Observed,
    /// Rollouts that are under way.
    rollouts: Rollouts,
}

/// Why a version could not be had.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// The catalog could not answer.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Its record cannot be read.
    #[error("the record of version {version}")]
    Record {
        /// The version.
        version: VersionId,
        /// Why.
        source: TrustError,
    },
}

impl From<VersionError> for crate::problem::ManageError {
    fn from(error: VersionError) -> Self {
        match error {
            VersionError::Catalog(e) => e.into(),
            other => Self::Manifest {
                message: crate::problem::describe(&other),
            },
        }
    }
}

/// Counts a branch's link as up for as long as it lives.
pub struct LinkPresence {
    datacenter: Arc<Datacenter>,
    branch: BranchId,
    remote: SocketAddr,
}

impl Drop for LinkPresence {
    fn drop(&mut self) {
        let mut links = lock(&self.datacenter.links);
        if let Some(remotes) = links.get_mut(&self.branch) {
            if let Some(ours) = remotes.iter().position(|r| *r == self.remote) {
                remotes.remove(ours);
            }
            if remotes.is_empty() {
                links.remove(&self.branch);
                drop(links);
                self.datacenter.forget_volumes_of(self.branch);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing leaves these maps half changed, so a panic elsewhere does not spoil them.
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Datacenter {
    /// Puts the parts together. Operations that a former process left running are marked as interrupted.
    pub fn new(
        realm: Realm,
        catalog: Catalog,
        store: Arc<ChunkStore>,
        clock: Arc<dyn Clock>,
        config: Config,
        dir: DataDir,
    ) -> Result<Arc<Self>, CatalogError> {
        let started_unix_s = clock.unix_s();
        let operations = Operations::open(catalog.clone(), clock.clone())?;
        // Of the realm's secrets the one that is text and never changes.
        let identity = Identity::new(realm.ca.key_pem().as_bytes());
        Ok(Arc::new(Self {
            endorsements: RwLock::new(realm.endorsements.clone()),
            realm,
            catalog,
            store,
            clock,
            config,
            updates: Updates::new(dir.updates()),
            upkeep: Upkeep::default(),
            dir,
            operations,
            started_unix_s,
            assignment_changes: watch::Sender::new(0),
            versions: Mutex::default(),
            links: Mutex::default(),
            statuses: Mutex::default(),
            in_use: InUse::default(),
            publishing: Mutex::default(),
            exporting: Mutex::default(),
            profiling: Mutex::default(),
            backing_up: AtomicBool::default(),
            volumes: Volumes::default(),
            identity,
            observed: Observed::default(),
            rollouts: Rollouts::default(),
        }))
    }

    /// The catalog.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The chunk store.
    pub fn store(&self) -> &Arc<ChunkStore> {
        &self.store
    }

    /// The secret that content is named under.
    pub fn id_key(&self) -> &IdKey {
        &self.realm.id_key
    }

    /// The realm.
    pub fn realm(&self) -> RealmId {
        self.realm.id
    }

    /// The realm's name, for people.
    pub fn realm_name(&self) -> &str {
        &self.realm.name
    }

    /// What branches are to trust.
    pub fn anchor(&self) -> TrustAnchor {
        self.realm.anchor()
    }

    /// Publisher keys that the root endorses.
    pub fn endorsements(&self) -> Vec<Endorsement> {
        self.endorsements
            .read()
            .unwrap_or_else(|e| e.into_inner())
            .clone()
    }

    /// Takes renewed endorsements and lets branches know.
    pub fn renew_endorsements(&self, endorsements: Vec<Endorsement>) {
        *self.endorsements.write().unwrap_or_else(|e| e.into_inner()) = endorsements;
        self.announce_assignments();
    }

    /// The certificate authority.
    pub fn ca(&self) -> &RealmCa {
        &self.realm.ca
    }

    /// The publisher key.
    pub(crate) fn publisher(&self) -> &SigningKey {
        &self.realm.publisher
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The data folder.
    pub fn dir(&self) -> &DataDir {
        &self.dir
    }

    /// Whether a path, with no link in it, lies in the data folder, where the keys to everything are.
    pub fn owns(&self, real: &Path) -> bool {
        let root = self.dir.root().canonicalize();
        root.is_ok_and(|root| real.starts_with(root))
    }

    /// Bytes free on the disk that the store is on; 0 where the system does not say.
    pub fn free_bytes(&self) -> u64 {
        rustix::fs::statvfs(self.dir.root())
            .map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Whether the root signing key has not been moved offline yet.
    pub fn root_key_present(&self) -> bool {
        self.dir.root_key().exists()
    }

    /// Long work.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Encoded updates.
    pub fn updates(&self) -> &Updates {
        &self.updates
    }

    /// What looks after the chunk store.
    pub fn upkeep(&self) -> &Upkeep {
        &self.upkeep
    }

    /// Who calls, and what they may do.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What is kept for metrics, health and support.
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    pub(crate) fn rollouts_active(&self) -> &Rollouts {
        &self.rollouts
    }

    pub(crate) fn volumes(&self) -> &Volumes {
        &self.volumes
    }

    pub(crate) fn in_use(&self) -> &InUse {
        &self.in_use
    }

    /// The time, unix seconds.
    pub fn now_unix_s(&self) -> u64 {
        self.clock.unix_s()
    }

    /// When this process took over, unix seconds.
    pub fn started_unix_s(&self) -> u64 {
        self.started_unix_s
    }

    /// Changes whenever some branch's assignment, the endorsements or a boot profile did.
    pub fn assignment_changes(&self) -> watch::Receiver<u64> {
        self.assignment_changes.subscribe()
    }

    pub(crate) fn announce_assignments(&self) {
        self.assignment_changes.send_modify(|count| *count += 1);
    }

    /// A visible version's signed record.
    pub fn version(
        &self,
        id: VersionId,
    ) -> Result<Option<Arc<Signed<VersionRecord>>>, VersionError> {
        // Held over the look into the catalog, as whoever deletes versions does: what is deleted is not remembered.
        let mut versions = self.remembered();
        if let Some(signed) = versions.get(&id) {
            return Ok(Some(signed.clone()));
        }
        let row = self.catalog.read(|tx| tx.get::<VersionRow>(&id))?;
        let Some(row) = row else { return Ok(None) };
        let bad = |source| VersionError::Record {
            version: id,
            source,
        };
        let signed: Signed<VersionRecord> = Signed::from_bytes(&row.signed).map_err(bad)?;
        // Parsed once here, so that what is handed out is known to be readable.
        signed.open_own().map_err(bad)?;
        let signed = Arc::new(signed);
        versions.insert(id, signed.clone());
        Ok(Some(signed))
    }

    /// The records that were asked for. Whoever takes versions out of the catalog's sight holds this from before that until they are
    /// out of here too, so that nobody finds here what may be given up.
    pub(crate) fn remembered(
        &self,
    ) -> MutexGuard<'_, HashMap<VersionId, Arc<Signed<VersionRecord>>>> {
        lock(&self.versions)
    }

    /// Counts a branch's link, which comes from `remote`, as up until the answer is dropped.
    pub fn link_up(self: &Arc<Self>, branch: BranchId, remote: SocketAddr) -> LinkPresence {
        lock(&self.links).entry(branch).or_default().push(remote);
        LinkPresence {
            datacenter: self.clone(),
            branch,
            remote,
        }
    }

    /// Where a branch's newest link comes from, if one is up.
    pub fn link_remote(&self, branch: BranchId) -> Option<SocketAddr> {
        lock(&self.links).get(&branch)?.last().copied()
    }

    /// How many branches' links are up.
    pub fn online_count(&self) -> u64 {
        lock(&self.links).len() as u64
    }

    pub(crate) fn statuses(&self) -> MutexGuard<'_, HashMap<BranchId, (u64, BranchStatus)>> {
        lock(&self.statuses)
    }

    pub(crate) fn profiling(&self) -> MutexGuard<'_, ()> {
        lock(&self.profiling)
    }

    pub(crate) fn exporting(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        lock(&self.exporting)
    }

    pub(crate) fn backing_up(&self) -> &AtomicBool {
        &self.backing_up
    }

    pub(crate) fn publishing(&self) -> MutexGuard<'_, HashSet<String>> {
        lock(&self.publishing)
    }
}
