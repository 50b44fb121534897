//! The disks: the small Debian pair that is made once per machine, or the user's own; and how much is in one.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use dedup_image::{OpenOptions, RegionKind};

use super::process::{Processes, Program};
use crate::report::ImageFacts;

/// The makers of images, found from where this crate was built.
const MAKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../images/make-small.sh");

/// Installing Debian twice from a slow mirror; it takes a minute from a near one.
const MAKING: Duration = Duration::from_secs(1800);

/// Bytes that are read at once.
const STEP_BYTES: u64 = 1 << 20;

/// Unit in which zeros inside data are looked for: a guest's page and file system block.
const BLOCK_BYTES: usize = 4096;

/// zstd's level, that of the store.
const LEVEL: i32 = 3;

/// The disks of one run.
pub(crate) struct Disks {
    /// What is published first.
    pub(crate) v1: PathBuf,
    /// What is published next, if there is one.
    pub(crate) v2: Option<PathBuf>,
    /// Whether they are the demo's own, whose content is known.
    pub(crate) bundled: bool,
}

/// The small Debian pair, made now if it is not there.
///
/// # Errors
/// The maker's own words.
pub(crate) fn bundled(processes: &mut Processes, folder: &Path) -> anyhow::Result<Disks> {
    let maker = Path::new(MAKER);
    if !maker.is_file() {
        bail!("{MAKER} is missing; run ./x demo in a whole checkout, or bring a disk with --image");
    }
    processes
        .run_aloud(&Program::new(maker).args([folder]), MAKING)
        .context("making the demo's disks")?;
    let disk = |name: &str| folder.join(name);
    Ok(Disks {
        v1: disk("debian-v1.raw"),
        v2: Some(disk("debian-v2.raw")),
        bundled: true,
    })
}

/// Measures a disk of any format: its size, its bytes that are not zero, and those as one zstd stream. The last is the
/// least that copying the disk would cost.
///
/// # Errors
/// It cannot be read.
pub(crate) fn measure(disk: &Path, scratch: &Path) -> anyhow::Result<ImageFacts> {
    let at = || disk.display().to_string();
    let mut image =
        dedup_image::open(disk, &OpenOptions::new().scratch_dir(scratch)).with_context(at)?;
    let virtual_bytes = image.size_bytes();
    let mut compressed = zstd::stream::Encoder::new(Counter::default(), LEVEL).context("zstd")?;
    let mut data_bytes = 0;
    let mut offset = 0;
    let mut buffer = vec![0; STEP_BYTES as usize];
    while offset < virtual_bytes {
        let region = image.region_at(offset).with_context(at)?;
        if region.kind == RegionKind::Zero {
            offset = region.end();
            continue;
        }
        if super::wait::interrupted() {
            bail!("interrupted");
        }
        let bytes = &mut buffer[..region.len.min(STEP_BYTES) as usize];
        image.read_at(offset, bytes).with_context(at)?;
        for block in bytes
            .chunks(BLOCK_BYTES)
            .filter(|block| block.iter().any(|byte| *byte != 0))
        {
            data_bytes += block.len() as u64;
            compressed.write_all(block).context("zstd")?;
        }
        offset += bytes.len() as u64;
    }
    let compressed_bytes = compressed.finish().context("zstd")?.bytes;
    Ok(ImageFacts {
        virtual_bytes,
        data_bytes,
        compressed_bytes,
    })
}

#[derive(Default)]
struct Counter {
    bytes: u64,
}

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn zeros_are_not_data_whether_stored_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        let disk = std::fs::File::create(&path).unwrap();
        disk.set_len(64 << 20).unwrap();
        disk.write_all_at(&[0; 8192], 0).unwrap();
        disk.write_all_at(&[7; 8192], 8192).unwrap();
        disk.write_all_at(&[7; 4096], 40 << 20).unwrap();
        let facts = measure(&path, folder.path()).unwrap();
        assert_eq!((facts.virtual_bytes, facts.data_bytes), (64 << 20, 12288));
        assert!(
            facts.compressed_bytes > 0 && facts.compressed_bytes < 100,
            "{facts:?}"
        );
    }

    #[test]
    fn the_maker_is_where_it_is_looked_for() {
        assert!(Path::new(MAKER).is_file());
    }
}
