//! What is needed at a branch with every kind of version: assigned ahead of use, on demand, pinned, under desktops, held, and of no use.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::Arc;

use dedup::{BranchId, ChunkerParams, DesktopId, IdKey, ManifestBuilder, RealmId, VersionId};
use dedup_protocol::profile::{BootProfile, Entries, Entry, Place};
use dedup_protocol::records::{
    Assignment, BootArtifacts, MachineType, PoolAssignment, StartMode, TreeRef, VersionRecord,
};
use dedup_protocol::state::authority::{HoldRow, Stage};
use dedup_protocol::state::began::StateRecord;
use dedup_protocol::state::{Generation, Head};
use dedup_protocol::trust::{SigningKey, TrustAnchor};
use dedup_store::kv::MemKv;

use crate::catalog::Catalog;
use crate::desktop::record::DesktopRecord;
use crate::keep::Rank;
use crate::versions::Versions;
use crate::writeback::rows::{KeptHold, OverlayOf, Rows};

const REALM: RealmId = RealmId([1; 16]);
/// A chunk that every disk shows.
const SHARED: u32 = 7;

fn key() -> IdKey {
    IdKey::new([3; 32])
}

struct World {
    catalog: Catalog,
    publisher: SigningKey,
}

impl World {
    fn new() -> Self {
        let ((root, _), (publisher, _)) = (SigningKey::generate(), SigningKey::generate());
        let anchor = TrustAnchor {
            realm: REALM,
            root: root.public(),
        };
        let catalog = Catalog::new(Arc::new(MemKv::new()), anchor);
        let endorsement = root.endorse(REALM, publisher.public(), u64::MAX / 2);
        catalog.set_endorsements(&[endorsement]).unwrap();
        Self { catalog, publisher }
    }

    fn tree(&self, names: &[u32]) -> TreeRef {
        let mut builder = ManifestBuilder::new(key(), ChunkerParams::default());
        for name in names {
            builder.push_chunk(key().chunk_id(&name.to_le_bytes()), 20_000);
        }
        let (manifest, leaves) = builder.finish();
        let root = manifest.seal(&key()).root;
        self.catalog.put_leaves(leaves).unwrap();
        self.catalog.put_manifest(root, &manifest).unwrap();
        TreeRef {
            root,
            size_bytes: manifest.size_bytes,
        }
    }

    /// Version `number`: its disk shows the chunks `100 n` (the partition table is in it), `100 n + 1`, `100 n + 2` and the shared one;
    /// its kernel `100 n + 50`. Its boots read `100 n + 2`.
    fn publish(&self, number: u32) -> VersionId {
        let name = number * 100;
        let record = VersionRecord {
            realm: REALM,
            image: "debian".into(),
            number,
            parent: None,
            created_unix_s: 1,
            disk: self.tree(&[name, name + 1, name + 2, SHARED]),
            params: ChunkerParams::default(),
            boot: Some(BootArtifacts {
                kernel: self.tree(&[name + 50]),
                initrd: None,
                root_argument: "root=/dev/vda".into(),
                kernel_path: "/vmlinuz".into(),
            }),
            os: None,
            data_bytes: 1,
        };
        let signed = self.publisher.sign(&record);
        self.catalog.put_version(&signed).unwrap();
        let read = Entry {
            place: Place { leaf: 0, extent: 2 },
            at_ms: 1,
            seen: 1,
        };
        let profile = BootProfile {
            realm: REALM,
            version: signed.id(),
            counter: 1,
            made_unix_s: 1,
            boots: 1,
            carried_from: None,
            entries: Entries::new(vec![read]),
        };
        let profile = self.publisher.sign(&profile);
        self.catalog.put_profile(signed.id(), &profile).unwrap();
        signed.id()
    }

    fn desktop(&self, name: &str, version: VersionId, served: bool) {
        let desktop = DesktopRecord {
            name: name.into(),
            pool: "gone".into(),
            id: [0; 16],
            version: version.to_string(),
            memory_mib: 256,
            vcpus: 1,
            wanted: MachineType::Auto,
            tpm: false,
            system: None,
            user_volume: None,
            pooled: false,
            chosen: None,
            kept_back: None,
            rebasing: None,
            trial: false,
            created_unix_ms: 1,
            served,
            machine: None,
            cloning: false,
            error: None,
            boot: None,
            uid: None,
            address: None,
        };
        self.catalog.put_desktop(&desktop).unwrap();
    }
}

fn pool(name: &str, version: VersionId, pinned: &[VersionId], prestage: bool) -> PoolAssignment {
    PoolAssignment {
        pool: name.into(),
        image: "debian".into(),
        version,
        pinned: pinned.to_vec(),
        memory_mib: 256,
        vcpus: 1,
        prestage,
        machine: MachineType::Auto,
        tpm: false,
        user_volume_mib: 0,
        pooled: false,
        start: StartMode::Boot,
    }
}

#[test]
fn each_chunk_has_the_rank_of_the_best_reason_for_it() {
    let world = World::new();
    let ids: Vec<VersionId> = (0..8).map(|number| world.publish(number + 1)).collect();
    let [ahead, demand, pinned, stopped, open, both, held, _useless] = ids[..] else {
        unreachable!("eight were published")
    };
    let assignment = Assignment {
        realm: REALM,
        branch: BranchId([2; 16]),
        counter: 1,
        issued_unix_s: 1,
        expires_unix_s: 2,
        offline_grace_s: 3,
        pools: vec![
            pool("a", ahead, &[], true),
            pool("b", demand, &[pinned], false),
        ],
    };
    let signed = world.publisher.sign(&assignment);
    world.catalog.set_assignment(&signed).unwrap();
    world.desktop("s", stopped, false);
    world.desktop("o", open, true);
    // One that is up counts, whatever others do; under an assigned version desktops change nothing.
    world.desktop("t", both, false);
    world.desktop("u", both, true);
    world.desktop("v", ahead, true);
    let versions = Arc::new(Versions::open(world.catalog.clone()).unwrap());
    let hold = versions.hold(held);

    let expected: HashMap<u32, [Rank; 4]> = HashMap::from([
        // The partition table, the rest, what boots read, the kernel.
        (1, [Rank::Boot, Rank::Whole, Rank::Boot, Rank::Boot]),
        (2, [Rank::Boot, Rank::Spare, Rank::Boot, Rank::Boot]),
        (3, [Rank::Boot, Rank::Whole, Rank::Boot, Rank::Boot]),
        (4, [Rank::Spare; 4]),
        (5, [Rank::Open; 4]),
        (6, [Rank::Open; 4]),
        (7, [Rank::Whole; 4]),
        (8, [Rank::Loose; 4]),
    ]);
    let rank = |versions: &Versions, name: u32| {
        let id = key().chunk_id(&name.to_le_bytes());
        versions.ranks().of(&id)
    };
    for (number, ranks) in expected {
        for (name, expected) in [0, 1, 2, 50].into_iter().zip(ranks) {
            let name = number * 100 + name;
            assert_eq!(rank(&versions, name), expected, "chunk {name}");
        }
    }
    assert_eq!(rank(&versions, SHARED), Rank::Open);
    drop(hold);
    assert_eq!(rank(&versions, 701), Rank::Loose);
}

#[test]
fn the_state_under_a_desktop_that_is_up_is_kept_with_its_version() {
    let world = World::new();
    let version = world.publish(1);
    world.desktop("w", version, true);
    let (volume, generation) = (DesktopId([0; 16]), Generation(2));
    let state = StateRecord {
        realm: REALM,
        desktop: volume,
        generation,
        base: Head([5; 32]),
        disk: world.tree(&[100, 900]),
    };
    let signed = world.publisher.sign(&state);
    world.catalog.put_state(volume, &signed).unwrap();
    let versions = Versions::open(world.catalog.clone()).unwrap();
    let rank = |name: u32| {
        let id = key().chunk_id(&name.to_le_bytes());
        versions.ranks().of(&id)
    };
    assert_eq!(rank(900), Rank::Loose, "no overlay lies over it");
    let kept = KeptHold {
        row: HoldRow {
            desktop: volume,
            stage: Stage::Idle { last: generation },
            asking: None,
            seen_unix_s: 0,
        },
        lease: None,
        overlay: OverlayOf::Under(generation),
    };
    world.catalog.keep_hold(&kept).unwrap();
    for name in [100, 900, 101, 150] {
        assert_eq!(rank(name), Rank::Open, "chunk {name}");
    }
    versions.forget_state(volume).unwrap();
    assert_eq!(rank(900), Rank::Loose);
}
