//! The disk as an argument.
//!
//! [`Disk`] is a directory tree of files with the few operations that durable formats need, each with the durability of
//! POSIX: nothing is promised before [`DiskFile::sync`] (content) and [`Disk::sync_dir`] (names). [`HostDisk`] is the real one.
//! It does not do retries: an EIO is the caller's to fail closed on.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// Must exist; opened for reading only.
    Read,
    /// Must exist; opened for reading and writing.
    Write,
    /// Must not exist; created empty, for reading and writing.
    CreateNew,
}

/// A directory tree. Names are relative, `/`-separated, without `..`.
pub trait Disk: Send + Sync + 'static {
    /// Opens the file `name`.
    fn open(&self, name: &str, how: Open) -> io::Result<Arc<dyn DiskFile>>;
    /// Names (not paths) of the files directly in directory `dir`, unordered. A missing directory is empty.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Creates `dir` and its parents; durable on return.
    fn create_dir(&self, dir: &str) -> io::Result<()>;
    /// Removes a file. Durable only after [`Self::sync_dir`] of its directory.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Atomically renames within the tree, replacing `to`. Durable only after [`Self::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes creations, removals and renames in `dir` durable.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Bytes still free to us.
    fn available_bytes(&self) -> io::Result<u64>;
}

/// An open file. Reads and writes may run concurrently on different ranges.
pub trait DiskFile: Send + Sync {
    /// Fills `buf` from `offset`; `UnexpectedEof` if the file ends before.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Fills `parts` in turn with the bytes from `offset` on, in as few calls to the system as possible; errors as
    /// [`Self::read_at`]. Unless it `may_wait`, it gives up with `Ok(false)` where the medium would have to be asked (the parts then
    /// hold anything). A file that cannot tell waits.
    fn read_parts_at(
        &self,
        offset: u64,
        parts: &mut [IoSliceMut<'_>],
        _may_wait: bool,
    ) -> io::Result<bool> {
        let mut at = offset;
        for part in parts {
            self.read_at(at, part)?;
            at += part.len() as u64;
        }
        Ok(true)
    }
    /// Says that reads come at random places, so that the system reads what is asked for and nothing beside it. The default does nothing.
    fn expect_random_reads(&self) {}
    /// Writes all of `data` at `offset`, extending the file as needed. In the kernel on return, durable only after sync.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes all completed writes of this file durable (fdatasync).
    fn sync(&self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends (with zeros) to `len` bytes.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Gives the range's space back; it reads as zeros afterwards. A file system that cannot does nothing.
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()>;
}

/// Most parts of one system call on Linux.
const IOV_MAX: usize = 1024;

/// A directory of the host's file system.
#[derive(Debug, Clone)]
pub struct HostDisk {
    root: PathBuf,
}

impl HostDisk {
    /// Uses `root`, creating it (mode 0700) if it does not exist.
    pub fn new(root: impl Into<PathBuf>) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let root = root.into();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .map_err(|e| at(&root, e))?;
        Ok(Self { root })
    }

    /// The directory on the host.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, name: &str) -> PathBuf {
        debug_assert!(!name.starts_with('/') && !name.split('/').any(|p| p == ".."));
        self.root.join(name)
    }
}

/// Names the path in an I/O error, keeping its kind.
fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        PathError {
            path: path.to_owned(),
            source: error,
        },
    )
}

#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
struct PathError {
    path: PathBuf,
    source: io::Error,
}

impl Disk for HostDisk {
    fn open(&self, name: &str, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.path(name);
        let mut options = OpenOptions::new();
        options.read(true);
        match how {
            Open::Read => {}
            Open::Write => {
                options.write(true);
            }
            Open::CreateNew => {
                // Its directory keeps others out already; this also holds where a file is copied to.
                options.write(true).create_new(true).mode(0o600);
            }
        }
        let file = options.open(&path).map_err(|e| at(&path, e))?;
        Ok(Arc::new(HostFile { file, path }))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let path = self.path(dir);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(at(&path, e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| at(&path, e))?;
            if entry.file_type().map_err(|e| at(&path, e))?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        let path = self.path(dir);
        std::fs::create_dir_all(&path).map_err(|e| at(&path, e))?;
        let mut level = path.as_path();
        // Each new name lives in its parent, so the whole chain up to our root is synced.
        while let Some(parent) = level.parent() {
            sync_directory(level)?;
            if level == self.root {
                break;
            }
            level = parent;
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path(name);
        std::fs::remove_file(&path).map_err(|e| at(&path, e))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let from = self.path(from);
        std::fs::rename(&from, self.path(to)).map_err(|e| at(&from, e))
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        sync_directory(&self.path(dir))
    }

    fn available_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.root).map_err(|e| at(&self.root, e.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)
        .and_then(|d| d.sync_all())
        .map_err(|e| at(path, e))
}

struct HostFile {
    file: File,
    path: PathBuf,
}

impl HostFile {
    /// As `preadv`, until everything is there. `RWF_NOWAIT` reads what the page cache has and never asks the medium.
    fn preadv(
        &self,
        mut offset: u64,
        mut parts: &mut [IoSliceMut<'_>],
        may_wait: bool,
    ) -> io::Result<bool> {
        use rustix::io::{Errno, ReadWriteFlags};
        let flags = if may_wait {
            ReadWriteFlags::empty()
        } else {
            ReadWriteFlags::NOWAIT
        };
        IoSliceMut::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            let batch = parts.len().min(IOV_MAX);
            let taken = match rustix::io::preadv2(&self.file, &mut parts[..batch], offset, flags) {
                Ok(0) if !may_wait => return Ok(false),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(taken) => taken,
                Err(Errno::AGAIN) if !may_wait => return Ok(false),
                // A file system without it: every read may wait there, as it always could.
                Err(Errno::OPNOTSUPP) if !may_wait => return self.preadv(offset, parts, true),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            IoSliceMut::advance_slices(&mut parts, taken);
            offset += taken as u64;
        }
        Ok(true)
    }
}

impl DiskFile for HostFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file
            .read_exact_at(buf, offset)
            .map_err(|e| at(&self.path, e))
    }

    fn read_parts_at(
        &self,
        offset: u64,
        parts: &mut [IoSliceMut<'_>],
        may_wait: bool,
    ) -> io::Result<bool> {
        self.preadv(offset, parts, may_wait)
            .map_err(|e| at(&self.path, e))
    }

    fn expect_random_reads(&self) {
        // Advice: where it is not taken, more is read than was asked for.
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::Random);
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file
            .write_all_at(data, offset)
            .map_err(|e| at(&self.path, e))
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data().map_err(|e| at(&self.path, e))
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata().map_err(|e| at(&self.path, e))?.len())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len).map_err(|e| at(&self.path, e))
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        use rustix::fs::FallocateFlags;
        match rustix::fs::fallocate(
            &self.file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            offset,
            len,
        ) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(e) => Err(at(&self.path, e.into())),
        }
    }
}
