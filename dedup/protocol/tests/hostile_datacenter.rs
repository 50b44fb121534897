//! A datacenter that lies: a branch believes nothing that does not match a signed record, and says what was wrong.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::io::Read;

use bytes::Bytes;
use common::{Branch, Datacenter, NewVersion, id_key, noise, peak};
use dedup::{ChunkId, LEAF_BYTES, NodeId, VersionId};
use dedup_protocol::client::{AnswerRefused, ChunkExchange, Step, TreeSync};
use dedup_protocol::records::{Tree, TreeRef};
use dedup_protocol::server::{AnswerError, expand};
use dedup_protocol::wire::{
    Batch, BatchEncoding, GetChunks, GetLeaves, LEAVES_MAX, Leaves, Message, Outline, Run, Urgency,
};

struct Site {
    dc: Datacenter,
    first: VersionId,
    second: VersionId,
    /// Holds the first version's leaves.
    held: Branch,
}

fn site() -> Site {
    let mut dc = Datacenter::default();
    let mut disk = noise("hostile datacenter", 3 * LEAF_BYTES as usize + 5000);
    let first = dc.publish(&NewVersion::first("desktop", &disk));
    let mut held = Branch::default();
    for id in dc.manifest(first, Tree::Disk).leaves {
        held.leaves.insert(id, dc.nodes[&id].clone());
    }
    disk[0] ^= 1;
    disk[9 << 20] ^= 1;
    let second = dc.publish(&NewVersion {
        number: 2,
        parent: Some(first),
        ..NewVersion::first("desktop", &disk)
    });
    Site {
        dc,
        first,
        second,
        held,
    }
}

impl Site {
    fn sync(&self) -> TreeSync {
        let parent = (self.first, self.dc.manifest(self.first, Tree::Disk));
        let tree = self.dc.record(self.second).disk;
        TreeSync::new(id_key(), self.second, Tree::Disk, tree, Some(parent)).unwrap()
    }

    fn ask(&self, sync: &mut TreeSync) -> Message {
        match sync.next(|id| self.held.leaves.contains_key(&id)) {
            Step::Ask(request) => request,
            Step::Done(_) => panic!("nothing was fetched yet"),
        }
    }

    fn honest_outline(&self, sync: &mut TreeSync) -> Outline {
        match self.dc.answer(&self.ask(sync)).unwrap().remove(0) {
            Message::Outline(outline) => outline,
            other => panic!("{} came", other.name()),
        }
    }

    /// A sync past its outline, and the honest answer to what it asks then.
    fn at_leaves(&self) -> (TreeSync, Leaves) {
        let mut sync = self.sync();
        let outline = self.honest_outline(&mut sync);
        sync.outline(&outline).unwrap();
        sync.outline_end().unwrap();
        match self.dc.answer(&self.ask(&mut sync)).unwrap().remove(0) {
            Message::Leaves(leaves) => (sync, leaves),
            other => panic!("{} came", other.name()),
        }
    }

    fn give(&self, sync: &mut TreeSync, leaves: &Leaves) -> Result<usize, AnswerRefused> {
        let stored = |id: NodeId| self.held.leaves.get(&id).cloned();
        sync.leaves(leaves, stored).map(|leaves| leaves.len())
    }
}

#[test]
fn an_outline_must_be_the_signed_tree() {
    let site = site();
    type Lie = fn(&mut Outline);
    let lies: [(Lie, &str); 8] = [
        (|o| o.size_bytes += 1, "where the signed record says"),
        (|o| o.changed[1].0 = 99, "leaf 99 is beyond the end"),
        (|o| o.changed.reverse(), "leaf 0 is out of order"),
        (|o| o.changed[1] = o.changed[0], "leaf 0 is out of order"),
        (
            |o| o.changed.truncate(1),
            "does not hash to the signed root",
        ),
        (
            |o| o.changed.push((3, NodeId([1; 32]))),
            "does not hash to the signed root",
        ),
        (
            |o| o.changed[0].1.0[31] ^= 1,
            "does not hash to the signed root",
        ),
        (|o| o.params.avg *= 2, "does not hash to the signed root"),
    ];
    for (lie, word) in lies {
        let mut sync = site.sync();
        let mut outline = site.honest_outline(&mut sync);
        assert_eq!(outline.changed.len(), 2, "two leaves changed");
        lie(&mut outline);
        let result = sync.outline(&outline).and_then(|()| sync.outline_end());
        let error = result.expect_err(word).to_string();
        assert!(
            error.starts_with("outline of the Disk tree") && error.contains(word),
            "{error}"
        );
        // The sync is not spoilt: an honest answer after it is believed.
        sync.restart_outline();
        let outline = site.honest_outline(&mut sync);
        sync.outline(&outline).unwrap();
        sync.outline_end().unwrap();
    }
}

#[test]
fn an_outline_ends_and_is_whole() {
    let site = site();
    let mut sync = site.sync();
    assert!(
        sync.outline_end()
            .unwrap_err()
            .to_string()
            .contains("is empty")
    );
    let mut outline = site.honest_outline(&mut sync);
    sync.outline(&outline).unwrap();
    // The same frames again and again, or empty ones, would never end.
    assert!(
        sync.outline(&outline)
            .unwrap_err()
            .to_string()
            .contains("out of order")
    );
    outline.changed.clear();
    assert!(
        sync.outline(&outline)
            .unwrap_err()
            .to_string()
            .contains("0 leaves in one frame")
    );
    outline.changed = (0..=LEAVES_MAX as u32)
        .map(|i| (i, NodeId([0; 32])))
        .collect();
    assert!(
        sync.outline(&outline)
            .unwrap_err()
            .to_string()
            .contains("4097 leaves in one frame")
    );
    sync.outline_end().unwrap();
    assert!(
        sync.outline(&outline)
            .unwrap_err()
            .to_string()
            .contains("came twice")
    );
    assert!(
        sync.outline_end()
            .unwrap_err()
            .to_string()
            .contains("ended twice")
    );

    // Without a parent everything must be told.
    let tree = site.dc.record(site.second).disk;
    let mut sync = TreeSync::new(id_key(), site.second, Tree::Disk, tree, None).unwrap();
    let mut outline = site.honest_outline(&mut sync);
    assert_eq!(outline.changed.len(), 4);
    outline.changed.remove(2);
    sync.outline(&outline).unwrap();
    let error = sync.outline_end().unwrap_err().to_string();
    assert!(
        error.contains("leaves out leaves that no parent supplies"),
        "{error}"
    );
    // A size that no disk has is refused before room is made for its leaves.
    let huge = TreeRef {
        size_bytes: u64::MAX,
        ..tree
    };
    let (refused, held) =
        peak::during(|| TreeSync::new(id_key(), site.second, Tree::Disk, huge, None).is_err());
    assert!(refused && held < 4096, "{held}");
}

#[test]
fn a_leaf_must_match_its_name() {
    let site = site();
    let (mut sync, honest) = site.at_leaves();
    assert_eq!(site.give(&mut sync, &honest).unwrap(), 2);
    assert!(honest.entries.iter().all(|(is_delta, _)| *is_delta));

    let plain = zstd::bulk::decompress(&honest.packed, 1 << 20).unwrap();
    let pack = |plain: &[u8]| zstd::bulk::compress(plain, 3).unwrap();
    // Any bit of what is unpacked.
    for bit in 0..plain.len() * 8 {
        let mut bent = plain.clone();
        bent[bit / 8] ^= 1 << (bit % 8);
        let lie = Leaves {
            packed: pack(&bent),
            ..honest.clone()
        };
        let (mut sync, _) = site.at_leaves();
        let error = site
            .give(&mut sync, &lie)
            .expect_err("a flipped bit went unnoticed");
        assert!(matches!(error, AnswerRefused::Leaf { .. }), "{error}");
    }
    let swapped = {
        let (a, b) = plain.split_at(honest.entries[0].1 as usize);
        Leaves {
            entries: honest.entries.iter().rev().copied().collect(),
            packed: pack(&[b, a].concat()),
        }
    };
    let with = |entries: Vec<(bool, u32)>| Leaves {
        entries,
        ..honest.clone()
    };
    let [a, b] = [honest.entries[0].1, honest.entries[1].1];
    for (lie, word) in [
        (swapped, "leaf 0: "),
        (with(vec![(false, a), (true, b)]), "does not hash to"),
        (with(vec![(true, a + 1), (true, b - 1)]), "leaf 0: "),
        (
            with(vec![(true, a), (true, b), (true, 0)]),
            "2 leaves were asked for",
        ),
        (with(vec![]), "2 leaves were asked for"),
        (with(vec![(true, a)]), "does not unpack into"),
        (with(vec![(true, a), (true, b + 1)]), "are due"),
        (
            with(vec![(true, u32::MAX), (true, u32::MAX)]),
            "8589934590 bytes of leaves",
        ),
    ] {
        let (mut sync, _) = site.at_leaves();
        let (result, held) = peak::during(|| site.give(&mut sync, &lie));
        let error = result.expect_err(word).to_string();
        assert!(error.contains(word), "{error:?} lacks {word:?}");
        assert!(held < 4 << 20, "{held}");
    }
}

#[test]
fn a_delta_needs_its_parent_and_leaves_need_their_outline() {
    let site = site();
    let (mut sync, honest) = site.at_leaves();
    let error = sync.leaves(&honest, |_| None).unwrap_err().to_string();
    assert!(error.contains("a delta without its parent"), "{error}");
    // What is stored under the parent's name is not believed either.
    let (mut sync, honest) = site.at_leaves();
    assert!(
        sync.leaves(&honest, |_| Some(Bytes::from_static(b"rubbish")))
            .is_err()
    );
    let mut early = site.sync();
    let error = site.give(&mut early, &honest).unwrap_err().to_string();
    assert!(error.contains("leaves came before it"), "{error}");
}

fn exchange(site: &Site, runs: Vec<Run>, urgency: Urgency) -> (ChunkExchange, Vec<Batch>) {
    let manifest = site.dc.manifest(site.first, Tree::Disk);
    let expected = expand(&runs, |leaf| {
        Ok::<_, AnswerError>(manifest.leaf(&&site.dc, leaf as usize).unwrap())
    });
    let request = Message::GetChunks(GetChunks {
        version: site.first,
        tree: Tree::Disk,
        urgency,
        runs,
    });
    let frames = site.dc.answer(&request).unwrap().into_iter();
    let batches = frames.map(|frame| match frame {
        Message::Batch(batch) => batch,
        other => panic!("{} came", other.name()),
    });
    (
        ChunkExchange::new(id_key(), expected.unwrap()),
        batches.collect(),
    )
}

const EIGHT: Run = Run {
    leaf: 1,
    first: 1,
    count: 8,
};

#[test]
fn a_chunk_must_match_its_name() {
    let site = site();
    for urgency in [Urgency::Demand, Urgency::Fill] {
        let (mut exchange_, honest) = exchange(&site, vec![EIGHT], urgency);
        let [honest] = &honest[..] else {
            panic!("one batch")
        };
        assert_eq!(exchange_.batch(honest).unwrap().len(), 8);
        assert_eq!(exchange_.remaining(), 0);
        assert!(exchange_.batch(honest).is_err(), "the same once more");
        // Noise does not compress, so nearly every packed byte is a byte of a chunk; a few are heads and checks.
        for at in (0..honest.packed.len()).step_by(499).chain(0..40) {
            let mut bent = honest.clone();
            bent.packed[at] ^= 0x10;
            let (mut exchange, _) = exchange(&site, vec![EIGHT], urgency);
            match exchange.batch(&bent) {
                Err(_) => {}
                // A bit that zstd ignores: what came is what was asked for all the same.
                Ok(chunks) => assert_eq!(chunks.len(), 8, "byte {at}"),
            }
        }
        for (count, word) in [
            (0, "8 chunks are due"),
            (9, "8 chunks are due"),
            (u32::MAX, "8 chunks are due"),
            (7, ""),
        ] {
            let (mut exchange, _) = exchange(&site, vec![EIGHT], urgency);
            let lie = Batch {
                count,
                ..honest.clone()
            };
            let error = exchange.batch(&lie).expect_err("a wrong count").to_string();
            assert!(error.contains(word), "{error}");
        }
        let (mut exchange, _) = exchange(&site, vec![EIGHT], urgency);
        let mut short = honest.clone();
        short.packed.truncate(short.packed.len() - 1);
        assert!(exchange.batch(&short).is_err());
    }
}

#[test]
fn another_chunk_and_another_order_are_refused() {
    let site = site();
    for urgency in [Urgency::Demand, Urgency::Boot] {
        // The chunks of other places, as good as any.
        let elsewhere = Run { first: 2, ..EIGHT };
        let (_, wrong) = exchange(&site, vec![elsewhere], urgency);
        let (mut exchange, _) = exchange(&site, vec![EIGHT], urgency);
        assert!(exchange.batch(&wrong[0]).is_err());
    }
    // Two whole chunks, the wrong way round.
    let run = |first| Run {
        leaf: 1,
        first,
        count: 1,
    };
    let (_, third) = exchange(&site, vec![run(3)], Urgency::Demand);
    let (_, fourth) = exchange(&site, vec![run(4)], Urgency::Demand);
    let back = Batch {
        count: 2,
        encoding: BatchEncoding::Each,
        packed: [fourth[0].packed.clone(), third[0].packed.clone()].concat(),
    };
    let (mut forth, _) = exchange(&site, vec![run(3), run(4)], Urgency::Demand);
    assert!(matches!(forth.batch(&back), Err(AnswerRefused::Chunk(_))));
}

#[test]
fn heads_of_single_chunks_are_checked() {
    let plain = b"sixteen bytes or";
    let id = id_key().chunk_id(plain);
    let batch = |packed: Vec<u8>| Batch {
        count: 1,
        encoding: BatchEncoding::Each,
        packed,
    };
    let give = |packed: Vec<u8>| {
        let mut exchange = ChunkExchange::new(id_key(), vec![(id, 16)]);
        peak::during(|| exchange.batch(&batch(packed)))
    };
    let head = |len: u32| len.to_le_bytes().to_vec();
    let good = [head(32), plain.to_vec()].concat();
    assert_eq!(give(good.clone()).0.unwrap()[0].id(), id);
    for (packed, word) in [
        (vec![], "ends early"),
        (head(32)[..3].to_vec(), "ends early"),
        (head(u32::MAX), "ends early"),
        (good[..good.len() - 1].to_vec(), "ends early"),
        ([good.clone(), vec![0]].concat(), "1 bytes after the last"),
        (
            [head(33), plain.to_vec()].concat(),
            "does not unpack into 16 bytes",
        ),
        (
            [head(30), plain.to_vec()].concat(),
            "does not match its name",
        ),
    ] {
        let (result, held) = give(packed);
        let error = result.expect_err(word).to_string();
        assert!(error.contains(word), "{error:?} lacks {word:?}");
        assert!(held < 1 << 20, "{held}");
    }
}

/// 1 GiB of zeros in a frame of some kilobytes.
fn bomb() -> Vec<u8> {
    let mut packed = Vec::new();
    let zeros = std::io::repeat(0).take(1 << 30);
    zstd::stream::copy_encode(zeros, &mut packed, 1).unwrap();
    assert!(packed.len() < 200 << 10, "{}", packed.len());
    packed
}

#[test]
fn a_batch_that_unpacks_to_gigabytes_never_gets_them() {
    let bomb = bomb();
    let id = ChunkId([1; 32]);
    let each = {
        let head = (bomb.len() as u32) << 1 | 1;
        [&head.to_le_bytes()[..], &bomb].concat()
    };
    for (encoding, packed) in [
        (BatchEncoding::Solid, bomb.clone()),
        (BatchEncoding::Each, each),
    ] {
        let mut exchange = ChunkExchange::new(id_key(), vec![(id, 65_536)]);
        let batch = Batch {
            count: 1,
            encoding,
            packed,
        };
        let (result, held) = peak::during(|| exchange.batch(&batch));
        let error = result.unwrap_err().to_string();
        assert!(
            error.contains("does not unpack into 65536 bytes"),
            "{error}"
        );
        assert!(held < 1 << 20, "{held} bytes were held");
    }
    let site = site();
    let (mut sync, honest) = site.at_leaves();
    let lie = Leaves {
        packed: bomb,
        ..honest
    };
    let (result, held) = peak::during(|| site.give(&mut sync, &lie));
    assert!(result.is_err() && held < 1 << 20, "{held} bytes were held");
}

/// More plain bytes than any honest batch has are not even unpacked.
#[test]
fn a_batch_has_a_largest_size() {
    let expected = vec![(ChunkId([1; 32]), 256 << 10); 18];
    let mut exchange = ChunkExchange::new(id_key(), expected);
    let batch = Batch {
        count: 18,
        encoding: BatchEncoding::Solid,
        packed: vec![],
    };
    let (result, held) = peak::during(|| exchange.batch(&batch));
    let error = result.unwrap_err().to_string();
    assert!(
        error.contains("4718592 plain bytes in one batch"),
        "{error}"
    );
    assert!(held < 1 << 20, "{held}");
}

/// A leaf request is answered leaf by leaf in the order asked; one that was asked for without a parent is never a delta.
#[test]
fn without_a_parent_there_is_no_delta() {
    let site = site();
    let request = Message::GetLeaves(GetLeaves {
        version: site.second,
        tree: Tree::Disk,
        parent: None,
        leaves: vec![0, 2],
    });
    let Message::Leaves(leaves) = site.dc.answer(&request).unwrap().remove(0) else {
        panic!("leaves were asked for");
    };
    assert!(leaves.entries.iter().all(|(is_delta, _)| !is_delta));
    let manifest = site.dc.manifest(site.second, Tree::Disk);
    let total: u32 = leaves.entries.iter().map(|(_, len)| len).sum();
    let plain = zstd::bulk::decompress(&leaves.packed, total as usize).unwrap();
    let (first, second) = plain.split_at(leaves.entries[0].1 as usize);
    assert_eq!(id_key().node_id(first), manifest.leaves[0]);
    assert_eq!(id_key().node_id(second), manifest.leaves[2]);
}
