//! Caps and hours of branches: what `splice branch set` sets, and what a branch's control stream tells.
//!
//! Invariant: a policy in the catalog is valid, and a branch without one has none of the limits. It follows the branch's identity, as
//! its pools do: a server that replaces another keeps them.

use datacenter_api::policy::{
    BranchPolicy, CAP_BITS_PER_S_MIN, DayPart, PolicyRequest, format_utc_offset, parse_utc_offset,
};
use dedup::BranchId;
use dedup_protocol::policy::{Hours, Policy};

use crate::branches::require_branch;
use crate::catalog::rows::BranchPolicyRow;
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::problem::ManageError;

impl Datacenter {
    /// Changes a branch's caps and hours; the branch hears of it at once if its link is up.
    pub fn set_branch_policy(
        &self,
        branch_name: &str,
        request: &PolicyRequest,
    ) -> Result<BranchPolicy, ManageError> {
        let policy = self.catalog().transact(|tx| {
            let (branch, _) = require_branch(tx, branch_name)?;
            let before = policy_of(tx, branch)?;
            let policy = changed(before, request)?;
            tx.put(&branch, &BranchPolicyRow { policy });
            Ok::<_, ManageError>(policy)
        })?;
        tracing::info!(branch = branch_name, ?policy, "caps and hours set");
        self.announce_assignments();
        Ok(show_policy(&policy))
    }

    /// What a branch is to keep to.
    pub fn branch_policy(&self, branch: BranchId) -> Result<Policy, CatalogError> {
        self.catalog().read(|tx| policy_of(tx, branch))
    }
}

pub(crate) fn policy_of(tx: &mut Tx<'_>, branch: BranchId) -> Result<Policy, CatalogError> {
    Ok(tx
        .get::<BranchPolicyRow>(&branch)?
        .map_or_else(Policy::default, |row| row.policy))
}

/// Gives a branch's policy to the identity that replaces it.
pub(crate) fn move_policy(
    tx: &mut Tx<'_>,
    from: BranchId,
    to: BranchId,
) -> Result<(), CatalogError> {
    if let Some(row) = tx.get::<BranchPolicyRow>(&from)? {
        tx.put(&to, &row);
    }
    Ok(())
}

fn changed(before: Policy, request: &PolicyRequest) -> Result<Policy, ManageError> {
    let cap = |asked: Option<u64>, before: u64| match asked {
        None => Ok(before),
        Some(bits) if bits == 0 || bits >= CAP_BITS_PER_S_MIN => Ok(bits / 8),
        Some(bits) => Err(ManageError::invalid(format!(
            "a cap of {bits} bit/s is below {CAP_BITS_PER_S_MIN}; 0 removes a cap"
        ))),
    };
    let invalid =
        |error: datacenter_api::policy::PolicyError| ManageError::invalid(error.to_string());
    let offset = request
        .utc_offset
        .as_deref()
        .map(parse_utc_offset)
        .transpose()
        .map_err(invalid)?;
    let kept_offset = before.fill_hours.map_or(0, |hours| hours.utc_offset_min);
    let utc_offset_min = offset.unwrap_or(kept_offset);
    let fill_hours = match request.fill_hours.as_deref() {
        Some("always") => None,
        Some(text) => {
            let part: DayPart = text.parse().map_err(invalid)?;
            Some(Hours {
                from_min: part.from_min,
                until_min: part.until_min,
                utc_offset_min,
            })
        }
        None => before.fill_hours.map(|hours| Hours {
            utc_offset_min,
            ..hours
        }),
    };
    if offset.is_some() && fill_hours.is_none() {
        return Err(ManageError::invalid(
            "an offset from UTC means nothing without hours; set both at once",
        ));
    }
    Ok(Policy {
        link_bytes_per_s: cap(request.link_cap_bits_per_s, before.link_bytes_per_s)?,
        fill_bytes_per_s: cap(request.fill_cap_bits_per_s, before.fill_bytes_per_s)?,
        fill_hours,
    })
}

pub(crate) fn show_policy(policy: &Policy) -> BranchPolicy {
    let bits = |bytes: Option<u64>| bytes.map(|bytes| bytes * 8);
    BranchPolicy {
        link_cap_bits_per_s: bits(policy.link_cap()),
        fill_cap_bits_per_s: bits(policy.fill_cap()),
        fill_hours: policy.fill_hours.map(|hours| {
            DayPart {
                from_min: hours.from_min,
                until_min: hours.until_min,
            }
            .to_string()
        }),
        utc_offset: format_utc_offset(policy.fill_hours.map_or(0, |h| h.utc_offset_min)),
    }
}
