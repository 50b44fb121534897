//! Backup of the datacenter itself, while it works: realm, catalog and packs into a folder or a bucket, and back.
//!
//! The order is: packs are kept where they are, the catalog is looked at, then the pack that grows is sealed and all closed packs are
//! listed. A version is in the catalog only after its chunks are durable in packs; so whatever a catalog of one moment speaks of lies in the
//! packs of any later one, as long as none of them goes away. The other way around, a publish between the two would be in the catalog
//! and not in the packs. Decision 0040 has the argument, and what branches that went on after the backup mean for a restore.
//!
//! Invariant: a folder's manifest names only objects that are there, whole and durable; it is replaced last, in one step. So a backup that
//! dies leaves the one before as it was, and the next goes on with the packs that the dead one copied. Packs that are in the folder
//! already are proven, not copied.
//!
//! Start reading at [`backup`]; then [`folder`] and [`bucket`] (the place), [`manifest`] (what is in it), [`snapshot`] (the catalog as a file),
//! [`restore`] (back, onto any disk), [`whole`] (whether all of it is there) and [`machine`] (back, onto this machine). What it never takes: the passphrase, the root key, API tokens.

pub mod bucket;
pub mod folder;
pub mod machine;
pub mod manifest;
pub mod operation;
mod packs;
pub mod restore;
pub mod snapshot;
pub mod whole;

use std::collections::HashSet;
use std::ops::ControlFlow;

use datacenter_api::{BackupResult, Phase};
use dedup::{IdKey, RealmId};
use dedup_protocol::trust::SigningKey;
use dedup_store::{ChunkStore, PACK_DIR, PackNumber, StoreError};

use crate::catalog::rows::RestoreRow;
use crate::catalog::{Catalog, CatalogError};
use crate::operations::Meter;
use folder::{Folder, FolderError, Part, Sum};
use manifest::{
    MANIFEST, MANIFEST_BYTES_MAX, Manifest, ManifestError, Role, SMALL_BYTES_MAX, Unproven, is_ours,
};
use packs::{copy_packs, refuse_diverged};
use snapshot::Encoder;

/// Bytes of the catalog that are written at once.
const CATALOG_PIECE: usize = 1 << 20;

/// Why nothing was backed up. The backup that was there before is as it was, unless the error says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The manifest was being replaced: the one before is there, or this one; what either names is whole.
    #[error("the manifest of the backup was being replaced")]
    Replacing(#[source] FolderError),
    /// This backup is whole and durable; files that it does not name could not be removed.
    #[error("the backup is whole, but files of former ones are left beside it")]
    Unswept(#[source] FolderError),
    /// Its manifest.
    #[error("{folder}")]
    Manifest {
        /// The folder.
        folder: String,
        /// What is wrong.
        source: ManifestError,
    },
    /// It is another realm's.
    #[error("{folder} holds a backup of realm {found} ({name})")]
    OtherRealm {
        /// The folder.
        folder: String,
        /// Whose.
        found: RealmId,
        /// Its name.
        name: String,
    },
    /// It is of a later life of this realm.
    #[error(
        "{folder} holds a backup of this realm from after a restore that this datacenter does not know of"
    )]
    Superseded {
        /// The folder.
        folder: String,
    },
    /// It is of another life of this realm: packs of one number are two packs.
    #[error(
        "{folder} holds a backup from a time that this datacenter does not go back to: its {pack} is another one"
    )]
    Diverged {
        /// The folder.
        folder: String,
        /// The first that differs.
        pack: PackNumber,
    },
    /// Something else lies there.
    #[error("{folder} holds {file:?} and no backup")]
    NotEmpty {
        /// The folder.
        folder: String,
        /// For example.
        file: String,
    },
    /// The chunk store.
    #[error("chunk store")]
    Store(#[from] StoreError),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A row that no catalog has.
    #[error("a row of the catalog is too long to be backed up")]
    Row,
    /// A file of the realm.
    #[error("{path}")]
    Realm {
        /// Which.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It was asked to stop.
    #[error("the backup was cancelled")]
    Cancelled,
}

/// What is backed up.
pub struct Source<'a> {
    /// The catalog.
    pub catalog: &'a Catalog,
    /// The chunk store.
    pub store: &'a ChunkStore,
    /// The realm.
    pub realm: RealmId,
    /// Its name.
    pub name: &'a str,
    /// The secret that content is named under.
    pub id_key: &'a IdKey,
    /// Signs the manifest.
    pub publisher: &'a SigningKey,
    /// `realm.json`, `realm.sealed` and `datacenter.toml`, in the order of [`Role::ALL`].
    pub files: [Vec<u8>; 3],
    /// The time, unix seconds.
    pub now_unix_s: u64,
}

/// Backs up into `folder`. With `verify` what is there already is read and compared with what was written.
pub fn backup(
    source: &Source<'_>,
    folder: &Folder,
    verify: bool,
    meter: &Meter,
) -> Result<BackupResult, BackupError> {
    meter.begin(Phase::Open, 0);
    let former = former(source, folder)?;
    folder.prepare()?;
    let number = former.as_ref().map_or(1, |former| former.number + 1);
    // From here on no pack goes away that the catalog's versions need.
    let frozen = source.store.freeze_packs();
    let history = history(source.catalog)?;
    if former
        .as_ref()
        .is_some_and(|former| former.history > history)
    {
        return Err(BackupError::Superseded {
            folder: folder.shown().into(),
        });
    }
    let catalog = write_catalog(source, folder, number, meter)?;
    let closed = frozen.list()?;
    if let Some(former) = &former {
        refuse_diverged(folder, former, &closed)?;
    }
    let packs = copy_packs(
        source,
        folder,
        former.as_ref(),
        &frozen,
        &closed,
        verify,
        meter,
    )?;
    drop(frozen);
    let [realm, secrets, config] = &source.files;
    let manifest = Manifest {
        realm: source.realm,
        name: source.name.into(),
        number,
        taken_unix_s: source.now_unix_s,
        history,
        software: env!("CARGO_PKG_VERSION").into(),
        files: [
            catalog,
            folder.put(&Role::Realm.object(number), realm)?,
            folder.put(&Role::Secrets.object(number), secrets)?,
            folder.put(&Role::Config.object(number), config)?,
        ],
        packs: packs.entries,
    };
    // Objects first, then what names them, then what is not named any more.
    folder.settle()?;
    folder
        .put(MANIFEST, &manifest.encode(source.publisher))
        .and_then(|_| folder.settle())
        .map_err(BackupError::Replacing)?;
    remove_unnamed(folder, &manifest).map_err(BackupError::Unswept)?;
    Ok(BackupResult {
        folder: folder.shown().into(),
        number,
        packs: manifest.packs.len() as u64,
        packs_copied: packs.copied,
        bytes: manifest.bytes(),
        copied_bytes: packs.copied_bytes,
        catalog_bytes: catalog.bytes,
        damaged: manifest.packs.iter().map(|entry| entry.damaged).sum(),
        warnings: Vec::new(),
    })
}

/// From where a restored datacenter's counters go on.
fn history(catalog: &Catalog) -> Result<u64, CatalogError> {
    let row = catalog.read(|tx| tx.get::<RestoreRow>(&()))?;
    Ok(row.map_or(0, |row| row.history))
}

/// The backup that is there, if one is.
fn former(source: &Source<'_>, folder: &Folder) -> Result<Option<Manifest>, BackupError> {
    let wrong = |source| BackupError::Manifest {
        folder: folder.shown().into(),
        source,
    };
    let Some(found) = folder.get(MANIFEST, MANIFEST_BYTES_MAX)? else {
        let foreign = |name: &String| !is_ours(folder::whole_name(name));
        return match folder.list("")?.into_iter().find(foreign) {
            Some(file) => Err(BackupError::NotEmpty {
                folder: folder.shown().into(),
                file,
            }),
            None => Ok(None),
        };
    };
    let bytes = found.map_err(|len| wrong(ManifestError::Malformed(format!("{len} bytes"))))?;
    let found = Unproven::parse(&bytes).map_err(wrong)?;
    if found.claims().realm != source.realm {
        return Err(BackupError::OtherRealm {
            folder: folder.shown().into(),
            found: found.claims().realm,
            name: found.claims().name.clone(),
        });
    }
    let proven = found.prove(&source.publisher.public()).map_err(wrong)?;
    Ok(Some(proven))
}

/// Writes the catalog as it is at one moment.
fn write_catalog(
    source: &Source<'_>,
    folder: &Folder,
    number: u64,
    meter: &Meter,
) -> Result<Sum, BackupError> {
    let mut part = folder.begin(&Role::Catalog.object(number))?;
    let mut waiting = Vec::new();
    let mut encoder = Encoder::begin(source.realm.0, &mut waiting);
    let mut failed = None;
    source.catalog.dump(&mut |key, row| match write_row(
        &mut encoder,
        &mut part,
        &mut waiting,
        key,
        row,
        meter,
    ) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    encoder.end(&mut waiting);
    part.write(&waiting)?;
    Ok(part.finish()?)
}

fn write_row(
    encoder: &mut Encoder,
    part: &mut Part<'_>,
    waiting: &mut Vec<u8>,
    key: &[u8],
    row: &[u8],
    meter: &Meter,
) -> Result<(), BackupError> {
    if !encoder.row(key, row, waiting) {
        return Err(BackupError::Row);
    }
    if waiting.len() >= CATALOG_PIECE {
        if meter.is_cancelled() {
            return Err(BackupError::Cancelled);
        }
        part.write(waiting)?;
        waiting.clear();
    }
    Ok(())
}

/// Removes what former backups and dead ones left. What is not ours stays.
fn remove_unnamed(folder: &Folder, manifest: &Manifest) -> Result<(), FolderError> {
    for name in folder.list(PACK_DIR)? {
        let Some(pack) = folder::pack_of_name(&name) else {
            continue;
        };
        let whole = folder::whole_name(&name) == name;
        if !whole || manifest.pack(pack).is_none() {
            folder.remove(&format!("{PACK_DIR}/{name}"))?;
        }
    }
    let named: HashSet<String> = Role::ALL
        .iter()
        .map(|role| role.object(manifest.number))
        .chain([MANIFEST.to_owned()])
        .collect();
    for name in folder.list("")? {
        if is_ours(folder::whole_name(&name)) && !named.contains(&name) {
            folder.remove(&name)?;
        }
    }
    folder.settle()
}

/// A small file of the realm, as it is now.
fn read_file(path: &std::path::Path, optional: bool) -> Result<Vec<u8>, BackupError> {
    match crate::realm::files::read_small(path, SMALL_BYTES_MAX as usize) {
        Err(e) if optional && e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(|source| BackupError::Realm {
            path: path.display().to_string(),
            source,
        }),
    }
}
