//! The overlay under power cuts, killed processes, failing media and full disks.
//!
//! Each case is one desktop that lives and dies a few times. What the next life finds must be exactly the state after some prefix
//! of the guest's requests: after a power cut at least what an acknowledged flush covered, after the death of the process at
//! least what was acknowledged. Housekeeping (compaction, index snapshots) goes on in between, and dies in between. `SPLICE_CUTS` sets the
//! number of cases, `SPLICE_SEED` the first one.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use branch::volume::{
    MemBase, Overlay, OverlayError, OverlayIdentity, OverlayKey, OverlayOptions, Volume,
};
use crash::{Kind, Rng, SimDisk};
use dedup::VersionId;
use dedup_store::disk::{Disk, DiskFile, Open};
use vmm_block::{BlockDevice, BlockError, BlockErrorKind};

const CASES: u64 = 1000;
const SECTOR: usize = 512;
/// Sectors of the desktop's disks: few, so that writes overlap and segments die.
const DISKS: [usize; 2] = [96, 40];
const BASE_SECTORS: usize = 64;
/// A few records a segment, so that every case rotates and drops some.
const OPTIONS: OverlayOptions = OverlayOptions {
    segment_bytes: 12 << 10,
    snapshot_bytes: 20 << 10,
    extents_max: 320,
    room_wait: Duration::ZERO,
    floor_bytes: 0,
};

/// Nonces that never repeat, without the system's: nothing that a guest sees depends on them.
fn nonces(buf: &mut [u8]) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    for bytes in buf.chunks_mut(8) {
        let next = Rng::new(NEXT.fetch_add(1, Ordering::Relaxed)).bits();
        bytes.copy_from_slice(&next.to_le_bytes()[..bytes.len()]);
    }
}

fn key() -> OverlayKey {
    OverlayKey::new([0x5A; 32], nonces)
}

/// Gives the simulated disk, or one that is broken on purpose, to the overlay.
type Fit = fn(&SimDisk) -> Arc<dyn Disk>;

fn honest(disk: &SimDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

fn identity() -> OverlayIdentity {
    OverlayIdentity {
        desktop: [7; 16],
        base: VersionId([9; 32]),
        disks: DISKS.map(|sectors| (sectors * SECTOR) as u64).to_vec(),
    }
}

type State = [Vec<u8>; 2];

#[derive(Debug, Clone)]
struct Change {
    disk: usize,
    at: usize,
    data: Vec<u8>,
}

fn apply(state: &mut State, change: &Change) {
    state[change.disk][change.at..change.at + change.data.len()].copy_from_slice(&change.data);
}

/// What happened over all cases, so that a test that met nothing is not taken for a good one.
#[derive(Debug, Default)]
struct Tally {
    cuts: u64,
    kills: u64,
    lost_something: u64,
    kept_unflushed: u64,
    refused_for_space: u64,
    closed_by_fault: u64,
    dropped_segments: u64,
    deaths_in_open: u64,
    moved_bytes: u64,
    snapshots: u64,
}

struct World {
    rng: Rng,
    disk: SimDisk,
    fit: Fit,
    /// What the last successful opening found.
    found: State,
    /// Requests since, in order; the last one may have failed for the stop.
    changes: Vec<Change>,
    /// How many of them were acknowledged, and how many an acknowledged flush covered.
    acknowledged: usize,
    flushed: usize,
    /// Least prefix that the next opening must find.
    floor: usize,
    /// Whether the power was cut since the last successful opening.
    cut: bool,
    tally: Tally,
}

impl World {
    fn new(seed: u64, fit: Fit) -> Self {
        let base: Vec<u8> = (0..BASE_SECTORS * SECTOR)
            .map(|i| (i / SECTOR) as u8 + 1)
            .collect();
        let found = DISKS.map(|sectors| {
            let mut bytes = base.clone();
            bytes.resize(sectors * SECTOR, 0);
            bytes.truncate(sectors * SECTOR);
            bytes
        });
        Self {
            rng: Rng::new(seed),
            disk: SimDisk::new(seed),
            fit,
            found,
            changes: Vec::new(),
            acknowledged: 0,
            flushed: 0,
            floor: 0,
            cut: false,
            tally: Tally::default(),
        }
    }

    fn volumes(overlay: &Arc<Overlay>) -> [Volume; 2] {
        let bytes: Vec<u8> = (0..BASE_SECTORS * SECTOR)
            .map(|i| (i / SECTOR) as u8 + 1)
            .collect();
        [0, 1].map(|disk| {
            let mut bytes = bytes.clone();
            bytes.truncate(DISKS[disk] * SECTOR);
            Volume::new(Arc::new(MemBase::new(bytes)), overlay.clone(), disk as u16).unwrap()
        })
    }

    /// Opens the overlay, dying on the way now and then, and checks what is found.
    fn reborn(&mut self) -> [Volume; 2] {
        loop {
            if self.rng.one_in(4) {
                self.disk.stop_after(self.rng.below(12));
            }
            let faulty = self.rng.one_in(12);
            if faulty {
                self.disk.fail_nth(Kind::Read, 1 + self.rng.below(3));
            }
            let log_id = self.rng.bits().to_le_bytes().repeat(2).try_into().unwrap();
            let opened = Overlay::open_or_create(
                (self.fit)(&self.disk),
                "desk",
                &identity(),
                log_id,
                &key(),
                OPTIONS,
            );
            match opened {
                Ok(overlay) => {
                    let volumes = Self::volumes(&Arc::new(overlay));
                    self.check(&volumes);
                    return volumes;
                }
                Err(_) if self.disk.is_stopped() => {
                    self.tally.deaths_in_open += 1;
                    self.die();
                }
                // The fault injected above: it must be reported, not taken for a torn tail.
                Err(OverlayError::Io { .. }) if faulty => {}
                Err(error) => panic!("the overlay does not open: {error}"),
            }
        }
    }

    /// The state found must be that after some prefix of the requests, and not too short a one.
    fn check(&mut self, volumes: &[Volume; 2]) {
        let found: State = [0, 1].map(|disk| read(&volumes[disk], 0, DISKS[disk] * SECTOR));
        let mut state = self.found.clone();
        let mut matches = None;
        for count in 0..=self.changes.len() {
            if count > 0 {
                apply(&mut state, &self.changes[count - 1]);
            }
            if count >= self.floor && state == found {
                matches = Some(count);
                break;
            }
        }
        let Some(count) = matches else {
            panic!(
                "no prefix of {} requests, at least {} of them, gives what is found",
                self.changes.len(),
                self.floor
            );
        };
        self.tally.lost_something += u64::from(count < self.acknowledged);
        self.tally.kept_unflushed += u64::from(count > self.flushed);
        self.found = found;
        self.changes.clear();
        (self.acknowledged, self.flushed, self.floor) = (0, 0, 0);
        self.cut = false;
    }

    fn die(&mut self) {
        if self.rng.one_in(3) {
            self.tally.kills += 1;
            self.disk = self.disk.clone_live();
            // Unless the power went before, while opening: then what was only acknowledged may be gone already.
            if !self.cut {
                self.floor = self.acknowledged;
            }
        } else {
            self.tally.cuts += 1;
            let seed = self.rng.bits();
            self.disk = self.disk.crash(seed);
            self.floor = self.flushed;
            self.cut = true;
        }
        self.disk.limit_space(None);
    }

    /// A step of housekeeping. False once the overlay is closed or the machine has stopped.
    fn tend(&mut self, volumes: &[Volume; 2]) -> bool {
        let overlay = volumes[0].overlay();
        match overlay.tend(self.rng.below(24 << 10)) {
            Ok(tended) => {
                self.tally.moved_bytes += tended.moved_bytes;
                self.tally.snapshots += u64::from(tended.snapshot_bytes > 0);
                true
            }
            Err(error) => {
                assert!(
                    overlay.failure().is_some(),
                    "housekeeping fails and the overlay stays open: {error}"
                );
                self.tally.closed_by_fault += 1;
                false
            }
        }
    }

    /// One request of the guest. False once the overlay is closed or the machine has stopped.
    fn request(&mut self, volumes: &[Volume; 2]) -> bool {
        let disk = self.rng.below(2) as usize;
        if self.rng.one_in(6) {
            return match volumes[disk].flush() {
                Ok(()) => {
                    self.flushed = self.acknowledged;
                    true
                }
                Err(_) => false,
            };
        }
        let at = self.rng.below(DISKS[disk] as u64) as usize;
        let sectors = (1 + self.rng.below(12) as usize).min(DISKS[disk] - at);
        let (offset, len) = ((at * SECTOR) as u64, (sectors * SECTOR) as u64);
        let (zero, fua) = (self.rng.one_in(5), self.rng.one_in(12));
        let data = if zero {
            vec![0; len as usize]
        } else {
            self.rng.bytes(len as usize)
        };
        self.changes.push(Change {
            disk,
            at: offset as usize,
            data: data.clone(),
        });
        let volume = &volumes[disk];
        let result = match (zero, self.rng.one_in(2)) {
            (false, _) => volume.write(offset, &data, fua),
            (true, true) => volume.write_zeroes(offset, len, self.rng.one_in(2), fua),
            (true, false) => volume
                .discard(offset, len)
                .and_then(|()| if fua { volume.flush() } else { Ok(()) }),
        };
        match result {
            Ok(()) => {
                self.acknowledged = self.changes.len();
                if fua {
                    self.flushed = self.acknowledged;
                }
                true
            }
            Err(error) => self.refused(volume, &error, offset, len),
        }
    }

    /// A full disk must have changed nothing; any other fault must have closed the overlay.
    fn refused(&mut self, volume: &Volume, error: &BlockError, offset: u64, len: u64) -> bool {
        if self.disk.is_stopped() {
            return false;
        }
        if error.kind == BlockErrorKind::NoSpace {
            self.tally.refused_for_space += 1;
            let change = self.changes.pop().unwrap();
            let mut state = self.found.clone();
            self.changes
                .iter()
                .for_each(|change| apply(&mut state, change));
            let now = read(volume, offset, len as usize);
            let at = offset as usize;
            assert!(
                now == state[change.disk][at..at + len as usize],
                "a refused write shows"
            );
            self.disk.limit_space(None);
            return true;
        }
        self.tally.closed_by_fault += 1;
        for again in [
            volume.write(0, &[0; SECTOR], false),
            volume.flush(),
            volume.read(0, &mut [0; SECTOR]),
        ] {
            assert_eq!(
                again.unwrap_err().kind,
                BlockErrorKind::Io,
                "a failed overlay stays closed"
            );
        }
        false
    }

    fn life(&mut self) {
        let volumes = self.reborn();
        match self.rng.below(6) {
            0..3 => self.disk.stop_after(self.rng.below(120)),
            3 => self.disk.fail_nth(Kind::Write, 1 + self.rng.below(30)),
            4 => self.disk.fail_nth(Kind::Sync, 1 + self.rng.below(8)),
            _ => {}
        }
        for _ in 0..self.rng.below(80) {
            if self.rng.one_in(25) {
                let room = self.disk.used_bytes() + self.rng.below(12 << 10);
                self.disk.limit_space(Some(room));
            }
            if self.rng.one_in(8) && !self.tend(&volumes) {
                break;
            }
            if !self.request(&volumes) {
                break;
            }
        }
        let stats = volumes[0].overlay().stats();
        self.tally.dropped_segments += highest_segment(&self.disk).saturating_sub(stats.segments);
        self.die();
    }
}

/// A read fault that was injected fails one read, and only that one.
fn read(volume: &Volume, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xEE; len];
    volume
        .read(offset, &mut bytes)
        .or_else(|_| volume.read(offset, &mut bytes))
        .unwrap();
    bytes
}

/// Number of the newest segment, which is also how many there ever were.
fn highest_segment(disk: &SimDisk) -> u64 {
    let names = disk.list("desk").unwrap_or_default();
    let numbers = names
        .iter()
        .filter_map(|name| name.strip_suffix(".seg")?.parse().ok());
    numbers.max().unwrap_or(0)
}

fn world(seed: u64, fit: Fit) -> Tally {
    let mut world = World::new(seed, fit);
    for _ in 0..1 + world.rng.below(5) {
        world.life();
    }
    // The last life's state, without any fault.
    world.disk.limit_space(None);
    drop(world.reborn());
    world.tally
}

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn power_cuts_and_kills_leave_a_prefix() {
    let first = from_env("SPLICE_SEED", 1);
    let cases = from_env("SPLICE_CUTS", CASES);
    let mut sum = Tally::default();
    for seed in first..first + cases {
        match catch_unwind(AssertUnwindSafe(|| world(seed, honest))) {
            Ok(tally) => {
                sum.cuts += tally.cuts;
                sum.kills += tally.kills;
                sum.lost_something += tally.lost_something;
                sum.kept_unflushed += tally.kept_unflushed;
                sum.refused_for_space += tally.refused_for_space;
                sum.closed_by_fault += tally.closed_by_fault;
                sum.dropped_segments += tally.dropped_segments;
                sum.deaths_in_open += tally.deaths_in_open;
                sum.moved_bytes += tally.moved_bytes;
                sum.snapshots += tally.snapshots;
            }
            Err(panic) => {
                eprintln!(
                    "seed {seed} fails; replay: SPLICE_SEED={seed} SPLICE_CUTS=1 cargo test -p crash --test overlay power_cuts"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{sum:?}");
    if cases >= 200 {
        let met = [
            sum.lost_something,
            sum.kept_unflushed,
            sum.refused_for_space,
            sum.closed_by_fault,
            sum.dropped_segments,
            sum.deaths_in_open,
            sum.moved_bytes,
            sum.snapshots,
        ];
        assert!(
            met.iter().all(|&count| count > 0),
            "the cases did not meet everything: {sum:?}"
        );
    }
}

/// Syncs of files, or of directories, that do nothing.
struct Liar {
    inner: SimDisk,
    lies_about_names: bool,
}

struct LiarFile(Arc<dyn DiskFile>);

impl Disk for Liar {
    fn open(&self, name: &str, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.inner.open(name, how)?;
        Ok(if self.lies_about_names {
            file
        } else {
            Arc::new(LiarFile(file))
        })
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.inner.create_dir(dir)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        if self.lies_about_names {
            Ok(())
        } else {
            self.inner.sync_dir(dir)
        }
    }
    fn available_bytes(&self) -> io::Result<u64> {
        self.inner.available_bytes()
    }
}

impl DiskFile for LiarFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
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

/// The test itself is tested: an overlay that did not sync must be caught.
#[test]
fn a_missing_sync_is_noticed() {
    const TRIES: u64 = 60;
    let liars: [Fit; 2] = [
        |disk| {
            Arc::new(Liar {
                inner: disk.clone(),
                lies_about_names: false,
            })
        },
        |disk| {
            Arc::new(Liar {
                inner: disk.clone(),
                lies_about_names: true,
            })
        },
    ];
    // Only this thread's panics are expected; others are to be seen.
    let (hook, me) = (std::panic::take_hook(), std::thread::current().id());
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() != me {
            hook(info);
        }
    }));
    let caught = liars.map(|fit| {
        (1..=TRIES)
            .filter(|&seed| catch_unwind(AssertUnwindSafe(|| world(seed, fit))).is_err())
            .count()
    });
    assert!(
        caught.iter().all(|&count| count > 0),
        "caught {caught:?} of {TRIES}"
    );
}
