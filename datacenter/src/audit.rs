//! The audit log as it is read: pages of it, all of it as it was written, and whether it is what was written.
//!
//! Invariant: nothing here adds or removes an entry; that is [`crate::catalog::audit::append`]'s alone. Reading all of it goes in steps, each a look at a
//! still catalog, so that nobody waits for a long log.

use datacenter_api::audit::{AuditError, Verifier};
use datacenter_api::{AuditEntry, AuditLine, AuditState};

use crate::catalog::CatalogError;
use crate::catalog::audit::AuditRow;
use crate::catalog::rows::NewestFirst;
use crate::datacenter::Datacenter;
use crate::problem::ManageError;

/// Entries that one answer has at most, and that are read at once.
pub const LINES_MAX: u64 = 5000;

impl Datacenter {
    /// At most `limit` entries of the audit log that are older than `before`, newest first.
    pub fn audit_log(
        &self,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<AuditEntry>, CatalogError> {
        let after = before.map(NewestFirst);
        self.catalog().read(|tx| {
            let rows = tx.list::<AuditRow>(&[], after.as_ref(), limit)?;
            let entry = |(NewestFirst(id), row): &(NewestFirst, AuditRow)| AuditEntry {
                id: *id,
                hash: row.hash.map(datacenter_api::audit::hex),
                facts: row.facts(),
            };
            Ok(rows.iter().map(entry).collect())
        })
    }

    /// The next entries behind `after` as they were written, oldest first; none behind the newest.
    pub fn audit_lines(&self, after: u64) -> Result<Vec<AuditLine>, CatalogError> {
        // Numbers have no gaps, so that the end of a step is known, and rows are in the order newest first.
        let end = after.saturating_add(LINES_MAX + 1);
        self.catalog().read(|tx| {
            let newest = tx.list::<AuditRow>(&[], None, 1)?;
            let newest = newest.first().map_or(0, |(NewestFirst(id), _)| *id);
            let behind = NewestFirst(end.min(newest.saturating_add(1)));
            let count =
                usize::try_from(behind.0.saturating_sub(after.saturating_add(1))).unwrap_or(0);
            let rows = tx.list::<AuditRow>(&[], Some(&behind), count)?;
            let lines = rows.into_iter().rev();
            let lines = lines.map(|(NewestFirst(id), row)| row.line(id));
            Ok(lines.filter(|line| line.id > after).collect())
        })
    }

    /// Reads the whole log and verifies its chain.
    pub fn verify_audit(&self) -> Result<AuditState, ManageError> {
        let changed = |error: AuditError| {
            ManageError::conflict(
                format!("the audit log is not what was written: {error}"),
                "compare it with an export of before: `splice audit export`",
            )
        };
        let mut verifier = Verifier::new(None);
        let mut after = 0;
        loop {
            let lines = self.audit_lines(after)?;
            if after == 0
                && let Some(first) = lines.first()
                && first.id != 1
            {
                let found = first.id;
                return Err(changed(AuditError::Gap { before: 0, found }));
            }
            let Some(last) = lines.last() else {
                let newest = self.audit_log(None, 1)?;
                let found = newest.first().map_or(0, |entry| entry.id);
                // It may have been added since; else so many are missing that a step found none.
                if found > after && self.audit_lines(after)?.is_empty() {
                    let before = after;
                    return Err(changed(AuditError::Gap { before, found }));
                }
                if found > after {
                    continue;
                }
                return verifier.finish().map_err(changed);
            };
            after = last.id;
            for line in &lines {
                verifier.take(line).map_err(changed)?;
            }
        }
    }
}
