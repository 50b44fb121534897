//! Backing up, restoring, and branches as a datacenter sees them.
#![allow(clippy::unwrap_used, missing_docs, dead_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use datacenter::Datacenter;
use datacenter::backup::folder::Folder;
use datacenter::backup::machine::{self, RestoreOptions};
use datacenter::backup::{BackupError, operation};
use datacenter::clock::SetClock;
use datacenter::daemon::{self, RunOptions};
use datacenter::operations::Meter;
use datacenter_api::{AssignRequest, BackupResult, BranchIntroduction, BranchStatus, TokenRequest};
use dedup::BranchId;
use dedup_protocol::join::JoinToken;
use dedup_protocol::records::Assignment;
use dedup_protocol::trust::Signed;
use dedup_store::disk::HostDisk;
use dedup_transport::identity::BranchKey;

use super::{Bench, START, sparse_disk};

pub fn folder(path: &Path) -> Folder {
    let disk = HostDisk::new(path).unwrap();
    Folder::new(Arc::new(disk), path.display().to_string())
}

pub fn backup(bench: &Bench, place: &Path) -> Result<BackupResult, BackupError> {
    operation::run(&bench.dc, &folder(place), false, &Meter::default())
}

pub fn options(bench: &Bench, place: &Path, data: &Path) -> RestoreOptions {
    RestoreOptions {
        folder: place.into(),
        s3_file: None,
        data: data.into(),
        passphrase_file: bench.path("secrets/passphrase"),
        revoke: Vec::new(),
        accept_damage: false,
    }
}

pub fn restored(options: &RestoreOptions) -> anyhow::Result<Vec<String>> {
    machine::restore(options, &SetClock::new(START), &mut |_, _, _| {})
}

/// A datacenter that lives on in another data folder, as the daemon would open it, at the time of the bench's.
pub struct Restored {
    pub dc: Arc<Datacenter>,
    _lock: datacenter::realm::files::DataLock,
}

pub fn open(data: &Path) -> Restored {
    let clock = Arc::new(SetClock::new(START));
    let (dc, lock) = daemon::open_at(data, &RunOptions::default(), clock).unwrap();
    Restored { dc, _lock: lock }
}

pub fn publish(bench: &Bench, image: &str, seed: u64) {
    let disk = bench.path(&format!("disk-{seed}.raw"));
    sparse_disk(&disk, 4 << 20, &[(0, 300_000), (2 << 20, 200_000)], seed);
    bench.publish(image, &disk).unwrap();
}

pub fn join(dc: &Datacenter, name: &str) -> BranchId {
    let made = dc.create_join_token(name, &TokenRequest::default());
    let token: JoinToken = made.unwrap().token.parse().unwrap();
    let key = BranchKey::generate();
    let joined = dc.redeem_join_token(&token.secret, key.csr_der(), dc.now_unix_s());
    joined.unwrap().branch
}

pub fn assign(dc: &Datacenter, branch: &str, pool: &str, version: &str) {
    let request = AssignRequest {
        version: version.into(),
        ..AssignRequest::default()
    };
    dc.assign_pool(branch, pool, &request).unwrap();
}

pub fn current(dc: &Datacenter, branch: BranchId) -> Signed<Assignment> {
    dc.assignment(branch).unwrap().unwrap()
}

pub fn counter(dc: &Datacenter, branch: BranchId) -> u64 {
    current(dc, branch).open_own().unwrap().counter
}

/// What a branch tells after its greeting.
pub fn introduce(
    dc: &Datacenter,
    branch: BranchId,
    name: &str,
    follows: Option<&Signed<Assignment>>,
) {
    let status = BranchStatus {
        introduction: Some(BranchIntroduction {
            name: name.into(),
            assignment: follows.map(|signed| hex::encode(signed.to_bytes())),
        }),
        ..BranchStatus::default()
    };
    dc.record_branch_status(branch, status).unwrap();
}

pub fn files(place: &Path) -> Vec<PathBuf> {
    let list = |dir: &Path| {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|e| e.unwrap().path()).collect::<Vec<_>>()
    };
    let mut found = list(place);
    found.extend(list(&place.join("packs")));
    found.retain(|path| path.is_file());
    found.sort();
    found
}
