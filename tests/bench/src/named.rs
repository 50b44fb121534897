//! Boot traces that name files, so that they fit every build of an image: its files lie elsewhere in each.
//!
//! A read is a list of pieces, each of a file or of the disk itself (boot loader, inodes, bitmaps: where they are follows from the size
//! of the file system). Placing such a trace on an image makes an ordinary one. See `docs/boot-trace.md`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use flate2::read::GzDecoder;

use crate::fiemap::Piece;
use crate::layout::{Layout, Placed, likeness};
use crate::trace::{READ_BYTES_MAX, READS_MAX, ReadOp, SECTOR, Trace, compress};

/// First line of such a trace.
const HEAD: &str = "# splice boot trace 2: p path | r think_us in_flight [path:]sector+sectors...";
/// Most that a line may hold: the longest path, escaped.
const LINE_BYTES_MAX: u64 = 16 * 1024;
/// Most files of a trace.
const PATHS_MAX: usize = 1_000_000;

/// A range of a file or, without one, of the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    /// Index among the paths.
    file: Option<usize>,
    offset: u64,
    len: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct NamedRead {
    think_us: u64,
    in_flight: u32,
    ranges: Vec<Range>,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    paths: Vec<Vec<u8>>,
    reads: Vec<NamedRead>,
}

impl Named {
    /// Of a trace and the image that it was recorded on.
    ///
    /// # Errors
    /// A path is too long.
    pub(crate) fn of(trace: &Trace, layout: &Layout) -> Result<Self> {
        let places = layout.by_place();
        let mut numbers: HashMap<&[u8], usize> = HashMap::new();
        let mut paths: Vec<Vec<u8>> = Vec::new();
        let mut reads = Vec::with_capacity(trace.reads.len());
        for read in &trace.reads {
            let (mut at, end) = (read.offset, read.offset + u64::from(read.len));
            let mut ranges = Vec::new();
            while at < end {
                // The first piece that is not wholly before this.
                let next = places.partition_point(|(piece, _)| piece.physical + piece.len <= at);
                let range = match places.get(next) {
                    Some((piece, name)) if piece.physical <= at => {
                        let number = *numbers.entry(name).or_insert_with(|| {
                            paths.push(name.to_vec());
                            paths.len() - 1
                        });
                        Range {
                            file: Some(number),
                            offset: at - piece.physical + piece.logical,
                            len: (piece.physical + piece.len).min(end) - at,
                        }
                    }
                    next => Range {
                        file: None,
                        offset: at,
                        len: next.map_or(end, |(piece, _)| piece.physical.min(end)) - at,
                    },
                };
                at += range.len;
                ranges.push(range);
            }
            reads.push(NamedRead {
                think_us: read.think_us,
                in_flight: read.in_flight,
                ranges,
            });
        }
        if paths
            .iter()
            .any(|path| escape(path).len() as u64 + 3 > LINE_BYTES_MAX)
        {
            bail!("a path of the image is longer than {LINE_BYTES_MAX} bytes");
        }
        Ok(Self { paths, reads })
    }

    /// The trace on an image. A read whose pieces lie apart there becomes several, which are issued at once.
    ///
    /// # Errors
    /// Nothing of it is there.
    pub(crate) fn place(&self, layout: &Layout) -> Result<(Trace, Placed)> {
        let alike = layout.by_likeness();
        let files: Vec<Option<&[Piece]>> = self
            .paths
            .iter()
            .map(|path| {
                let found = layout.file(path);
                found.or_else(|| layout.file(alike.get(&likeness(path))?))
            })
            .collect();
        let mut placed = Placed::default();
        let mut reads: Vec<ReadOp> = Vec::new();
        // Of each read, how many it became.
        let mut parts: Vec<u32> = Vec::with_capacity(self.reads.len());
        // Thoughts before reads that are not there.
        let mut owed_us = 0;
        for (index, read) in self.reads.iter().enumerate() {
            let mut runs: Vec<(u64, u64)> = Vec::new();
            for range in &read.ranges {
                placed.bytes += range.len;
                match range.file {
                    None => append(&mut runs, range.offset, range.len),
                    Some(file) => {
                        let there = on_disk(files[file].unwrap_or_default(), range);
                        let bytes: u64 = there.iter().map(|(_, len)| len).sum();
                        placed.by_name += bytes;
                        placed.lost += range.len - bytes;
                        for (offset, len) in there {
                            append(&mut runs, offset, len);
                        }
                    }
                }
            }
            let earlier = index.saturating_sub(read.in_flight as usize)..index;
            let in_flight: u32 = parts[earlier].iter().sum();
            owed_us += read.think_us;
            for (part, (offset, len)) in runs.iter().enumerate() {
                reads.push(ReadOp {
                    offset: *offset,
                    len: *len as u32,
                    think_us: if part == 0 { owed_us } else { 0 },
                    in_flight: in_flight + part as u32,
                });
            }
            if !runs.is_empty() {
                owed_us = 0;
            }
            parts.push(runs.len() as u32);
        }
        if reads.is_empty() {
            bail!("the image has nothing of what the trace reads");
        }
        Ok((Trace::new(reads), placed))
    }

    /// Share of the bytes that are of files.
    pub(crate) fn named_share(&self) -> f64 {
        let sum = |is_counted: fn(&Range) -> bool| {
            let ranges = self.reads.iter().flat_map(|read| &read.ranges);
            ranges
                .filter(|range| is_counted(range))
                .map(|range| range.len)
                .sum::<u64>() as f64
        };
        sum(|range| range.file.is_some()) / sum(|_| true).max(1.0)
    }

    /// The trace on a disk where each file has a gigabyte of its own behind the first terabyte, for tests.
    #[cfg(test)]
    pub(crate) fn side_by_side(&self) -> Trace {
        let mut layout = Layout::default();
        for (number, path) in self.paths.iter().enumerate() {
            let piece = Piece {
                logical: 0,
                physical: (1 << 40) + ((number as u64) << 30),
                len: 1 << 30,
            };
            layout.put(path, vec![piece]);
        }
        self.place(&layout).expect("every file is there").0
    }

    /// Reads one; none if it is a trace of one image's offsets.
    ///
    /// # Errors
    /// It cannot be read, or is no trace.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>> {
        let at = || path.display().to_string();
        let mut reader = BufReader::new(GzDecoder::new(File::open(path).with_context(at)?));
        let mut head = String::new();
        (&mut reader)
            .take(LINE_BYTES_MAX)
            .read_line(&mut head)
            .with_context(at)?;
        if head.trim_end() != HEAD {
            // Then it is another kind of trace, or none, as that one's reader will say.
            return Ok(None);
        }
        Self::read(reader).map(Some).with_context(at)
    }

    /// What is behind the first line.
    fn read(mut reader: impl BufRead) -> Result<Self> {
        let (mut paths, mut reads) = (Vec::new(), Vec::new());
        let (mut line, mut number) = (String::new(), 1);
        loop {
            line.clear();
            number += 1;
            let taken = (&mut reader).take(LINE_BYTES_MAX).read_line(&mut line);
            if taken.context("reading the trace")? == 0 {
                break;
            }
            if reads.len() == READS_MAX || paths.len() == PATHS_MAX {
                bail!("it has more than {READS_MAX} reads or {PATHS_MAX} files");
            }
            let wrong = || format!("line {number}");
            match line.trim_end_matches('\n').split_once(' ') {
                Some(("p", path)) => paths.push(unescape(path).with_context(wrong)?),
                Some(("r", read)) => reads.push(parse(read, paths.len()).with_context(wrong)?),
                _ => bail!("line {number} is neither a path nor a read"),
            }
        }
        if reads.is_empty() {
            bail!("it has no reads");
        }
        Ok(Self { paths, reads })
    }

    /// Writes it. A path stands before the first read of its file.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(&self, to: impl Write) -> Result<()> {
        let mut text = format!("{HEAD}\n");
        let mut said = 0;
        for read in &self.reads {
            let named = read.ranges.iter().filter_map(|range| range.file);
            for path in &self.paths[said..named.map(|file| file + 1).fold(said, usize::max)] {
                text += &format!("p {}\n", escape(path));
                said += 1;
            }
            text += &format!("r {} {}", read.think_us, read.in_flight);
            for range in &read.ranges {
                let file = range
                    .file
                    .map(|file| format!("{file}:"))
                    .unwrap_or_default();
                text += &format!(" {file}{}+{}", range.offset / SECTOR, range.len / SECTOR);
            }
            text.push('\n');
        }
        compress(&text, to)
    }
}

/// Adds a range of the disk, to the one before it if it follows that.
fn append(runs: &mut Vec<(u64, u64)>, offset: u64, len: u64) {
    match runs.last_mut() {
        Some((from, before)) if *from + *before == offset && *before + len <= READ_BYTES_MAX => {
            *before += len;
        }
        _ => runs.push((offset, len)),
    }
}

/// Where a range of a file is, of what there is of it.
fn on_disk(pieces: &[Piece], range: &Range) -> Vec<(u64, u64)> {
    let (from, to) = (range.offset, range.offset + range.len);
    let overlap = |piece: &Piece| {
        let (begin, end) = (from.max(piece.logical), to.min(piece.logical + piece.len));
        (begin < end).then(|| (begin - piece.logical + piece.physical, end - begin))
    };
    pieces.iter().filter_map(overlap).collect()
}

fn parse(read: &str, paths: usize) -> Result<NamedRead> {
    let mut words = read.split(' ');
    let mut number = || -> Result<u64> {
        let word = words.next().context("a number is missing")?;
        word.parse()
            .with_context(|| format!("{word:?} is no number"))
    };
    let (think_us, in_flight) = (number()?, number()?);
    let ranges: Vec<Range> = words
        .map(|word| parse_range(word, paths))
        .collect::<Result<_>>()?;
    let bytes = ranges
        .iter()
        .try_fold(0u64, |sum, range| sum.checked_add(range.len));
    if !bytes.is_some_and(|bytes| (1..=READ_BYTES_MAX).contains(&bytes)) {
        bail!("a read of nothing, or of more than {READ_BYTES_MAX} bytes");
    }
    Ok(NamedRead {
        think_us,
        in_flight: u32::try_from(in_flight).context("reads in flight")?,
        ranges,
    })
}

fn parse_range(word: &str, paths: usize) -> Result<Range> {
    let parsed = || {
        let (file, sectors) = match word.split_once(':') {
            Some((file, sectors)) => (Some(file.parse().ok()?), sectors),
            None => (None, word),
        };
        let (offset, len) = sectors.split_once('+')?;
        let bytes = |text: &str| text.parse::<u64>().ok()?.checked_mul(SECTOR);
        let (offset, len) = (bytes(offset)?, bytes(len)?);
        offset.checked_add(len)?;
        Some(Range { file, offset, len })
    };
    let range = parsed().with_context(|| format!("{word:?} is no range"))?;
    match range.file {
        Some(file) if file >= paths => bail!("{word:?} is of a file without a path"),
        _ => Ok(range),
    }
}

/// A path with what is no printable ASCII, and `%` itself, as `%XX`.
fn escape(path: &[u8]) -> String {
    let mut text = String::new();
    for byte in path {
        match byte {
            b'!'..=b'~' if *byte != b'%' => text.push(char::from(*byte)),
            _ => text += &format!("%{byte:02X}"),
        }
    }
    text
}

fn unescape(text: &str) -> Result<Vec<u8>> {
    let (mut path, mut rest) = (Vec::new(), text.as_bytes());
    loop {
        match rest {
            [] => return Ok(path),
            [b'%', more @ ..] => {
                let hex = more.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
                let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
                path.push(byte.context("% without two hexadecimal digits")?);
                rest = &more[2..];
            }
            [byte, more @ ..] => {
                path.push(*byte);
                rest = more;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const K: u64 = 1024;

    fn piece(logical: u64, physical: u64, len: u64) -> Piece {
        Piece {
            logical: logical * K,
            physical: physical * K,
            len: len * K,
        }
    }

    fn read(offset: u64, len: u64, think_us: u64, in_flight: u32) -> ReadOp {
        ReadOp {
            offset: offset * K,
            len: (len * K) as u32,
            think_us,
            in_flight,
        }
    }

    /// 100..116 is one file in one piece, 116..120 is between files, 120..136 is another file's second half.
    fn recorded() -> Named {
        let mut layout = Layout::default();
        layout.put(b"/boot/vmlinuz-6.1.0-9", vec![piece(0, 100, 16)]);
        layout.put(b"/etc/a b", vec![piece(0, 500, 16), piece(16, 120, 16)]);
        let trace = Trace::new(vec![
            read(0, 4, 0, 0),
            read(112, 12, 10, 0),
            read(500, 8, 20, 1),
            read(900, 4, 30, 0),
        ]);
        Named::of(&trace, &layout).unwrap()
    }

    #[test]
    fn a_trace_fits_an_image_whose_files_lie_elsewhere() {
        let named = recorded();
        let mut layout = Layout::default();
        layout.put(b"/boot/vmlinuz-6.1.0-32", vec![piece(0, 300, 16)]);
        layout.put(b"/etc/a b", vec![piece(0, 700, 18), piece(18, 900, 14)]);
        let (trace, placed) = named.place(&layout).unwrap();
        let expected = [
            read(0, 4, 0, 0),
            // Its last 4 KiB, what lay between, and the second file's 16..20, in two pieces.
            read(312, 4, 10, 0),
            read(116, 4, 0, 1),
            read(716, 2, 0, 2),
            read(900, 2, 0, 3),
            // Beside one read of four parts.
            read(700, 8, 20, 4),
            read(900, 4, 30, 0),
        ];
        assert_eq!(trace.reads, expected);
        let expected = Placed {
            bytes: 28 * K,
            by_name: 16 * K,
            lost: 0,
        };
        assert_eq!(placed, expected);
    }

    #[test]
    fn what_the_image_has_not_is_lost_and_its_thoughts_are_not() {
        let named = recorded();
        let (trace, placed) = named.place(&Layout::default()).unwrap();
        assert_eq!(
            trace.reads,
            [read(0, 4, 0, 0), read(116, 4, 10, 0), read(900, 4, 50, 0)]
        );
        assert_eq!((placed.by_name, placed.lost), (0, 16 * K));
        assert!((named.named_share() - 16.0 / 28.0).abs() < 1e-9);
    }

    #[test]
    fn on_its_own_image_it_is_the_recording() {
        let mut layout = Layout::default();
        layout.put(b"/f", vec![piece(0, 100, 16), piece(16, 116, 8)]);
        let trace = Trace::new(vec![read(96, 24, 5, 0), read(0, 4, 7, 1)]);
        let named = Named::of(&trace, &layout).unwrap();
        assert_eq!(named.place(&layout).unwrap().0, trace);
    }

    #[test]
    fn a_written_trace_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.gz");
        recorded().write(File::create(&path).unwrap()).unwrap();
        assert_eq!(Named::load(&path).unwrap().unwrap(), recorded());
        assert!(Trace::load(&path).is_err());
        let old = Trace::new(vec![read(0, 4, 0, 0)]);
        old.write(File::create(&path).unwrap()).unwrap();
        assert!(Named::load(&path).unwrap().is_none());
    }

    #[test]
    fn what_is_no_trace_is_refused_with_its_line() {
        let refused = |text: &str| format!("{:#}", Named::read(text.as_bytes()).unwrap_err());
        assert!(refused("").contains("no reads"));
        assert!(refused("p /a\nq 1\n").contains("line 3"));
        assert!(refused("r 1 0 0:1+1\n").contains("file without a path"));
        assert!(refused("p /%4\n").contains("line 2"));
        assert!(refused("r 1 0\n").contains("a read of nothing"));
        assert!(refused("r 1 0 1+99999999\n").contains("more than"));
        assert!(refused(&format!("r 1 0 {}+1\n", u64::MAX)).contains("no range"));
        assert!(refused("r 1 0 1+\n").contains("no range"));
    }
}
