//! Updates: round trips over random disks, the planner's promises, and foreign batches of every kind of wrong.
#![allow(clippy::unwrap_used, missing_docs)]

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;

use bytes::Bytes;
use dedup::codec::write_varint;
use dedup::update::{
    BATCH_CHUNKS_MAX, BATCH_PLAIN_BYTES_MAX, BatchError, BatchPlan, Effort, NUMBERS_MAX, NewChunks,
    PREFIX_BYTES_MAX, PREFIX_CHUNKS_MAX, Plan, UpdateBatch, UpdateRefused, decode_batch,
    encode_batch, plan, sketch,
};
use dedup::{Chunk, ChunkId, ChunkerParams, IdKey, Manifest, ManifestBuilder, NodeId, NodeSource};
use proptest::prelude::*;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};

fn key() -> IdKey {
    IdKey::new([9; 32])
}

/// Two versions as lists of chunks, and what holds their bytes.
struct Pair {
    numbering: NewChunks,
    chunks: HashMap<ChunkId, Bytes>,
}

impl Pair {
    fn new(parent: &[Bytes], version: &[Bytes]) -> Self {
        let mut chunks = HashMap::new();
        let mut list = |disk: &[Bytes]| -> Vec<(ChunkId, u32)> {
            let named = disk.iter().map(|bytes| {
                let id = key().chunk_id(bytes);
                chunks.insert(id, bytes.clone());
                (id, bytes.len() as u32)
            });
            named.collect()
        };
        let numbering = NewChunks::between(list(parent), list(version)).unwrap();
        Self { numbering, chunks }
    }

    /// Random chunks, and as the version each of them with an edit, some twice, some new ones between.
    fn random(seed: u64, count: usize, chunk_bytes: usize) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut chunk = |len: usize| {
            let mut bytes = vec![0; len];
            random.fill_bytes(&mut bytes);
            bytes
        };
        let parent: Vec<Bytes> = (0..count).map(|_| chunk(chunk_bytes).into()).collect();
        let mut version = Vec::new();
        for (index, old) in parent.iter().enumerate() {
            match index % 7 {
                0 => version.push(old.clone()),
                1 => version.push(chunk(chunk_bytes / 2).into()),
                _ => {
                    let mut edited = old.to_vec();
                    edited[chunk_bytes / 3] ^= 0x55;
                    edited.splice(10..10, *b"inserted");
                    version.extend([edited.clone().into(), edited.into()]);
                }
            }
        }
        Self::new(&parent, &version)
    }

    fn read(&self, number: u32) -> Bytes {
        self.chunks[&self.numbering.number(number).unwrap().0].clone()
    }

    fn plan(&self) -> Vec<BatchPlan> {
        self.planned().batches
    }

    fn planned(&self) -> Plan {
        let asked = RefCell::new(Vec::new());
        let planned = plan(&self.numbering, |number| {
            asked.borrow_mut().push(number);
            Ok::<_, Infallible>(sketch(&self.read(number)))
        });
        let count = self.numbering.parent.len() + self.numbering.new.len();
        assert_eq!(asked.into_inner(), (0..count as u32).collect::<Vec<_>>());
        planned.unwrap()
    }

    fn encode(&self, plan: &BatchPlan) -> UpdateBatch {
        let read = |number| Ok::<_, Infallible>(self.read(number));
        encode_batch(plan, &self.numbering, read, Effort::least()).unwrap()
    }

    fn decode(&self, batch: &UpdateBatch) -> Result<Vec<Chunk>, UpdateRefused> {
        decode_batch(batch, &self.numbering, &key(), |id| {
            self.chunks.get(&id).cloned()
        })
    }
}

#[test]
fn new_chunks_are_told_whose_place_they_took() {
    let mut random = StdRng::seed_from_u64(5);
    let mut chunk = |_| {
        let mut bytes = vec![0; 16 << 10];
        random.fill_bytes(&mut bytes);
        Bytes::from(bytes)
    };
    let parent: Vec<Bytes> = (0..40).map(&mut chunk).collect();
    let mut version = parent.clone();
    let mut edited = parent[9].to_vec();
    edited[5000] ^= 1;
    // The edited chunk moves to the front, with what took the place of the one behind it and resembles nothing; far more is new.
    version[10] = chunk(0);
    version.splice(0..0, [edited.into(), version[10].clone()]);
    version.extend((0..20).map(chunk));
    let planned = Pair::new(&parent, &version).planned();
    assert_eq!(planned.kin.len(), 22);
    assert_eq!(planned.kin[..2], [Some(9), Some(10)]);
    let guesses = planned.kin[2..].iter().flatten().count();
    assert!(guesses < 10, "{guesses} of what is new altogether");
}

#[test]
fn what_resembles_an_earlier_new_chunk_is_kin_of_the_same() {
    let mut random = StdRng::seed_from_u64(6);
    let parent: Vec<Bytes> = (0..600)
        .map(|_| {
            let mut bytes = vec![0; 16 << 10];
            random.fill_bytes(&mut bytes);
            bytes.into()
        })
        .collect();
    // Every chunk edited, and as many again edited once more: later batches find the earlier ones beside the parent's.
    let edit = |old: &Bytes, at: usize| -> Bytes {
        let mut bytes = old.to_vec();
        bytes[at] ^= 1;
        bytes.into()
    };
    let once: Vec<Bytes> = parent.iter().map(|old| edit(old, 3000)).collect();
    let twice = once.iter().map(|old| edit(old, 9000));
    let version: Vec<Bytes> = once.iter().cloned().chain(twice).collect();
    let kin = Pair::new(&parent, &version).planned().kin;
    let right = kin
        .iter()
        .enumerate()
        .filter(|(index, kin)| **kin == Some(*index as u32 % 600));
    let right = right.count();
    assert!(right > 1150, "{right} of 1200");
}

fn check_plans(numbering: &NewChunks, plans: &[BatchPlan]) {
    let mut next = 0;
    for plan in plans {
        assert_eq!(
            plan.chunks.start, next,
            "batches are in order, without gaps"
        );
        assert!(plan.chunks.end > next && plan.chunks.end - next <= BATCH_CHUNKS_MAX);
        next = plan.chunks.end;
        let bytes = |list: &mut dyn Iterator<Item = u32>| -> usize {
            list.map(|n| numbering.number(n).unwrap().1 as usize).sum()
        };
        let own = numbering.number_of_new(plan.chunks.start);
        assert!(
            plan.prefix.iter().all(|n| *n < own),
            "only what comes before"
        );
        let distinct: HashSet<_> = plan.prefix.iter().collect();
        assert_eq!(distinct.len(), plan.prefix.len(), "each once");
        assert!(plan.prefix.len() <= PREFIX_CHUNKS_MAX as usize);
        assert!(bytes(&mut plan.prefix.iter().copied()) <= PREFIX_BYTES_MAX);
        let numbers = plan.chunks.clone().map(|i| numbering.number_of_new(i));
        assert!(bytes(&mut numbers.into_iter()) <= BATCH_PLAIN_BYTES_MAX);
    }
    assert_eq!(next as usize, numbering.new.len(), "all new chunks");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_update_leads_to_the_version(seed: u64, count in 0usize..60, chunk_bytes in 200usize..20_000) {
        let pair = Pair::random(seed, count, chunk_bytes);
        let plans = pair.plan();
        check_plans(&pair.numbering, &plans);
        let mut arrived = Vec::new();
        for plan in &plans {
            let batch = pair.encode(plan);
            let mut bytes = Vec::new();
            batch.encode(&mut bytes);
            let read = UpdateBatch::decode(&bytes.into()).unwrap();
            prop_assert_eq!(&read, &batch);
            arrived.extend(pair.decode(&read).unwrap());
        }
        let names: Vec<_> = arrived.iter().map(|c| (c.id(), c.bytes().len() as u32)).collect();
        prop_assert_eq!(names, pair.numbering.new);
    }

    #[test]
    fn the_list_of_any_batch_leads_back(
        first in 0..NUMBERS_MAX, count in 1..=BATCH_CHUNKS_MAX,
        prefix in prop::collection::vec(0..NUMBERS_MAX, 0..200), run in 0u32..500, packed: Vec<u8>,
    ) {
        let mut prefix = prefix;
        prefix.extend(first.min(NUMBERS_MAX - run)..(first.min(NUMBERS_MAX - run) + run));
        let batch = UpdateBatch { first, count, prefix, packed: packed.into() };
        let mut bytes = Vec::new();
        batch.encode(&mut bytes);
        prop_assert_eq!(UpdateBatch::decode(&bytes.into()), Ok(batch));
    }

    #[test]
    fn foreign_bytes_never_panic_and_give_only_named_chunks(bytes: Vec<u8>, cut in 0usize..4000, flip in 0usize..4000) {
        let _ = UpdateBatch::decode(&bytes.into());
        let pair = Pair::random(3, 20, 2000);
        let batch = pair.encode(&pair.plan()[0]);
        let mut bytes = Vec::new();
        batch.encode(&mut bytes);
        let flip = flip % (8 * bytes.len());
        bytes[flip / 8] ^= 1 << (flip % 8);
        bytes.truncate(bytes.len() - cut % bytes.len().min(3));
        if let Ok(chunks) = UpdateBatch::decode(&bytes.into()).map(|b| pair.decode(&b)) {
            for chunk in chunks.unwrap_or_default() {
                // A flipped bit that zstd ignores may still lead to the right bytes; others never come out.
                prop_assert_eq!(&pair.chunks[&chunk.id()], chunk.bytes());
            }
        }
    }
}

#[test]
fn a_batch_needs_the_chunks_it_lists_and_no_others_and_says_which_is_missing() {
    let pair = Pair::random(1, 50, 8000);
    let batch = pair.encode(&pair.plan()[0]);
    assert!(!batch.prefix.is_empty());
    let plain: usize = pair
        .numbering
        .new
        .iter()
        .map(|(_, len)| *len as usize)
        .sum();
    // A seventh of the chunks is half as long and new; of the others only the edits cross.
    assert!(
        batch.packed.len() < plain / 8,
        "{} of {plain}",
        batch.packed.len()
    );
    let listed: HashSet<ChunkId> = batch
        .prefix
        .iter()
        .map(|n| pair.numbering.number(*n).unwrap().0)
        .collect();
    let read = |id| listed.contains(&id).then(|| pair.chunks[&id].clone());
    let chunks = decode_batch(&batch, &pair.numbering, &key(), read).unwrap();
    assert_eq!(chunks.len(), pair.numbering.new.len());
    for missing in &listed {
        let read = |id: ChunkId| (id != *missing).then(|| pair.chunks[&id].clone());
        let refused = decode_batch(&batch, &pair.numbering, &key(), read);
        assert_eq!(refused, Err(UpdateRefused::MissingPrefix(*missing)));
    }
    // A cache that gives other bytes under the name leads to no wrong chunk.
    let wrong = decode_batch(&batch, &pair.numbering, &key(), |id| {
        Some(Bytes::from(vec![1; pair.chunks[&id].len()]))
    });
    assert!(matches!(
        wrong,
        Err(UpdateRefused::Mismatch(_) | UpdateRefused::Frame { .. })
    ));
}

#[test]
fn what_resembles_nothing_goes_without_a_prefix() {
    let mut random = StdRng::seed_from_u64(5);
    let mut chunk = || {
        let mut bytes = vec![0; 10_000];
        random.fill_bytes(&mut bytes);
        Bytes::from(bytes)
    };
    let pair = Pair::new(&[chunk(), chunk()], &[chunk(), chunk(), chunk()]);
    // Planned with the parent all the same, as a successor rule might.
    let forced = BatchPlan {
        chunks: 0..3,
        prefix: vec![0, 1],
    };
    let batch = pair.encode(&forced);
    assert_eq!(batch.prefix, Vec::<u32>::new());
    assert_eq!(pair.decode(&batch).unwrap().len(), 3);
}

#[test]
fn large_updates_are_cut_and_later_batches_refer_to_earlier_ones() {
    let mut random = StdRng::seed_from_u64(2);
    let mut noise = |len: usize| {
        let mut bytes = vec![0; len];
        random.fill(&mut bytes[..]);
        bytes
    };
    let first: Vec<Vec<u8>> = (0..200).map(|_| noise(60_000)).collect();
    let again = first.iter().map(|bytes| {
        let mut bytes = bytes.clone();
        bytes[30_000] ^= 1;
        bytes
    });
    let version: Vec<Bytes> = first
        .iter()
        .cloned()
        .chain(again)
        .map(Bytes::from)
        .collect();
    let pair = Pair::new(&[], &version);
    let plans = pair.plan();
    check_plans(&pair.numbering, &plans);
    assert!(plans.len() >= 3);
    let last = plans.last().unwrap();
    assert!(!last.prefix.is_empty());
    let batch = pair.encode(last);
    assert!(batch.packed.len() < 1 << 20, "{}", batch.packed.len());
    assert_eq!(pair.decode(&batch).unwrap().len(), last.chunks.len());
}

#[test]
fn numbering_is_distinct_in_order_and_the_same_from_manifests() {
    #[derive(Debug, thiserror::Error)]
    #[error("absent")]
    struct Absent;
    struct Nodes(HashMap<NodeId, Vec<u8>>);
    impl NodeSource for Nodes {
        type Error = Absent;
        fn node(&self, id: NodeId) -> Result<Bytes, Absent> {
            self.0.get(&id).cloned().map(Bytes::from).ok_or(Absent)
        }
    }
    let mut nodes = Nodes(HashMap::new());
    let id = |n: u32| key().chunk_id(&n.to_le_bytes());
    // Lengths of 60,001 make chunks straddle leaves; every third chunk comes again later.
    let old: Vec<u32> = (0..400).chain((0..400).step_by(3)).collect();
    let new: Vec<u32> = (0..70)
        .chain([900, 901, 900])
        .chain(72..400)
        .chain([5, 902, 901])
        .collect();
    let mut publish = |list: &[u32]| -> Manifest {
        let mut builder = ManifestBuilder::new(key(), ChunkerParams::default());
        for n in list {
            builder.push_chunk(id(*n), 60_001);
            builder.push_zero(4096);
        }
        let (manifest, leaves) = builder.finish();
        nodes.0.extend(leaves);
        manifest
    };
    let (parent, version) = (publish(&old), publish(&new));
    let numbering = NewChunks::of_manifests(&nodes, &parent, &version).unwrap();
    let listed = |list: &[u32]| list.iter().map(|n| (id(*n), 60_001)).collect::<Vec<_>>();
    assert_eq!(
        numbering,
        NewChunks::between(listed(&old), listed(&new)).unwrap()
    );
    assert_eq!(numbering.parent, listed(&(0..400).collect::<Vec<_>>()));
    assert_eq!(numbering.new, listed(&[900, 901, 902]));
    assert_eq!(numbering.number(399), Some((id(399), 60_001)));
    assert_eq!(
        numbering.number(numbering.number_of_new(2)),
        Some((id(902), 60_001))
    );
    assert_eq!(numbering.number(403), None);
    assert_eq!(numbering.new_bytes(), 3 * 60_001);
    nodes.0.remove(&version.leaves[1]);
    assert!(NewChunks::of_manifests(&nodes, &parent, &version).is_err());
}

#[test]
fn a_batch_outside_its_update_or_limits_is_refused_before_anything_is_read() {
    let pair = Pair::random(4, 30, 4000);
    let good = pair.encode(&pair.plan()[0]);
    let new = pair.numbering.new.len() as u32;
    let refused = |change: &dyn Fn(&mut UpdateBatch)| {
        let mut batch = good.clone();
        change(&mut batch);
        let read = |_| -> Option<Bytes> { panic!("nothing is read") };
        decode_batch(&batch, &pair.numbering, &key(), read).unwrap_err()
    };
    for (first, count) in [
        (0, 0),
        (0, new + 1),
        (new, 1),
        (u32::MAX, u32::MAX),
        (1, new),
    ] {
        let error = refused(&|b| (b.first, b.count) = (first, count));
        assert!(matches!(error, UpdateRefused::Range { .. }), "{error}");
    }
    let own = pair.numbering.number_of_new(0);
    for number in [own, own + 1, u32::MAX] {
        let error = refused(&|b| b.prefix.push(number));
        assert_eq!(error, UpdateRefused::PrefixNumber(number));
    }
    let error = refused(&|b| b.prefix = vec![0; PREFIX_CHUNKS_MAX as usize + 1]);
    assert!(matches!(error, UpdateRefused::PrefixSize { .. }), "{error}");
    // Few enough numbers, too many bytes.
    let error = refused(&|b| b.prefix = vec![0; PREFIX_BYTES_MAX / 4000 + 1]);
    assert!(matches!(error, UpdateRefused::PrefixSize { .. }), "{error}");

    let long: Vec<(ChunkId, u32)> = (0..100u32)
        .map(|n| (key().chunk_id(&n.to_le_bytes()), 256 << 10))
        .collect();
    let numbering = NewChunks::between([], long).unwrap();
    let batch = UpdateBatch {
        first: 0,
        count: 100,
        prefix: Vec::new(),
        packed: Bytes::new(),
    };
    let error = decode_batch(&batch, &numbering, &key(), |_| None).unwrap_err();
    assert!(matches!(error, UpdateRefused::PlainSize(_)), "{error}");
}

#[test]
fn frames_of_other_lengths_and_bombs_end_at_the_buffer() {
    let pair = Pair::random(6, 10, 3000);
    let good = pair.encode(&pair.plan()[0]);
    let with = |packed: Vec<u8>| {
        let packed = packed.into();
        let batch = UpdateBatch {
            packed,
            ..good.clone()
        };
        pair.decode(&batch).unwrap_err()
    };
    let plain = pair.numbering.new_bytes() as usize;
    let pack = |bytes: &[u8]| zstd::bulk::compress(bytes, 1).unwrap();
    for packed in [
        Vec::new(),
        good.packed[..good.packed.len() - 1].to_vec(),
        pack(&vec![0; plain - 1]),
        pack(&vec![0; plain + 1]),
        // 64 MiB of zeros, once with its length in the header and once without.
        pack(&vec![0; 64 << 20]),
        zstd::stream::encode_all(std::io::Read::take(std::io::repeat(0), 64 << 20), 1).unwrap(),
        b"not a frame at all".to_vec(),
        [&good.packed[..], b"tail"].concat(),
        [&good.packed[..], &good.packed[..]].concat(),
    ] {
        let error = with(packed);
        assert!(matches!(error, UpdateRefused::Frame { .. }), "{error}");
    }
    let error = with(pack(&vec![0; plain]));
    assert!(matches!(error, UpdateRefused::Mismatch(_)), "{error}");
}

#[test]
fn lists_are_bounded_before_memory_is_taken() {
    let encoded = |integers: &[u64]| {
        let mut bytes = Vec::new();
        for integer in integers {
            write_varint(&mut bytes, *integer);
        }
        UpdateBatch::decode(&bytes.into()).unwrap_err()
    };
    assert_eq!(encoded(&[0, 0, 0]), BatchError::Count(0));
    let over = u64::from(BATCH_CHUNKS_MAX) + 1;
    assert_eq!(encoded(&[0, over, 0]), BatchError::Count(over));
    assert!(matches!(encoded(&[u64::MAX, 1, 0]), BatchError::Number(_)));
    assert_eq!(encoded(&[0, 1, 1 << 40]), BatchError::Prefix(1 << 40));
    // One run of everything; many runs that add up; runs that begin below zero or end above all numbers.
    assert!(matches!(
        encoded(&[0, 1, 1, 0, u64::MAX]),
        BatchError::Prefix(_)
    ));
    let half = u64::from(PREFIX_CHUNKS_MAX) / 2;
    assert!(matches!(
        encoded(&[0, 1, 3, 0, half, 0, half, 0, 0]),
        BatchError::Prefix(_)
    ));
    assert!(matches!(encoded(&[0, 1, 1, 1, 0]), BatchError::Number(-1)));
    assert!(matches!(
        encoded(&[0, 1, 1, u64::MAX - 1, 0]),
        BatchError::Number(_)
    ));
    let last = 2 * (u64::from(NUMBERS_MAX) - 1);
    assert!(matches!(
        encoded(&[0, 1, 1, last, 1]),
        BatchError::Number(_)
    ));
    assert!(matches!(encoded(&[0, 1, 2, 0, 0]), BatchError::Codec(_)));
    let mut long = vec![0, 1, 0];
    long.resize(BATCH_PLAIN_BYTES_MAX + (1 << 20), 0);
    assert!(matches!(
        UpdateBatch::decode(&long.into()),
        Err(BatchError::Packed(_))
    ));
}

#[test]
fn golden_bytes_of_a_batch() {
    let batch = UpdateBatch {
        first: 300,
        count: 2,
        prefix: vec![7, 8, 9, 200, 3, 4, 500],
        packed: Bytes::from_static(b"\x28\xb5\x2f\xfd"),
    };
    let mut bytes = Vec::new();
    batch.encode(&mut bytes);
    // first 300, count 2, 4 runs: 7+2, 200 (190 on), 3+1 (198 back), 500 (495 on); then the packed bytes.
    assert_eq!(
        hex::encode(&bytes),
        "ac0202040e02fc02008b0301de070028b52ffd"
    );
    assert_eq!(UpdateBatch::decode(&bytes.into()), Ok(batch));
}
