//! The desktop disks in three versions, made by the project's own image maker and kept.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::Program;
use crate::workshop::Workshop;

/// Making three versions of a desktop: mirrors may be slow.
const MAKING: Duration = Duration::from_secs(7200);

/// Until an interrupted maker has unmounted what it works on: a disk's dirty pages are written first.
const CLEARING: Duration = Duration::from_secs(60);

/// Unit in which a disk's data is counted, in bytes.
const BLOCK: usize = 4096;

/// Where the disks are.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    folder: PathBuf,
}

impl Images {
    /// Makes what is missing of the versions up to `last`.
    ///
    /// # Errors
    /// The maker fails, or there is none and a disk is missing.
    pub(crate) fn ready(workshop: &Workshop, folder: &Path, last: u32) -> Result<Self> {
        if last > 0 {
            eprintln!("==> disks in {} (made once, then kept)", folder.display());
            Program::new("bash")
                .arg(workshop.tree("tests/images/make-desktop.sh"))
                .arg(folder)
                .args((1..=last).map(|version| format!("v{version}")))
                .grace(CLEARING)
                .run(&workshop.scratch("images")?, MAKING)
                .context("making the desktop disks")?;
        }
        // Some tools keep a symbolic link as what it is.
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        Ok(Self { folder })
    }

    /// What a version was made of; empty when there is none.
    pub(crate) fn stamp(folder: &Path, number: u32) -> String {
        let path = folder.join(format!("desktop-v{number}.raw.stamp"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.trim().to_owned()
    }

    /// Where they are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The disk of a version.
    pub(crate) fn version(&self, number: u32) -> PathBuf {
        self.folder.join(format!("desktop-v{number}.raw"))
    }

    /// 10^6 bytes of a version that are not zero, in 4 KiB blocks.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn data_mb(&self, number: u32) -> Result<f64> {
        let mut bytes = 0u64;
        each_data(&self.version(number), |block, _| {
            bytes += block.len() as u64;
            Ok(true)
        })?;
        Ok(bytes as f64 / 1e6)
    }

    /// The first `bytes_max` of a version's data, without its zeros, as a file: what a compressor's speed is measured on.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub(crate) fn sample(&self, number: u32, bytes_max: usize, to: &Path) -> Result<()> {
        // Not through memory: what we have held ourselves is the least that a program started by us seems to have used.
        let at = || to.display().to_string();
        let mut sample = BufWriter::new(File::create(to).with_context(at)?);
        let mut bytes = 0;
        each_data(&self.version(number), |block, _| {
            sample.write_all(block).with_context(at)?;
            bytes += block.len();
            Ok(bytes < bytes_max)
        })?;
        sample.flush().with_context(at)
    }
}

/// Calls `visit` with each block that is not zero and its offset, until it says false. Holes are not read.
fn each_data(path: &Path, mut visit: impl FnMut(&[u8], u64) -> Result<bool>) -> Result<()> {
    let at = || path.display().to_string();
    let file = File::open(path).with_context(at)?;
    let size = file.metadata().with_context(at)?.len();
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < size {
        offset = match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(offset)) {
            // A data range may begin inside a block of ours.
            Ok(data) => data / BLOCK as u64 * BLOCK as u64,
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error).with_context(at),
        };
        let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(offset)).with_context(at)?;
        while offset < hole {
            let want = (hole - offset).min(buffer.len() as u64) as usize;
            let read = file.read_at(&mut buffer[..want], offset).with_context(at)?;
            if read == 0 {
                return Ok(());
            }
            for (index, block) in buffer[..read].chunks(BLOCK).enumerate() {
                if block.iter().any(|byte| *byte != 0)
                    && !visit(block, offset + (index * BLOCK) as u64)?
                {
                    return Ok(());
                }
            }
            offset += read as u64;
        }
    }
    Ok(())
}

/// Bytes of all files below a folder; of sparse ones what they occupy.
///
/// # Errors
/// It cannot be read.
pub(crate) fn folder_bytes(folder: &Path) -> Result<f64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0.0;
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry.context("a folder's entry")?;
        // A store may delete a file of its own while it is looked at.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_dir() {
            bytes += folder_bytes(&entry.path())?;
        } else if metadata.is_file() {
            bytes += metadata.len().min(metadata.blocks() * 512) as f64;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_blocks_with_data_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images {
            folder: folder.path().to_owned(),
        };
        let file = File::create(images.version(1)).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[7; 5000], 8192).unwrap();
        file.write_all_at(&[0; 100_000], 10 << 20).unwrap();
        file.write_all_at(b"x", (40 << 20) + 77).unwrap();
        assert_eq!(images.data_mb(1).unwrap() * 1e6, 3.0 * 4096.0);
        let sample = folder.path().join("sample");
        images.sample(1, 4096, &sample).unwrap();
        assert_eq!(std::fs::read(&sample).unwrap(), [7; 4096]);
    }
}
