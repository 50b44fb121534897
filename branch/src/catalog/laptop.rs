//! Rows of desktops that are checked out to this branch, and of orders to wipe one.
//!
//! Both are kept as they were signed and believed by their signature only: who has the disk must not be able to make one.

use std::ops::ControlFlow;

use dedup::DesktopId;
use dedup_protocol::state::checkout::Checkout;
use dedup_protocol::trust::{Signed, Trust};
use dedup_protocol::wipe::Wipe;
use dedup_store::kv::{Batch, Durability};

use super::{Catalog, CatalogError, key, malformed};
use crate::desktop::record::DesktopRecord;
use crate::writeback::rows::{KeptHold, write_row};

/// A desktop that is checked out to this branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptCheckout {
    /// What the datacenter said last.
    pub checkout: Checkout,
    /// It is on its way back: by its user's wish, or the datacenter's.
    pub is_ending: bool,
}

/// An order to wipe a desktop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptWipe {
    /// The order.
    pub wipe: Wipe,
    /// It was done, and the datacenter is to be told.
    pub is_done: bool,
}

/// A row: a flag, then what was signed.
fn flagged(flag: bool, signed: Vec<u8>) -> Vec<u8> {
    let mut row = vec![u8::from(flag)];
    row.extend(signed);
    row
}

fn parse<'a>(key: &[u8], row: &'a [u8]) -> Result<(bool, &'a [u8]), CatalogError> {
    match row {
        [flag @ 0..=1, signed @ ..] => Ok((*flag == 1, signed)),
        _ => Err(malformed(key, "its flag is neither 0 nor 1")),
    }
}

/// A key and what is kept under it.
type RawRow = (Vec<u8>, Vec<u8>);

impl Catalog {
    fn rows_of(&self, prefix: u8) -> Result<Vec<RawRow>, CatalogError> {
        let mut rows = Vec::new();
        self.kv.scan(&[prefix], &[prefix], &mut |key, row| {
            rows.push((key.to_vec(), row.to_vec()));
            ControlFlow::Continue(())
        })?;
        Ok(rows)
    }

    fn open_checkout(&self, key: &[u8], row: &[u8]) -> Result<KeptCheckout, CatalogError> {
        let (is_ending, signed) = parse(key, row)?;
        let signed = Signed::<Checkout>::from_bytes(signed)?;
        let checkout = signed.open(&self.anchor, &self.endorsements()?, Trust::Kept)?;
        if checkout.system.as_bytes()[..] != key[1..] {
            return Err(malformed(key, "it is another desktop's"));
        }
        Ok(KeptCheckout {
            checkout,
            is_ending,
        })
    }

    /// The checkout of the desktop with this system volume.
    pub fn checkout(&self, system: DesktopId) -> Result<Option<KeptCheckout>, CatalogError> {
        let key = key(b'o', system.as_bytes());
        let row = self.kv.get(&key)?;
        row.map(|row| self.open_checkout(&key, &row)).transpose()
    }

    /// All desktops that are checked out to this branch.
    pub fn checkouts(&self) -> Result<Vec<KeptCheckout>, CatalogError> {
        let rows = self.rows_of(b'o')?;
        rows.iter()
            .map(|(key, row)| self.open_checkout(key, row))
            .collect()
    }

    /// Keeps a checkout; the caller has opened it.
    pub fn put_checkout(
        &self,
        system: DesktopId,
        signed: &Signed<Checkout>,
        is_ending: bool,
    ) -> Result<(), CatalogError> {
        let row = flagged(is_ending, signed.to_bytes());
        self.put(key(b'o', system.as_bytes()), row)
    }

    /// Takes a desktop in that is checked out to this branch and was not here: with where its volumes stand, all at once.
    pub fn take_in(
        &self,
        signed: &Signed<Checkout>,
        desktop: &DesktopRecord,
        holds: &[KeptHold],
    ) -> Result<(), CatalogError> {
        let mut batch = Batch::new();
        let system = desktop.system_volume();
        let row = flagged(false, signed.to_bytes());
        batch.put(key(b'o', system.as_bytes()), row);
        for hold in holds {
            batch.put(key(b'h', hold.row.desktop.as_bytes()), write_row(hold));
        }
        let row = serde_json::to_vec(desktop).expect("desktop records serialise without failing");
        batch.put(key(b'd', desktop.name.as_bytes()), row);
        Ok(self.kv.commit(batch, Durability::Synced)?)
    }

    /// Has a checkout end: its desktop goes back.
    pub fn end_checkout(&self, system: DesktopId) -> Result<(), CatalogError> {
        let key = key(b'o', system.as_bytes());
        let Some(mut row) = self.kv.get(&key)? else {
            return Ok(());
        };
        parse(&key, &row)?;
        row[0] = 1;
        self.put(key, row)
    }

    /// Forgets a checkout whose desktop is not here any more.
    pub fn forget_checkout(&self, system: DesktopId) -> Result<(), CatalogError> {
        let mut batch = Batch::new();
        batch.delete(key(b'o', system.as_bytes()));
        Ok(self.kv.commit(batch, Durability::Synced)?)
    }

    /// Orders to wipe desktops that were not forgotten.
    pub fn wipes(&self) -> Result<Vec<KeptWipe>, CatalogError> {
        let mut wipes = Vec::new();
        for (key, row) in self.rows_of(b'x')? {
            let (is_done, signed) = parse(&key, &row)?;
            let signed = Signed::<Wipe>::from_bytes(signed)?;
            let wipe = signed.open(&self.anchor, &self.endorsements()?, Trust::Kept)?;
            wipes.push(KeptWipe { wipe, is_done });
        }
        Ok(wipes)
    }

    /// Keeps an order to wipe a desktop, unless it is here; the caller has opened it.
    pub fn put_wipe(&self, number: u64, signed: &Signed<Wipe>) -> Result<(), CatalogError> {
        let key = key(b'x', &number.to_be_bytes());
        if self.kv.get(&key)?.is_some() {
            return Ok(());
        }
        self.put(key, flagged(false, signed.to_bytes()))
    }

    /// Notes that a wipe was done.
    pub fn wipe_is_done(&self, number: u64) -> Result<(), CatalogError> {
        let key = key(b'x', &number.to_be_bytes());
        let Some(mut row) = self.kv.get(&key)? else {
            return Ok(());
        };
        parse(&key, &row)?;
        row[0] = 1;
        self.put(key, row)
    }

    /// Forgets an order that was done, as the datacenter knows.
    pub fn forget_wipe(&self, number: u64) -> Result<(), CatalogError> {
        let mut batch = Batch::new();
        batch.delete(key(b'x', &number.to_be_bytes()));
        Ok(self.kv.commit(batch, Durability::Synced)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use std::sync::Arc;

    use dedup::{BranchId, RealmId};
    use dedup_protocol::trust::{SigningKey, TrustAnchor};
    use dedup_protocol::wipe::Target;
    use dedup_store::kv::{Kv, MemKv};

    use super::*;

    fn order(number: u64) -> Wipe {
        Wipe {
            realm: RealmId([1; 16]),
            branch: BranchId([2; 16]),
            number,
            issued_unix_s: 5,
            target: Target::Desktop {
                name: "alice".into(),
                volumes: vec![DesktopId([3; 16])],
            },
        }
    }

    #[test]
    fn an_order_is_kept_until_it_is_noted_and_believed_by_its_signature_only() {
        let (root, publisher) = (SigningKey::generate().0, SigningKey::generate().0);
        let realm = RealmId([1; 16]);
        let anchor = TrustAnchor {
            realm,
            root: root.public(),
        };
        let kv: Arc<dyn Kv> = Arc::new(MemKv::new());
        let catalog = Catalog::new(Arc::clone(&kv), anchor);
        let endorsed = root.endorse(realm, publisher.public(), 10);
        catalog.set_endorsements(&[endorsed]).unwrap();
        let signed = publisher.sign(&order(7));
        catalog.put_wipe(7, &signed).unwrap();
        catalog.wipe_is_done(7).unwrap();
        // Told again: what was done is not forgotten.
        catalog.put_wipe(7, &signed).unwrap();
        catalog.wipe_is_done(8).unwrap();
        let kept = KeptWipe {
            wipe: order(7),
            is_done: true,
        };
        assert_eq!(catalog.wipes().unwrap(), [kept]);
        catalog.forget_wipe(7).unwrap();
        assert!(catalog.wipes().unwrap().is_empty());
        let forged = root.sign(&order(9));
        catalog.put_wipe(9, &forged).unwrap();
        assert!(matches!(catalog.wipes(), Err(CatalogError::Trust(_))));
        let mut batch = Batch::new();
        batch.put(key(b'x', &9u64.to_be_bytes()), vec![2]);
        kv.commit(batch, Durability::Synced).unwrap();
        assert!(matches!(catalog.wipes(), Err(CatalogError::Row { .. })));
    }
}
