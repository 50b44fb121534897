//! Syncing versions: record, outlines, leaves; then their filling begins.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use dedup::{Manifest, VersionId};
use dedup_protocol::client::{Step, TreeSync};
use dedup_protocol::records::{Tree, VersionRecord};
use dedup_protocol::state::began::StateName;
use dedup_protocol::trust::{Signed, Trust};
use dedup_protocol::wire::{FRAME_BYTES_MAX, GetVersion, Message, WireError};
use dedup_transport::link::{Class, Link};
use tokio::sync::watch;

use super::ConnectionEnd;
use super::update::{self, Wanted};
use crate::server::Branch;
use crate::versions::TREES;

/// A version that could not be had is tried again after this.
const RETRY: Duration = Duration::from_secs(10);

/// Brings every wanted version's manifests here, whenever the assignment changes.
///
/// What is to be whole is filled by its update where the branch holds a version that leads there (`by_update` tells the task that does
/// it), else plain.
pub async fn run(
    branch: &Arc<Branch>,
    link: &Link,
    by_update: &watch::Sender<Vec<Wanted>>,
) -> Result<Infallible, ConnectionEnd> {
    loop {
        let mut updates = Vec::new();
        let mut wanted = branch.versions.wanted();
        for version in branch.versions.checked_out() {
            if wanted.iter().all(|(id, _)| *id != version) {
                wanted.push((version, false));
            }
        }
        // States are filled for desktops that are checked out to this branch only.
        branch.fetcher.retain_fills(|id| {
            StateName::of_version(id).is_some() || wanted.iter().any(|(w, _)| *w == id)
        });
        let mut refused = false;
        for (version, whole) in wanted {
            if !sync_version(branch, link, version).await? {
                refused = true;
                continue;
            }
            if !whole {
                continue;
            }
            match update::parent_for(branch, version).await? {
                Some(parent) => {
                    // What a desktop that starts meanwhile needs first; the update is chosen by what is then here.
                    for tree in branch.versions.trees(version)? {
                        if tree.tree != Tree::Disk {
                            branch.fetcher.fill(tree);
                        }
                    }
                    updates.push(Wanted { version, parent });
                }
                None => fill(branch, version)?,
            }
        }
        by_update.send_replace(updates);
        branch.link.report_now.notify_one();
        let retry = async {
            if refused {
                tokio::time::sleep(RETRY).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = branch.link.assigned.notified() => {}
            () = retry => {}
        }
    }
}

/// Makes a version whole: kernel and initrd first, then what boots touch, then the rest, so that it boots early on a slow line.
pub(super) fn fill(branch: &Branch, version: VersionId) -> Result<(), ConnectionEnd> {
    // Without a profile it comes in disk order; one that cannot be read is no reason to end the link.
    let order = branch.desktops.boots().order(version).unwrap_or_else(|error| {
        tracing::warn!(%version, error = crate::desktop::error_line(&error), "no boot profile can be followed");
        None
    });
    for tree in branch.versions.trees(version)? {
        match &order {
            Some((disk, order)) if disk.tree == tree.tree => {
                branch.fetcher.fill_first(tree, Arc::clone(order));
            }
            _ => branch.fetcher.fill(tree),
        }
    }
    Ok(())
}

/// Brings one version's record and manifests here. False: the datacenter refused.
async fn sync_version(
    branch: &Arc<Branch>,
    link: &Link,
    id: VersionId,
) -> Result<bool, ConnectionEnd> {
    let Some(record) = version_record(branch, link, id).await? else {
        return Ok(false);
    };
    if branch.versions.can_boot(&record)? {
        return Ok(true);
    }
    let begun = std::time::Instant::now();
    let mut leaves = 0;
    for which in TREES {
        if let Some(tree) = record.tree(which) {
            let key = &branch.identity.id_key;
            let parent = parent_manifest(branch, &record, which)?;
            let with_parent = parent.is_some();
            let sync = TreeSync::new(key.clone(), id, which, tree, parent)?;
            let fetched = match sync_tree(branch, link, sync, tree.root).await {
                // Perhaps our own copy of the parent is damaged: without it nothing depends on what is here.
                Err(ConnectionEnd::Answer(error)) if with_parent => {
                    tracing::warn!(
                        error = crate::desktop::error_line(&error),
                        "manifest is fetched whole instead of as a change"
                    );
                    let sync = TreeSync::new(key.clone(), id, which, tree, None)?;
                    sync_tree(branch, link, sync, tree.root).await?
                }
                other => other?,
            };
            let Some(fetched) = fetched else {
                return Ok(false);
            };
            leaves += fetched;
        }
    }
    tracing::info!(image = record.image, number = record.number, leaves, took = ?begun.elapsed(), "manifest is here");
    Ok(true)
}

async fn version_record(
    branch: &Branch,
    link: &Link,
    id: VersionId,
) -> Result<Option<VersionRecord>, ConnectionEnd> {
    let catalog = branch.versions.catalog();
    if let Some(record) = catalog.version(id)? {
        return Ok(Some(record));
    }
    let request = Message::GetVersion(GetVersion { version: id });
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
    let trust = |e| ConnectionEnd::Control(dedup_protocol::control::ControlError::Trust(e));
    let signed = Signed::<VersionRecord>::from_bytes(&bytes.bytes).map_err(trust)?;
    let now_unix_s = branch.clock.now_unix_s();
    let record = signed
        .open(
            catalog.anchor(),
            &catalog.endorsements()?,
            Trust::New { now_unix_s },
        )
        .map_err(trust)?;
    if signed.id() != id {
        return Err(unexpected(&Message::Version(bytes), "another Version"));
    }
    catalog.put_version(&signed)?;
    Ok(Some(record))
}

/// The same tree of a version of the same image that is whole here: the parent if it is, else the newest.
fn parent_manifest(
    branch: &Branch,
    record: &VersionRecord,
    which: Tree,
) -> Result<Option<(VersionId, Manifest)>, ConnectionEnd> {
    let catalog = branch.versions.catalog();
    let mut kin = catalog.versions()?;
    kin.retain(|(_, r)| r.image == record.image && r.number != record.number);
    kin.sort_by_key(|(id, r)| std::cmp::Reverse((Some(*id) == record.parent, r.number)));
    for (id, kin) in kin {
        if let Some(tree) = kin.tree(which)
            && let Some(manifest) = catalog.manifest(tree.root)?
        {
            return Ok(Some((id, manifest)));
        }
    }
    Ok(None)
}

/// Runs a tree sync to its end. Returns the number of leaves fetched; `None`: refused.
pub(super) async fn sync_tree(
    branch: &Branch,
    link: &Link,
    mut sync: TreeSync,
    root: dedup::NodeId,
) -> Result<Option<usize>, ConnectionEnd> {
    let catalog = branch.versions.catalog();
    let mut fetched = 0;
    loop {
        // A row that cannot be read counts as missing: the leaf is fetched again.
        let step = sync.next(|leaf| catalog.has_leaf(leaf).unwrap_or(false));
        let request = match step {
            Step::Done(manifest) => {
                catalog.put_manifest(root, &manifest)?;
                return Ok(Some(fetched));
            }
            Step::Ask(request) => request,
        };
        let outline = matches!(request, Message::GetOutline(_));
        let whole = exchange(link, &request, |message| match message {
            Message::Outline(part) if outline => Ok(sync.outline(&part)?),
            Message::Leaves(part) if !outline => {
                let leaves = sync.leaves(&part, |id| dedup::NodeSource::node(catalog, id).ok())?;
                fetched += leaves.len();
                Ok(catalog.put_leaves(leaves)?)
            }
            other => Err(unexpected(&other, "part of the manifest")),
        })
        .await?;
        if !whole {
            return Ok(None);
        }
        if outline {
            sync.outline_end()?;
        }
    }
}

pub(super) fn unexpected(message: &Message, expected: &'static str) -> ConnectionEnd {
    WireError::Unexpected {
        got: message.name(),
        expected,
    }
    .into()
}

/// Sends a request on a stream of its own and feeds the answer's frames to `take`. False: the datacenter refused, and it is logged.
pub(super) async fn exchange(
    link: &Link,
    request: &Message,
    mut take: impl FnMut(Message) -> Result<(), ConnectionEnd>,
) -> Result<bool, ConnectionEnd> {
    let (mut send, mut recv) = link.open(Class::Boot).await?;
    send.send(&request.encode()).await?;
    send.finish()?;
    while let Some(frame) = recv.recv(FRAME_BYTES_MAX).await? {
        match Message::decode(&frame)? {
            Message::Refuse(refuse) => {
                tracing::warn!(request = request.name(), code = ?refuse.code, reason = refuse.message, "refused");
                return Ok(false);
            }
            message => take(message)?,
        }
    }
    Ok(true)
}
