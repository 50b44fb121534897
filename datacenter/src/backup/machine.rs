//! `splice-datacenter restore`: a backup becomes a data folder of this machine.
//!
//! Order: the backup is proven by its own keys before anything is written; then packs, index and catalog; the catalog is compared with
//! the packs and marked as restored; the keys, and last of all `realm.json`, which makes the folder a realm's. Invariant: a folder without
//! it is never taken for a datacenter's, and a restore into one that is not empty is refused, unless it is the same restore that was
//! interrupted. API tokens are replaced: what was revoked since the backup must not come back.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use dedup_store::ChunkStore;
use dedup_store::disk::{Disk, HostDisk};
use dedup_store::kv::{RocksKv, RocksOptions};
use zeroize::Zeroizing;

use super::bucket::settings::BucketPlace;
use super::folder::Folder;
use super::operation::open_bucket;
use super::restore::{self, Opened};
use super::whole::{Lacking, lacking};
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::config::Config;
use crate::daemon::{absolute, cli_text, open_store, write};
use crate::identity::tokens;
use crate::realm;
use crate::realm::files::{DataDir, DataLock, create_private_dir, read_small, write_durably};
use crate::restored::{mark_restored, revoke_restored};

/// Versions named when content is lacking.
const NAMED_MAX: usize = 20;

/// What `restore` is told.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The backup's folder, or `s3://BUCKET/FOLDER`.
    pub folder: PathBuf,
    /// Where buckets are, for one of those.
    pub s3_file: Option<PathBuf>,
    /// The new data folder.
    pub data: PathBuf,
    /// Where the passphrase is.
    pub passphrase_file: PathBuf,
    /// Names of branches that were revoked after the backup was taken.
    pub revoke: Vec<String>,
    /// Go on although content of some versions is lost.
    pub accept_damage: bool,
}

/// Is told what is done, how much of it, and how much there is.
pub type Progress<'a> = dyn FnMut(&'static str, u64, u64) + 'a;

/// Restores; answers what the operator should know, line by line.
pub fn restore(
    options: &RestoreOptions,
    clock: &dyn Clock,
    progress: &mut Progress<'_>,
) -> anyhow::Result<Vec<String>> {
    let dir = absolute(&options.data)?;
    let folder = open_folder(options)?;
    let found = restore::find(&folder)?;
    let id = hex::encode(found.id());
    refuse_used(&dir, &id)?;
    let opened = found.open(&folder, &options.passphrase_file)?;
    restore::check_present(&folder, &opened.manifest)?;
    let config_text = String::from_utf8(opened.config.clone())
        .context("the configuration in the backup is no text")?;
    let config = Config::parse(&config_text, &dir.config())?.config;

    create_private_dir(dir.root())
        .with_context(|| format!("cannot create {}", dir.root().display()))?;
    let _lock = DataLock::take(&dir)?;
    refuse_used(&dir, &id)?;
    write(&dir.restoring(), 0o600, &id)?;
    let lacking = bring_back(&dir, &folder, &opened, options, clock, progress)?;

    write_bytes(&dir.config(), 0o644, &opened.config)?;
    write(&dir.ca(), 0o644, &opened.realm.ca.cert_pem())?;
    create_private_dir(&dir.secrets())
        .with_context(|| format!("cannot create {}", dir.secrets().display()))?;
    write_bytes(&dir.sealed(), 0o600, &opened.sealed)?;
    let passphrase = keep_passphrase(&dir, &config, &options.passphrase_file)?;
    let token = tokens::new_api_token();
    let now = clock.unix_s();
    replace_token(&dir, &opened, &token, now)?;
    write(&dir.cli(), 0o600, &cli_text(&dir, config.api, &token))?;
    write_bytes(&dir.realm(), 0o644, &opened.realm_json)?;
    std::fs::remove_file(dir.restoring())
        .with_context(|| format!("cannot remove {}", dir.restoring().display()))?;
    Ok(lines(&dir, &opened, &config, &lacking, passphrase, now))
}

/// The backup's folder, which is not made if it is not there.
fn open_folder(options: &RestoreOptions) -> anyhow::Result<Folder> {
    let path = &options.folder;
    if let Some(text) = path.to_str().filter(|text| BucketPlace::is_meant(text)) {
        let settings = options.s3_file.as_deref();
        let settings = settings.with_context(|| {
            format!(
                "{text} is in a bucket; name the file with endpoint, region and key with --s3-file"
            )
        })?;
        return open_bucket(text, settings).map_err(|error| anyhow::anyhow!(error));
    }
    if !path.is_dir() {
        bail!(
            "{} is no folder; give the one that `splice store backup` was given",
            path.display()
        );
    }
    let disk = HostDisk::new(path)?;
    Ok(Folder::new(Arc::new(disk), path.display().to_string()))
}

/// Fails if the folder is used for anything but this very restore.
fn refuse_used(dir: &DataDir, id: &str) -> anyhow::Result<()> {
    let root = dir.root().display();
    let mut entries = match std::fs::read_dir(dir.root()) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("cannot look into {root}"))?,
    };
    // Our own lock is no content.
    let is_lock = |entry: &std::io::Result<std::fs::DirEntry>| {
        entry
            .as_ref()
            .is_ok_and(|entry| entry.file_name() == "lock")
    };
    let Some(first) = entries.find(|entry| !is_lock(entry)) else {
        return Ok(());
    };
    realm::refuse_existing(dir)?;
    match read_small(&dir.restoring(), 1024) {
        Ok(text) if text == id.as_bytes() => Ok(()),
        Ok(_) => bail!(
            "{root} holds a restore of another backup that was not finished; remove it, or restore into a new folder"
        ),
        Err(_) => bail!(
            "{root} is not empty ({:?} is in it); restore into a new folder",
            first.map(|entry| entry.file_name()).unwrap_or_default()
        ),
    }
}

/// Packs, index and catalog.
fn bring_back(
    dir: &DataDir,
    folder: &Folder,
    opened: &Opened,
    options: &RestoreOptions,
    clock: &dyn Clock,
    progress: &mut Progress<'_>,
) -> anyhow::Result<Vec<Lacking>> {
    let manifest = &opened.manifest;
    let disk: Arc<dyn Disk> = Arc::new(HostDisk::new(dir.store())?);
    let shown = dir.store().display().to_string();
    restore::packs(
        folder,
        manifest,
        disk.clone(),
        &shown,
        &mut |done, total| {
            progress("copying packs", done, total);
        },
    )?;

    // Proves every record by its name, whatever the files' hashes say.
    clear(&dir.index())?;
    {
        let index = RocksKv::open(dir.index(), &RocksOptions::default())?;
        let (key, realm) = (&opened.realm.id_key, opened.realm.id);
        ChunkStore::rebuild_index(&*disk, &index, key, realm, &mut |done, total| {
            progress("proving packs", done, total);
        })?;
    }
    let store = open_store(dir, &opened.realm)?;

    clear(&dir.catalog())?;
    let rows = RocksKv::open(dir.catalog(), &RocksOptions::default())?;
    progress("restoring the catalog", 0, 1);
    restore::catalog(folder, manifest, &rows)?;
    let catalog = Catalog::open(Arc::new(rows), opened.realm.id)?;
    progress("comparing catalog and packs", 0, 1);
    let lacking = lacking(&catalog, &store)?;
    if !lacking.is_empty() && !options.accept_damage {
        bail!(
            "the backup lacks content of {}, which the store had lost before it was taken; use another backup, or restore the rest with --accept-damage",
            named(&lacking)
        );
    }
    let now = clock.unix_s();
    mark_restored(&catalog, manifest.taken_unix_s, now)?;
    for name in &options.revoke {
        if !revoke_restored(&catalog, name, now)? {
            bail!("the backup knows no branch {name:?}; leave out --revoke {name}");
        }
    }
    Ok(lacking)
}

fn clear(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot clear {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn write_bytes(path: &Path, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
    write_durably(path, mode, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Puts the passphrase where the daemon looks for it by default; where the configuration names another place, that is the operator's.
/// Answers where it is not yet.
fn keep_passphrase(dir: &DataDir, config: &Config, from: &Path) -> anyhow::Result<Option<PathBuf>> {
    if let Some(place) = &config.passphrase_file {
        return Ok((!place.exists()).then(|| place.clone()));
    }
    let passphrase = read_small(from, 4096)
        .map(Zeroizing::new)
        .with_context(|| format!("cannot read {}", from.display()))?;
    write_bytes(&dir.passphrase(), 0o600, &passphrase)?;
    Ok(None)
}

fn replace_token(dir: &DataDir, opened: &Opened, token: &str, now: u64) -> anyhow::Result<()> {
    let catalog = crate::daemon::open_catalog(dir, opened.realm.id)?;
    tokens::replace_api_tokens(&catalog, "restore", token, now)?;
    Ok(())
}

fn named(lacking: &[Lacking]) -> String {
    let names: Vec<&str> = lacking
        .iter()
        .take(NAMED_MAX)
        .map(|version| version.version.as_str())
        .collect();
    match lacking.len().saturating_sub(NAMED_MAX) {
        0 => names.join(", "),
        more => format!("{} and {more} more versions", names.join(", ")),
    }
}

fn lines(
    dir: &DataDir,
    opened: &Opened,
    config: &Config,
    lacking: &[Lacking],
    passphrase: Option<PathBuf>,
    now: u64,
) -> Vec<String> {
    let manifest = &opened.manifest;
    let age_s = now.saturating_sub(manifest.taken_unix_s);
    let mut lines = vec![
        format!(
            "realm {} ({}) is restored in {} from backup {}, taken {} hours and {} minutes ago",
            manifest.realm,
            opened.realm.name,
            dir.root().display(),
            manifest.number,
            age_s / 3600,
            age_s / 60 % 60
        ),
        "what was published, set or revoked since then is not remembered. Branches go on with what they follow; `splice status` and `splice branch show NAME` tell which are ahead".into(),
        "branches that were revoked since then are let in again: revoke them now, with `splice branch revoke NAME` as soon as it runs, or remove this folder and restore with --revoke NAME".into(),
        format!(
            "join tokens that were not used are void, and all former API tokens are refused; the new one is in {} (a secret)",
            dir.cli().display()
        ),
        format!(
            "branches connect to {}: let that lead here, and never start the former datacenter again",
            config.address
        ),
    ];
    if !lacking.is_empty() {
        lines.push(format!(
            "content is lacking of {}: publish the disks of versions again; of desktops an older snapshot may be whole",
            named(lacking)
        ));
    }
    let endorsed = opened.realm.endorsements.iter().map(|e| e.until_unix_s);
    if endorsed.max().is_none_or(|until| until < now + 30 * 86_400) {
        lines.push(
            "the publisher key's endorsement ends within 30 days or has ended; renew it with the root key: splice-datacenter endorse".into(),
        );
    }
    if let Some(place) = passphrase {
        lines.push(format!(
            "the configuration looks for the passphrase in {}: put it there first",
            place.display()
        ));
    }
    lines.push(format!(
        "start with: splice-datacenter run --data {}",
        dir.root().display()
    ));
    lines
}
