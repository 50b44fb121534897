//! How checkouts go on by what branches do: given back, told of, leased.

use dedup::{BranchId, DesktopId};
use dedup_protocol::state::Ended;
use dedup_protocol::state::authority::{AuthorityRow, Terms};
use dedup_protocol::state::checkout::{Checkout, UserVolume};
use dedup_protocol::state::message::RecallLease;
use dedup_protocol::wire::Message;

use super::super::keep::audit;
use super::super::manage::branch_name;
use super::{ALL, all, next_number, of_volume, set_home};
use crate::catalog::laptop::{CheckoutKey, CheckoutRow, CheckoutStage};
use crate::catalog::volumes::{AuditEvent, VolumeRow};
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;

/// Whether the newest generation was given back with all that was written under it.
fn was_returned(authority: &AuthorityRow) -> bool {
    let mut past = authority.past.iter();
    past.any(|past| past.generation == authority.last && past.ended == Ended::Returned)
}

impl Datacenter {
    /// Takes the next step of a checkout, if nobody holds its volumes.
    pub fn advance_checkout(&self, key: CheckoutKey) -> Result<(), CatalogError> {
        let now = self.now_unix_s();
        let moved = self.catalog().transact(|tx| {
            let Some(mut row) = tx.get::<CheckoutRow>(&key)? else {
                return Ok::<_, CatalogError>(Vec::new());
            };
            let (mut lasts, mut are_returned) = (Vec::new(), true);
            for volume in &row.volumes {
                let known: Option<VolumeRow> = tx.get(&volume.id)?;
                let is_out = row.stage != CheckoutStage::Waiting;
                if is_out && known.is_none_or(|known| known.home == row.from) {
                    // Its lease was broken, and its branch may hold it again by now.
                    continue;
                }
                let authority: Option<AuthorityRow> = tx.get(&volume.id)?;
                let authority = authority.unwrap_or_else(|| AuthorityRow::new(volume.id));
                if authority.holder.is_some() {
                    return Ok(Vec::new());
                }
                are_returned &= authority.last > volume.generation && was_returned(&authority);
                lasts.push(authority.last);
            }
            let ids: Vec<DesktopId> = row.volumes.iter().map(|volume| volume.id).collect();
            if row.stage == CheckoutStage::Waiting {
                for (volume, last) in row.volumes.iter_mut().zip(lasts) {
                    volume.generation = last;
                    set_home(tx, volume.id, key.laptop)?;
                }
                row.stage = CheckoutStage::Out;
                row.number = next_number(tx, row.number, now)?;
                tx.put(&key, &row);
                return Ok(ids);
            }
            if row.stage == CheckoutStage::Out && !are_returned {
                // The laptop has not asked for all of it yet, or is to ask again.
                return Ok(Vec::new());
            }
            for id in &ids {
                set_home(tx, *id, row.from)?;
            }
            tx.delete::<CheckoutRow>(&key);
            let words = "it is at its branch again".to_owned();
            let entry = self.checkout_entry((key, &row), AuditEvent::CheckedIn, words);
            audit(tx, &entry)?;
            Ok(ids)
        })?;
        if moved.is_empty() {
            return Ok(());
        }
        // Machines know the home.
        for id in moved {
            self.forget_volume(id);
        }
        tracing::info!(volume = %key.system, "a checkout went on");
        self.announce_assignments();
        Ok(())
    }

    /// A volume was given back: the checkout that it belongs to may go on.
    pub(in super::super) fn advance_checkout_of(&self, volume: DesktopId) {
        let found = self.catalog().read(|tx| of_volume(tx, volume));
        let gone_on = found.and_then(|found| match found {
            Some((key, _)) => self.advance_checkout(key),
            None => Ok(()),
        });
        if let Err(error) = gone_on {
            let error = crate::problem::describe(&error);
            tracing::error!(%volume, error, "a checkout cannot go on; it does when its laptop or branch connects");
        }
    }

    /// Whether a volume's branch is to give it back for a checkout.
    pub(in super::super) fn awaits_checkout(
        &self,
        volume: DesktopId,
    ) -> Result<bool, CatalogError> {
        let found = self.catalog().read(|tx| of_volume(tx, volume))?;
        Ok(found.is_some_and(|(_, row)| row.stage == CheckoutStage::Waiting))
    }

    /// What the holders of a checkout's volumes are to be told: to give them back.
    pub(super) fn checkout_recalls(
        &self,
        key: CheckoutKey,
    ) -> Result<Vec<(BranchId, Message)>, CatalogError> {
        self.catalog().read(|tx| {
            let row: Option<CheckoutRow> = tx.get(&key)?;
            let row = row.filter(|row| row.stage == CheckoutStage::Waiting);
            let mut recalls = Vec::new();
            for volume in row.iter().flat_map(|row| &row.volumes) {
                let authority: Option<AuthorityRow> = tx.get(&volume.id)?;
                if let Some((last, holder)) =
                    authority.and_then(|row| Some((row.last, row.holder?)))
                {
                    let recall = RecallLease {
                        desktop: volume.id,
                        generation: last,
                    };
                    recalls.push((holder.branch, Message::RecallLease(recall)));
                }
            }
            Ok(recalls)
        })
    }

    /// A branch has connected: checkouts that it has to do with go on, and it is told what it is to give back.
    pub fn meet_checkouts(&self, branch: BranchId) -> Result<Vec<Message>, CatalogError> {
        let rows = self.catalog().read(all)?;
        let mut messages = Vec::new();
        for (key, row) in rows {
            if key.laptop != branch && row.from != branch {
                continue;
            }
            self.advance_checkout(key)?;
            let recalls = self.checkout_recalls(key)?.into_iter();
            let its_own = recalls.filter(|(holder, _)| *holder == branch);
            messages.extend(its_own.map(|(_, message)| message));
        }
        Ok(messages)
    }

    /// What is checked out to a laptop: for each desktop its record's number, and the record as it is signed.
    pub fn checkouts_of(
        &self,
        laptop: BranchId,
    ) -> Result<Vec<(DesktopId, u64, Vec<u8>)>, CatalogError> {
        let rows = self
            .catalog()
            .read(|tx| tx.list::<CheckoutRow>(laptop.as_bytes(), None, ALL))?;
        let rows = rows.into_iter();
        let told = rows.filter(|(_, row)| row.stage != CheckoutStage::Waiting);
        let told = told.filter_map(|(key, row)| {
            let user = row.volumes.get(1).map(|volume| UserVolume {
                id: volume.id,
                size_bytes: volume.size_bytes,
            });
            let record = Checkout {
                realm: self.realm(),
                branch: laptop,
                number: row.number,
                name: row.desktop,
                pool: row.pool,
                system: key.system,
                user,
                version: row.version,
                memory_mib: row.memory_mib,
                vcpus: row.vcpus,
                machine: row.machine,
                tpm: row.tpm,
                until_unix_s: row.until_unix_s,
                is_recalled: row.stage == CheckoutStage::Returning,
            };
            // What a branch would take for nonsense is not sent.
            record.is_valid().then(|| {
                let bytes = self.publisher().sign(&record).to_bytes();
                (key.system, row.number, bytes)
            })
        });
        Ok(told.collect())
    }

    /// The terms of a volume's lease while it is checked out to its home.
    pub(in super::super) fn checkout_terms(
        tx: &mut Tx<'_>,
        home: BranchId,
        volume: DesktopId,
        now_unix_s: u64,
    ) -> Result<Option<Terms>, CatalogError> {
        let rows = tx.list::<CheckoutRow>(home.as_bytes(), None, ALL)?;
        let row = rows.into_iter().map(|(_, row)| row);
        let row = row.filter(|row| row.stage != CheckoutStage::Waiting);
        let mut row = row.filter(|row| row.has(volume));
        Ok(row.next().map(|row| Terms {
            // Over, it is a lease all the same: what was written under it comes here.
            lease_s: row.until_unix_s.saturating_sub(now_unix_s),
            offline_grace_s: 0,
        }))
    }

    /// Why a branch does not get a volume that it had, if that is checked out.
    pub(in super::super) fn away(
        &self,
        branch: BranchId,
        volume: DesktopId,
    ) -> Result<Option<String>, CatalogError> {
        self.catalog().read(|tx| {
            let Some((key, row)) = of_volume(tx, volume)? else {
                return Ok(None);
            };
            if row.from != branch || row.stage == CheckoutStage::Waiting {
                return Ok(None);
            }
            let laptop = branch_name(tx, key.laptop)?;
            Ok(Some(format!(
                "it is checked out to {laptop}; it starts here again when it was checked in"
            )))
        })
    }
}
