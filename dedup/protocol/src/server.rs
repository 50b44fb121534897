//! The datacenter's end of a request stream: one request in, frames out.
//!
//! A [`Responder`] is pulled by its owner, a frame at a time, so that a slow link holds no more than one frame of memory a stream.
//! It reads what it answers from a [`Content`]; it does no I/O of its own and knows nothing of connections. Who may read what is
//! decided by its owner before it is made.

use std::sync::Arc;

use bytes::Bytes;
use dedup::diff::{LeafDelta, changed_leaves};
use dedup::{ChunkId, Leaf, Manifest, NodeId, NodeSource, VersionId};

use crate::records::{Tree, TreeRef, VersionRecord};
use crate::state::began::StateName;
use crate::wire::{
    BATCH_RAW_BYTES, Batch, BatchEncoding, CHUNKS_MAX, GetChunks, GetLeaves, GetOutline,
    LEAVES_MAX, Leaves, Message, Outline, RUNS_MAX, Refuse, RefuseCode, Run, SignedBytes,
    Unreadable, Urgency,
};

/// zstd level for batches made while a branch waits: two cores make 500 MB/s of it.
const BATCH_LEVEL: i32 = 3;

/// A chunk as the store keeps it.
#[derive(Debug, Clone)]
pub struct StoredBytes {
    /// Whether `bytes` are one zstd frame, else plain.
    pub zstd: bool,
    /// The bytes.
    pub bytes: Bytes,
}

/// What a responder reads from.
pub trait Content: NodeSource {
    /// A published version: its envelope and its record.
    fn version(&self, id: VersionId) -> Result<Option<PublishedVersion>, Self::Error>;
    /// A chunk, verified, plain. Who implements this tells IT of what cannot be read; the branch is told only that it cannot.
    fn chunk(&self, id: ChunkId) -> Result<Bytes, Self::Error>;
    /// A chunk as stored, its checksum verified.
    fn stored_chunk(&self, id: ChunkId) -> Result<StoredBytes, Self::Error>;
}

/// A version as the catalog has it.
#[derive(Debug, Clone)]
pub struct PublishedVersion {
    /// `Signed<VersionRecord>` in encoded form.
    pub signed: Bytes,
    /// The same, opened.
    pub record: Arc<VersionRecord>,
}

/// Why a request ends with a refusal. [`AnswerError::refusal`] is what the branch is told.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Not found, or not for this branch.
    #[error("version {0} is not readable by this branch")]
    NotReadable(VersionId),
    /// The version lacks that tree.
    #[error("version {0} has no {1:?} tree")]
    NoTree(VersionId, Tree),
    /// Over a limit or out of range.
    #[error("{0}")]
    BadRequest(String),
    /// Our content could not be read: our fault, and an alarm here.
    #[error("content of version {version} could not be read")]
    Content {
        /// Asked-for version.
        version: VersionId,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl AnswerError {
    /// The message that ends the stream.
    pub fn refusal(&self) -> Message {
        let code = match self {
            Self::NotReadable(_) => RefuseCode::NotReadable,
            Self::NoTree(..) | Self::BadRequest(_) => RefuseCode::BadRequest,
            Self::Content { .. } => RefuseCode::Damaged,
        };
        Message::Refuse(Refuse {
            code,
            message: self.to_string(),
        })
    }
}

/// The answer to one request, made frame by frame.
pub struct Responder<C> {
    content: C,
    version: VersionId,
    work: Work,
}

enum Work {
    Version(Option<Bytes>),
    Outline {
        tree: Manifest,
        changed: std::vec::IntoIter<(u32, NodeId)>,
        first: bool,
    },
    Leaves {
        tree: Manifest,
        parent: Option<Manifest>,
        wanted: std::vec::IntoIter<u32>,
    },
    Chunks {
        urgency: Urgency,
        wanted: std::vec::IntoIter<(ChunkId, u32)>,
    },
}

impl<C: Content> Responder<C> {
    /// Takes a request. `readable` says whether this branch may read a version.
    pub fn new(
        content: C,
        request: &Message,
        readable: impl Fn(VersionId) -> bool,
    ) -> Result<Self, AnswerError> {
        let version = match request {
            Message::GetVersion(r) => r.version,
            Message::GetOutline(r) => r.version,
            Message::GetLeaves(r) => r.version,
            Message::GetChunks(r) => r.version,
            other => {
                let error = format!("{} is not a request", other.name());
                return Err(AnswerError::BadRequest(error));
            }
        };
        if !readable(version) {
            return Err(AnswerError::NotReadable(version));
        }
        let published = find(&content, version, version)?;
        let work = match request {
            Message::GetOutline(r) => outline(&content, &published.record, r)?,
            Message::GetLeaves(r) => leaves(&content, &published.record, r)?,
            Message::GetChunks(r) => chunks(&content, &published.record, r)?,
            _ => Work::Version(Some(published.signed)),
        };
        Ok(Self {
            content,
            version,
            work,
        })
    }

    /// The next frame; `None` when the answer is whole.
    pub fn next_frame(&mut self) -> Result<Option<Message>, AnswerError> {
        match &mut self.work {
            Work::Version(signed) => Ok(signed.take().map(|bytes| {
                Message::Version(SignedBytes {
                    bytes: bytes.to_vec(),
                })
            })),
            Work::Outline {
                tree,
                changed,
                first,
            } => {
                let part: Vec<_> = changed.by_ref().take(LEAVES_MAX).collect();
                // An unchanged tree still gets one frame: it tells size and parameters.
                if part.is_empty() && !std::mem::take(first) {
                    return Ok(None);
                }
                *first = false;
                Ok(Some(Message::Outline(Outline {
                    size_bytes: tree.size_bytes,
                    params: tree.params,
                    changed: part,
                })))
            }
            Work::Leaves {
                tree,
                parent,
                wanted,
            } => leaf_frame(&self.content, tree, parent.as_ref(), wanted, self.version),
            Work::Chunks { urgency, wanted } => {
                if wanted.len() == 0 {
                    return Ok(None);
                }
                let batch = match urgency {
                    Urgency::Demand => each_batch(&self.content, wanted),
                    Urgency::Boot | Urgency::Fill => solid_batch(&self.content, wanted),
                };
                Ok(Some(match batch {
                    Ok(batch) => Message::Batch(batch),
                    // One damaged chunk must not keep the others from a guest.
                    Err(_) => Message::Unreadable(Unreadable {
                        count: 1,
                        message: format!("a chunk of version {} is damaged", self.version),
                    }),
                }))
            }
        }
    }
}

fn content_error<C: Content>(version: VersionId) -> impl Fn(C::Error) -> AnswerError {
    move |source| AnswerError::Content {
        version,
        source: Box::new(source),
    }
}

fn find<C: Content>(
    content: &C,
    id: VersionId,
    asked: VersionId,
) -> Result<PublishedVersion, AnswerError> {
    content
        .version(id)
        .map_err(content_error::<C>(asked))?
        .ok_or(AnswerError::NotReadable(id))
}

fn tree_of(record: &VersionRecord, version: VersionId, tree: Tree) -> Result<TreeRef, AnswerError> {
    record.tree(tree).ok_or(AnswerError::NoTree(version, tree))
}

fn load<C: Content>(
    content: &C,
    version: VersionId,
    tree: TreeRef,
) -> Result<Manifest, AnswerError> {
    Manifest::load(content, tree.root).map_err(|e| AnswerError::Content {
        version,
        source: Box::new(e),
    })
}

/// The parent's tree, if the parent is of the same image: leaves of other images would tell what they contain.
fn parent_tree<C: Content>(
    content: &C,
    record: &VersionRecord,
    version: VersionId,
    parent: Option<VersionId>,
    tree: Tree,
) -> Result<Option<TreeRef>, AnswerError> {
    let Some(parent) = parent else {
        return Ok(None);
    };
    // Against what desktops wrote nobody is told anything.
    if StateName::of_version(parent).is_some() {
        return Err(AnswerError::NotReadable(parent));
    }
    let parent_record = find(content, parent, version)?.record;
    if parent_record.image != record.image {
        return Err(AnswerError::NotReadable(parent));
    }
    Ok(parent_record.tree(tree))
}

fn outline<C: Content>(
    content: &C,
    record: &VersionRecord,
    request: &GetOutline,
) -> Result<Work, AnswerError> {
    let version = request.version;
    let tree = tree_of(record, version, request.tree)?;
    let parent = parent_tree(content, record, version, request.parent, request.tree)?;
    let manifest = load(content, version, tree)?;
    let changed: Vec<(u32, NodeId)> = match parent {
        Some(parent) => changed_leaves(content, parent.root, tree.root)
            .map_err(|e| AnswerError::Content {
                version,
                source: Box::new(e),
            })?
            .into_iter()
            .map(|c| (c.index as u32, c.new))
            .collect(),
        None => (0..).zip(manifest.leaves.iter().copied()).collect(),
    };
    Ok(Work::Outline {
        tree: manifest,
        changed: changed.into_iter(),
        first: true,
    })
}

fn leaves<C: Content>(
    content: &C,
    record: &VersionRecord,
    request: &GetLeaves,
) -> Result<Work, AnswerError> {
    let version = request.version;
    let tree = tree_of(record, version, request.tree)?;
    let parent = parent_tree(content, record, version, request.parent, request.tree)?;
    let manifest = load(content, version, tree)?;
    if request.leaves.len() > LEAVES_MAX {
        return Err(AnswerError::BadRequest(format!(
            "{} leaves in one request, at most {LEAVES_MAX}",
            request.leaves.len()
        )));
    }
    if !request.leaves.is_sorted_by(|a, b| a < b) {
        let error = "leaf indexes must be ascending, each once".into();
        return Err(AnswerError::BadRequest(error));
    }
    check_leaf_indexes(&manifest, request.leaves.iter().copied())?;
    let parent = parent.map(|p| load(content, version, p)).transpose()?;
    Ok(Work::Leaves {
        tree: manifest,
        parent,
        wanted: request.leaves.clone().into_iter(),
    })
}

/// The manifest of one tree of a version.
pub(crate) fn tree<C: Content>(
    content: &C,
    version: VersionId,
    which: Tree,
) -> Result<Manifest, AnswerError> {
    let record = find(content, version, version)?.record;
    load(content, version, tree_of(&record, version, which)?)
}

pub(crate) fn check_leaf_indexes(
    manifest: &Manifest,
    mut indexes: impl Iterator<Item = u32>,
) -> Result<(), AnswerError> {
    match indexes.find(|i| *i as usize >= manifest.leaves.len()) {
        Some(index) => Err(AnswerError::BadRequest(format!(
            "leaf {index} of a tree of {}",
            manifest.leaves.len()
        ))),
        None => Ok(()),
    }
}

fn leaf_frame<C: Content>(
    content: &C,
    tree: &Manifest,
    parent: Option<&Manifest>,
    wanted: &mut std::vec::IntoIter<u32>,
    version: VersionId,
) -> Result<Option<Message>, AnswerError> {
    if wanted.len() == 0 {
        return Ok(None);
    }
    let broken = |e: dedup::manifest::ManifestError<C::Error>| AnswerError::Content {
        version,
        source: Box::new(e),
    };
    let mut entries = Vec::new();
    let mut plain = Vec::new();
    while plain.len() < BATCH_RAW_BYTES / 4 {
        let Some(index) = wanted.next() else { break };
        let index = index as usize;
        let leaf = tree.leaf(content, index).map_err(broken)?;
        let mut best = (false, leaf.encode());
        if let Some(parent) = parent.filter(|p| index < p.leaves.len()) {
            let before = parent.leaf(content, index).map_err(broken)?;
            let delta = LeafDelta::between(&before, &leaf).encode();
            if delta.len() < best.1.len() {
                best = (true, delta);
            }
        }
        entries.push((best.0, best.1.len() as u32));
        plain.extend_from_slice(&best.1);
    }
    Ok(Some(Message::Leaves(Leaves {
        entries,
        packed: pack(&plain),
    })))
}

fn chunks<C: Content>(
    content: &C,
    record: &VersionRecord,
    request: &GetChunks,
) -> Result<Work, AnswerError> {
    let version = request.version;
    let tree = tree_of(record, version, request.tree)?;
    let manifest = load(content, version, tree)?;
    check_leaf_indexes(&manifest, request.runs.iter().map(|r| r.leaf))?;
    let wanted = expand(&request.runs, |index| {
        manifest
            .leaf(content, index as usize)
            .map_err(|e| AnswerError::Content {
                version,
                source: Box::new(e),
            })
    })?;
    Ok(Work::Chunks {
        urgency: request.urgency,
        wanted: wanted.into_iter(),
    })
}

/// The chunks that `runs` ask for, in the order both ends use: runs in order, zero extents left out, and an extent that
/// shows the same chunk as the one before it left out.
pub fn expand<E: From<AnswerError>>(
    runs: &[Run],
    mut leaf: impl FnMut(u32) -> Result<Leaf, E>,
) -> Result<Vec<(ChunkId, u32)>, E> {
    let bad = |text: String| E::from(AnswerError::BadRequest(text));
    if runs.len() > RUNS_MAX {
        return Err(bad(format!(
            "{} runs in one request, at most {RUNS_MAX}",
            runs.len()
        )));
    }
    let mut wanted: Vec<(ChunkId, u32)> = Vec::new();
    let mut open: Option<(u32, Leaf)> = None;
    // Ascending runs open each leaf once; anything else would make the datacenter work far more than the asker.
    let mut next = (0, 0);
    for run in runs {
        if run.count == 0 || (run.leaf, u32::from(run.first)) < next {
            return Err(bad(
                "runs must be ascending, without overlap, and not empty".into(),
            ));
        }
        next = (run.leaf, u32::from(run.first) + u32::from(run.count));
        if open.as_ref().is_none_or(|(index, _)| *index != run.leaf) {
            open = Some((run.leaf, leaf(run.leaf)?));
        }
        let extents = &open.as_ref().expect("just opened").1.extents;
        let (first, count) = (usize::from(run.first), usize::from(run.count));
        let Some(extents) = extents.get(first..first + count) else {
            return Err(bad(format!(
                "extents {first}..{} of leaf {} that has {}",
                first + count,
                run.leaf,
                extents.len()
            )));
        };
        for extent in extents {
            if let dedup::ExtentSource::Chunk { id, chunk_len, .. } = extent.source
                && wanted.last().is_none_or(|(last, _)| *last != id)
            {
                wanted.push((id, chunk_len));
            }
        }
        if wanted.len() > CHUNKS_MAX {
            return Err(bad(format!("more than {CHUNKS_MAX} chunks in one request")));
        }
    }
    Ok(wanted)
}

/// The next of `wanted` as one frame. A chunk that cannot be read ends a batch before it, and is taken off the list when it is
/// the first.
fn solid_batch<C: Content>(
    content: &C,
    wanted: &mut std::vec::IntoIter<(ChunkId, u32)>,
) -> Result<Batch, C::Error> {
    let mut plain = Vec::with_capacity(BATCH_RAW_BYTES + dedup::CHUNK_BYTES_MAX);
    let mut count = 0;
    while plain.len() < BATCH_RAW_BYTES {
        match next_readable(wanted, count, |id| content.chunk(id))? {
            Some(chunk) => plain.extend_from_slice(&chunk),
            None => break,
        }
        count += 1;
    }
    Ok(Batch {
        count,
        encoding: BatchEncoding::Solid,
        packed: pack(&plain),
    })
}

fn each_batch<C: Content>(
    content: &C,
    wanted: &mut std::vec::IntoIter<(ChunkId, u32)>,
) -> Result<Batch, C::Error> {
    // A waiting guest should not wait for the whole request: a frame goes out every quarter of a megabyte.
    let mut packed = Vec::new();
    let mut count = 0;
    while packed.len() < 256 << 10 {
        let Some(stored) = next_readable(wanted, count, |id| content.stored_chunk(id))? else {
            break;
        };
        let head = (stored.bytes.len() as u32) << 1 | u32::from(stored.zstd);
        packed.extend_from_slice(&head.to_le_bytes());
        packed.extend_from_slice(&stored.bytes);
        count += 1;
    }
    Ok(Batch {
        count,
        encoding: BatchEncoding::Each,
        packed,
    })
}

fn next_readable<T, E>(
    wanted: &mut std::vec::IntoIter<(ChunkId, u32)>,
    count: u32,
    read: impl FnOnce(ChunkId) -> Result<T, E>,
) -> Result<Option<T>, E> {
    let Some((id, _)) = wanted.as_slice().first().copied() else {
        return Ok(None);
    };
    let read = read(id);
    if read.is_err() && count > 0 {
        return Ok(None);
    }
    wanted.next();
    read.map(Some)
}

fn pack(plain: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(plain, BATCH_LEVEL)
        .expect("zstd compresses into a buffer of its own bound")
}
