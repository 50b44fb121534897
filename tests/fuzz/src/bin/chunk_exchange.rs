//! A branch that takes chunks from a datacenter which answers honestly, with some bytes changed, or with batches of its own
//! making. Only the chunks that were asked for come out, in the order asked.
#![no_main]

use dedup::{ChunkId, Leaf};
use dedup_protocol::client::ChunkExchange;
use dedup_protocol::records::Tree;
use dedup_protocol::server::{AnswerError, Responder, expand};
use dedup_protocol::wire::{Batch, BatchEncoding, GetChunks, Message, Run, Urgency};
use libfuzzer_sys::fuzz_target;
use splice_fuzz::content::Fixed;
use splice_fuzz::script::Script;

fn wanted(content: &'static Fixed, runs: &[Run]) -> Vec<(ChunkId, u32)> {
    let disk = &content.versions[1].disk;
    let leaf = |index| -> Result<Leaf, AnswerError> {
        Ok(disk
            .leaf(&content, index as usize)
            .expect("the content is sound"))
    };
    expand(runs, leaf).expect("the runs are there")
}

fn foreign(script: &mut Script<'_>, content: &Fixed, due: &[(ChunkId, u32)]) -> Message {
    let solid = script.byte().unwrap_or(0) & 1 == 1;
    let count = script.byte().unwrap_or(0) & 7;
    let mut packed = Vec::new();
    if solid {
        // Chunks that are due, in any order, so that some of what unpacks is true.
        let mut plain = Vec::new();
        for _ in 0..count {
            let at = usize::from(script.byte().unwrap_or(0));
            if let Some((id, _)) = due.get(at) {
                plain.extend_from_slice(&content.chunk(*id).expect("kept"));
            }
        }
        script.edit(&mut plain);
        packed = zstd::bulk::compress(&plain, 1).expect("a small buffer compresses");
    } else {
        for _ in 0..count {
            let (len, bytes) = (u32::from(script.word()), script.piece());
            let head = if len & 0x8000 == 0 {
                (bytes.len() as u32) << 1 | len & 1
            } else {
                len << 16
            };
            packed.extend_from_slice(&head.to_le_bytes());
            packed.extend_from_slice(bytes);
        }
    }
    Message::Batch(Batch {
        count: count.into(),
        encoding: if solid {
            BatchEncoding::Solid
        } else {
            BatchEncoding::Each
        },
        packed,
    })
}

fuzz_target!(|data: &[u8]| {
    let content = Fixed::content();
    let mut script = Script::new(data);
    let choice = script.byte().unwrap_or(0);
    let runs = [
        Run {
            leaf: 0,
            first: 0,
            count: 1 + u16::from(choice >> 2 & 15),
        },
        Run {
            leaf: 1,
            first: u16::from(choice >> 2),
            count: 2,
        },
    ];
    let request = Message::GetChunks(GetChunks {
        version: content.versions[1].id,
        tree: Tree::Disk,
        urgency: if choice & 1 == 0 {
            Urgency::Demand
        } else {
            Urgency::Boot
        },
        runs: runs.into(),
    });
    let Ok(mut answer) = Responder::new(content, &request, |_| true) else {
        return;
    };
    let due = wanted(content, &runs);
    let mut exchange = ChunkExchange::new(content.key.clone(), due.clone());
    let mut got = 0;
    let mut honest = true;
    while let Some(frame) = answer.next_frame().expect("the content is all there") {
        // More than the datacenter's own frames may come before each of them.
        let mut frames = Vec::new();
        match script.byte().unwrap_or(0) & 3 {
            1 => {
                let mut bytes = frame.encode();
                script.edit(&mut bytes);
                frames.extend(Message::decode(&bytes));
                honest = false;
            }
            2 => {
                frames.push(foreign(&mut script, content, &due[got..]));
                frames.push(frame);
                honest = false;
            }
            _ => frames.push(frame),
        }
        for frame in frames {
            let Message::Batch(batch) = frame else {
                continue;
            };
            match exchange.batch(&batch) {
                Ok(chunks) => {
                    for chunk in chunks {
                        assert_eq!((chunk.id(), chunk.bytes().len() as u32), due[got]);
                        assert_eq!(Some(chunk.bytes()), content.chunk(chunk.id()).as_ref());
                        got += 1;
                    }
                    assert_eq!(exchange.remaining(), due.len() - got);
                }
                Err(error) => {
                    assert!(!honest, "an honest answer was refused: {error}");
                    return;
                }
            }
        }
    }
    assert!(!honest || exchange.remaining() == 0, "the answer is whole");
});
