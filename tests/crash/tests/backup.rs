//! Backups under power cuts, killed processes and failing media, at the datacenter and at the place where the backups lie; and the loss
//! of the datacenter.
//!
//! Each case is one small world that publishes and backs up, publishes while it backs up, dies anywhere, and is restored. Whatever the place
//! holds after a death is a whole backup, at least as new as the last one that was acknowledged: its catalog is one of those that there
//! were, and every version in it reads back from its packs. `SPLICE_CUTS` sets the number of cases, `SPLICE_SEED` the first one.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use crash::{Kind, Rng, SimDisk, SimKv};
use datacenter::backup::folder::Folder;
use datacenter::backup::manifest::Manifest;
use datacenter::backup::restore::{self, RestoreError};
use datacenter::backup::{BackupError, Source, backup};
use datacenter::catalog::rows::{VersionRow, VersionState};
use datacenter::catalog::{Catalog, CatalogError};
use datacenter::operations::Meter;
use datacenter::restored::mark_restored;
use dedup::{Chunk, IdKey, RealmId, VersionId};
use dedup_protocol::trust::SigningKey;
use dedup_store::disk::{Disk, DiskFile, Open};
use dedup_store::{ChunkStore, StoreError, StoreOptions};

const CASES: u64 = 200;
/// How many different chunks a world knows. Few, so that versions share them and backups meet what is there.
const ITEMS: u64 = 40;
const REALM: RealmId = RealmId([1; 16]);

fn key() -> IdKey {
    IdKey::new([5; 32])
}

fn content(item: u64) -> Bytes {
    let mut rng = Rng::new(item);
    let len = 200 + rng.below(1800) as usize;
    rng.bytes(len).into()
}

/// A version's number and its chunks.
type Versions = BTreeMap<u32, BTreeSet<u64>>;

fn id(number: u32) -> VersionId {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&number.to_be_bytes());
    VersionId(id)
}

fn row(number: u32, items: &BTreeSet<u64>) -> VersionRow {
    let items: Vec<String> = items.iter().map(u64::to_string).collect();
    VersionRow {
        state: VersionState::Visible,
        image: "deb".into(),
        number,
        signed: Vec::new(),
        note: Some(items.join(" ")),
        new_chunks: 0,
        stored_bytes: 0,
    }
}

/// What was published, and what may have been.
#[derive(Default)]
struct Published {
    /// Visible for sure, or perhaps: their publish met the end.
    tried: Versions,
    /// Visible for sure.
    done: BTreeSet<u32>,
}

/// The datacenter's process.
#[derive(Clone)]
struct Site {
    store: ChunkStore,
    catalog: Catalog,
    published: Arc<Mutex<Published>>,
}

#[derive(Debug)]
#[allow(dead_code, reason = "shown when a case fails")]
enum Failed {
    Store(StoreError),
    Catalog(CatalogError),
}

impl Site {
    /// As a publish does it: chunks, commit, and only then the catalog.
    fn publish(&self, rng: &mut Rng) -> Result<(), Failed> {
        let writer = self.store.writer();
        let items: BTreeSet<u64> = (0..1 + rng.below(6)).map(|_| rng.below(ITEMS)).collect();
        for item in &items {
            let chunk = Chunk::new(&key(), content(*item));
            writer.put_chunk(&chunk).map_err(Failed::Store)?;
        }
        self.store.commit().map_err(Failed::Store)?;
        let mut published = self.published.lock().unwrap();
        let number = published
            .tried
            .keys()
            .next_back()
            .map_or(1, |last| last + 1);
        published.tried.insert(number, items.clone());
        let visible = self.catalog.transact(|tx| {
            tx.put(&id(number), &row(number, &items));
            Ok::<_, CatalogError>(())
        });
        visible.map_err(Failed::Catalog)?;
        published.done.insert(number);
        Ok(())
    }
}

/// What the place of the backups does not do although it says so.
#[derive(Clone, Copy, PartialEq)]
enum Lie {
    None,
    Content,
    Names,
}

type Act = Mutex<Box<dyn FnMut() + Send>>;

/// The place of the backups: something happens at the datacenter whenever it is used.
struct Place {
    disk: SimDisk,
    lie: Lie,
    act: Act,
}

struct PlaceFile(Arc<dyn DiskFile>, Lie);

impl Place {
    fn used(&self) {
        let mut act = self.act.lock().unwrap();
        (*act)();
    }
}

impl Disk for Place {
    fn open(&self, name: &str, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        self.used();
        Ok(Arc::new(PlaceFile(self.disk.open(name, how)?, self.lie)))
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.create_dir(dir)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.used();
        self.disk.rename(from, to)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        match self.lie {
            Lie::Names => Ok(()),
            _ => self.disk.sync_dir(dir),
        }
    }
    fn available_bytes(&self) -> io::Result<u64> {
        self.disk.available_bytes()
    }
}

impl DiskFile for PlaceFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
    fn sync(&self) -> io::Result<()> {
        match self.1 {
            Lie::Content => Ok(()),
            _ => self.0.sync(),
        }
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.punch_hole(offset, len)
    }
}

fn options() -> StoreOptions {
    StoreOptions {
        pack_bytes: 12 * 1024,
        reserve_bytes: 0,
        handles_max: 2,
        ..StoreOptions::default()
    }
}

struct World {
    rng: Rng,
    lie: Lie,
    publisher: SigningKey,
    /// The datacenter's disk, index and catalog.
    disk: SimDisk,
    index: SimKv,
    rows: SimKv,
    published: Arc<Mutex<Published>>,
    /// Where the backups lie.
    place: SimDisk,
    /// What a backup was acknowledged for.
    backed_up: Option<BTreeSet<u32>>,
    now_unix_s: u64,
    deaths: u64,
}

impl World {
    fn new(seed: u64, lie: Lie) -> Self {
        let disk = SimDisk::new(seed);
        Self {
            rng: Rng::new(seed),
            lie,
            publisher: SigningKey::generate().0,
            index: SimKv::new(&disk),
            rows: SimKv::new(&disk),
            disk,
            published: Arc::default(),
            place: SimDisk::new(seed + 1),
            backed_up: None,
            now_unix_s: 1_800_000_000,
            deaths: 0,
        }
    }

    fn open(&self) -> Site {
        let disk = Arc::new(self.disk.clone());
        let index = Arc::new(self.index.clone());
        Site {
            store: ChunkStore::open(disk, index, key(), REALM, options()).unwrap(),
            catalog: Catalog::open(Arc::new(self.rows.clone()), REALM).unwrap(),
            published: self.published.clone(),
        }
    }

    fn back_up(&mut self, site: &Site) -> Result<(), BackupError> {
        let (mut rng, publishing) = (Rng::new(self.rng.bits()), site.clone());
        let place = Place {
            disk: self.place.clone(),
            lie: self.lie,
            act: Mutex::new(Box::new(move || {
                if rng.one_in(4) {
                    // Where the machine dies of it, the backup will tell.
                    publishing.publish(&mut rng).ok();
                }
            })),
        };
        let source = Source {
            catalog: &site.catalog,
            store: &site.store,
            realm: REALM,
            name: "acme",
            id_key: &key(),
            publisher: &self.publisher,
            files: [b"realm".to_vec(), b"secrets".to_vec(), Vec::new()],
            now_unix_s: self.now_unix_s,
        };
        let due = self.published.lock().unwrap().done.clone();
        let folder = Folder::new(Arc::new(place), "the place");
        let verify = self.rng.one_in(3);
        backup(&source, &folder, verify, &Meter::default())?;
        self.backed_up = Some(due);
        Ok(())
    }

    /// Publishes and backs up until something fails or there is nothing left to do.
    fn live(&mut self) {
        let site = self.open();
        let mut faulty = false;
        match self.rng.below(8) {
            0 | 1 => self.disk.stop_after(self.rng.below(60)),
            2 | 3 => self.place.stop_after(self.rng.below(60)),
            4 => {
                let kinds = [Kind::Sync, Kind::Write, Kind::Name, Kind::Read];
                let kind = kinds[self.rng.below(4) as usize];
                self.place.fail_nth(kind, 1 + self.rng.below(12));
                faulty = true;
            }
            5 => {
                let spare = self.rng.below(30_000);
                let used = self.place.used_bytes();
                self.place.limit_space(Some(used + spare));
                faulty = true;
            }
            _ => {}
        }
        for _ in 0..1 + self.rng.below(4) {
            for _ in 0..self.rng.below(4) {
                if let Err(e) = site.publish(&mut self.rng) {
                    assert!(self.disk.is_stopped(), "{e:?}");
                    return;
                }
            }
            if let Err(e) = self.back_up(&site) {
                let stopped = self.disk.is_stopped() || self.place.is_stopped();
                assert!(stopped || faulty, "{e:?}");
                if stopped {
                    return;
                }
                self.place.limit_space(None);
            }
        }
    }

    /// Both machines die; either may have lost its power.
    fn die(&mut self) {
        let seed = self.rng.bits();
        let disk = if seed.is_multiple_of(4) {
            self.disk.clone_live()
        } else {
            self.disk.crash(seed)
        };
        let reborn = |kv: &SimKv| match seed.is_multiple_of(4) {
            true => kv.clone_live(&disk),
            false => kv.crash(seed, &disk),
        };
        (self.index, self.rows) = (reborn(&self.index), reborn(&self.rows));
        self.disk = disk;
        self.place = if seed.is_multiple_of(3) {
            self.place.clone_live()
        } else {
            self.place.crash(seed + 1)
        };
        self.place.limit_space(None);
        self.deaths += 1;
    }

    fn manifest(&self, folder: &Folder) -> Option<Manifest> {
        match restore::find(folder) {
            Ok(found) => Some(found.prove(folder, &self.publisher.public()).unwrap()),
            Err(RestoreError::NoBackup { .. }) => {
                assert_eq!(self.backed_up, None, "an acknowledged backup is gone");
                None
            }
            Err(e) => panic!("{e:?}"),
        }
    }

    /// Restores what the place holds onto a new machine, which may die of it and go on, and looks at everything.
    fn check(&mut self) {
        let folder = Folder::new(Arc::new(self.place.clone()), "the place");
        let Some(manifest) = self.manifest(&folder) else {
            return;
        };
        restore::check_present(&folder, &manifest).unwrap();
        let mut disk = SimDisk::new(self.rng.bits());
        disk.stop_after(self.rng.below(40));
        let copy = |disk: &SimDisk| {
            let to = Arc::new(disk.clone());
            restore::packs(&folder, &manifest, to, "the new machine", &mut |_, _| {})
        };
        while let Err(e) = copy(&disk) {
            assert!(disk.is_stopped(), "{e:?}");
            disk = disk.crash(self.rng.bits());
            if self.rng.one_in(2) {
                disk.stop_after(self.rng.below(40));
            }
        }
        // It lived, so it goes on living.
        disk.stop_after(u64::MAX / 2);
        let (index, rows) = (SimKv::new(&disk), SimKv::new(&disk));
        restore::catalog(&folder, &manifest, &rows).unwrap();
        ChunkStore::rebuild_index(&disk, &index, &key(), REALM, &mut |_, _| {}).unwrap();
        let catalog = Catalog::open(Arc::new(rows.clone()), REALM).unwrap();
        let store = ChunkStore::open(
            Arc::new(disk.clone()),
            Arc::new(index.clone()),
            key(),
            REALM,
            options(),
        )
        .unwrap();
        let versions = self.versions(&catalog, &store);
        if self.rng.one_in(3) {
            // The datacenter is lost, and goes on from the backup.
            self.now_unix_s += 3600;
            mark_restored(&catalog, manifest.taken_unix_s, self.now_unix_s).unwrap();
            (self.disk, self.index, self.rows) = (disk, index, rows);
            let done: BTreeSet<u32> = versions.keys().copied().collect();
            self.backed_up = Some(done.clone());
            self.published = Arc::new(Mutex::new(Published {
                tried: versions,
                done,
            }));
        }
    }

    /// The versions of a restored datacenter, each read back.
    fn versions(&self, catalog: &Catalog, store: &ChunkStore) -> Versions {
        let rows = catalog
            .read(|tx| tx.list::<VersionRow>(&[], None, 10_000))
            .unwrap();
        let published = self.published.lock().unwrap();
        let mut versions = Versions::new();
        for (_, row) in rows {
            let items: BTreeSet<u64> = row
                .note
                .iter()
                .flat_map(|note| note.split(' '))
                .map(|item| item.parse().unwrap())
                .collect();
            assert_eq!(published.tried.get(&row.number), Some(&items));
            for item in &items {
                let name = key().chunk_id(&content(*item));
                let chunk = store.chunk(name);
                let chunk = chunk.unwrap_or_else(|e| panic!("version {}: {e}", row.number));
                assert_eq!(chunk.bytes(), &content(*item));
            }
            versions.insert(row.number, items);
        }
        // Of one moment: no version without those that were visible before it.
        let newest = versions.keys().next_back().copied().unwrap_or(0);
        for number in published.done.range(..=newest) {
            assert!(versions.contains_key(number), "version {number} is missing");
        }
        for number in self.backed_up.iter().flatten() {
            assert!(
                versions.contains_key(number),
                "version {number} was backed up"
            );
        }
        versions
    }
}

/// One world. Returns its deaths.
fn case(seed: u64, lie: Lie) -> u64 {
    let mut world = World::new(seed, lie);
    for _ in 0..2 + world.rng.below(5) {
        world.live();
        world.die();
        world.check();
    }
    world.deaths
}

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn backups_survive_what_kills_datacenters() {
    let first = from_env("SPLICE_SEED", 1);
    let cases = from_env("SPLICE_CUTS", CASES);
    let mut deaths = 0;
    for seed in first..first + cases {
        match catch_unwind(|| case(seed, Lie::None)) {
            Ok(count) => deaths += count,
            Err(panic) => {
                eprintln!(
                    "seed {seed} fails; replay: SPLICE_SEED={seed} SPLICE_CUTS=1 cargo test -p crash --test backup backups_survive"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{cases} worlds from seed {first} died {deaths} times");
}

/// The cases must be able to fail: a place that does not keep what it acknowledges is caught.
#[test]
fn a_place_that_lies_is_caught() {
    let hook = std::panic::take_hook();
    let here = std::thread::current().id();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().id() != here {
            hook(panic);
        }
    }));
    let caught = [Lie::Content, Lie::Names].map(|lie| {
        (1..60)
            .filter(|seed| catch_unwind(AssertUnwindSafe(|| case(*seed, lie))).is_err())
            .count()
    });
    drop(std::panic::take_hook());
    assert!(caught.iter().all(|count| *count > 10), "{caught:?}");
}
