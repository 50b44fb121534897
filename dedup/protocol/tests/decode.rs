//! Foreign bytes of every kind: an error that says why, never a panic, never an allocation that only a claim asks for.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{anchor, endorsement, peak, publisher_key, state};
use dedup::diff::LeafDelta;
use dedup::{LEAF_BYTES, Leaf, NodeId, VersionId};
use dedup_protocol::join::JoinToken;
use dedup_protocol::records::{Assignment, Tree, VersionRecord};
use dedup_protocol::state::lease::Lease;
use dedup_protocol::state::writeback::Part;
use dedup_protocol::trust::{Signed, Trust, TrustError};
use dedup_protocol::wire::{
    BatchRange, BatchSize, GetChunks, GetLeaves, GetUpdate, Hello, Message, Outline, Refuse,
    RefuseCode, Run, StatusReport, UpdateHead, UpdatePart, Urgency, WireError,
};
use proptest::prelude::*;

/// What a decoder may allocate for nothing: serde reserves at most a megabyte for a list before its elements come.
const CLAIM_BYTES_MAX: usize = 3 << 20;

fn chunks_request(runs: usize) -> Message {
    Message::GetChunks(GetChunks {
        version: VersionId([1; 32]),
        tree: Tree::Disk,
        urgency: Urgency::Demand,
        runs: (0..runs as u32)
            .map(|leaf| Run {
                leaf,
                first: 1,
                count: 2,
            })
            .collect(),
    })
}

fn outline() -> Message {
    Message::Outline(Outline {
        size_bytes: 1 << 30,
        params: dedup::ChunkerParams::default(),
        changed: (0..20).map(|i| (i, NodeId([i as u8; 32]))).collect(),
    })
}

fn samples() -> Vec<Message> {
    vec![
        Message::Hello(Hello {
            minor: 1,
            software: "0.1.0".into(),
            assignment_counter: 1 << 40,
        }),
        Message::Status(StatusReport {
            json: "{\"desktops\":[]}".into(),
        }),
        Message::Refuse(Refuse {
            code: RefuseCode::Busy,
            message: "later".into(),
        }),
        Message::GetLeaves(GetLeaves {
            version: VersionId([1; 32]),
            tree: Tree::Initrd,
            parent: Some(VersionId([2; 32])),
            leaves: (0..100).collect(),
        }),
        chunks_request(50),
        outline(),
        Message::GetUpdate(GetUpdate {
            version: VersionId([1; 32]),
            parent: VersionId([2; 32]),
            head: false,
            batches: (0..40)
                .map(|n| BatchRange {
                    first: n * 300,
                    count: 200,
                })
                .collect(),
        }),
        Message::UpdateHead(UpdateHead {
            batches: (0..40)
                .map(|n| BatchSize {
                    chunks: 480,
                    packed_bytes: n * 70_000,
                })
                .collect(),
        }),
        Message::UpdatePart(UpdatePart {
            batch: vec![7; 100],
        }),
    ]
    .into_iter()
    .chain(state::messages())
    .collect()
}

#[test]
fn every_truncation_and_every_trailing_byte_is_refused() {
    for message in samples() {
        let frame = message.encode();
        for len in 0..frame.len() {
            let refused = Message::decode(&frame[..len]).unwrap_err();
            let expected = if len < 2 {
                WireError::Short(len)
            } else {
                WireError::Malformed {
                    name: message.name(),
                }
            };
            assert_eq!(refused, expected, "{} cut to {len} bytes", message.name());
        }
        let mut longer = frame.clone();
        longer.push(0);
        assert!(Message::decode(&longer).is_err(), "{}", message.name());
        for version in (0..=255).filter(|v| *v != 1) {
            let mut other = frame.clone();
            other[0] = version;
            assert_eq!(Message::decode(&other), Err(WireError::Version(version)));
        }
    }
}

#[test]
fn claims_of_huge_lists_cost_nothing() {
    // A length of 2^63 and of 2^32 - 1 in place of each byte, with nothing behind it and with a little behind it.
    let claims: [&[u8]; 2] = [
        &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1],
        &[0xFF, 0xFF, 0xFF, 0xFF, 0x0F],
    ];
    for message in samples() {
        let frame = message.encode();
        for at in 2..frame.len().min(120) {
            for claim in claims {
                for tail in [0, 64] {
                    let mut hostile = frame[..at].to_vec();
                    hostile.extend_from_slice(claim);
                    hostile.resize(hostile.len() + tail, 1);
                    let (_, held) = peak::during(|| Message::decode(&hostile).is_ok());
                    assert!(
                        held < CLAIM_BYTES_MAX,
                        "{} held {held} bytes for {} bytes of input",
                        message.name(),
                        hostile.len()
                    );
                }
            }
        }
    }
    let mut leaf = vec![1, 1];
    leaf.extend_from_slice(claims[1]);
    let (leaf, held) = peak::during(|| Leaf::decode(&leaf, LEAF_BYTES));
    assert!(leaf.is_err() && held < 4096, "{held}");
    let (delta, held) = peak::during(|| LeafDelta::decode(claims[1]));
    assert!(delta.is_err() && held < 4096, "{held}");
}

#[test]
fn a_delta_cannot_grow_a_leaf_without_bound() {
    let extents = vec![dedup::Extent::zero(1); 4000];
    let old = Leaf { extents };
    // 8192 copies of all 4000 extents.
    let mut hostile = vec![0x80, 0x40];
    for _ in 0..8192 {
        hostile.extend_from_slice(&[1, 0xA0, 0x1F]);
    }
    let delta = LeafDelta::decode(&hostile).unwrap();
    let (refused, held) = peak::during(|| delta.apply(&old));
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("12000 extents in one leaf"), "{error}");
    assert!(held < 4 << 20, "{held}");
}

#[test]
fn a_signed_envelope_has_one_spelling() {
    let assignment = Assignment {
        realm: common::REALM,
        branch: common::BRANCH,
        counter: 1,
        issued_unix_s: 1,
        expires_unix_s: 2,
        offline_grace_s: 3,
        pools: vec![],
    };
    let bytes = publisher_key().sign(&assignment).to_bytes();
    for len in 0..bytes.len() {
        assert!(Signed::<Assignment>::from_bytes(&bytes[..len]).is_err());
    }
    let mut longer = bytes.clone();
    longer.push(0);
    let error = Signed::<Assignment>::from_bytes(&longer).unwrap_err();
    assert!(
        error.to_string().contains("1 bytes behind its end"),
        "{error}"
    );
    // One kind of record does not pass as another, though it parses.
    let as_version = Signed::<VersionRecord>::from_bytes(&bytes).unwrap();
    assert!(matches!(
        as_version.open(&anchor(), &[endorsement()], Trust::Kept),
        Err(TrustError::Signature { what: "version" })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_decode_or_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..600), tag in 0u8..0x70) {
        let (_, held) = peak::during(|| {
            let _ = Leaf::decode(&bytes, LEAF_BYTES);
            let _ = LeafDelta::decode(&bytes);
            let _ = Signed::<VersionRecord>::from_bytes(&bytes);
            let _ = Signed::<Assignment>::from_bytes(&bytes);
            let _ = Signed::<Lease>::from_bytes(&bytes);
            let _ = Part::decode(&bytes, &state::DISKS);
            let _ = Message::decode(&bytes);
            let _ = hex::encode(&bytes).parse::<JoinToken>();
        });
        prop_assert!(held < CLAIM_BYTES_MAX);
        // Random bytes seldom pass the first two: the bodies are to be reached.
        bytes.splice(..0, [1, tag]);
        if let Ok(message) = Message::decode(&bytes) {
            let again = Message::decode(&message.encode());
            prop_assert_eq!(again, Ok(message));
        }
        bytes[1] = 1;
        if let Ok(leaf) = Leaf::decode(&bytes, LEAF_BYTES) {
            prop_assert_eq!(leaf.encode(), bytes);
        }
    }

    #[test]
    fn flipped_frames_decode_or_are_refused(which in 0usize..22, at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut frame = samples()[which].encode();
        let at = at.index(frame.len());
        frame[at] ^= 1 << bit;
        let (_, held) = peak::during(|| Message::decode(&frame).is_ok());
        prop_assert!(held < CLAIM_BYTES_MAX);
    }

    #[test]
    fn token_text_decodes_or_is_refused(text in "(splice-join-1\\.)?[0-9a-f]{0,300}") {
        prop_assert!(text.parse::<JoinToken>().is_err(), "without its check digits");
    }
}
