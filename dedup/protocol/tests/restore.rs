//! Chunks that come back from a branch: what is offered is what was wanted and is held, what is taken is what was published.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::HashSet;

use bytes::Bytes;
use common::{Datacenter, NewVersion, id_key, noise};
use dedup::{ChunkId, ChunkerParams, VersionId};
use dedup_protocol::records::Tree;
use dedup_protocol::restore::{Intake, offers};
use dedup_protocol::server::AnswerError;
use dedup_protocol::wire::{Batch, RESTORE_CHUNKS_MAX, Restore, Run, Wanted};
use proptest::prelude::*;

/// A version of 1 KiB chunks, 4096 to a leaf; soft and hard content, some of it repeated.
fn site() -> (Datacenter, VersionId) {
    let mut dc = Datacenter::default();
    let mut disk = noise("restore", 5 << 20);
    disk[..200_000].fill(7);
    let repeated = disk[300_000..400_000].to_vec();
    disk[4_500_000..4_600_000].copy_from_slice(&repeated);
    let version = dc.publish(&NewVersion {
        params: ChunkerParams::new(1024, 1024, 1024).unwrap(),
        ..NewVersion::first("desktop", &disk)
    });
    (dc, version)
}

fn wanted(version: VersionId, places: &[(u32, u16)]) -> Wanted {
    let mut places = places.to_vec();
    places.sort_unstable();
    places.dedup();
    let runs = places.iter().map(|(leaf, first)| Run {
        leaf: *leaf,
        first: *first,
        count: 1,
    });
    Wanted {
        version,
        tree: Tree::Disk,
        runs: runs.collect(),
    }
}

fn made(dc: &Datacenter, wanted: &Wanted, held: impl Fn(ChunkId) -> bool) -> Vec<(Restore, Batch)> {
    let disk = dc.manifest(wanted.version, Tree::Disk);
    let leaf = |index: u32| {
        let leaf = disk.leaves.get(index as usize).ok_or("no such leaf")?;
        assert!(dc.nodes.contains_key(leaf));
        disk.leaf(&dc, index as usize).map_err(|_| "no leaf")
    };
    let read = |id: ChunkId, len: u32| -> Option<Bytes> {
        let chunk = dc.chunks.get(&id).filter(|_| held(id))?;
        assert_eq!(chunk.len(), len as usize);
        Some(chunk.clone())
    };
    offers(wanted, leaf, read).unwrap_or_default()
}

fn intake(dc: &Datacenter, restore: &Restore) -> Result<Intake, AnswerError> {
    Intake::new(&dc, id_key(), restore, |_| true)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn what_is_held_comes_back_and_nothing_else(
        places in prop::collection::vec((0u32..2, 0u16..4200), 0..100),
        hidden in 1u8..5,
    ) {
        let (dc, version) = site();
        let wanted = wanted(version, &places);
        let held = |id: ChunkId| !id.0[0].is_multiple_of(hidden);
        let mut came = HashSet::new();
        for (restore, batch) in made(&dc, &wanted, held) {
            let mut intake = intake(&dc, &restore).unwrap();
            prop_assert!(intake.remaining() <= RESTORE_CHUNKS_MAX);
            for chunk in intake.batch(&batch).unwrap() {
                prop_assert!(held(chunk.id()));
                prop_assert_eq!(chunk.bytes(), &dc.chunks[&chunk.id()]);
                came.insert(chunk.id());
            }
            prop_assert_eq!(intake.remaining(), 0);
        }
        let disk = dc.manifest(version, Tree::Disk);
        let mut due = HashSet::new();
        let mut asked = 0;
        for run in &wanted.runs {
            let leaf = disk.leaf(&&dc, run.leaf as usize).unwrap();
            let extent = leaf.extents.get(usize::from(run.first));
            if let Some(id) = extent.and_then(|e| e.chunk()) {
                asked += 1;
                if asked <= RESTORE_CHUNKS_MAX && held(id) {
                    due.insert(id);
                }
            }
        }
        prop_assert_eq!(came, due);
    }
}

#[test]
fn a_branch_can_give_back_what_was_published_and_nothing_else() {
    let (dc, version) = site();
    let asked = wanted(version, &[(0, 300), (0, 301), (1, 5)]);
    let (restore, batch) = made(&dc, &asked, |_| true).remove(0);
    // A bit of any chunk, a length, a chunk less, a chunk more.
    for at in 0..batch.packed.len() {
        let mut bent = batch.clone();
        bent.packed[at] ^= 0x10;
        assert!(
            intake(&dc, &restore).unwrap().batch(&bent).is_err(),
            "byte {at}"
        );
    }
    for packed in [&batch.packed[..batch.packed.len() - 1], &[], &[0; 4]] {
        let bent = Batch {
            packed: packed.to_vec(),
            ..batch.clone()
        };
        assert!(intake(&dc, &restore).unwrap().batch(&bent).is_err());
    }
    let more = Batch {
        count: batch.count + 1,
        ..batch.clone()
    };
    assert!(intake(&dc, &restore).unwrap().batch(&more).is_err());
    // In another place it is another chunk.
    let elsewhere = Restore {
        runs: vec![restore.runs[1], restore.runs[2]],
        ..restore.clone()
    };
    let two = Batch {
        count: 2,
        ..batch.clone()
    };
    assert!(intake(&dc, &elsewhere).unwrap().batch(&two).is_err());
}

#[test]
fn offers_out_of_range_or_over_the_limit_are_refused() {
    let (dc, version) = site();
    let run = |leaf, first, count| Run { leaf, first, count };
    let many = RESTORE_CHUNKS_MAX as u16 + 1;
    for runs in [
        vec![],
        vec![run(0, 300, many)],
        vec![run(9, 0, 1)],
        vec![run(0, 301, 1), run(0, 300, 1)],
        vec![run(0, 0, 0)],
    ] {
        let restore = Restore {
            version,
            tree: Tree::Disk,
            runs,
        };
        assert!(matches!(
            intake(&dc, &restore),
            Err(AnswerError::BadRequest(_))
        ));
    }
    let restore = Restore {
        version,
        tree: Tree::Kernel,
        runs: vec![run(0, 0, 1)],
    };
    assert!(matches!(
        intake(&dc, &restore),
        Err(AnswerError::NoTree(..))
    ));
    let refused = Intake::new(&&dc, id_key(), &restore, |_| false);
    assert!(matches!(refused, Err(AnswerError::NotReadable(_))));
}
