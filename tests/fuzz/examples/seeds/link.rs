//! What crosses the link: messages of every kind, manifests, signed records, join tokens.

use dedup::diff::LeafDelta;
use dedup::manifest::LEAF_BYTES;
use dedup::update::UpdateBatch;
use dedup::{BranchId, Leaf, VersionId};
use dedup_protocol::join::{JoinAnswer, JoinRequest, JoinToken};
use dedup_protocol::people::totp::TotpSecret;
use dedup_protocol::people::verifier::Verifier;
use dedup_protocol::people::{Person, Roster};
use dedup_protocol::records::{
    Assignment, MachineType, PoolAssignment, StartMode, Tree, VersionRecord,
};
use dedup_protocol::server::Responder;
use dedup_protocol::trust::{Endorsement, Record, Signed, SigningKey, TrustAnchor};
use dedup_protocol::wire::{
    BatchRange, Der, GetChunks, GetLeaves, GetOutline, GetUpdate, GetVersion, Hello, Message,
    Refuse, RefuseCode, Run, SignedBytes, StatusReport, Urgency, Welcome,
};
use splice_fuzz::content::{Fixed, REALM};
use splice_fuzz::script::piece;

use crate::Seeds;

pub fn write(seeds: &Seeds) {
    let content = Fixed::content();
    manifests(seeds, content);
    let requests = requests(content);
    for (name, request) in &requests {
        seeds.write("responder", name, &request.encode());
    }
    let update = |head, batches| GetUpdate {
        version: content.versions[1].id,
        parent: content.versions[0].id,
        head,
        batches,
    };
    let ranges = |ranges: &[(u32, u32)]| -> Vec<BatchRange> {
        let ranges = ranges.iter();
        ranges
            .map(|(first, count)| BatchRange {
                first: *first,
                count: *count,
            })
            .collect()
    };
    for (name, request) in [
        ("head", update(true, vec![])),
        ("batches", update(false, ranges(&[(0, 2), (3, 1)]))),
        ("all", update(true, ranges(&[(0, 8)]))),
    ] {
        let frame = Message::GetUpdate(request).encode();
        seeds.write("update_exchange", name, &frame);
        seeds.write("wire", &format!("get-update-{name}"), &frame);
    }
    // The head as it is, then batches in order; then one with a byte changed.
    seeds.write("update_exchange", "honest", &[0, 0, 0, 1, 0, 2, 0, 3, 0]);
    seeds.write("update_exchange", "bent", &[0, 0, 1, 0, 60, 0]);
    // The answers to all of them are the messages that the datacenter sends.
    let answers = requests.iter().flat_map(|(name, request)| {
        let mut answer = Responder::new(content, request, |_| true).unwrap();
        std::iter::from_fn(move || answer.next_frame().unwrap())
            .enumerate()
            .map(move |(frame, message)| (format!("{name}-answer-{frame}"), message))
    });
    let messages: Vec<_> = control().into_iter().chain(answers).collect();
    for (name, message) in requests.iter().chain(&messages) {
        seeds.write("wire", name, &message.encode());
    }
    let frames: Vec<u8> = messages
        .iter()
        .flat_map(|(_, m)| {
            let frame = m.encode();
            if frame.len() < 60_000 {
                piece(&frame)
            } else {
                Vec::new()
            }
        })
        .collect();
    seeds.write("control", "all", &frames);
    records(seeds, content);
    exchanges(seeds);
    updates(seeds);
}

/// A batch's head with a list of several runs; a list over a genuine frame; an edit of a genuine batch.
fn updates(seeds: &Seeds) {
    let batch = UpdateBatch {
        first: 0,
        count: 2,
        prefix: vec![0, 1, 2, 9, 4, 5],
        packed: zstd::bulk::compress(&[7; 4000], 1).unwrap().into(),
    };
    let mut head = vec![0];
    batch.encode(&mut head);
    seeds.write("update_batch", "head", &head);
    seeds.write("update_batch", "list", &[1, 0, 1, 2, 3, 4, 5]);
    seeds.write("update_batch", "edit", &[2, 1, 0, 40, 0, 9]);
}

fn manifests(seeds: &Seeds, content: &Fixed) {
    let disk = &content.versions[1].disk;
    for (index, id) in disk.leaves.iter().enumerate() {
        let bytes = content.node(*id).unwrap();
        let len = dedup::Manifest::leaf_len(disk.size_bytes, index as u64);
        let range = if len == LEAF_BYTES { 0 } else { len as u32 };
        let seed = [&range.to_le_bytes()[..3], &bytes].concat();
        seeds.write("leaf", &format!("leaf-{index}"), &seed);
        let old = content
            .node(content.versions[0].disk.leaves[index.min(1)])
            .unwrap();
        let old = Leaf::decode(&old, LEAF_BYTES).unwrap();
        let delta = LeafDelta::between(&old, &Leaf::decode(&bytes, len).unwrap());
        let choice = (index.min(1) as u8) << 1;
        seeds.write(
            "leaf_delta",
            &format!("delta-{index}"),
            &[&[choice][..], &delta.encode()].concat(),
        );
    }
    seeds.write(
        "leaf_delta",
        "shuffled",
        &[1, 0, 1, 2, 3, 9, 8, 7, 4, 5, 6, 39, 40],
    );
    let copy = b"\x01\x42\x0a\x02\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0ab";
    let symbols = b"\x01\x41\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x09\0\0\0\x04\0\0\x01\x02\x03\x04";
    let turns = [
        &[1, copy.len() as u8, 0][..],
        copy,
        &[1, symbols.len() as u8, 0],
        symbols,
        &[0, 0, 0, 5, 5, 0, 0, 0, 7],
    ];
    seeds.write("repair", "turns", &turns.concat());
    // Names by their first byte: root 0 and root 1 above interior nodes 2 and 3 above leaf 4.
    let root = |depth: u8, children: &[u8]| {
        let size = [0x80, 0x80, 0x80, 0x02].map(|b: u8| b);
        let params = [0x80, 0x20, 0x80, 0x80, 0x01, 0x80, 0x80, 0x04];
        let mut node = [&[1, 3][..], &size, &params, &[depth, children.len() as u8]].concat();
        children.iter().for_each(|&child| node.extend([child; 32]));
        node
    };
    let interior = |children: &[u8]| {
        let mut node = vec![1, 2, children.len() as u8];
        children.iter().for_each(|&child| node.extend([child; 32]));
        node
    };
    let leaf = [&[1, 1, 1][..], &[0x80, 0x80, 0x80, 0x08]].concat();
    for (name, nodes) in [
        (
            "flat",
            vec![
                root(0, &[4]),
                root(0, &[3]),
                interior(&[4]),
                interior(&[4]),
                leaf.clone(),
            ],
        ),
        (
            "deep",
            vec![
                root(1, &[2]),
                root(1, &[3]),
                interior(&[4]),
                interior(&[4]),
                leaf.clone(),
            ],
        ),
        (
            "grown",
            vec![
                root(0, &[4]),
                root(2, &[2]),
                interior(&[3]),
                interior(&[4]),
                leaf,
            ],
        ),
    ] {
        let seed: Vec<u8> = nodes.iter().flat_map(|node| piece(node)).collect();
        seeds.write("manifest", name, &seed);
    }
}

fn requests(content: &Fixed) -> Vec<(String, Message)> {
    let (base, version) = (content.versions[0].id, content.versions[1].id);
    let mut requests = vec![(
        "get-version".to_owned(),
        Message::GetVersion(GetVersion { version }),
    )];
    for (name, tree, parent) in [
        ("disk", Tree::Disk, None),
        ("disk-on-parent", Tree::Disk, Some(base)),
        ("kernel", Tree::Kernel, None),
    ] {
        let leaves = if tree == Tree::Disk {
            vec![0, 1, 3]
        } else {
            vec![0]
        };
        let outline = GetOutline {
            version,
            tree,
            parent,
        };
        requests.push((format!("get-outline-{name}"), Message::GetOutline(outline)));
        let leaves = GetLeaves {
            version,
            tree,
            parent,
            leaves,
        };
        requests.push((format!("get-leaves-{name}"), Message::GetLeaves(leaves)));
    }
    for (name, urgency) in [("demand", Urgency::Demand), ("boot", Urgency::Boot)] {
        let runs = vec![
            Run {
                leaf: 0,
                first: 3,
                count: 5,
            },
            Run {
                leaf: 1,
                first: 0,
                count: 2,
            },
        ];
        let chunks = GetChunks {
            version,
            tree: Tree::Disk,
            urgency,
            runs,
        };
        requests.push((format!("get-chunks-{name}"), Message::GetChunks(chunks)));
    }
    requests
}

fn control() -> Vec<(String, Message)> {
    let endorsements = vec![Endorsement {
        publisher: [1; 32],
        until_unix_s: 9,
        signature: vec![2; 64],
    }];
    let bytes = vec![0x30, 0x82, 1, 2];
    let text = || "text".to_owned();
    [
        Message::Hello(Hello {
            minor: 1,
            software: text(),
            assignment_counter: 300,
        }),
        Message::Welcome(Welcome {
            minor: 1,
            software: text(),
            now_unix_s: 1 << 31,
            endorsements: endorsements.clone(),
        }),
        Message::Assign(SignedBytes {
            bytes: assignment().to_bytes(),
        }),
        Message::Status(StatusReport { json: "{}".into() }),
        Message::Renew(Der {
            bytes: bytes.clone(),
        }),
        Message::Renewed(Der {
            bytes: bytes.clone(),
        }),
        Message::Refuse(Refuse {
            code: RefuseCode::Busy,
            message: text(),
        }),
        Message::Join(JoinRequest {
            secret: [3; 32],
            csr_der: bytes.clone(),
        }),
        Message::Joined(JoinAnswer {
            branch: BranchId([4; 16]),
            name: text(),
            certificate_der: bytes,
            ca_pem: text(),
            id_key: [5; 32],
            anchor: TrustAnchor {
                realm: REALM,
                root: [6; 32],
            },
            endorsements,
        }),
    ]
    .into_iter()
    .map(|message| (message.name().to_lowercase(), message))
    .collect()
}

fn assignment() -> Signed<Assignment> {
    SigningKey::generate().0.sign(&Assignment {
        realm: REALM,
        branch: BranchId([1; 16]),
        counter: 1,
        issued_unix_s: 1_780_000_000,
        expires_unix_s: 1_790_000_000,
        offline_grace_s: 86_400,
        pools: vec![PoolAssignment {
            pool: "pool".into(),
            image: "desktop".into(),
            version: VersionId([7; 32]),
            pinned: vec![VersionId([8; 32])],
            memory_mib: 1024,
            vcpus: 2,
            prestage: true,
            machine: MachineType::Qemu,
            tpm: true,
            user_volume_mib: 8192,
            pooled: false,
            start: StartMode::Resume,
        }],
    })
}

/// The envelope, and what it holds (behind the publisher, 64 bytes of signature with their length, and its own length).
fn both<T: Record>(seeds: &Seeds, kind: u8, name: &str, signed: &Signed<T>) {
    let bytes = signed.to_bytes();
    seeds.write(
        "signed",
        &format!("{name}-envelope"),
        &[&[kind][..], &bytes].concat(),
    );
    let head = if bytes[97] & 0x80 == 0 { 98 } else { 99 };
    seeds.write(
        "signed",
        &format!("{name}-content"),
        &[&[kind | 1][..], &bytes[head..]].concat(),
    );
}

fn records(seeds: &Seeds, content: &Fixed) {
    let version =
        Signed::<VersionRecord>::from_bytes(&content.versions[1].published.signed).unwrap();
    both(seeds, 0, "version", &version);
    both(seeds, 2, "assignment", &assignment());
    let lease = SigningKey::generate().0.sign(&crate::state::lease());
    both(seeds, 4, "lease", &lease);
    let (key, _) = SigningKey::generate();
    both(seeds, 8, "checkout", &key.sign(&crate::state::checkout()));
    both(seeds, 10, "wipe", &key.sign(&crate::state::wipe()));
    let verifier = Verifier {
        memory_kib: 8,
        passes: 1,
        lanes: 1,
        salt: [1; 16],
        hash: [2; 32],
    };
    let roster = Roster {
        realm: REALM,
        branch: BranchId([1; 16]),
        counter: 300,
        issued_unix_s: 1,
        people: vec![Person {
            name: "alice".into(),
            verifier,
            totp: Some(TotpSecret([3; 20])),
            pools: vec!["lab".into(), "office".into()],
        }],
    };
    let roster = SigningKey::generate().0.sign(&roster);
    both(seeds, 12, "roster", &roster);
    // Two boots of a few runs, cut in the middle of the seed.
    let boot = [4, 0, 20, 4, 30, 9, 1, 2];
    let seed = [&[2][..], &boot, &[0, 0], &boot, &[0, 0]].concat();
    seeds.write("boot_profile", "two-boots", &seed);
    seeds.write("boot_profile", "one-boot", &[&[0][..], &boot].concat());
    let token = JoinToken {
        realm: REALM,
        ca_hash: [1; 32],
        secret: [2; 32],
        address: "datacenter.example:7443".into(),
    };
    let text = token.to_string();
    seeds.write("join_token", "text", text.as_bytes());
    let body = hex::decode(text.rsplit_once('.').unwrap().1).unwrap();
    seeds.write("join_token", "body", &body[..body.len() - 4]);
}

/// Instructions: honest frames, then one of each kind of lie.
fn exchanges(seeds: &Seeds) {
    for parent in [0, 1] {
        seeds.write("tree_sync", &format!("honest-{parent}"), &[parent]);
        for lie in 3..=7u8 {
            let script = [parent, 0, lie, 2, 1, 3, 0, 0xFF, 1, 9, 0, 7, 0, 0, 0];
            seeds.write("tree_sync", &format!("lie-{lie}-{parent}"), &script);
            let script = [
                parent, lie, 1, 1, 12, 0, 0xFF, 0, lie, 1, 1, 1, 0, 0, 4, 0, 1, 1, 1, 4,
            ];
            seeds.write("tree_sync", &format!("early-lie-{lie}-{parent}"), &script);
        }
    }
    seeds.write(
        "restore",
        "honest",
        &[3, 0, 1, 0, 1, 0, 3, 0, 2, 1, 0, 0, 1],
    );
    seeds.write(
        "restore",
        "edited",
        &[
            1, 0, 1, 0, 1, 1, 9, 0, 0xFF, 1, 40, 0, 0xFF, 1, 4, 0, 1, 2, 3, 4,
        ],
    );
    for choice in [0x10, 0x11] {
        seeds.write("chunk_exchange", &format!("honest-{choice}"), &[choice]);
        seeds.write(
            "chunk_exchange",
            &format!("edited-{choice}"),
            &[choice, 1, 1, 1, 9, 0, 0xFF],
        );
        seeds.write(
            "chunk_exchange",
            &format!("solid-{choice}"),
            &[choice, 2, 1, 2, 0, 1, 1, 0, 5, 0],
        );
        seeds.write(
            "chunk_exchange",
            &format!("each-{choice}"),
            &[choice, 2, 0, 1, 0, 0, 3, 0, 1, 2, 3],
        );
    }
}
