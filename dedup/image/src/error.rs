//! What can go wrong with a foreign disk image. Messages name the file, the place in it and what to do; the cause of
//! an I/O error is the `source`, never part of the text.

use std::io;
use std::path::PathBuf;

use crate::format::ImageFormat;

/// Why an image cannot be opened or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The operating system refused an operation on the file.
    #[error("{}: cannot {action}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, as a verb phrase with the offset where there is one.
        action: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The image points at bytes beyond the end of its file.
    #[error(
        "{}: truncated: {len} bytes at file offset {offset} are needed but the file ends at {file_bytes}; copy the image again",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Where the needed bytes begin, in bytes from the start of the file.
        offset: u64,
        /// How many bytes are needed there.
        len: u64,
        /// Where the file ends.
        file_bytes: u64,
    },
    /// The image contradicts its format.
    #[error("{}: corrupt {format} image: {what} (file offset {offset})", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The format it was read as.
        format: ImageFormat,
        /// Where the contradiction was seen, in bytes from the start of the file.
        offset: u64,
        /// The contradiction.
        what: String,
    },
    /// The image is valid but needs something this crate does not do.
    #[error("{}: unsupported {format} image: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The format it was read as.
        format: ImageFormat,
        /// The feature and the way round it.
        what: String,
    },
    /// The image is one layer of several; only whole disks can be read.
    #[error(
        "{}: the image needs another file, {reference:?}; flatten it first: qemu-img convert -O qcow2 {} flat.qcow2",
        path.display(), path.display()
    )]
    Layered {
        /// The file.
        path: PathBuf,
        /// The file that it refers to, as written in the image (foreign text: shown quoted).
        reference: String,
    },
    /// The disk has no bytes, or more than any supported disk.
    #[error("{}: the disk is {size_bytes} bytes; between 1 byte and {limit_bytes} bytes are supported", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// The disk's size as the image states it.
        size_bytes: u64,
        /// The largest size.
        limit_bytes: u64,
    },
    /// The caller asked for bytes beyond the end of the disk.
    #[error("{len} bytes at disk offset {offset} are not on a disk of {size_bytes} bytes")]
    OutOfRange {
        /// Where the request begins.
        offset: u64,
        /// How long it is.
        len: u64,
        /// The disk's size.
        size_bytes: u64,
    },
    /// Conversion by qemu-img did not succeed.
    #[error("{}: conversion: {what}", path.display())]
    Conversion {
        /// The file.
        path: PathBuf,
        /// What happened and what to do.
        what: String,
    },
    /// `qemu-img` is not installed.
    #[error("{}: a {format} image is converted by qemu-img, which is not installed; install the Debian package qemu-utils", path.display())]
    ToolMissing {
        /// The file.
        path: PathBuf,
        /// The format that needs it.
        format: ImageFormat,
    },
    /// The scratch folder cannot hold the converted image.
    #[error(
        "{}: converting needs up to {needed_bytes} bytes in {}, where {free_bytes} are free; free some space or choose another scratch folder",
        path.display(), scratch_dir.display()
    )]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// The scratch folder.
        scratch_dir: PathBuf,
        /// Bytes that conversion may write.
        needed_bytes: u64,
        /// Bytes that are free.
        free_bytes: u64,
    },
}
