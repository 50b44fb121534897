//! An update between ends that lie: a branch that is sent any head and any batches, and a datacenter that is asked for any. What a batch
//! gives matches the names that the branch expected, and the honest answer to a request that passed the checks is believed.
#![no_main]

use std::sync::OnceLock;

use bytes::Bytes;
use dedup::update::{
    BatchPlan, Effort, NewChunks, UpdateBatch, UpdateRefused, decode_batch, encode_batch,
};
use dedup::{ChunkId, Manifest};
use dedup_protocol::update::{
    Next, UpdateExchange, UpdateResponder, UpdateShape, UpdateSource, check_update,
};
use dedup_protocol::wire::{BatchRange, BatchSize, Message, UpdateHead, UpdatePart};
use libfuzzer_sys::fuzz_target;
use splice_fuzz::content::{Absent, Fixed};
use splice_fuzz::script::Script;

/// New chunks in a batch.
const BATCH: u32 = 5;

struct Encoded {
    numbering: NewChunks,
    batches: Vec<Bytes>,
}

fn shown(content: &'static Fixed, disk: &Manifest) -> Vec<(ChunkId, u32)> {
    let leaf = |index| disk.leaf(&content, index).expect("the content is sound");
    let leaves = (0..disk.leaves.len()).map(leaf);
    leaves
        .flat_map(|leaf| leaf.chunks().collect::<Vec<_>>())
        .collect()
}

impl Encoded {
    /// Each batch has the chunk just before its own and every seventh of the parent's as its prefix.
    fn update() -> &'static Self {
        static UPDATE: OnceLock<Encoded> = OnceLock::new();
        UPDATE.get_or_init(|| {
            let content = Fixed::content();
            let [base, next, _] = &content.versions[..] else {
                unreachable!("three versions are fixed");
            };
            let (old, new) = (shown(content, &base.disk), shown(content, &next.disk));
            let numbering = NewChunks::between(old, new).expect("few chunks");
            let read = |number| {
                let (id, _) = numbering.number(number).ok_or(Absent)?;
                content.chunk(id).ok_or(Absent)
            };
            let count = numbering.new.len() as u32;
            let batches = (0..count).step_by(BATCH as usize).map(|first| {
                let own = numbering.number_of_new(first);
                let plan = BatchPlan {
                    chunks: first..(first + BATCH).min(count),
                    prefix: (0..numbering.number_of_new(0))
                        .step_by(7)
                        .chain([own - 1])
                        .collect(),
                };
                let batch = encode_batch(&plan, &numbering, read, Effort::least());
                let mut bytes = Vec::new();
                batch.expect("all chunks are there").encode(&mut bytes);
                Bytes::from(bytes)
            });
            Encoded {
                batches: batches.collect(),
                numbering: numbering.clone(),
            }
        })
    }

    fn honest_head(&self) -> UpdateHead {
        UpdateHead {
            batches: self.sizes().expect("never fails").expect("planned"),
        }
    }
}

impl UpdateSource for Encoded {
    type Error = Absent;

    fn sizes(&self) -> Result<Option<Vec<BatchSize>>, Absent> {
        let count = self.numbering.new.len() as u32;
        let sizes = (0..count).step_by(BATCH as usize).zip(&self.batches);
        let sizes = sizes.map(|(first, bytes)| BatchSize {
            chunks: BATCH.min(count - first),
            packed_bytes: bytes.len() as u32,
        });
        Ok(Some(sizes.collect()))
    }

    fn batch(&self, number: u32) -> Result<Option<Bytes>, Absent> {
        Ok(self.batches.get(number as usize).cloned())
    }
}

/// A datacenter that is asked.
fn asked(content: &'static Fixed, update: &'static Encoded, bytes: &[u8]) {
    let Ok(Message::GetUpdate(mut request)) = Message::decode(bytes) else {
        return;
    };
    // A fuzzer does not guess 32 bytes.
    for id in [&mut request.version, &mut request.parent] {
        if id.0[0] >= 0x80 {
            *id = content.versions[usize::from(id.0[0]) % content.versions.len()].id;
        }
    }
    if check_update(&content, &request, |_| true, |_| true).is_err() {
        return;
    }
    let shape = UpdateShape::new(&update.honest_head(), &update.numbering).expect("honest");
    let known = |r: &BatchRange| r.first + r.count <= shape.len() as u32;
    let all_known = request.batches.iter().all(known);
    let mut exchange = all_known.then(|| UpdateExchange::new(&shape, &request.batches));
    let mut responder = UpdateResponder::new(update, &request);
    loop {
        match responder.next_frame() {
            Ok(Next::Frame(Message::UpdatePart(part))) => {
                if let Some(exchange) = &mut exchange {
                    exchange.part(part).expect("an honest batch is taken");
                }
            }
            Ok(Next::Frame(_)) => {}
            Ok(Next::Later) => unreachable!("all of it is encoded"),
            Ok(Next::End) => break,
            Err(error) => {
                assert!(!all_known, "an honest request was refused: {error}");
                return;
            }
        }
    }
    assert!(exchange.is_none_or(|e| e.remaining() == 0));
}

/// A branch that is sent batches, honest ones with some bytes changed among them.
fn sent(content: &'static Fixed, update: &'static Encoded, script: &mut Script<'_>) {
    let mut head = Message::UpdateHead(update.honest_head()).encode();
    script.edit(&mut head);
    let Ok(Message::UpdateHead(head)) = Message::decode(&head) else {
        return;
    };
    let Ok(shape) = UpdateShape::new(&head, &update.numbering) else {
        return;
    };
    let all = [BatchRange {
        first: 0,
        count: shape.len() as u32,
    }];
    let mut exchange = UpdateExchange::new(&shape, &all);
    while let Some(which) = script.byte() {
        let mut bytes = match update.batches.get(usize::from(which)) {
            Some(batch) => batch.to_vec(),
            None => script.piece().to_vec(),
        };
        script.edit(&mut bytes);
        let Ok((number, batch)) = exchange.part(UpdatePart { batch: bytes }) else {
            continue;
        };
        let due = shape.chunks(number);
        assert_eq!(batch.first..batch.first + batch.count, due);
        decoded(content, update, &batch);
    }
}

fn decoded(content: &'static Fixed, update: &Encoded, batch: &UpdateBatch) {
    let read = |id| content.chunk(id);
    match decode_batch(batch, &update.numbering, &content.key, read) {
        Ok(chunks) => {
            let expected = &update.numbering.new[batch.first as usize..][..batch.count as usize];
            assert_eq!(chunks.len(), expected.len());
            for (chunk, (id, _)) in chunks.iter().zip(expected) {
                assert_eq!(chunk.id(), *id);
                assert_eq!(Some(chunk.bytes()), content.chunk(*id).as_ref());
            }
        }
        Err(UpdateRefused::MissingPrefix(id)) => panic!("{id} is there"),
        Err(_) => {}
    }
}

fuzz_target!(|data: &[u8]| {
    let (content, update) = (Fixed::content(), Encoded::update());
    asked(content, update, data);
    sent(content, update, &mut Script::new(data));
});
