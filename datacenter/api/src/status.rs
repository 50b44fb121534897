//! The datacenter's own state.

use serde::{Deserialize, Serialize};

/// The chunk store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StoreStatus {
    /// Chunks held.
    pub chunks: u64,
    /// Manifest nodes held.
    pub nodes: u64,
    /// Plain bytes of the chunks.
    pub plain_bytes: u64,
    /// Bytes that they take compressed.
    pub stored_bytes: u64,
    /// Pack files.
    pub packs: u64,
    /// Bytes free on the store's disk.
    pub free_bytes: u64,
}

/// The datacenter as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DatacenterStatus {
    /// The realm's id.
    pub realm: String,
    /// Its name.
    pub name: String,
    /// Software version.
    pub software: String,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// The link address that join tokens carry.
    pub link_address: String,
    /// The chunk store.
    pub store: StoreStatus,
    /// Images.
    pub images: u64,
    /// Visible versions.
    pub versions: u64,
    /// Branches that have joined and are not revoked.
    pub branches: u64,
    /// Branches whose link is up.
    pub branches_online: u64,
    /// Branches that said of each of their pools that it boots with the WAN cut.
    #[serde(default)]
    pub branches_ready: u64,
    /// Branches with pools that did not: `BRANCH: POOL no, POOL unknown`, one line each.
    #[serde(default)]
    pub not_ready: Vec<String>,
    /// Running operations.
    pub operations_running: u64,
    /// When the publisher key's endorsement ends, unix seconds; it must be renewed with the root key before.
    pub endorsement_expires_unix_s: u64,
    /// What needs an operator's attention, one line each.
    pub warnings: Vec<String>,
}
