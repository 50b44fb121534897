//! What a branch may ask, and what it is told when it asks for more.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Datacenter, NewVersion, noise};
use dedup::{ChunkerParams, DesktopId, VersionId};
use dedup_protocol::records::Tree;
use dedup_protocol::server::{AnswerError, Responder};
use dedup_protocol::state::Generation;
use dedup_protocol::state::began::StateName;
use dedup_protocol::wire::{
    CHUNKS_MAX, GetChunks, GetLeaves, GetOutline, GetVersion, Hello, LEAVES_MAX, Message, RUNS_MAX,
    RefuseCode, Run, StatusReport, Urgency,
};

struct Site {
    dc: Datacenter,
    version: VersionId,
    next: VersionId,
    foreign: VersionId,
}

/// Two versions of an image with a kernel, and one of another image without.
fn site() -> Site {
    let mut dc = Datacenter::default();
    // Chunks of exactly 1 KiB: 4096 in a leaf.
    let params = ChunkerParams::new(1024, 1024, 1024).unwrap();
    let mut disk = noise("hostile branch", 5 << 20);
    let version = dc.publish(&NewVersion {
        params,
        kernel: Some(b"kernel"),
        ..NewVersion::first("desktop", &disk)
    });
    disk[0] ^= 1;
    let next = dc.publish(&NewVersion {
        params,
        number: 2,
        parent: Some(version),
        kernel: Some(b"kernel"),
        ..NewVersion::first("desktop", &disk)
    });
    let foreign = dc.publish(&NewVersion {
        params,
        ..NewVersion::first("other", &disk)
    });
    Site {
        dc,
        version,
        next,
        foreign,
    }
}

fn run(leaf: u32, first: u16, count: u16) -> Run {
    Run { leaf, first, count }
}

fn chunks(version: VersionId, tree: Tree, runs: Vec<Run>) -> Message {
    Message::GetChunks(GetChunks {
        version,
        tree,
        urgency: Urgency::Demand,
        runs,
    })
}

fn leaves(version: VersionId, parent: Option<VersionId>, leaves: Vec<u32>) -> Message {
    Message::GetLeaves(GetLeaves {
        version,
        tree: Tree::Disk,
        parent,
        leaves,
    })
}

fn outline(version: VersionId, tree: Tree, parent: Option<VersionId>) -> Message {
    Message::GetOutline(GetOutline {
        version,
        tree,
        parent,
    })
}

/// The refusal a branch gets, as it arrives there.
fn refusal(error: &AnswerError) -> (RefuseCode, String) {
    match Message::decode(&error.refusal().encode()).unwrap() {
        Message::Refuse(refuse) => (refuse.code, refuse.message),
        other => panic!("{} is no refusal", other.name()),
    }
}

fn refused(site: &Site, request: &Message) -> (RefuseCode, String) {
    refusal(&site.dc.answer(request).expect_err("this must be refused"))
}

#[test]
fn requests_out_of_range_or_over_a_limit_are_bad() {
    let site = site();
    let v = site.version;
    let disk = |runs| chunks(v, Tree::Disk, runs);
    let all = [run(0, 0, 4096), run(1, 0, 1024)];
    for (request, word) in [
        (disk(vec![run(0, 4096, 1)]), "extents 4096..4097 of leaf 0"),
        (disk(vec![run(0, 0, 4097)]), "that has 4096"),
        (
            disk(vec![run(0, u16::MAX, u16::MAX)]),
            "extents 65535..131070",
        ),
        (disk(vec![run(2, 0, 1)]), "leaf 2 of a tree of 2"),
        (disk(vec![run(u32::MAX, 0, 1)]), "of a tree of 2"),
        (disk(vec![run(0, 0, 0); RUNS_MAX + 1]), "4097 runs"),
        (disk(all.to_vec()), "more than 4096 chunks"),
        (disk(vec![run(0, 0, 0)]), "ascending"),
        (disk(vec![run(0, 5, 1), run(0, 4, 1)]), "ascending"),
        (disk(vec![run(0, 0, 2), run(0, 1, 2)]), "ascending"),
        (disk(vec![run(1, 0, 1), run(0, 9, 1)]), "ascending"),
        (chunks(v, Tree::Initrd, vec![]), "no Initrd tree"),
        (chunks(site.foreign, Tree::Kernel, vec![]), "no Kernel tree"),
        (outline(site.foreign, Tree::Kernel, None), "no Kernel tree"),
        (leaves(v, None, vec![0, 2]), "leaf 2 of a tree of 2"),
        (leaves(v, None, vec![0; LEAVES_MAX + 1]), "4097 leaves"),
        (leaves(v, None, vec![0, 0]), "ascending"),
        (leaves(v, None, vec![1, 0]), "ascending"),
        (
            Message::Hello(Hello {
                minor: 1,
                software: String::new(),
                assignment_counter: 0,
            }),
            "Hello is not a request",
        ),
        (
            Message::Status(StatusReport {
                json: String::new(),
            }),
            "Status is not a request",
        ),
    ] {
        let (code, message) = refused(&site, &request);
        assert_eq!(code, RefuseCode::BadRequest, "{message}");
        assert!(message.contains(word), "{message:?} lacks {word:?}");
    }
    // The limits themselves are allowed.
    let most = disk(vec![run(0, 0, CHUNKS_MAX as u16)]);
    assert_eq!(counted(&site.dc.answer(&most).unwrap()), CHUNKS_MAX);
    assert_eq!(counted(&site.dc.answer(&most).unwrap()), CHUNKS_MAX);
    let singles = (0..RUNS_MAX as u16).map(|first| run(0, first, 1)).collect();
    assert_eq!(counted(&site.dc.answer(&disk(singles)).unwrap()), RUNS_MAX);
    assert!(site.dc.answer(&leaves(v, None, vec![0, 1])).is_ok());
}

fn counted(frames: &[Message]) -> usize {
    let counts = frames.iter().map(|frame| match frame {
        Message::Batch(batch) => batch.count as usize,
        other => panic!("{} among batches", other.name()),
    });
    counts.sum()
}

/// A parent of another image would tell, by what is left out of the answer, what that image contains.
#[test]
fn a_parent_of_another_image_or_of_none_is_not_readable() {
    let site = site();
    for parent in [site.foreign, VersionId([7; 32])] {
        for request in [
            outline(site.next, Tree::Disk, Some(parent)),
            leaves(site.next, Some(parent), vec![0]),
        ] {
            let (code, message) = refused(&site, &request);
            assert_eq!(code, RefuseCode::NotReadable);
            assert!(message.contains(&parent.to_string()), "{message}");
        }
    }
    // A parent without that tree is no parent, and no error.
    assert!(
        site.dc
            .answer(&outline(site.next, Tree::Kernel, Some(site.version)))
            .is_ok()
    );
}

/// What differs from what a desktop wrote would tell what it wrote, to whoever may read the version.
#[test]
fn a_state_has_a_version_as_parent_and_is_nobodys() {
    let mut site = site();
    let name = StateName {
        desktop: DesktopId([9; 16]),
        generation: Generation(3),
    };
    let state = name.as_version();
    let published = site.dc.versions[&site.next].clone();
    site.dc.versions.insert(state, published);
    for request in [
        outline(state, Tree::Disk, Some(site.version)),
        leaves(state, Some(site.version), vec![0]),
        chunks(state, Tree::Disk, vec![run(0, 0, 1)]),
    ] {
        site.dc.answer(&request).unwrap();
    }
    for request in [
        outline(site.next, Tree::Disk, Some(state)),
        leaves(site.next, Some(state), vec![0]),
        outline(state, Tree::Disk, Some(state)),
    ] {
        let (code, _) = refused(&site, &request);
        assert_eq!(code, RefuseCode::NotReadable);
    }
}

#[test]
fn what_is_not_for_this_branch_looks_like_what_does_not_exist() {
    let site = site();
    let nowhere = VersionId([7; 32]);
    let may_read = |version| version == site.version || version == nowhere;
    for ask in [
        |version| Message::GetVersion(GetVersion { version }),
        |version| outline(version, Tree::Disk, None),
        |version| leaves(version, None, vec![0]),
        |version| chunks(version, Tree::Disk, vec![run(0, 0, 1)]),
    ] {
        assert!(Responder::new(&site.dc, &ask(site.version), may_read).is_ok());
        let told = |version: VersionId| {
            let error = Responder::new(&site.dc, &ask(version), may_read)
                .err()
                .unwrap();
            let (code, message) = refusal(&error);
            (code, message.replace(&version.to_string(), "ID"))
        };
        let hidden = told(site.next);
        assert_eq!(hidden.0, RefuseCode::NotReadable);
        assert_eq!(hidden, told(nowhere));
    }
}

/// Damage at the datacenter is told as such, at the frame that meets it: what came before stays good.
#[test]
fn damage_is_told_apart_from_refusal() {
    let mut site = site();
    let leaf = site
        .dc
        .manifest(site.version, Tree::Disk)
        .leaf(&&site.dc, 0)
        .unwrap();
    let lost = leaf.extents[3000].chunk().unwrap();
    site.dc.chunks.remove(&lost);
    // One damaged chunk keeps none of the others from a guest, however they are packed.
    for urgency in [Urgency::Demand, Urgency::Fill] {
        let request = Message::GetChunks(GetChunks {
            version: site.version,
            tree: Tree::Disk,
            urgency,
            runs: vec![run(0, 0, 4096)],
        });
        let mut responder = Responder::new(&site.dc, &request, |_| true).unwrap();
        let (mut came, mut unreadable) = (0, 0);
        while let Some(frame) = responder.next_frame().unwrap() {
            match frame {
                Message::Unreadable(part) => unreadable += part.count,
                frame => came += counted(&[frame]),
            }
        }
        let all = leaf.extents[..4096].iter().filter_map(|e| e.chunk());
        let lost = all.clone().filter(|id| *id == lost).count();
        assert_eq!((came, unreadable as usize), (all.count() - lost, lost));
        assert_eq!(lost, 1);
    }
    let manifest = site.dc.manifest(site.version, Tree::Disk);
    site.dc.nodes.remove(&manifest.leaves[1]);
    assert_eq!(
        refused(&site, &leaves(site.version, None, vec![1])).0,
        RefuseCode::Damaged
    );
    let root = site.dc.record(site.version).disk.root;
    site.dc.nodes.remove(&root);
    assert_eq!(
        refused(&site, &outline(site.version, Tree::Disk, None)).0,
        RefuseCode::Damaged
    );
}
