//! The import pipeline: the same result for any number of threads, bounded memory, and an end to everything that begins.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use datacenter::operations::Meter;
use datacenter::publish::{self, PublishError, import};
use datacenter_api::VerifyMode;
use dedup::{Chunker, ChunkerParams, IdKey, ManifestBuilder, NodeId, Piece};
use dedup_image::{DiskImage, ImageError, ImageFormat, Region, RegionKind};
use dedup_store::disk::{Disk, DiskFile, HostDisk, Open};
use dedup_store::kv::MemKv;
use support::{Bench, request, sparse_disk};

const MIB: usize = 1 << 20;
/// Far more than any of this takes: only a thread that waits for ever reaches it.
const LIMIT: Duration = Duration::from_secs(300);

/// Fails instead of waiting for a thread that hangs.
fn bounded<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done_in, done) = channel();
    let thread = std::thread::spawn(move || {
        done_in.send(work()).ok();
    });
    let result = done
        .recv_timeout(LIMIT)
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    thread.join().unwrap();
    result
}

fn with_workers(workers: usize) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(HostDisk::new(dir.path().join("store")).unwrap());
    let memory = || Arc::new(MemKv::new());
    Bench::on_disk_with_workers(dir, disk, memory(), memory(), workers)
}

/// Noise that the seed decides on, with repetition, text-like bytes and short and long zero runs.
fn content(len: usize, mut seed: u64) -> Vec<u8> {
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut data = Vec::with_capacity(len);
    while data.len() < len {
        let run = 1 + next() as usize % 300_000;
        match next() % 5 {
            0 => data.resize(data.len() + run, 0),
            1 => data.resize(data.len() + run, 7),
            2 if data.len() > run => data.extend_from_within(..run),
            3 => data.extend((0..run).map(|_| b"etaoin shrdlu\n"[next() as usize % 14])),
            _ => data.extend((0..run / 8 + 1).flat_map(|_| next().to_le_bytes())),
        }
    }
    data.truncate(len);
    data
}

/// A disk in memory, all of it data, that does something when it is read.
struct Reading<F> {
    data: Vec<u8>,
    on_read: F,
}

impl<F: FnMut(u64) -> Result<(), ImageError> + Send> DiskImage for Reading<F> {
    fn format(&self) -> ImageFormat {
        ImageFormat::Raw
    }
    fn size_bytes(&self) -> u64 {
        self.data.len() as u64
    }
    fn region_at(&mut self, offset: u64) -> Result<Region, ImageError> {
        Ok(Region {
            offset,
            len: self.size_bytes() - offset,
            kind: RegionKind::Data,
        })
    }
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        (self.on_read)(offset)?;
        let from = offset as usize;
        buf.copy_from_slice(&self.data[from..from + buf.len()]);
        Ok(())
    }
}

/// The manifest that one thread makes with the streaming chunker.
fn sequential_root(key: &IdKey, params: ChunkerParams, disk: &[u8]) -> NodeId {
    let mut builder = ManifestBuilder::new(key.clone(), params);
    let mut emit = |piece: Piece<'_>| match piece {
        Piece::Zero(len) => builder.push_zero(len),
        Piece::Data(data) => builder.push_chunk(key.chunk_id(data), data.len() as u32),
    };
    let mut chunker = Chunker::new(params);
    chunker.push_data(disk, &mut emit);
    chunker.finish(&mut emit);
    builder.finish().0.seal(key).root
}

#[test]
fn any_number_of_threads_makes_the_manifest_of_one() {
    for (workers, len) in [
        (1, 9 * MIB + 5),
        (2, 12 * MIB),
        (3, 4096),
        (9, 17 * MIB + 4095),
    ] {
        let disk = content(len, 77 + len as u64);
        let params = ChunkerParams::default();
        let imported = bounded("an import", {
            let data = disk.clone();
            move || {
                let bench = with_workers(workers);
                let meter = Meter::default();
                let mut source = Reading {
                    data,
                    on_read: |_| Ok(()),
                };
                let done = import::import(
                    &bench.dc,
                    &bench.dc.store().hold(),
                    &mut source,
                    params,
                    &meter,
                )
                .unwrap();
                let progress = meter.progress();
                assert_eq!(progress.done_bytes, len as u64, "progress is truthful");
                assert!(progress.new_chunks > 0 && progress.stored_bytes > 0);
                (done, bench.dc.id_key().clone())
            }
        });
        let (imported, key) = imported;
        assert_eq!(imported.tree.size_bytes, len as u64);
        assert_eq!(imported.tree.root, sequential_root(&key, params, &disk));
    }
}

#[test]
fn a_disk_that_cannot_be_read_to_its_end_ends_the_import() {
    for fails_at in [0, 5 * MIB as u64, 23 * MIB as u64] {
        let ended = bounded("an import of a bad disk", move || {
            let bench = with_workers(3);
            let mut source = Reading {
                data: content(24 * MIB, 3),
                on_read: |offset| match offset + 2 * MIB as u64 > fails_at {
                    true => Err(ImageError::Io {
                        path: PathBuf::from("disk.raw"),
                        action: format!("read at {offset}"),
                        source: io::Error::other("medium error"),
                    }),
                    false => Ok(()),
                },
            };
            let params = ChunkerParams::default();
            import::import(
                &bench.dc,
                &bench.dc.store().hold(),
                &mut source,
                params,
                &Meter::default(),
            )
            .unwrap_err()
        });
        assert!(matches!(ended, PublishError::Source(_)), "{ended}");
    }
}

#[test]
fn cancelling_in_the_middle_ends_the_import() {
    let ended = bounded("a cancelled import", || {
        let bench = with_workers(2);
        let meter = Meter::default();
        let mut source = Reading {
            data: content(24 * MIB, 4),
            on_read: |offset| {
                if offset >= 10 * MIB as u64 {
                    meter.cancel();
                }
                Ok(())
            },
        };
        let params = ChunkerParams::default();
        import::import(
            &bench.dc,
            &bench.dc.store().hold(),
            &mut source,
            params,
            &meter,
        )
        .unwrap_err()
    });
    assert!(matches!(ended, PublishError::Cancelled), "{ended}");
}

#[test]
fn a_defect_in_a_stage_is_reported_and_not_waited_for() {
    let ended = bounded("an import that panics", || {
        std::panic::catch_unwind(|| {
            let bench = with_workers(2);
            let mut source = Reading {
                data: content(24 * MIB, 5),
                on_read: |offset| match offset > 12 * MIB as u64 {
                    true => std::panic::resume_unwind(Box::new("a defect")),
                    false => Ok(()),
                },
            };
            let params = ChunkerParams::default();
            import::import(
                &bench.dc,
                &bench.dc.store().hold(),
                &mut source,
                params,
                &Meter::default(),
            )
            .ok();
        })
        .is_err()
    });
    assert!(ended, "the panic is lost");
}

type Hook = Box<dyn FnMut(&str) -> io::Result<()> + Send>;

/// A disk that does something before each write (`"write"`) and sync (`"sync"`) of a file.
struct Hooked {
    disk: HostDisk,
    hook: Arc<Mutex<Hook>>,
}

struct HookedFile {
    file: Arc<dyn DiskFile>,
    hook: Arc<Mutex<Hook>>,
}

impl Disk for Hooked {
    fn open(&self, name: &str, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(HookedFile {
            file: self.disk.open(name, how)?,
            hook: self.hook.clone(),
        }))
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
        self.disk.available_bytes()
    }
}

impl DiskFile for HookedFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        (self.hook.lock().unwrap())("write")?;
        self.file.write_at(offset, data)
    }
    fn sync(&self) -> io::Result<()> {
        (self.hook.lock().unwrap())("sync")?;
        self.file.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.punch_hole(offset, len)
    }
}

fn hooked(hook: Hook) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let disk = Hooked {
        disk: HostDisk::new(dir.path().join("store")).unwrap(),
        hook: Arc::new(Mutex::new(hook)),
    };
    let memory = || Arc::new(MemKv::new());
    Bench::on_disk_with_workers(dir, Arc::new(disk), memory(), memory(), 3)
}

/// Fails the operation `kind` the `nth` time.
fn failing(kind: &'static str, nth: i64, error: io::ErrorKind) -> Hook {
    let left = AtomicI64::new(nth);
    Box::new(move |what| {
        let due = what == kind && left.fetch_sub(1, Ordering::SeqCst) == 1;
        if due { Err(error.into()) } else { Ok(()) }
    })
}

#[test]
fn a_store_that_fails_in_the_middle_ends_the_publish_and_shows_no_version() {
    let cases = [
        ("write", 1, io::ErrorKind::Other),
        ("write", 9, io::ErrorKind::Other),
        ("write", 20, io::ErrorKind::StorageFull),
        ("sync", 1, io::ErrorKind::Other),
        // Of the first pack, while the second grows.
        ("sync", 2, io::ErrorKind::Other),
        ("sync", 3, io::ErrorKind::Other),
    ];
    for (kind, nth, error) in cases {
        bounded("a publish on a bad disk", move || {
            let bench = hooked(failing(kind, nth, error));
            bench.dc.create_image("deb", None).unwrap();
            let path = bench.path("disk.raw");
            sparse_disk(&path, 100 << 20, &[(0, 80 * MIB)], 1);
            let ended = bench.publish("deb", &path).unwrap_err();
            let full = error == io::ErrorKind::StorageFull;
            assert!(
                matches!(&ended, PublishError::Store(e) if e.is_no_space() == full),
                "{kind} {nth}: {ended}"
            );
            assert_eq!(bench.dc.image("deb").unwrap().latest, None);
            // A full disk that has room again goes on with what is stored; after any other failure the store stays closed.
            let again = bench.publish("deb", &path);
            match full {
                true => assert!(again.unwrap().known_chunks > 0, "{kind} {nth}"),
                false => assert!(again.is_err(), "{kind} {nth}"),
            }
        });
    }
}

#[test]
fn a_file_that_changes_while_it_is_published_is_refused() {
    for verify in [VerifyMode::Full, VerifyMode::Changed] {
        bounded("a publish of a changing file", move || {
            let path = Arc::new(Mutex::new(PathBuf::new()));
            let (target, syncs) = (path.clone(), AtomicU64::new(0));
            let bench = hooked(Box::new(move |what| {
                // The first sync is of the pack's header, the second that of the commit behind the import.
                if what == "sync" && syncs.fetch_add(1, Ordering::SeqCst) == 1 {
                    let file = OpenOptions::new()
                        .write(true)
                        .open(&*target.lock().unwrap())?;
                    file.write_all_at(b"!", 5_000_000)?;
                }
                Ok(())
            }));
            bench.dc.create_image("deb", None).unwrap();
            let disk = bench.path("disk.raw");
            sparse_disk(&disk, 16 << 20, &[(0, 8 * MIB)], 1);
            path.lock().unwrap().clone_from(&disk);
            let ended = bench.publish_as(&publish::Publish {
                verify,
                ..request("deb", &disk)
            });
            let ended = ended.unwrap_err();
            assert!(
                matches!(
                    ended,
                    PublishError::Differs {
                        offset: 5_000_000,
                        ..
                    }
                ),
                "{ended}"
            );
            assert_eq!(bench.dc.image("deb").unwrap().latest, None);
            assert_eq!(bench.publish("deb", &disk).unwrap().number, 1);
        });
    }
}

#[test]
fn data_that_appears_in_a_hole_is_noticed() {
    bounded("a publish of a file that grows", || {
        let path = Arc::new(Mutex::new(PathBuf::new()));
        let (target, syncs) = (path.clone(), AtomicU64::new(0));
        let bench = hooked(Box::new(move |what| {
            if what == "sync" && syncs.fetch_add(1, Ordering::SeqCst) == 1 {
                let file = OpenOptions::new()
                    .write(true)
                    .open(&*target.lock().unwrap())?;
                file.write_all_at(b"!", 13_000_000)?;
            }
            Ok(())
        }));
        bench.dc.create_image("deb", None).unwrap();
        let disk = bench.path("disk.raw");
        sparse_disk(&disk, 16 << 20, &[(0, 8 * MIB)], 1);
        path.lock().unwrap().clone_from(&disk);
        let ended = bench.publish("deb", &disk).unwrap_err();
        assert!(
            matches!(
                ended,
                PublishError::Differs {
                    offset: 13_000_000,
                    ..
                }
            ),
            "{ended}"
        );
    });
}

#[test]
fn memory_does_not_grow_with_the_disk() {
    // The disk is a formula, so that nothing but the pipeline holds memory; the store gets the same chunks again and again.
    struct Formula(u64);
    impl DiskImage for Formula {
        fn format(&self) -> ImageFormat {
            ImageFormat::Raw
        }
        fn size_bytes(&self) -> u64 {
            self.0
        }
        fn region_at(&mut self, offset: u64) -> Result<Region, ImageError> {
            Ok(Region {
                offset,
                len: self.0 - offset,
                kind: RegionKind::Data,
            })
        }
        fn read_at(&mut self, _offset: u64, buf: &mut [u8]) -> Result<(), ImageError> {
            buf.fill(7);
            Ok(())
        }
    }
    fn resident_bytes() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.unwrap().parse::<u64>().unwrap() << 10
    }
    bounded("an import of a large disk", || {
        let bench = with_workers(2);
        let import = |len| {
            let meter = Meter::default();
            let params = ChunkerParams::default();
            import::import(
                &bench.dc,
                &bench.dc.store().hold(),
                &mut Formula(len),
                params,
                &meter,
            )
            .unwrap();
        };
        import(64 << 20);
        let before = resident_bytes();
        import(2 << 30);
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 32 << 20, "{grown} bytes more for a larger disk");
    });
}
