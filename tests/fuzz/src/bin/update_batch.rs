//! Batches of an update between two fixed versions. The first byte chooses: foreign bytes as a batch; a batch whose list is foreign and
//! whose frame is genuine; or a genuine batch with some bytes changed. Chunks come out as they are named or not at all.
#![no_main]

use std::convert::Infallible;
use std::sync::OnceLock;

use dedup::update::{
    Effort, NewChunks, PREFIX_CHUNKS_MAX, UpdateBatch, decode_batch, encode_batch, plan, sketch,
};
use libfuzzer_sys::fuzz_target;
use splice_fuzz::content::Fixed;
use splice_fuzz::script::Script;

/// The update from the content's first version to its second: its numbering and its only batch.
fn update() -> &'static (NewChunks, UpdateBatch) {
    static UPDATE: OnceLock<(NewChunks, UpdateBatch)> = OnceLock::new();
    UPDATE.get_or_init(|| {
        let content = Fixed::content();
        let [parent, version] = [0, 1].map(|index| &content.versions[index].disk);
        let numbering = NewChunks::of_manifests(&content, parent, version)
            .expect("the content's manifests are sound");
        let read = |number| {
            let (id, _) = numbering.number(number).expect("planned numbers exist");
            Ok::<_, Infallible>(content.chunk(id).expect("the content has its chunks"))
        };
        let Ok(plan) = plan(&numbering, |number| {
            Ok::<_, Infallible>(sketch(&read(number)?))
        });
        let Ok(batch) = encode_batch(&plan.batches[0], &numbering, read, Effort::least());
        (numbering, batch)
    })
}

fn check(batch: &UpdateBatch) {
    let (numbering, _) = update();
    let content = Fixed::content();
    if let Ok(chunks) = decode_batch(batch, numbering, &content.key, |id| content.chunk(id)) {
        for chunk in chunks {
            assert_eq!(content.chunk(chunk.id()).as_ref(), Some(chunk.bytes()));
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let (_, genuine) = update();
    let mut script = Script::new(data);
    let mut bytes = Vec::new();
    match script.byte().unwrap_or(0) % 3 {
        0 => bytes.extend_from_slice(script.rest()),
        1 => {
            let prefix = script.rest().iter().map(|number| u32::from(*number));
            let prefix = prefix.collect();
            UpdateBatch {
                prefix,
                ..genuine.clone()
            }
            .encode(&mut bytes);
        }
        _ => {
            genuine.encode(&mut bytes);
            script.edit(&mut bytes);
        }
    }
    let Ok(batch) = UpdateBatch::decode(&bytes.into()) else {
        return;
    };
    assert!(batch.prefix.len() <= PREFIX_CHUNKS_MAX as usize);
    let mut again = Vec::new();
    batch.encode(&mut again);
    assert_eq!(UpdateBatch::decode(&again.into()).as_ref(), Ok(&batch));
    check(&batch);
});
