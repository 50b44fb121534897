//! Updates between ends that do not play by the rules: a branch believes no batch that it did not ask for and no byte that does not match its
//! name; a datacenter answers no branch about what it may not read.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use bytes::Bytes;
use common::update::{MemUpdate, answer, shown};
use common::{Datacenter, NewVersion, id_key, noise, peak};
use dedup::VersionId;
use dedup::update::{UpdateBatch, UpdateRefused, decode_batch};
use dedup_protocol::server::AnswerError;
use dedup_protocol::update::{UpdateExchange, UpdateShape, check_update};
use dedup_protocol::wire::{
    BatchRange, BatchSize, FRAME_BYTES_MAX, GetUpdate, Message, RefuseCode, UPDATE_BATCHES_MAX,
    UPDATE_RANGES_MAX, UpdateHead, UpdatePart,
};

struct Site {
    dc: Datacenter,
    parent: VersionId,
    version: VersionId,
    foreign: VersionId,
    update: MemUpdate,
}

fn site() -> Site {
    let mut dc = Datacenter::default();
    let mut disk = noise("hostile update", 2 << 20);
    let parent = dc.publish(&NewVersion::first("desktop", &disk));
    for at in (0..disk.len()).step_by(40_000) {
        disk[at] ^= 1;
    }
    let version = dc.publish(&NewVersion {
        number: 2,
        parent: Some(parent),
        ..NewVersion::first("desktop", &disk)
    });
    let foreign = dc.publish(&NewVersion::first("other", &disk));
    let update = MemUpdate::new(&dc, parent, version, 5, |_, first| vec![first]);
    Site {
        dc,
        parent,
        version,
        foreign,
        update,
    }
}

impl Site {
    fn request(&self, head: bool, batches: &[(u32, u32)]) -> GetUpdate {
        let ranges = batches.iter().map(|(first, count)| BatchRange {
            first: *first,
            count: *count,
        });
        GetUpdate {
            version: self.version,
            parent: self.parent,
            head,
            batches: ranges.collect(),
        }
    }

    fn head(&self) -> UpdateHead {
        let mut frames = answer(&self.dc, &self.update, &self.request(true, &[])).unwrap();
        match frames.remove(0) {
            Message::UpdateHead(head) => head,
            other => panic!("{} came", other.name()),
        }
    }

    fn shape(&self) -> UpdateShape {
        UpdateShape::new(&self.head(), &self.update.numbering).unwrap()
    }

    fn parts(&self, batches: &[(u32, u32)]) -> Vec<UpdatePart> {
        let frames = answer(&self.dc, &self.update, &self.request(false, batches)).unwrap();
        let parts = frames.into_iter().map(|frame| match frame {
            Message::UpdatePart(part) => part,
            other => panic!("{} came", other.name()),
        });
        parts.collect()
    }

    /// Decodes with the parent's chunks and the new ones before the batch.
    fn decode(&self, batch: &UpdateBatch) -> Result<usize, UpdateRefused> {
        let read = |id| self.dc.chunks.get(&id).cloned();
        decode_batch(batch, &self.update.numbering, &id_key(), read).map(|chunks| chunks.len())
    }
}

fn code(error: &AnswerError) -> RefuseCode {
    match Message::decode(&error.refusal().encode()).unwrap() {
        Message::Refuse(refuse) => refuse.code,
        other => panic!("{} is no refusal", other.name()),
    }
}

#[test]
fn a_head_must_cover_what_is_new() {
    let site = site();
    let honest = site.head();
    assert!(honest.batches.len() > 5);
    type Lie = fn(&mut Vec<BatchSize>);
    let lies: [(Lie, &str); 6] = [
        (|b| b.truncate(3), "are new"),
        (|b| b[0].chunks += 1, "batches of more chunks than are new"),
        (|b| b[1].chunks = 0, "a batch of 0 chunks"),
        (
            |b| b[1].chunks = u32::MAX,
            "batches of more chunks than are new",
        ),
        (
            |b| b[2].packed_bytes = FRAME_BYTES_MAX as u32 + 1,
            "a batch of 5 chunks in 8388609 bytes",
        ),
        (
            |b| {
                b.resize(
                    UPDATE_BATCHES_MAX + 1,
                    BatchSize {
                        chunks: 0,
                        packed_bytes: 0,
                    },
                )
            },
            "262145 batches",
        ),
    ];
    for (lie, word) in lies {
        let mut head = honest.clone();
        lie(&mut head.batches);
        let error = UpdateShape::new(&head, &site.update.numbering).expect_err(word);
        assert!(error.to_string().contains(word), "{error} lacks {word:?}");
    }
}

#[test]
fn only_the_batches_that_were_asked_for_are_taken_in_order() {
    let site = site();
    let shape = site.shape();
    let ranges = site.request(false, &[(1, 2), (4, 1)]).batches;
    let parts = site.parts(&[(1, 2), (4, 1)]);
    let mut exchange = UpdateExchange::new(&shape, &ranges);
    for (part, number) in parts.iter().zip([1, 2, 4]) {
        assert_eq!(exchange.part(part.clone()).unwrap().0, number);
    }
    let more = exchange.part(parts[0].clone()).unwrap_err();
    assert!(
        more.to_string()
            .contains("more batches than were asked for")
    );

    let mut exchange = UpdateExchange::new(&shape, &ranges);
    let wrong = exchange.part(parts[2].clone()).unwrap_err();
    assert!(
        wrong.to_string().contains("where batch 1 has 5..10"),
        "{wrong}"
    );

    for bytes in [
        vec![],
        vec![0xFF; 40],
        vec![5, 0, 0],
        parts[0].batch[..2].to_vec(),
    ] {
        let mut exchange = UpdateExchange::new(&shape, &ranges);
        let error = exchange.part(UpdatePart { batch: bytes }).unwrap_err();
        assert!(error.to_string().starts_with("update: batch 1"), "{error}");
    }
    // One chunk more or fewer than the head said.
    let honest = UpdateBatch::decode(&Bytes::from(parts[0].batch.clone())).unwrap();
    for (first, count) in [(5, 4), (5, 6), (4, 5), (6, 5)] {
        let mut batch = Vec::new();
        UpdateBatch {
            first,
            count,
            ..honest.clone()
        }
        .encode(&mut batch);
        let mut exchange = UpdateExchange::new(&shape, &ranges);
        let error = exchange.part(UpdatePart { batch }).unwrap_err();
        assert!(error.to_string().contains("where batch 1 has"), "{error}");
    }
}

#[test]
fn no_batch_gives_chunks_that_do_not_match_their_names() {
    let site = site();
    let part = site.parts(&[(3, 1)]).remove(0);
    let honest = UpdateBatch::decode(&Bytes::from(part.batch)).unwrap();
    assert_eq!(site.decode(&honest).unwrap(), 5);

    let own = site.update.numbering.number_of_new(honest.first);
    for number in [own, own + 100, u32::MAX] {
        let batch = UpdateBatch {
            prefix: vec![number],
            ..honest.clone()
        };
        let error = site.decode(&batch).unwrap_err();
        assert!(matches!(error, UpdateRefused::PrefixNumber(_)), "{error}");
    }
    // Every bit of the packed bytes, a few at a time: either the frame is refused, or what it unpacks to is.
    for at in 0..honest.packed.len().min(400) {
        let mut packed = honest.packed.to_vec();
        packed[at] ^= 1 << (at % 8);
        let batch = UpdateBatch {
            packed: packed.into(),
            ..honest.clone()
        };
        if let Ok(chunks) = site.decode(&batch) {
            // A bit that a frame does not need (its checksum flag, say) changes nothing.
            assert_eq!(chunks, 5);
        }
    }
    // A prefix that the branch lacks is told apart: it costs the batch, not the update.
    let lost = site.update.numbering.number(honest.prefix[0]).unwrap().0;
    let read = |id| (id != lost).then(|| site.dc.chunks[&id].clone());
    let error = decode_batch(&honest, &site.update.numbering, &id_key(), read).unwrap_err();
    assert_eq!(error, UpdateRefused::MissingPrefix(lost));
}

/// A frame that says it unpacks to gigabytes takes the memory that the branch's own numbering allows.
#[test]
fn a_bomb_fails_within_the_batch_s_own_length() {
    let site = site();
    let part = site.parts(&[(0, 1)]).remove(0);
    let honest = UpdateBatch::decode(&Bytes::from(part.batch)).unwrap();
    let bomb = zstd::bulk::compress(&vec![0; 512 << 20], 1).unwrap();
    let batch = UpdateBatch {
        packed: bomb.into(),
        ..honest
    };
    let (result, peak_bytes) = peak::during(|| site.decode(&batch));
    assert!(
        matches!(result, Err(UpdateRefused::Frame { .. })),
        "{result:?}"
    );
    assert!(peak_bytes < 8 << 20, "{peak_bytes} bytes at the peak");
}

#[test]
fn what_a_branch_may_not_read_it_gets_no_update_of() {
    let site = site();
    let nowhere = VersionId([9; 32]);
    let check = |version, parent, readable: &[VersionId], was: &[VersionId]| {
        let request = GetUpdate {
            version,
            parent,
            head: true,
            batches: Vec::new(),
        };
        check_update(
            &&site.dc,
            &request,
            |v| readable.contains(&v),
            |v| was.contains(&v),
        )
    };
    let (v, p, f) = (site.version, site.parent, site.foreign);
    assert!(
        check(v, p, &[v], &[v, p]).is_ok(),
        "a former version is a parent"
    );
    for (version, parent, readable, was) in [
        (v, p, &[][..], &[v, p][..]),
        (v, p, &[v], &[v]),
        (v, p, &[p], &[v, p]),
        (v, f, &[v, f], &[v, f]),
        (f, p, &[v, f, p], &[v, f, p]),
        (v, nowhere, &[v], &[v, nowhere]),
        (nowhere, p, &[nowhere], &[nowhere, p]),
    ] {
        let error = check(version, parent, readable, was).unwrap_err();
        assert_eq!(code(&error), RefuseCode::NotReadable, "{error}");
    }
    // What is hidden looks like what does not exist.
    let words = |id: VersionId, e: AnswerError| e.to_string().replace(&id.to_string(), "ID");
    let hidden = check(v, f, &[v], &[v]).unwrap_err();
    let missing = check(v, nowhere, &[v], &[v]).unwrap_err();
    assert_eq!(words(f, hidden), words(nowhere, missing));
    assert_eq!(
        code(&check(v, v, &[v], &[v]).unwrap_err()),
        RefuseCode::BadRequest
    );
}

#[test]
fn requests_out_of_range_or_over_a_limit_are_bad() {
    let site = site();
    let batches = site.update.plans.len() as u32;
    let many: Vec<_> = (0..=UPDATE_RANGES_MAX as u32).map(|n| (n * 2, 1)).collect();
    for ranges in [
        &[(0, 0)][..],
        &[(1, 2), (2, 1)],
        &[(3, 1), (1, 1)],
        &[(0, u32::MAX)],
        &[(u32::MAX, u32::MAX)],
        &[(UPDATE_BATCHES_MAX as u32, 1)],
        &[(batches, 1)],
        &[(batches - 1, 2)],
        &many,
    ] {
        let request = site.request(false, ranges);
        let error = answer(&site.dc, &site.update, &request).expect_err("out of range");
        assert_eq!(code(&error), RefuseCode::BadRequest, "{error}");
    }
    // Nothing asked, nothing answered; all asked, all answered, head first.
    assert_eq!(
        answer(&site.dc, &site.update, &site.request(false, &[])).unwrap(),
        []
    );
    let all = answer(&site.dc, &site.update, &site.request(true, &[(0, batches)])).unwrap();
    assert!(matches!(all[0], Message::UpdateHead(_)));
    assert_eq!(all.len() as u32, 1 + batches);
    assert!(shown(&site.dc, site.version).len() > 50);
}
