//! Fetching what a generation goes on behind: its record, then its manifest by what differs from the desktop's version. Chunks come when a guest reads them.
//!
//! Invariant: the record is kept before the line is told, and only while no overlay of the volume is here, so that an overlay never lies over
//! another state than it was made over.

use std::sync::Arc;

use dedup::{DesktopId, Manifest, VersionId};
use dedup_protocol::client::TreeSync;
use dedup_protocol::control::ControlError;
use dedup_protocol::records::Tree;
use dedup_protocol::state::began::{StateName, StateRecord};
use dedup_protocol::state::{Generation, Head};
use dedup_protocol::trust::{Signed, Trust};
use dedup_protocol::wire::{GetVersion, Message};
use dedup_transport::link::Link;

use super::ConnectionEnd;
use super::versions::{exchange, sync_tree, unexpected};
use crate::server::Branch;

/// Brings here what `generation` of a volume goes on behind, which is the state at `base`. False: the datacenter refused, or sent another one.
pub(super) async fn bring(
    branch: &Arc<Branch>,
    link: &Link,
    volume: DesktopId,
    (generation, base): (Generation, Head),
) -> Result<bool, ConnectionEnd> {
    let name = StateName {
        desktop: volume,
        generation,
    };
    let Some(state) = state_record(branch, link, name, base).await? else {
        return Ok(false);
    };
    let root = state.disk.root;
    if branch.versions.catalog().manifest(root)?.is_some() {
        return Ok(true);
    }
    let key = &branch.identity.id_key;
    let begun = std::time::Instant::now();
    let mut fetched = None;
    // Without the parent again: the volume may have begun with an image of which nothing is told any more, or our copy be damaged.
    for parent in [parent_manifest(branch, volume)?, None] {
        let has_parent = parent.is_some();
        let version = name.as_version();
        let sync = TreeSync::new(key.clone(), version, Tree::Disk, state.disk, parent)?;
        fetched = match sync_tree(branch, link, sync, root).await {
            Err(ConnectionEnd::Answer(error)) if has_parent => {
                tracing::warn!(%volume, error = crate::desktop::error_line(&error), "a state's manifest is fetched whole instead of as a change");
                None
            }
            other => other?,
        };
        if fetched.is_some() || !has_parent {
            break;
        }
    }
    let Some(leaves) = fetched else {
        return Ok(false);
    };
    tracing::info!(%volume, generation = generation.0, leaves, took = ?begun.elapsed(), "the state that a desktop goes on behind is here");
    Ok(true)
}

async fn state_record(
    branch: &Branch,
    link: &Link,
    name: StateName,
    base: Head,
) -> Result<Option<StateRecord>, ConnectionEnd> {
    let catalog = branch.versions.catalog();
    let request = Message::GetVersion(GetVersion {
        version: name.as_version(),
    });
    let mut signed = None;
    let whole = exchange(link, &request, |message| {
        if let Message::Version(bytes) = message {
            signed = Some(bytes);
            return Ok(());
        }
        Err(unexpected(&message, "Version"))
    })
    .await?;
    let (true, Some(bytes)) = (whole, signed) else {
        return Ok(None);
    };
    let trust = |e| ConnectionEnd::Control(ControlError::Trust(e));
    let signed = Signed::<StateRecord>::from_bytes(&bytes.bytes).map_err(trust)?;
    let now_unix_s = branch.clock.now_unix_s();
    let state = signed
        .open(
            catalog.anchor(),
            &catalog.endorsements()?,
            Trust::New { now_unix_s },
        )
        .map_err(trust)?;
    if state.name() != name || state.base != base {
        return Err(unexpected(&Message::Version(bytes), "another State"));
    }
    catalog.put_state(name.desktop, &signed)?;
    Ok(Some(state))
}

/// The version of the desktop whose system volume it is, if that is whole here.
fn parent_manifest(
    branch: &Branch,
    volume: DesktopId,
) -> Result<Option<(VersionId, Manifest)>, ConnectionEnd> {
    let catalog = branch.versions.catalog();
    let mut desktops = catalog.desktops()?.into_iter();
    let Some(desktop) = desktops.find(|desktop| desktop.system_volume() == volume) else {
        return Ok(None);
    };
    let Ok(id) = desktop.version.parse::<VersionId>() else {
        return Ok(None);
    };
    let Some(record) = catalog.version(id)? else {
        return Ok(None);
    };
    let manifest = catalog.manifest(record.disk.root)?;
    Ok(manifest.map(|manifest| (id, manifest)))
}
