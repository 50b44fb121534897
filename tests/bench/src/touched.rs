//! The recorded boot on the disk that it is replayed on, and what of the disk it touches.
//!
//! A trace of another build of the image would read whatever lies at its offsets there, for the most part nothing; such a replay says
//! nothing of a boot. Invariant: nine tenths of what is replayed is data.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flate2::Crc;

use crate::images::Images;
use crate::layout::Placed;
use crate::named::Named;
use crate::process::Program;
use crate::session::Session;
use crate::trace::Trace;
use crate::workshop::Workshop;

/// The recorded boot, in the tree.
pub(crate) const TRACE: &str = "tests/bench/traces/debian12-xfce.trace.gz";

/// Least share of replayed blocks that are not zero.
const DATA_SHARE_MIN: f64 = 0.9;

/// Unit in which reads are counted, in bytes.
const BLOCK: u64 = 4096;
/// Unit of compression, in bytes: a chunk's mean.
const PIECE: u64 = 16 * 1024;

/// Asking 100,000 files of a cold image where they are.
const PLACING: Duration = Duration::from_secs(900);

/// See the module.
pub(crate) struct Touched {
    pub(crate) trace: Trace,
    /// What must reach somebody who has nothing: the touched pieces of 16 KiB, compressed one by one by zstd level 3.
    pub(crate) zstd_bytes: f64,
}

impl Touched {
    /// Of version 1 of the desktop, of which the recording is.
    ///
    /// # Errors
    /// The trace is not there, or is not of this disk.
    pub(crate) fn of(session: &mut Session, images: &Images) -> Result<Self> {
        let (workshop, disk) = (session.workshop.clone(), images.version(1));
        let (trace, placed) = place(&workshop, images, 1)?;
        let scratch = session.scratch("touched")?;
        let data_share = look(&trace, &disk, &scratch.join("pieces"))?;
        let by_name = placed.map_or(String::new(), |placed| {
            let share = |bytes: u64| bytes as f64 * 100.0 / placed.bytes.max(1) as f64;
            format!(
                " {:.1} % of its bytes are placed by the names of their files, {:.1} % are of files that this build has not.",
                share(placed.by_name),
                share(placed.lost)
            )
        });
        session.note(&format!(
            "the trace has {} reads of {:.0} MB of distinct blocks, of which {:.1} % are not zero on this disk.{by_name}",
            trace.reads.len(),
            trace.distinct_bytes() as f64 / 1e6,
            data_share * 100.0
        ))?;
        if data_share < DATA_SHARE_MIN {
            bail!(
                "the trace is not of this disk: only {:.0} % of the blocks that it reads are not zero; record one with ./x lab trace {} {TRACE}",
                data_share * 100.0,
                disk.display()
            );
        }
        let zstd_bytes = packed(&scratch)?;
        workshop.discard("touched");
        Ok(Self { trace, zstd_bytes })
    }
}

/// The recorded boot on another version of the desktop, as far as that has the files.
///
/// # Errors
/// The trace is not there, or cannot be placed.
pub(crate) fn trace_on(session: &Session, images: &Images, version: u32) -> Result<Trace> {
    let (trace, _) = place(&session.workshop, images, version)?;
    session.workshop.discard("touched");
    Ok(trace)
}

/// The trace with offsets of a version's disk; how it was placed, if it names files. That is kept as long as the disk and the trace are the
/// same.
fn place(workshop: &Workshop, images: &Images, version: u32) -> Result<(Trace, Option<Placed>)> {
    let path = workshop.tree(TRACE);
    if Named::load(&path)?.is_none() {
        return Ok((Trace::load(&path)?, None));
    }
    let mut crc = Crc::new();
    crc.update(&std::fs::read(&path).with_context(|| path.display().to_string())?);
    let stamp = Images::stamp(images.folder(), version);
    let stem = format!("placed-{:08x}-{stamp:.16}", crc.sum());
    let (trace, said) = (
        workshop.file(&format!("{stem}.trace.gz")),
        workshop.file(&format!("{stem}.json")),
    );
    if stamp.is_empty() || !said.exists() {
        eprintln!("==> placing the trace's files on the disk");
        let done = Program::new(workshop.program("bench"))
            .arg("place")
            .arg(images.version(version))
            .args([&path, &trace])
            .run(&workshop.scratch("touched")?, PLACING)
            .context("placing the trace on the disk")?;
        std::fs::write(&said, done.stdout).with_context(|| said.display().to_string())?;
    }
    let said = std::fs::read_to_string(&said).with_context(|| said.display().to_string())?;
    let placed = serde_json::from_str(said.trim()).context("how the trace was placed")?;
    Ok((Trace::load(&trace)?, Some(placed)))
}

/// Reads what the trace touches, and writes the pieces that it lies in to a file. Returns the share of touched blocks that are not zero.
fn look(trace: &Trace, disk: &Path, pieces: &Path) -> Result<f64> {
    // Piece → which of its blocks are touched.
    let mut touched: BTreeMap<u64, u8> = BTreeMap::new();
    for read in &trace.reads {
        for block in read.offset / BLOCK..(read.offset + u64::from(read.len)).div_ceil(BLOCK) {
            let in_piece = PIECE / BLOCK;
            *touched.entry(block / in_piece).or_default() |= 1 << (block % in_piece);
        }
    }
    let at = || disk.display().to_string();
    let file = File::open(disk).with_context(at)?;
    let size = file.metadata().with_context(at)?.len();
    let mut out = BufWriter::new(File::create(pieces).context("the pieces")?);
    let (mut blocks, mut data) = (0u64, 0u64);
    let mut buffer = vec![0; PIECE as usize];
    for (piece, mask) in touched {
        blocks += u64::from(mask.count_ones());
        let offset = piece * PIECE;
        let len = size.saturating_sub(offset).min(PIECE) as usize;
        file.read_exact_at(&mut buffer[..len], offset)
            .with_context(at)?;
        let is_data = |block: &[u8]| block.iter().any(|byte| *byte != 0);
        let with_data = buffer[..len].chunks(BLOCK as usize).enumerate();
        data += with_data
            .filter(|(index, block)| mask & (1 << index) != 0 && is_data(block))
            .count() as u64;
        if is_data(&buffer[..len]) {
            out.write_all(&buffer[..len]).context("the pieces")?;
        }
    }
    out.flush().context("the pieces")?;
    Ok(data as f64 / blocks.max(1) as f64)
}

/// What the pieces are compressed one by one.
fn packed(scratch: &Path) -> Result<f64> {
    let bench = Program::new("zstd")
        .args(["-b3", "-i1", &format!("-B{PIECE}"), "pieces"])
        .folder(scratch)
        .run(scratch, Duration::from_secs(300))?;
    packed_bytes(&bench.stdout).with_context(|| format!("zstd -b said {:?}", bench.stdout))
}

/// Of ` 3#pieces  : 268435456 ->  93000000 (x2.886),  525.1 MB/s`, the second number.
fn packed_bytes(said: &str) -> Option<f64> {
    let mut lines = said.split(['\r', '\n']);
    let line = lines.rfind(|line| line.contains("->") && line.contains("MB/s"))?;
    let (_, packed) = line.split_once("->")?;
    packed.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::trace::ReadOp;

    #[test]
    fn blocks_that_are_read_and_zero_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        let mut bytes = vec![0; 100 * 1024];
        bytes[4096] = 1;
        bytes[60_000] = 1;
        std::fs::write(&disk, &bytes).unwrap();
        let read = |offset, len| ReadOp {
            offset,
            len,
            think_us: 0,
            in_flight: 0,
        };
        // Blocks 0 and 1, twice, and 5; of them 1 has data.
        let trace = Trace::new(vec![
            read(0, 8192),
            read(512, 512),
            read(20_480, 4096),
            read(4096, 4096),
        ]);
        let pieces = folder.path().join("pieces");
        let data_share = look(&trace, &disk, &pieces).unwrap();
        assert!((data_share - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!(std::fs::metadata(&pieces).unwrap().len(), PIECE);
    }

    #[test]
    fn what_zstd_says_of_the_size_is_read() {
        let said = "\r 3#pieces : 100 -> \r 3#pieces   :    433000000 ->  204000000 (x2.122),  230.1 MB/s, 1100.2 MB/s \n";
        assert_eq!(packed_bytes(said), Some(204_000_000.0));
    }
}
