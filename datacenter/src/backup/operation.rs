//! Backups as the API starts them: one at a time, into a folder that may be written to.

use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use datacenter_api::{
    BackupRequest, BackupResult, Operation, OperationKind, OperationResult, Problem, ProblemCode,
};
use dedup_store::disk::HostDisk;

use super::bucket::Bucket;
use super::bucket::settings::{BucketPlace, Settings};
use super::folder::Folder;
use super::manifest::ManifestError;
use super::{BackupError, Source, backup, read_file};
use crate::datacenter::Datacenter;
use crate::operations::Meter;
use crate::problem::{ManageError, catalog_problem, describe, problem, store_problem};

/// Held by the one backup that is at work.
struct Turn(Arc<Datacenter>);

impl Turn {
    fn take(dc: &Arc<Datacenter>) -> Result<Self, ManageError> {
        if dc.backing_up().swap(true, Ordering::AcqRel) {
            return Err(ManageError::conflict(
                "a backup is at work already",
                "wait until it is done: `splice operation list`",
            ));
        }
        Ok(Self(Arc::clone(dc)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.backing_up().store(false, Ordering::Release);
    }
}

/// Starts a backup. What can be refused at once is.
pub fn start(dc: &Arc<Datacenter>, request: BackupRequest) -> Result<Operation, ManageError> {
    let turn = Turn::take(dc)?;
    let (folder, path) = match BucketPlace::is_meant(&request.folder) {
        true => (bucket(dc, &request.folder)?, None),
        false => {
            let path = PathBuf::from(&request.folder);
            (on_host(dc, &path)?, Some(path))
        }
    };
    dc.operations().start(
        OperationKind::Backup,
        request.folder,
        move |meter| match run(&turn.0, &folder, request.verify, meter) {
            Ok(mut result) => {
                result.warnings = warnings(&turn.0, path.as_deref(), &result);
                Ok(OperationResult::Backup(result))
            }
            Err(error) => Err((&error).into()),
        },
    )
}

/// A folder on the datacenter's host, which is made.
fn on_host(dc: &Datacenter, path: &Path) -> Result<Folder, ManageError> {
    check_path(dc, path)?;
    let disk = HostDisk::new(path).map_err(|e| {
        ManageError::invalid(format!(
            "the folder {} cannot be made: {}",
            path.display(),
            describe(&e)
        ))
    })?;
    Ok(Folder::new(Arc::new(disk), path.display().to_string()))
}

/// A folder in a bucket.
fn bucket(dc: &Datacenter, text: &str) -> Result<Folder, ManageError> {
    if !dc.config().backup_dirs.is_empty() {
        return Err(ManageError::invalid(format!(
            "{text}: backups are limited to the configured backup_dirs"
        )));
    }
    open_bucket(text, &dc.dir().buckets()).map_err(|error| ManageError::invalid(describe(&*error)))
}

/// The folder in a bucket that a text names, by the settings in a file.
pub(super) fn open_bucket(
    text: &str,
    settings: &Path,
) -> Result<Folder, Box<dyn std::error::Error + Send + Sync>> {
    let place = BucketPlace::parse(text)?;
    let bucket = Bucket::new(place, Settings::read(settings)?)?;
    Ok(Folder::in_bucket(bucket, text))
}

/// Backs up into a folder; long.
pub fn run(
    dc: &Datacenter,
    folder: &Folder,
    verify: bool,
    meter: &Meter,
) -> Result<BackupResult, BackupError> {
    let dir = dc.dir();
    let source = Source {
        catalog: dc.catalog(),
        store: dc.store(),
        realm: dc.realm(),
        name: dc.realm_name(),
        id_key: dc.id_key(),
        publisher: dc.publisher(),
        files: [
            read_file(&dir.realm(), false)?,
            read_file(&dir.sealed(), false)?,
            read_file(&dir.config(), true)?,
        ],
        now_unix_s: dc.now_unix_s(),
    };
    let result = backup(&source, folder, verify, meter)?;
    tracing::info!(
        folder = folder.shown(),
        number = result.number,
        copied_bytes = result.copied_bytes,
        "the datacenter is backed up"
    );
    Ok(result)
}

/// Where a path leads, whether or not all of it is there.
fn real(path: &Path) -> Option<PathBuf> {
    let mut missing = Vec::new();
    let mut there = path;
    loop {
        if let Ok(real) = there.canonicalize() {
            return Some(
                missing
                    .iter()
                    .rev()
                    .fold(real, |path, name| path.join(name)),
            );
        }
        missing.push(there.file_name()?);
        there = there.parent()?;
    }
}

fn check_path(dc: &Datacenter, path: &Path) -> Result<(), ManageError> {
    let refuse = |reason: &str| {
        Err(ManageError::invalid(format!(
            "{}: {reason}",
            path.display()
        )))
    };
    if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
        return refuse("not an absolute path of a folder on the datacenter's host");
    }
    let Some(place) = real(path) else {
        return refuse("not a path of a folder on the datacenter's host");
    };
    if real(dc.dir().root()).is_some_and(|data| place.starts_with(data)) {
        return refuse(
            "inside the data folder, whose loss it is to survive; use another disk or another machine's",
        );
    }
    let dirs = &dc.config().backup_dirs;
    let allowed = |dir: &PathBuf| real(dir).is_some_and(|dir| place.starts_with(dir));
    if !dirs.is_empty() && !dirs.iter().any(allowed) {
        return refuse("not in one of the configured backup_dirs");
    }
    Ok(())
}

fn warnings(dc: &Datacenter, path: Option<&Path>, result: &BackupResult) -> Vec<String> {
    let mut warnings = Vec::new();
    let passphrase = dc.config().passphrase_file.clone();
    let passphrase = passphrase.unwrap_or_else(|| dc.dir().passphrase());
    warnings.push(format!(
        "nothing can be restored without the passphrase in {}, which is not in the backup: keep a copy of it elsewhere",
        passphrase.display()
    ));
    let device = |path: &Path| path.metadata().map(|m| m.dev()).ok();
    if path.is_some_and(|path| device(path) == device(dc.dir().root())) {
        warnings.push(
            "the backup is on the datacenter's own file system and will be lost with it".into(),
        );
    }
    if result.damaged > 0 {
        warnings.push(format!(
            "{} pieces of packs are damaged in the store and in the backup; `splice version verify` tells of which versions",
            result.damaged
        ));
    }
    warnings
}

impl From<&BackupError> for Problem {
    fn from(error: &BackupError) -> Self {
        let message = describe(error);
        let with = |code, help: &str| problem(code, message.clone(), Some(help.into()));
        match error {
            BackupError::Folder(e) if e.is_no_space() => with(
                ProblemCode::Unavailable,
                "free space there or use another folder, then back up again; what was copied is reused, and the backup before is as it was",
            ),
            BackupError::Folder(_) => with(
                ProblemCode::Unavailable,
                "check the backup's disk or bucket, then back up again; the backup before is as it was",
            ),
            BackupError::Replacing(_) => with(
                ProblemCode::Unavailable,
                "check the backup's disk or bucket and the room there, then back up again; what can be restored is this backup or the one before, either of them whole",
            ),
            BackupError::Unswept(_) => with(
                ProblemCode::Unavailable,
                "this backup can be restored; check the backup's disk or bucket: what is left beside it goes with the next backup",
            ),
            BackupError::Manifest {
                source: ManifestError::Format(_),
                ..
            } => with(
                ProblemCode::Conflict,
                "use the newer program, or another folder",
            ),
            BackupError::Manifest { .. } => with(
                ProblemCode::Conflict,
                "use another folder; if nothing in this one is needed any more, remove it first",
            ),
            BackupError::OtherRealm { .. }
            | BackupError::Diverged { .. }
            | BackupError::NotEmpty { .. } => with(
                ProblemCode::Conflict,
                "use another folder, an empty one or a new one",
            ),
            BackupError::Superseded { .. } => with(
                ProblemCode::Conflict,
                "this datacenter was replaced by a restored one and should be stopped; to keep what it has, back up into another folder",
            ),
            BackupError::Store(e) => match store_problem(e, message.clone()) {
                Problem { help: None, .. } => with(
                    ProblemCode::Internal,
                    "check the datacenter's disk; if a pack is gone for good, stop the datacenter, remove the folder `index` in its data folder and start it again, then publish again what `splice version verify` misses",
                ),
                told => told,
            },
            BackupError::Catalog(e) => catalog_problem(e, message),
            BackupError::Row => problem(ProblemCode::Internal, message, None),
            BackupError::Realm { .. } => with(
                ProblemCode::Unavailable,
                "check the files in the data folder, then back up again",
            ),
            BackupError::Cancelled => with(
                ProblemCode::Unavailable,
                "back up again; what was copied is reused, and the backup before is as it was",
            ),
        }
    }
}
