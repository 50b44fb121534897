//! What the branch does with frames: assignments, records, manifests, chunks. The order is that of the branch server's own link.

use branch::fetch::queue::Request;
use dedup::{IdKey, NodeSource, VersionId};
use dedup_protocol::client::{ChunkExchange, Step, TreeSync};
use dedup_protocol::control::BranchAction;
use dedup_protocol::records::{Tree, VersionRecord};
use dedup_protocol::trust::{Signed, Trust};
use dedup_protocol::wire::{GetVersion, Message};

use branch::versions::TREES;

use crate::keys::id_key;
use crate::site::{Connection, Process, Site};

/// What a stream is about.
pub(crate) enum Flow {
    Control,
    Record(VersionId),
    Outline,
    Leaves,
    Chunks {
        request: Box<Request>,
        exchange: ChunkExchange,
    },
}

impl Flow {
    pub(crate) fn chunks(key: IdKey, request: Request) -> Self {
        Self::Chunks {
            exchange: ChunkExchange::new(key, request.expected.clone()),
            request: Box::new(request),
        }
    }
}

/// The tree whose manifest is being fetched.
pub(crate) struct Syncing {
    record: VersionRecord,
    tree: Tree,
    sync: TreeSync,
}

/// The disk stopped under it: the caller kills the process.
pub struct Dying;

impl Site {
    /// Takes a frame of a stream, or its end.
    pub fn handle(&mut self, now_ms: u64, stream: u64, frame: Option<&[u8]>) -> Result<(), Dying> {
        let delivered = &mut self.delivered;
        let Some(process) = &mut self.process else {
            return Ok(());
        };
        let Some(mut connection) = process.connection.take() else {
            return Ok(());
        };
        let Some(flow) = connection.flows.remove(&stream) else {
            process.connection = Some(connection);
            return Ok(());
        };
        let message = frame.map(|f| Message::decode(f).expect("an honest frame parses"));
        if let Some(Message::Refuse(_)) = message {
            // The other end is dying; the cut follows.
            connection.flows.insert(stream, flow);
            process.connection = Some(connection);
            return Ok(());
        }
        let next = match (flow, message) {
            (Flow::Control, Some(_)) => {
                let frame = frame.expect("it was decoded");
                control(process, &mut connection, frame, Site::now_unix_s(now_ms)).map(Some)
            }
            (Flow::Record(id), Some(Message::Version(bytes))) => {
                record(process, id, &bytes.bytes, Site::now_unix_s(now_ms)).map(|()| None)
            }
            (Flow::Outline | Flow::Leaves, Some(message)) => {
                let outline = matches!(message, Message::Outline(_));
                leaves(process, &mut connection, message)
                    .map(|()| Some(if outline { Flow::Outline } else { Flow::Leaves }))
            }
            (Flow::Outline, None) => {
                let syncing = connection
                    .syncing
                    .as_mut()
                    .expect("an outline is of a tree");
                syncing.sync.outline_end().expect("an honest outline holds");
                Ok(None)
            }
            (
                Flow::Chunks {
                    request,
                    mut exchange,
                },
                Some(Message::Batch(batch)),
            ) => {
                let chunks = exchange.batch(&batch).expect("an honest batch holds");
                for chunk in chunks {
                    // An error is the disk that stopped; the chunk counts as arrived, as it does in the branch server.
                    if process.cache.insert(&chunk).is_ok() {
                        delivered.insert(chunk.id());
                    }
                    process.queue.arrived(&chunk.id());
                }
                Ok(Some(Flow::Chunks { request, exchange }))
            }
            (Flow::Chunks { request, exchange }, None) => {
                assert_eq!(exchange.remaining(), 0, "an answer ended early");
                process.queue.ended(*request);
                Ok(None)
            }
            (Flow::Record(_) | Flow::Leaves | Flow::Control, None) => Ok(None),
            (_, Some(other)) => panic!("{} is not due", other.name()),
        };
        let flow = next?;
        if let Some(flow) = flow {
            connection.flows.insert(stream, flow);
        }
        process.connection = Some(connection);
        if self.disk.is_stopped() {
            return Err(Dying);
        }
        Ok(())
    }

    /// Asks for the next thing that a wanted version lacks, one at a time; begins fills.
    pub(crate) fn go_on_syncing(&mut self) -> Vec<(u64, Message)> {
        let Some(process) = &mut self.process else {
            return Vec::new();
        };
        let Some(mut connection) = process.connection.take() else {
            return Vec::new();
        };
        let mut out = Vec::new();
        let busy = connection
            .flows
            .values()
            .any(|f| matches!(f, Flow::Record(_) | Flow::Outline | Flow::Leaves));
        if connection.greeted
            && !busy
            && let Some((flow, message)) = next_step(process, &mut connection)
        {
            let stream = connection.next_stream;
            connection.next_stream += 1;
            connection.flows.insert(stream, flow);
            out.push((stream, message));
        }
        process.connection = Some(connection);
        out
    }
}

fn control(
    process: &mut Process,
    connection: &mut Connection,
    frame: &[u8],
    now_unix_s: u64,
) -> Result<Flow, Dying> {
    let catalog = process.versions.catalog();
    let action = connection.control.handle(frame, now_unix_s);
    match action.expect("an honest control frame is due") {
        BranchAction::Welcomed(welcome) => {
            catalog
                .set_endorsements(&welcome.endorsements)
                .map_err(|_| Dying)?;
            connection.greeted = true;
        }
        BranchAction::Follow(assignment, signed) => {
            catalog.set_assignment(&signed).map_err(|_| Dying)?;
            process.versions.set_assignment(*assignment);
            let wanted = process.versions.wanted();
            let filling: Vec<_> = process.queue.filling().collect();
            for (version, tree) in filling {
                if !wanted.iter().any(|(id, _)| *id == version) {
                    process.queue.stop_fill(version, tree);
                }
            }
        }
        other => panic!("{other:?} was not asked for"),
    }
    Ok(Flow::Control)
}

fn record(
    process: &mut Process,
    id: VersionId,
    bytes: &[u8],
    now_unix_s: u64,
) -> Result<(), Dying> {
    let catalog = process.versions.catalog();
    let signed = Signed::<VersionRecord>::from_bytes(bytes).expect("an honest record parses");
    assert_eq!(signed.id(), id);
    let endorsements = catalog.endorsements().map_err(|_| Dying)?;
    signed
        .open(catalog.anchor(), &endorsements, Trust::New { now_unix_s })
        .expect("an honest record is signed");
    catalog.put_version(&signed).map_err(|_| Dying)
}

fn leaves(
    process: &mut Process,
    connection: &mut Connection,
    message: Message,
) -> Result<(), Dying> {
    let catalog = process.versions.catalog();
    let syncing = connection.syncing.as_mut().expect("leaves are of a tree");
    match message {
        Message::Outline(part) => {
            syncing
                .sync
                .outline(&part)
                .expect("an honest outline holds");
            Ok(())
        }
        Message::Leaves(part) => {
            let stored = |id| catalog.node(id).ok();
            let leaves = syncing.sync.leaves(&part, stored);
            catalog
                .put_leaves(leaves.expect("honest leaves hold"))
                .map_err(|_| Dying)
        }
        other => panic!("{} is not due", other.name()),
    }
}

/// What to ask for next.
fn next_step(process: &mut Process, connection: &mut Connection) -> Option<(Flow, Message)> {
    loop {
        if let Some(syncing) = &mut connection.syncing {
            let catalog = process.versions.catalog();
            match syncing
                .sync
                .next(|id| catalog.has_leaf(id).unwrap_or(false))
            {
                Step::Ask(message) => {
                    let flow = match message {
                        Message::GetOutline(_) => Flow::Outline,
                        _ => Flow::Leaves,
                    };
                    return Some((flow, message));
                }
                Step::Done(manifest) => {
                    let root = syncing.record.tree(syncing.tree)?.root;
                    catalog.put_manifest(root, &manifest).ok()?;
                    connection.syncing = None;
                }
            }
        }
        let (version, whole, record) = match next_version(process)? {
            Lacking::Record(id) => {
                let message = Message::GetVersion(GetVersion { version: id });
                return Some((Flow::Record(id), message));
            }
            Lacking::Trees(version, whole, record) => (version, whole, record),
        };
        match begin_tree(process, version, &record) {
            Some(syncing) => connection.syncing = Some(syncing),
            None => {
                debug_assert!(whole);
                for tree in process.versions.trees(version).ok()? {
                    process.queue.fill(tree);
                }
            }
        }
    }
}

enum Lacking {
    Record(VersionId),
    /// A manifest, or its filling.
    Trees(VersionId, bool, Box<VersionRecord>),
}

fn next_version(process: &Process) -> Option<Lacking> {
    for (id, whole) in process.versions.wanted() {
        let Some(record) = process.versions.catalog().version(id).ok()? else {
            return Some(Lacking::Record(id));
        };
        if !process.versions.can_boot(&record).ok()? {
            return Some(Lacking::Trees(id, whole, Box::new(record)));
        }
        let filling = process.queue.filling().any(|(f, _)| f == id);
        if whole && !filling {
            let residency = process
                .versions
                .residency(id, &record, &process.cache)
                .ok()?;
            if !residency.complete {
                return Some(Lacking::Trees(id, whole, Box::new(record)));
            }
        }
    }
    None
}

/// The first tree whose manifest is not here, against the same tree of a version of the image that is.
fn begin_tree(process: &Process, version: VersionId, record: &VersionRecord) -> Option<Syncing> {
    let catalog = process.versions.catalog();
    for which in TREES {
        let Some(tree) = record.tree(which) else {
            continue;
        };
        if catalog.manifest(tree.root).ok()?.is_some() {
            continue;
        }
        let parent = catalog
            .versions()
            .ok()?
            .into_iter()
            .rev()
            .find_map(|(id, kin)| {
                let manifest = catalog.manifest(kin.tree(which)?.root).ok()??;
                (id != version).then_some((id, manifest))
            });
        let sync = TreeSync::new(id_key(), version, which, tree, parent);
        return Some(Syncing {
            record: record.clone(),
            tree: which,
            sync: sync.expect("an honest tree is of a size"),
        });
    }
    None
}
