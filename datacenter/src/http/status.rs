//! The daemon's own state.

use axum::Json;
use axum::extract::State;
use datacenter_api::{BranchState, DatacenterStatus, Problem, StoreStatus};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Answer, App, blocking};
use crate::problem::ManageError;

/// That the daemon answers.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// Always true.
    ok: bool,
}

/// Days before the end of an endorsement at which operators are told.
const ENDORSEMENT_WARNING_S: u64 = 30 * 86_400;
/// Free space below which operators are told, in bytes.
const FREE_WARNING_BYTES: u64 = 10 << 30;

/// Whether the daemon answers. Needs no token.
#[utoipa::path(get, path = "/healthz", tag = "status", security(()), responses((status = 200, body = Health)))]
pub(super) async fn healthz() -> Json<Health> {
    Json(Health { ok: true })
}

/// The datacenter as a whole.
#[utoipa::path(get, path = "/v1/status", tag = "status", responses(
    (status = 200, body = DatacenterStatus),
    (status = 401, body = Problem)
))]
pub(super) async fn status(State(dc): State<App>) -> Answer<DatacenterStatus> {
    let status = blocking(&dc, |dc| {
        let now = dc.now_unix_s();
        let (images, versions) = dc.image_counts()?;
        let branches = dc.branches(None, usize::MAX / 2)?;
        let joined = branches.iter().filter(|b| b.state == BranchState::Joined);
        let store = dc.store_status()?;
        let endorsement_expires_unix_s = dc
            .endorsements()
            .iter()
            .map(|e| e.until_unix_s)
            .max()
            .unwrap_or(0);
        let mut warnings = Vec::new();
        if endorsement_expires_unix_s < now + ENDORSEMENT_WARNING_S {
            warnings.push(format!(
                "the publisher key's endorsement ends in {} days; renew it with the root key: splice-datacenter endorse",
                endorsement_expires_unix_s.saturating_sub(now) / 86_400
            ));
        }
        if store.free_bytes < FREE_WARNING_BYTES {
            warnings.push(format!(
                "only {} bytes are free on the store's disk",
                store.free_bytes
            ));
        }
        if let Some(reason) = dc.store().halted() {
            warnings.push(format!(
                "collections of garbage are halted: {reason}; look into it, then `splice store gc --resume`"
            ));
        }
        let damaged = dc.store().stats().damaged;
        if damaged > 0 {
            let versions = dc.upkeep().damage().versions();
            let shown = match versions.is_empty() {
                true => "versions are being looked up".to_owned(),
                false => format!("shown by {}", versions.join(", ")),
            };
            warnings.push(format!(
                "{damaged} stored chunks or manifest nodes are damaged, {shown}; branches that hold them are asked, publishing the same disk again stores them anew"
            ));
        }
        if dc.root_key_present() {
            warnings.push(
                "the root signing key is still in the data folder; move root.key to offline storage".into(),
            );
        }
        Ok::<_, ManageError>(DatacenterStatus {
            realm: dc.realm().to_string(),
            name: dc.realm_name().to_owned(),
            software: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: now.saturating_sub(dc.started_unix_s()),
            link_address: dc.config().address.clone(),
            store,
            images,
            versions,
            branches: joined.count() as u64,
            branches_online: dc.online_count(),
            operations_running: dc.operations().running_count(),
            endorsement_expires_unix_s,
            warnings,
        })
    })
    .await?;
    Ok(Json(status))
}

impl crate::Datacenter {
    fn store_status(&self) -> Result<StoreStatus, ManageError> {
        let stats = self.store().stats();
        Ok(StoreStatus {
            chunks: stats.chunks,
            nodes: stats.nodes,
            plain_bytes: stats.raw_bytes,
            stored_bytes: stats.pack_bytes,
            packs: stats.packs,
            free_bytes: self.free_bytes(),
        })
    }
}
