//! Files of updates under power cuts and killed processes.
//!
//! Whatever happened, a batch that is handed out is the one that was appended under its number; after the death of the process every
//! appended batch is there; a file under its final name is whole. `SPLICE_CUTS` sets the number of cases, `SPLICE_SEED` the first.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::ErrorKind;

use bytes::Bytes;
use crash::{Rng, SimDisk};
use datacenter::update::Pair;
use datacenter::update::file::{Identity, UpdateFile, UpdateFileError, names};
use dedup::update::{BatchPlan, UpdateBatch};
use dedup::{IdKey, RealmId, VersionId};

const CASES: u64 = 400;

fn identity() -> Identity {
    let pair = Pair {
        parent: VersionId([1; 32]),
        version: VersionId([2; 32]),
    };
    Identity::new(RealmId([3; 16]), &IdKey::new([4; 32]), pair)
}

fn batch(number: u32) -> UpdateBatch {
    let mut rng = Rng::new(u64::from(number));
    let len = 1 + rng.below(9000) as usize;
    UpdateBatch {
        first: number * 3,
        count: 3,
        prefix: (0..number * 3).step_by(2).collect(),
        packed: Bytes::from(rng.bytes(len)),
    }
}

fn plans(count: u32) -> Vec<BatchPlan> {
    (0..count).map(|number| batch(number).plan()).collect()
}

#[derive(Debug, Default)]
struct Tally {
    deaths: u64,
    resumed: u64,
    kept: u64,
    lost: u64,
    begun_anew: u64,
}

fn check(file: &UpdateFile, count: u32) -> Vec<u32> {
    assert_eq!(file.plans(), plans(count));
    let missing = file.missing();
    for number in 0..count {
        let read = file.read(number).unwrap();
        assert_eq!(read.is_none(), missing.contains(&number));
        if let Some(bytes) = read {
            assert_eq!(UpdateBatch::decode(&bytes).unwrap(), batch(number));
        }
    }
    missing
}

fn case(seed: u64, tally: &mut Tally) {
    let mut rng = Rng::new(seed);
    let mut disk = SimDisk::new(seed);
    let (whole, part) = names(&identity().pair);
    let count = rng.below(12) as u32;
    // What returned, and whether only processes died since it was last looked at.
    let (mut appended, mut only_killed, mut created) = (Vec::new(), true, false);
    loop {
        match UpdateFile::open(&disk, &whole, &identity()) {
            Ok(file) => {
                assert!(check(&file, count).is_empty());
                return;
            }
            Err(UpdateFileError::Io(e)) if e.kind() == ErrorKind::NotFound => {}
            Err(error) => panic!("a file under its final name: {error}"),
        }
        disk.stop_after(rng.below(30));
        let lived = live(&disk, &part, &whole, count, &mut rng, |file| {
            let missing = check(file, count);
            tally.resumed += 1;
            tally.kept += u64::from(count) - missing.len() as u64;
            let lost = missing.iter().filter(|n| appended.contains(*n)).count();
            tally.lost += lost as u64;
            assert!(
                !only_killed || lost == 0,
                "a killed process lost {lost} batches"
            );
            appended.retain(|number| !missing.contains(number));
            only_killed = true;
        });
        if lived.anew {
            tally.begun_anew += 1;
            assert!(!created, "a created file is gone or damaged");
            appended.clear();
        }
        created |= lived.created;
        appended.extend(lived.appended);
        tally.deaths += 1;
        let killed = rng.one_in(2);
        only_killed &= killed;
        disk = if killed {
            disk.clone_live()
        } else {
            disk.crash(rng.bits())
        };
    }
}

#[derive(Default)]
struct Lived {
    /// Nothing that can be gone on with was found.
    anew: bool,
    created: bool,
    appended: Vec<u32>,
}

/// One process: it finds what is there and goes on, until the machine stops.
fn live(
    disk: &SimDisk,
    part: &str,
    whole: &str,
    count: u32,
    rng: &mut Rng,
    found: impl FnOnce(&UpdateFile),
) -> Lived {
    use dedup_store::disk::Disk;
    let mut lived = Lived::default();
    let file = match UpdateFile::resume(disk, part, &identity()) {
        Ok(file) => {
            if disk.is_stopped() {
                return lived;
            }
            found(&file);
            lived.created = true;
            file
        }
        Err(_) if disk.is_stopped() => return lived,
        Err(error) => {
            lived.anew = true;
            if let UpdateFileError::Damaged { .. } = error
                && disk.remove(part).is_err()
            {
                return lived;
            }
            match UpdateFile::create(disk, part, &identity(), plans(count), 1) {
                Ok(file) => file,
                Err(_) => {
                    assert!(disk.is_stopped());
                    return lived;
                }
            }
        }
    };
    lived.created = true;
    let mut missing = file.missing();
    while !missing.is_empty() {
        let number = missing.swap_remove(rng.below(missing.len() as u64) as usize);
        if file.append(number, &batch(number)).is_err() {
            assert!(disk.is_stopped());
            return lived;
        }
        lived.appended.push(number);
    }
    if file.finish(disk, whole).is_err() {
        assert!(disk.is_stopped());
    }
    lived
}

#[test]
fn no_cut_and_no_kill_makes_a_wrong_update() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |t| t.parse().unwrap());
    let first = number("SPLICE_SEED", 0);
    let mut tally = Tally::default();
    for seed in first..first + number("SPLICE_CUTS", CASES) {
        let run = std::panic::AssertUnwindSafe(|| case(seed, &mut tally));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("replay: SPLICE_CUTS=1 SPLICE_SEED={seed} cargo test -p crash --test update");
            std::panic::resume_unwind(panic);
        }
    }
    println!("{tally:?}");
    // A world without deaths and losses would have proven nothing.
    if number("SPLICE_CUTS", CASES) >= CASES {
        assert!(
            tally.deaths > 200 && tally.resumed > 100 && tally.lost > 20,
            "{tally:?}"
        );
    }
}
