//! `ingest`: a whole desktop disk into an empty store, and its upgrade behind it.

use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::images::Images;
use crate::process::{Program, is_installed};
use crate::row::Metric;
use crate::session::{Recorder, SPLICE, Session, has_turn, rounds};
use crate::stores::{Filled, SYSTEMS, Store, is_there};

/// What a compressor's speed is measured on, in bytes of data.
const SAMPLE_BYTES: usize = 256 << 20;

/// The cases, in the order of filling.
const CASES: [&str; 3] = ["v1", "v2-after-v1", "v3-after-v2"];

/// What this machine can do at most, in 10^6 bytes a second.
struct Limits {
    /// zstd level 3 on all cores, of data that is not zero.
    zstd: f64,
    /// Reading from the page cache with one thread.
    read: f64,
}

/// The measure that holds a system's filling in one round.
pub(crate) fn key(system: &str, round: usize) -> String {
    format!("fill/{system}/{round}")
}

/// Runs the bench. Peers take version 3 in too: `update` needs what the stores grow by.
///
/// # Errors
/// Interrupted, or the disks cannot be made.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let quick = session.settings.quick;
    let rounds = rounds(quick);
    let planned_s: f64 = SYSTEMS
        .iter()
        .filter(|(system, _)| is_installed(system) || *system == SPLICE)
        .map(|(system, seconds)| {
            let turns = (0..rounds).filter(|round| has_turn(system, *round));
            seconds * turns.count() as f64
        })
        .sum();
    let images = session.begin("ingest", planned_s + 20.0, 3)?;
    let mut data_mb = [0.0; 3];
    for (index, mb) in data_mb.iter_mut().enumerate() {
        *mb = images.data_mb(index as u32 + 1)?;
    }
    let limits = limits(session, &images)?;
    let systems: Vec<_> = SYSTEMS
        .into_iter()
        .filter(|(system, _)| is_there(session, system))
        .collect();
    let workshop = session.workshop.clone();
    for round in 0..rounds {
        let turns = systems.iter().filter(|(system, _)| has_turn(system, round));
        for (system, seconds) in turns {
            session.measure(&key(system, round), system, *seconds, |recorder| {
                let store = Store::create(&workshop, system)?;
                // Ours crosses the line in `update` with a store of its own.
                let versions = if quick && *system == SPLICE {
                    2
                } else {
                    CASES.len()
                };
                for (index, case) in CASES.iter().enumerate().take(versions) {
                    let version = index as u32 + 1;
                    let filled = store.fill(&images, version)?;
                    record(recorder, case, &filled, data_mb[index], &limits);
                    if !quick && round == 0 {
                        store.verify(&images, version)?;
                    }
                }
                Ok(())
            })?;
            workshop.discard("store");
        }
    }
    Ok(())
}

fn record(recorder: &mut Recorder, case: &str, filled: &Filled, data_mb: f64, limits: &Limits) {
    // A first version is all new, so nobody stores it faster than the compressor runs; a later one must at least be read.
    let limit = if case == "v1" {
        limits.zstd
    } else {
        limits.read
    };
    recorder.put(
        case,
        Metric::MbPerS,
        data_mb / filled.usage.seconds,
        Some(limit),
    );
    recorder.put(case, Metric::CpuS, filled.usage.cpu_s, None);
    recorder.put(case, Metric::RssMb, filled.usage.rss_mb, None);
    recorder.put(case, Metric::StoredBytes, filled.grown_bytes, None);
    if let Some(index) = filled.index_bytes {
        recorder.put(&format!("{case}-index"), Metric::StoredBytes, index, None);
    }
}

fn limits(session: &Session, images: &Images) -> Result<Limits> {
    let folder = session.scratch("sample")?;
    let sample = folder.join("data");
    images.sample(1, SAMPLE_BYTES, &sample)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let bench = Program::new("zstd")
        .args(["-b3", "-i3", &format!("-T{threads}")])
        .arg(&sample)
        .run(&folder, Duration::from_secs(120))?;
    let zstd =
        zstd_rate(&bench.stdout).with_context(|| format!("zstd -b said {:?}", bench.stdout))?;
    let mut file = std::fs::File::open(&sample).context("the sample")?;
    let (mut bytes, mut piece, begun) = (0, vec![0; 1 << 20], Instant::now());
    loop {
        match file.read(&mut piece).context("the sample")? {
            0 => break,
            read => bytes += read,
        }
    }
    let read = bytes as f64 / 1e6 / begun.elapsed().as_secs_f64();
    Ok(Limits { zstd, read })
}

/// Of ` 3#data  : 268435456 ->  93000000 (x2.886),  525.1 MB/s, 1100.2 MB/s`, the first rate. Progress is overwritten by
/// carriage returns; the last state counts.
fn zstd_rate(said: &str) -> Option<f64> {
    let line = said
        .split(['\r', '\n'])
        .rfind(|line| line.contains("MB/s"))?;
    let before = line.split("MB/s").next()?;
    before
        .split_whitespace()
        .last()?
        .trim_start_matches(',')
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_zstd_says_of_its_speed_is_read() {
        let said = "\r 3#data : 268435456 -> \r 3#data : 268435456 ->  93000000 (x2.886),  525.1 MB/s \r 3#data              : 268435456 ->  93000000 (x2.886),  527.5 MB/s, 1100.2 MB/s \n";
        assert_eq!(zstd_rate(said), Some(527.5));
        assert_eq!(zstd_rate("nothing"), None);
    }
}
