//! Boot traces: what a guest reads, in which order, how many at once, and what it thinks between. See `docs/boot-trace.md`.
//!
//! Here reads have offsets of one image. A recording that names files ([`crate::named`]) is placed on an image first.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

/// First line of a trace.
const HEAD: &str = "# splice boot trace 1: sector sectors think_us in_flight";
/// Unit of offsets and lengths, in bytes.
pub(crate) const SECTOR: u64 = 512;
/// Most that a line may hold, a guard against a file that is none.
const LINE_BYTES_MAX: u64 = 256;
/// Most reads of a trace: ten times a desktop's.
pub(crate) const READS_MAX: usize = 1_000_000;
/// Longest read, in bytes: what an NBD server must accept.
pub(crate) const READ_BYTES_MAX: u64 = 32 << 20;

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

    /// Writes it.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(&self, to: impl Write) -> Result<()> {
        let mut text = format!("{HEAD}\n");
        for read in &self.reads {
            let (sector, sectors) = (read.offset / SECTOR, u64::from(read.len) / SECTOR);
            text += &format!("{sector} {sectors} {} {}\n", read.think_us, read.in_flight);
        }
        compress(&text, to)
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

/// Writes the text of a trace.
///
/// # Errors
/// It cannot be written.
pub(crate) fn compress(text: &str, to: impl Write) -> Result<()> {
    let mut gzip = GzEncoder::new(to, Compression::best());
    gzip.write_all(text.as_bytes())
        .and_then(|()| gzip.finish())
        .map(drop)
        .context("writing the trace")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
        let read = |offset, len, in_flight| ReadOp {
            offset,
            len,
            think_us: 7,
            in_flight,
        };
        let trace = Trace::new(vec![read(1 << 20, 32768, 0), read(512, 4096, 1)]);
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

    /// An old one is of one image's offsets, a new one names files.
    #[test]
    fn the_trace_in_the_tree_is_a_desktops_boot() {
        use crate::named::Named;
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces/debian12-xfce.trace.gz");
        assert!(std::fs::metadata(&path).unwrap().len() <= 300_000);
        let trace = match Named::load(&path).unwrap() {
            Some(named) => {
                assert!(named.named_share() > 0.5, "{}", named.named_share());
                named.side_by_side()
            }
            None => Trace::load(&path).unwrap(),
        };
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
