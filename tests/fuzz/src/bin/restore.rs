//! A datacenter that takes chunks back from a branch: honest offers, bent ones, and requests of the input's own making. Only what was
//! published at the places offered comes out.
#![no_main]

use dedup_protocol::records::Tree;
use dedup_protocol::restore::{Intake, offers};
use dedup_protocol::wire::{
    Batch, BatchEncoding, Message, RESTORE_CHUNKS_MAX, Restore, Run, Wanted,
};
use libfuzzer_sys::fuzz_target;
use splice_fuzz::content::Fixed;
use splice_fuzz::script::Script;

fuzz_target!(|data: &[u8]| {
    let content = Fixed::content();
    let mut script = Script::new(data);
    let version = &content.versions[1];
    let runs = (0..script.byte().unwrap_or(0) & 15)
        .map(|_| Run {
            leaf: u32::from(script.byte().unwrap_or(0) & 3),
            first: script.word() & 127,
            count: u16::from(script.byte().unwrap_or(0) & 3),
        })
        .collect();
    let wanted = Wanted {
        version: version.id,
        tree: Tree::Disk,
        runs,
    };
    let leaf = |index: u32| match version.disk.leaves.get(index as usize) {
        Some(_) => version.disk.leaf(&content, index as usize).map_err(|_| ()),
        None => Err(()),
    };
    let made = offers(&wanted, leaf, |id, _| content.chunk(id)).unwrap_or_default();
    for (restore, batch) in made {
        let mut bytes = Message::Restore(restore.clone()).encode();
        let mut packed = batch.packed.clone();
        let before = (bytes.clone(), packed.clone());
        script.edit(&mut bytes);
        script.edit(&mut packed);
        let honest = before == (bytes.clone(), packed.clone());
        let Ok(Message::Restore(restore)) = Message::decode(&bytes) else {
            assert!(!honest, "what was encoded decodes");
            continue;
        };
        take(content, &restore, &Batch { packed, ..batch }, honest);
    }
    // And one of the input's own making.
    let restore = Restore {
        version: version.id,
        tree: Tree::Disk,
        runs: wanted.runs,
    };
    let batch = Batch {
        count: script.byte().unwrap_or(0).into(),
        encoding: BatchEncoding::Solid,
        packed: script.piece().to_vec(),
    };
    take(content, &restore, &batch, false);
});

fn take(content: &'static Fixed, restore: &Restore, batch: &Batch, honest: bool) {
    let readable = |id| content.versions.iter().any(|version| version.id == id);
    match Intake::new(&content, content.key.clone(), restore, readable) {
        Ok(mut intake) => {
            assert!(intake.remaining() <= RESTORE_CHUNKS_MAX);
            match intake.batch(batch) {
                Ok(chunks) => {
                    for chunk in chunks {
                        assert_eq!(Some(chunk.bytes()), content.chunk(chunk.id()).as_ref());
                    }
                }
                Err(error) => assert!(!honest, "an honest offer was refused: {error}"),
            }
        }
        Err(error) => assert!(!honest, "an honest offer was refused: {error}"),
    }
}
