//! What the tests of this folder share: a datacenter in a temporary folder, disks with known content, a daemon on real ports.
#![allow(clippy::unwrap_used, missing_docs, dead_code)]

pub mod backup;
pub mod cuts;
pub mod daemon;
pub mod http;
pub mod site;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use datacenter::Datacenter;
use datacenter::catalog::Catalog;
use datacenter::clock::SetClock;
use datacenter::config::Config;
use datacenter::operations::Meter;
use datacenter::publish::{self, Publish, PublishError};
use datacenter::realm::Realm;
use datacenter::realm::files::DataDir;
use datacenter_api::{PublishResult, VerifyMode};
use dedup_store::disk::{Disk, HostDisk};
use dedup_store::kv::{Kv, MemKv, RocksKv, RocksOptions};
use dedup_store::{ChunkStore, StoreOptions};
use rand::{RngCore, SeedableRng};

pub const START: u64 = 1_800_000_000;

/// A datacenter whose catalog and index are in memory, whose packs are in a temporary folder, and whose clock stands.
pub struct Bench {
    pub dc: Arc<Datacenter>,
    pub clock: Arc<SetClock>,
    pub dir: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        Self::with(Arc::new(MemKv::new()), Arc::new(MemKv::new()))
    }

    /// As the daemon has it: RocksDB under catalog and index.
    pub fn on_rocks() -> Self {
        let bench = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            let path = bench.path().join(name);
            Arc::new(RocksKv::open(path, &RocksOptions::default()).unwrap())
        };
        let (catalog, index) = (open("catalog"), open("index"));
        Self::inside(bench, catalog, index)
    }

    fn with(catalog: Arc<dyn Kv>, index: Arc<dyn Kv>) -> Self {
        Self::inside(tempfile::tempdir().unwrap(), catalog, index)
    }

    fn inside(dir: tempfile::TempDir, catalog: Arc<dyn Kv>, index: Arc<dyn Kv>) -> Self {
        let disk = Arc::new(HostDisk::new(DataDir::new(dir.path()).store()).unwrap());
        Self::on_disk(dir, disk, catalog, index)
    }

    /// With packs on any disk.
    pub fn on_disk(
        dir: tempfile::TempDir,
        disk: Arc<dyn Disk>,
        catalog: Arc<dyn Kv>,
        index: Arc<dyn Kv>,
    ) -> Self {
        Self::on_disk_with_workers(dir, disk, catalog, index, 0)
    }

    /// With a number of threads to publish with; 0 suits the machine.
    pub fn on_disk_with_workers(
        dir: tempfile::TempDir,
        disk: Arc<dyn Disk>,
        catalog: Arc<dyn Kv>,
        index: Arc<dyn Kv>,
        publish_workers: usize,
    ) -> Self {
        let data = DataDir::new(dir.path().join("own"));
        let clock = Arc::new(SetClock::new(START));
        let realm = Realm::init(&data, &data.passphrase(), "test", START).unwrap();
        realm.finish_init(&data, START).unwrap();
        let store = ChunkStore::open(
            disk,
            index,
            realm.id_key.clone(),
            realm.id,
            StoreOptions::default(),
        )
        .unwrap();
        let catalog = Catalog::open(catalog, realm.id).unwrap();
        let config = Config {
            address: "dc.test:7443".into(),
            publish_workers,
            ..Config::default()
        };
        let dc = Datacenter::new(realm, catalog, Arc::new(store), clock.clone(), config, data);
        Self {
            dc: dc.unwrap(),
            clock,
            dir,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Publishes a file and waits.
    pub fn publish(&self, image: &str, path: &Path) -> Result<PublishResult, PublishError> {
        self.publish_as(&request(image, path))
    }

    pub fn publish_as(&self, request: &Publish) -> Result<PublishResult, PublishError> {
        let turn = publish::reserve(&self.dc, &request.image)?;
        publish::publish(&turn, request, &Meter::default())
    }

    /// An image with as many versions as asked for, each of a small disk of its own.
    pub fn image_with_versions(&self, image: &str, versions: u64) {
        self.dc.create_image(image, None).unwrap();
        for seed in 0..versions {
            let disk = self.path("small.raw");
            sparse_disk(&disk, 1 << 20, &[(0, 65536)], seed + 1000);
            self.publish(image, &disk).unwrap();
        }
    }
}

pub fn request(image: &str, path: &Path) -> Publish {
    Publish {
        image: image.into(),
        path: path.into(),
        format: None,
        note: None,
        allow_same: false,
        verify: VerifyMode::Full,
    }
}

/// A sparse raw disk with random bytes in `runs` (offset, length).
pub fn sparse_disk(path: &Path, size: u64, runs: &[(u64, usize)], seed: u64) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    write_runs(&file, runs, seed);
}

pub fn write_runs(file: &File, runs: &[(u64, usize)], seed: u64) {
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    for (offset, len) in runs {
        let mut bytes = vec![0; *len];
        random.fill_bytes(&mut bytes);
        file.write_all_at(&bytes, *offset).unwrap();
    }
    file.sync_all().unwrap();
}

/// Polls until `done` answers, for at most `limit`.
pub fn wait_for<T>(limit: Duration, what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + limit;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "waited too long: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
