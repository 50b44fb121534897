//! Foreign disk images: sparse readers and inspection.
//!
//! This crate owns everything that parses bytes which came from outside as a disk file: the image formats
//! themselves ([`open`] and [`DiskImage`]) and what lies inside a disk ([`inspect`]). A disk image is hostile until
//! proven otherwise: every offset is checked before it is used, every allocation has a limit, and a bad image ends in
//! an [`ImageError`] that names the file and the place. Nothing here mounts, executes or changes an image ([`Qcow2Layout`] only says what a
//! new one looks like), and nothing here hashes or chunks: callers walk [`DiskImage::region_at`] and read the data regions only.

mod convert;
mod error;
mod format;
mod fuzz;
mod image;
mod inspect;
mod layers;
mod options;
mod qcow2;
mod raw;
mod recent;
mod source;

pub use error::ImageError;
pub use format::{ImageFormat, UnknownFormat};
pub use fuzz::{fuzz_inspect, fuzz_partition_table, fuzz_qcow2};
pub use image::{DiskImage, Region, RegionKind, SECTOR_BYTES};
pub use inspect::{
    BootArtifacts, BootSummary, Filesystem, FilesystemKind, Inspection, OperatingSystem, Partition,
    PartitionTable, inspect,
};
pub use options::{OpenOptions, Progress};
pub use qcow2::layout::{QCOW2_CLUSTER_BYTES, Qcow2Layout, Qcow2Part};

use std::path::Path;

use source::Source;

/// Opens the disk image at `path` for reading.
///
/// The format is taken from the file's magic numbers, never from its name, unless `options` states one. A file without
/// a known magic is a raw disk.
///
/// # Errors
///
/// [`ImageError`] when the file cannot be read, is empty, is corrupt, or uses a feature that is not supported; the
/// message says which and what to do about it.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Box<dyn DiskImage>, ImageError> {
    let source = Source::open(path)?;
    let format = match options.format {
        Some(format) => format,
        None => format::sniff(&source)?,
    };
    let disk_bytes_max = options.disk_bytes_max;
    match format {
        ImageFormat::Raw => Ok(Box::new(raw::RawImage::new(source, disk_bytes_max)?)),
        ImageFormat::Qcow2 => Ok(Box::new(qcow2::Qcow2Image::new(source, disk_bytes_max)?)),
        ImageFormat::Vhdx | ImageFormat::Vmdk | ImageFormat::Vdi | ImageFormat::Vhd => {
            Ok(Box::new(convert::convert(&source, format, options)?))
        }
    }
}
