//! How a trace is made of the log of nbdkit's log filter, which has the begin and the end of each read.
//!
//! From these follows how long the guest thought *after* its earlier reads were answered, so that a replay against a slower disk
//! takes longer by that disk's slowness only. With the image that was booted, what lies in files is named by them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::layout::{Layout, in_own_mounts};
use crate::named::Named;
use crate::trace::{ReadOp, SECTOR, Trace};

/// A boot has settled when it reads nothing for so long; what comes later (a screen that locks, a daily job) is not of it.
const SETTLED_US: u64 = 60_000_000;

/// How a trace is made.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What `nbdkit --filter=log … logfile=LOG` wrote.
    log: PathBuf,
    /// The trace (gzip).
    out: PathBuf,
    /// The image that was booted, as it was then: reads of files are named by them, so that the trace fits another build of it.
    /// Needs root. Without it the trace is of this image alone.
    #[arg(long)]
    image: Option<PathBuf>,
}

/// Makes a trace of a log.
///
/// # Errors
/// The log cannot be read, or holds no reads; the image cannot be mounted.
pub(crate) fn convert(options: &Options) -> Result<()> {
    if options.image.is_some() && !in_own_mounts()? {
        return Ok(());
    }
    let log = File::open(&options.log).with_context(|| options.log.display().to_string())?;
    let trace = of_log(BufReader::new(log))?;
    let create = || File::create(&options.out).with_context(|| options.out.display().to_string());
    match &options.image {
        None => trace.write(create()?)?,
        Some(image) => {
            let named = Named::of(&trace, &Layout::of_image(image)?)?;
            println!(
                "{:.1} % of the bytes are of files",
                named.named_share() * 100.0
            );
            named.write(create()?)?;
        }
    }
    println!(
        "{} reads, {:.1} MB, {:.0} s of thinking",
        trace.reads.len(),
        trace.bytes() as f64 / 1e6,
        trace.think_s()
    );
    Ok(())
}

/// When a logged read began and ended, in microseconds of the day's clock.
struct Logged {
    offset: u64,
    len: u64,
    begin_us: u64,
    end_us: Option<u64>,
}

/// Of lines such as `2026-11-23 18:28:50.734768 connection=2 Read id=3469 offset=0x188685000 count=0x8000 ...` and
/// `… connection=2 ...Read id=3469 return=0`.
fn of_log(log: impl BufRead) -> Result<Trace> {
    let mut logged: Vec<Logged> = Vec::new();
    let mut open: HashMap<(String, String), usize> = HashMap::new();
    for line in log.lines() {
        let line = line.context("reading the log")?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let (Some(time), Some(connection), Some(verb)) = (words.get(1), words.get(2), words.get(3))
        else {
            continue;
        };
        let field = |name: &str| words.iter().find_map(|word| word.strip_prefix(name));
        let Some(id) = field("id=").map(|id| ((*connection).to_owned(), id.to_owned())) else {
            continue;
        };
        match *verb {
            "Read" => {
                let hex =
                    |name: &str| u64::from_str_radix(field(name)?.strip_prefix("0x")?, 16).ok();
                let (Some(offset), Some(len)) = (hex("offset="), hex("count=")) else {
                    bail!("a read without offset or count: {line:?}");
                };
                open.insert(id, logged.len());
                logged.push(Logged {
                    offset,
                    len,
                    begin_us: clock_us(time)?,
                    end_us: None,
                });
            }
            "...Read" => {
                if let Some(index) = open.remove(&id) {
                    logged[index].end_us = Some(clock_us(time)?);
                }
            }
            _ => {}
        }
    }
    if logged.is_empty() {
        bail!("the log has no reads");
    }
    let settled = logged
        .windows(2)
        .position(|pair| pair[1].begin_us.saturating_sub(pair[0].begin_us) >= SETTLED_US);
    logged.truncate(settled.map_or(logged.len(), |last| last + 1));
    Ok(of_logged(&logged))
}

fn of_logged(logged: &[Logged]) -> Trace {
    let mut reads = Vec::with_capacity(logged.len());
    let ended = |read: &Logged, at: u64| read.end_us.is_some_and(|end| end <= at);
    // Ends of the earlier reads in order of time: the replay waits for all but `in_flight`, whichever they are.
    let mut ends: Vec<u64> = Vec::new();
    for (index, read) in logged.iter().enumerate() {
        let in_flight = logged[..index]
            .iter()
            .rev()
            .take(64)
            .filter(|earlier| !ended(earlier, read.begin_us))
            .count();
        let answered = ends
            .len()
            .checked_sub(1 + in_flight)
            .map_or(0, |last| ends[last]);
        let issued = index
            .checked_sub(1)
            .map_or(read.begin_us, |before| logged[before].begin_us);
        reads.push(ReadOp {
            offset: read.offset / SECTOR * SECTOR,
            len: (read.offset % SECTOR + read.len).div_ceil(SECTOR) as u32 * SECTOR as u32,
            think_us: read.begin_us.saturating_sub(issued.max(answered)),
            in_flight: in_flight as u32,
        });
        let end = read.end_us.unwrap_or(u64::MAX);
        let place = ends.partition_point(|earlier| *earlier <= end);
        ends.insert(place, end);
    }
    Trace::new(reads)
}

/// Microseconds since midnight of `18:28:50.734768`. A boot over midnight loses one gap.
fn clock_us(text: &str) -> Result<u64> {
    let parts: Vec<&str> = text.split([':', '.']).collect();
    let numbers: Vec<u64> = parts.iter().filter_map(|part| part.parse().ok()).collect();
    match numbers[..] {
        [hours, minutes, seconds, us] => {
            Ok(((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + us)
        }
        _ => bail!("{text:?} is not a time of day"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LOG: &str = "\
2026-11-23 18:00:00.000000 Ready thread_model=3
2026-11-23 18:00:01.000000 connection=2 Read id=1 offset=0x0 count=0x200 ...
2026-11-23 18:00:01.000500 connection=2 ...Read id=1 return=0
2026-11-23 18:00:02.000500 connection=2 Read id=2 offset=0x100000 count=0x8000 ...
2026-11-23 18:00:02.000600 connection=2 Read id=3 offset=0x108000 count=0x8000 ...
2026-11-23 18:00:02.001000 connection=2 ...Read id=2 return=0
2026-11-23 18:00:02.002000 connection=2 ...Read id=3 return=0
2026-11-23 18:00:02.002500 connection=2 Read id=4 offset=0x200 count=0x1000 ...
2026-11-23 18:00:02.002600 connection=2 Flush id=5 ...
2026-11-23 18:05:00.000000 connection=2 Read id=6 offset=0x200 count=0x1000 ...
";

    #[test]
    fn thinking_is_what_remains_when_waiting_is_taken_away() {
        let trace = of_log(LOG.as_bytes()).unwrap();
        let think: Vec<_> = trace
            .reads
            .iter()
            .map(|read| (read.think_us, read.in_flight))
            .collect();
        assert_eq!(think, [(0, 0), (1_000_000, 0), (100, 1), (500, 0)]);
        assert_eq!(
            trace.reads[1],
            ReadOp {
                offset: 1 << 20,
                len: 32768,
                think_us: 1_000_000,
                in_flight: 0
            }
        );
        assert_eq!(trace.distinct_bytes(), 4096 * 18);
    }
}
