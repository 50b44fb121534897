//! The bytes behind an image: a regular file, a block device, or memory (for fuzz targets). Its length is taken once
//! at opening; a read that crosses it is a truncated image, reported with file and offset.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom as SparseSeek;

use crate::error::ImageError;

enum Bytes {
    File(File),
    Memory(Vec<u8>),
}

/// An opened, read-only source of bytes.
pub(crate) struct Source {
    path: PathBuf,
    bytes: Bytes,
    len: u64,
}

/// The next boundary between data and hole.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sparse {
    /// Data up to this offset.
    DataUntil(u64),
    /// A hole up to this offset.
    HoleUntil(u64),
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Self, ImageError> {
        let fail = |action: &str, source: io::Error| ImageError::Io {
            path: path.to_owned(),
            action: action.to_owned(),
            source,
        };
        let metadata = std::fs::metadata(path).map_err(|e| fail("open it", e))?;
        // Opening a FIFO would block for ever, so the kind is checked first.
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(fail(
                "read it as a disk",
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "neither a regular file nor a block device",
                ),
            ));
        }
        let mut file = File::open(path).map_err(|e| fail("open it", e))?;
        // Seeking gives the length of block devices too, whose metadata say 0.
        let len = file
            .seek(SeekFrom::End(0))
            .map_err(|e| fail("find its length", e))?;
        Ok(Self {
            path: path.to_owned(),
            bytes: Bytes::File(file),
            len,
        })
    }

    /// A file that is open already; `path` stands for it in errors.
    pub(crate) fn from_file(path: &Path, file: File, len: u64) -> Self {
        Self {
            path: path.to_owned(),
            bytes: Bytes::File(file),
            len,
        }
    }

    /// Another handle on the same open file, for a child process.
    pub(crate) fn try_clone_file(&self) -> Result<File, ImageError> {
        let duplicate = match &self.bytes {
            Bytes::File(file) => file.try_clone(),
            Bytes::Memory(_) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "it is in memory, not a file",
            )),
        };
        duplicate.map_err(|source| ImageError::Io {
            path: self.path.clone(),
            action: "hand it to qemu-img".into(),
            source,
        })
    }

    /// A source in memory, for fuzz targets and unit tests; `name` stands for the path in errors.
    pub(crate) fn memory(name: &str, bytes: Vec<u8>) -> Self {
        let len = bytes.len() as u64;
        Self {
            path: PathBuf::from(name),
            bytes: Bytes::Memory(bytes),
            len,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        let truncated = || ImageError::Truncated {
            path: self.path.clone(),
            offset,
            len: buf.len() as u64,
            file_bytes: self.len,
        };
        let end = offset.checked_add(buf.len() as u64).ok_or_else(truncated)?;
        if end > self.len {
            return Err(truncated());
        }
        match &self.bytes {
            Bytes::Memory(bytes) => {
                buf.copy_from_slice(&bytes[offset as usize..end as usize]);
                Ok(())
            }
            Bytes::File(file) => file
                .read_exact_at(buf, offset)
                .map_err(|source| ImageError::Io {
                    path: self.path.clone(),
                    action: format!("read {} bytes at file offset {offset}", buf.len()),
                    source,
                }),
        }
    }

    /// What lies at `offset`, which must be below [`Self::len`]. Where the system cannot tell (block devices, some file
    /// systems) everything is data.
    pub(crate) fn sparse_at(&self, offset: u64) -> Result<Sparse, ImageError> {
        let Bytes::File(file) = &self.bytes else {
            return Ok(Sparse::DataUntil(self.len));
        };
        let fail = |source: rustix::io::Errno| ImageError::Io {
            path: self.path.clone(),
            action: format!("look for a hole at file offset {offset}"),
            source: source.into(),
        };
        match rustix::fs::seek(file, SparseSeek::Data(offset)) {
            Ok(data) if data > offset => return Ok(Sparse::HoleUntil(data.min(self.len))),
            Ok(_) => {}
            // No data after this offset; were the file cut meanwhile, a later read would say so.
            Err(rustix::io::Errno::NXIO) => return Ok(Sparse::HoleUntil(self.len)),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
                return Ok(Sparse::DataUntil(self.len));
            }
            Err(errno) => return Err(fail(errno)),
        }
        match rustix::fs::seek(file, SparseSeek::Hole(offset)) {
            // A hole dug between the two calls: report the smallest true thing.
            Ok(hole) if hole <= offset => Ok(Sparse::DataUntil(offset + 1)),
            Ok(hole) => Ok(Sparse::DataUntil(hole.min(self.len))),
            Err(errno) => Err(fail(errno)),
        }
    }
}
