//! What a branch says of volumes that is not true, not its own, or too much.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use datacenter::catalog::volumes::LineKey;
use datacenter::volumes::{FORKS_MAX, StateError};
use datacenter_api::{
    AssignRequest, BranchStatus, BreakLeaseRequest, DesktopStatus, VolumeKind, VolumeReport,
};
use dedup::{BranchId, ChunkId, DesktopId, Manifest, NodeId, NodeSource};
use dedup_protocol::state::message::{AskLease, Cut, DenyReason, OfferPart, PartChunks};
use dedup_protocol::state::writeback::{PARTS_MAX, Part, Range, RangeSource};
use dedup_protocol::state::{Generation, Line, Nonce, Position};
use dedup_protocol::wire::{Batch, BatchEncoding, Message, RefuseCode};
use dedup_store::StoreError;
use support::site::{BLOCK, Site, block, join, line_row, read_disk};
use support::{Bench, sparse_disk};

const DISK_BYTES: u64 = 1 << 20;

struct World {
    bench: Bench,
    version: String,
    site: Site,
    la: BranchId,
}

/// A branch that holds a volume and another one that runs the same image.
fn world() -> World {
    world_of(DISK_BYTES, 300_000)
}

/// The same with a disk of which the first bytes are data.
fn world_of(disk_bytes: u64, data: usize) -> World {
    let bench = Bench::new();
    bench.dc.create_image("deb", None).unwrap();
    let file = bench.path("disk.raw");
    sparse_disk(&file, disk_bytes, &[(0, data)], 9);
    bench.publish("deb", &file).unwrap();
    let [ny, la] = ["ny", "la"].map(|name| {
        let branch = join(&bench, name);
        let request = AssignRequest {
            version: "deb@1".into(),
            ..AssignRequest::default()
        };
        bench.dc.assign_pool(name, "office", &request).unwrap();
        branch
    });
    let version = bench.dc.version_named("deb@1").unwrap().id;
    let base = std::fs::read(&file).unwrap();
    let mut site = Site::new(&bench, ny, DesktopId([1; 16]), base);
    site.report(&bench, &version);
    site.ask(&bench.dc).unwrap();
    assert!(site.holds());
    World {
        bench,
        version,
        site,
        la,
    }
}

fn offer(line: Line, ranges: Vec<u8>) -> OfferPart {
    OfferPart {
        line,
        from: Position::START,
        segment: Nonce([7; 16]),
        to: 5,
        part: 0,
        is_last: true,
        head: Position::START.head,
        cut: Cut::None,
        sealed_unix_s: 1,
        ranges,
    }
}

fn line(generation: u64, fork: Option<u8>) -> Line {
    Line {
        desktop: DesktopId([1; 16]),
        generation: Generation(generation),
        fork: fork.map(|name| Nonce([name; 16])),
    }
}

fn shows(offset: u64, len: u64, source: RangeSource) -> Vec<u8> {
    let range = Range {
        disk: 0,
        offset,
        len,
        source,
    };
    Part::new(vec![range], &[64 << 20]).unwrap().encode()
}

fn refused(result: Result<datacenter::volumes::Received, StateError>) -> RefuseCode {
    let error = result.unwrap_err();
    assert!(!error.is_ours(), "{error}");
    error.code()
}

struct Nodes<'a>(&'a Bench);

impl NodeSource for Nodes<'_> {
    type Error = StoreError;

    fn node(&self, id: NodeId) -> Result<bytes::Bytes, StoreError> {
        self.0.dc.store().node(id)
    }
}

#[test]
fn what_is_not_the_branch_s_is_refused_alike() {
    let world = world();
    let dc = &world.bench.dc;
    let part = shows(0, 4096, RangeSource::Zero);
    let own = offer(line(1, None), part.clone());
    assert_eq!(
        refused(dc.offer_part(world.la, &own)),
        RefuseCode::NotReadable,
        "another's"
    );
    let mut unknown = own.clone();
    unknown.line.desktop = DesktopId([9; 16]);
    for (branch, offer) in [
        (world.site.branch, unknown),
        (world.site.branch, offer(line(2, None), part.clone())),
        (world.site.branch, offer(line(1, Some(3)), part.clone())),
        (world.la, offer(line(1, Some(3)), part)),
    ] {
        assert_eq!(
            refused(dc.offer_part(branch, &offer)),
            RefuseCode::NotReadable
        );
    }
    let ask = AskLease {
        desktop: DesktopId([1; 16]),
        generation: Generation(40),
        renewal: 1,
        nonce: Nonce([1; 16]),
        challenge: 0,
        acked: Position::START,
        sealed: Nonce::NONE,
        flushed: 0,
    };
    for desktop in [DesktopId([1; 16]), DesktopId([9; 16])] {
        let asked = AskLease {
            desktop,
            ..ask.clone()
        };
        let answer = dc.ask_lease(world.la, &asked).unwrap();
        let [Message::DenyLease(deny)] = &answer[..] else {
            panic!("{answer:?}");
        };
        assert_eq!(deny.reason, DenyReason::Unknown);
    }
}

#[test]
fn parts_that_lie_are_refused() {
    let world = world();
    let dc = &world.bench.dc;
    let ny = world.site.branch;
    let outside = shows(DISK_BYTES, 4096, RangeSource::Zero);
    let bad = dc.offer_part(ny, &offer(line(1, None), outside));
    assert_eq!(refused(bad), RefuseCode::BadRequest);
    let bad = dc.offer_part(ny, &offer(line(1, None), vec![0xff; 9]));
    assert_eq!(refused(bad), RefuseCode::BadRequest);
    let mut many = offer(line(1, None), shows(0, 4096, RangeSource::Zero));
    many.part = PARTS_MAX;
    assert_eq!(refused(dc.offer_part(ny, &many)), RefuseCode::BadRequest);

    // A chunk that is here, said to be of another length: its reader would look behind its end.
    let record = dc.version_named("deb@1").unwrap();
    let root: NodeId = record.disk.root.parse().unwrap();
    let manifest = Manifest::load(&Nodes(&world.bench), root).unwrap();
    let leaf = manifest.leaf(&Nodes(&world.bench), 0).unwrap();
    let (id, len) = leaf.chunks().next().unwrap();
    let longer = u64::from(len).next_multiple_of(512) + 512;
    let bad = shows(0, longer, RangeSource::Chunk(id));
    let bad = dc.offer_part(ny, &offer(line(1, None), bad));
    assert!(matches!(bad, Err(StateError::Length { .. })), "{bad:?}");
    // And one that is not here, in two lengths at once.
    let ranges = [(0, 4096), (8192, 8192)].map(|(offset, len)| Range {
        disk: 0,
        offset,
        len,
        source: RangeSource::Chunk(ChunkId([5; 32])),
    });
    let bad = Part::new(ranges.to_vec(), &[DISK_BYTES]).unwrap().encode();
    let bad = dc.offer_part(ny, &offer(line(1, None), bad));
    assert!(matches!(bad, Err(StateError::Length { .. })), "{bad:?}");
    let row = line_row(dc, LineKey::own(DesktopId([1; 16]))).unwrap();
    assert_eq!(row.staged, None, "nothing of it is kept");
}

#[test]
fn chunks_are_taken_by_their_names_only() {
    let world = world();
    let dc = &world.bench.dc;
    let ny = world.site.branch;
    let (good, other) = (block(1), block(2));
    let id = dc.id_key().chunk_id(&good);
    let frame = |bytes: &[u8], count: u32| {
        let mut packed = ((bytes.len() as u32) << 1).to_le_bytes().to_vec();
        packed.extend_from_slice(bytes);
        PartChunks {
            line: line(1, None),
            segment: Nonce([7; 16]),
            part: 0,
            batch: Batch {
                count,
                encoding: BatchEncoding::Each,
                packed,
            },
        }
    };
    let undue = dc.take_part_chunks(ny, &frame(&good, 1));
    assert_eq!(refused(undue), RefuseCode::BadRequest, "nobody asked");
    let part = shows(0, BLOCK as u64, RangeSource::Chunk(id));
    let offered = dc.offer_part(ny, &offer(line(1, None), part)).unwrap();
    assert!(matches!(offered.messages[..], [Message::WantChunks(_)]));
    for bad in [
        frame(&other, 1),
        frame(&good[..100], 1),
        frame(&good, 2),
        frame(&good, 0),
    ] {
        assert_eq!(
            refused(dc.take_part_chunks(ny, &bad)),
            RefuseCode::BadRequest
        );
    }
    let stolen = dc.take_part_chunks(world.la, &frame(&good, 1));
    assert_eq!(refused(stolen), RefuseCode::NotReadable);
    assert!(!dc.store().contains_chunk(id).unwrap());
    // What is right is taken all the same.
    let staged = dc.take_part_chunks(ny, &frame(&good, 1)).unwrap();
    assert!(matches!(staged.messages[..], [Message::PartStaged(_)]));
    let (whole, segment) = staged.whole.unwrap();
    let applied = dc.finish_segment(whole, segment).unwrap();
    assert!(matches!(applied[..], [Message::SegmentApplied(_)]));
}

#[test]
fn a_leaf_in_shreds_is_cut_anew() {
    let world = world_of(4 << 20, 4 << 20);
    let dc = &world.bench.dc;
    let ny = world.site.branch;
    // Every other sector of a leaf: more slices than a leaf can have.
    let shreds = |from: u64| -> Vec<u8> {
        let ranges = (0..2048).map(|n| Range {
            disk: 0,
            offset: (from + 2 * n) * 512,
            len: 512,
            source: RangeSource::Zero,
        });
        Part::new(ranges.collect(), &[4 << 20]).unwrap().encode()
    };
    let mut first = offer(line(1, None), shreds(0));
    first.is_last = false;
    let received = dc.offer_part(ny, &first).unwrap();
    let [Message::PartStaged(staged)] = &received.messages[..] else {
        panic!("{received:?}");
    };
    let second = OfferPart {
        part: 1,
        head: staged.head,
        ..offer(line(1, None), shreds(4096))
    };
    let received = dc.offer_part(ny, &second).unwrap();
    let (whole, segment) = received.whole.unwrap();
    dc.finish_segment(whole, segment).unwrap();

    let row = line_row(dc, LineKey::own(DesktopId([1; 16]))).unwrap();
    let mut expected = world.site.base.clone();
    for sector in expected.chunks_mut(512).step_by(2) {
        sector.fill(0);
    }
    assert!(read_disk(dc, &row.disks[0]) == expected);
    let nodes = Nodes(&world.bench);
    let manifest = Manifest::load(&nodes, row.disks[0].root).unwrap();
    let extents = manifest.leaf(&nodes, 0).unwrap().extents.len();
    assert!(extents < 2000, "{extents} extents");
}

#[test]
fn forks_are_bounded() {
    let world = world();
    let dc = &world.bench.dc;
    let request = BreakLeaseRequest {
        reason: "carol".into(),
        force: true,
        home: None,
    };
    dc.break_lease(&DesktopId([1; 16]).to_string(), &request)
        .unwrap();
    let part = shows(0, 4096, RangeSource::Zero);
    let ny = world.site.branch;
    for name in 0..FORKS_MAX as u8 {
        let fork = offer(line(1, Some(name + 1)), part.clone());
        let received = dc.offer_part(ny, &fork).unwrap();
        let (whole, segment) = received.whole.unwrap();
        dc.finish_segment(whole, segment).unwrap();
    }
    let more = dc.offer_part(ny, &offer(line(1, Some(99)), part));
    assert!(matches!(more, Err(StateError::Forks)), "{more:?}");
    let state = dc.volume_state(&DesktopId([1; 16]).to_string()).unwrap();
    assert_eq!(state.forks.len(), FORKS_MAX);
    // One that is discarded makes room.
    let volume = DesktopId([1; 16]).to_string();
    let fork = &state.forks[0].name;
    let state = dc.discard_fork(&volume, fork, "carol: test").unwrap();
    assert_eq!(state.forks.len(), FORKS_MAX - 1);
}

#[test]
fn volumes_that_cannot_be_are_not_registered() {
    let world = world();
    let dc = &world.bench.dc;
    let tell = |id: &str, kind: VolumeKind, size_bytes: u64, version: &str| {
        let desktop = DesktopStatus {
            id: "bob".into(),
            pool: "office".into(),
            version: version.into(),
            volumes: vec![VolumeReport {
                id: id.into(),
                kind,
                size_bytes,
            }],
            ..DesktopStatus::default()
        };
        let status = BranchStatus {
            desktops: vec![desktop],
            ..BranchStatus::default()
        };
        dc.record_branch_status(world.la, status).unwrap();
    };
    let id = DesktopId([2; 16]).to_string();
    tell("xyz", VolumeKind::System, DISK_BYTES, &world.version);
    tell(&id, VolumeKind::System, DISK_BYTES + 512, &world.version);
    tell(&id, VolumeKind::System, DISK_BYTES, &"0".repeat(64));
    tell(&id, VolumeKind::User, 512, &world.version);
    tell(&id, VolumeKind::User, u64::MAX, &world.version);
    assert_eq!(dc.volume_list(None, None, 10).unwrap().len(), 1);
    tell(&id, VolumeKind::User, 64 << 20, &world.version);
    let known = dc.volume_list(None, Some("la"), 10).unwrap();
    assert_eq!((known.len(), known[0].kind), (1, VolumeKind::User));
    // What is said later changes nothing.
    tell(&id, VolumeKind::User, 128 << 20, &world.version);
    let known = dc.volume_list(None, Some("la"), 10).unwrap();
    assert_eq!(known[0].size_bytes, 64 << 20);
    dc.delete_volume(&id, "carol: bob left").unwrap();
    assert_eq!(dc.volume_list(None, None, 10).unwrap().len(), 1);
}
