//! Boot traces: what a guest reads, in which order, how many at once, and what it thinks between. See `docs/boot-trace.md`.
//!
//! A trace is made of the log of nbdkit's log filter, which has the begin and the end of each read. From these follows how long
//! the guest thought *after* its earlier reads were answered, so that a replay against a slower disk takes longer by that disk's
//! slowness only.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

/// First line of a trace.
const HEAD: &str = "# splice boot trace 1: sector sectors think_us in_flight";
/// Unit of offsets and lengths, in bytes.
const SECTOR: u64 = 512;
/// Most that a line may hold, a guard against a file that is none.
const LINE_BYTES_MAX: u64 = 256;
/// Most reads of a trace: ten times a desktop's.
const READS_MAX: usize = 1_000_000;
/// Longest read, in bytes: what an NBD server must accept.
const READ_BYTES_MAX: u64 = 32 << 20;

/// A boot has settled when it reads nothing for so long; what comes later (a screen that locks, a daily job) is not of it.
const SETTLED_US: u64 = 60_000_000;

/// One read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReadOp {
    pub(crate) offset: u64,
    pub(crate) len: u32,
    /// From when it could have been issued (the read before it was issued, and all but `in_flight` of the earlier ones were
    /// answered) until it was, in microseconds.
    pub(crate) think_us: u64,
    /// Earlier reads that had not been answered when it was issued.
    pub(crate) in_flight: u32,
}

/// A boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trace {
    pub(crate) reads: Vec<ReadOp>,
    /// What the guest thought in all, of the whole boot even where `reads` are a part of it.
    think_us: u64,
}

/// How a trace is made.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What `nbdkit --filter=log … logfile=LOG` wrote.
    log: PathBuf,
    /// The trace (gzip).
    out: PathBuf,
}

/// Makes a trace of a log.
///
/// # Errors
/// The log cannot be read, or holds no reads.
pub(crate) fn convert(options: &Options) -> Result<()> {
    let log = File::open(&options.log).with_context(|| options.log.display().to_string())?;
    let trace = Trace::of_log(BufReader::new(log))?;
    let file = File::create(&options.out).with_context(|| options.out.display().to_string())?;
    trace.write(file)?;
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

impl Trace {
    /// Reads a trace.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        Self::read(GzDecoder::new(file)).with_context(|| path.display().to_string())
    }

    fn read(reader: impl Read) -> Result<Self> {
        let mut reader = BufReader::new(reader);
        let mut line = String::new();
        let mut next = |line: &mut String| {
            line.clear();
            (&mut reader)
                .take(LINE_BYTES_MAX)
                .read_line(line)
                .context("reading the trace")
        };
        next(&mut line)?;
        if line.trim_end() != HEAD {
            bail!("it does not begin with {HEAD:?}");
        }
        let mut reads = Vec::new();
        while next(&mut line)? > 0 {
            if reads.len() == READS_MAX {
                bail!("it has more than {READS_MAX} reads");
            }
            let number = reads.len() + 2;
            let fields: Vec<u64> = line
                .split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect();
            let &[sector, sectors, think_us, in_flight] = &fields[..] else {
                bail!("line {number} is not four numbers");
            };
            let len = sectors
                .checked_mul(SECTOR)
                .filter(|len| (1..=READ_BYTES_MAX).contains(len));
            let (Some(len), Some(offset)) = (len, sector.checked_mul(SECTOR)) else {
                bail!("line {number} reads {sectors} sectors at {sector}");
            };
            reads.push(ReadOp {
                offset,
                len: len as u32,
                think_us,
                in_flight: u32::try_from(in_flight).with_context(|| format!("line {number}"))?,
            });
        }
        if reads.is_empty() {
            bail!("it has no reads");
        }
        Ok(Self::new(reads))
    }

    fn write(&self, to: impl Write) -> Result<()> {
        let mut text = format!("{HEAD}\n");
        for read in &self.reads {
            let (sector, sectors) = (read.offset / SECTOR, u64::from(read.len) / SECTOR);
            text += &format!("{sector} {sectors} {} {}\n", read.think_us, read.in_flight);
        }
        let mut gzip = GzEncoder::new(to, Compression::best());
        gzip.write_all(text.as_bytes())
            .and_then(|()| gzip.finish())
            .map(drop)
            .context("writing the trace")
    }

    /// Of lines such as `2026-11-23 18:28:50.734768 connection=2 Read id=3469 offset=0x188685000 count=0x8000 ...` and
    /// `… connection=2 ...Read id=3469 return=0`.
    fn of_log(log: impl BufRead) -> Result<Self> {
        let mut logged: Vec<Logged> = Vec::new();
        let mut open: HashMap<(String, String), usize> = HashMap::new();
        for line in log.lines() {
            let line = line.context("reading the log")?;
            let words: Vec<&str> = line.split_whitespace().collect();
            let (Some(time), Some(connection), Some(verb)) =
                (words.get(1), words.get(2), words.get(3))
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
        Ok(Self::of_logged(&logged))
    }

    fn of_logged(logged: &[Logged]) -> Self {
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
        Self::new(reads)
    }

    /// Of reads.
    pub(crate) fn new(reads: Vec<ReadOp>) -> Self {
        let think_us = reads.iter().map(|read| read.think_us).sum();
        Self { reads, think_us }
    }

    /// What the guest reads once its kernel runs. A branch hands kernel and initial RAM disk to the machine by itself, so
    /// that nobody reads them from the disk there. Firmware and boot loader read in pieces of up to 32 KiB, and nothing of 4 KiB
    /// at the disk's beginning; a kernel looks for the partition table there first.
    pub(crate) fn without_loader(&self) -> Self {
        let first = self
            .reads
            .iter()
            .position(|read| read.offset == 0 && read.len >= 4096);
        let mut reads = self.reads[first.unwrap_or(0)..].to_vec();
        if let Some(first) = reads.first_mut() {
            first.think_us = 0;
        }
        Self {
            reads,
            think_us: self.think_us,
        }
    }

    /// Bytes of all reads.
    pub(crate) fn bytes(&self) -> u64 {
        self.reads.iter().map(|read| u64::from(read.len)).sum()
    }

    /// Bytes of distinct 4 KiB blocks.
    pub(crate) fn distinct_bytes(&self) -> u64 {
        let blocks =
            |read: &ReadOp| read.offset / 4096..(read.offset + u64::from(read.len)).div_ceil(4096);
        let distinct: std::collections::HashSet<u64> = self.reads.iter().flat_map(blocks).collect();
        distinct.len() as u64 * 4096
    }

    /// What the guest thought in all.
    pub(crate) fn think_s(&self) -> f64 {
        self.think_us as f64 / 1e6
    }
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
        let trace = Trace::of_log(LOG.as_bytes()).unwrap();
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

    #[test]
    fn the_loaders_reads_can_be_left_out() {
        let read = |offset, len| ReadOp {
            offset,
            len,
            think_us: 10,
            in_flight: 0,
        };
        let trace = Trace::new(vec![
            read(0, 512),
            read(1 << 20, 32768),
            read(0, 4096),
            read(8192, 4096),
        ]);
        let kernel = trace.without_loader();
        assert_eq!(
            kernel.reads,
            [
                ReadOp {
                    think_us: 0,
                    ..read(0, 4096)
                },
                read(8192, 4096)
            ]
        );
        assert_eq!(kernel.think_s(), trace.think_s());
    }

    #[test]
    fn a_written_trace_reads_back() {
        let trace = Trace::of_log(LOG.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        trace.write(&mut bytes).unwrap();
        assert_eq!(Trace::read(GzDecoder::new(&bytes[..])).unwrap(), trace);
    }

    #[test]
    fn what_is_no_trace_is_refused_with_its_line() {
        let refused = |text: &str| Trace::read(text.as_bytes()).unwrap_err().to_string();
        assert!(refused("0 512 0.1\n").contains("does not begin"));
        assert!(refused(&format!("{HEAD}\n")).contains("no reads"));
        assert!(refused(&format!("{HEAD}\n1 2 3 4\n1 2 x 4\n")).contains("line 3"));
        assert!(refused(&format!("{HEAD}\n1 0 3 4\n")).contains("line 2 reads 0"));
        assert!(refused(&format!("{HEAD}\n{} 1 3 4\n", u64::MAX)).contains("line 2"));
        assert!(refused(&format!("{HEAD}\n{}\n", "7".repeat(1000))).contains("line 2"));
    }

    #[test]
    fn the_trace_in_the_tree_is_a_desktops_boot() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces/debian12-xfce.trace.gz");
        assert!(std::fs::metadata(&path).unwrap().len() <= 150_000);
        let trace = Trace::load(&path).unwrap();
        assert!(trace.reads.len() > 5000, "{}", trace.reads.len());
        assert!(
            trace.distinct_bytes() > 300_000_000,
            "{}",
            trace.distinct_bytes()
        );
        assert!(trace.think_s() > 60.0, "{}", trace.think_s());
        let loader = trace.bytes() - trace.without_loader().bytes();
        assert!(
            (40_000_000..80_000_000).contains(&loader),
            "kernel and initrd: {loader}"
        );
    }
}
