//! The branch's end of requests: what to ask next, and what to believe of the answers.
//!
//! Nothing leaves this module unverified: a tree's outline must hash to the signed root, a leaf to its name in the outline, a chunk to
//! its name in the leaf. State is small and rebuilt from what is stored, so that a cut link costs only the frames in flight.

use std::collections::VecDeque;

use bytes::Bytes;
use dedup::diff::LeafDelta;
use dedup::manifest::DISK_BYTES_MAX;
use dedup::{Chunk, ChunkId, ChunkMismatch, IdKey, Leaf, Manifest, NodeId, VersionId};

use crate::records::{Tree, TreeRef};
use crate::wire::{
    BATCH_RAW_BYTES, Batch, BatchEncoding, GetLeaves, GetOutline, LEAVES_MAX, Leaves, Message,
    Outline,
};

/// Leaves asked for in one request: about 2.5 MB of new leaves, so that a cut repeats little.
const LEAVES_PER_REQUEST: usize = 256;

/// Why an answer was not believed. The link is closed: an honest datacenter never causes one.
#[derive(Debug, thiserror::Error)]
pub enum AnswerRefused {
    /// The outline contradicts the signed record.
    #[error("outline of the {tree:?} tree: {reason}")]
    Outline {
        /// Which tree.
        tree: Tree,
        /// What is wrong.
        reason: String,
    },
    /// A leaf does not match its name.
    #[error("leaf {index}: {reason}")]
    Leaf {
        /// Leaf index.
        index: u32,
        /// What is wrong.
        reason: String,
    },
    /// A batch does not hold what was asked for.
    #[error("batch of {count} chunks: {reason}")]
    Batch {
        /// How many it claims.
        count: u32,
        /// What is wrong.
        reason: String,
    },
    /// A chunk does not match its name.
    #[error(transparent)]
    Chunk(#[from] ChunkMismatch),
    /// An update is not what was asked for, or not one of the two versions.
    #[error("update: {reason}")]
    Update {
        /// What is wrong.
        reason: String,
    },
}

/// What a tree sync does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this on a stream of its own and feed the answers back, then call [`TreeSync::answered`].
    Ask(Message),
    /// The tree is whole.
    Done(Manifest),
}

/// Fetches one tree's manifest by what differs from a parent's.
///
/// ```text
///   Outline ──answered, root verified──► Leaves ──none missing──► (Done)
///      ▲ cut: asked again                  ▲ cut: the missing ones are asked again
/// ```
#[derive(Debug)]
pub struct TreeSync {
    key: IdKey,
    version: VersionId,
    which: Tree,
    tree: TreeRef,
    parent: Option<(VersionId, Manifest)>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Collecting the outline; the manifest has holes (`None`) until it is whole.
    Outline {
        leaves: Vec<Option<NodeId>>,
        params: Option<dedup::ChunkerParams>,
        /// Highest index told so far.
        last: Option<u32>,
    },
    /// The root is verified.
    Leaves { manifest: Manifest, asked: Vec<u32> },
}

impl TreeSync {
    /// Begins. `parent` is a version of which the branch holds the same tree's manifest whole.
    pub fn new(
        key: IdKey,
        version: VersionId,
        which: Tree,
        tree: TreeRef,
        parent: Option<(VersionId, Manifest)>,
    ) -> Result<Self, AnswerRefused> {
        if tree.size_bytes > DISK_BYTES_MAX {
            return Err(AnswerRefused::Outline {
                tree: which,
                reason: format!("{} bytes, at most {DISK_BYTES_MAX}", tree.size_bytes),
            });
        }
        let mut sync = Self {
            key,
            version,
            which,
            tree,
            parent,
            state: State::Outline {
                leaves: Vec::new(),
                params: None,
                last: None,
            },
        };
        sync.restart_outline();
        Ok(sync)
    }

    /// Forgets a half-received outline, after a cut.
    pub fn restart_outline(&mut self) {
        if let State::Outline {
            leaves,
            params,
            last,
        } = &mut self.state
        {
            *params = None;
            *last = None;
            leaves.clear();
            if let Some((_, parent)) = &self.parent {
                leaves.extend(parent.leaves.iter().map(|id| Some(*id)));
            }
            leaves.resize(Manifest::leaf_count(self.tree.size_bytes) as usize, None);
        }
    }

    /// What to do next; `have(leaf)` says whether a leaf is already stored here.
    pub fn next(&mut self, mut have: impl FnMut(NodeId) -> bool) -> Step {
        let (version, tree) = (self.version, self.which);
        let parent = self.parent.as_ref().map(|(id, _)| *id);
        match &mut self.state {
            State::Outline { .. } => Step::Ask(Message::GetOutline(GetOutline {
                version,
                tree,
                parent,
            })),
            State::Leaves { manifest, asked } => {
                let missing = (0u32..).zip(&manifest.leaves);
                // Equal leaves (all zero, say) are asked for once.
                let mut seen = std::collections::HashSet::new();
                *asked = missing
                    .filter(|(_, id)| seen.insert(**id) && !have(**id))
                    .map(|(index, _)| index)
                    .take(LEAVES_PER_REQUEST)
                    .collect();
                if asked.is_empty() {
                    return Step::Done(manifest.clone());
                }
                Step::Ask(Message::GetLeaves(GetLeaves {
                    version,
                    tree,
                    parent,
                    leaves: asked.clone(),
                }))
            }
        }
    }

    /// Takes one frame of the outline.
    pub fn outline(&mut self, part: &Outline) -> Result<(), AnswerRefused> {
        let refuse = |reason: String| AnswerRefused::Outline {
            tree: self.which,
            reason,
        };
        let State::Outline {
            leaves,
            params,
            last,
        } = &mut self.state
        else {
            return Err(refuse("came twice".into()));
        };
        // Ascending, and none empty but an only one: so an outline ends, whatever the other end is.
        if part.changed.len() > LEAVES_MAX || (part.changed.is_empty() && params.is_some()) {
            return Err(refuse(format!(
                "{} leaves in one frame",
                part.changed.len()
            )));
        }
        if part.size_bytes != self.tree.size_bytes {
            return Err(refuse(format!(
                "{} bytes where the signed record says {}",
                part.size_bytes, self.tree.size_bytes
            )));
        }
        *params = Some(part.params);
        for (index, id) in &part.changed {
            let Some(slot) = leaves.get_mut(*index as usize) else {
                return Err(refuse(format!("leaf {index} is beyond the end")));
            };
            if last.is_some_and(|last| *index <= last) {
                return Err(refuse(format!("leaf {index} is out of order")));
            }
            *last = Some(*index);
            *slot = Some(*id);
        }
        Ok(())
    }

    /// The outline's stream ended cleanly: checks it against the signed root.
    pub fn outline_end(&mut self) -> Result<(), AnswerRefused> {
        let refuse = |reason: &str| AnswerRefused::Outline {
            tree: self.which,
            reason: reason.into(),
        };
        let State::Outline { leaves, params, .. } = &mut self.state else {
            return Err(refuse("ended twice"));
        };
        let params = params.ok_or_else(|| refuse("is empty"))?;
        let leaves: Option<Vec<NodeId>> = leaves.iter().copied().collect();
        let manifest = Manifest {
            size_bytes: self.tree.size_bytes,
            params,
            leaves: leaves.ok_or_else(|| refuse("leaves out leaves that no parent supplies"))?,
        };
        if manifest.seal(&self.key).root != self.tree.root {
            return Err(refuse("does not hash to the signed root"));
        }
        self.state = State::Leaves {
            manifest,
            asked: Vec::new(),
        };
        Ok(())
    }

    /// Takes one frame of leaves; returns them verified, encoded as they are to be stored. `stored(id)` reads a leaf the
    /// branch holds, for deltas.
    pub fn leaves(
        &mut self,
        part: &Leaves,
        mut stored: impl FnMut(NodeId) -> Option<Bytes>,
    ) -> Result<Vec<(NodeId, Vec<u8>)>, AnswerRefused> {
        let State::Leaves { manifest, asked } = &mut self.state else {
            return Err(AnswerRefused::Outline {
                tree: self.which,
                reason: "leaves came before it".into(),
            });
        };
        let count = part.entries.len();
        let batch_refused = |reason: String| AnswerRefused::Batch {
            count: count as u32,
            reason,
        };
        if count == 0 || count > asked.len() {
            return Err(batch_refused(format!(
                "{} leaves were asked for",
                asked.len()
            )));
        }
        // Bounded by what a leaf can be, before anything is unpacked.
        let total: u64 = part.entries.iter().map(|(_, len)| u64::from(*len)).sum();
        if total > (BATCH_RAW_BYTES * 2) as u64 {
            return Err(batch_refused(format!(
                "{total} bytes of leaves in one frame"
            )));
        }
        let plain = unpack(&part.packed, total as usize).map_err(batch_refused)?;
        let mut rest = plain.as_slice();
        let mut leaves = Vec::with_capacity(count);
        let indexes: Vec<u32> = asked.drain(..count).collect();
        for (index, (is_delta, len)) in indexes.into_iter().zip(&part.entries) {
            let refuse = |reason: String| AnswerRefused::Leaf { index, reason };
            let (bytes, after) = rest.split_at(*len as usize);
            rest = after;
            let range = Manifest::leaf_len(manifest.size_bytes, u64::from(index));
            let encoded = if *is_delta {
                let parent = self.parent.as_ref().and_then(|(_, p)| {
                    let id = *p.leaves.get(index as usize)?;
                    let len = Manifest::leaf_len(p.size_bytes, u64::from(index));
                    Leaf::decode(&stored(id)?, len).ok()
                });
                let parent = parent.ok_or_else(|| refuse("a delta without its parent".into()))?;
                LeafDelta::decode(bytes)
                    .and_then(|delta| delta.apply(&parent))
                    .map_err(|e| refuse(e.to_string()))?
                    .encode()
            } else {
                bytes.to_vec()
            };
            let expected = manifest.leaves[index as usize];
            if self.key.node_id(&encoded) != expected {
                return Err(refuse(format!("does not hash to {expected}")));
            }
            // The name holds, so a malformed leaf was published by our own datacenter; it is still not let in.
            Leaf::decode(&encoded, range).map_err(|e| refuse(e.to_string()))?;
            leaves.push((expected, encoded));
        }
        Ok(leaves)
    }
}

/// Takes the answer of a chunk request apart.
#[derive(Debug)]
pub struct ChunkExchange {
    key: IdKey,
    expected: VecDeque<(ChunkId, u32)>,
}

impl ChunkExchange {
    /// Expects the chunks that [`crate::server::expand`] lists for the request, with their lengths.
    pub fn new(key: IdKey, expected: Vec<(ChunkId, u32)>) -> Self {
        Self {
            key,
            expected: expected.into(),
        }
    }

    /// Chunks still to come.
    pub fn remaining(&self) -> usize {
        self.expected.len()
    }

    /// Takes word of chunks that the datacenter cannot read; returns which.
    pub fn unreadable(&mut self, count: u32) -> Result<Vec<ChunkId>, AnswerRefused> {
        let due = self.expected.len();
        if count == 0 || count as usize > due {
            let reason = format!("called unreadable, {due} chunks are due");
            return Err(AnswerRefused::Batch { count, reason });
        }
        Ok(self
            .expected
            .drain(..count as usize)
            .map(|(id, _)| id)
            .collect())
    }

    /// Takes one batch; returns its chunks, verified, in the order asked.
    pub fn batch(&mut self, batch: &Batch) -> Result<Vec<Chunk>, AnswerRefused> {
        let refuse = |reason: String| AnswerRefused::Batch {
            count: batch.count,
            reason,
        };
        let count = batch.count as usize;
        if count == 0 || count > self.expected.len() {
            return Err(refuse(format!("{} chunks are due", self.expected.len())));
        }
        let expected: Vec<_> = self.expected.drain(..count).collect();
        match batch.encoding {
            BatchEncoding::Solid => {
                let total: usize = expected.iter().map(|(_, len)| *len as usize).sum();
                if total > BATCH_RAW_BYTES + dedup::CHUNK_BYTES_MAX {
                    return Err(refuse(format!("{total} plain bytes in one batch")));
                }
                let mut plain = Bytes::from(unpack(&batch.packed, total).map_err(refuse)?);
                expected
                    .into_iter()
                    .map(|(id, len)| {
                        let bytes = plain.split_to(len as usize);
                        Ok(Chunk::verify(&self.key, id, bytes)?)
                    })
                    .collect()
            }
            BatchEncoding::Each => {
                let mut rest = batch.packed.as_slice();
                let mut chunks = Vec::with_capacity(count);
                for (id, len) in expected {
                    let (head, after) = rest
                        .split_first_chunk::<4>()
                        .ok_or_else(|| refuse("ends early".into()))?;
                    let head = u32::from_le_bytes(*head);
                    let (stored, after) = after
                        .split_at_checked((head >> 1) as usize)
                        .ok_or_else(|| refuse("ends early".into()))?;
                    rest = after;
                    let bytes = if head & 1 == 1 {
                        unpack(stored, len as usize).map_err(refuse)?
                    } else {
                        stored.to_vec()
                    };
                    chunks.push(Chunk::verify(&self.key, id, bytes.into())?);
                }
                if !rest.is_empty() {
                    return Err(refuse(format!("{} bytes after the last", rest.len())));
                }
                Ok(chunks)
            }
        }
    }
}

/// Unpacks a zstd frame into exactly `len` bytes. The output buffer is the limit: a frame that would unpack to gigabytes fails
/// without ever having them.
fn unpack(packed: &[u8], len: usize) -> Result<Vec<u8>, String> {
    let mut plain = vec![0; len];
    let got = zstd::bulk::decompress_to_buffer(packed, &mut plain)
        .map_err(|e| format!("does not unpack into {len} bytes: {e}"))?;
    if got != len {
        return Err(format!("unpacks to {got} bytes, {len} are due"));
    }
    Ok(plain)
}
