//! Ten thousand small worlds, each with its own disks, line, cuts, deaths and guests; every one must end with identical bytes.
//!
//! `SPLICE_SEED=n` replays one; `SPLICE_SEEDS=n` runs more or fewer than usual.

#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use simulation::{Tally, run};

const SEEDS: u64 = 10_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn one(seed: u64) -> Tally {
    match std::panic::catch_unwind(|| run(seed)) {
        Ok(tally) => tally,
        Err(panic) => {
            eprintln!("replay: SPLICE_SEED={seed} cargo nextest run -p simulation --no-capture");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn every_world_ends_with_identical_bytes() {
    if let Some(seed) = number("SPLICE_SEED") {
        println!("seed {seed}: {:?}", one(seed));
        return;
    }
    let seeds = number("SPLICE_SEEDS").unwrap_or(SEEDS);
    let next = Arc::new(AtomicU64::new(0));
    let total = Arc::new(Mutex::new(Tally::default()));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let (next, total) = (Arc::clone(&next), Arc::clone(&total));
            std::thread::spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let tally = one(seed);
                    total.lock().unwrap().add(&tally);
                }
            })
        })
        .collect();
    for worker in workers {
        if let Err(panic) = worker.join() {
            std::panic::resume_unwind(panic);
        }
    }
    let total = *total.lock().unwrap();
    println!("{seeds} worlds: {total:?}");
    // Worlds without trouble would have proven nothing.
    assert!(total.compared > seeds && total.cuts > seeds && total.site_deaths > seeds / 2);
    assert!(total.master_deaths > seeds / 4 && total.demanded > seeds);
}

/// A seed means the same run, whenever and wherever it is run.
#[test]
fn a_seed_is_one_run() {
    for seed in [1, 77, 4_242] {
        assert_eq!(format!("{:?}", one(seed)), format!("{:?}", one(seed)));
    }
}
