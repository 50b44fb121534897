//! Examples of what is said about leases and write-back.

use dedup::{ChunkId, DesktopId};
use dedup_protocol::state::checkout::UserVolume;
use dedup_protocol::state::lease::Lease;
use dedup_protocol::state::message::{
    AskLease, Cut, DenyLease, DenyReason, DropLease, FenceLease, LeaseReturned, OfferPart,
    PartChunks, PartStaged, ProveLease, RecallLease, RestartSegment, ReturnLease, SegmentApplied,
    WantChunks,
};
use dedup_protocol::state::moved::MovedDesktop;
use dedup_protocol::state::writeback::{Part, Range, RangeSource};
use dedup_protocol::state::{Ended, Generation, Head, Line, Nonce, Position};
use dedup_protocol::wipe::Wiped;
use dedup_protocol::wire::{Batch, BatchEncoding, Message, SignedBytes};

use super::{BRANCH, REALM};

pub const DESKTOP: DesktopId = DesktopId([0xE0; 16]);
pub const GENERATION: Generation = Generation(3);
const QUESTION: Nonce = Nonce([0xE1; 16]);
const SEGMENT: Nonce = Nonce([0xE3; 16]);
const AT: Position = Position {
    seq: 4096,
    head: Head([0xE2; 32]),
};
const MAIN: Line = Line {
    desktop: DESKTOP,
    generation: GENERATION,
    fork: None,
};
const FORK: Line = Line {
    desktop: DESKTOP,
    generation: GENERATION,
    fork: Some(Nonce([0xE5; 16])),
};
/// Sizes of the desktop's disks.
pub const DISKS: [u64; 2] = [1 << 40, 1 << 20];

pub fn lease() -> Lease {
    Lease {
        realm: REALM,
        desktop: DESKTOP,
        branch: BRANCH,
        generation: GENERATION,
        renewal: 300,
        nonce: QUESTION,
        base: AT.head,
        issued_unix_s: 1_700_000_000,
        expires_unix_s: 1_700_086_400,
        offline_grace_s: 604_800,
    }
}

/// A chunk, zeros behind a gap, and a chunk on the second disk.
pub fn part() -> Part {
    let range = |disk, offset, len, source| Range {
        disk,
        offset,
        len,
        source,
    };
    let chunk = |name| RangeSource::Chunk(ChunkId([name; 32]));
    let ranges = vec![
        range(0, 4096, 4096, chunk(0xE6)),
        range(0, 1 << 30, 1 << 20, RangeSource::Zero),
        range(1, 0, 512, chunk(0xE7)),
    ];
    Part::new(ranges, &DISKS).unwrap()
}

pub fn offer(cut: Cut) -> OfferPart {
    OfferPart {
        line: MAIN,
        from: AT,
        segment: SEGMENT,
        to: 5000,
        part: 1,
        is_last: true,
        head: Head([0xE4; 32]),
        cut,
        sealed_unix_s: 1_700_000_000,
        ranges: vec![1, 2, 3],
    }
}

pub fn deny(reason: DenyReason) -> Message {
    Message::DenyLease(DenyLease {
        desktop: DESKTOP,
        nonce: QUESTION,
        reason,
        message: "no".into(),
    })
}

pub fn fence(ended: Ended) -> Message {
    Message::FenceLease(FenceLease {
        desktop: DESKTOP,
        generation: GENERATION,
        ended,
    })
}

pub fn messages() -> Vec<Message> {
    vec![
        Message::AskLease(AskLease {
            desktop: DESKTOP,
            generation: GENERATION,
            renewal: 300,
            nonce: QUESTION,
            challenge: 7,
            acked: AT,
            sealed: SEGMENT,
            flushed: 5000,
        }),
        Message::LeaseGranted(SignedBytes {
            bytes: vec![10, 11, 12],
        }),
        Message::ProveLease(ProveLease {
            desktop: DESKTOP,
            generation: GENERATION,
            challenge: 7,
        }),
        deny(DenyReason::Held),
        fence(Ended::OldCopy),
        Message::ReturnLease(ReturnLease {
            desktop: DESKTOP,
            generation: GENERATION,
            at: AT,
        }),
        Message::LeaseReturned(LeaseReturned {
            desktop: DESKTOP,
            generation: GENERATION,
        }),
        Message::DropLease(DropLease {
            desktop: DESKTOP,
            generation: GENERATION,
        }),
        Message::OfferPart(offer(Cut::Frozen)),
        Message::WantChunks(WantChunks {
            line: FORK,
            segment: SEGMENT,
            part: 1,
            wanted: vec![0, 300],
        }),
        Message::PartChunks(PartChunks {
            line: FORK,
            segment: SEGMENT,
            part: 1,
            batch: Batch {
                count: 2,
                encoding: BatchEncoding::Each,
                packed: vec![6, 0, 0, 0, 7, 8, 9],
            },
        }),
        Message::PartStaged(PartStaged {
            line: MAIN,
            segment: SEGMENT,
            part: 1,
            head: AT.head,
        }),
        Message::SegmentApplied(SegmentApplied {
            line: MAIN,
            segment: SEGMENT,
            at: AT,
        }),
        Message::RestartSegment(RestartSegment {
            line: MAIN,
            segment: SEGMENT,
        }),
        Message::CheckOut(SignedBytes {
            bytes: vec![13, 14, 15],
        }),
        Message::RecallLease(RecallLease {
            desktop: DESKTOP,
            generation: GENERATION,
        }),
        Message::Wipe(SignedBytes {
            bytes: vec![16, 17, 18],
        }),
        Message::Wiped(Wiped { number: 300 }),
        Message::Moved(MovedDesktop {
            name: "alice".into(),
            pool: "office".into(),
            identity: DESKTOP,
            system: None,
            user: Some(UserVolume {
                id: DesktopId([0xE6; 16]),
                size_bytes: 512,
            }),
        }),
    ]
}
