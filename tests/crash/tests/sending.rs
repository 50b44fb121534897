//! Write-back's reading of overlays under power cuts and killed processes.
//!
//! The branch seals a segment, is stopped, goes on: what it reads behind the stop is the same segment, whatever compaction did meanwhile, and what the
//! datacenter has is at each step what the disk showed at a record that was durable. `SPLICE_CUTS` sets the number of cases, `SPLICE_SEED`
//! the first one.

#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use branch::volume::{Changes, Overlay, OverlayError, OverlayIdentity, OverlayKey, OverlayOptions};
use crash::{Rng, SimDisk};
use dedup::VersionId;

const CASES: u64 = 400;
const DISK: u64 = 96 * 512;
const OPTIONS: OverlayOptions = OverlayOptions {
    segment_bytes: 12 << 10,
    snapshot_bytes: 20 << 10,
    extents_max: 320,
    room_wait: Duration::ZERO,
    floor_bytes: 0,
};

fn random(buf: &mut [u8]) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    for bytes in buf.chunks_mut(8) {
        let next = Rng::new(NEXT.fetch_add(1, Ordering::Relaxed)).bits();
        bytes.copy_from_slice(&next.to_le_bytes()[..bytes.len()]);
    }
}

fn open(disk: &SimDisk) -> Result<Arc<Overlay>, OverlayError> {
    let identity = OverlayIdentity {
        desktop: [7; 16],
        base: VersionId([9; 32]),
        disks: vec![DISK],
    };
    let key = OverlayKey::new([0x5A; 32], random);
    let disk = Arc::new(disk.clone());
    Overlay::open_or_create(disk, "desk", &identity, [3; 16], &key, OPTIONS).map(Arc::new)
}

/// What a record said.
struct Deed {
    seq: u64,
    at: usize,
    data: Vec<u8>,
}

fn shown(deeds: &[Deed], seq: u64) -> Vec<u8> {
    let mut state = vec![0; DISK as usize];
    for deed in deeds.iter().filter(|deed| deed.seq <= seq) {
        state[deed.at..deed.at + deed.data.len()].copy_from_slice(&deed.data);
    }
    state
}

/// Writes what changed into `state`. False: the disk stopped on the way.
fn read(overlay: &Overlay, mut changes: Changes, state: &mut [u8], disk: &SimDisk) -> bool {
    loop {
        let done = changes.next_change().and_then(|change| {
            let Some(change) = change else {
                return Ok(true);
            };
            let span = change.start() as usize..change.end() as usize;
            overlay.read_change(&change, &mut state[span])?;
            Ok(false)
        });
        match done {
            Ok(false) => {}
            Ok(true) => return true,
            Err(_) if disk.is_stopped() => return false,
            Err(error) => panic!("a held segment cannot be read: {error}"),
        }
    }
}

#[derive(Debug, Default)]
struct Tally {
    stops: u64,
    cuts: u64,
    resumed: u64,
    applied: u64,
    moved_bytes: u64,
}

/// What is durable of the write-back at the branch, as the catalog would have it, and what the datacenter has.
struct Line {
    acked: u64,
    sealed: Option<u64>,
    sent: Vec<u8>,
}

fn live(seed: u64, tally: &mut Tally) {
    let mut rng = Rng::new(seed);
    let mut disk = SimDisk::new(seed);
    let mut deeds: Vec<Deed> = Vec::new();
    let mut line = Line {
        acked: 0,
        sealed: None,
        sent: vec![0; DISK as usize],
    };
    for life in 0..6 {
        let overlay = open(&disk).unwrap();
        // What no flush covered may be gone, and its numbers are used again.
        let last = overlay.stats().seq;
        deeds.retain(|deed| deed.seq <= last);
        overlay.send_after(line.acked).unwrap();
        if let Some(to) = line.sealed {
            overlay.hold(line.acked, to);
            tally.resumed += 1;
        }
        let is_last_life = life == 5;
        if !is_last_life {
            disk.stop_after(20 + rng.below(220));
        }
        for _ in 0..60 {
            step(&mut rng, &overlay, &disk, &mut deeds, &mut line, tally);
        }
        if is_last_life {
            overlay.flush().unwrap();
            apply(&overlay, &disk, &deeds, &mut line, tally);
            seal(&overlay, &mut line);
            apply(&overlay, &disk, &deeds, &mut line, tally);
            assert!(line.sent == shown(&deeds, u64::MAX), "seed {seed}");
            return;
        }
        drop(overlay);
        tally.stops += u64::from(disk.is_stopped());
        disk = if rng.one_in(2) {
            tally.cuts += 1;
            disk.crash(rng.bits())
        } else {
            disk.clone_live()
        };
    }
}

fn step(
    rng: &mut Rng,
    overlay: &Arc<Overlay>,
    disk: &SimDisk,
    deeds: &mut Vec<Deed>,
    line: &mut Line,
    tally: &mut Tally,
) {
    if disk.is_stopped() {
        return;
    }
    match rng.below(12) {
        0..=5 => {
            let seq = overlay.stats().seq + 1;
            let at = rng.below(DISK / 512 - 8) * 512;
            let len = 512 * (1 + rng.below(8));
            let (written, data) = if rng.one_in(6) {
                (
                    overlay.zero(0, at, len, rng.one_in(2)),
                    vec![0; len as usize],
                )
            } else {
                let data = rng.bytes(len as usize);
                (overlay.write(0, at, &data), data)
            };
            let at = at as usize;
            match written {
                Ok(number) => assert_eq!(number, seq),
                // It may be in the log or not; the next opening finds out by the number.
                Err(error) => assert!(disk.is_stopped(), "{error}"),
            }
            deeds.push(Deed { seq, at, data });
        }
        6 => assert!(overlay.flush().is_ok() || disk.is_stopped()),
        7 | 8 => match overlay.tend(8 << 10) {
            Ok(tended) => tally.moved_bytes += tended.moved_bytes,
            Err(error) => assert!(disk.is_stopped(), "{error}"),
        },
        9 | 10 => seal(overlay, line),
        _ => apply(overlay, disk, deeds, line, tally),
    }
}

/// Seals what is durable, if nothing is sealed.
fn seal(overlay: &Arc<Overlay>, line: &mut Line) {
    if line.sealed.is_some() {
        return;
    }
    let to = overlay.hold(line.acked, u64::MAX);
    if to > line.acked {
        overlay.hold(line.acked, to);
        line.sealed = Some(to);
    } else {
        overlay.release(line.acked);
    }
}

/// Brings the sealed segment to the datacenter, unless the disk stops on the way.
fn apply(
    overlay: &Arc<Overlay>,
    disk: &SimDisk,
    deeds: &[Deed],
    line: &mut Line,
    tally: &mut Tally,
) {
    let Some(to) = line.sealed else { return };
    let mut next = line.sent.clone();
    if !read(overlay, overlay.changes(line.acked, to), &mut next, disk) {
        return;
    }
    assert!(
        next == shown(deeds, to),
        "not what the disk showed at record {to}"
    );
    line.sent = next;
    (line.acked, line.sealed) = (to, None);
    overlay.release(to);
    tally.applied += 1;
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn a_sealed_segment_survives_every_stop() {
    let first = variable("SPLICE_SEED").unwrap_or(1);
    let cases = variable("SPLICE_CUTS").unwrap_or(CASES);
    let mut tally = Tally::default();
    for seed in first..first + cases {
        println!("SPLICE_SEED={seed} SPLICE_CUTS=1");
        live(seed, &mut tally);
    }
    println!("{tally:?}");
    if cases >= CASES {
        let Tally {
            stops,
            cuts,
            resumed,
            applied,
            moved_bytes,
        } = tally;
        for (what, count) in [
            ("stops", stops),
            ("power cuts", cuts),
            ("segments gone on with", resumed),
            ("segments applied", applied),
            ("bytes moved", moved_bytes),
        ] {
            assert!(count > cases / 4, "{what}: {count}");
        }
    }
}
