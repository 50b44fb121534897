//! How long versions are kept: pins, deletion, having them back, retention, and giving them up for good.
//!
//! ```text
//!   Visible ──delete, retention──► Deleted ──grace over, nobody reads it, no desktop has it──► (gone)
//!      ▲────────── undelete ──────────┘
//! ```
//!
//! Invariants: what is in use is not deleted, and the refusal names who uses it; a number is never given to another version, so an
//! image's latest is not deleted either; content stays as long as the version is visible or deleted, and no longer
//! ([`crate::roots`]). Deletion touches the catalog only; space comes back with a collection.

mod users;

use datacenter_api::{DeletedVersion, PinRequest, Retention, VersionPin, VersionRef};
use dedup::VersionId;

use crate::assign::resolve;
use crate::catalog::rows::{
    BootProfileRow, BootRecordingRow, ChunkKinRow, DeletedVersionRow, GrantRow, NumberKey,
    RetentionRow, SignedProfileRow, VersionNumberRow, VersionPinRow, VersionRow,
};
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::problem::ManageError;
use users::{Users, refusal};

/// All rows of a table.
const ALL: usize = usize::MAX / 2;
/// Longest note of a pin, in bytes.
const NOTE_BYTES_MAX: usize = 500;

fn shown(id: VersionId, row: &DeletedVersionRow) -> DeletedVersion {
    DeletedVersion {
        id: id.to_string(),
        image: row.version.image.clone(),
        number: row.version.number,
        deleted_unix_s: row.deleted_unix_s,
        purge_unix_s: row.purge_unix_s,
        by_retention: row.by_retention,
    }
}

pub(crate) fn show_pin(tx: &mut Tx<'_>, id: VersionId) -> Result<Option<VersionPin>, CatalogError> {
    Ok(tx.get::<VersionPinRow>(&id)?.map(|row| VersionPin {
        pinned_unix_s: row.pinned_unix_s,
        note: row.note,
    }))
}

/// Takes a version out of sight, in a transaction that has seen that nobody uses it.
fn hide(
    tx: &mut Tx<'_>,
    id: VersionId,
    row: VersionRow,
    now_unix_s: u64,
    grace_s: u64,
    by_retention: bool,
) -> DeletedVersionRow {
    tx.delete::<VersionRow>(&id);
    tx.delete::<VersionNumberRow>(&NumberKey {
        image: row.image.clone(),
        number: row.number,
    });
    let deleted = DeletedVersionRow {
        version: row,
        deleted_unix_s: now_unix_s,
        purge_unix_s: now_unix_s.saturating_add(grace_s),
        by_retention,
    };
    tx.put(&id, &deleted);
    deleted
}

impl Datacenter {
    /// Deletes a version that nobody uses. It can be had back until its grace is over.
    pub fn delete_version(&self, text: &str) -> Result<DeletedVersion, ManageError> {
        let now = self.now_unix_s();
        let grace_s = self.config().store.undelete_grace.as_secs();
        // Desktops only start from what a pool runs, which the transaction looks at.
        let outside = self.users_outside_the_catalog()?;
        let mut remembered = self.remembered();
        let (id, deleted) = self.catalog().transact(|tx| {
            let (image, number, id) = resolve(tx, text)?;
            let mut users = Users::default();
            users.add_from_catalog(tx)?;
            let named: Vec<&String> = users.of(id).iter().chain(outside.of(id)).collect();
            if !named.is_empty() {
                return Err(refusal(&format!("{image}@{number}"), &named));
            }
            let row: Option<VersionRow> = tx.get(&id)?;
            let row = row.ok_or_else(|| {
                ManageError::not_found("version", text, "`splice version list IMAGE`")
            })?;
            Ok((id, hide(tx, id, row, now, grace_s, false)))
        })?;
        remembered.remove(&id);
        drop(remembered);
        let name = format!("{}@{}", deleted.version.image, deleted.version.number);
        tracing::info!(version = name, "version deleted");
        Ok(shown(id, &deleted))
    }

    /// Deleted versions of an image, in the order of their numbers.
    pub fn deleted_versions(&self, image: &str) -> Result<Vec<DeletedVersion>, ManageError> {
        let rows = self
            .catalog()
            .read(|tx| tx.list::<DeletedVersionRow>(&[], None, ALL))?;
        let mut found: Vec<DeletedVersion> = rows
            .iter()
            .filter(|(_, row)| row.version.image == image)
            .map(|(id, row)| shown(*id, row))
            .collect();
        found.sort_by_key(|version| version.number);
        Ok(found)
    }

    /// How many deleted versions can be had back.
    pub fn deleted_count(&self) -> Result<u64, CatalogError> {
        use crate::catalog::backend::Table;
        self.catalog().read(|tx| tx.count(Table::DeletedVersions))
    }

    /// Has a deleted version back.
    pub fn undelete_version(&self, text: &str) -> Result<datacenter_api::Version, ManageError> {
        let wanted: VersionRef =
            text.parse()
                .map_err(|e: datacenter_api::reference::VersionRefError| {
                    ManageError::invalid(e.to_string())
                })?;
        let Some(number) = wanted.number else {
            return Err(ManageError::invalid(format!(
                "which version? Name it by its number, as in {}@3",
                wanted.image
            )));
        };
        let id = self.catalog().transact(|tx| {
            let rows = tx.list::<DeletedVersionRow>(&[], None, ALL)?;
            let found = rows
                .into_iter()
                .find(|(_, row)| row.version.image == wanted.image && row.version.number == number);
            let (id, row) = found.ok_or_else(|| {
                ManageError::not_found(
                    "deleted version",
                    text,
                    format!(
                        "`splice version list {} --deleted` shows those that can be had back",
                        wanted.image
                    ),
                )
            })?;
            tx.delete::<DeletedVersionRow>(&id);
            tx.put(&id, &row.version);
            let key = NumberKey {
                image: row.version.image,
                number,
            };
            tx.put(&key, &VersionNumberRow { version: id });
            Ok::<_, ManageError>(id)
        })?;
        tracing::info!(version = text, "version undeleted");
        self.version_by_id(id)
    }

    /// Forbids the deletion of a version.
    pub fn pin_version(&self, text: &str, request: &PinRequest) -> Result<VersionPin, ManageError> {
        if request
            .note
            .as_ref()
            .is_some_and(|note| note.len() > NOTE_BYTES_MAX)
        {
            let message = format!("the note is longer than {NOTE_BYTES_MAX} bytes");
            return Err(ManageError::invalid(message));
        }
        let row = VersionPinRow {
            pinned_unix_s: self.now_unix_s(),
            note: request.note.clone(),
        };
        self.catalog().transact(|tx| {
            let (_, _, id) = resolve(tx, text)?;
            tx.put(&id, &row);
            Ok::<_, ManageError>(())
        })?;
        Ok(VersionPin {
            pinned_unix_s: row.pinned_unix_s,
            note: row.note,
        })
    }

    /// Allows the deletion of a version again.
    pub fn unpin_version(&self, text: &str) -> Result<(), ManageError> {
        self.catalog().transact(|tx| {
            let (image, number, id) = resolve(tx, text)?;
            if tx.get::<VersionPinRow>(&id)?.is_none() {
                return Err(ManageError::conflict(
                    format!("{image}@{number} is not pinned"),
                    format!("`splice version show {image}@{number}` tells"),
                ));
            }
            tx.delete::<VersionPinRow>(&id);
            Ok(())
        })
    }

    /// Which versions of an image are kept.
    pub fn retention(&self, image: &str) -> Result<Retention, ManageError> {
        self.image(image)?;
        let row = self
            .catalog()
            .read(|tx| tx.get::<RetentionRow>(&image.to_owned()))?;
        Ok(row.map_or_else(Retention::default, |row| Retention {
            last: Some(row.last),
            newer_s: (row.newer_s > 0).then_some(row.newer_s),
        }))
    }

    /// Sets which versions of an image are kept; without rules all are. It is followed before each collection.
    pub fn set_retention(&self, image: &str, asked: &Retention) -> Result<Retention, ManageError> {
        self.image(image)?;
        if asked.last == Some(0) {
            return Err(ManageError::invalid(
                "the latest version of an image is always kept; keep at least 1",
            ));
        }
        let name = image.to_owned();
        self.catalog().transact(|tx| {
            if *asked == Retention::default() {
                tx.delete::<RetentionRow>(&name);
            } else {
                let row = RetentionRow {
                    last: asked.last.unwrap_or(1),
                    newer_s: asked.newer_s.unwrap_or(0),
                };
                tx.put(&name, &row);
            }
            Ok::<_, ManageError>(())
        })?;
        tracing::info!(
            image,
            last = asked.last,
            newer_s = asked.newer_s,
            "retention set"
        );
        self.retention(image)
    }

    /// Deletes what images' retentions do not keep and nobody uses. Answers how many.
    pub fn follow_retentions(&self) -> Result<u64, ManageError> {
        let now = self.now_unix_s();
        let grace_s = self.config().store.undelete_grace.as_secs();
        let outside = self.users_outside_the_catalog()?;
        let mut remembered = self.remembered();
        let gone = self.catalog().transact(|tx| {
            let rules = tx.list::<RetentionRow>(&[], None, ALL)?;
            if rules.is_empty() {
                return Ok(Vec::new());
            }
            let mut users = Users::default();
            users.add_from_catalog(tx)?;
            let mut gone = Vec::new();
            for (image, rule) in rules {
                let numbers = tx.list::<VersionNumberRow>(&NumberKey::prefix(&image), None, ALL)?;
                // Newest first.
                for (_, VersionNumberRow { version }) in numbers.iter().skip(rule.last as usize) {
                    let Some(row) = tx.get::<VersionRow>(version)? else {
                        continue;
                    };
                    let age_s = now.saturating_sub(created(*version, &row)?);
                    let used = !users.of(*version).is_empty() || !outside.of(*version).is_empty();
                    if age_s >= rule.newer_s && !used {
                        gone.push((*version, row.image.clone(), row.number));
                        hide(tx, *version, row, now, grace_s, true);
                    }
                }
            }
            Ok::<_, ManageError>(gone)
        })?;
        for (id, image, number) in &gone {
            remembered.remove(id);
            tracing::info!(image, number, "version deleted by its image's retention");
        }
        Ok(gone.len() as u64)
    }

    /// Gives up deleted versions whose grace is over, unless somebody reads them or a desktop was started from them meanwhile, as one may
    /// be at a branch that was cut off. Answers how many.
    pub fn purge_deleted(&self) -> Result<u64, ManageError> {
        let now = self.now_unix_s();
        let outside = self.users_outside_the_catalog()?;
        let purged = self.catalog().transact(|tx| {
            let mut purged = Vec::new();
            for (id, row) in tx.list::<DeletedVersionRow>(&[], None, ALL)? {
                // Whoever comes to read it from here on does not find it: the catalog is looked at after the use is told.
                let used = !outside.of(id).is_empty() || self.is_version_in_use(id);
                if row.purge_unix_s > now || used {
                    continue;
                }
                tx.delete::<DeletedVersionRow>(&id);
                tx.delete::<VersionPinRow>(&id);
                tx.delete::<BootProfileRow>(&id);
                tx.delete::<SignedProfileRow>(&id);
                tx.delete::<ChunkKinRow>(&id);
                for (key, _) in tx.list::<BootRecordingRow>(id.as_bytes(), None, ALL)? {
                    tx.delete::<BootRecordingRow>(&key);
                }
                purged.push((id, row.version.image, row.version.number));
            }
            if !purged.is_empty() {
                for (key, _) in tx.list::<GrantRow>(&[], None, ALL)? {
                    if purged.iter().any(|(id, ..)| *id == key.version) {
                        tx.delete::<GrantRow>(&key);
                    }
                }
            }
            Ok::<_, CatalogError>(purged)
        })?;
        for (id, image, number) in &purged {
            self.updates().forget(*id);
            tracing::info!(image, number, "a deleted version is given up");
        }
        Ok(purged.len() as u64)
    }
}

/// When a version was published, unix seconds.
fn created(id: VersionId, row: &VersionRow) -> Result<u64, ManageError> {
    Ok(crate::images::record_of(id, row)?.created_unix_s)
}
