//! Giving chunks back that are damaged at the datacenter: it asks by place, and gets what is resident and sound here.
//!
//! Each chunk is proven by its name once more before it is sent: the datacenter would find out anyway, but a branch should not spend its
//! line on what nobody can use. Nothing is fetched for this, and nothing of it is kept on disk: the datacenter asks again on each
//! connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use dedup::{Chunk, ChunkId};
use dedup_protocol::restore::offers;
use dedup_protocol::wire::{
    Batch, FRAME_BYTES_MAX, Message, RefuseCode, Restore, Wanted, WireError,
};
use dedup_transport::link::{Class, Link};
use tokio::sync::Notify;

use super::ConnectionEnd;
use crate::cache::ReadOutcome;
use crate::catalog::CatalogError;
use crate::server::Branch;

/// Most that is remembered of what the datacenter asks for: one for each tree of the versions that run here is enough.
const ASKED_MAX: usize = 64;

/// What the datacenter cannot take now is offered again after this: other branches are asked too, and may have it taken by then.
const RETRY: Duration = Duration::from_secs(60);

/// What became of an offer.
enum Given {
    Taken,
    Later,
    Refused,
}

/// What the datacenter asks for and was not looked for yet.
#[derive(Default)]
pub(crate) struct AskedBack {
    wanted: Mutex<VecDeque<Wanted>>,
    came: Notify,
}

impl AskedBack {
    fn wanted(&self) -> MutexGuard<'_, VecDeque<Wanted>> {
        self.wanted.lock().expect("no panic under this lock")
    }

    /// Takes word from the datacenter. What is too much is let go.
    pub(super) fn add(&self, wanted: Wanted) {
        let mut queue = self.wanted();
        if queue.len() == ASKED_MAX {
            queue.pop_front();
        }
        queue.push_back(wanted);
        drop(queue);
        self.came.notify_one();
    }

    fn next(&self) -> Option<Wanted> {
        self.wanted().pop_front()
    }
}

/// Gives back what is asked for until the connection ends.
pub async fn run(branch: &Arc<Branch>, link: &Link) -> Result<Infallible, ConnectionEnd> {
    let asked = &branch.link.asked_back;
    loop {
        while let Some(wanted) = asked.next() {
            let (worker, looked_for) = (Arc::clone(branch), wanted.clone());
            let version = wanted.version;
            let found = tokio::task::spawn_blocking(move || find(&worker, &looked_for)).await?;
            match found {
                Ok(offers) => {
                    for (restore, batch) in offers {
                        match give(link, restore, batch).await? {
                            Given::Taken => {}
                            Given::Later => {
                                tokio::time::sleep(RETRY).await;
                                asked.add(wanted);
                                break;
                            }
                            Given::Refused => break,
                        }
                    }
                }
                Err(error) => {
                    let error = crate::desktop::error_line(&error);
                    tracing::warn!(%version, error, "chunks that the datacenter asks for cannot be looked up");
                }
            }
        }
        asked.came.notified().await;
    }
}

/// What of `wanted` is here.
fn find(branch: &Branch, wanted: &Wanted) -> Result<Vec<(Restore, Batch)>, CatalogError> {
    let catalog = branch.versions.catalog();
    let Some(record) = catalog.version(wanted.version)? else {
        return Ok(Vec::new());
    };
    let Some(tree) = record.tree(wanted.tree) else {
        return Ok(Vec::new());
    };
    let Some(manifest) = catalog.manifest(tree.root)? else {
        return Ok(Vec::new());
    };
    let row = |reason: String| CatalogError::Row {
        key: format!("manifest {}", tree.root),
        reason,
    };
    let leaf = |index: u32| {
        if index as usize >= manifest.leaves.len() {
            return Err(row(format!(
                "it has no leaf {index}, which the datacenter names"
            )));
        }
        manifest
            .leaf(catalog, index as usize)
            .map_err(|e| row(e.to_string()))
    };
    offers(wanted, leaf, |id, len| resident(branch, id, len))
}

/// A chunk, if it is here and sound.
fn resident(branch: &Branch, id: ChunkId, len: u32) -> Option<Bytes> {
    let cache = branch.fetcher.cache();
    if cache.len_of(&id) != Some(len) {
        return None;
    }
    let mut bytes = vec![0; len as usize];
    match cache.read(&id, 0, &mut bytes) {
        Ok(ReadOutcome::Hit) => {}
        _ => return None,
    }
    let chunk = Chunk::verify(&branch.identity.id_key, id, bytes.into());
    chunk.ok().map(|chunk| chunk.bytes().clone())
}

/// Offers chunks.
async fn give(link: &Link, restore: Restore, batch: Batch) -> Result<Given, ConnectionEnd> {
    let version = restore.version;
    let (mut send, mut recv) = link.open(Class::State).await?;
    send.send(&Message::Restore(restore).encode()).await?;
    send.send(&Message::Batch(batch).encode()).await?;
    send.finish()?;
    let Some(answer) = recv.recv(FRAME_BYTES_MAX).await? else {
        return Ok(Given::Refused);
    };
    match Message::decode(&answer)? {
        Message::Restored(restored) => {
            tracing::info!(%version, chunks = restored.chunks, "the datacenter got back what it had lost");
            Ok(Given::Taken)
        }
        Message::Refuse(refuse) if refuse.code == RefuseCode::Busy => Ok(Given::Later),
        Message::Refuse(refuse) => {
            tracing::warn!(%version, code = ?refuse.code, reason = refuse.message, "the datacenter does not take back what it asked for");
            Ok(Given::Refused)
        }
        other => Err(WireError::Unexpected {
            got: other.name(),
            expected: "Restored",
        }
        .into()),
    }
}
