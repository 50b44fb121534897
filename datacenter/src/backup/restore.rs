//! From a backup's folder onto a disk and a database: everything is proven before it is used.
//!
//! ```text
//!   find ──► Found ──open(passphrase) or prove(key)──► Manifest ──► check_present ──► packs ──► catalog
//! ```
//!
//! Invariant: no byte reaches the restored datacenter that is not what the signed manifest names. What was restored already is proven
//! and kept, so an interrupted restore goes on. Whether catalog and packs belong together is looked at in [`super::whole`]; the folder that is
//! restored into is [`super::machine`]'s to choose.

use std::path::Path;
use std::sync::Arc;

use dedup_protocol::trust::PublicKey;
use dedup_store::disk::Disk;
use dedup_store::kv::{Batch, Durability, Kv, KvError};
use dedup_store::{CLOSED_PACK_BYTES_MAX, StoreError};

use super::folder::{Folder, FolderError, Sum};
use super::manifest::{
    MANIFEST, MANIFEST_BYTES_MAX, Manifest, ManifestError, Role, SMALL_BYTES_MAX, Unproven,
};
use super::snapshot::{Decoder, SnapshotError};
use crate::catalog::CatalogError;
use crate::realm::{Realm, RealmError};

/// Why nothing was restored, or not all.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The folder, or the disk that is restored onto.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// No manifest.
    #[error(
        "{folder} holds no backup: {MANIFEST} is missing; give the folder that `splice store backup` was given"
    )]
    NoBackup {
        /// The folder.
        folder: String,
    },
    /// The manifest.
    #[error("{folder} cannot be restored, use another backup")]
    Manifest {
        /// The folder.
        folder: String,
        /// What is wrong.
        source: ManifestError,
    },
    /// The keys do not open.
    #[error("the realm's keys in the backup")]
    Realm(#[from] RealmError),
    /// Something that the manifest names is not there.
    #[error(
        "{folder} is not whole: {object} is missing; copy the whole folder again, or use another backup"
    )]
    Missing {
        /// The folder.
        folder: String,
        /// What.
        object: String,
    },
    /// Something is not what the manifest names.
    #[error(
        "{folder}: {object} is not what was backed up ({bytes} bytes, {expected} were); copy the folder again, or use another backup"
    )]
    Damaged {
        /// The folder.
        folder: String,
        /// What.
        object: String,
        /// Its length.
        bytes: u64,
        /// The length that it had.
        expected: u64,
    },
    /// The catalog is what was backed up, and cannot be read.
    #[error("{folder}: the catalog")]
    Snapshot {
        /// The folder.
        folder: String,
        /// Why.
        source: SnapshotError,
    },
    /// The database of the catalog.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// The chunk store.
    #[error("chunk store")]
    Store(#[from] StoreError),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// A backup that nobody has vouched for yet.
pub struct Found {
    unproven: Unproven,
    /// BLAKE3 of the manifest: which backup it is.
    id: [u8; 32],
    realm: Vec<u8>,
    secrets: Vec<u8>,
    config: Vec<u8>,
}

/// A backup that the realm's own key vouches for.
pub struct Opened {
    /// The realm, its keys open.
    pub realm: Realm,
    /// What the backup consists of.
    pub manifest: Manifest,
    /// `realm.json`.
    pub realm_json: Vec<u8>,
    /// `realm.sealed`.
    pub sealed: Vec<u8>,
    /// `datacenter.toml`.
    pub config: Vec<u8>,
}

/// Looks for a backup.
pub fn find(folder: &Folder) -> Result<Found, RestoreError> {
    let wrong = |source| RestoreError::Manifest {
        folder: folder.shown().into(),
        source,
    };
    let bytes = folder
        .get(MANIFEST, MANIFEST_BYTES_MAX)?
        .ok_or_else(|| RestoreError::NoBackup {
            folder: folder.shown().into(),
        })?
        .map_err(|len| wrong(ManifestError::Malformed(format!("{len} bytes"))))?;
    let unproven = Unproven::parse(&bytes).map_err(wrong)?;
    let small = |role: Role| {
        let claims = unproven.claims();
        get(
            folder,
            &role.object(claims.number),
            claims.file(role),
            SMALL_BYTES_MAX,
        )
    };
    Ok(Found {
        id: *blake3::hash(&bytes).as_bytes(),
        realm: small(Role::Realm)?,
        secrets: small(Role::Secrets)?,
        config: small(Role::Config)?,
        unproven,
    })
}

/// An object whose bytes are those that the manifest names.
fn get(folder: &Folder, name: &str, sum: Sum, bytes_max: u64) -> Result<Vec<u8>, RestoreError> {
    let damaged = |bytes: u64| RestoreError::Damaged {
        folder: folder.shown().into(),
        object: name.into(),
        bytes,
        expected: sum.bytes,
    };
    let bytes = folder
        .get(name, bytes_max)?
        .ok_or_else(|| missing(folder, name))?
        .map_err(damaged)?;
    if Sum::of(&bytes) != sum {
        return Err(damaged(bytes.len() as u64));
    }
    Ok(bytes)
}

fn missing(folder: &Folder, object: &str) -> RestoreError {
    RestoreError::Missing {
        folder: folder.shown().into(),
        object: object.into(),
    }
}

impl Found {
    /// Which backup it is.
    pub fn id(&self) -> [u8; 32] {
        self.id
    }

    /// Opens the realm's keys and lets them vouch for the backup.
    pub fn open(self, folder: &Folder, passphrase_file: &Path) -> Result<Opened, RestoreError> {
        let number = self.unproven.claims().number;
        let at = |role: Role| Path::new(folder.shown()).join(role.object(number));
        let realm = Realm::from_files(
            (at(Role::Realm).as_path(), self.realm.as_slice()),
            (at(Role::Secrets).as_path(), self.secrets.as_slice()),
            passphrase_file,
        )?;
        let (realm_json, sealed, config) = (
            self.realm.clone(),
            self.secrets.clone(),
            self.config.clone(),
        );
        let manifest = self.prove(folder, &realm.publisher.public())?;
        Ok(Opened {
            realm,
            manifest,
            realm_json,
            sealed,
            config,
        })
    }

    /// The manifest, if `publisher` vouches for it.
    pub fn prove(self, folder: &Folder, publisher: &PublicKey) -> Result<Manifest, RestoreError> {
        self.unproven
            .prove(publisher)
            .map_err(|source| RestoreError::Manifest {
                folder: folder.shown().into(),
                source,
            })
    }
}

/// Whether all that the manifest names is there, with the lengths that it had: what can be told before hours of copying.
pub fn check_present(folder: &Folder, manifest: &Manifest) -> Result<(), RestoreError> {
    let packs = manifest.packs.iter().map(|e| (e.pack.path(), e.sum));
    let catalog = Role::Catalog.object(manifest.number);
    for (object, sum) in packs.chain([(catalog, manifest.file(Role::Catalog))]) {
        match folder.len(&object)? {
            None => return Err(missing(folder, &object)),
            Some(bytes) if bytes != sum.bytes => {
                return Err(RestoreError::Damaged {
                    folder: folder.shown().into(),
                    object,
                    bytes,
                    expected: sum.bytes,
                });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Copies the packs onto the store's disk. Those that are there already are proven and kept. `progress` is told bytes done and in all.
pub fn packs(
    folder: &Folder,
    manifest: &Manifest,
    disk: Arc<dyn Disk>,
    shown: &str,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), RestoreError> {
    let place = Folder::new(disk, shown);
    place.prepare()?;
    let total: u64 = manifest.packs.iter().map(|entry| entry.sum.bytes).sum();
    let mut done = 0;
    for entry in &manifest.packs {
        progress(done, total);
        let path = entry.pack.path();
        if place.len(&path)? != Some(entry.sum.bytes)
            || place.stream(&path, &mut |_| {})? != Some(entry.sum)
        {
            let bytes = get(folder, &path, entry.sum, CLOSED_PACK_BYTES_MAX)?;
            place.put(&path, &bytes)?;
        }
        done += entry.sum.bytes;
    }
    progress(done, total);
    place.settle()?;
    Ok(())
}

/// Brings the catalog's rows into an empty database; answers how many. Durable with the next synced commit.
pub fn catalog(folder: &Folder, manifest: &Manifest, kv: &dyn Kv) -> Result<u64, RestoreError> {
    let name = Role::Catalog.object(manifest.number);
    let sum = manifest.file(Role::Catalog);
    // Proven before the first row is taken.
    let proven = |found: Option<Sum>| match found {
        None => Err(missing(folder, &name)),
        Some(found) if found != sum => Err(RestoreError::Damaged {
            folder: folder.shown().into(),
            object: name.clone(),
            bytes: found.bytes,
            expected: sum.bytes,
        }),
        Some(_) => Ok(()),
    };
    proven(folder.stream(&name, &mut |_| {})?)?;
    let unreadable = |source| RestoreError::Snapshot {
        folder: folder.shown().into(),
        source,
    };
    let mut decoder = Decoder::new(manifest.realm.0);
    let mut failed = None;
    let taken = folder.stream(&name, &mut |piece| {
        if failed.is_none() {
            failed = take_rows(&mut decoder, piece, kv)
                .map_err(|error| error.or_unreadable(unreadable))
                .err();
        }
    })?;
    // Somebody may have written to it between the two looks.
    proven(taken)?;
    match failed {
        Some(error) => Err(error),
        None => decoder.finish().map_err(unreadable),
    }
}

/// The outcome of some rows: what is wrong with them, or why they were not kept.
enum RowsError {
    Snapshot(SnapshotError),
    Kv(KvError),
}

impl RowsError {
    fn or_unreadable(self, unreadable: impl Fn(SnapshotError) -> RestoreError) -> RestoreError {
        match self {
            Self::Snapshot(error) => unreadable(error),
            Self::Kv(error) => error.into(),
        }
    }
}

fn take_rows(decoder: &mut Decoder, piece: &[u8], kv: &dyn Kv) -> Result<(), RowsError> {
    let mut batch = Batch::new();
    decoder
        .feed(piece, &mut |key, row| batch.put(key, row))
        .map_err(RowsError::Snapshot)?;
    if batch.is_empty() {
        return Ok(());
    }
    kv.commit(batch, Durability::Relaxed).map_err(RowsError::Kv)
}
