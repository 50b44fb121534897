//! Leases and write-back: a part, and an honest exchange of frames; what a laptop is told.

use dedup::{BranchId, ChunkId, DesktopId, VersionId};
use dedup_protocol::records::MachineType;
use dedup_protocol::state::checkout::{Checkout, UserVolume};
use dedup_protocol::state::lease::Lease;
use dedup_protocol::state::message::{
    AskLease, Cut, DropLease, FenceLease, LeaseReturned, OfferPart, PartChunks, PartStaged,
    ProveLease, RecallLease, RestartSegment, ReturnLease, SegmentApplied, WantChunks,
};
use dedup_protocol::state::writeback::{Part, Range, RangeSource};
use dedup_protocol::state::{Ended, Generation, Head, Line, Nonce, Position};
use dedup_protocol::wipe::{Target, Wipe};
use dedup_protocol::wire::{Batch, BatchEncoding, Message};
use splice_fuzz::content::REALM;
use splice_fuzz::script::piece;

use crate::Seeds;

const LINE: Line = Line {
    desktop: DesktopId([1; 16]),
    generation: Generation(1),
    fork: None,
};
/// As the target names what it has under way.
const SEGMENT: Nonce = Nonce([4; 16]);

pub fn lease() -> Lease {
    Lease {
        realm: REALM,
        desktop: LINE.desktop,
        branch: BranchId([2; 16]),
        generation: LINE.generation,
        renewal: 1,
        nonce: Nonce([3; 16]),
        base: Head::START,
        issued_unix_s: 1_780_000_000,
        expires_unix_s: 1_780_086_400,
        offline_grace_s: 604_800,
    }
}

pub fn checkout() -> Checkout {
    Checkout {
        realm: REALM,
        branch: BranchId([2; 16]),
        number: 300,
        name: "alice".into(),
        pool: "office".into(),
        system: LINE.desktop,
        user: Some(UserVolume {
            id: DesktopId([5; 16]),
            size_bytes: 1 << 30,
        }),
        version: VersionId([6; 32]),
        memory_mib: 1024,
        vcpus: 1,
        machine: MachineType::Auto,
        tpm: false,
        until_unix_s: 1_780_086_400,
        is_recalled: false,
    }
}

pub fn wipe() -> Wipe {
    Wipe {
        realm: REALM,
        branch: BranchId([2; 16]),
        number: 300,
        issued_unix_s: 1_780_000_000,
        target: Target::Desktop {
            name: "alice".into(),
            volumes: vec![LINE.desktop],
        },
    }
}

fn part() -> Part {
    let range = |disk, offset, len, source| Range {
        disk,
        offset,
        len,
        source,
    };
    let chunk = |name| RangeSource::Chunk(ChunkId([name; 32]));
    let ranges = vec![
        range(0, 4096, 4096, chunk(7)),
        range(0, 1 << 20, 1 << 20, RangeSource::Zero),
        range(1, 0, 512, chunk(8)),
    ];
    Part::new(ranges, &[1 << 30, 1 << 20]).unwrap()
}

fn offer(part: u32, is_last: bool, head: Head, ranges: &[u8]) -> OfferPart {
    OfferPart {
        line: LINE,
        from: Position::START,
        segment: SEGMENT,
        to: 10,
        part,
        is_last,
        head,
        cut: Cut::LogOff,
        sealed_unix_s: 1_780_000_000,
        ranges: ranges.to_vec(),
    }
}

fn messages() -> Vec<Message> {
    let (desktop, generation) = (LINE.desktop, LINE.generation);
    let ranges = part().encode();
    let one = offer(0, false, Head::START, &ranges);
    let head = Head::START.part(10, 0, false, &ranges);
    let two = offer(1, true, head, &ranges);
    let at = Position {
        seq: 10,
        head: head.part(10, 1, true, &ranges),
    };
    // The parts that the target makes are empty ones.
    let made = Head::START.part(10, 0, false, &[0]);
    vec![
        Message::OfferPart(one),
        Message::PartChunks(PartChunks {
            line: LINE,
            segment: SEGMENT,
            part: 0,
            batch: Batch {
                count: 2,
                encoding: BatchEncoding::Each,
                packed: vec![],
            },
        }),
        Message::OfferPart(two),
        Message::AskLease(AskLease {
            desktop,
            generation,
            renewal: 1,
            nonce: Nonce([5; 16]),
            challenge: 0,
            acked: Position::START,
            sealed: SEGMENT,
            flushed: 10,
        }),
        Message::ReturnLease(ReturnLease {
            desktop,
            generation,
            at,
        }),
        Message::WantChunks(WantChunks {
            line: LINE,
            segment: SEGMENT,
            part: 0,
            wanted: vec![0],
        }),
        Message::PartStaged(PartStaged {
            line: LINE,
            segment: SEGMENT,
            part: 0,
            head: made,
        }),
        Message::RestartSegment(RestartSegment {
            line: LINE,
            segment: SEGMENT,
        }),
        Message::SegmentApplied(SegmentApplied {
            line: LINE,
            segment: SEGMENT,
            at,
        }),
        Message::ProveLease(ProveLease {
            desktop,
            generation,
            challenge: 2,
        }),
        Message::FenceLease(FenceLease {
            desktop,
            generation,
            ended: Ended::Broken,
        }),
        Message::LeaseReturned(LeaseReturned {
            desktop,
            generation,
        }),
        Message::RecallLease(RecallLease {
            desktop,
            generation,
        }),
        Message::DropLease(DropLease {
            desktop,
            generation,
        }),
    ]
}

pub fn write(seeds: &Seeds) {
    let bytes = part().encode();
    seeds.write("write_back", "part", &[&[0][..], &bytes].concat());
    for (name, missing) in [("here", 0), ("missing", 1)] {
        let mut script = vec![1];
        for message in messages() {
            let frame = message.encode();
            seeds.write("wire", &message.name().to_lowercase(), &frame);
            script.push(missing);
            script.extend(piece(&frame));
        }
        seeds.write("write_back", name, &script);
    }
}
