//! Runs many worlds on all cores and adds up what they met.
//!
//! `SPLICE_SEED=n` replays one; `SPLICE_SEEDS=n` runs more or fewer than usual.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use simulation::Tally;

/// One kind of world.
#[derive(Clone, Copy)]
pub struct Worlds {
    /// The test's file, for the replay command.
    pub test: &'static str,
    pub seeds: u64,
    pub run: fn(u64) -> Tally,
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

impl Worlds {
    /// Runs the world of a seed; a failure says how to see it again.
    pub fn one(&self, seed: u64) -> Tally {
        match std::panic::catch_unwind(|| (self.run)(seed)) {
            Ok(tally) => tally,
            Err(panic) => {
                let test = self.test;
                eprintln!(
                    "replay: SPLICE_SEED={seed} cargo nextest run -p simulation --test {test} --no-capture"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }

    /// Runs all, and returns how many they were and what they met; `None` when only one was to be replayed.
    pub fn all(self) -> Option<(u64, Tally)> {
        if let Some(seed) = number("SPLICE_SEED") {
            println!("seed {seed}: {:?}", self.one(seed));
            return None;
        }
        let seeds = number("SPLICE_SEEDS").unwrap_or(self.seeds);
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
                        let tally = self.one(seed);
                        *total.lock().unwrap() += tally;
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
        Some((seeds, total))
    }

    /// A seed means the same run, whenever and wherever it is run.
    pub fn repeat(&self, seeds: &[u64]) {
        for seed in seeds {
            let (one, other) = (self.one(*seed), self.one(*seed));
            assert_eq!(format!("{one:?}"), format!("{other:?}"), "seed {seed}");
        }
    }
}
