//! Verdicts against a boot that is played by hand, leaf by leaf; and the incremental count against a whole one.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use dedup::{
    Chunk, ChunkerParams, ExtentSource, IdKey, Manifest, ManifestBuilder, NodeId, NodeSource,
    RealmId, VersionId,
};
use dedup_protocol::profile::{Entries, Entry, Place};
use dedup_protocol::records::Tree;
use dedup_store::disk::HostDisk;
use dedup_store::kv::MemKv;
use proptest::prelude::*;

use super::proof::{Lacking, Proof, Weighed};
use super::*;
use crate::cache::{Cache, CacheIdentity, CacheKey, CacheOptions};

struct Leaves(HashMap<NodeId, Vec<u8>>);

#[derive(Debug, thiserror::Error)]
#[error("missing")]
struct Missing;

impl NodeSource for Leaves {
    type Error = Missing;
    fn node(&self, id: NodeId) -> Result<Bytes, Missing> {
        self.0.get(&id).map(|b| b.clone().into()).ok_or(Missing)
    }
}

fn key() -> IdKey {
    IdKey::new([1; 32])
}

fn len(name: u32) -> u32 {
    20_000 + name * 7_919 % 40_000
}

fn id(name: u32) -> ChunkId {
    key().chunk_id(&name.to_le_bytes())
}

/// A tree of chunks by name, and of holes, with all that is needed to look at it by hand.
struct Made {
    manifest: Manifest,
    leaves: Leaves,
    handle: TreeHandle,
}

fn make(tree: Tree, parts: &[Option<u32>]) -> Made {
    let mut builder = ManifestBuilder::new(key(), ChunkerParams::default());
    for part in parts {
        match part {
            Some(name) => builder.push_chunk(id(*name), len(*name)),
            None => builder.push_zero(300_000),
        }
    }
    let (manifest, leaves) = builder.finish();
    let leaves = Leaves(leaves.into_iter().collect());
    let map = Arc::new(ContentMap::load(&manifest, &leaves).unwrap());
    let version = VersionId([7; 32]);
    Made {
        manifest,
        leaves,
        handle: TreeHandle { version, tree, map },
    }
}

/// An extent: its place, its length, and the chunk that it shows.
type Shown = (Place, u64, Option<(ChunkId, u32)>);

impl Made {
    /// Each extent of each leaf in turn.
    fn extents(&self) -> Vec<Shown> {
        let mut all = Vec::new();
        for leaf in 0..self.manifest.leaves.len() {
            let read = self.manifest.leaf(&self.leaves, leaf).unwrap();
            for (extent, found) in read.extents.iter().enumerate() {
                let place = Place {
                    leaf: leaf as u32,
                    extent: extent as u16,
                };
                let shown = match found.source {
                    ExtentSource::Zero => None,
                    ExtentSource::Chunk { id, chunk_len, .. } => Some((id, chunk_len)),
                };
                all.push((place, u64::from(found.len), shown));
            }
        }
        all
    }

    fn chunks(&self) -> BTreeMap<[u8; 32], u32> {
        let extents = self.extents();
        let shown = extents.iter().filter_map(|(_, _, shown)| *shown);
        shown.map(|(id, len)| (id.0, len)).collect()
    }
}

/// A boot's profile of these places, in this order.
fn profile(places: &[Place], carried: bool) -> BootProfile {
    let entry = |(at_ms, place): (usize, &Place)| Entry {
        place: *place,
        at_ms: at_ms as u32,
        seen: 1,
    };
    BootProfile {
        realm: RealmId([1; 16]),
        version: VersionId([7; 32]),
        counter: 4,
        made_unix_s: 1,
        boots: 1,
        carried_from: carried.then_some(VersionId([6; 32])),
        entries: Entries::new(places.iter().enumerate().map(entry).collect()),
    }
}

fn lacking<'a>(
    all: impl IntoIterator<Item = (&'a [u8; 32], &'a u32)>,
    here: &BTreeSet<[u8; 32]>,
) -> Amount {
    let mut amount = Amount::default();
    for (id, len) in all {
        if !here.contains(id) {
            amount.count(*len);
        }
    }
    amount
}

fn lacking_of(list: &[(ChunkId, u32)], here: &BTreeSet<[u8; 32]>) -> Amount {
    let distinct: BTreeMap<[u8; 32], u32> = list.iter().map(|(id, len)| (id.0, *len)).collect();
    assert_eq!(distinct.len(), list.len(), "each chunk once");
    lacking(&distinct, here)
}

fn part() -> impl Strategy<Value = Option<u32>> {
    prop_oneof![5 => (0..120u32).prop_map(Some), 1 => Just(None)]
}

/// What is known of the version's boots.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Known {
    Nothing,
    Parents,
    Own,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// The verdict is what a boot finds that is played by hand: every file read whole, every place of the profile looked up in its leaf.
    #[test]
    fn the_verdict_is_what_a_boot_would_find(
        disk in prop::collection::vec(part(), 1..260),
        kernel in prop::collection::vec((100..140u32).prop_map(Some), 0..4),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 0..80),
        known in prop_oneof![Just(Known::Nothing), Just(Known::Parents), Just(Known::Own)],
        firmware_bytes in prop_oneof![Just(0u64), Just(FIRMWARE_BYTES), Just(200_000u64)],
        luck in 0..=100u8,
        rolls in prop::collection::vec(0..100u8, 140),
        odd in any::<bool>(),
    ) {
        let disk = make(Tree::Disk, &disk);
        let kernel = (!kernel.is_empty()).then(|| make(Tree::Kernel, &kernel));
        let extents = disk.extents();
        // Where a recorder names a chunk: where it is shown and the chunk before was another, holes aside.
        let mut places = Vec::new();
        let mut last = None;
        for (place, _, shown) in &extents {
            if let Some(shown) = shown {
                if last != Some(shown.0) {
                    places.push((*place, *shown));
                }
                last = Some(shown.0);
            }
        }
        let picked: Vec<(Place, (ChunkId, u32))> = match places.as_slice() {
            [] => Vec::new(),
            places => picks.iter().map(|pick| *pick.get(places)).collect(),
        };
        let mut named: Vec<Place> = picked.iter().map(|(place, _)| *place).collect();
        if odd {
            // Of a profile that is not this disk's at all.
            named.push(Place { leaf: 9_999, extent: 3 });
        }
        let profile = (known != Known::Nothing).then(|| profile(&named, known == Known::Parents));
        let mut here: BTreeSet<[u8; 32]> = BTreeSet::new();
        for (name, roll) in (0u32..).zip(&rolls) {
            if *roll < luck {
                here.insert(id(name).0);
            }
        }

        // The boot by hand.
        let mut files: BTreeMap<[u8; 32], u32> = BTreeMap::new();
        files.extend(kernel.iter().flat_map(|kernel| kernel.chunks()));
        let mut at = 0;
        for (_, extent_len, shown) in &extents {
            if at < firmware_bytes && let Some((id, len)) = shown {
                files.insert(id.0, *len);
            }
            at += extent_len;
        }
        let mut booted = files.clone();
        if known == Known::Own {
            booted.extend(picked.iter().map(|(_, (id, len))| (id.0, *len)));
        }
        let mut version = disk.chunks();
        version.extend(kernel.iter().flat_map(|kernel| kernel.chunks()));
        let (missed, version_lacks) = (lacking(&booted, &here), lacking(&version, &here));
        let files_lack = lacking(&files, &here).chunks > 0;
        let expected = match known {
            _ if version_lacks.chunks == 0 => (OfflineBoot::Yes, Amount::default()),
            Known::Own if missed.chunks == 0 => (OfflineBoot::Yes, Amount::default()),
            Known::Own => (OfflineBoot::No, missed),
            _ if files_lack => (OfflineBoot::No, version_lacks),
            _ => (OfflineBoot::Unknown, version_lacks),
        };

        let handles: Vec<TreeHandle> = kernel.iter().map(|kernel| kernel.handle.clone()).collect();
        let set = BootSet::new(&handles, &disk.handle.map, firmware_bytes, profile.as_ref());
        let lacks = Lacks {
            files: lacking_of(&set.files, &here),
            disk: lacking_of(&set.disk, &here),
            version: version_lacks,
        };
        let verdict = judge(set.evidence, &lacks);
        prop_assert_eq!((verdict.boots, verdict.missing), expected, "{}", verdict.reason);
        prop_assert_eq!(set.evidence.counter() > 0, known != Known::Nothing);
        // What the fetching step asks for is what makes it a yes: nothing of the files or of the profile is left out.
        if known == Known::Own {
            let asked: BTreeSet<[u8; 32]> = set.files.iter().chain(&set.disk).map(|(id, _)| id.0).collect();
            prop_assert!(booted.keys().all(|id| asked.contains(id)));
            prop_assert_eq!(asked.len(), booted.len());
        }
    }

    /// Hours of the shared disk: never more than any one pool's writes allow, unknown if anything that runs is.
    #[test]
    fn overlay_hours_are_those_of_all_who_write(
        free in any::<u64>(),
        pools in prop::collection::vec((0..50u32, prop::option::weighted(0.8, 0..1u64 << 40)), 0..6),
    ) {
        let writes: Vec<PoolWrites> = pools
            .iter()
            .map(|(desktops, bytes_per_hour)| PoolWrites { desktops: *desktops, bytes_per_hour: *bytes_per_hour })
            .collect();
        for pool in 0..=pools.len() {
            let hours = overlay_hours(free, &writes, pool);
            let counted = writes.iter().enumerate().map(|(n, w)| (w.desktops.max(u32::from(n == pool)), w.bytes_per_hour));
            let unknown = pool == pools.len() || counted.clone().any(|(desktops, rate)| desktops > 0 && rate.is_none());
            prop_assert_eq!(hours.is_none(), unknown);
            let Some(hours) = hours else { continue };
            let all: u128 = counted.map(|(desktops, rate)| u128::from(desktops) * u128::from(rate.unwrap_or(0))).sum();
            let (free, most) = (u128::from(free), u128::from(readiness::OVERLAY_HOURS_MAX));
            prop_assert!(u128::from(hours) * all <= free, "they do not fill more than there is");
            prop_assert!(u128::from(hours) == most || (u128::from(hours) + 1) * all > free);
        }
    }
}

fn chunk(n: u32) -> Chunk {
    let bytes: Vec<u8> = (0..2_000 + n * 11)
        .map(|i| (i * 31 + n * 131) as u8)
        .collect();
    Chunk::new(&key(), Bytes::from(bytes))
}

fn cache(root: &std::path::Path) -> Cache {
    let identity = CacheIdentity {
        realm: RealmId([1; 16]),
        key_id: key().key_id(),
    };
    let options = CacheOptions {
        capacity_bytes: 1 << 20,
        slab_bytes: 1 << 20,
        ..CacheOptions::default()
    };
    let (disk, kv) = (HostDisk::new(root).unwrap(), MemKv::new());
    Cache::open(
        Arc::new(disk),
        "c",
        Arc::new(kv),
        identity,
        [9; 16],
        CacheKey::new([4; 32]),
        options,
    )
    .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever comes and goes, and whenever it is asked, what is missing is what a whole look finds.
    #[test]
    fn what_is_missing_is_kept_up_to_date(steps in prop::collection::vec((0..40u32, 0..5u8), 1..120)) {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let listed = || (0..30).map(|n| (chunk(n).id(), chunk(n).bytes().len() as u32));
        let mut lacking = Lacking::new(listed().collect());
        for (n, step) in steps {
            match step {
                0 | 1 => { cache.insert(&chunk(n)).unwrap(); }
                2 => { cache.remove(&chunk(n).id()).unwrap(); }
                3 if n % 8 == 0 => { cache.evict(16 << 10, &|_| false).unwrap(); }
                _ => {
                    let mut expected = Amount::default();
                    for (id, len) in listed() {
                        if !cache.contains(&id) {
                            expected.count(len);
                        }
                    }
                    prop_assert_eq!(lacking.update(&cache), expected);
                }
            }
        }
    }
}

#[test]
fn a_profile_is_read_once_and_again_when_it_or_the_files_change() {
    let root = tempfile::tempdir().unwrap();
    let cache = cache(root.path());
    let disk = make(Tree::Disk, &[Some(1), Some(2), None, Some(3)]);
    let kernel = make(Tree::Kernel, &[Some(9)]);
    let proof = Proof::default();
    let asked = std::cell::Cell::new(0);
    let weigh = |files: &[TreeHandle], profile: Option<BootProfile>| {
        let weighed = Weighed {
            disk: &disk.handle,
            files,
            firmware_bytes: 0,
            version: Amount {
                chunks: 4,
                bytes: 4_000,
            },
        };
        let read = || {
            asked.set(asked.get() + 1);
            profile
        };
        let (evidence, verdict) = proof.weigh(&weighed, &cache, read);
        (evidence, verdict.boots, asked.get())
    };
    let first = disk.extents()[0].0;
    assert_eq!(weigh(&[], None), (Evidence::None, OfflineBoot::Unknown, 1));
    let of_own = Some(profile(&[first], false));
    assert_eq!(
        weigh(&[], of_own.clone()),
        (Evidence::None, OfflineBoot::Unknown, 1),
        "nobody said that it came"
    );
    proof.forget(disk.handle.version);
    assert_eq!(
        weigh(&[], of_own.clone()),
        (Evidence::Recorded(4), OfflineBoot::No, 2)
    );
    assert_eq!(
        weigh(&[], None),
        (Evidence::Recorded(4), OfflineBoot::No, 2)
    );
    // Nobody has that kernel as a file any more.
    let files = [kernel.handle.clone()];
    assert_eq!(
        weigh(&files, of_own),
        (Evidence::Recorded(4), OfflineBoot::No, 3)
    );
    proof.retain(|_| false);
    assert_eq!(weigh(&files, None), (Evidence::None, OfflineBoot::No, 4));
}

#[test]
fn reasons_say_what_is_the_matter() {
    let some = Amount {
        chunks: 2,
        bytes: 100,
    };
    let lacks = |files, disk, version| Lacks {
        files,
        disk,
        version,
    };
    let none = Amount::default();
    let told = |evidence, lacks: Lacks| judge(evidence, &lacks).reason;
    assert!(told(Evidence::None, lacks(some, none, some)).contains("kernel"));
    assert!(told(Evidence::Recorded(3), lacks(none, some, some)).contains("profile 3"));
    assert!(told(Evidence::Recorded(3), lacks(none, none, some)).contains("profile 3"));
    assert!(told(Evidence::Carried(2), lacks(none, none, some)).contains("parent"));
    assert!(told(Evidence::None, lacks(none, none, some)).contains("no boot"));
    assert!(told(Evidence::None, lacks(none, none, none)).contains("all of the version"));
}
