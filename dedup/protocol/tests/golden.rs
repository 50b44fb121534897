//! The bytes of every wire message, signed record, token and manifest node, as the first release writes them.
//!
//! A difference means that other programs can no longer read what this one writes. If that is wanted, raise the version that the
//! failure names, and keep reading the old bytes where `docs/wire.md` or `docs/disk-formats/manifest.md` promises it.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fmt::Write;

use common::{BRANCH, REALM, anchor, endorsement, id_key, noise, publisher_key, state};
use dedup::diff::LeafDelta;
use dedup::{
    ChunkId, Chunker, ChunkerParams, Extent, ExtentSource, LEAF_BYTES, Leaf, Manifest, NodeId,
    Piece, VersionId,
};
use dedup_protocol::join::{JoinAnswer, JoinRequest, JoinToken};
use dedup_protocol::policy::{Hours, Policy};
use dedup_protocol::profile::{BootProfile, BootScore, Entries, Entry, Place};
use dedup_protocol::records::{
    Assignment, BootArtifacts, MachineType, PoolAssignment, StartMode, Tree, TreeRef, VersionRecord,
};
use dedup_protocol::state::lease::Lease;
use dedup_protocol::state::message::{Cut, DenyReason};
use dedup_protocol::state::writeback::Part;
use dedup_protocol::state::{Ended, Head};
use dedup_protocol::trust::{Record, Signed, Trust};
use dedup_protocol::wire::{
    Batch, BatchEncoding, BatchRange, BatchSize, BootRecorded, Der, GetChunks, GetLeaves,
    GetOutline, GetProfile, GetUpdate, GetVersion, Hello, Leaves, Message, Outline,
    ProfileAvailable, Refuse, RefuseCode, Restore, Restored, Run, SignedBytes, StatusReport,
    Unreadable, UpdateHead, UpdatePart, Urgency, Wanted, Welcome, WireError,
};

const VERSION: VersionId = VersionId([0x44; 32]);
const PARENT: VersionId = VersionId([0x55; 32]);

fn version_record() -> VersionRecord {
    VersionRecord {
        realm: REALM,
        image: "debian-12".into(),
        number: 3,
        parent: Some(PARENT),
        created_unix_s: 1_700_000_000,
        disk: TreeRef {
            root: NodeId([0x66; 32]),
            size_bytes: 10 << 30,
        },
        params: ChunkerParams::default(),
        boot: Some(BootArtifacts {
            kernel: TreeRef {
                root: NodeId([0x77; 32]),
                size_bytes: 8_000_000,
            },
            initrd: Some(TreeRef {
                root: NodeId([0x78; 32]),
                size_bytes: 30_000_000,
            }),
            root_argument: "root=UUID=0c0ffee0".into(),
            kernel_path: "/boot/vmlinuz-6.1".into(),
        }),
        os: Some("Debian GNU/Linux 12 (bookworm)".into()),
        data_bytes: 3_806_000_000,
    }
}

fn assignment() -> Assignment {
    Assignment {
        realm: REALM,
        branch: BRANCH,
        counter: 7,
        issued_unix_s: 1_700_000_000,
        expires_unix_s: 1_700_086_400,
        offline_grace_s: 604_800,
        pools: vec![PoolAssignment {
            pool: "office".into(),
            image: "debian-12".into(),
            version: VERSION,
            pinned: vec![PARENT],
            memory_mib: 2048,
            vcpus: 2,
            prestage: true,
            machine: MachineType::Auto,
            tpm: false,
            user_volume_mib: 0,
            pooled: false,
            start: StartMode::Boot,
        }],
    }
}

/// What only the second kind says.
fn second_assignment() -> Assignment {
    let mut assignment = assignment();
    assignment.pools[0].machine = MachineType::Qemu;
    assignment.pools[0].tpm = true;
    assignment
}

/// What only the third kind says.
fn third_assignment() -> Assignment {
    let mut assignment = second_assignment();
    assignment.pools[0].user_volume_mib = 8192;
    assignment
}

/// What only the fourth kind says.
fn fourth_assignment() -> Assignment {
    let mut assignment = third_assignment();
    assignment.pools[0].pooled = true;
    assignment.pools[0].start = StartMode::Resume;
    assignment
}

fn messages() -> Vec<Message> {
    let mut messages = sync_messages();
    messages.extend(state::messages());
    messages.push(Message::Roster(SignedBytes {
        bytes: vec![13, 14, 15],
    }));
    messages
}

fn sync_messages() -> Vec<Message> {
    let run = |leaf, first, count| Run { leaf, first, count };
    vec![
        Message::Hello(Hello {
            minor: 1,
            software: "0.1.0".into(),
            assignment_counter: 300,
        }),
        Message::Welcome(Welcome {
            minor: 1,
            software: "0.1.0".into(),
            now_unix_s: 1_700_000_000,
            endorsements: vec![endorsement()],
        }),
        Message::Assign(SignedBytes {
            bytes: vec![1, 2, 3],
        }),
        Message::Status(StatusReport { json: "{}".into() }),
        Message::Renew(Der {
            bytes: vec![0x30, 0],
        }),
        Message::Renewed(Der {
            bytes: vec![0x30, 1],
        }),
        Message::Refuse(Refuse {
            code: RefuseCode::NotReadable,
            message: "no".into(),
        }),
        Message::GetVersion(GetVersion { version: VERSION }),
        Message::Version(SignedBytes {
            bytes: vec![4, 5, 6],
        }),
        Message::GetOutline(GetOutline {
            version: VERSION,
            tree: Tree::Disk,
            parent: Some(PARENT),
        }),
        Message::Outline(Outline {
            size_bytes: 10 << 30,
            params: ChunkerParams::default(),
            changed: vec![(0, NodeId([0x88; 32])), (2559, NodeId([0x89; 32]))],
        }),
        Message::GetLeaves(GetLeaves {
            version: VERSION,
            tree: Tree::Kernel,
            parent: None,
            leaves: vec![0, 127, 128, 2559],
        }),
        Message::Leaves(Leaves {
            entries: vec![(true, 40), (false, 9216)],
            packed: vec![0x28, 0xB5, 0x2F, 0xFD],
        }),
        Message::GetChunks(GetChunks {
            version: VERSION,
            tree: Tree::Initrd,
            urgency: Urgency::Boot,
            runs: vec![run(0, 0, 1), run(2559, 300, 8192)],
        }),
        Message::Batch(Batch {
            count: 2,
            encoding: BatchEncoding::Each,
            packed: vec![6, 0, 0, 0, 7, 8, 9],
        }),
        Message::Unreadable(Unreadable {
            count: 3,
            message: "damaged".into(),
        }),
        Message::GetUpdate(GetUpdate {
            version: VERSION,
            parent: PARENT,
            head: true,
            batches: vec![
                BatchRange { first: 0, count: 3 },
                BatchRange {
                    first: 300,
                    count: 1,
                },
            ],
        }),
        Message::UpdateHead(UpdateHead {
            batches: vec![
                BatchSize {
                    chunks: 480,
                    packed_bytes: 1_900_000,
                },
                BatchSize {
                    chunks: 7,
                    packed_bytes: 0,
                },
            ],
        }),
        Message::UpdatePart(UpdatePart {
            batch: vec![0, 7, 0, 0x28, 0xB5, 0x2F, 0xFD],
        }),
        Message::Join(JoinRequest {
            secret: [0x99; 32],
            csr_der: vec![0x30, 2],
        }),
        Message::Joined(JoinAnswer {
            branch: BRANCH,
            name: "lisbon".into(),
            certificate_der: vec![0x30, 3],
            ca_pem: "-----BEGIN CERTIFICATE-----\n".into(),
            id_key: [0xAA; 32],
            anchor: anchor(),
            endorsements: vec![endorsement()],
        }),
        Message::Policy(Policy {
            link_bytes_per_s: 2_500_000,
            fill_bytes_per_s: 625_000,
            fill_hours: Some(Hours {
                from_min: 1200,
                until_min: 360,
                utc_offset_min: -300,
            }),
        }),
        Message::BootRecorded(BootRecorded {
            version: VERSION,
            score: BootScore {
                profile: 2,
                boot_ms: 14_321,
                touched_chunks: 5,
                touched_bytes: 81_920,
                covered_bytes: 65_536,
                waited_bytes: 16_384,
                prefetched_bytes: 40_000,
                wasted_bytes: 128,
            },
            entries: entries(1),
        }),
        Message::ProfileAvailable(ProfileAvailable {
            version: VERSION,
            counter: 300,
        }),
        Message::GetProfile(GetProfile {
            version: VERSION,
            have: 2,
        }),
        Message::Profile(SignedBytes {
            bytes: vec![7, 8, 9],
        }),
        Message::Wanted(Wanted {
            version: VERSION,
            tree: Tree::Disk,
            runs: vec![run(3, 10, 1), run(2559, 300, 1)],
        }),
        Message::Restore(Restore {
            version: VERSION,
            tree: Tree::Initrd,
            runs: vec![run(0, 0, 1)],
        }),
        Message::Restored(Restored { chunks: 300 }),
    ]
}

/// A run of three, a jump back, a jump to another leaf; `seen` changes once unless it is 1.
fn entries(seen: u16) -> Entries {
    let entry = |leaf, extent, at_ms, seen| Entry {
        place: Place { leaf, extent },
        at_ms,
        seen,
    };
    Entries::new(vec![
        entry(3, 10, 0, seen),
        entry(3, 11, 0, seen),
        entry(3, 12, 0, seen),
        entry(3, 2, 150, seen),
        entry(2559, 0, 20_000, 1),
    ])
}

fn boot_profile() -> BootProfile {
    BootProfile {
        realm: REALM,
        version: VERSION,
        counter: 7,
        made_unix_s: 1_700_000_000,
        boots: 8,
        carried_from: Some(PARENT),
        entries: entries(8),
    }
}

fn token() -> JoinToken {
    JoinToken {
        realm: REALM,
        ca_hash: [0xBB; 32],
        secret: [0xCC; 32],
        address: "datacenter.example:7443".into(),
    }
}

/// Whole, slice and zero, as they stand in a leaf.
fn leaf() -> Leaf {
    let slice = Extent {
        len: 5000,
        source: ExtentSource::Chunk {
            id: ChunkId([0xDD; 32]),
            chunk_len: 20_000,
            offset: 15_000,
        },
    };
    let whole = Extent::whole(ChunkId([0xDE; 32]), 16_384);
    let zero = Extent::zero((LEAF_BYTES - 5000 - 16_384) as u32);
    Leaf {
        extents: vec![slice, whole, zero],
    }
}

/// The same with another chunk in the middle.
fn changed_leaf() -> Leaf {
    let mut leaf = leaf();
    leaf.extents[1] = Extent::whole(ChunkId([0xDF; 32]), 16_384);
    leaf
}

/// 300 leaves: a root over two interior nodes.
fn manifest() -> Manifest {
    Manifest {
        size_bytes: 300 * LEAF_BYTES - 512,
        params: ChunkerParams::default(),
        leaves: (0..300u32)
            .map(|i| NodeId(*blake3::hash(&i.to_le_bytes()).as_bytes()))
            .collect(),
    }
}

fn cuts(params: ChunkerParams) -> String {
    let mut disk = noise("golden cuts", 1 << 20);
    disk[300_000..500_000].fill(0);
    let mut text = String::new();
    let mut chunker = Chunker::new(params);
    let mut emit = |piece: Piece<'_>| match piece {
        Piece::Zero(len) => write!(text, "z{len} ").unwrap(),
        Piece::Data(data) => write!(text, "{} ", data.len()).unwrap(),
    };
    chunker.push_data(&disk, &mut emit);
    chunker.finish(&mut emit);
    text.trim().into()
}

/// `name value` a line; where long bytes would only fill the file, their BLAKE3.
fn vectors() -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| writeln!(out, "{name} {value}").unwrap();
    for message in messages() {
        line(
            &format!("message.{}", message.name()),
            hex::encode(message.encode()),
        );
    }
    for code in [
        RefuseCode::NotReadable,
        RefuseCode::BadRequest,
        RefuseCode::Damaged,
        RefuseCode::Busy,
        RefuseCode::JoinRefused,
        RefuseCode::Revoked,
        RefuseCode::Version,
    ] {
        let message = Message::Refuse(Refuse {
            code,
            message: String::new(),
        });
        line(&format!("refuse.{code:?}"), hex::encode(message.encode()));
    }
    for (urgency, tree) in [
        (Urgency::Demand, Tree::Disk),
        (Urgency::Boot, Tree::Kernel),
        (Urgency::Fill, Tree::Initrd),
    ] {
        let message = Message::GetChunks(GetChunks {
            version: VERSION,
            tree,
            urgency,
            runs: vec![],
        });
        line(
            &format!("get_chunks.{urgency:?}.{tree:?}"),
            hex::encode(message.encode()),
        );
    }
    for encoding in [BatchEncoding::Solid, BatchEncoding::Each] {
        let message = Message::Batch(Batch {
            count: 1,
            encoding,
            packed: vec![],
        });
        line(
            &format!("batch.{encoding:?}"),
            hex::encode(message.encode()),
        );
    }
    for reason in [
        DenyReason::Held,
        DenyReason::Unsettled,
        DenyReason::Unknown,
        DenyReason::Spent,
        DenyReason::Behind,
    ] {
        let frame = state::deny(reason).encode();
        line(&format!("deny.{reason:?}"), hex::encode(frame));
    }
    for ended in [Ended::Returned, Ended::Broken, Ended::OldCopy] {
        let frame = state::fence(ended).encode();
        line(&format!("fence.{ended:?}"), hex::encode(frame));
    }
    for cut in [Cut::None, Cut::LogOff, Cut::Asked, Cut::Frozen] {
        let frame = Message::OfferPart(state::offer(cut)).encode();
        line(&format!("cut.{cut:?}"), hex::encode(frame));
    }
    let version = publisher_key().sign(&version_record());
    line("signed.version", hex::encode(version.to_bytes()));
    line("signed.version.id", version.id().to_string());
    for (name, assignment) in [
        ("signed.assignment", assignment()),
        ("signed.assignment.2", second_assignment()),
        ("signed.assignment.3", third_assignment()),
    ] {
        let signed = publisher_key().sign(&assignment);
        line(name, hex::encode(signed.to_bytes()));
    }
    line(
        "endorsement.signature",
        hex::encode(endorsement().signature),
    );
    line("join_token", token().to_string());
    line("profile.entries", hex::encode(entries(8).encode()));
    let profile = publisher_key().sign(&boot_profile());
    line("signed.profile", hex::encode(profile.to_bytes()));
    let lease = publisher_key().sign(&state::lease());
    line("signed.lease", hex::encode(lease.to_bytes()));
    let part = state::part().encode();
    let head = Head::START.part(5000, 0, true, &part);
    line("write_back.part", hex::encode(part));
    line("write_back.head", hex::encode(head.0));
    let key = id_key();
    line("id_key.key_id", hex::encode(key.key_id()));
    line("id_key.chunk_id", key.chunk_id(b"hello").to_string());
    line("id_key.node_id", key.node_id(b"hello").to_string());
    line("leaf", hex::encode(leaf().encode()));
    let delta = LeafDelta::between(&leaf(), &changed_leaf());
    line("leaf_delta", hex::encode(delta.encode()));
    let sealed = manifest().seal(&key);
    let [first, second, root] = &sealed.nodes[..] else {
        panic!("300 leaves take two interior nodes and a root");
    };
    line("manifest.root", hex::encode(&root.1));
    line("manifest.root.id", sealed.root.to_string());
    line("manifest.interior.first.head", hex::encode(&first.1[..36]));
    line("manifest.interior.first.id", first.0.to_string());
    line("manifest.interior.second.id", second.0.to_string());
    line("cuts.default", cuts(ChunkerParams::default()));
    line(
        "cuts.64k",
        cuts(ChunkerParams::new(16 << 10, 64 << 10, 256 << 10).unwrap()),
    );
    out
}

#[test]
fn bytes_are_those_of_the_first_release() {
    let expected = include_str!("golden/vectors.txt");
    let actual = vectors();
    if expected == actual {
        return;
    }
    let place = concat!(env!("CARGO_TARGET_TMPDIR"), "/vectors.txt");
    std::fs::write(place, &actual).unwrap();
    let changed: Vec<&str> = actual
        .lines()
        .filter(|line| !expected.lines().any(|e| e == *line))
        .filter_map(|line| line.split(' ').next())
        .collect();
    panic!(
        "these bytes changed or are new: {changed:?} (a whole new file is at {place}).\n\
         message.*, refuse.*, batch.*, get_chunks.*, deny.*, fence.*, cut.*: the ALPN's major version and FRAME_VERSION must go up.\n\
         write_back.*: the message OfferPart needs a successor, and heads that are kept stay what they are.\n\
         signed.*, endorsement.*: the record needs one more of its KINDS, or the context \"splice v1\" must go up.\n\
         join_token: its prefix splice-join-1. must go up.\n\
         id_key.*: never, every stored name depends on them.\n\
         leaf*, manifest.*: FORMAT in dedup/src/manifest.rs must go up.\n\
         cuts.*: no reader breaks, but every image stops to deduplicate against what is stored: a new field beside the parameters."
    );
}

#[test]
fn golden_bytes_are_read_back() {
    for message in messages() {
        assert_eq!(Message::decode(&message.encode()), Ok(message));
    }
    assert_eq!(token().to_string().parse(), Ok(token()));
    let signed = publisher_key().sign(&version_record()).to_bytes();
    let opened = Signed::<VersionRecord>::from_bytes(&signed).unwrap().open(
        &anchor(),
        &[endorsement()],
        Trust::Kept,
    );
    assert_eq!(opened, Ok(version_record()));
    let third = third_assignment().encode("assignment 3");
    let fourth = fourth_assignment().encode("assignment 4");
    assert_eq!(fourth, [&third[..], &[1, 1]].concat());
    for assignment in [
        assignment(),
        second_assignment(),
        third_assignment(),
        fourth_assignment(),
    ] {
        let signed = publisher_key().sign(&assignment).to_bytes();
        let signed = Signed::<Assignment>::from_bytes(&signed).unwrap();
        let opened = signed.open(&anchor(), &[endorsement()], Trust::Kept);
        assert_eq!(opened, Ok(assignment.clone()));
        assert_eq!(signed.open_own(), Ok(assignment));
    }
    let signed = publisher_key().sign(&boot_profile()).to_bytes();
    let opened = Signed::<BootProfile>::from_bytes(&signed).unwrap();
    let opened = opened.open(&anchor(), &[endorsement()], Trust::Kept);
    assert_eq!(opened, Ok(boot_profile()));
    let signed = publisher_key().sign(&state::lease()).to_bytes();
    let opened = Signed::<Lease>::from_bytes(&signed).unwrap();
    let opened = opened.open(&anchor(), &[endorsement()], Trust::Kept);
    assert_eq!(opened, Ok(state::lease()));
    let part = Part::decode(&state::part().encode(), &state::DISKS);
    assert_eq!(part, Ok(state::part()));
    assert_eq!(Entries::decode(&entries(8).encode()), Ok(entries(8)));
    assert_eq!(Leaf::decode(&leaf().encode(), LEAF_BYTES), Ok(leaf()));
    let delta = LeafDelta::between(&leaf(), &changed_leaf());
    let delta = LeafDelta::decode(&delta.encode()).unwrap();
    assert_eq!(delta.apply(&leaf()), Ok(changed_leaf()));
}

/// A new message cannot be added without a golden vector.
#[test]
fn every_tag_has_a_vector_and_every_other_is_named_in_the_error() {
    let known: Vec<u8> = messages().iter().map(|m| m.encode()[1]).collect();
    for tag in 0..=255 {
        let unknown = Message::decode(&[1, tag]) == Err(WireError::Tag(tag));
        assert_eq!(unknown, !known.contains(&tag), "tag {tag:#04x}");
    }
}
