//! The catalog: what images, versions, branches, pools, tokens and operations there are.
//!
//! Invariant: every change is a transaction, whole or not at all, and durable when [`Catalog::transact`] returns. Rows are typed
//! ([`rows`], [`volumes`], [`laptop`], [`people`], [`rollouts`], [`audit`]); what they may mean together is decided by the modules that own them (enrolment, assignment, publish), not here.

pub mod audit;
pub mod backend;
pub mod laptop;
pub mod people;
pub mod rollouts;
pub mod rows;
pub mod volumes;

use std::sync::Arc;

use dedup_store::kv::{Durability, Kv, KvError};

use backend::{Backend, KvBackend, Outcome, RowVisitor, Table, Transaction};
use rows::{Meta, Row, RowKey};

/// The newest format of the catalog as a whole: which tables there are and what their keys mean. 2 has volumes of desktops: a program that knows only 1
/// would collect what they refer to, and refuses.
pub const CATALOG_FORMAT: u32 = 2;
/// The format of a catalog without volumes.
const FORMAT_WITHOUT_VOLUMES: u32 = 1;

/// Why the catalog could not answer.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Its disk is full; what was committed before is intact.
    #[error("catalog {path}: no space left on its disk; free some space and try again")]
    NoSpace {
        /// Where it lives.
        path: String,
    },
    /// The store under it reports an error.
    #[error("catalog")]
    Store(#[source] KvError),
    /// A row cannot be read.
    #[error(
        "catalog: a row of table {table:?} is damaged or was written by a newer program ({reason}); restore the catalog from a backup or run the newer program"
    )]
    Row {
        /// The table.
        table: Table,
        /// What is wrong.
        reason: String,
    },
    /// The whole catalog was written by a newer program.
    #[error(
        "the catalog has format {found}, this program knows {CATALOG_FORMAT}; run the newer program"
    )]
    Format {
        /// What is on disk.
        found: u32,
    },
    /// It is another realm's.
    #[error(
        "the catalog belongs to realm {found}, not to {expected}; the data folder's parts do not belong together"
    )]
    Realm {
        /// The catalog's.
        found: dedup::RealmId,
        /// Ours.
        expected: dedup::RealmId,
    },
}

/// The catalog.
#[derive(Clone)]
pub struct Catalog {
    backend: Arc<dyn Backend>,
}

impl Catalog {
    /// Opens the catalog of `realm` in `kv`, which it uses alone; an empty one becomes that realm's.
    pub fn open(kv: Arc<dyn Kv>, realm: dedup::RealmId) -> Result<Self, CatalogError> {
        Self::with_backend(Arc::new(KvBackend::new(kv)), realm)
    }

    /// Opens it on any backend.
    pub fn with_backend(
        backend: Arc<dyn Backend>,
        realm: dedup::RealmId,
    ) -> Result<Self, CatalogError> {
        let catalog = Self { backend };
        catalog.transact(|tx| match tx.get::<Meta>(&())? {
            None => {
                tx.put(
                    &(),
                    &Meta {
                        format: FORMAT_WITHOUT_VOLUMES,
                        realm,
                    },
                );
                Ok(())
            }
            Some(meta) if !(FORMAT_WITHOUT_VOLUMES..=CATALOG_FORMAT).contains(&meta.format) => {
                Err(CatalogError::Format { found: meta.format })
            }
            Some(meta) if meta.realm != realm => Err(CatalogError::Realm {
                found: meta.realm,
                expected: realm,
            }),
            Some(_) => Ok(()),
        })?;
        Ok(catalog)
    }

    /// Runs `work` as one transaction; an error rolls it back. Durable on return. `work` may run more than once.
    pub fn transact<T, E: From<CatalogError>>(
        &self,
        work: impl FnMut(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.run(Durability::Synced, work)
    }

    /// As [`Self::transact`], but a crash may lose the change: for what will be reported again anyway.
    pub fn transact_relaxed<T, E: From<CatalogError>>(
        &self,
        work: impl FnMut(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.run(Durability::Relaxed, work)
    }

    fn run<T, E: From<CatalogError>>(
        &self,
        durability: Durability,
        mut work: impl FnMut(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut answer = None;
        self.backend.transact(durability, &mut |raw| {
            let result = work(&mut Tx { raw });
            let outcome = match result {
                Ok(_) => Outcome::Commit,
                Err(_) => Outcome::RollBack,
            };
            answer = Some(result);
            outcome
        })?;
        answer.expect("a backend that returns Ok ran the work")
    }

    /// Looks at a still catalog.
    pub fn read<T, E: From<CatalogError>>(
        &self,
        mut look: impl FnMut(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut answer = None;
        self.backend
            .read(&mut |raw| answer = Some(look(&mut Tx { raw })))?;
        answer.expect("a backend that returns Ok ran the work")
    }

    /// Visits every row as of one moment, as stored: a table's number and key, and the row. Transactions go on meanwhile.
    pub fn dump(&self, visit: &mut RowVisitor<'_>) -> Result<(), CatalogError> {
        self.backend.dump(visit)
    }
}

/// A transaction on typed rows.
pub struct Tx<'a> {
    raw: &'a mut dyn Transaction,
}

impl Tx<'_> {
    /// The row at `key`.
    pub fn get<R: Row>(&mut self, key: &R::Key) -> Result<Option<R>, CatalogError> {
        let row = self.raw.get(R::TABLE, &key.encode())?;
        row.map(|bytes| rows::decode(&bytes)).transpose()
    }

    /// Inserts or replaces a row.
    pub fn put<R: Row>(&mut self, key: &R::Key, row: &R) {
        self.raw.put(R::TABLE, &key.encode(), rows::encode(row));
    }

    /// Removes a row, if it is there.
    pub fn delete<R: Row>(&mut self, key: &R::Key) {
        self.raw.delete(R::TABLE, &key.encode());
    }

    /// At most `limit` rows whose encoded keys begin with `prefix` and come after `after`, in order.
    pub fn list<R: Row>(
        &mut self,
        prefix: &[u8],
        after: Option<&R::Key>,
        limit: usize,
    ) -> Result<Vec<(R::Key, R)>, CatalogError> {
        let from = after.map_or_else(Vec::new, |key| {
            // The smallest key above `after`.
            let mut key = key.encode();
            key.push(0);
            key
        });
        let raw = self.raw.scan(R::TABLE, prefix, &from, limit)?;
        raw.into_iter()
            .map(|(key, row)| {
                let key = R::Key::decode(&key).ok_or_else(|| CatalogError::Row {
                    table: R::TABLE,
                    reason: format!("key {}", hex::encode(&key)),
                })?;
                Ok((key, rows::decode(&row)?))
            })
            .collect()
    }

    /// Raises the catalog's format to the newest, as soon as it has what former programs must not work on.
    pub fn raise_format(&mut self) -> Result<(), CatalogError> {
        if let Some(mut meta) = self.get::<Meta>(&())?
            && meta.format < CATALOG_FORMAT
        {
            meta.format = CATALOG_FORMAT;
            self.put(&(), &meta);
        }
        Ok(())
    }

    /// How many rows a table has. Linear; for status pages.
    pub fn count(&mut self, table: Table) -> Result<u64, CatalogError> {
        Ok(self.raw.scan(table, &[], &[], usize::MAX / 2)?.len() as u64)
    }
}
