//! Publishing: what becomes visible is what the file says, and nothing becomes visible otherwise.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datacenter::operations::Meter;
use datacenter::publish::{self, PublishError};
use datacenter_api::{Problem, ProblemCode, VerifyMode};
use dedup::{ExtentSource, Manifest, NodeSource, VersionId};
use dedup_protocol::trust::Trust;
use dedup_store::disk::{Disk, DiskFile, HostDisk, Open};
use dedup_store::kv::MemKv;
use dedup_store::{RecordName, StoreError};
use support::{Bench, request, sparse_disk, write_runs};

const MIB: usize = 1 << 20;

struct Nodes<'a>(&'a Bench);

impl NodeSource for Nodes<'_> {
    type Error = StoreError;
    fn node(&self, id: dedup::NodeId) -> Result<bytes::Bytes, StoreError> {
        self.0.dc.store().node(id)
    }
}

/// The disk of a version, put together from the store.
fn rebuild(bench: &Bench, id: &str) -> Vec<u8> {
    let id: VersionId = id.parse().unwrap();
    let signed = bench.dc.version(id).unwrap().unwrap();
    let trust = Trust::New {
        now_unix_s: bench.dc.now_unix_s(),
    };
    let record = signed
        .open(&bench.dc.anchor(), &bench.dc.endorsements(), trust)
        .unwrap();
    rebuild_tree(bench, &record.disk.root.to_string())
}

/// A tree's bytes, put together from the store.
fn rebuild_tree(bench: &Bench, root: &str) -> Vec<u8> {
    let manifest = Manifest::load(&Nodes(bench), root.parse().unwrap()).unwrap();
    let mut bytes = Vec::new();
    for index in 0..manifest.leaves.len() {
        for extent in manifest.leaf(&Nodes(bench), index).unwrap().extents {
            match extent.source {
                ExtentSource::Zero => bytes.resize(bytes.len() + extent.len as usize, 0),
                ExtentSource::Chunk { id, offset, .. } => {
                    let chunk = bench.dc.store().chunk(id).unwrap();
                    let start = offset as usize;
                    bytes.extend_from_slice(&chunk.bytes()[start..start + extent.len as usize]);
                }
            }
        }
    }
    bytes
}

#[test]
fn versions_read_back_as_their_files_and_share_what_did_not_change() {
    let bench = Bench::on_rocks();
    bench.dc.create_image("deb", None).unwrap();
    let path = bench.path("disk.raw");
    let size = 96 * MIB as u64;
    sparse_disk(
        &path,
        size,
        &[
            (0, 5 * MIB),
            (33 * MIB as u64 + 777, 9 * MIB),
            (size - 100, 100),
        ],
        1,
    );
    let first = bench.publish("deb", &path).unwrap();
    assert_eq!(first.number, 1);
    assert!(
        first.new_chunks > 500 && first.known_chunks == 0,
        "{first:?}"
    );
    assert_eq!(first.verified_bytes, size);
    let file = std::fs::read(&path).unwrap();
    assert!(
        rebuild(&bench, &first.version) == file,
        "the store does not give the file back"
    );
    // Runs of data are cut at blocks, so a little more than the runs counts as data.
    let runs = (14 * MIB + 100) as u64;
    assert!(
        (runs..runs + 64 * 1024).contains(&first.data_bytes),
        "{}",
        first.data_bytes
    );

    let edit = OpenOptions::new().write(true).open(&path).unwrap();
    write_runs(&edit, &[(35 * MIB as u64, 50_000)], 2);
    let second = bench.publish("deb", &path).unwrap();
    assert!(second.new_chunks < 20, "{second:?}");
    assert!(rebuild(&bench, &second.version) == std::fs::read(&path).unwrap());
    let shown = bench.dc.version_named("deb").unwrap();
    assert_eq!(shown.parent.as_deref(), Some(first.version.as_str()));

    let diff = bench.dc.diff("deb@1", "deb").unwrap();
    assert_eq!((diff.from.as_str(), diff.to.as_str()), ("deb@1", "deb@2"));
    assert_eq!((diff.changed_leaves, diff.total_leaves), (1, 24));
    assert_eq!(diff.new_chunks, second.new_chunks);
    assert!(
        diff.new_bytes >= 50_000 && diff.new_bytes < 250_000,
        "{diff:?}"
    );
    assert_eq!(bench.dc.diff("deb", "deb").unwrap().new_chunks, 0);
    let verified = bench.dc.verify_version("deb@2", &Meter::default()).unwrap();
    assert_eq!(verified.damaged_count, 0);
    assert_eq!(bench.dc.versions("deb", None, 10).unwrap().len(), 2);
}

#[test]
fn the_same_file_again_is_refused_unless_asked_for() {
    let bench = Bench::new();
    bench.dc.create_image("deb", None).unwrap();
    let path = bench.path("disk.raw");
    sparse_disk(&path, 8 << 20, &[(0, 3 * MIB)], 1);
    let first = bench.publish("deb", &path).unwrap();
    let refused = bench.publish("deb", &path).unwrap_err();
    assert!(
        matches!(&refused, PublishError::Same { version } if version == "deb@1"),
        "{refused}"
    );
    let again = bench
        .publish_as(&publish::Publish {
            allow_same: true,
            ..request("deb", &path)
        })
        .unwrap();
    assert_eq!((again.number, again.new_chunks), (2, 0));
    assert_eq!(again.known_chunks, first.new_chunks);
    assert_ne!(again.version, first.version);
    // Content is shared between images too.
    bench.dc.create_image("other", None).unwrap();
    let other = bench.publish("other", &path).unwrap();
    assert_eq!((other.number, other.new_chunks), (1, 0));
}

#[test]
fn a_second_publish_of_an_image_waits_for_its_turn() {
    let bench = Bench::new();
    bench.dc.create_image("deb", None).unwrap();
    bench.dc.create_image("other", None).unwrap();
    let turn = publish::reserve(&bench.dc, "deb").unwrap();
    let second = publish::reserve(&bench.dc, "deb").err().unwrap();
    assert!(matches!(second, PublishError::Busy { .. }), "{second}");
    assert_eq!(Problem::from(&second).error, ProblemCode::Conflict);
    publish::reserve(&bench.dc, "other").unwrap();
    drop(turn);
    publish::reserve(&bench.dc, "deb").unwrap();
}

#[test]
fn files_that_must_not_or_cannot_be_read_are_refused() {
    let bench = Bench::new();
    bench.dc.create_image("deb", None).unwrap();
    let relative = std::path::Path::new("disk.raw");
    for path in [
        relative,
        std::path::Path::new("/nowhere/disk.raw"),
        bench.dir.path(),
    ] {
        let refused = bench.publish("deb", path).unwrap_err();
        assert!(matches!(refused, PublishError::Path { .. }), "{refused}");
    }
    let empty = bench.path("empty");
    std::fs::write(&empty, b"").unwrap();
    let refused = bench.publish("deb", &empty).unwrap_err();
    assert_eq!(
        Problem::from(&refused).error,
        ProblemCode::Invalid,
        "{refused}"
    );
    let missing = bench.publish("nope", &empty).unwrap_err();
    assert_eq!(
        Problem::from(&missing).error,
        ProblemCode::NotFound,
        "{missing}"
    );
    assert_eq!(bench.dc.image("deb").unwrap().latest, None);
}

#[test]
fn damage_in_reused_chunks_is_found_before_anything_is_visible_and_heals() {
    for verify in [VerifyMode::Full, VerifyMode::Changed] {
        let bench = Bench::new();
        bench.dc.create_image("deb", None).unwrap();
        let path = bench.path("disk.raw");
        sparse_disk(&path, 8 << 20, &[(0, 3 * MIB)], 1);
        bench.publish("deb", &path).unwrap();
        let pack = std::fs::read_dir(bench.path("store/packs"))
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        let pack = OpenOptions::new()
            .read(true)
            .write(true)
            .open(pack.path())
            .unwrap();
        let mut byte = [0];
        pack.read_exact_at(&mut byte, MIB as u64).unwrap();
        pack.write_all_at(&[byte[0] ^ 1], MIB as u64).unwrap();

        bench.dc.create_image("copy", None).unwrap();
        let copy = publish::Publish {
            verify,
            ..request("copy", &path)
        };
        let refused = bench.publish_as(&copy).unwrap_err();
        assert!(
            matches!(refused, PublishError::Damaged { count: 1, .. }),
            "{refused}"
        );
        assert_eq!(bench.dc.image("copy").unwrap().latest, None);
        let healed = bench.publish_as(&copy).unwrap();
        assert_eq!(healed.new_chunks, 1);
        let verified = bench.dc.verify_version("deb@1", &Meter::default()).unwrap();
        assert_eq!(
            verified.damaged_count, 0,
            "the older version is whole again too"
        );
    }
}

#[test]
fn verify_names_what_is_damaged_and_publishing_again_repairs_it() {
    let bench = Bench::new();
    bench.dc.create_image("deb", None).unwrap();
    let path = bench.path("disk.raw");
    sparse_disk(&path, 8 << 20, &[(0, 3 * MIB)], 1);
    bench.publish("deb", &path).unwrap();
    let root = bench.dc.version_named("deb").unwrap().disk.root;
    let manifest = Manifest::load(&Nodes(&bench), root.parse().unwrap()).unwrap();
    let leaf = manifest.leaf(&Nodes(&bench), 0).unwrap();
    let second = leaf.extents[1].chunk().unwrap();
    bench
        .dc
        .store()
        .quarantine(RecordName::chunk(second))
        .unwrap();
    let found = bench.dc.verify_version("deb", &Meter::default()).unwrap();
    assert_eq!(found.damaged_count, 1);
    let item = &found.damaged[0];
    assert_eq!(
        (item.id.clone(), item.tree.as_str()),
        (second.to_string(), "disk")
    );
    assert_eq!(item.disk_offset, u64::from(leaf.extents[0].len));
    bench
        .publish_as(&publish::Publish {
            allow_same: true,
            ..request("deb", &path)
        })
        .unwrap();
    assert_eq!(
        bench
            .dc
            .verify_version("deb@1", &Meter::default())
            .unwrap()
            .damaged_count,
        0
    );
}

#[test]
fn a_cancelled_publish_leaves_no_version() {
    let bench = Bench::new();
    bench.dc.create_image("deb", None).unwrap();
    let path = bench.path("disk.raw");
    sparse_disk(&path, 64 << 20, &[(0, 32 * MIB)], 1);
    let turn = publish::reserve(&bench.dc, "deb").unwrap();
    let meter = Meter::default();
    meter.cancel();
    let ended = publish::publish(&turn, &request("deb", &path), &meter).unwrap_err();
    assert!(matches!(ended, PublishError::Cancelled), "{ended}");
    assert_eq!(bench.dc.image("deb").unwrap().latest, None);
}

/// A disk with a limit to what it holds, as seen when a pack is begun.
struct SmallDisk {
    disk: HostDisk,
    full: AtomicBool,
}

impl Disk for SmallDisk {
    fn open(&self, name: &str, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open(name, how)
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
        self.disk.rename(from, to)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
    fn available_bytes(&self) -> io::Result<u64> {
        let packs = self.disk.list("packs")?.len();
        Ok(if self.full.load(Ordering::SeqCst) && packs >= 2 {
            0
        } else {
            1 << 40
        })
    }
}

#[test]
fn a_full_disk_ends_the_publish_and_what_was_stored_is_reused_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(SmallDisk {
        disk: HostDisk::new(dir.path().join("store")).unwrap(),
        full: true.into(),
    });
    let bench = Bench::on_disk(
        dir,
        disk.clone(),
        Arc::new(MemKv::new()),
        Arc::new(MemKv::new()),
    );
    bench.dc.create_image("deb", None).unwrap();
    let path = bench.path("disk.raw");
    sparse_disk(&path, 256 << 20, &[(0, 200 * MIB)], 1);
    let full = bench.publish("deb", &path).unwrap_err();
    let problem = Problem::from(&full);
    assert_eq!(problem.error, ProblemCode::Unavailable, "{full}");
    assert!(problem.message.contains("no space left"), "{problem:?}");
    assert_eq!(bench.dc.image("deb").unwrap().latest, None);
    disk.full.store(false, Ordering::SeqCst);
    let done = bench.publish("deb", &path).unwrap();
    assert!(done.known_chunks > 5000, "{done:?}");
    assert_eq!(done.verified_bytes, 256 << 20);
}

#[test]
fn chunk_sizes_are_the_images_and_bad_ones_are_refused() {
    let bench = Bench::new();
    let image = bench.dc.create_image("fine", Some(4096)).unwrap();
    assert_eq!(
        (image.chunk_sizes.min, image.chunk_sizes.max),
        (1024, 16384)
    );
    for avg in [0, 1000, 2048, 5000, 131_072, u64::MAX] {
        bench.dc.create_image("bad", Some(avg)).unwrap_err();
    }
    let path = bench.path("disk.raw");
    sparse_disk(&path, 4 << 20, &[(0, MIB)], 1);
    bench.dc.create_image("coarse", Some(65536)).unwrap();
    let fine = bench.publish("fine", &path).unwrap();
    let coarse = bench.publish("coarse", &path).unwrap();
    assert!(
        fine.new_chunks > 8 * coarse.new_chunks,
        "{fine:?} {coarse:?}"
    );
}

/// A Linux system as far as publish looks at it.
fn linux_disk(bench: &Bench, initrd: Option<&[u8]>) -> std::path::PathBuf {
    let tree = bench.path("tree");
    std::fs::remove_dir_all(&tree).ok();
    let write = |name: &str, bytes: &[u8]| {
        let path = tree.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    write(
        "etc/os-release",
        b"PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n",
    );
    write(
        "etc/fstab",
        b"UUID=6f2b0a5e-3a54-4d3b-9a6e-0d7b3a1c9f01 / ext4 defaults 0 1\n",
    );
    write("sbin/init", b"#!/bin/sh\n");
    write("boot/vmlinuz-6.1.0-1", &kernel());
    if let Some(initrd) = initrd {
        write("boot/initrd.img-6.1.0-1", initrd);
    }
    let disk = bench.path("linux.raw");
    std::fs::remove_file(&disk).ok();
    let made = std::process::Command::new("mke2fs")
        .args([
            "-q",
            "-t",
            "ext4",
            "-U",
            "6f2b0a5e-3a54-4d3b-9a6e-0d7b3a1c9f01",
            "-d",
        ])
        .args([&tree, &disk])
        .arg("48M")
        .status()
        .unwrap();
    assert!(made.success());
    disk
}

/// A kernel as far as its header goes.
fn kernel() -> Vec<u8> {
    let mut kernel: Vec<u8> = (0..300_001u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x20e..0x210].copy_from_slice(&0x1000u16.to_le_bytes());
    let text = b"6.1.0-1 (builder@host) #1 SMP\0";
    kernel[0x1200..0x1200 + text.len()].copy_from_slice(text);
    kernel
}

#[test]
fn kernel_and_initial_ram_disk_become_trees_of_their_own() {
    let bench = Bench::new();
    bench.dc.create_image("deb", None).unwrap();
    // Not a whole number of sectors, and long enough for several leaves.
    let initrd: Vec<u8> = (0..9_000_003u32)
        .map(|i| (i.wrapping_mul(2_246_822_519) >> 23) as u8)
        .collect();
    let disk = linux_disk(&bench, Some(&initrd));
    let published = bench.publish("deb", &disk).unwrap();
    assert_eq!(
        published.kernel_path.as_deref(),
        Some("/boot/vmlinuz-6.1.0-1")
    );
    assert_eq!(
        published.os.as_deref(),
        Some("Debian GNU/Linux 12 (bookworm)")
    );
    let boot = bench.dc.version_named("deb").unwrap().boot.unwrap();
    assert_eq!(boot.kernel.size_bytes, 300_001);
    assert!(rebuild_tree(&bench, &boot.kernel.root) == kernel());
    let tree = boot.initrd.unwrap();
    assert_eq!(tree.size_bytes, initrd.len() as u64);
    assert!(rebuild_tree(&bench, &tree.root) == initrd);
    assert!(
        boot.root_argument.starts_with("root=UUID=6f2b0a5e"),
        "{}",
        boot.root_argument
    );
    assert_eq!(
        published.verified_bytes,
        (48 << 20) + 300_001 + initrd.len() as u64
    );

    let disk = linux_disk(&bench, None);
    bench.publish("deb", &disk).unwrap();
    let boot = bench.dc.version_named("deb").unwrap().boot.unwrap();
    assert_eq!(boot.initrd, None);
    assert!(rebuild_tree(&bench, &boot.kernel.root) == kernel());
}
