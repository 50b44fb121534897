//! A datacenter that is asked anything. Every answer ends, in frames that the link carries and that decode; what it sends for
//! chunks is what the branch's end expects.
#![no_main]

use dedup::{Leaf, VersionId};
use dedup_protocol::client::ChunkExchange;
use dedup_protocol::server::{AnswerError, Responder, expand};
use dedup_protocol::wire::{CHUNKS_MAX, FRAME_BYTES_MAX, GetChunks, Message};
use libfuzzer_sys::fuzz_target;
use splice_fuzz::content::Fixed;

/// An answer has no more frames than chunks or leaves can be asked for.
const FRAMES_MAX: usize = CHUNKS_MAX + 1;

/// A fuzzer does not guess 32 bytes: half of all names stand for a version that there is.
fn known(content: &Fixed, id: &mut VersionId) {
    if id.0[0] >= 0x80 {
        *id = content.versions[usize::from(id.0[0]) % content.versions.len()].id;
    }
}

fn check_frame(message: &Message) {
    let frame = message.encode();
    assert!(
        frame.len() <= FRAME_BYTES_MAX,
        "{} bytes in one frame",
        frame.len()
    );
    assert_eq!(Message::decode(&frame).as_ref(), Ok(message));
}

/// What the branch's end makes of the answer's frames.
fn exchange(content: &'static Fixed, request: &GetChunks) -> Option<ChunkExchange> {
    let version = content.versions.iter().find(|v| v.id == request.version)?;
    let tree = version.published.record.tree(request.tree)?;
    let manifest = dedup::Manifest::load(&content, tree.root).expect("the content is sound");
    let due = expand(&request.runs, |index| -> Result<Leaf, AnswerError> {
        Ok(manifest
            .leaf(&content, index as usize)
            .expect("the request was accepted"))
    });
    let due = due.expect("the datacenter expanded them too");
    Some(ChunkExchange::new(content.key.clone(), due))
}

fuzz_target!(|data: &[u8]| {
    let content = Fixed::content();
    let Ok(mut request) = Message::decode(data) else {
        return;
    };
    match &mut request {
        Message::GetVersion(r) => known(content, &mut r.version),
        Message::GetOutline(r) => {
            known(content, &mut r.version);
            r.parent.iter_mut().for_each(|id| known(content, id));
        }
        Message::GetLeaves(r) => {
            known(content, &mut r.version);
            r.parent.iter_mut().for_each(|id| known(content, id));
        }
        Message::GetChunks(r) => known(content, &mut r.version),
        _ => {}
    }
    let mut answer = match Responder::new(content, &request, |_| true) {
        Ok(answer) => answer,
        Err(error) => {
            assert!(
                !matches!(error, AnswerError::Content { .. }),
                "nothing is wrong with the content: {error}"
            );
            return check_frame(&error.refusal());
        }
    };
    let mut exchange = match &request {
        Message::GetChunks(request) => exchange(content, request),
        _ => None,
    };
    let mut frames = 0;
    while let Some(frame) = answer.next_frame().expect("the content is all there") {
        check_frame(&frame);
        frames += 1;
        assert!(frames <= FRAMES_MAX, "the answer does not end");
        if let (Some(exchange), Message::Batch(batch)) = (&mut exchange, &frame) {
            exchange.batch(batch).expect("an honest answer is believed");
        }
    }
    assert!(
        exchange.is_none_or(|e| e.remaining() == 0),
        "the answer is whole"
    );
});
