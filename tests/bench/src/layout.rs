//! Where the files of a disk image lie in it: its only partition is mounted read-only and every file and folder asked.
//!
//! That needs root. It is done by a process in a mount namespace of its own, so that no mount is left however it ends; the kernel
//! frees the loop device with the mount.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::fiemap::{self, Piece};
use crate::named::Named;

/// Where the partition of every image begins that the project's makers make, in bytes.
const PARTITION_START: u64 = 1 << 20;

/// Says that we are in a namespace of our own already.
const OWN_MOUNTS: &str = "SPLICE_BENCH_MOUNTS";

/// A file's pieces, by their places in it; `physical` counts from the image's beginning.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    files: HashMap<Vec<u8>, Vec<Piece>>,
}

/// Which trace is placed on what.
#[derive(Debug, Args)]
pub(crate) struct Options {
    image: PathBuf,
    /// A trace that names files.
    trace: PathBuf,
    /// A trace of the image's offsets.
    out: PathBuf,
}

/// What became of a trace's bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Placed {
    pub(crate) bytes: u64,
    /// Of these, found by a file's name.
    pub(crate) by_name: u64,
    /// Of these, in files that the image does not have, or not so long.
    pub(crate) lost: u64,
}

/// Places a trace and prints what became of it.
///
/// # Errors
/// The image cannot be mounted, or the trace is none.
pub(crate) fn place(options: &Options) -> Result<()> {
    if !in_own_mounts()? {
        return Ok(());
    }
    let named = Named::load(&options.trace)?.context("that trace names no files")?;
    let (trace, placed) = named.place(&Layout::of_image(&options.image)?)?;
    let file = File::create(&options.out).with_context(|| options.out.display().to_string())?;
    trace.write(file)?;
    println!("{}", serde_json::to_string(&placed)?);
    Ok(())
}

/// Does the whole command once more in a mount namespace of its own, unless this is there already. Returns whether it is.
///
/// # Errors
/// It failed there.
pub(crate) fn in_own_mounts() -> Result<bool> {
    if std::env::var_os(OWN_MOUNTS).is_some() {
        return Ok(true);
    }
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe().context("our own program")?)
        .args(std::env::args_os().skip(1))
        .env(OWN_MOUNTS, "1")
        .status()
        .context("unshare")?;
    if !status.success() {
        bail!("it did not work in a mount namespace of its own (root is needed), see above");
    }
    Ok(false)
}

impl Layout {
    /// Of an image's partition. Call it in a mount namespace of its own.
    ///
    /// # Errors
    /// It cannot be mounted or read.
    pub(crate) fn of_image(image: &Path) -> Result<Self> {
        let at = || image.display().to_string();
        let size = std::fs::metadata(image).with_context(at)?.len();
        let bytes = size
            .checked_sub(2 * PARTITION_START)
            .with_context(|| format!("{} is too small for a partition", at()))?;
        let folder = std::env::temp_dir().join(format!("splice-layout-{}", std::process::id()));
        std::fs::create_dir_all(&folder).context("a mount point")?;
        // noload: what is in the journal stays there. The image is not changed in any way.
        let options = format!("ro,noload,noatime,loop,offset={PARTITION_START},sizelimit={bytes}");
        let mounted = run(Command::new("mount")
            .args(["-t", "ext4", "-o", &options])
            .arg(image)
            .arg(&folder))
        .with_context(at);
        let layout = mounted.and_then(|()| {
            let layout = Self::of_folder(&folder, PARTITION_START);
            run(Command::new("umount").arg(&folder))?;
            layout
        });
        let _ = std::fs::remove_dir(&folder);
        layout
    }

    /// Of all files and folders below `root`, which is mounted from a device that begins at `start`.
    fn of_folder(root: &Path, start: u64) -> Result<Self> {
        let device = std::fs::metadata(root).context("the mount point")?.dev();
        let mut layout = Self::default();
        let mut seen = HashSet::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            let at = || folder.display().to_string();
            layout.add(root, &folder, start).with_context(at)?;
            let mut entries: Vec<_> = std::fs::read_dir(&folder)
                .and_then(Iterator::collect)
                .with_context(at)?;
            // Of a file with several names the first one counts, on every machine the same.
            entries.sort_by_key(std::fs::DirEntry::file_name);
            for entry in entries {
                let metadata = entry.metadata().with_context(at)?;
                if metadata.dev() != device {
                    continue;
                }
                if metadata.is_dir() {
                    folders.push(entry.path());
                } else if metadata.is_file() && seen.insert(metadata.ino()) {
                    layout.add(root, &entry.path(), start).with_context(at)?;
                }
            }
        }
        Ok(layout)
    }

    fn add(&mut self, root: &Path, path: &Path, start: u64) -> Result<()> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        let mut pieces = fiemap::pieces(&file).with_context(|| path.display().to_string())?;
        for piece in &mut pieces {
            piece.physical += start;
        }
        let name = path.strip_prefix(root).context("a path below its root")?;
        let name = [b"/", name.as_os_str().as_bytes()].concat();
        self.put(&name, pieces);
        Ok(())
    }

    /// Adds a file.
    pub(crate) fn put(&mut self, name: &[u8], pieces: Vec<Piece>) {
        if !pieces.is_empty() {
            self.files.insert(name.to_owned(), pieces);
        }
    }

    /// All pieces with their files' names, by their places on the disk.
    pub(crate) fn by_place(&self) -> Vec<(Piece, &[u8])> {
        let mut all: Vec<(Piece, &[u8])> = self
            .files
            .iter()
            .flat_map(|(name, pieces)| pieces.iter().map(move |piece| (*piece, &name[..])))
            .collect();
        all.sort_unstable_by_key(|(piece, _)| piece.physical);
        all
    }

    /// A file's pieces.
    pub(crate) fn file(&self, name: &[u8]) -> Option<&[Piece]> {
        self.files.get(name).map(Vec::as_slice)
    }

    /// Names by what they are without their numbers, in order: a kernel of another release has other numbers in its paths.
    pub(crate) fn by_likeness(&self) -> HashMap<Vec<u8>, &[u8]> {
        let mut names: Vec<&[u8]> = self.files.keys().map(Vec::as_slice).collect();
        names.sort_unstable();
        // Of several that are alike the last one counts: the newest release, mostly.
        names
            .into_iter()
            .map(|name| (likeness(name), name))
            .collect()
    }
}

/// A name with every run of digits as one `#`.
pub(crate) fn likeness(name: &[u8]) -> Vec<u8> {
    let mut like = Vec::with_capacity(name.len());
    for byte in name {
        match byte {
            b'0'..=b'9' if like.last() == Some(&b'#') => {}
            b'0'..=b'9' => like.push(b'#'),
            byte => like.push(*byte),
        }
    }
    like
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_owned();
    let output = command.output().with_context(|| shown(&name))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}", shown(&name), words.trim());
    }
    Ok(())
}

fn shown(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_differ_by_more_than_numbers() {
        let kernel = likeness(b"/boot/vmlinuz-6.1.0-32-amd64");
        assert_eq!(kernel, likeness(b"/boot/vmlinuz-6.1.0-9-amd64"));
        assert_ne!(kernel, likeness(b"/boot/initrd.img-6.1.0-32-amd64"));
    }

    /// Where the file system of the test's folder has maps; not all have.
    #[test]
    fn every_file_below_a_folder_is_found() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        let path = folder.path().join("a/file");
        std::fs::write(&path, vec![7; 100_000]).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        if fiemap::pieces(&File::open(&path).unwrap()).is_err() {
            return;
        }
        let layout = Layout::of_folder(folder.path(), 4096).unwrap();
        let pieces = layout.file(b"/a/file").unwrap();
        let bytes: u64 = pieces.iter().map(|piece| piece.len).sum();
        assert!(bytes >= 100_000 && pieces[0].physical >= 4096, "{pieces:?}");
        let places = layout.by_place();
        assert!(
            places
                .windows(2)
                .all(|two| two[0].0.physical <= two[1].0.physical)
        );
    }

    /// Two builds of an image with the same files in other places: what is recorded on one reads the same bytes on the other.
    #[test]
    #[ignore = "needs root and loop devices; run it under `unshare --mount`"]
    fn a_trace_of_one_build_reads_the_same_on_another() {
        use crate::trace::{ReadOp, Trace};
        use std::os::unix::fs::FileExt;
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("a b")).unwrap();
        let content: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        let build = |name: &str, kernel: &str, before: usize| {
            std::fs::write(root.join("a b/0"), &content[..before]).unwrap();
            std::fs::write(root.join(kernel), &content).unwrap();
            std::fs::write(root.join("z"), &content[5000..70_000]).unwrap();
            let image = folder.path().join(name);
            File::create(&image).unwrap().set_len(64 << 20).unwrap();
            run(Command::new("mke2fs")
                .args([
                    "-q",
                    "-t",
                    "ext4",
                    "-b",
                    "4096",
                    "-E",
                    "offset=1048576",
                    "-d",
                ])
                .args([&root, &image])
                .arg(format!("{}k", 62 << 10)))
            .unwrap();
            std::fs::remove_file(root.join(kernel)).unwrap();
            image
        };
        let (one, two) = (
            build("one", "vmlinuz-6.1.0-9", 100),
            build("two", "vmlinuz-6.1.0-32", 900_000),
        );
        let layout = Layout::of_image(&one).unwrap();
        let mut reads = Vec::new();
        for name in [&b"/vmlinuz-6.1.0-9"[..], b"/z", b"/a b/0"] {
            for piece in layout.file(name).unwrap() {
                reads.push(ReadOp {
                    offset: piece.physical,
                    len: piece.len as u32,
                    think_us: 1,
                    in_flight: 0,
                });
            }
        }
        let trace = Trace::new(reads);
        let named = Named::of(&trace, &layout).unwrap();
        assert!((named.named_share() - 1.0).abs() < 1e-9);
        let (placed, counts) = named.place(&Layout::of_image(&two).unwrap()).unwrap();
        assert_eq!(counts.lost, 0);
        assert_ne!(placed, trace);
        let bytes = |image: &Path, trace: &Trace| {
            let file = File::open(image).unwrap();
            let mut all = Vec::new();
            // The first file has other content in each.
            for read in &trace.reads {
                let mut piece = vec![0; read.len as usize];
                file.read_exact_at(&mut piece, read.offset).unwrap();
                all.extend(piece);
            }
            all.truncate(content.len() + 65_000);
            all
        };
        assert_eq!(bytes(&one, &trace), bytes(&two, &placed));
        assert_eq!(bytes(&one, &trace)[..content.len()], content);
    }
}
